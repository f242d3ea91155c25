"""Pre-training: one file for each method, and one loop for all.

A stage runs pre-trainings; nothing else needs this room but the pictures of DDPM's samples.
"""

from ablate.pretrain.base import Method
from ablate.pretrain.loop import run_pretraining
from ablate.pretrain.methods import build_method

__all__ = ["Method", "build_method", "run_pretraining"]
