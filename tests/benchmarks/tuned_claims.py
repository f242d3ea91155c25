"""How often a comparison of two tuned arms that are equal claims a difference.

Run it by `python tests/benchmarks/tuned_claims.py`. Two equal arms have one curve of the error over the learning rate,
through the points that a U-Net had on cephalograms at 5 shots (33.7 mm at 1e-5, 13.8 at 1e-4, 6.3 at 1e-3), flat
around 3e-3 and rising beyond. Each arm is tuned by itself: configuration 0 is the default, 1e-4, the others are drawn
evenly on the logarithmic scale, each is judged by the mean over two tuning seeds of a noisy validation error, and the
least is chosen. Both arms then run on the same seeds and test images, and a difference is claimed where the 95 %
interval of the paired difference excludes 0. With repeats, every arm is tuned several times, and the tunings are the
units behind the interval.

The first table has tunings with sampler seeds of their own, as an independent group would choose them; the constants of
`ablate.stats.coverage` are its numbers. The second has the same configurations for both arms, as in one run, where only
the noise of the validation error makes the choices differ.
"""

from __future__ import annotations

import argparse

import numpy as np

from ablate.stats.two_way import variances_of

RATES = np.log10([1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2])
ERRORS_MM = np.log([70.0, 33.7, 13.8, 6.3, 6.0, 9.0])
DEFAULT = -4.0
SEED_SD, IMAGE_SD, INTERACTION_SD, VALIDATION_SD = 0.04, 0.4, 0.3, 0.05  # relative
NUM_IMAGES, TUNING_SEEDS = 100, 2


def curve(rates):
    """Return the expected error in mm at learning rates, given as log10."""
    return np.exp(np.interp(rates, RATES, ERRORS_MM))


def tune(chance, experiments, budget, rates=None):
    """Return the learning rates (log10) that tunings choose, one for each experiment, and what they tried."""
    if rates is None:
        rates = chance.uniform(RATES[0], RATES[-1], (experiments, budget))
        rates[:, 0] = DEFAULT
    noise = chance.normal(0, VALIDATION_SD / np.sqrt(TUNING_SEEDS), rates.shape)
    best = np.argmin(curve(rates) * (1 + noise), axis=1)
    return np.take_along_axis(rates, best[:, None], 1)[:, 0], rates


def claims(chance, *, budget, seeds, repeats, shared, experiments):
    """Return the share of experiments that claim a difference between equal arms."""
    images_PI = chance.normal(0, IMAGE_SD, (experiments, NUM_IMAGES))
    arms = []
    tried = [None] * repeats
    for _ in range(2):
        units = []
        for repeat in range(repeats):
            chosen_P, rates = tune(chance, experiments, budget, tried[repeat] if shared else None)
            tried[repeat] = rates
            seeds_PS = chance.normal(0, SEED_SD, (experiments, seeds))
            noise_PSI = chance.normal(0, INTERACTION_SD, (experiments, seeds, NUM_IMAGES))
            errors_PSI = 1 + images_PI[:, None] + seeds_PS[:, :, None] + noise_PSI
            units.append(curve(chosen_P)[:, None, None] * errors_PSI)
        arms.append(units[0] if repeats == 1 else np.stack([unit.mean(axis=1) for unit in units], axis=1))
    difference_PSI = arms[0] - arms[1]
    widths_P = variances_of(difference_PSI).half_widths_P()
    return float((np.abs(difference_PSI.mean(axis=(1, 2))) > widths_P).mean())


def main():
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=2000)
    experiments = parser.parse_args().experiments
    for shared in (False, True):
        print(f"claims between equal arms (%), {experiments} experiments, "
              f"{'the same configurations for both arms' if shared else 'configurations of their own'}")  # fmt: skip
        print(f"{'tunings':>8} {'seeds':>6}" + "".join(f"{f'budget {budget}':>12}" for budget in (8, 16, 32)))
        for repeats, seeds in ((1, 2), (1, 3), (1, 5), (1, 10), (3, 1), (3, 3), (5, 3)):
            shares = [
                claims(
                    np.random.default_rng(budget),
                    budget=budget,
                    seeds=seeds,
                    repeats=repeats,
                    shared=shared,
                    experiments=experiments,
                )
                for budget in (8, 16, 32)
            ]
            print(f"{repeats:8} {seeds:6}" + "".join(f"{100 * share:12.1f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
