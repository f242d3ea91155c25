"""The searcher that hands the policy's stages to Ray Tune and tells the policy what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ray.tune.search import Searcher

from ablate.running.events import Watcher
from ablate.running.ray_tune.demand import Nodes, Offered, verdict
from ablate.schedule.fitting import Request
from ablate.schedule.lookahead import Lookahead
from ablate.schedule.machine import Machine
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Stage
from ablate.stage.settings import Outcome, StageResult
from ablate.stage.task import config_of

LOST = "its worker or node was lost"
NOT_STARTED = "the run ends before it has started"

_Mark: TypeAlias = tuple[int, int]
"""How far a stage has come for good: the phase, and the optimizer steps in its newest state in the store."""


@dataclass
class _Losses:
    """How often in a row a stage was lost without having come further."""

    mark: _Mark = (-1, -1)  # at the last loss
    reached: _Mark = (-1, -1)
    in_a_row: int = 0

    def one_more(self) -> int:
        """Count a loss; return how many there were in a row without progress."""
        self.in_a_row = 0 if self.reached > self.mark else self.in_a_row + 1
        self.mark = self.reached
        return self.in_a_row


@dataclass
class _Attempt:
    """A stage as Tune knows it, under a Tune trial's id; times are of the searcher's clock."""

    stage: Stage
    request: Request
    here: bool  # it fitted the nodes that were there when it was offered
    offered_s: float
    placed_s: float | None = None
    ended_s: float | None = None  # when its work was done, even if it holds its place still
    settled: bool = False  # the policy knows how it ended

    def offered(self, now_s: float) -> Offered:
        """Return the attempt as it bears on what else is offered."""
        return Offered(
            self.request,
            placed=self.placed_s is not None,
            waited_s=(now_s if self.placed_s is None else self.placed_s) - self.offered_s,
            here=self.here,
            ended_s=None if self.ended_s is None else now_s - self.ended_s,
        )


def _with_metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with its metrics as the worker gave them: Tune tells a searcher `metrics/loss`."""
    start = "metrics/"
    metrics = {name.removeprefix(start): value for name, value in result.items() if name.startswith(start)}
    return {**result, "metrics": metrics}


class StageSearcher(Searcher):  # type: ignore[misc]
    """Offers the policy's next stage to Tune and reports back what became of it.

    How many stages are offered at a time is decided by `demand.verdict`: what waits is what an autoscaler sees.

    On a cluster that does not grow, `Lookahead` chooses the stage, by what is left and by what is at work. A GPU is
    drained for a stage by offering that stage and nothing behind it until it has its place. This cannot keep one
    certain GPU: Ray alone places stages. Nor can it take back what was offered, or stop a stage for another one. While
    nodes may come, or go and come back, the longest chain goes first.

    A stage whose worker or node was lost is offered again, as a new Tune trial, until it was lost `max_failures`
    times in a row and once more without having saved anything new. One that was interrupted because its node goes
    away is offered again without counting. Reports that come late, twice or not at all change nothing: the first
    word of how an attempt ended holds.

    Args:
        policy: decides what starts next.
        watcher: is told what happens.
        stopped: whether nothing more may start.
        request: what a stage asks one node for.
        nodes: the cluster's nodes; asked several times a second.
        machine: what stages run on, by the nodes that are there, as the simulator sees it; None where none can say.
        max_concurrent: most stages at a time; None for as many as fit.
        max_failures: losses in a row without progress that are no failure yet.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        policy: Policy,
        watcher: Watcher,
        stopped: Callable[[], bool],
        *,
        request: Callable[[Stage], Request],
        nodes: Callable[[], Nodes],
        machine: Callable[[Nodes], Machine | None] = lambda nodes: None,
        max_concurrent: int | None = None,
        max_failures: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._policy, self._watcher, self._stopped = policy, watcher, stopped
        self._request, self._nodes, self._clock = request, nodes, clock
        self._max_concurrent, self._max_failures = max_concurrent, max_failures
        self._attempts: dict[str, _Attempt] = {}
        self._machine, self._machine_of = machine, Nodes((), None)
        self._lookahead = Lookahead(policy, None, clock=clock)
        self._losses: dict[Stage, _Losses] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next stage as a Tune configuration, None for nothing now, FINISHED at the end."""
        self._watcher.tick()  # Tune may do nothing but ask here, and wait, where no stage is at work
        if self._stopped() or self._policy.is_over:
            finished: str = Searcher.FINISHED
            return finished
        if self._max_concurrent is not None and len(self._policy.running) >= self._max_concurrent:
            return None
        nodes = self._nodes()
        if nodes != self._machine_of:
            self._machine_of = nodes
            self._lookahead.use(None if nodes.may_come else self._machine(nodes))
        stage = self._policy.next()
        if stage is None:
            return None
        request, now_s = self._request(stage), self._clock()
        decided = verdict(request, [attempt.offered(now_s) for attempt in self._attempts.values()], nodes)
        if decided == "later":
            return None
        if stage.kind == "pretrain":
            config = config_of(stage, *self._policy.pretraining(stage))
        else:
            policy = self._policy
            config = config_of(stage, policy.trial(stage), until=policy.until(stage), tuned_by=policy.tuned_by(stage))
        self._policy.started(stage)
        self._attempts[trial_id] = _Attempt(stage, request, decided == "here", now_s)
        self._watcher.started(stage)
        return config

    def placed(self, trial_id: str) -> None:
        """Note that a stage has its place; told again and again."""
        attempt = self._attempts.get(trial_id)
        if attempt is not None and attempt.placed_s is None and not attempt.settled:
            attempt.placed_s = self._clock()
            self._policy.placed(attempt.stage)
            self._watcher.placed(attempt.stage)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass progress on; a published snapshot lets the trials that need it start; an outcome settles the stage."""
        attempt = self._attempts.get(trial_id)
        if attempt is None:
            return
        result = _with_metrics(result)
        self.placed(trial_id)  # what reports has a worker
        if attempt.stage.kind == "pretrain" and result.get("published") is not None:
            self._policy.publish(attempt.stage.name, int(result["published"]))
            if attempt.ended_s is None and not self._policy.dependents(attempt.stage):
                attempt.ended_s = self._clock()
        if attempt.settled:
            return
        if "outcome" in result:
            self._settle(attempt, result)
            return
        if result.get("saved") is not None:
            losses = self._losses.setdefault(attempt.stage, _Losses())
            mark = (int(result.get("phase") != "pretrain"), int(result["saved"]))
            losses.reached = max(losses.reached, mark)
        self._watcher.progressed(attempt.stage, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Settle a stage that ended without a word: its worker or node was lost."""
        attempt = self._attempts.pop(trial_id, None)
        if attempt is None or attempt.settled:
            return
        if not error and result is not None and "outcome" in result:
            self._settle(attempt, _with_metrics(result))
            return
        stage = attempt.stage
        if self._stopped():
            reason = LOST if attempt.placed_s is not None else NOT_STARTED
            self._settle(attempt, {"outcome": "interrupted", "error": reason})
        elif self._losses.setdefault(stage, _Losses()).one_more() > self._max_failures:
            reason = f"{LOST} {self._max_failures + 1} times in a row without progress; see --max-failures"
            self._settle(attempt, {"outcome": "failed", "error": reason})
        else:
            reason = f"{LOST}; it goes on from its newest state"
            self._settle(attempt, {"outcome": "interrupted", "error": reason, "again": True})

    def _settle(self, attempt: _Attempt, result: Mapping[str, Any]) -> None:
        """Tell the policy and the watcher how an attempt ended."""
        attempt.settled = True
        attempt.ended_s = self._clock() if attempt.ended_s is None else attempt.ended_s
        stage, reason = attempt.stage, result.get("error")
        outcome: Outcome = result["outcome"]
        reason = None if reason is None else str(reason)
        if outcome == "lost" and not self._policy.starts_from_snapshot(stage):
            outcome = "failed"  # something other than a snapshot is damaged: nobody makes it anew
        if outcome == "finished":
            for step in result.get("snapshots", ()):
                self._policy.publish(stage.name, int(step))
            self._policy.finish(stage)
        elif outcome == "lost":
            self._policy.lose(stage)
        elif outcome == "interrupted":
            if result.get("again") and not self._stopped():
                self._policy.requeue(stage)
            else:
                self._policy.abandon(stage)
        else:
            for name in self._policy.fail(stage, str(reason)):
                self._watcher.released(name, f"pre-training {stage.name} failed: {reason}")
        self._watcher.ended(stage, StageResult(outcome, reason, result.get("trouble"), result.get("metrics")))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle to nothing: Tune writes the searcher to its own files, which no run is restored from."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a run goes on from the store, not from Tune's files."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, see `save`."""
