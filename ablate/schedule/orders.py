"""The order in which stages start that ends soonest, found by trying orders on a virtual clock.

An order is strict: each stage starts as soon as it fits after the one before it has started, and nothing overtakes
it. So an order says everything that a schedule needs, reservations too: where a whole GPU comes before a quarter of
one, the quarter waits until the GPU is drained and taken. On equal GPUs some order gives a shortest schedule, up to
what the placement adds: a share goes to the fullest GPU that has room, as Ray places it.

Tried are, first, the longest remaining chain, which is near to the least in most search spaces and ends the search
there. Then rules by which stages of whole GPUs go first by more or less, with and without a reservation: while the
first in line finds no empty GPU, the one that is drained soonest is kept for it, and only what ends by then is started
there (EASY backfilling, Lifka 1995). At last, of few stages all orders by branch and bound, of more a local search
that varies the best rule and then moves one stage at a time (not while settings are tuned: other stages come with
every round). What is tried depends on the stages alone, not on how fast it goes, so that the same stages have the same
order everywhere.
"""

from __future__ import annotations

import bisect
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from ablate.schedule.jobs import End, Job, Order, RuleClock, Running, release
from ablate.schedule.machine import UNIT, Machine, Pool

NEAR = 0.02
"""An order within this share of a lower bound, or of what a search could still gain, is not improved."""

SMALL = 8
"""Of so many stages all orders are searched."""

BRANCHES = 4_000
"""Of the search of all orders; beyond, the best one found stands."""

MOVES, PLACEMENTS = 1_000, 60_000
"""Orders that a local search tries, and stages that it places for them, at most."""

RULED = 40_000
"""Stages that the rules place, at most."""

SPREAD, CHANGED = 0.05, 0.2
"""By how much a local search changes chains, as the spread of a logarithm, and the share of those that it changes."""

GUIDED = 0.5
"""Share of the moves by which a job that ends last goes before others, or half as often what it is after."""

LAST = 0.05
"""Jobs end last that end within this share of the time before the end of all."""

Rule: TypeAlias = tuple[float, bool]
"""By how much stages of whole GPUs go before others, in multiples of three times the longest chain; if it reserves."""

PLAIN: Rule = (0.0, False)
"""The longest chain."""

RULES: tuple[Rule, ...] = (
    (0.0, True),
    (0.3, False),
    (0.1, True),
    (0.03, True),
    (0.03, False),
    (1.0, False),
    (0.3, True),
    (0.1, False),
    (0.01, True),
    (0.01, False),
    (1.0, True),
)
"""The others, in the order in which they are tried."""


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
    best, by = replace(trials.by_rule(PLAIN), is_plain=True), PLAIN
    for rule in trials.rules():
        if trials.is_near(best):
            return best
        tried = trials.by_rule(rule, best.end_s)
        if tried.end_s < best.end_s:
            best, by = tried, rule
    if trials.is_near(best) or len(jobs) < 2:
        return best
    if len(jobs) <= SMALL:
        return trials.search_all(best)
    return best if any(job.tail_s for job in jobs) else trials.search_near(best, by)


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
        self._near_s = now_s + (1 + NEAR) * (self._lower_bound() - now_s)

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
        return order.end_s <= self._near_s

    def rules(self) -> Iterator[Rule]:
        """Yield the rules that are worth trying beside that of the longest chain."""
        if len({job.request for job in self._jobs}) < 2:
            return  # nothing is larger
        yield from RULES[: RULED // len(self._jobs)]

    # --- an order on the clock --------------------------------------------------------------------------

    def play(self, order: Sequence[int], limit_s: float = math.inf) -> Order:
        """Return the order with its times; it is given up, and said to end never, once it ends after `limit_s`."""
        jobs, pool, now_s, last_s = self._jobs, self._pool.copy(), self._now_s, self._now_s
        ends, starts, late_s, near_s = list(self._running), dict[int, float](), 0.0, self._near_s
        for number in order:
            job = jobs[number]
            now_s = max(now_s, job.ready_s if job.after is None else starts[job.after] + job.delay_s)
            release(ends, pool, now_s)
            while (place := pool.take(job.request)) is None:
                if not ends:
                    return Order(tuple(order), starts, math.inf)
                now_s = ends[0][0]
                release(ends, pool, now_s)
            starts[number] = now_s
            end_s = now_s + job.seconds
            heapq.heappush(ends, (end_s, number, Running(end_s, place, job.request)))
            last_s = max(last_s, end_s + job.tail_s)
            if last_s > limit_s:
                return Order(tuple(order), starts, math.inf)
            late_s += max(0.0, end_s + job.tail_s - near_s)
        return Order(tuple(order), starts, max([last_s, *(end_s for end_s, _, _ in self._running)]), late_s)

    # --- orders by a rule ---------------------------------------------------------------------------------

    def by_rule(self, rule: Rule, limit_s: float = math.inf, factors: Sequence[float] | None = None) -> Order:
        """Return the order in which jobs start that go by their chain, the largest as if theirs were longer.

        Args:
            rule: by how much, and whether others go first where the first in line finds no empty GPU, unless they
                delay it.
            limit_s: see `play`.
            factors: by which the chains are taken to be longer or shorter; None for as they are.
        """
        bonus, reserves = rule
        bonus_s = bonus * 3 * max(self._chain_s, default=0.0)
        chains = self._chain_s if factors is None else [a * b for a, b in zip(self._chain_s, factors, strict=True)]
        priority = [
            chain_s + bonus_s * (job.request == self._largest) for job, chain_s in zip(self._jobs, chains, strict=True)
        ]
        clock = RuleClock(self._jobs, self._behind, self._pool.copy(), list(self._running), self._now_s)
        return self.play(clock.order(priority, reserves=reserves), limit_s)

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
            ends: list[End],
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
                release(then_ends, then_pool, then_s)
                while (taken := then_pool.take(job.request)) is None and then_ends:
                    then_s = then_ends[0][0]
                    release(then_ends, then_pool, then_s)
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

    def search_near(self, best: Order, rule: Rule) -> Order:
        """Return the best order that is found from one that a rule gave.

        First with chains that are taken to be somewhat longer or shorter, which keeps what the rule is good for; then
        by moving a job at a time, most often one that ends late.
        """
        draw, length = random.Random(0), len(self._jobs)
        factors = [1.0] * length
        for _ in range(min(MOVES, PLACEMENTS // length) // 2):  # each takes about as long as two moves
            if self.is_near(best):
                return best
            other = [old * math.exp(draw.gauss(0.0, SPREAD)) if draw.random() < CHANGED else old for old in factors]
            tried = self.by_rule(rule, best.end_s, other)
            if tried.worth <= best.worth:  # an equal one too: from there others are near
                best, factors = tried, other
        late = self._late(best)
        for _ in range(min(MOVES, PLACEMENTS // length)):
            if self.is_near(best):
                return best
            order = list(best.jobs)
            if late and draw.random() < GUIDED:
                chosen = draw.choice(late)
                after = self._jobs[chosen].after
                at = order.index(chosen if after is None or draw.random() < GUIDED else after)
                to = draw.randrange(at + 1)
            else:
                at, to = draw.randrange(length), draw.randrange(length)
            number = order.pop(at)
            after = self._jobs[number].after
            if after is not None and after in order[to:]:
                continue
            early = [other for other in order[:to] if self._jobs[other].after == number]
            if early:  # they come right behind it
                order = [other for other in order if other not in early]
                to -= len(early)
            order[to:to] = [number, *early]
            tried = self.play(order, best.end_s)
            if tried.worth <= best.worth:
                best, late = tried, self._late(tried)
        return best

    def _late(self, order: Order) -> list[int]:
        """Return the jobs that end last."""
        jobs, late_s = self._jobs, max(self._near_s, order.end_s - LAST * (order.end_s - self._now_s))
        return [
            number
            for number, start_s in order.starts_s.items()
            if start_s + jobs[number].seconds + jobs[number].tail_s > late_s
        ]
