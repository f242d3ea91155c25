"""Progress, randomness and resumable states, which pre-training and fine-tuning have in common.

Whatever trains, evaluates or starts training may call this package: `network`, `pretrain`, `finetune`, `stage` and
`running`.
"""

from ablate.training.compiling import DECIDED_AFTER, Compiling
from ablate.training.execution import Losses, adamw, load_optimizer, on_device, placed
from ablate.training.graphs import CudaRecording, Launch, Launcher, Outputs, as_it_is
from ablate.training.groups import KeptStatistics, Pass, apart, by_view, forward_passes, join_views, normalised_apart
from ablate.training.memory import Card, Gpu
from ablate.training.passes import ONE_GROUP, OutOfMemory, Passes, PassSize
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
from ablate.training.randomness import global_seed, seed_of, seeded, stream_order
from ablate.training.state import State, copied, pack, unpack

__all__ = [
    "DECIDED_AFTER",
    "ONE_GROUP",
    "Card",
    "Checkpoint",
    "Compiling",
    "CudaRecording",
    "CurvePoint",
    "Diverged",
    "Gpu",
    "Interrupted",
    "KeptStatistics",
    "Launch",
    "Launcher",
    "Losses",
    "OutOfMemory",
    "Outputs",
    "Pass",
    "PassSize",
    "Passes",
    "Progress",
    "Report",
    "State",
    "Stopwatch",
    "adamw",
    "apart",
    "as_it_is",
    "by_view",
    "copied",
    "curve_of",
    "curve_state",
    "forward_passes",
    "global_seed",
    "join_views",
    "load_optimizer",
    "normalised_apart",
    "on_device",
    "pack",
    "placed",
    "seed_of",
    "seeded",
    "silent",
    "stream_order",
    "unpack",
]
