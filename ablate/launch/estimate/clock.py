"""A run on machines that come when stages ask for them and may be taken back, on a virtual clock.

The longest chain goes first, as in a run while machines may come, and stages take their places as in
`ablate.schedule.simulate`. Where all machines stand, a run plans the order ahead, and mostly ends sooner than here.
As many stages are offered at a time as the cluster holds at its largest, and one more: what a run offers to Ray. What
an autoscaler does is kept: it packs the stages that wait onto the machines that are on their way, and asks for another
one for each that finds no room, of the smallest type that fits; a machine that was idle for a while is given back.
What is left out: that a cloud may have no machine to give, and that launches go out in rounds.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ablate.launch.backend import MachineType
from ablate.schedule.fitting import Request, Shape
from ablate.schedule.machine import UNIT, Place, Pool
from ablate.schedule.policy import Policy
from ablate.schedule.simulate import Span
from ablate.schedule.stages import WHOLE, Stage, StageKind

LOOK_S = 5.0
"""An autoscaler looks at its cluster this often (Ray's AUTOSCALER_UPDATE_INTERVAL_S)."""

Lifetime: TypeAlias = Callable[[], float]
"""Draws the seconds from a spot machine's coming up to its being taken back; infinite for never."""


def forever() -> float:
    """Return the lifetime of a machine that nobody takes back."""
    return math.inf


@dataclass(frozen=True)
class Terms:
    """What a run asks for, and how machines come and go."""

    pretrain: Request  # also of a whole trial
    finetune: Request
    max_concurrent: int | None = None  # most stages at a time, those that wait among them
    max_machines: int | None = None  # of all types together
    standing: Mapping[str, int] = field(default_factory=dict)  # by type: machines that are there all the time
    queue_s: float = 0.0  # from the request for a machine to its first stage
    idle_s: float = 300.0  # after which an idle machine is given back
    checkpoint_s: float = 300.0  # between the states that a stage saves
    restart_s: float = 60.0  # of a stage that goes on elsewhere, before it trains

    def request(self, stage: Stage) -> Request:
        """Return what a stage asks for."""
        return self.pretrain if stage.kind in WHOLE else self.finetune

    def usable(self, shape: Shape) -> Shape:
        """Return what stages can use of a machine: not GPUs of another type than is asked for."""
        kind = self.pretrain.accelerator_type
        return shape if kind is None or kind in shape.accelerator_types else Shape(shape.cpus)


@dataclass(frozen=True)
class Stay:
    """One machine, from the request for it to its end."""

    kind: MachineType
    asked_s: float
    up_s: float
    end_s: float
    interrupted: bool = False

    @property
    def hours(self) -> float:
        """Hours that are paid for: start-up and idle time count."""
        return (self.end_s - self.asked_s) / 3600


@dataclass(frozen=True)
class Course:
    """What ran when, and which machines were there."""

    spans: tuple[Span, ...]  # an attempt at a stage each, by start
    stays: tuple[Stay, ...]  # by end
    makespan_s: float  # infinite if it was not over at the limit

    @property
    def interruptions(self) -> int:
        """How many machines were taken back."""
        return sum(stay.interrupted for stay in self.stays)


def play(
    policy: Policy,
    kinds: Sequence[MachineType],
    terms: Terms,
    *,
    lifetime: Lifetime = forever,
    limit_s: float = math.inf,
    ended: Callable[[Stage], None] = lambda stage: None,
) -> Course:
    """Run `policy` to its end; stages take what it expects them to take.

    A stage whose machine is taken back loses what it did since its last saved state, though clouds announce the end
    and a stage then saves its state, and is offered again at once.

    Args:
        policy: of a fresh run; it is over afterwards.
        kinds: the types of machine; one of them must fit each stage.
        terms: what stages ask for, and how machines come and go.
        lifetime: asked once for each spot machine that comes up.
        limit_s: seconds after which a run that is not over is given up.
        ended: is told of each stage that is over, and may add trials to the policy.
    """
    return _Clock(policy, kinds, terms, lifetime, ended).run(limit_s)


@dataclass(eq=False)
class _Machine:
    """A machine that was asked for."""

    kind: MachineType
    asked_s: float
    node: int  # of those on their way, then of those that are up
    up_s: float = math.inf
    idle_since: float = math.inf
    attempts: dict[Stage, _Attempt] = field(default_factory=dict)
    is_gone: bool = False


@dataclass(eq=False)
class _Attempt:
    """A stage on a machine."""

    stage: Stage
    place: Place
    machine: _Machine
    start_s: float
    lead_s: float  # before it trains
    is_over: bool = False


class _Clock:
    def __init__(
        self,
        policy: Policy,
        kinds: Sequence[MachineType],
        terms: Terms,
        lifetime: Lifetime,
        ended: Callable[[Stage], None],
    ) -> None:
        self._policy, self._terms, self._lifetime, self._ended = policy, terms, lifetime, ended
        usable = [(kind, terms.usable(kind.shape)) for kind in kinds if kind.max_count > 0]
        self._kinds = sorted(usable, key=lambda item: (item[1].gpus, item[1].cpus))  # as asked for: smallest first
        self._pool, self._coming, self._largest = (Pool(terms.pretrain.cpus) for _ in range(3))
        self._held: dict[Stage, Place] = {}  # on the cluster at its largest, of all stages that are offered
        self._beyond: Stage | None = None  # the one that is offered beyond those
        self._planned: dict[Stage, Place] = {}  # on the machines on their way
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        whole, part = (round(UNIT * request.gpus) for request in (terms.pretrain, terms.finetune))
        self._share: dict[StageKind, int] = {"pretrain": whole, "trial": whole, "finetune": part, "tune": part}
        self._waiting: dict[Stage, None] = {}  # in the order in which they were offered
        self._starting: list[_Machine] = []
        self._up: dict[int, _Machine] = {}  # by node
        self._count: Counter[str] = Counter()
        self._marks: dict[Stage, dict[int, float]] = {}  # seconds of work to each snapshot, from nothing
        self._saved: dict[Stage, float] = {}  # seconds of work in the newest state of a stage that was interrupted
        self._spans: list[Span] = []
        self._stays: list[Stay] = []
        self._now = 0.0
        enough = 2 * (policy.num_trials + policy.num_tuning)  # stages that there are at most
        most = [shape for kind, shape in self._kinds for _ in range(min(kind.max_count, enough))]
        for shape in most[: terms.max_machines]:
            self._largest.add(shape)

    def run(self, limit_s: float) -> Course:
        for kind, _ in self._kinds:
            for _ in range(self._standing(kind)):
                self._ask_for(kind)
        while not self._policy.is_over and self._now <= limit_s:
            self._place()
            self._grow()
            self._now = self._events[0][0]
            while self._events and self._events[0][0] == self._now:
                heapq.heappop(self._events)[2]()
        for machine in [*self._up.values(), *self._starting]:
            self._end(machine)
        makespan_s = self._now if self._policy.is_over else math.inf
        return Course(tuple(sorted(self._spans, key=lambda span: span.start_s)), tuple(self._stays), makespan_s)

    def _at(self, moment_s: float, do: Callable[[], None]) -> None:
        if moment_s < math.inf:
            heapq.heappush(self._events, (moment_s, next(self._order), do))

    # --- stages

    def _place(self) -> None:
        """Start the stages that fit, in the order in which they were offered; then offer more."""
        refused = set[int]()
        for stage in [*self._waiting]:
            self._try(stage, refused)
        while (offered := self._next()) is not None:
            self._policy.started(offered)
            self._waiting[offered] = None
            self._hold(offered)
            self._try(offered, refused)

    def _try(self, stage: Stage, refused: set[int]) -> None:
        """Start a waiting stage if it fits now; `refused` is what did not fit since the last event."""
        share = self._share[stage.kind]
        place = self._pool.take(share) if share not in refused else None
        if place is None:
            refused.add(share)
        else:
            self._start(stage, place)

    def _next(self) -> Stage | None:
        """Return the stage to offer now; None if there is none, or enough are offered."""
        most = self._terms.max_concurrent
        if self._beyond is not None or (most is not None and len(self._policy.running) >= most):
            return None
        return self._policy.next()

    def _hold(self, stage: Stage) -> None:
        """Give a stage that is offered its place on the cluster at its largest."""
        place = self._largest.take(self._share[stage.kind])
        if place is None:
            self._beyond = stage
        else:
            self._held[stage] = place

    def _release(self, stage: Stage) -> None:
        if stage == self._beyond:
            self._beyond = None
            return
        self._largest.give_back(self._held.pop(stage), self._share[stage.kind])
        if self._beyond is not None:
            beyond, self._beyond = self._beyond, None
            self._hold(beyond)

    def _start(self, stage: Stage, place: Place) -> None:
        del self._waiting[stage]
        if stage in self._planned:
            self._coming.give_back(self._planned.pop(stage), self._share[stage.kind])
        machine = self._up[place.node]
        lead_s = self._terms.restart_s if stage in self._saved else 0.0
        attempt = _Attempt(stage, place, machine, self._now, lead_s)
        machine.attempts[stage], machine.idle_since = attempt, math.inf
        done_s = self._saved.get(stage, 0.0)
        ends_s = self._policy.stage_seconds(stage) - done_s
        if stage.kind == "pretrain":
            marks = self._marks.setdefault(stage, self._policy.snapshot_seconds(stage))
            steps = self._policy.pretraining(stage)[1]
            for step in steps:
                self._at(self._now + lead_s + (marks[step] - done_s), functools.partial(self._publish, attempt, step))
            ends_s = max(marks[step] for step in steps) - done_s
        self._at(self._now + lead_s + ends_s, functools.partial(self._finish, attempt))

    def _publish(self, attempt: _Attempt, step: int) -> None:
        if not attempt.is_over:
            self._policy.publish(attempt.stage.name, step)

    def _finish(self, attempt: _Attempt) -> None:
        if not attempt.is_over:
            self._leave(attempt)
            self._saved.pop(attempt.stage, None)
            self._policy.finish(attempt.stage)
            self._ended(attempt.stage)

    def _lose(self, attempt: _Attempt) -> None:
        """Let a stage go on elsewhere, from what it had saved."""
        trained_s = max(0.0, self._now - attempt.start_s - attempt.lead_s)
        each_s = self._terms.checkpoint_s
        kept_s = math.floor(trained_s / each_s) * each_s if each_s else trained_s
        self._saved[attempt.stage] = self._saved.get(attempt.stage, 0.0) + kept_s
        self._leave(attempt)
        self._policy.requeue(attempt.stage)

    def _leave(self, attempt: _Attempt) -> None:
        """Note that an attempt is over, and free its place."""
        attempt.is_over = True
        stage, machine, share = attempt.stage, attempt.machine, self._share[attempt.stage.kind]
        self._pool.give_back(attempt.place, share)
        self._release(stage)
        self._spans.append(Span(stage, attempt.start_s, self._now, attempt.place.gpus, share, attempt.place.node))
        del machine.attempts[stage]
        if not machine.attempts:
            self._rest(machine)

    # --- machines

    def _grow(self) -> None:
        """Ask for machines for the stages that wait and find no room on those on their way."""
        refused = set[int]()
        for stage in self._waiting:
            share = self._share[stage.kind]
            if stage in self._planned or share in refused:
                continue
            place = self._coming.take(share)
            kind = self._smallest(self._terms.request(stage)) if place is None else None
            if kind is not None:
                self._ask_for(kind)
                place = self._coming.take(share)
            if place is None:
                refused.add(share)
            else:
                self._planned[stage] = place

    def _smallest(self, request: Request) -> MachineType | None:
        """Return the smallest type of machine that fits and of which there may be another one."""
        most = self._terms.max_machines
        if most is not None and self._count.total() >= most:
            return None
        for kind, usable in self._kinds:
            if usable.cpus >= request.cpus and usable.gpus >= request.gpus and self._count[kind.name] < kind.max_count:
                return kind
        return None

    def _standing(self, kind: MachineType) -> int:
        return min(kind.max_count, self._terms.standing.get(kind.name, 0))

    def _ask_for(self, kind: MachineType) -> None:
        machine = _Machine(kind, self._now, node=self._coming.add(self._terms.usable(kind.shape)))
        self._count[kind.name] += 1
        self._starting.append(machine)
        self._at(self._now + self._terms.queue_s, functools.partial(self._arrive, machine))

    def _arrive(self, machine: _Machine) -> None:
        self._starting.remove(machine)
        self._coming.remove(machine.node)
        self._planned = {stage: place for stage, place in self._planned.items() if place.node != machine.node}
        machine.up_s = self._now
        machine.node = self._pool.add(self._terms.usable(machine.kind.shape))
        self._up[machine.node] = machine
        self._rest(machine)
        if machine.kind.spot:
            self._at(self._now + self._lifetime(), functools.partial(self._take_back, machine))

    def _rest(self, machine: _Machine) -> None:
        """Give a machine back later, if it is idle until then and is not one of those that stand."""
        machine.idle_since = since = self._now

        def give_back() -> None:
            if machine.idle_since != since or machine.is_gone:
                return
            if self._count[machine.kind.name] > self._standing(machine.kind):
                self._remove(machine)
            else:
                self._rest(machine)  # looks again later

        if self._standing(machine.kind) < machine.kind.max_count and not machine.is_gone:
            self._at(self._now + max(self._terms.idle_s, LOOK_S), give_back)

    def _take_back(self, machine: _Machine) -> None:
        """Interrupt a spot machine; for one of those that stand, another one comes."""
        if machine.is_gone:
            return
        self._remove(machine, interrupted=True)
        for attempt in [*machine.attempts.values()]:
            self._lose(attempt)
        if self._count[machine.kind.name] < self._standing(machine.kind):
            self._ask_for(machine.kind)

    def _remove(self, machine: _Machine, *, interrupted: bool = False) -> None:
        machine.is_gone = True
        self._pool.remove(machine.node)
        del self._up[machine.node]
        self._count[machine.kind.name] -= 1
        self._end(machine, interrupted=interrupted)

    def _end(self, machine: _Machine, *, interrupted: bool = False) -> None:
        up_s = min(machine.up_s, self._now)
        self._stays.append(Stay(machine.kind, machine.asked_s, up_s, self._now, interrupted))
