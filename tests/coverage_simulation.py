"""The simulation behind `ablate.stats.coverage`: networks and images with known truth, and how often intervals hold it.

S seeds, I test images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ablate.stats import Resamples, Seeds, crossed_bootstrap, image_means, paired_difference
from ablate.stats.coverage import EXPERIMENTS
from ablate.stats.samples import FloatArray

RESAMPLES = 1_000

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


def measure_coverage(
    setting: Setting,
    num_seeds: int,
    generator: np.random.Generator,
    *,
    num_experiments: int = EXPERIMENTS,
    num_resamples: int = RESAMPLES,
) -> float:
    """Return the share of simulated experiments whose 95 % interval holds the truth.

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
