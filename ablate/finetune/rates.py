"""The learning rate of each optimizer step of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.space import FinetuneSpec

PLATEAU_THRESHOLD = 1e-4  # relative; torch's default for ReduceLROnPlateau, as the authors left it
PLATEAU_SMALLEST_CHANGE = 1e-8  # of the learning rate; torch's default


def learning_rate(spec: FinetuneSpec, val_losses: Sequence[float], step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0), a function of what is known before it.

    plateau: falls by `plateau_factor` when the validation loss has not improved for more than
    `plateau_patience` epochs, as torch's ReduceLROnPlateau with its other defaults (paper). linear: from `lr` at
    the first step to zero after the last of `total_steps`. constant: `lr`. The first `warmup` steps have a linearly
    rising share of it.

    Args:
        spec: the fine-tuning.
        val_losses: of the validations before the step.
        step: optimizer steps before it.
        total_steps: of the whole fine-tuning, where nothing ends it earlier.
    """
    share = min(1.0, (step + 1) / spec.warmup) if spec.warmup else 1.0
    if spec.schedule == "linear":
        return share * spec.lr * (1 - step / total_steps)
    if spec.schedule == "constant":
        return share * spec.lr
    rate, best, waited = spec.lr, math.inf, 0
    for loss in val_losses:
        if loss < best * (1 - PLATEAU_THRESHOLD):
            best, waited = loss, 0
        else:
            waited += spec.validate_every
        if waited > spec.plateau_patience:
            lower, waited = rate * spec.plateau_factor, 0
            rate = lower if rate - lower > PLATEAU_SMALLEST_CHANGE else rate
    return share * rate
