"""Fine-tuning on annotated images: one loop for every network, initialisation and loss.

A stage calls this package to fine-tune, and the checks before a run call `check_finetune`.
"""

from ablate.finetune.loop import (
    FinetuneOutcome,
    accumulate_gradients,
    check_finetune,
    draw_targets,
    finetune,
    learning_rate,
    select_shots,
)
from ablate.finetune.losses import LOSSES, LossFunction
from ablate.finetune.mean_shape import mean_shape, mean_shape_errors

__all__ = [
    "LOSSES",
    "FinetuneOutcome",
    "LossFunction",
    "accumulate_gradients",
    "check_finetune",
    "draw_targets",
    "finetune",
    "learning_rate",
    "mean_shape",
    "mean_shape_errors",
    "select_shots",
]
