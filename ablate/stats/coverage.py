"""How often do the 95 % intervals hold the truth? Measured, by simulation, for few and for many seeds.

S seeds, I test images.

An experiment draws S networks and I images from a model with known truth,
`score = truth + seed effect + image effect + effect of the seed on this image`, and asks whether the interval of
`ablate.stats.crossed` holds the truth. Seed effects are normal; image effects and what is particular to a seed on an
image are log-normal (shifted to mean 0), as skewed as radial errors are. `COVERAGE` holds what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ablate.stats.bootstrap import Seeds, crossed_bootstrap, paired_difference
from ablate.stats.resamples import Resamples
from ablate.stats.samples import FloatArray, image_means

LOG_SD = 0.6
"""Standard deviation of the logarithm of image effects; gives a skewness of 2.3."""


@dataclass(frozen=True)
class Setting:
    """A simulated situation. Standard deviations are in the unit of the scores.

    Attributes:
        what: the situation in words.
        number: the mean of one initialisation, or the difference of two that share the image effects, with
            independent or with paired seeds.
        seed_sd: of the seed effects: how trainings differ on all images alike.
        image_sd: of the image effects: how images differ for all networks alike.
        particular_sd: of what a seed does on one image only.
        num_images: I.
    """

    what: str
    number: Literal["mean", "difference", "paired difference"]
    seed_sd: float
    image_sd: float
    particular_sd: float
    num_images: int


SETTINGS: dict[str, Setting] = {
    "images": Setting("mean; images matter, seeds hardly", "mean", 0.03, 1.0, 0.5, 100),
    "both": Setting("mean; seeds and images matter alike", "mean", 0.2, 1.0, 0.5, 100),
    "seeds": Setting("mean; seeds matter most", "mean", 0.6, 1.0, 0.5, 250),
    "small set": Setting("mean; 50 test images", "mean", 0.2, 1.0, 0.5, 50),
    "difference": Setting("difference of two initialisations; small seed effects", "difference", 0.05, 1.0, 0.5, 100),
    "difference, hard": Setting(
        "difference of two initialisations; seed effects that the noise of single images half hides",
        "difference",
        0.1,
        1.0,
        0.5,
        100,
    ),
    "paired, hard": Setting(
        "difference with paired seeds; seed effects that the noise of single images half hides",
        "paired difference",
        0.1,
        1.0,
        0.5,
        100,
    ),
    "difference, seeds": Setting(
        "difference of two initialisations; large seed effects", "difference", 0.3, 1.0, 0.5, 100
    ),
}

EXPERIMENTS = 4_000
RESAMPLES = 1_000

COVERAGE: dict[str, dict[int, float]] = {
    "images": {2: 0.9570, 3: 0.9530, 5: 0.9440, 10: 0.9425, 20: 0.9410},
    "both": {2: 0.9467, 3: 0.9670, 5: 0.9600, 10: 0.9497, 20: 0.9483},
    "seeds": {2: 0.9355, 3: 0.9497, 5: 0.9510, 10: 0.9483, 20: 0.9427},
    "small set": {2: 0.9565, 3: 0.9660, 5: 0.9580, 10: 0.9443, 20: 0.9407},
    "difference": {2: 0.9545, 3: 0.9583, 5: 0.9503, 10: 0.9565, 20: 0.9455},
    "difference, hard": {2: 0.9435, 3: 0.9545, 5: 0.9503, 10: 0.9545, 20: 0.9483},
    "paired, hard": {2: 0.8628, 3: 0.9113, 5: 0.9295, 10: 0.9450, 20: 0.9467},
    "difference, seeds": {2: 0.9630, 3: 0.9595, 5: 0.9587, 10: 0.9530, 20: 0.9473},
}
"""Setting -> number of seeds -> share of 4 000 experiments whose interval held the truth (standard error 0.35 %).

Each interval from 1 000 replicates; measured with `measure_coverage` and a generator seeded with 0 for each entry."""

ENOUGH_SEEDS = 10
"""From this number of seeds on, every setting covers 95 +- 2 %."""


def measure_coverage(
    setting: Setting,
    num_seeds: int,
    generator: np.random.Generator,
    *,
    num_experiments: int = EXPERIMENTS,
    num_resamples: int = RESAMPLES,
) -> float:
    """Return the share of simulated experiments whose 95 % interval holds the truth.

    It answers whether the method can be believed in a situation like this one. It does not say that the situation of
    a given run is like it.

    Args:
        setting: the situation.
        num_seeds: S, at least 2.
        generator: source of all randomness.
        num_experiments: number of experiments; the share's standard error is sqrt(0.05 * 0.95 / experiments).
        num_resamples: replicates behind each interval.
    """
    covered = 0
    resamples = Resamples(generator, num_resamples)
    for experiment in range(num_experiments):
        if experiment % 20 == 0:  # drawing the tables costs more than using them
            resamples = Resamples(generator, num_resamples)
        image_I = setting.image_sd * _skewed(generator, (1, setting.num_images))
        a = image_means(_scores(setting, num_seeds, image_I, generator))
        if setting.number == "mean":
            estimate = crossed_bootstrap(a, resamples)
        else:
            b = image_means(_scores(setting, num_seeds, image_I, generator))
            seeds: Seeds = "paired" if setting.number == "paired difference" else "independent"
            estimate = paired_difference(a, b, resamples, seeds=seeds)
        truth = _TRUTH if setting.number == "mean" else 0.0
        covered += estimate.lower is not None and estimate.lower <= truth <= (estimate.upper or 0.0)
    return covered / num_experiments


def coverage_note(num_seeds: int) -> str | None:
    """Return what a report must say about its intervals with this number of seeds; None if 95 % can be believed.

    It speaks of the simulated settings of `SETTINGS`, not of the run at hand, and of seeds only: an interval from a
    handful of test images is not covered by it.

    Args:
        num_seeds: the smallest number of seeds behind the intervals shown.
    """
    if num_seeds >= ENOUGH_SEEDS:
        return None
    if num_seeds < 2:
        return (
            "With one seed the intervals are over test images only: they leave out how trainings differ, and hold "
            "for these trained networks, not for another training."
        )
    measured_at = max(seeds for seeds in next(iter(COVERAGE.values())) if seeds <= num_seeds)
    shares = [by_seeds[measured_at] for by_seeds in COVERAGE.values()]
    return (
        f"With {num_seeds} seeds read the 95 % intervals with care: at {measured_at} seeds they held the truth in "
        f"{100 * min(shares):.1f} % to {100 * max(shares):.1f} % of simulated experiments ({len(shares)} settings, "
        f"{EXPERIMENTS} experiments each); from {ENOUGH_SEEDS} seeds on in 93 % to 97 %."
    )


_TRUTH = 20.0  # far from 0, so that no limit is clipped


def _skewed(generator: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Return log-normal draws with mean 0 and standard deviation 1."""
    variance = math.exp(LOG_SD**2)
    drawn = generator.lognormal(0.0, LOG_SD, size=shape) - math.sqrt(variance)
    return np.asarray(drawn / math.sqrt((variance - 1) * variance), np.float64)


def _scores(setting: Setting, num_seeds: int, image_I: FloatArray, generator: np.random.Generator) -> FloatArray:
    seed_S1 = setting.seed_sd * generator.normal(size=(num_seeds, 1))
    particular_SI = setting.particular_sd * _skewed(generator, (num_seeds, setting.num_images))
    return _TRUTH + seed_S1 + image_I + particular_SI
