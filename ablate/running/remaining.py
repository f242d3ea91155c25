"""The time that a run will still take: a simulation of what is left, at the speed that its stages have had so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ablate.running.events import Watcher
from ablate.running.tuner import Tuner
from ablate.schedule.costs import Ratios
from ablate.schedule.machine import Machine
from ablate.schedule.policy import Policy
from ablate.schedule.rounds import rehearse
from ablate.schedule.simulate import simulate
from ablate.schedule.stages import Costs, Stage
from ablate.space import Pretraining, TrialSpec, plan_of
from ablate.stage.settings import StageResult

MEASURED_S = 3.0
"""The speed of a phase is known once it has been watched for this long."""

_TRAINS = ("finetune", "tune")
"""Phases in which a trial is fine-tuned."""

AGAIN_S = 5.0
"""The rest is simulated again at most this often, and no more than a fiftieth of the time goes into it."""


@dataclass
class _AtWork:
    """How far a stage is in its phase."""

    placed_s: float
    phase: str = ""
    step: int = 0
    total: int = 0
    first: tuple[float, int] = (0.0, 0)  # time and step of the phase's first report
    last_s: float = 0.0  # time of its newest
    from_start: bool = False  # its fine-tuning began in this attempt

    @property
    def step_s(self) -> float | None:
        """Seconds of one step; None where they are not known yet."""
        seconds, steps = self.last_s - self.first[0], self.step - self.first[1]
        return seconds / steps if steps > 0 and seconds >= MEASURED_S else None


class TimeLeft(Watcher):
    """Tells how long a run will still take, once one of its stages has been measured.

    Args:
        policy: knows the stages.
        costs: the seconds that stages are expected to take.
        machine: returns what the stages run on; None where there is no machine just now.
        tuner: where settings are tuned, knows the rounds that are to come.
    """

    def __init__(
        self, policy: Policy, costs: Costs, machine: Callable[[], Machine | None], tuner: Tuner | None = None
    ) -> None:
        self._policy, self._costs, self._machine, self._tuner = policy, costs, machine, tuner
        self._running: dict[Stage, _AtWork] = {}
        self._over: set[str] = set()  # trials
        self._ratios: dict[tuple[Stage, str], tuple[Pretraining | TrialSpec, float]] = {}
        self._known: tuple[float, float | None] = (0.0, None)  # when it was found, and what
        self._again_s = 0.0

    def __call__(self) -> float | None:
        """Return the seconds until the last trial ends; None while nothing is known of them."""
        now = time.monotonic()
        if now >= self._again_s:
            self._known = (now, self._simulated())
            took = time.monotonic() - now
            self._again_s = now + max(AGAIN_S, 50 * took)
        found_at, seconds = self._known
        return None if seconds is None else max(0.0, seconds - (now - found_at))

    # --- what it is told ----------------------------------------------------------------------------

    def placed(self, stage: Stage) -> None:
        """Note when a stage got its place."""
        self._running[stage] = _AtWork(time.monotonic())

    def progressed(self, stage: Stage, progress: Mapping[str, Any]) -> None:
        """Note how far a stage is, and how fast it goes."""
        at = self._running.get(stage)
        if at is None:
            return
        now, phase, step = time.monotonic(), str(progress["phase"]), int(progress["step"])
        if phase != at.phase:
            at.first = (now, step)
            at.from_start = at.from_start or (phase in _TRAINS and step <= 0.2 * int(progress["total"]))
        at.phase, at.step, at.total, at.last_s = phase, step, int(progress["total"]), now
        each = at.step_s
        if each is None:
            return
        if phase == "pretrain":
            pretraining = self._pretraining(stage)
            if pretraining is not None:
                self._ratios[stage, phase] = (pretraining, each / self._costs.pretrain_step(pretraining))
        elif phase in _TRAINS:
            trial = self._policy.trial(stage)
            self._ratios[stage, "finetune"] = (trial, each * at.total / self._costs.finetune(trial))

    def ended(self, stage: Stage, result: StageResult) -> None:
        """Note that a stage is over, and what a whole fine-tuning took: it may have stopped early."""
        at = self._running.pop(stage, None)
        if stage.kind in ("pretrain", "tune"):
            return
        if result.outcome in ("finished", "failed"):
            self._over.add(stage.name)
        if result.outcome == "finished" and stage.kind == "finetune" and at is not None and at.from_start:
            trial = self._policy.trial(stage)
            took = time.monotonic() - at.placed_s
            self._ratios[stage, "finetune"] = (trial, took / self._costs.finetune(trial))

    def released(self, trial_id: str, reason: str) -> None:
        """Note a trial that fails with its pre-training."""
        self._over.add(trial_id)

    # --- what is left ---------------------------------------------------------------------------------

    def _pretraining(self, stage: Stage) -> Pretraining | None:
        return self._policy.pretraining(stage)[0] if stage.kind == "pretrain" else self._policy.trial(stage).pretraining

    def _simulated(self) -> float | None:
        ratios = Ratios()
        for spec, ratio in list(self._ratios.values()):
            if isinstance(spec, TrialSpec):
                ratios.add_finetuning(spec, ratio)
            else:
                ratios.add_pretraining(spec, ratio)
        costs, running = ratios.scale(self._costs), dict(self._running)
        machine = self._machine() if costs.measured else None
        if machine is None:
            return None
        trials = [trial for trial in self._policy.trials if trial.trial_id not in self._over]
        # What a running stage has done: a pre-training goes on from a snapshot at its step, a trial has less to do.
        reached = {(stage.name, at.step) for stage, at in running.items() if stage.kind == "pretrain" and at.step}
        done = {stage.name: self._done(stage, at, costs) for stage, at in running.items() if stage.kind != "pretrain"}
        rest = Costs(costs.pretrain_step, lambda trial: costs.finetune(trial) - done.get(trial.trial_id, 0.0))
        policy = Policy(plan_of(trials), rest, published=self._policy.published | reached, share=self._policy.shares)
        if self._tuner is None:
            return simulate(policy, machine).makespan_s
        open_ones = [course for course in self._tuner.courses if course.remaining()]
        ended = rehearse(policy, rest, open_ones, results=self._tuner.results, done=self._over.__contains__)
        return simulate(policy, machine, ended).makespan_s

    def _done(self, stage: Stage, at: _AtWork, costs: Costs) -> float:
        """Return the seconds of a trial that are behind it."""
        trial = self._policy.trial(stage)
        before, share = trial.pretraining, at.step / at.total if at.total else 0.0
        whole = before.fields.steps * costs.pretrain_step(before) if before and stage.kind == "trial" else 0.0
        if at.phase == "pretrain":
            return whole * share
        if at.phase in _TRAINS:
            return whole + costs.finetune(trial) * share
        return whole + costs.finetune(trial) if at.phase == "evaluate" else 0.0
