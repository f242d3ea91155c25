"""The simulation behind the coverage of label efficiencies: learning curves with known truth.

S seeds, I test images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from coverage_simulation import RESAMPLES, skewed

from ablate.stats import Resamples, crossed_bootstrap, image_means, label_efficiency
from ablate.stats.coverage import EFFICIENCY_EXPERIMENTS

SHOTS = (5, 10, 25, 50)
IMAGE_SD, PARTICULAR_SD, NUM_IMAGES = 1.0, 0.5, 100


@dataclass(frozen=True)
class Curves:
    """Two learning curves, `8 shots^-exponent` with noise: one to be read, and a point of another to be reached.

    Attributes:
        needed: the truth: with so many shots the first reaches the point of the other.
        exponent: how steep the first curve is.
        seed_sd: of the seed effects, in the unit of the errors, as are image effects (1.0) and what is particular to
            a seed on one of the 100 images (0.5).
    """

    needed: float
    exponent: float
    seed_sd: float


EFFICIENCY_SETTINGS: dict[str, Curves] = {
    "middle": Curves(18.0, 0.35, 0.1),
    "middle, seeds": Curves(18.0, 0.35, 0.3),
    "near the most shots": Curves(45.0, 0.35, 0.2),
    "near the fewest shots": Curves(6.0, 0.35, 0.2),
    "flat curve": Curves(18.0, 0.15, 0.2),
}


def measure_efficiency_coverage(
    setting: Curves,
    num_seeds: int,
    generator: np.random.Generator,
    *,
    num_experiments: int = EFFICIENCY_EXPERIMENTS,
    num_resamples: int = RESAMPLES,
) -> float:
    """Return the share of simulated experiments whose 95 % interval of the shots holds the truth.

    A censored limit holds all that lies beyond it. The truth lies on the line between two shot counts, over log(shots),
    as the interpolation assumes.

    Args:
        setting: the situation.
        num_seeds: S, at least 2.
        generator: source of all randomness.
        num_experiments: number of experiments.
        num_resamples: replicates behind each interval.
    """
    means = [8.0 * shots**-setting.exponent for shots in SHOTS]
    reached = float(np.interp(np.log(setting.needed), np.log(SHOTS), means))
    covered = 0
    resamples = Resamples(generator, num_resamples)
    for experiment in range(num_experiments):
        if experiment % 20 == 0:
            resamples = Resamples(generator, num_resamples)
        image_I = IMAGE_SD * skewed(generator, (1, NUM_IMAGES))
        estimates = []
        for number, mean in enumerate((reached, *means)):
            seed_S1 = setting.seed_sd * generator.normal(size=(num_seeds, 1))
            particular_SI = PARTICULAR_SD * skewed(generator, (num_seeds, NUM_IMAGES))
            scores_SI = 100.0 + mean + seed_S1 + image_I + particular_SI  # far from 0, so that no limit is clipped
            estimates.append(crossed_bootstrap(image_means(scores_SI), resamples, arm=number))
        found = label_efficiency(estimates[0], dict(zip(SHOTS, estimates[1:], strict=True)))
        assert found is not None
        assert found.lower is not None
        assert found.upper is not None
        lower = 0.0 if found.lower.censored == "<" else found.lower.value
        upper = np.inf if found.upper.censored == ">" else found.upper.value
        beyond = SHOTS[-1] if found.lower.censored == ">" else lower
        covered += beyond <= setting.needed <= upper
    return covered / num_experiments
