"""The order in which stages start that ends soonest, found by trying orders on a virtual clock.

An order is strict: each stage starts as soon as it fits after the one before it has started, and nothing overtakes
it. So an order says everything that a schedule needs, reservations too: where a whole GPU comes before a quarter of
one, the quarter waits until the GPU is drained and taken. On equal GPUs some order gives a shortest schedule, up to
what the placement adds: a share goes to the fullest GPU that has room, as Ray places it.

Tried are, first, the longest remaining chain, which is near to the least in most search spaces and ends the search
there. Then rules by which stages of whole GPUs go first by more or less, with and without a reservation: while the
first in line finds no empty GPU, the one that is drained soonest is kept for it, and only what ends by then is started
there (EASY backfilling, Lifka 1995). At last, of few stages all orders by branch and bound, of more a local search
that moves one stage at a time (not while settings are tuned: other stages come with every round). What is tried
depends on the stages alone, not on how fast it goes, so that the same stages have the same order everywhere.
"""

from __future__ import annotations

import bisect
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ablate.schedule.machine import UNIT, Machine, Place, Pool

NEAR = 0.02
"""An order within this share of a lower bound, or of what a search could still gain, is not improved."""

SMALL = 8
"""Of so many stages all orders are searched."""

BRANCHES = 4_000
"""Of the search of all orders; beyond, the best one found stands."""

MOVES, PLACEMENTS = 500, 40_000
"""Orders that a local search tries, and stages that it and the rules each place for them, at most."""

RULES = (
    (0.0, True),
    (0.3, False),
    (0.1, True),
    (0.03, True),
    (0.03, False),
    (1.0, False),
    (0.3, True),
    (0.1, False),
    (1.0, True),
)
"""By how much stages of whole GPUs go before others, in multiples of three times the longest chain; if some reserve."""

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
    is_plain: bool = False  # that of the longest chain


def best_order(jobs: Sequence[Job], machine: Machine, pool: Pool, running: Sequence[Running], now_s: float) -> Order:
    """Return the order of jobs that ends soonest among those that are tried.

    Args:
        jobs: those that others are after come before them.
        machine: what stages run on.
        pool: its nodes, with what the running stages hold.
        running: the stages at work.
        now_s: the time from which on jobs start.
    """
    trials = _Trials(jobs, machine, pool, running, now_s)
    best = replace(trials.play(trials.by_rule(0.0, reserves=False)), is_plain=True)
    for bonus, reserves in trials.rules():
        if trials.is_near(best):
            return best
        tried = trials.play(trials.by_rule(bonus, reserves=reserves), best.end_s)
        best = min(best, tried, key=lambda order: order.end_s)
    if trials.is_near(best) or len(jobs) < 2:
        return best
    if len(jobs) <= SMALL:
        return trials.search_all(best)
    return best if any(job.tail_s for job in jobs) else trials.search_near(best)


class _Trials:
    """Tries orders of jobs."""

    def __init__(
        self, jobs: Sequence[Job], machine: Machine, pool: Pool, running: Sequence[Running], now_s: float
    ) -> None:
        self._jobs, self._machine, self._pool, self._now_s = jobs, machine, pool, now_s
        self._running = sorted((stage.end_s, -1 - number, stage) for number, stage in enumerate(running))
        self._behind: list[list[int]] = [[] for _ in jobs]
        for number, job in enumerate(jobs):
            if job.after is not None:
                self._behind[job.after].append(number)
        self._chain_s = [
            max(job.seconds + job.tail_s, *(self._chain_of(number) for number in self._behind[this]), 0.0)
            for this, job in enumerate(jobs)
        ]
        self._largest = max((job.request for job in jobs), default=0)
        self._least_s = self._lower_bound()

    def _chain_of(self, number: int) -> float:
        """Return the seconds from a job's start to the end of what follows a job behind it."""
        job = self._jobs[number]
        return job.delay_s + job.seconds + job.tail_s

    def _lower_bound(self) -> float:
        """Return a time before which no order ends: by the chains, and by all work over what there is."""
        jobs, machine = self._jobs, self._machine
        chains = [job.ready_s + self._chain_s[number] for number, job in enumerate(jobs) if job.after is None]
        bound = max([self._now_s, *chains, *(end_s for end_s, _, _ in self._running)])
        left = [(stage.request, max(0.0, end_s - self._now_s)) for end_s, _, stage in self._running]
        work = [*left, *((job.request, job.seconds) for job in jobs)]
        if machine.gpus:
            held = math.fsum(request * seconds for request, seconds in work) / UNIT
            bound = max(bound, self._now_s + held / machine.gpus)
        if machine.places:
            bound = max(bound, self._now_s + math.fsum(seconds for _, seconds in work) / machine.places)
        return bound

    def is_near(self, order: Order) -> bool:
        """Return whether an order is too near to the lower bound to be improved."""
        return order.end_s - self._now_s <= (1 + NEAR) * (self._least_s - self._now_s)

    def rules(self) -> Iterator[tuple[float, bool]]:
        """Yield rules beside that of the longest chain: the bonus in seconds, and whether they reserve."""
        if len({job.request for job in self._jobs}) < 2:
            return  # nothing is larger
        horizon_s = 3 * max(self._chain_s)
        for bonus, reserves in RULES[: PLACEMENTS // len(self._jobs)]:
            yield bonus * horizon_s, reserves

    # --- an order on the clock --------------------------------------------------------------------------

    def play(self, order: Sequence[int], limit_s: float = math.inf) -> Order:
        """Return the order with its times; it is given up, and said to end never, once it ends after `limit_s`."""
        jobs, pool, now_s, last_s = self._jobs, self._pool.copy(), self._now_s, self._now_s
        ends, starts = list(self._running), dict[int, float]()
        for number in order:
            job = jobs[number]
            now_s = max(now_s, job.ready_s if job.after is None else starts[job.after] + job.delay_s)
            _release(ends, pool, now_s)
            while (place := pool.take(job.request)) is None:
                if not ends:
                    return Order(tuple(order), starts, math.inf)
                now_s = ends[0][0]
                _release(ends, pool, now_s)
            starts[number] = now_s
            end_s = now_s + job.seconds
            heapq.heappush(ends, (end_s, number, Running(end_s, place, job.request)))
            last_s = max(last_s, end_s + job.tail_s)
            if last_s > limit_s:
                return Order(tuple(order), starts, math.inf)
        return Order(tuple(order), starts, max([last_s, *(end_s for end_s, _, _ in self._running)]))

    # --- orders by a rule ---------------------------------------------------------------------------------

    def by_rule(self, bonus_s: float, *, reserves: bool) -> list[int]:
        """Return the order in which jobs start that go by their chain, the largest as if theirs were longer.

        With `reserves`, others go first where the first in line finds no empty GPU, unless they delay it.
        """
        return _Rule(self._jobs, self._behind, self._pool.copy(), list(self._running), self._now_s).order(
            [
                chain_s + bonus_s * (job.request == self._largest)
                for job, chain_s in zip(self._jobs, self._chain_s, strict=True)
            ],
            reserves=reserves,
        )

    # --- all orders, and those near to one ----------------------------------------------------------------

    def search_all(self, best: Order) -> Order:
        """Return the best of all orders, or one that is near to it."""
        jobs, branches = self._jobs, 0
        found, found_s = best.jobs, best.end_s
        held = math.fsum(job.request * job.seconds for job in jobs)

        def longest_s() -> float:
            return self._now_s + (found_s - self._now_s) * (1 - NEAR / 2)

        def place(
            order: tuple[int, ...],
            starts: dict[int, float],
            ends: list[tuple[float, int, Running]],
            pool: Pool,
            now_s: float,
            last_s: float,
            held: float,
        ) -> None:
            nonlocal found, found_s, branches
            if len(order) == len(jobs):
                found, found_s = order, last_s  # sooner than the best before, or it would have been cut off
                return
            ready: list[tuple[float, int, float]] = []
            for number, job in enumerate(jobs):
                if number in starts or (job.after is not None and job.after not in starts):
                    continue
                ready_s = max(now_s, job.ready_s if job.after is None else starts[job.after] + job.delay_s)
                if ready_s + self._chain_s[number] > longest_s():
                    return
                ready.append((-self._chain_s[number], number, ready_s))
            left = held + math.fsum((end_s - now_s) * stage.request for end_s, _, stage in ends if end_s > now_s)
            if self._machine.gpus and now_s + left / UNIT / self._machine.gpus > longest_s():
                return
            alike = set()
            for _, number, ready_s in sorted(ready):
                job = jobs[number]
                like = number if self._behind[number] else (job.request, job.seconds, job.tail_s, ready_s)
                if like in alike or branches >= BRANCHES:
                    continue
                alike.add(like)
                branches += 1
                then_ends, then_pool, then_s = list(ends), pool.copy(), ready_s
                _release(then_ends, then_pool, then_s)
                while (taken := then_pool.take(job.request)) is None and then_ends:
                    then_s = then_ends[0][0]
                    _release(then_ends, then_pool, then_s)
                end_s = then_s + job.seconds
                if taken is None or then_s + self._chain_s[number] > longest_s():
                    continue
                bisect.insort(then_ends, (end_s, number, Running(end_s, taken, job.request)))
                place(
                    (*order, number),
                    {**starts, number: then_s},
                    then_ends,
                    then_pool,
                    then_s,
                    max(last_s, end_s + job.tail_s),
                    held - job.request * job.seconds,
                )

        latest = max([self._now_s, *(end_s for end_s, _, _ in self._running)])
        place((), {}, list(self._running), self._pool, self._now_s, latest, held)
        return best if found == best.jobs else self.play(found)

    def search_near(self, best: Order) -> Order:
        """Return the best order that is found from one by moving a job at a time."""
        draw, length = random.Random(0), len(self._jobs)
        for _ in range(min(MOVES, PLACEMENTS // length)):
            if self.is_near(best):
                break
            order = list(best.jobs)
            number = order.pop(draw.randrange(length))
            to = draw.randrange(length)
            after = self._jobs[number].after
            if after is not None and after in order[to:]:
                continue
            early = [other for other in order[:to] if self._jobs[other].after == number]
            if early:  # they come right behind it
                order = [other for other in order if other not in early]
                to -= len(early)
            order[to:to] = [number, *early]
            tried = self.play(order, best.end_s)
            best = min(tried, best, key=lambda found: found.end_s)  # an equal one too: from there others are near
        return best


class _Rule:
    """Stages on a clock, that start by their priority."""

    def __init__(
        self,
        jobs: Sequence[Job],
        behind: Sequence[Sequence[int]],
        pool: Pool,
        ends: list[tuple[float, int, Running]],
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
            _release(self._ends, self._pool, self._now_s)
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


def _release(ends: list[tuple[float, int, Running]], pool: Pool, now_s: float) -> None:
    """Give back the places of stages that have ended."""
    while ends and ends[0][0] <= now_s:
        _, _, stage = heapq.heappop(ends)
        pool.give_back(stage.place, stage.request)
