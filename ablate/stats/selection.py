"""Choices made on the validation set, without a look at the test set.

C candidates, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ablate.stats.samples import all_along, any_along


@dataclass(frozen=True)
class Selection:
    """The candidate (pre-training steps, timesteps) with the lowest MRE on the validation set.

    It is the candidate that a researcher would have taken before seeing the test set, so the choice does not make its
    test error optimistic. It does not mean that the others are worse: the validation sets are small
    (20 images for cephalo).

    Attributes:
        candidate: the chosen one.
        val_mre: its MRE on the validation set, averaged over the seeds compared.
        num_seeds: seeds compared: those that every candidate with a value has.
        missing: candidates without any value, which could not be chosen.
    """

    candidate: float
    val_mre: float
    num_seeds: int
    missing: tuple[float, ...]


def select_by_validation(val_mre_CS: ArrayLike, candidates: Sequence[float]) -> Selection | None:
    """Return the candidate with the lowest mean validation MRE; see `Selection` for what it tells.

    Ties go to the smaller candidate. Candidates are compared on the seeds that all of them have, so that a lucky seed
    of one does not decide; a candidate without any value cannot be chosen.

    Args:
        val_mre_CS: validation MRE per candidate, or per candidate and seed; NaN = missing.
        candidates: the values of the axis.

    Returns:
        None if no candidate has a value, or no seed has them all.

    Raises:
        ValueError: the shape does not fit the candidates.
    """
    val_mre = np.asarray(val_mre_CS, np.float64)
    if val_mre.ndim == 1:
        val_mre = val_mre[:, None]
    if val_mre.ndim != 2 or len(val_mre) != len(candidates):
        raise ValueError(f"val_mre must hold one row per candidate ({len(candidates)}); got shape {val_mre.shape}")
    measured_C = any_along(np.isfinite(val_mre), axis=1)
    common_S = all_along(np.isfinite(val_mre[measured_C]), axis=0)
    if not measured_C.any() or not common_S.any():
        return None
    means_C = val_mre[:, common_S].mean(axis=1)
    chosen = min(np.flatnonzero(measured_C).tolist(), key=lambda c: (means_C[c], candidates[c]))
    return Selection(
        candidate=candidates[chosen],
        val_mre=float(means_C[chosen]),
        num_seeds=int(common_S.sum()),
        missing=tuple(c for c, measured in zip(candidates, measured_C, strict=True) if not measured),
    )
