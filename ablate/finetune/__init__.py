"""Fine-tuning on annotated images: one loop for every network, initialisation and loss.

A stage calls this package to fine-tune, and the checks before a run call `check_finetune`.
"""

from ablate.finetune.loop import FinetuneOutcome, accumulate_gradients, finetune
from ablate.finetune.losses import LOSSES, LossFunction
from ablate.finetune.mean_shape import mean_shape, mean_shape_errors
from ablate.finetune.rates import learning_rate
from ablate.finetune.shots import Shots, annotated_images, check_finetune, num_labels, select_shots
from ablate.finetune.validation import draw_targets

__all__ = [
    "LOSSES",
    "FinetuneOutcome",
    "LossFunction",
    "Shots",
    "accumulate_gradients",
    "annotated_images",
    "check_finetune",
    "draw_targets",
    "finetune",
    "learning_rate",
    "mean_shape",
    "mean_shape_errors",
    "num_labels",
    "select_shots",
]
