"""Fine-tuning on annotated images: one loop for every network, initialisation and loss.

A stage calls this package to fine-tune, and the checks before a run call `check_finetune`.
"""

from ablate.finetune.loop import FinetuneOutcome, accumulate_gradients, finetune
from ablate.finetune.losses import LOSSES, LossFunction
from ablate.finetune.mean_shape import mean_shape, mean_shape_errors
from ablate.finetune.objectives import Objective, build_objective, draw_targets
from ablate.finetune.rates import learning_rate
from ablate.finetune.shots import Shots, annotated_images, check_finetune, num_labels, select_shots

__all__ = [
    "LOSSES",
    "FinetuneOutcome",
    "LossFunction",
    "Objective",
    "Shots",
    "accumulate_gradients",
    "annotated_images",
    "build_objective",
    "check_finetune",
    "draw_targets",
    "finetune",
    "learning_rate",
    "mean_shape",
    "mean_shape_errors",
    "num_labels",
    "select_shots",
]
