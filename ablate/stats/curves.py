"""Where do the median, the share of detected landmarks and each landmark's error lie, with their limits?

S seeds, I test images, K landmarks, T thresholds, M numbers estimated at once, R bootstrap replicates, N values,
B blocks of values. The intervals are those of `ablate.stats.crossed`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ablate.stats.crossed import (
    NO_VALUES,
    ONE_SEED_ONE_IMAGE,
    Arm,
    Estimate,
    estimate_of,
    limits_of,
    note_on,
    rescaled,
    varies_nowhere,
)
from ablate.stats.resamples import Resamples
from ablate.stats.samples import FloatArray, IntArray, ratio


@dataclass(frozen=True, eq=False)
class Curve:
    """Several numbers of one initialisation with pointwise 95 % intervals (each limit holds for its point alone).

    Attributes:
        values_M: the numbers, NaN where a seed has nothing measured.
        lower_M: lower limits, NaN where there is none (see `note`; also where nothing varies, as at an SDR of 1).
        upper_M: upper limits.
        num_seeds: seeds with a value.
        num_images: test images behind the numbers.
        note: what a reader must know about the intervals, else None.
    """

    values_M: FloatArray
    lower_M: FloatArray
    upper_M: FloatArray
    num_seeds: int
    num_images: int
    note: str | None


def median_estimate(errors_SIK: ArrayLike, resamples: Resamples, *, arm: int = 0) -> Estimate:
    """Return the mean over seeds of each network's median error, with its 95 % crossed-bootstrap interval.

    It answers: below which error does half of the landmarks lie? It says nothing of the outliers, which the MRE
    includes and which matter in the clinic.

    Args:
        errors_SIK: radial errors, NaN = not annotated.
        resamples: bootstrap counts.
        arm: see `crossed_bootstrap`.
    """
    errors = np.asarray(errors_SIK, np.float64)
    present_SIK = ~np.isnan(errors)
    errors = errors[present_SIK.any(axis=(1, 2))][:, present_SIK.any(axis=(0, 2))]
    num_seeds, num_images = errors.shape[:2]
    replicates_RSM = np.empty((resamples.num_resamples, num_seeds, 1))
    point_SM = np.empty((num_seeds, 1))
    for seed, errors_IK in enumerate(errors):
        image, landmark = np.nonzero(~np.isnan(errors_IK))
        values_N = errors_IK[image, landmark]
        order_N = np.argsort(values_N, kind="stable")
        point_SM[seed] = np.median(values_N)
        medians = functools.partial(weighted_medians, values_N[order_N], image[order_N])
        replicates_RSM[:, seed, 0] = resamples.over_images(medians, num_images)
    return estimate_of([(1.0, Arm(point_SM, replicates_RSM, num_images, resamples), arm)], (0.0, math.inf))


def sdr_curve(errors_SIK: ArrayLike, thresholds_T: ArrayLike, resamples: Resamples) -> Curve:
    """Return the share of landmarks with error <= each threshold, with pointwise 95 % crossed-bootstrap intervals.

    It answers, for each distance: how many landmarks does a training find within it? The intervals are pointwise:
    that a whole curve lies within them has a lower probability than 95 %.

    Args:
        errors_SIK: radial errors, NaN = not annotated.
        thresholds_T: distances in the unit of the errors, increasing.
        resamples: bootstrap counts; 1 000 to 2 000 replicates are enough for a figure.
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
    return _curve(hits_SIM, annotated_SIM, resamples, (0.0, 1.0))


def landmark_curve(errors_SIK: ArrayLike, resamples: Resamples) -> Curve:
    """Return the MRE of each landmark (M = K) with pointwise 95 % crossed-bootstrap intervals.

    It answers: which landmarks are hard for this initialisation? With many landmarks some intervals miss by chance.

    Args:
        errors_SIK: radial errors, NaN = not annotated.
        resamples: bootstrap counts.
    """
    errors = np.asarray(errors_SIK, np.float64)
    present_SIK = ~np.isnan(errors)
    return _curve(np.where(present_SIK, errors, 0.0), present_SIK.astype(np.float64), resamples, (0.0, math.inf))


def weighted_medians(values_N: FloatArray, image_N: IntArray, counts_RI: FloatArray) -> FloatArray:
    """Return the median of the values under each row of image counts, as if each value stood there that many times.

    Args:
        values_N: sorted values.
        image_N: which image each value belongs to.
        counts_RI: how often each image is held; a row that holds none of the values gives NaN.
    """
    block = max(1, math.isqrt(values_N.size))
    num_blocks = -(-values_N.size // block)
    in_block_IB = np.zeros((counts_RI.shape[1], num_blocks))
    np.add.at(in_block_IB, (image_N, np.arange(values_N.size) // block), 1.0)
    ends_RB = (counts_RI @ in_block_IB).cumsum(axis=1)  # values held up to the end of each block
    total_R = ends_RB[:, -1]
    padded_N = np.concatenate([values_N, np.full(num_blocks * block - values_N.size, values_N[-1])])
    image_BN = np.concatenate([image_N, np.zeros(padded_N.size - image_N.size, np.int64)]).reshape(num_blocks, block)
    rows_R = np.arange(len(counts_RI))

    def at(rank_R: FloatArray) -> FloatArray:  # the value with this rank, from 1: first its block, then its place
        block_R = (ends_RB < rank_R[:, None]).sum(axis=1).clip(max=num_blocks - 1)
        before_R = np.where(block_R > 0, ends_RB[rows_R, block_R - 1], 0.0)
        upto_RN = before_R[:, None] + counts_RI[rows_R[:, None], image_BN[block_R]].cumsum(axis=1)
        place_R = (upto_RN < rank_R[:, None]).sum(axis=1).clip(max=block - 1)
        found_R: FloatArray = padded_N[block_R * block + place_R]
        return found_R

    medians_R = (at(np.floor((total_R + 1) / 2)) + at(np.ceil((total_R + 1) / 2))) / 2
    return np.where(total_R > 0, medians_R, np.nan)


def _curve(sums_SIM: FloatArray, counts_SIM: FloatArray, resamples: Resamples, bounds: tuple[float, float]) -> Curve:
    """Return the ratios of sums and counts for M numbers at once, with limits."""
    present_SIM = counts_SIM > 0
    keep_S, keep_I = present_SIM.any(axis=(1, 2)), present_SIM.any(axis=(0, 2))
    keep_M = present_SIM[keep_S].any(axis=1).all(axis=0)  # what every measured seed has
    num_seeds, num_images = int(keep_S.sum()), int(keep_I.sum())
    note = note_on([num_seeds], num_images)
    value_M, lower_M, upper_M = (np.full(keep_M.size, np.nan) for _ in range(3))
    if note == NO_VALUES or not keep_M.any():
        return Curve(value_M, lower_M, upper_M, num_seeds, num_images, NO_VALUES)
    sums_SIM, counts_SIM = (each[keep_S][:, keep_I][:, :, keep_M] for each in (sums_SIM, counts_SIM))
    point_SM = ratio(sums_SIM.sum(axis=1), counts_SIM.sum(axis=1))
    value_M[keep_M] = point_SM.mean(axis=0)
    if note == ONE_SEED_ONE_IMAGE:
        return Curve(value_M, lower_M, upper_M, num_seeds, num_images, note)
    one_count = bool((counts_SIM == counts_SIM[:1, :, :1]).all())  # one denominator for all, the usual case
    sums_IX = sums_SIM.transpose(1, 0, 2).reshape(num_images, -1)
    counts_IX = counts_SIM[0, :, :1] if one_count else counts_SIM.transpose(1, 0, 2).reshape(num_images, -1)
    replicates_RX = resamples.over_images(
        lambda counts_RI: ratio(counts_RI @ sums_IX, counts_RI @ counts_IX), num_images
    )
    replicates_RSM = replicates_RX.reshape(-1, *point_SM.shape)
    parts = rescaled([(1.0, Arm(point_SM, replicates_RSM, num_images, resamples), 0)])
    limits_2M = limits_of(parts.replicates_RM, bounds)
    limits_2M[:, varies_nowhere(parts, np.abs(point_SM).max(axis=0))] = np.nan
    lower_M[keep_M], upper_M[keep_M] = limits_2M
    return Curve(value_M, lower_M, upper_M, num_seeds, num_images, note)
