"""Progress reports, checkpoints and learning curves of training loops."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from ablate.training.state import State


@dataclass(frozen=True)
class Progress:
    """How far a running stage has come."""

    phase: str  # pretrain, finetune or evaluate
    step: int  # done: optimizer steps in pre-training, epochs (or steps) in fine-tuning, images in evaluation
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    published: int | None = None  # step of a snapshot that has just been published
    saved: int | None = None  # optimizer steps in the newest training state that the store holds
    optimizer_steps: int | None = None  # done, where `step` counts something else: fine-tuning


Report: TypeAlias = Callable[[Progress], bool]
"""Called often; returns True to ask the loop to save its state and stop."""


def silent(progress: Progress) -> bool:
    """Report to nobody and never ask to stop."""
    return False


class Checkpoint(Protocol):
    """Keeps a loop's state, and decides how often."""

    def due(self) -> bool:
        """Return whether it is time to save; asked after every optimizer step."""

    def save(self, step: int, state: State) -> None:
        """Save the state after `step`; its tensors are the loop's own: to write later, copy them before returning."""


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
    """Seconds of training over all attempts; counts on from the seconds in a saved state."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._start = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far, those before this attempt included."""
        return self._before + time.monotonic() - self._start
