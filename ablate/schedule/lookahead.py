"""The choice of the next stage with an eye to all that is left, where it is known what stages run on.

The order of the stages that are left is planned by `ablate.schedule.orders`, and held to while things go as planned.
Stages of whole GPUs and of shares then do not wait for each other for long: a share may wait so that a GPU is drained,
or a GPU stay empty for the moments until a snapshot is published. The plan is made anew when stages have come or failed
that it does not know, when it runs ahead or behind, and when what it waits for is late. What stages that ended took,
against what they were expected to take, corrects what those to come are expected to take.

Which GPU a stage has is not told: it is taken to be the one of Ray's best fit. That may be wrong where Ray keeps a
worker, and so its share of a GPU, for the next stage of its kind, where nodes are not alike, and where somebody else is
on the cluster; then a stage waits longer for its place than was planned, and what comes behind it waits with it, or is
placed where it should not have been.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ablate.schedule.costs import Ratios
from ablate.schedule.jobs import Job, Running
from ablate.schedule.machine import Machine, Place, Pool
from ablate.schedule.orders import best_order
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Costs, Stage
from ablate.space import Pretraining, TrialSpec

DRIFT = 0.05
"""A plan is made anew when it is ahead or behind by this share of what was left of it, and by `MOMENTS_S`."""

MOMENTS_S = 2.0
"""By so much a plan may be off whatever its length: a worker's start takes as long."""

NEWS = 0.1
"""A plan is made anew when stages that it does not know are this share of its own; before, they go by their chain."""

LATE = 0.1
"""A stage that takes longer than expected is expected to take this share more of what it has taken so far."""

WRONG = 0.1
"""What a stage took must be off by this share for the costs of those to come to be corrected."""


@dataclass
class _AtWork:
    """A stage that has its place; seconds are as they were expected at its start."""

    start_s: float
    seconds: float
    request: int
    place: Place | None  # None where it does not fit what is known of the machine
    snapshots: dict[int, float] = field(default_factory=dict)  # step -> seconds from the start
    pace: float = 1.0  # what it took to its newest snapshot, over what was expected

    def when_s(self, seconds: float, now_s: float) -> float:
        """Return when what was expected after so many seconds will have happened, given that it has not yet."""
        expected = self.start_s + seconds * self.pace
        return expected if expected > now_s else now_s + LATE * (now_s - self.start_s)


class Lookahead:
    """Chooses the next stage of a policy, which follows it from now on.

    Args:
        policy: has the stages.
        machine: what they run on; None where that cannot be said, and the longest chain goes first; see `use`.
        clock: seconds that only grow.
    """

    def __init__(self, policy: Policy, machine: Machine | None, *, clock: Callable[[], float]) -> None:
        self._policy, self._clock = policy, clock
        self._expected = policy.costs
        self._machine: Machine | None = None
        self._taken: dict[Stage, None] = {}  # without a place
        self._at_work: dict[Stage, _AtWork] = {}
        self._seen: set[Stage] = set()  # stages that were started before
        self._plan: deque[Stage] = deque()
        self._starts_s: dict[Stage, float] = {}  # of the stages that were planned
        self._slack_s = 0.0
        self._is_stale = True
        self._goes_by_chain = False  # while settings are tuned, and most of what is to come is not known
        self._news: list[tuple[float, int, Stage]] = []  # a heap of what can start and was not planned
        self._num_news = 0
        self._took: list[tuple[Pretraining | TrialSpec, float]] = []
        self._is_wrong = False
        self.use(machine)
        policy.follow(self)

    def use(self, machine: Machine | None) -> None:
        """Take stages to run on this machine from now on; those at work keep their places as far as they fit."""
        if machine == self._machine:
            return
        self._machine, self._is_stale = machine, True
        if machine is not None:
            self._pool = Pool.of(machine)
            for stage, at in self._at_work.items():
                at.request = machine.request(stage)
                at.place = self._pool.take(at.request)

    # --- what it is told ----------------------------------------------------------------------------------

    def offered(self, stage: Stage) -> None:
        """Note a stage that can start; one that was not planned is news."""
        if stage not in self._starts_s:
            self._num_news += 1
            heapq.heappush(self._news, (-self._policy.chain_seconds(stage), self._num_news, stage))

    def started(self, stage: Stage) -> None:
        """Note a stage that was taken: what is not planned for it waits until it has its place."""
        self._taken[stage] = None
        if self._plan and self._plan[0] == stage:
            self._plan.popleft()

    def placed(self, stage: Stage) -> None:
        """Note that a stage has its place, and whether that is when it was planned."""
        if stage not in self._taken:
            return
        del self._taken[stage]
        now_s, policy = self._clock(), self._policy
        request, place = 0, None
        if self._machine is not None:
            request = self._machine.request(stage)
            place = self._pool.take(request)
        steps = policy.snapshot_seconds(stage) if stage.kind == "pretrain" else {}
        self._at_work[stage] = _AtWork(now_s, policy.stage_seconds(stage), request, place, steps)
        planned_s = self._starts_s.pop(stage, None)
        if planned_s is not None and abs(now_s - planned_s) > self._slack_s:
            self._is_stale = True

    def published(self, key: str, step: int) -> None:
        """Note how long a snapshot took."""
        at = self._at_work.get(Stage("pretrain", key))
        expected_s = 0.0 if at is None else at.snapshots.get(step, 0.0)
        if at is not None and expected_s > 0:
            pace = (self._clock() - at.start_s) / expected_s
            at.pace = pace if abs(pace - 1) > WRONG else 1.0

    def ended(self, stage: Stage, *, finished: bool) -> None:
        """Note that a stage is over, and what it took."""
        self._taken.pop(stage, None)
        self._starts_s.pop(stage, None)
        at = self._at_work.pop(stage, None)
        if at is not None and at.place is not None:
            self._pool.give_back(at.place, at.request)
        if not finished:
            self._is_stale = True
        elif at is not None and at.seconds > 0 and stage.kind != "trial" and stage not in self._seen:
            spec = self._policy.pretraining(stage)[0] if stage.kind == "pretrain" else self._policy.trial(stage)
            ratio = (self._clock() - at.start_s) / at.seconds
            self._took.append((spec, ratio))
            self._is_wrong |= abs(ratio - 1) > WRONG
        self._seen.add(stage)  # another attempt goes on from a state, and says nothing of the whole

    # --- the choice ---------------------------------------------------------------------------------------

    def choose(self, longest: Stage) -> Stage | None:
        """Return the stage to start now; None to wait for a place, or for a snapshot that is about to come."""
        if self._machine is None:
            return longest
        if self._taken and not self._all_fit():
            return None  # nothing overtakes what waits for its place
        if self._is_stale or self._num_news > NEWS * len(self._starts_s):
            self._make_plan(self._machine)
        if self._goes_by_chain:
            return longest
        head = self._head()
        if head is not None and not self._policy.can_start(head) and self._is_late(head):
            self._make_plan(self._machine)
            head = self._head()
        waits = head is not None and not self._policy.can_start(head)
        new = self._new()
        if new is not None and (head is None or waits or self._chain_s(new) > self._chain_s(head)):
            return new
        return None if waits else head or longest

    def _chain_s(self, stage: Stage) -> float:
        return self._policy.chain_seconds(stage)

    def _is_late(self, stage: Stage) -> bool:
        """Return whether a stage should have started, as far as its plan can be told to be off."""
        return self._clock() > self._starts_s[stage] + self._slack_s

    def _head(self) -> Stage | None:
        """Return the first stage of the plan that is still to start."""
        coming: set[Stage] | None = None
        while self._plan:
            head = self._plan[0]
            if self._policy.can_start(head):
                return head
            if coming is None:
                coming = {stage for stages in self._awaited().values() for stage, _ in stages}
            if head in coming:
                return head
            self._plan.popleft()
        return None

    def _new(self) -> Stage | None:
        """Return the stage with the longest chain among those that were not planned and can start."""
        while self._news and not self._policy.can_start(self._news[0][2]):
            heapq.heappop(self._news)
        return self._news[0][2] if self._news else None

    def _awaited(self) -> dict[Stage, list[tuple[Stage, int]]]:
        """Return what waits for snapshots of the pre-trainings at work, each with the snapshot's step."""
        return {
            stage: [(other, step) for step, others in self._policy.waiting(stage).items() for other in others]
            for stage in self._policy.running
            if stage.kind == "pretrain"
        }

    def _all_fit(self) -> bool:
        """Return whether there is room for all stages that were taken and have no place yet."""
        assert self._machine is not None
        pool = self._pool.copy()
        return all(pool.take(self._machine.request(stage)) is not None for stage in self._taken)

    # --- the plan -------------------------------------------------------------------------------------------

    def _make_plan(self, machine: Machine) -> None:
        """Plan the order of all stages that are left."""
        now_s, policy = self._clock(), self._policy
        if self._is_wrong:
            policy.revise(_corrected(self._expected, self._took))
            self._is_wrong = False
        pool, running = self._pool.copy(), list[Running]()
        for at in self._at_work.values():
            if at.place is not None:
                running.append(Running(at.when_s(at.seconds, now_s), at.place, at.request))
        for stage in self._taken:  # about to be placed
            request = machine.request(stage)
            place = pool.take(request)
            if place is not None:
                running.append(Running(now_s + policy.stage_seconds(stage), place, request))
        stages: list[Stage] = []
        jobs: list[Job] = []

        def add(stage: Stage, *, after: int | None = None, delay_s: float = 0.0, ready_s: float = now_s) -> None:
            seconds, tail_s = policy.stage_seconds(stage), policy.behind_seconds(stage)
            stages.append(stage)
            jobs.append(Job(machine.request(stage), seconds, after, delay_s, ready_s, tail_s))

        for stage in sorted(policy.ready, key=_name):
            add(stage)
            if stage.kind == "pretrain":
                this, delays = len(jobs) - 1, policy.snapshot_seconds(stage)
                for step, others in sorted(policy.waiting(stage).items()):
                    for other in sorted(others, key=_name):
                        add(other, after=this, delay_s=delays[step])
        for stage, waiting in sorted(self._awaited().items(), key=lambda item: _name(item[0])):
            begun, delays = self._at_work.get(stage), policy.snapshot_seconds(stage)
            for other, step in sorted(waiting, key=lambda item: (item[1], _name(item[0]))):
                if begun is None or step not in begun.snapshots:  # it waits for its place, or was asked for since
                    add(other, ready_s=now_s + delays[step])
                else:
                    add(other, ready_s=begun.when_s(begun.snapshots[step], now_s))
        order = best_order(jobs, machine, pool, running, now_s)
        self._plan = deque(stages[number] for number in order.jobs)
        self._starts_s = {stages[number]: start_s for number, start_s in order.starts_s.items()}
        self._goes_by_chain = order.is_plain and any(job.tail_s for job in jobs)
        self._slack_s = max(MOMENTS_S, DRIFT * (order.end_s - now_s))
        self._news.clear()
        self._num_news, self._is_stale = 0, False


def _name(stage: Stage) -> tuple[str, str]:
    return stage.kind, stage.name


def _corrected(expected: Costs, took: list[tuple[Pretraining | TrialSpec, float]]) -> Costs:
    """Return costs by what stages took in multiples of what they were expected to take."""
    ratios = Ratios()
    for spec, ratio in took:
        if isinstance(spec, TrialSpec):
            ratios.add_finetuning(spec, ratio)
        else:
            ratios.add_pretraining(spec, ratio)
    return ratios.scale(expected)
