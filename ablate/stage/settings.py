"""How stages use the machine and the store, and how an attempt at one ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["running", "finished", "failed", "interrupted", "lost"]
"""How an attempt at a stage ended; `lost`: the snapshot it starts from is missing or damaged."""

Later: TypeAlias = Callable[[Callable[[], None]], None]
"""Takes a function that writes to the store, and calls it in the background."""


@dataclass(frozen=True)
class Settings:
    """How stages use the machine and the store; nothing here changes a number that is reported on a CPU."""

    threads: int = 1  # CPU threads; results agree to the bit only for equal counts
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = True  # on a GPU: equal bits for equal inputs on cards of one type, at some cost
    cuda_graphs: bool = False  # on a GPU: passes of encoders and of fine-tunings are recorded and launched as a whole
    compiled: bool = False  # on a GPU: a U-Net that is pre-trained is compiled where the remaining steps pay for it
    gpus: float = 0.0  # of a node, as the stage was given them; a fraction is also what it may fill of one
    checkpoint_minutes: float = 5.0
    keep_weights: bool = False
    shared_keys: frozenset[str] = frozenset()  # pre-trainings that several trials of the run use
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of the data sets, as the run recorded them


@dataclass(frozen=True)
class StageResult:
    """How an attempt ended."""

    outcome: Outcome
    error: str | None = None  # one line
    trouble: str | None = None  # of an interrupted attempt whose run cannot go on now: a key of `TROUBLES`
    metrics: Mapping[str, float] | None = None  # the last that were reported; of a finished trial with `mre`
