"""Curves with pointwise intervals: the share of landmarks within each distance, and the error of each landmark.

S seeds, I test images, K landmarks, T thresholds, M numbers estimated at once, R bootstrap replicates. The intervals
are those of `ablate.stats.crossed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ablate.stats.crossed import (
    NO_VALUES,
    ONE_SEED_ONE_IMAGE,
    SeedReplicates,
    cluster_shares,
    limits_of,
    note_on,
    rescaled,
    varies_nowhere,
)
from ablate.stats.resamples import Resamples
from ablate.stats.samples import FloatArray, ratio


@dataclass(frozen=True, eq=False)
class Curve:
    """Several numbers of one initialisation with pointwise 95 % intervals (each limit holds for its point alone).

    Attributes:
        values_M: the numbers, NaN where a seed has nothing measured.
        lower_M: lower limits, NaN where there is none (see `note`; also where nothing varies, as at an SDR of 1).
        upper_M: upper limits.
        num_seeds: seeds with a value.
        num_images: test images behind the numbers.
        note: what a reader must know about the intervals; None if nothing.
    """

    values_M: FloatArray
    lower_M: FloatArray
    upper_M: FloatArray
    num_seeds: int
    num_images: int
    note: str | None


def sdr_curve(
    errors_SIK: ArrayLike,
    thresholds_T: ArrayLike,
    resamples: Resamples,
    *,
    clusters_S: Sequence[int] | None = None,
    arm: int = 0,
) -> Curve:
    """Return the share of landmarks with error <= each threshold, with pointwise 95 % crossed-bootstrap intervals.

    Each number is the share of landmarks that a training finds within that distance. The intervals are pointwise:
    that a whole curve lies within them has a lower probability than 95 %. At each threshold they are those of
    `crossed_bootstrap` on `hit_sums` with the same clusters, resamples and arm.

    Args:
        errors_SIK: radial errors, NaN = not annotated.
        thresholds_T: distances in the unit of the errors, increasing.
        resamples: bootstrap counts.
        clusters_S: see `PerImage`.
        arm: see `crossed_bootstrap`.
    """
    errors = np.asarray(errors_SIK, np.float64)
    thresholds = np.asarray(thresholds_T, np.float64)
    num_seeds, num_images, _ = errors.shape
    # the first threshold that is at least the error; NaN sorts last and is counted nowhere
    first_SIK = np.searchsorted(thresholds, errors, side="left")
    cell_SI = np.arange(num_seeds * num_images).reshape(num_seeds, num_images, 1) * (thresholds.size + 1)
    counts = np.bincount((first_SIK + cell_SI).ravel(), minlength=num_seeds * num_images * (thresholds.size + 1))
    hits_SIM = counts.reshape(num_seeds, num_images, -1)[:, :, :-1].cumsum(axis=2).astype(np.float64)
    annotated_SIM = np.broadcast_to((~np.isnan(errors)).sum(axis=2)[:, :, None].astype(np.float64), hits_SIM.shape)
    return _curve(hits_SIM, annotated_SIM, resamples, (0.0, 1.0), clusters_S, arm)


def landmark_curve(
    errors_SIK: ArrayLike, resamples: Resamples, *, clusters_S: Sequence[int] | None = None, arm: int = 0
) -> Curve:
    """Return the MRE of each landmark (M = K) with pointwise 95 % crossed-bootstrap intervals.

    The curve shows which landmarks are hard for this initialisation. With many landmarks some intervals miss by chance.

    Args:
        errors_SIK: radial errors, NaN = not annotated.
        resamples: bootstrap counts.
        clusters_S: see `PerImage`.
        arm: see `crossed_bootstrap`.
    """
    errors = np.asarray(errors_SIK, np.float64)
    present_SIK = ~np.isnan(errors)
    sums_SIM, counts_SIM = np.where(present_SIK, errors, 0.0), present_SIK.astype(np.float64)
    return _curve(sums_SIM, counts_SIM, resamples, (0.0, math.inf), clusters_S, arm)


def _curve(
    sums_SIM: FloatArray,
    counts_SIM: FloatArray,
    resamples: Resamples,
    bounds: tuple[float, float],
    clusters_S: Sequence[int] | None,
    arm: int,
) -> Curve:
    """Return the ratios of sums and counts for M numbers at once, with limits."""
    present_SIM = counts_SIM > 0
    keep_S, keep_I = present_SIM.any(axis=(1, 2)), present_SIM.any(axis=(0, 2))
    keep_M = present_SIM[keep_S].any(axis=1).all(axis=0)  # what every measured seed has
    shares_SC = None if clusters_S is None else cluster_shares(np.asarray(clusters_S, np.int64)[keep_S])
    num_seeds = int(keep_S.sum()) if shares_SC is None else shares_SC.shape[1]
    num_images = int(keep_I.sum())
    note = note_on([num_seeds], num_images)
    value_M, lower_M, upper_M = (np.full(keep_M.size, np.nan) for _ in range(3))
    if note == NO_VALUES or not keep_M.any():
        return Curve(value_M, lower_M, upper_M, num_seeds, num_images, NO_VALUES)
    sums_SIM, counts_SIM = (each[keep_S][:, keep_I][:, :, keep_M] for each in (sums_SIM, counts_SIM))
    point_SM = ratio(sums_SIM.sum(axis=1), counts_SIM.sum(axis=1))
    if shares_SC is not None:
        point_SM = shares_SC.T @ point_SM
    value_M[keep_M] = point_SM.mean(axis=0)
    if note == ONE_SEED_ONE_IMAGE:
        return Curve(value_M, lower_M, upper_M, num_seeds, num_images, note)
    one_count = bool((counts_SIM == counts_SIM[:1, :, :1]).all())  # one denominator for all, the usual case
    sums_IX = sums_SIM.transpose(1, 0, 2).reshape(num_images, -1)
    counts_IX = counts_SIM[0, :, :1] if one_count else counts_SIM.transpose(1, 0, 2).reshape(num_images, -1)
    replicates_RX = resamples.over_images(
        lambda counts_RI: ratio(counts_RI @ sums_IX, counts_RI @ counts_IX), num_images
    )
    replicates_RSM = replicates_RX.reshape(-1, len(sums_SIM), point_SM.shape[1])
    if shares_SC is not None:
        replicates_RSM = np.einsum("rsm,sc->rcm", replicates_RSM, shares_SC)
    parts = rescaled([(1.0, SeedReplicates(point_SM, replicates_RSM, num_images, resamples), arm)])
    limits_2M = limits_of(parts.replicates_RM, bounds)
    limits_2M[:, varies_nowhere(parts, np.abs(point_SM).max(axis=0))] = np.nan
    lower_M[keep_M], upper_M[keep_M] = limits_2M
    return Curve(value_M, lower_M, upper_M, num_seeds, num_images, note)
