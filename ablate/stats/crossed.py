"""The crossed bootstrap, corrected so that its intervals hold with few seeds.

S seeds, I test images, M numbers estimated at once, R bootstrap replicates.

The crossed bootstrap (Owen 2007, "The pigeonhole bootstrap", doi:10.1214/07-AOAS122) resamples seeds and test images
independently, with the same images for all seeds, so that the interval covers variation between trainings and
between samples of radiographs. Its plain percentiles are wrong with few seeds, in both directions:

- the variance between S seeds is understated by (S - 1) / S, and a normal quantile is used where only S - 1 degrees
  of freedom are known: at 3 seeds and a large seed effect it covers about 78 % instead of 95 %;
- what is particular to one seed on one image is counted up to three times over: without a seed effect it covers 99 %.

So each replicate is split into its image part (all seeds averaged) and its seed part (the rest), and each part is
rescaled before the percentiles are taken:

- the image part by sqrt(I / (I - 1)) and by t(I - 1) / z;
- the seed part to the unbiased variance of the two-way analysis of variance, U_seeds - U_interaction (floored at 0),
  which takes the interaction out that the image part holds already, and by t(S - 1) / z. For two independent
  arms t takes Welch's degrees of freedom.

z and t(n) are the 97.5 % quantiles of the normal and of Student's t distribution (the idea of scaling a bootstrap
interval to t is Hesterberg's, doi:10.1080/00031305.2015.1089789, section 5.3). BCa was tried and left out: it
corrects skewness, which is not what goes wrong here, and changed no coverage by more than 1 %.
`ablate.stats.coverage` holds the coverage measured for this method.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from scipy import special

from ablate.stats.resamples import Resamples
from ablate.stats.samples import BoolArray, FloatArray, IntArray, PerImage, ratio

CONFIDENCE = 0.95

Kind: TypeAlias = Literal["mean", "unpaired", "paired"]
"""What an estimate is: the mean of one initialisation, or the difference of two."""

ONE_SEED = "one seed: the interval is over test images only and says nothing about variation between trainings"
ONE_SEED_IN_AN_ARM = (
    "one seed in at least one of the two: the interval is over test images only and says nothing about variation "
    "between trainings"
)
ONE_IMAGE = "one test image: the interval is over seeds only and says nothing about variation between images"
ONE_SEED_ONE_IMAGE = "no interval: one seed and one test image"
NO_VALUES = "no value: nothing was measured"
NO_VARIATION = "no interval: all seeds and test images give the same value, so there is nothing to resample"
MISSING_IMAGES = "some seeds lack some test images; each network's value is over the images that it has"


@dataclass(frozen=True)
class Estimate:
    """A number with an interval for variation between trainings (seeds) and between samples of test images.

    Variation between pre-trainings is not in it unless the pre-training's seed varies (`PerImage.clusters_S`), nor
    are images from another hospital or other hyper-parameters.

    Attributes:
        value: the mean over seeds of each network's value, in the unit of the scores; None if nothing was measured.
        lower: lower limit of the 95 % interval; None where there is none, and `note` says why.
        upper: upper limit.
        se_seeds: standard error due to the seeds alone, so that a reader sees whether more seeds would help; None
            with one seed.
        se_images: standard error due to the test images, including what is particular to a seed on an image.
        num_seeds: units with a value: seeds, or the pre-trainings or draws of `PerImage.clusters_S` (of two arms the
            smaller number).
        num_images: test images behind the number.
        note: what a reader must know about this interval; None if nothing.
        replicates_R: the bootstrap distribution whose 2.5 % and 97.5 % quantiles are the limits; empty without an
            interval, and where the interval is no bootstrap. Replicates of two estimates from the same `Resamples`
            share their images.
        kind: what it is: the mean of one initialisation, or the difference of two with or without pairs of units.
        p_value: of a difference, that it is 0 (`ablate.stats.two_way`); None without two units and two images.
    """

    value: float | None
    lower: float | None
    upper: float | None
    se_seeds: float | None
    se_images: float | None
    num_seeds: int
    num_images: int
    note: str | None
    replicates_R: FloatArray = field(repr=False, compare=False)
    kind: Kind = "mean"
    p_value: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False where there is no interval."""
        return self.lower is not None and self.upper is not None and (self.lower > 0 or self.upper < 0)


@dataclass(frozen=True, eq=False)
class SeedReplicates:
    """One initialisation's values of each seed, on all images and on each replicate's images.

    What several comparisons need is computed once and kept.

    Attributes:
        point_SM: values on all images.
        replicates_RSM: values on each replicate's images; NaN where nothing was annotated in them.
        num_images: I.
        resamples: the counts behind the replicates.
    """

    point_SM: FloatArray
    replicates_RSM: FloatArray
    num_images: int
    resamples: Resamples

    @property
    def num_seeds(self) -> int:
        """Number of seeds, S."""
        return len(self.point_SM)

    @property
    def unbiased(self) -> float:
        """I / (I - 1), 0 for one image."""
        return self.num_images / (self.num_images - 1) if self.num_images > 1 else 0.0

    @functools.cached_property
    def value_M(self) -> FloatArray:  # noqa: N802
        """Mean over seeds."""
        return np.asarray(self.point_SM.mean(axis=0))

    @functools.cached_property
    def mean_RM(self) -> FloatArray:  # noqa: N802
        """Mean over seeds on each replicate's images."""
        return np.asarray(self.replicates_RSM.mean(axis=1))

    @functools.cached_property
    def between_M(self) -> FloatArray:  # noqa: N802
        """Variance between seeds (divided by S) on the images as they are."""
        return np.asarray(self.point_SM.var(axis=0))

    @functools.cached_property
    def drawn_M(self) -> FloatArray:  # noqa: N802
        """Variance between seeds (divided by S) on resampled images: larger by what is particular to a seed."""
        return _mean(self.replicates_RSM.var(axis=1))

    @property
    def u_seeds_M(self) -> FloatArray:  # noqa: N802
        """`U_seeds`: unbiased for the variance of the mean due to seeds and to their interaction with images."""
        return self.between_M / (self.num_seeds - 1)

    @property
    def variance_M(self) -> FloatArray:  # noqa: N802
        """`U_seeds - U_interaction`, floored at 0."""
        interaction_M = (self.drawn_M - self.between_M) / (self.num_seeds - 1) * self.unbiased
        return np.maximum(self.u_seeds_M - interaction_M, 0.0)

    @functools.cached_property
    def _noises(self) -> dict[int, FloatArray]:
        return {}

    def seed_part_RM(self, stream: int) -> FloatArray:  # noqa: N802
        """Return the seed part of each replicate, rescaled to `variance_M`; streams draw seeds independently."""
        if stream not in self._noises:
            shares_RS = self.resamples.seed_counts_RS(self.num_seeds, stream) / self.num_seeds
            noise_RM = np.einsum("rs,rsm->rm", shares_RS, self.replicates_RSM) - self.mean_RM
            drawn_M, scale_M = self.drawn_M, np.zeros_like(self.drawn_M)
            np.divide(self.variance_M * self.num_seeds, drawn_M, out=scale_M, where=drawn_M > 0)
            self._noises[stream] = noise_RM * np.sqrt(scale_M)
        return self._noises[stream]


@dataclass(frozen=True, eq=False)
class Parts:
    """Rescaled replicates around the value, and the standard errors of both parts."""

    value_M: FloatArray
    replicates_RM: FloatArray
    se_seeds_M: FloatArray | None
    se_images_M: FloatArray


def seed_replicates(scores: PerImage, resamples: Resamples) -> SeedReplicates:
    """Return each seed's (or, with clusters, each pre-training's) value under all replicates of the images."""
    num_seeds, num_images = scores.sums_SI.shape
    if num_seeds == 0 or num_images == 0:
        return SeedReplicates(np.empty((0, 1)), np.empty((resamples.num_resamples, 0, 1)), num_images, resamples)
    both_IT = np.concatenate([scores.sums_SI, scores.counts_SI]).T

    def values_RS(counts_RI: FloatArray) -> FloatArray:  # noqa: N802
        totals_RT = counts_RI @ both_IT
        return ratio(totals_RT[:, :num_seeds], totals_RT[:, num_seeds:])

    point_S, replicates_RS = scores.values_S(), resamples.over_images(values_RS, num_images)
    if scores.clusters_S is not None:
        share_SC = cluster_shares(scores.clusters_S)
        point_S, replicates_RS = point_S @ share_SC, replicates_RS @ share_SC
    return SeedReplicates(point_S[:, None], replicates_RS[:, :, None], num_images, resamples)


def cluster_shares(clusters_S: IntArray) -> FloatArray:
    """Return the weight of each row in the mean of its cluster, (S, clusters); every column sums to 1."""
    _, cluster_S = np.unique(clusters_S, return_inverse=True)
    share_SC: FloatArray = (cluster_S[:, None] == np.arange(cluster_S.max() + 1)).astype(np.float64)
    share_SC /= share_SC.sum(axis=0)
    return share_SC


def rescaled(arms: Sequence[tuple[float, SeedReplicates, int]]) -> Parts:
    """Return image part + seed part of the replicates, each rescaled as the module says.

    Args:
        arms: sign, arm and seed stream of each term of the sum.
    """
    first = arms[0][1]
    value_M = np.asarray(sum(sign * arm.value_M for sign, arm, _ in arms), np.float64)
    image_RM = np.asarray(sum(sign * arm.mean_RM for sign, arm, _ in arms), np.float64) - value_M
    variance_images_M = _variance(image_RM) * first.unbiased
    if first.num_images > 1:
        replicates_RM = value_M + image_RM * (math.sqrt(first.unbiased) * _t_over_z(first.num_images - 1))
    else:
        replicates_RM = np.broadcast_to(value_M, image_RM.shape)
    if any(arm.num_seeds < 2 for _, arm, _ in arms):
        return Parts(value_M, replicates_RM, None, np.sqrt(variance_images_M))

    seed_RM = np.asarray(sum(sign * arm.seed_part_RM(stream) for sign, arm, stream in arms), np.float64)
    variance_seeds_M = np.asarray(sum(arm.variance_M for _, arm, _ in arms), np.float64)
    total_M = np.asarray(sum(arm.u_seeds_M for _, arm, _ in arms), np.float64)
    squares_M = np.asarray(sum(arm.u_seeds_M**2 / (arm.num_seeds - 1) for _, arm, _ in arms), np.float64)
    degrees_M = np.full_like(total_M, min(arm.num_seeds for _, arm, _ in arms) - 1)  # Welch and Satterthwaite
    np.divide(total_M**2, squares_M, out=degrees_M, where=squares_M > 0)
    replicates_RM = replicates_RM + seed_RM * _t_over_z(degrees_M)
    return Parts(value_M, replicates_RM, np.sqrt(variance_seeds_M), np.sqrt(variance_images_M))


def varies_nowhere(parts: Parts, size_M: FloatArray) -> BoolArray:
    """Whether nothing but rounding is left of the standard errors, compared with the size of the values."""
    variance_M = parts.se_images_M**2 + (0.0 if parts.se_seeds_M is None else parts.se_seeds_M**2)
    return np.asarray(np.sqrt(variance_M) <= 1e-12 * size_M)


def limits_of(replicates_RM: FloatArray, bounds: tuple[float, float]) -> FloatArray:
    """Return lower and upper limits; replicates without a value (nothing annotated in them) are left out."""
    levels = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    quantile = np.quantile if _complete(replicates_RM) else np.nanquantile
    return np.clip(quantile(replicates_RM, levels, axis=0), *bounds)


def note_on(num_seeds: Sequence[int], num_images: int) -> str | None:
    """Return why there is no interval, or what it leaves out; None where it is whole."""
    if min(num_seeds) == 0 or num_images == 0:
        return NO_VALUES
    if min(num_seeds) == 1:
        if num_images == 1:
            return ONE_SEED_ONE_IMAGE
        return ONE_SEED if len(num_seeds) == 1 else ONE_SEED_IN_AN_ARM
    return ONE_IMAGE if num_images == 1 else None


def estimate_of(
    arms: Sequence[tuple[float, SeedReplicates, int]], bounds: tuple[float, float], remark: str | None = None
) -> Estimate:
    """Return the signed sum of the arms' means over seeds with its interval, or the reason why it has none."""
    counts, num_images = [arm.num_seeds for _, arm, _ in arms], arms[0][1].num_images
    num_seeds, note, empty = min(counts), note_on(counts, num_images) or remark, np.empty(0)
    if note == NO_VALUES:
        return Estimate(None, None, None, None, None, num_seeds, num_images, note, empty)
    if note == ONE_SEED_ONE_IMAGE:
        value = float(sum(sign * arm.value_M[0] for sign, arm, _ in arms))
        return Estimate(value, None, None, None, None, num_seeds, num_images, note, empty)
    parts = rescaled(arms)
    value = float(parts.value_M[0])
    se_seeds = None if parts.se_seeds_M is None else float(parts.se_seeds_M[0])
    se_images = float(parts.se_images_M[0])
    if varies_nowhere(parts, np.array([max(np.abs(arm.point_SM).max() for _, arm, _ in arms)]))[0]:
        return Estimate(value, None, None, se_seeds, se_images, num_seeds, num_images, NO_VARIATION, empty)
    lower, upper = (float(limit) for limit in limits_of(parts.replicates_RM, bounds)[:, 0])
    replicates_R = np.clip(parts.replicates_RM[:, 0], *bounds)
    return Estimate(value, lower, upper, se_seeds, se_images, num_seeds, num_images, note, replicates_R)


def _t_over_z(degrees: float | FloatArray) -> FloatArray:
    upper = (1 + CONFIDENCE) / 2
    return np.asarray(special.stdtrit(degrees, upper) / special.ndtri(upper), np.float64)


def _mean(replicates_RM: FloatArray) -> FloatArray:
    """Mean over replicates without those in which nothing was annotated (NaN)."""
    return np.asarray(replicates_RM.mean(axis=0) if _complete(replicates_RM) else np.nanmean(replicates_RM, axis=0))


def _variance(replicates_RM: FloatArray) -> FloatArray:
    return np.asarray(replicates_RM.var(axis=0) if _complete(replicates_RM) else np.nanvar(replicates_RM, axis=0))


def _complete(replicates_RM: FloatArray) -> bool:
    return not np.isnan(replicates_RM).any()
