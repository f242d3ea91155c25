"""What a run consists of: stages, what they are expected to take, and who may choose among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from ablate.space import Pretraining, TrialSpec

StageKind: TypeAlias = Literal["pretrain", "finetune", "tune", "trial"]

WHOLE: frozenset[StageKind] = frozenset({"pretrain", "trial"})
"""Kinds of stages that pre-train, and ask for what that needs; the others only fine-tune."""


@dataclass(frozen=True)
class Stage:
    """A piece of work with a resource request of its own.

    `pretrain` runs one pre-training, `finetune` fine-tunes and evaluates one trial from a published
    snapshot, `tune` fine-tunes a tuning trial from one rung to the next and sees no test image, `trial` does
    pre-training and fine-tuning in one process and shares nothing.
    """

    kind: StageKind
    name: str  # pretrain key or trial id

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


Snapshot: TypeAlias = tuple[str, int]
"""A pre-training's key and the step of one of its snapshots."""


@dataclass(frozen=True)
class Costs:
    """Seconds that stages are expected to take; they set priorities and the simulator's clock."""

    pretrain_step: Callable[[Pretraining], float]  # seconds of one optimizer step
    finetune: Callable[[TrialSpec], float]  # seconds of fine-tuning and evaluation
    measured: bool = False  # on stages of a run, not estimated


@dataclass(frozen=True)
class TuneStage:
    """What a `tune` stage is about, and what it is expected to take."""

    trial: TrialSpec
    until: float  # share of the optimizer steps at which it pauses; 1 at its end
    seconds: float
    behind_s: float = 0.0  # of the longest chain that waits for it


class Chooser(Protocol):
    """Chooses which of the stages that could start does, and is told what becomes of them."""

    def choose(self, longest: Stage) -> Stage | None:
        """Return the stage to start now, None to wait; `longest` can start, and none that can has a longer chain."""

    def offered(self, stage: Stage) -> None:
        """A stage can start."""

    def started(self, stage: Stage) -> None:
        """A stage was taken, and waits for its place."""

    def placed(self, stage: Stage) -> None:
        """A stage has its place."""

    def published(self, key: str, step: int) -> None:
        """A snapshot has become available."""

    def ended(self, stage: Stage, *, finished: bool) -> None:
        """A stage is over, with its work done or not."""
