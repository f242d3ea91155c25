"""The policy of a run: which stage starts next.

The policy knows what is planned, running, published and failed; it knows neither Ray nor a clock. The run
and the simulator drive the same object.

Of what can start, the stage with the longest remaining chain goes first: a pre-training's chain is the
time to its last needed snapshot and the longest fine-tuning behind it, a fine-tuning's chain is its own
time. Where it is known what stages run on, `ablate.schedule.lookahead` chooses among them instead. A stage whose
snapshot is not published is never offered, so nothing that holds a GPU waits for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ablate.schedule.stages import WHOLE, Chooser, Costs, Snapshot, Stage, TuneStage
from ablate.space import Plan, Pretraining, TrialSpec, plan_of


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

    Trials can be added while it goes on, by `add` and `add_tuning`; `expects_more` says whether some are to come.

    The caller reports what happens with `started`, `placed`, `publish`, `finish`, `fail`, `lose`, `requeue` and
    `abandon`, and asks for work with `next`. Each call takes O(log n) for n trials, beside what a chooser takes.
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
        self._ready: list[tuple[float, int, Stage]] = []  # a heap; what is no longer in `_queued` is left behind
        self._queued: dict[Stage, tuple[float, int, Stage]] = {}
        self._chooser: Chooser | None = None
        self.running: set[Stage] = set()
        self.failures: dict[Stage, str] = {}
        self.expects_more: Callable[[], bool] = bool
        self._tuning: dict[str, TuneStage] = {}
        self._tuned_by: dict[str, TrialSpec | None] = {}
        self._finetune_seconds: dict[str, float] = {}
        self._pretrainings: dict[str, Pretraining] = {}  # each to the largest number of steps
        self._take_up(self._trials.values(), plan.pretrainings)

    def add(self, trials: Iterable[TrialSpec], *, tuned_by: TrialSpec | None = None) -> None:
        """Take up more trials; those that are known already change nothing.

        `tuned_by` is a trial like those that judged their settings, whose annotated images count as seen by them.
        """
        new = {trial.trial_id: trial for trial in trials if trial.trial_id not in self._trials}
        self._trials |= new
        self._tuned_by |= dict.fromkeys(new, tuned_by)
        self._take_up(new.values(), plan_of(new.values()).pretrainings)

    def add_tuning(self, stage: TuneStage) -> None:
        """Take up a tuning trial, or its next segment once the one before is over."""
        self._tuning[stage.trial.trial_id] = stage
        self._take_up([stage.trial], plan_of([stage.trial]).pretrainings)

    def _take_up(self, trials: Iterable[TrialSpec], pretrainings: Mapping[str, Pretraining]) -> None:
        for key, pretraining in pretrainings.items():
            known = self._pretrainings.get(key)
            if known is None or known.fields.steps < pretraining.fields.steps:
                self._pretrainings[key] = pretraining
                if key in self._work:
                    self._work[key].pretraining = pretraining
        waiting: dict[str, None] = {}
        for trial in trials:
            name, needs = trial.trial_id, self.needs(trial)
            tuning = self._tuning.get(name)
            self._finetune_seconds[name] = tuning.seconds if tuning else self._costs.finetune(trial)
            if needs is None:
                self._offer(self._stage(name))
            else:
                self._wait(name, needs)
                waiting[needs[0]] = None
        for key in waiting:
            if self._work[key].needed:
                self._offer(Stage("pretrain", key))

    def _stage(self, name: str) -> Stage:
        """Return the stage by which a trial is fine-tuned."""
        if name in self._tuning:
            return Stage("tune", name)
        return Stage("finetune" if self._share else "trial", name)

    def _note_published(self, key: str, step: int) -> None:
        self._published.add((key, step))
        self._furthest[key] = max(step, self._furthest.get(key, 0))

    def _wait(self, name: str, needs: Snapshot) -> None:
        key, step = needs
        work = self._work.setdefault(key, _Work(self._pretrainings[key]))
        if needs in self._published:
            self._offer(self._stage(name))
        else:
            work.needed.setdefault(step, []).append(name)

    def needs(self, trial: TrialSpec) -> Snapshot | None:
        """Return the snapshot a trial's fine-tuning starts from; None if it needs none as a stage."""
        pretraining = trial.pretraining
        return (pretraining.key, pretraining.fields.steps) if pretraining is not None and self._share else None

    def starts_from_snapshot(self, stage: Stage) -> bool:
        """Return whether a stage needs a snapshot that another stage makes."""
        return stage.kind not in WHOLE and self.needs(self.trial(stage)) is not None

    def trial(self, stage: Stage) -> TrialSpec:
        """Return the trial of a `finetune`, `tune` or `trial` stage."""
        return self._tuning[stage.name].trial if stage.kind == "tune" else self._trials[stage.name]

    def tuned_by(self, stage: Stage) -> TrialSpec | None:
        """Return a trial like those that judged the settings of a `finetune` stage; None where nothing judged them."""
        return self._tuned_by.get(stage.name)

    def until(self, stage: Stage) -> float:
        """Return the share of its optimizer steps at which a stage ends: below 1 only for a `tune` stage."""
        return self._tuning[stage.name].until if stage.kind == "tune" else 1.0

    def pretraining(self, stage: Stage) -> tuple[Pretraining, tuple[int, ...]]:
        """Return the pre-training of a stage and the snapshots that are still to be published, ascending."""
        work = self._work[stage.name]
        return work.pretraining, tuple(sorted(work.needed))

    def dependents(self, stage: Stage) -> tuple[str, ...]:
        """Return the trials that wait for snapshots of a `pretrain` stage."""
        return tuple(name for names in self._work[stage.name].needed.values() for name in names)

    def chain_seconds(self, stage: Stage) -> float:
        """Return the expected seconds from a stage's start to the end of the longest chain behind it."""
        if stage.kind == "tune":
            return self._behind(stage.name)
        if stage.kind == "finetune":
            return self._finetune_seconds[stage.name]
        if stage.kind == "trial":
            trial = self._trials[stage.name]
            before = trial.pretraining
            steps = before.fields.steps * self._costs.pretrain_step(before) if before else 0.0
            return steps + self._finetune_seconds[stage.name]
        needed = self._work[stage.name].needed
        return max(
            seconds + max(self._behind(name) for name in needed[step])
            for step, seconds in self.snapshot_seconds(stage).items()
        )

    def _behind(self, name: str) -> float:
        """Return the expected seconds from the start of a fine-tuning to the end of all that waits for it."""
        return self._finetune_seconds[name] + (self._tuning[name].behind_s if name in self._tuning else 0.0)

    def behind_seconds(self, stage: Stage) -> float:
        """Return the expected seconds of what waits for the end of a stage; of a `tune` stage: the rounds to come."""
        return self._tuning[stage.name].behind_s if stage.kind == "tune" else 0.0

    def revise(self, costs: Costs) -> None:
        """Take stages to cost something else from now on; tuning trials that were added keep their seconds."""
        self._costs = costs
        for name in self._finetune_seconds.keys() - self._tuning.keys():
            self._finetune_seconds[name] = costs.finetune(self._trials[name])

    def stage_seconds(self, stage: Stage) -> float:
        """Return the expected seconds of a stage itself."""
        if stage.kind == "pretrain":
            return max(self.snapshot_seconds(stage).values(), default=0.0)
        return self._finetune_seconds[stage.name] if stage.kind == "tune" else self.chain_seconds(stage)

    def snapshot_seconds(self, stage: Stage) -> dict[int, float]:
        """Return the expected seconds from the start of a `pretrain` stage to each snapshot to be published."""
        work = self._work[stage.name]
        done = self._furthest.get(stage.name, 0)
        each = self._costs.pretrain_step(work.pretraining)
        return {step: max(step - done, 0) * each for step in sorted(work.needed)}

    def _offer(self, stage: Stage) -> None:
        if stage in self._queued or stage in self.running:
            return
        entry = (-self.chain_seconds(stage), self._order.setdefault(stage, len(self._order)), stage)
        heapq.heappush(self._ready, entry)
        self._queued[stage] = entry
        if self._chooser is not None:
            self._chooser.offered(stage)

    def follow(self, chooser: Chooser | None) -> None:
        """Let somebody else choose among the stages that could start; None for the longest chain."""
        self._chooser = chooser

    def next(self) -> Stage | None:
        """Return the stage to start now, without starting it; None if nothing can start, or should."""
        longest = self._longest()
        return longest if longest is None or self._chooser is None else self._chooser.choose(longest)

    def _longest(self) -> Stage | None:
        """Return the stage with the longest chain among those that can start."""
        while self._ready:
            entry = self._ready[0]
            stage = entry[2]
            if self._queued.get(stage) is entry:
                missing = self._missing(stage)
                if missing is None:
                    return stage
                del self._queued[stage]  # its snapshot was lost after it was offered
                self._wait(stage.name, missing)
            heapq.heappop(self._ready)
        return None

    def can_start(self, stage: Stage) -> bool:
        """Return whether a stage could start now."""
        return stage in self._queued and self._missing(stage) is None

    @property
    def costs(self) -> Costs:
        """What stages are expected to take."""
        return self._costs

    @property
    def ready(self) -> list[Stage]:
        """The stages that could start now."""
        return [stage for stage in self._queued if self._missing(stage) is None]

    def waiting(self, stage: Stage) -> dict[int, list[Stage]]:
        """Return the stages that wait for snapshots of a `pretrain` stage, by the step."""
        return {step: [self._stage(name) for name in names] for step, names in self._work[stage.name].needed.items()}

    def _missing(self, stage: Stage) -> Snapshot | None:
        """Return the snapshot that a stage waits for; None if it can start."""
        needs = None if stage.kind in WHOLE else self.needs(self.trial(stage))
        return None if needs in self._published else needs

    def started(self, stage: Stage) -> None:
        """Note that the stage `next` offered has been started: it has a place, or waits for one."""
        assert stage in self._queued, f"{stage} was started though it was not offered"
        del self._queued[stage]
        self.running.add(stage)
        if self._chooser is not None:
            self._chooser.started(stage)

    def placed(self, stage: Stage) -> None:
        """Note that a stage that was started has its place."""
        if self._chooser is not None:
            self._chooser.placed(stage)

    def _over(self, stage: Stage, *, finished: bool = False) -> None:
        self.running.discard(stage)
        if self._chooser is not None:
            self._chooser.ended(stage, finished=finished)

    def publish(self, key: str, step: int) -> None:
        """Note that a snapshot has become available: trials that need it can start."""
        self._note_published(key, step)
        if self._chooser is not None:
            self._chooser.published(key, step)
        work = self._work.get(key)
        for name in work.needed.pop(step, ()) if work else ():
            self._offer(self._stage(name))

    def finish(self, stage: Stage) -> None:
        """Note that a stage has done its work."""
        self._over(stage, finished=True)
        if stage.kind == "pretrain" and self._work[stage.name].needed:
            self._offer(stage)  # trials came to wait for a lost snapshot while it ran

    def fail(self, stage: Stage, reason: str) -> tuple[str, ...]:
        """Note that a stage has failed for good; return the trials that fail with it.

        Trials whose snapshot a failed pre-training had already published are not affected.
        """
        self._over(stage)
        self.failures[stage] = reason
        if stage.kind != "pretrain":
            return ()
        dependents = self.dependents(stage)
        self._work[stage.name].needed.clear()
        for name in dependents:
            self.failures[self._stage(name)] = f"pre-training {stage.name} failed: {reason}"
        return dependents

    def requeue(self, stage: Stage) -> None:
        """Note that a stage has ended before its work was done, and goes on from its newest state."""
        self._over(stage)
        if stage.kind != "pretrain" or self._work[stage.name].needed:
            self._offer(stage)

    def abandon(self, stage: Stage) -> None:
        """Note that a stage has ended before its work was done, and is not offered again."""
        self._over(stage)

    def lose(self, stage: Stage) -> None:
        """Note that a fine-tuning found its snapshot missing or damaged: it is made anew, then tried again."""
        needs = self.needs(self.trial(stage))
        assert needs is not None
        self._over(stage)
        self._published.discard(needs)
        self._wait(stage.name, needs)
        self._offer(Stage("pretrain", needs[0]))

    @property
    def trials(self) -> tuple[TrialSpec, ...]:
        """The trials that were to be done when the policy was made, and those that were added; no tuning trials."""
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
        """Number of `trials`."""
        return len(self._trials)

    def is_tuning(self, trial_id: str) -> bool:
        """Whether a trial was added by `add_tuning`."""
        return trial_id in self._tuning

    @property
    def num_tuning(self) -> int:
        """Number of tuning trials that were added so far."""
        return len(self._tuning)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, nothing can start, and nothing is to come."""
        return (
            not self.running
            and not self.expects_more()
            and all(self._missing(stage) is not None for stage in self._queued)
        )
