"""The scores of each network on each test image, and their mean and spread over seeds.

S seeds (independent trainings), I test images (the same ones, in the same order, for all seeds), K landmarks,
T thresholds. NaN means not annotated, or missing because a trial is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PerImage:
    """One initialisation's scores as sums and counts, so that ratios such as the MRE can be resampled.

    A network's value is `sum of sums / sum of counts` over the images; the value of the initialisation is the mean of
    its networks' values. With errors and numbers of landmarks that is the field's MRE (every annotated landmark
    weighs the same); with image means and ones it is the mean over images (every image weighs the same). The two
    agree where every image has the same landmarks annotated.

    Attributes:
        sums_SI: sum of the errors (or number of hits) of each image; ignored where the count is 0.
        counts_SI: number of landmarks behind each sum; 0 = missing.
        bounds: smallest and largest value that a network can have; intervals are clipped to them.
        clusters_S: the unit of each row: its pre-training where the pre-training's seed varies, else its draw of the
            shots where that varies. Rows of one unit are averaged, and units are resampled. None: rows are the units.
        draws_S: which draw of the annotated images each row was trained on, where rows differ in it; rows of two
            initialisations with the same draw are paired. None: nothing that initialisations share varies.
    """

    sums_SI: FloatArray
    counts_SI: FloatArray
    bounds: tuple[float, float] = (0.0, math.inf)
    clusters_S: IntArray | None = None
    draws_S: IntArray | None = None

    def __post_init__(self) -> None:
        if self.sums_SI.ndim != 2 or self.sums_SI.shape != self.counts_SI.shape:
            raise ValueError(
                f"sums and counts must both have shape (seeds, images); got {self.sums_SI.shape} "
                f"and {self.counts_SI.shape}"
            )
        if self.clusters_S is not None and self.clusters_S.shape != self.sums_SI.shape[:1]:
            raise ValueError(f"clusters must hold one value per seed; got shape {self.clusters_S.shape}")
        if self.draws_S is not None and self.draws_S.shape != self.sums_SI.shape[:1]:
            raise ValueError(f"draws must hold one value per seed; got shape {self.draws_S.shape}")

    def values_S(self) -> FloatArray:  # noqa: N802 - the shape suffix
        """Return each network's value over all its images; NaN for a network without any."""
        return ratio(self.sums_SI.sum(axis=1), self.counts_SI.sum(axis=1))

    def measured(self) -> PerImage:
        """Return the scores without seeds that have no image and images that no seed has."""
        scores = self.seeds(any_along(self.counts_SI > 0, axis=1))
        return scores.images(any_along(scores.counts_SI > 0, axis=0))

    def image_values_SI(self) -> FloatArray:  # noqa: N802
        """Return each network's value on each image; NaN where missing."""
        return ratio(self.sums_SI, self.counts_SI)

    def seed_mean_I(self) -> FloatArray:  # noqa: N802
        """Return each image's value averaged over the networks that have it; NaN where none has."""
        present_SI: BoolArray = self.counts_SI > 0
        return ratio(np.nansum(self.image_values_SI(), axis=0), present_SI.sum(axis=0))

    def images(self, keep_I: BoolArray) -> PerImage:
        """Return the same scores on the images of a mask."""
        return replace(self, sums_SI=self.sums_SI[:, keep_I], counts_SI=self.counts_SI[:, keep_I])

    def seeds(self, keep_S: BoolArray) -> PerImage:
        """Return the scores of the networks of a mask."""
        clusters_S, draws_S = (None if each is None else each[keep_S] for each in (self.clusters_S, self.draws_S))
        return PerImage(self.sums_SI[keep_S], self.counts_SI[keep_S], self.bounds, clusters_S, draws_S)


def any_along(mask: BoolArray, axis: int | tuple[int, ...]) -> BoolArray:
    """Return `mask.any(axis)`, as an array for the type checker too."""
    return np.asarray(mask.any(axis=axis), np.bool_)


def all_along(mask: BoolArray, axis: int | tuple[int, ...]) -> BoolArray:
    """Return `mask.all(axis)`, as an array for the type checker too."""
    return np.asarray(mask.all(axis=axis), np.bool_)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> FloatArray:
    """Return numerator / denominator, NaN (and no warning) where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    out: FloatArray = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out


def error_sums(
    errors_SIK: ArrayLike, clusters_S: Sequence[int] | None = None, draws_S: Sequence[int] | None = None
) -> PerImage:
    """Return the scores whose value is the MRE: the mean error over all annotated landmarks of all images.

    Args:
        errors_SIK: radial errors in any unit, NaN = not annotated; (S, I, 1) gives the MRE of one landmark.
        clusters_S: see `PerImage`.
        draws_S: see `PerImage`.
    """
    errors = _three_axes(errors_SIK)
    counted_SIK = ~np.isnan(errors)
    sums_SI = np.where(counted_SIK, errors, 0.0).sum(axis=2)
    counts_SI = counted_SIK.sum(axis=2).astype(np.float64)
    return PerImage(sums_SI, counts_SI, (0.0, math.inf), _numbers(clusters_S), _numbers(draws_S))


def hit_sums(
    errors_SIK: ArrayLike,
    threshold: float,
    clusters_S: Sequence[int] | None = None,
    draws_S: Sequence[int] | None = None,
) -> PerImage:
    """Return the scores whose value is the SDR: the share of annotated landmarks with error <= `threshold`.

    Args:
        errors_SIK: radial errors, NaN = not annotated.
        threshold: in the unit of the errors; an error equal to it counts as detected, as in the field.
        clusters_S: see `PerImage`.
        draws_S: see `PerImage`.
    """
    errors = _three_axes(errors_SIK)
    hits_SI = (errors <= threshold).sum(axis=2).astype(np.float64)  # NaN <= t is False
    counts_SI = (~np.isnan(errors)).sum(axis=2).astype(np.float64)
    return PerImage(hits_SI, counts_SI, (0.0, 1.0), _numbers(clusters_S), _numbers(draws_S))


def image_means(
    image_mre_SI: ArrayLike, clusters_S: Sequence[int] | None = None, draws_S: Sequence[int] | None = None
) -> PerImage:
    """Return the scores whose value is the mean over images of a per-image number; every image weighs the same.

    Args:
        image_mre_SI: a number per seed and image, such as the image's MRE; NaN = missing.
        clusters_S: see `PerImage`.
        draws_S: see `PerImage`.
    """
    values_SI = np.asarray(image_mre_SI, np.float64)
    present_SI = np.isfinite(values_SI)
    bounds = (-math.inf, math.inf) if np.any(values_SI[present_SI] < 0) else (0.0, math.inf)
    sums_SI, counts_SI = np.where(present_SI, values_SI, 0.0), present_SI.astype(np.float64)
    return PerImage(sums_SI, counts_SI, bounds, _numbers(clusters_S), _numbers(draws_S))


@dataclass(frozen=True)
class SeedSummary:
    """Mean and standard deviation over seeds: how far trainings that differ in their seed lie apart.

    The standard deviation describes single trainings, not the uncertainty of the mean, and knows nothing of the
    choice of test images: the interval of `crossed_bootstrap` does.

    Attributes:
        mean: over the seeds that have a value; None if none has.
        sd: sample standard deviation (n - 1); None with fewer than two seeds.
        num_seeds: seeds with a value.
        num_missing: seeds without (failed, or not finished).
    """

    mean: float | None
    sd: float | None
    num_seeds: int
    num_missing: int


def over_seeds(values_S: ArrayLike) -> SeedSummary:
    """Summarise one number per seed (NaN = missing trial); see `SeedSummary` for what it tells."""
    values = np.asarray(values_S, np.float64).ravel()
    present = values[np.isfinite(values)]
    return SeedSummary(
        mean=float(present.mean()) if present.size else None,
        sd=float(present.std(ddof=1)) if present.size > 1 else None,
        num_seeds=present.size,
        num_missing=values.size - present.size,
    )


def _three_axes(errors_SIK: ArrayLike) -> FloatArray:
    errors = np.asarray(errors_SIK, np.float64)
    if errors.ndim != 3:
        raise ValueError(f"errors must have shape (seeds, images, landmarks); got {errors.shape}")
    if np.isinf(errors).any():
        raise ValueError("errors must be finite, or NaN for 'not annotated'; got an infinite one")
    return errors


def _numbers(labels_S: Sequence[int] | None) -> IntArray | None:
    return None if labels_S is None else np.asarray(labels_S, np.int64)
