"""The schedule of a search space on so many GPUs, simulated.

A virtual clock drives the policy that a run asks for its next stage, in the order that a run plans, see `lookahead`.
Stages are placed as Ray places them, see `machine`. A stage that was offered and does not fit waits, while nothing
behind it starts (on a cluster that may grow, several wait, see `Machine.pending`). Left out are the time to start a
worker, failures, and, where CPUs are not counted, the borders of machines, which a stage of several GPUs may not cross.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from ablate.schedule.lookahead import Lookahead
from ablate.schedule.machine import UNIT, Machine, Place, Pool
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Stage


@dataclass(frozen=True)
class Span:
    """When and where a stage ran."""

    stage: Stage
    start_s: float
    end_s: float
    gpus: tuple[int, ...]  # numbers of the GPUs
    request: int  # GPUs in units of 1 / UNIT
    node: int = 0  # its number; 0 where CPUs are not counted


@dataclass(frozen=True)
class Schedule:
    """When and where every stage ran."""

    machine: Machine
    spans: tuple[Span, ...]  # by start

    @property
    def makespan_s(self) -> float:
        """Seconds from the first start to the last end."""
        return max((span.end_s for span in self.spans), default=0.0)

    @property
    def gpu_seconds(self) -> float:
        """Seconds that GPUs were held, weighted by the share."""
        return math.fsum((span.end_s - span.start_s) * span.request for span in self.spans) / UNIT

    @property
    def stage_seconds(self) -> float:
        """Seconds of all stages."""
        return math.fsum(span.end_s - span.start_s for span in self.spans)

    @property
    def idle_share(self) -> float:
        """Share of the GPUs' time until the last end, or of the slots' where there is no GPU, that nothing held."""
        if self.machine.gpus:
            held, width = self.gpu_seconds, self.machine.gpus
        else:
            held, width = self.stage_seconds, self.machine.slots or 1
        return 1 - held / (width * self.makespan_s) if self.makespan_s else 0.0


def simulate(
    policy: Policy,
    machine: Machine,
    ended: Callable[[Stage], None] = lambda stage: None,
    *,
    looks_ahead: bool = True,
) -> Schedule:
    """Run `policy` to its end on a virtual clock; stages take the seconds that it expects them to take.

    As in a run, up to `machine.pending` stages are taken from the policy at a time, and wait until they fit.

    Args:
        policy: of a fresh run; it is over afterwards.
        machine: what the stages run on.
        ended: is told of each stage that is over, and may add trials to the policy.
        looks_ahead: whether `Lookahead` chooses, as in a run on a cluster that does not grow; otherwise, and where
            several stages wait at a time, the longest chain goes first.
    """
    pool, spans, waiting = Pool.of(machine), list[Span](), list[Stage]()
    events: list[tuple[float, int, Span, int | None]] = []  # when, order, what, its snapshot or None at its end
    order, now = itertools.count(), 0.0
    if looks_ahead and machine.pending == 1:
        Lookahead(policy, machine, clock=lambda: now)

    def start_one() -> bool:
        """Start the first waiting stage that fits."""
        for stage in waiting:
            request = machine.request(stage)
            place = pool.take(request)
            if place is None:
                continue
            steps = policy.snapshot_seconds(stage) if stage.kind == "pretrain" else {}
            seconds = policy.stage_seconds(stage)
            span = Span(stage, now, now + seconds, place.gpus, request, place.node)
            for step, after in steps.items():
                heapq.heappush(events, (now + after, next(order), span, step))
            heapq.heappush(events, (span.end_s, next(order), span, None))
            spans.append(span)
            waiting.remove(stage)
            policy.placed(stage)
            return True
        return False

    while True:
        started = True
        while started:
            while len(waiting) < machine.pending and (offered := policy.next()) is not None:
                policy.started(offered)
                waiting.append(offered)
            started = start_one()
        if not events:
            break
        now = events[0][0]
        while events and events[0][0] == now:
            _, _, span, step = heapq.heappop(events)
            if step is not None:
                policy.publish(span.stage.name, step)
            else:
                pool.give_back(Place(span.node, span.gpus), span.request)
                policy.finish(span.stage)
                ended(span.stage)
    assert not waiting
    assert policy.is_over
    return Schedule(machine, tuple(spans))
