"""The simulations behind `ablate.stats.coverage`: networks and images with known truth.

How often intervals hold it, and how often tables of equal initialisations mark a difference. S seeds, I test images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ablate.stats import (
    PerImage,
    Resamples,
    adjust_family,
    best_of,
    compare_pairs,
    compare_ranks,
    crossed_bootstrap,
    image_means,
    paired_difference,
    signed_rank,
)
from ablate.stats.coverage import EXPERIMENTS
from ablate.stats.crossed import Kind
from ablate.stats.samples import FloatArray

RESAMPLES = 1_000

LOG_SD = 0.6
"""Standard deviation of the logarithm of image effects; gives a skewness of 2.3."""


@dataclass(frozen=True)
class Setting:
    """A simulated situation. Standard deviations are in the unit of the scores.

    Attributes:
        what: the situation in words.
        kind: what is estimated: the mean of one initialisation, or the difference of two that share the image effects.
        seed_sd: of the seed effects: how trainings differ on all images alike.
        image_sd: of the image effects: how images differ for all networks alike.
        particular_sd: of what a seed does on one image only.
        num_images: I.
        arm_image_sd: of what an initialisation does on one image, whatever the seed.
        draw_sd: of what a draw of the annotated images does to both initialisations alike; for paired differences.
        skewed: are the seed effects log-normal too.
    """

    what: str
    kind: Kind
    seed_sd: float
    image_sd: float
    particular_sd: float
    num_images: int
    arm_image_sd: float = 0.0
    draw_sd: float = 0.0
    skewed: bool = False


SETTINGS: dict[str, Setting] = {
    "images": Setting("images matter, seeds hardly", "mean", 0.03, 1.0, 0.5, 100),
    "both": Setting("seeds and images matter alike", "mean", 0.2, 1.0, 0.5, 100),
    "seeds": Setting("seeds matter most", "mean", 0.6, 1.0, 0.5, 250),
    "small set": Setting("50 test images", "mean", 0.2, 1.0, 0.5, 50),
    "difference": Setting("small seed effects", "unpaired", 0.05, 1.0, 0.5, 100),
    "difference, hard": Setting(
        "seed effects that the noise of single images half hides", "unpaired", 0.1, 1.0, 0.5, 100
    ),
    "difference, seeds": Setting("large seed effects", "unpaired", 0.3, 1.0, 0.5, 100),
    "pairs, noise": Setting("no seed effects, the noise of single images alone", "paired", 0.0, 1.0, 0.5, 100),
    "pairs": Setting("small seed effects", "paired", 0.03, 1.0, 0.5, 100),
    "pairs, hard": Setting("seed effects that the noise of single images half hides", "paired", 0.1, 1.0, 0.5, 100),
    "pairs, seeds": Setting("large seed effects", "paired", 0.3, 1.0, 0.5, 100),
    "pairs, seeds most": Setting("seed effects are nearly all, 250 images", "paired", 0.6, 1.0, 0.5, 250),
    "pairs, images": Setting(
        "initialisations differ on images, seeds hardly matter", "paired", 0.03, 1.0, 0.5, 100, arm_image_sd=0.35
    ),
    "pairs, images most": Setting(
        "initialisations differ on images, little else", "paired", 0.03, 1.0, 0.2, 100, arm_image_sd=0.7
    ),
    "pairs, both": Setting("seeds and images matter alike", "paired", 0.1, 1.0, 0.5, 100, arm_image_sd=0.7),
    "pairs, small set": Setting("the same on 50 images", "paired", 0.1, 1.0, 0.5, 50, arm_image_sd=0.7),
    "pairs, draws": Setting(
        "draws matter most and help both, seed effects are log-normal", "paired", 0.2, 1.0, 0.5, 100, arm_image_sd=0.35,
        draw_sd=1.0, skewed=True,
    ),
}  # fmt: skip


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
        num_resamples: replicates behind each interval of a bootstrap.
    """
    covered = 0
    resamples = Resamples(generator, num_resamples)
    for experiment in range(num_experiments):
        if experiment % 20 == 0:  # drawing the tables costs more than using them
            resamples = Resamples(generator, num_resamples)
        arms = equal_arms(setting, num_seeds, generator, num_arms=1 if setting.kind == "mean" else 2)
        if setting.kind == "mean":
            estimate = crossed_bootstrap(arms["0"], resamples)
        else:
            estimate = paired_difference(arms["0"], arms["1"], resamples)
            assert estimate.kind == setting.kind
        truth = TRUTH if setting.kind == "mean" else 0.0
        covered += estimate.lower is not None and estimate.lower <= truth <= (estimate.upper or 0.0)
    return covered / num_experiments


TRUTH = 20.0  # far from 0, so that no limit is clipped


def equal_arms(
    setting: Setting, num_seeds: int, generator: np.random.Generator, *, num_arms: int
) -> dict[str, PerImage]:
    """Return the scores of initialisations with the same truth on the same images, called "0", "1", ..."""
    shape = (num_seeds, setting.num_images)
    image_I = setting.image_sd * skewed(generator, (1, setting.num_images))
    draw_S1 = setting.draw_sd * generator.normal(size=(num_seeds, 1)) if setting.draw_sd else 0.0
    arms = {}
    for arm in range(num_arms):
        drawn = skewed if setting.skewed else _normal
        scores_SI = TRUTH + setting.seed_sd * drawn(generator, (num_seeds, 1)) + image_I + draw_S1
        if setting.arm_image_sd:
            scores_SI = scores_SI + setting.arm_image_sd * skewed(generator, (1, setting.num_images))
        scores_SI = scores_SI + setting.particular_sd * skewed(generator, shape)
        arms[str(arm)] = image_means(scores_SI, draws_S=range(num_seeds) if setting.kind == "paired" else None)
    return arms


def measure_false_alarms(
    setting: Setting,
    num_seeds: int,
    generator: np.random.Generator,
    *,
    num_experiments: int,
    num_arms: int = 6,
    num_columns: int = 1,
    num_resamples: int = 200,
) -> FalseAlarms:
    """Return how often tables of equal initialisations mark a difference.

    Args:
        setting: the situation of each column, which is one number of shots, with trainings of its own.
        num_seeds: S.
        generator: source of all randomness.
        num_experiments: tables.
        num_arms: initialisations in a table.
        num_columns: columns of a table.
        num_resamples: replicates behind each interval of a bootstrap.
    """
    shown = uncorrected = wilcoxon = worse = ranked = 0
    for _ in range(num_experiments):
        resamples = Resamples(generator, num_resamples)
        columns = [equal_arms(setting, num_seeds, generator, num_arms=num_arms) for _ in range(num_columns)]
        found = [compare_pairs(arms, resamples) for arms in columns]
        family = iter(adjust_family([each for column in found for each in column]))
        adjusted = [[next(family) for _ in column] for column in found]
        shown += any(each.differs for column in adjusted for each in column)
        best = [best_of(arms, column) for arms, column in zip(columns, adjusted, strict=True)]
        worse += any(len(one.not_worse) + len(one.untested) < num_arms - 1 for one in best)
        uncorrected += any(each.difference.excludes_zero for column in found for each in column)
        arms = columns[0]
        wilcoxon += signed_rank(arms["0"].seed_mean_I(), arms["1"].seed_mean_I()).p_value < 0.05
        means = [[float(scores.values_S().mean()) for scores in arms.values()] for arms in columns]
        ranks = compare_ranks(list(columns[0]), means, tested=num_seeds > 1)
        if ranks is not None and ranks.critical_difference is not None:
            ranked += max(ranks.average_ranks) - min(ranks.average_ranks) > ranks.critical_difference
    counts = (shown, worse, ranked, uncorrected, wilcoxon)
    return FalseAlarms(*(count / num_experiments for count in counts))


@dataclass(frozen=True)
class FalseAlarms:
    """Shares of tables of equal initialisations.

    Attributes:
        marked: a pair has a star.
        worse: an initialisation lacks the dagger of those not significantly worse than the best.
        ranked: an initialisation lacks the dagger of those within the critical difference.
        uncorrected: an uncorrected 95 % interval of a difference leaves out 0, also with one seed.
        wilcoxon: of a single pair: Wilcoxon's test over images has p < 0.05.
    """

    marked: float
    worse: float
    ranked: float
    uncorrected: float
    wilcoxon: float


def _normal(generator: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return np.asarray(generator.normal(size=shape))


def skewed(generator: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Return log-normal draws with mean 0 and standard deviation 1."""
    variance = math.exp(LOG_SD**2)
    drawn = generator.lognormal(0.0, LOG_SD, size=shape) - math.sqrt(variance)
    return np.asarray(drawn / math.sqrt((variance - 1) * variance), np.float64)
