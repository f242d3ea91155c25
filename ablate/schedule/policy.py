"""The policy of a run: which stage starts next.

The policy knows what is planned, running, published and failed; it knows neither Ray nor a clock. The run
and the simulator drive the same object.

Of what can start, the stage with the longest remaining chain goes first: a pre-training's chain is the
time to its last needed snapshot and the longest fine-tuning behind it, a fine-tuning's chain is its own
time. A stage whose snapshot is not published is never offered, so nothing that holds a GPU waits for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ablate.space import Plan, Pretraining, TrialSpec

StageKind: TypeAlias = Literal["pretrain", "finetune", "trial"]


@dataclass(frozen=True)
class Stage:
    """A piece of work with a resource request of its own.

    `pretrain` runs one pre-training, `finetune` fine-tunes and evaluates one trial from a published
    snapshot, `trial` does both in one process and shares nothing.
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


@dataclass
class _Work:
    """One pre-training and who waits for it."""

    pretraining: Pretraining
    needed: dict[int, list[str]] = field(default_factory=dict)  # snapshot step -> trials that start from it


class Policy:
    """The state of a run's stages and the choice among them.

    Args:
        plan: the trials and the pre-trainings they share.
        costs: expected seconds of stages.
        done: ids of trials that need nothing more.
        published: snapshots that exist, as (key, step).
        share: False makes every trial one whole stage.

    The caller reports what happens with `started`, `publish`, `finish`, `fail`, `lose`, `requeue` and `abandon`,
    and asks for work with `next`. Each call takes O(log n) for n trials.
    """

    def __init__(
        self,
        plan: Plan,
        costs: Costs,
        *,
        done: Collection[str] = (),
        published: Iterable[Snapshot] = (),
        share: bool = True,
    ) -> None:
        self._costs = costs
        self._share = share
        self._trials = {trial.trial_id: trial for trial in plan.trials if trial.trial_id not in done}
        self._published: set[Snapshot] = set()
        self._furthest: dict[str, int] = {}  # key -> newest published step
        for key, step in published:
            self._note_published(key, step)
        self._work: dict[str, _Work] = {}
        self._order: dict[Stage, int] = {}
        self._ready: list[tuple[float, int, Stage]] = []
        self._queued: set[Stage] = set()
        self.running: set[Stage] = set()
        self.failures: dict[Stage, str] = {}
        self._finetune_seconds = {name: costs.finetune(trial) for name, trial in self._trials.items()}
        self._pretrainings = plan.pretrainings  # each to the largest number of steps
        for name, trial in self._trials.items():
            needs = self.needs(trial)
            if needs is None:
                self._offer(Stage("finetune" if share else "trial", name))
            else:
                self._wait(name, needs)
        for key, work in self._work.items():
            if work.needed:
                self._offer(Stage("pretrain", key))

    def _note_published(self, key: str, step: int) -> None:
        self._published.add((key, step))
        self._furthest[key] = max(step, self._furthest.get(key, 0))

    def _wait(self, name: str, needs: Snapshot) -> None:
        key, step = needs
        work = self._work.setdefault(key, _Work(self._pretrainings[key]))
        if needs in self._published:
            self._offer(Stage("finetune", name))
        else:
            work.needed.setdefault(step, []).append(name)

    def needs(self, trial: TrialSpec) -> Snapshot | None:
        """Return the snapshot a trial's fine-tuning starts from; None if it needs none as a stage."""
        pretraining = trial.pretraining
        return (pretraining.key, pretraining.fields.steps) if pretraining is not None and self._share else None

    def starts_from_snapshot(self, stage: Stage) -> bool:
        """Return whether a stage needs a snapshot that another stage makes."""
        return stage.kind == "finetune" and self.needs(self._trials[stage.name]) is not None

    def trial(self, stage: Stage) -> TrialSpec:
        """Return the trial of a `finetune` or `trial` stage."""
        return self._trials[stage.name]

    def pretraining(self, stage: Stage) -> tuple[Pretraining, tuple[int, ...]]:
        """Return the pre-training of a stage and the snapshots that are still to be published, ascending."""
        work = self._work[stage.name]
        return work.pretraining, tuple(sorted(work.needed))

    def dependents(self, stage: Stage) -> tuple[str, ...]:
        """Return the trials that wait for snapshots of a `pretrain` stage."""
        return tuple(name for names in self._work[stage.name].needed.values() for name in names)

    def chain_seconds(self, stage: Stage) -> float:
        """Return the expected seconds from a stage's start to the end of the longest chain behind it."""
        if stage.kind == "finetune":
            return self._finetune_seconds[stage.name]
        if stage.kind == "trial":
            trial = self._trials[stage.name]
            before = trial.pretraining
            steps = before.fields.steps * self._costs.pretrain_step(before) if before else 0.0
            return steps + self._finetune_seconds[stage.name]
        needed = self._work[stage.name].needed
        return max(
            seconds + max(self._finetune_seconds[name] for name in needed[step])
            for step, seconds in self.snapshot_seconds(stage).items()
        )

    def snapshot_seconds(self, stage: Stage) -> dict[int, float]:
        """Return the expected seconds from the start of a `pretrain` stage to each snapshot to be published."""
        work = self._work[stage.name]
        done = self._furthest.get(stage.name, 0)
        each = self._costs.pretrain_step(work.pretraining)
        return {step: max(step - done, 0) * each for step in sorted(work.needed)}

    def _offer(self, stage: Stage) -> None:
        if stage in self._queued or stage in self.running:
            return
        order = self._order.setdefault(stage, len(self._order))
        heapq.heappush(self._ready, (-self.chain_seconds(stage), order, stage))
        self._queued.add(stage)

    def next(self) -> Stage | None:
        """Return the stage to start now, without starting it; None if nothing can start."""
        while self._ready:
            stage = self._ready[0][2]
            missing = self._missing(stage)
            if missing is None:
                return stage
            heapq.heappop(self._ready)  # its snapshot was lost after it was offered
            self._queued.discard(stage)
            self._wait(stage.name, missing)
        return None

    def _missing(self, stage: Stage) -> Snapshot | None:
        """Return the snapshot that a stage waits for; None if it can start."""
        needs = self.needs(self._trials[stage.name]) if stage.kind == "finetune" else None
        return None if needs in self._published else needs

    def started(self, stage: Stage) -> None:
        """Note that the stage `next` offered has been started."""
        _, _, offered = heapq.heappop(self._ready)
        assert offered == stage, f"{stage} was started though {offered} was offered"
        self._queued.discard(stage)
        self.running.add(stage)

    def publish(self, key: str, step: int) -> None:
        """Note that a snapshot has become available: trials that need it can start."""
        self._note_published(key, step)
        work = self._work.get(key)
        for name in work.needed.pop(step, ()) if work else ():
            self._offer(Stage("finetune", name))

    def finish(self, stage: Stage) -> None:
        """Note that a stage has done its work."""
        self.running.discard(stage)
        if stage.kind == "pretrain" and self._work[stage.name].needed:
            self._offer(stage)  # trials came to wait for a lost snapshot while it ran

    def fail(self, stage: Stage, reason: str) -> tuple[str, ...]:
        """Note that a stage has failed for good; return the trials that fail with it.

        Trials whose snapshot a failed pre-training had already published are not affected.
        """
        self.running.discard(stage)
        self.failures[stage] = reason
        if stage.kind != "pretrain":
            return ()
        dependents = self.dependents(stage)
        self._work[stage.name].needed.clear()
        for name in dependents:
            self.failures[Stage("finetune", name)] = f"pre-training {stage.name} failed: {reason}"
        return dependents

    def requeue(self, stage: Stage) -> None:
        """Note that a stage has ended before its work was done, and goes on from its newest state."""
        self.running.discard(stage)
        if stage.kind != "pretrain" or self._work[stage.name].needed:
            self._offer(stage)

    def abandon(self, stage: Stage) -> None:
        """Note that a stage has ended before its work was done, and is not offered again."""
        self.running.discard(stage)

    def lose(self, stage: Stage) -> None:
        """Note that a fine-tuning found its snapshot missing or damaged: it is made anew, then tried again."""
        trial = self._trials[stage.name]
        needs = self.needs(trial)
        assert needs is not None
        self.running.discard(stage)
        self._published.discard(needs)
        self._wait(stage.name, needs)
        self._offer(Stage("pretrain", needs[0]))

    @property
    def trials(self) -> tuple[TrialSpec, ...]:
        """The trials that were to be done when the policy was made."""
        return tuple(self._trials.values())

    @property
    def published(self) -> frozenset[Snapshot]:
        """The snapshots that exist."""
        return frozenset(self._published)

    @property
    def shares(self) -> bool:
        """Whether trials share pre-trainings."""
        return self._share

    @property
    def num_trials(self) -> int:
        """Number of trials that were to be done when the policy was made."""
        return len(self._trials)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing can start."""
        return not self.running and all(self._missing(stage) is not None for _, _, stage in self._ready)
