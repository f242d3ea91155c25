"""What a training loop tells while it goes on, and where it keeps its state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from ablate.training.state import State


@dataclass(frozen=True)
class Progress:
    """Where a running stage is."""

    phase: str  # pretrain, finetune or evaluate
    step: int  # steps done: optimizer steps in pre-training, epochs in fine-tuning, images in evaluation
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    published: int | None = None  # step of a snapshot that has just become available
    saved: int | None = None  # optimizer steps in the newest training state that the store holds


Report: TypeAlias = Callable[[Progress], bool]
"""Called often; returns True to ask the loop to save its state and stop."""


def silent(progress: Progress) -> bool:
    """Report to nobody and never ask to stop."""
    return False


class Checkpoint(Protocol):
    """Where a loop keeps its state, and how often."""

    def due(self) -> bool:
        """Return whether it is time to save; asked after every step, or every epoch of fine-tuning."""

    def save(self, step: int, state: State) -> None:
        """Save the state after `step`. Tensors in it are the loop's own: whoever goes on later copies them first."""


class Interrupted(Exception):  # noqa: N818
    """The loop was asked to stop and has saved its state."""


class Diverged(Exception):  # noqa: N818
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class CurvePoint:
    """One value of a learning curve."""

    step: int
    epoch: int | None
    metric: str
    value: float
    seconds: float  # of training so far, all attempts together


def curve_state(curve: Sequence[CurvePoint]) -> list[list[Any]]:
    """Return a learning curve as plain values for a training state."""
    return [[point.step, point.epoch, point.metric, point.value, point.seconds] for point in curve]


def curve_of(rows: Sequence[Sequence[Any]]) -> list[CurvePoint]:
    """Return the learning curve that `curve_state` turned into plain values."""
    return [CurvePoint(*row) for row in rows]


class Stopwatch:
    """Seconds of training over all attempts: goes on from the seconds a saved state has."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._start = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far, those before this attempt included."""
        return self._before + time.monotonic() - self._start
