"""Progress, randomness and resumable states, which pre-training and fine-tuning have in common.

Whatever trains, evaluates or starts training may call this package: `network`, `pretrain`, `finetune`, `stage` and
`running`.
"""

from ablate.training.progress import (
    Checkpoint,
    CurvePoint,
    Diverged,
    Interrupted,
    Progress,
    Report,
    Stopwatch,
    curve_of,
    curve_state,
    silent,
)
from ablate.training.randomness import global_seed, micro_batches, seed_of, seeded, stream_order
from ablate.training.state import State, pack, unpack

__all__ = [
    "Checkpoint",
    "CurvePoint",
    "Diverged",
    "Interrupted",
    "Progress",
    "Report",
    "State",
    "Stopwatch",
    "curve_of",
    "curve_state",
    "global_seed",
    "micro_batches",
    "pack",
    "seed_of",
    "seeded",
    "silent",
    "stream_order",
    "unpack",
]
