"""Label efficiency: the annotated images with which one initialisation reaches the error of another.

M shot counts, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ablate.stats.crossed import CONFIDENCE, Estimate
from ablate.stats.samples import FloatArray

NO_INTERVAL = "no interval: a number behind it has none"
NOT_FROM_ONE_SEED = "no interval: with one seed it would say nothing about variation between trainings"


@dataclass(frozen=True)
class Shots:
    """A number of annotated images, or that it lies beyond the measured range.

    Attributes:
        value: number of images; where censored, the end of the measured range.
        censored: "" = reached at `value`, ">" = not reached with the most images measured, "<" = reached already with
            fewer than the fewest measured.
    """

    value: float
    censored: Literal["", "<", ">"] = ""

    def text(self) -> str:
        """Return for instance "18", "7.5", "> 50" or "< 5"."""
        number = f"{self.value:.0f}" if self.censored or self.value >= 10 else f"{self.value:.1f}".removesuffix(".0")
        return f"{self.censored} {number}".lstrip()


@dataclass(frozen=True)
class LabelEfficiency:
    """How many annotated images an initialisation needs to reach a target error.

    The number tells how much annotation the better initialisation saves. It is not extrapolated beyond the shots
    that were measured, and between them it assumes a straight line of the error over log(shots). Its interval moves
    the target and the curve with the bootstrap of seeds and test images; which images were annotated varies in it
    only if the seed draws them (few_shot: random). `ablate.stats.coverage` has its own coverage. With one seed there
    is none: it would be over test images alone.

    Attributes:
        shots: the number of images.
        lower: 2.5 % quantile over the bootstrap; None without interval.
        upper: 97.5 % quantile.
        note: why there is no interval, or what it leaves out; None if nothing is.
    """

    shots: Shots
    lower: Shots | None
    upper: Shots | None
    note: str | None

    def text(self) -> str:
        """Return for instance "18 (95 % interval 12 to > 50)"."""
        if self.lower is None or self.upper is None:
            return self.shots.text()
        return f"{self.shots.text()} (95 % interval {self.lower.text()} to {self.upper.text()})"


def label_efficiency(target: Estimate, curve: Mapping[int, Estimate]) -> LabelEfficiency | None:
    """Return the shots at which a curve first reaches the target's error; see `LabelEfficiency`.

    The error is interpolated linearly over log(shots) between neighbouring shot counts. Where the curve is not
    monotone, the first crossing counts. All estimates must come from the same `Resamples` and images, so that hard
    images cancel, and should have different `arm` numbers, since they are different trainings.

    Args:
        target: error of the reference initialisation at its shot count.
        curve: shots -> error of the other initialisation, in the same unit.

    Returns:
        None if the target or the whole curve was not measured.
    """
    measured = {shots: curve[shots] for shots in sorted(curve) if curve[shots].value is not None}
    if target.value is None or not measured:
        return None
    shots_M = np.array(list(measured), np.float64)
    point = first_reached(shots_M, np.array([[e.value for e in measured.values()]], np.float64), [target.value])[0]
    estimates = [target, *measured.values()]
    notes = [estimate.note for estimate in estimates if estimate.note]
    if any(estimate.num_seeds < 2 for estimate in estimates) and not any(e.lower is None for e in estimates):
        return LabelEfficiency(_shots(point, shots_M), None, None, NOT_FROM_ONE_SEED)
    if any(estimate.replicates_R.size == 0 for estimate in estimates):
        return LabelEfficiency(_shots(point, shots_M), None, None, "; ".join([NO_INTERVAL, *dict.fromkeys(notes)]))
    errors_RM = np.stack([estimate.replicates_R for estimate in measured.values()], axis=1)
    complete_R = np.isfinite(errors_RM).all(axis=1) & np.isfinite(target.replicates_R)
    reached_R = np.sort(first_reached(shots_M, errors_RM[complete_R], target.replicates_R[complete_R]))
    tail = int((1 - CONFIDENCE) / 2 * (reached_R.size - 1))  # order statistics, since limits may be infinite
    return LabelEfficiency(
        shots=_shots(point, shots_M),
        lower=_shots(float(reached_R[tail]), shots_M),
        upper=_shots(float(reached_R[-1 - tail]), shots_M),
        note="; ".join(dict.fromkeys(notes)) or None,
    )


def first_reached(shots_M: FloatArray, errors_RM: FloatArray, target_R: ArrayLike) -> FloatArray:
    """Return the shots at which each row of errors first falls to its target.

    Linear in the error over log(shots). 0 where the error at the fewest shots lies below the target already,
    infinity where no error is as low as the target.

    Args:
        shots_M: increasing shot counts.
        errors_RM: one curve per row.
        target_R: one target per row.
    """
    targets_R = np.asarray(target_R, np.float64)
    reached_RM = errors_RM <= targets_R[:, None]
    first_R = np.where(reached_RM.any(axis=1), reached_RM.argmax(axis=1), -1)
    rows_R = np.arange(len(errors_RM))
    at_R = np.maximum(first_R, 1).clip(max=len(shots_M) - 1)
    above_R, below_R = errors_RM[rows_R, at_R - 1], errors_RM[rows_R, at_R]
    fall_R = above_R - below_R
    share_R = np.divide(above_R - targets_R, fall_R, out=np.zeros_like(fall_R), where=fall_R > 0)
    logs_M = np.log(shots_M)
    between_R = np.exp(logs_M[at_R - 1] + share_R.clip(0, 1) * (logs_M[at_R] - logs_M[at_R - 1]))
    at_first_R = np.where(errors_RM[:, 0] == targets_R, shots_M[0], 0.0)
    return np.where(first_R < 0, np.inf, np.where(first_R == 0, at_first_R, between_R))


def _shots(reached: float, shots_M: FloatArray) -> Shots:
    if np.isinf(reached):
        return Shots(float(shots_M[-1]), ">")
    return Shots(float(shots_M[0]), "<") if reached == 0 else Shots(float(reached))
