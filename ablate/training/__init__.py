"""Progress, randomness and resumable states, which pre-training and fine-tuning have in common.

Whatever trains, evaluates or starts training may call this package: `network`, `pretrain`, `finetune`, `stage` and
`running`.
"""

from ablate.training.execution import Losses, adamw, load_optimizer, on_device, placed
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
from ablate.training.state import State, copied, pack, unpack

__all__ = [
    "Checkpoint",
    "CurvePoint",
    "Diverged",
    "Interrupted",
    "Losses",
    "Progress",
    "Report",
    "State",
    "Stopwatch",
    "adamw",
    "copied",
    "curve_of",
    "curve_state",
    "global_seed",
    "load_optimizer",
    "micro_batches",
    "on_device",
    "pack",
    "placed",
    "seed_of",
    "seeded",
    "silent",
    "stream_order",
    "unpack",
]
