"""Stages that have not started, as jobs on a virtual clock, and the order in which a rule starts them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ablate.schedule.machine import UNIT, Place, Pool

LOOKS = 8
"""Stages that are looked at for one that ends before a reservation begins."""


@dataclass(frozen=True)
class Job:
    """A stage that has not started."""

    request: int  # GPUs in units of 1 / UNIT
    seconds: float
    after: int | None = None  # number of the job whose snapshot it starts from
    delay_s: float = 0.0  # from that job's start to the snapshot
    ready_s: float = 0.0  # when it can start, where it is after no job
    tail_s: float = 0.0  # of what follows it


@dataclass(frozen=True)
class Running:
    """A stage that holds its place."""

    end_s: float
    place: Place
    request: int


@dataclass(frozen=True)
class Order:
    """Numbers of jobs in the order in which they start."""

    jobs: tuple[int, ...]
    starts_s: dict[int, float]
    end_s: float  # of all, with what follows them; infinite if a job finds no place
    late_s: float = math.inf  # seconds by which jobs end too late to be near to the lower bound, summed
    is_plain: bool = False  # that of the longest chain

    @property
    def worth(self) -> tuple[float, float]:
        """The less, the better."""
        return self.end_s, self.late_s


End: TypeAlias = tuple[float, int, Running]
"""When a stage ends, a number that no other has, and the stage."""


class RuleClock:
    """Stages on a clock, that start by their priority."""

    def __init__(
        self,
        jobs: Sequence[Job],
        behind: Sequence[Sequence[int]],
        pool: Pool,
        ends: list[End],
        now_s: float,
    ) -> None:
        self._jobs, self._behind, self._pool, self._ends, self._now_s = jobs, behind, pool, ends, now_s
        self._until_s: dict[int, float] = {}  # GPU -> when the last of its stages ends
        for end_s, _, stage in ends:
            self._hold(stage.place, end_s)

    def _hold(self, place: Place, end_s: float) -> None:
        for gpu in place.gpus:
            self._until_s[gpu] = max(end_s, self._until_s.get(gpu, 0.0))

    def order(self, priority: Sequence[float], *, reserves: bool) -> list[int]:
        """Return the jobs in the order in which they start; those that never find a place come last."""
        order: list[int] = []
        lines: dict[int, list[tuple[float, int]]] = {}  # by request: the jobs that can start
        coming = [(job.ready_s, number) for number, job in enumerate(self._jobs) if job.after is None]
        heapq.heapify(coming)
        while coming or any(lines.values()):
            while coming and coming[0][0] <= self._now_s:
                _, number = heapq.heappop(coming)
                heapq.heappush(lines.setdefault(self._jobs[number].request, []), (-priority[number], number))
            release(self._ends, self._pool, self._now_s)
            for number in self._start(lines, reserves=reserves):
                order.append(number)
                for other in self._behind[number]:
                    heapq.heappush(coming, (self._now_s + self._jobs[other].delay_s, other))
            moments = [line[0][0] for line in (coming, self._ends) if line]
            if not moments:
                break
            self._now_s = max(self._now_s, min(moments))
        left = set(range(len(self._jobs))) - set(order)
        return order + sorted(left)

    def _start(self, lines: dict[int, list[tuple[float, int]]], *, reserves: bool) -> list[int]:
        """Start what starts now."""
        started: list[int] = []
        stuck: set[int] = set()  # requests of which nothing starts now
        kept, kept_s = frozenset[int](), math.inf
        while heads := [line[0] for request, line in lines.items() if line and request not in stuck]:
            request = self._jobs[min(heads)[1]].request
            place = self._pool.take(request)
            if place is None:
                if not reserves:
                    break
                if not stuck and request >= UNIT:
                    kept, kept_s = self._soonest(request // UNIT)
                stuck.add(request)
                continue
            number = self._first(lines[request], kept_s if kept.intersection(place.gpus) else math.inf)
            if number is None:
                self._pool.give_back(place, request)
                stuck.add(request)
                continue
            started.append(number)
            end_s = self._now_s + self._jobs[number].seconds
            self._hold(place, end_s)
            heapq.heappush(self._ends, (end_s, number, Running(end_s, place, request)))
        return started

    def _first(self, line: list[tuple[float, int]], until_s: float) -> int | None:
        """Take the first of a line that ends in time."""
        passed: list[tuple[float, int]] = []
        found = None
        while line and found is None and len(passed) < LOOKS:
            head = heapq.heappop(line)
            if self._now_s + self._jobs[head[1]].seconds <= until_s:
                found = head[1]
            else:
                passed.append(head)
        for head in passed:
            heapq.heappush(line, head)
        return found

    def _soonest(self, num_gpus: int) -> tuple[frozenset[int], float]:
        """Return the GPUs of one node that are drained soonest, and when."""
        found: list[tuple[float, tuple[int, ...]]] = []
        for _, gpus in self._pool.gpus():
            drained = sorted((self._until_s.get(gpu, 0.0), gpu) for gpu in gpus)[:num_gpus]
            if len(drained) == num_gpus:
                found.append((drained[-1][0], tuple(gpu for _, gpu in drained)))
        until_s, gpus = min(found, default=(math.inf, ()))
        return frozenset(gpus), until_s


def release(ends: list[End], pool: Pool, now_s: float) -> None:
    """Give back the places of stages that have ended."""
    while ends and ends[0][0] <= now_s:
        _, _, stage = heapq.heappop(ends)
        pool.give_back(stage.place, stage.request)
