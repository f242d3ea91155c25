"""Pre-training: one file for each method, and one loop for all.

Only a stage calls this package: its trial pre-trains, its pictures show DDPM's samples.
"""

from ablate.pretrain.base import PretrainingMethod
from ablate.pretrain.loop import run_pretraining
from ablate.pretrain.methods import build_method

__all__ = ["PretrainingMethod", "build_method", "run_pretraining"]
