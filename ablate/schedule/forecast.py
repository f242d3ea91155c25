"""The seconds that a search space takes on a machine, beside bounds below which no schedule can end."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ablate.schedule.machine import UNIT, Machine
from ablate.schedule.rounds import rehearsal
from ablate.schedule.simulate import Schedule, simulate
from ablate.schedule.stages import Costs, Stage
from ablate.space import Plan

SEARCH_NODES = 20_000
"""Branches after which the search for the best packing gives up and returns a proven bound."""


def best_packing(lengths: Sequence[float], lanes: int) -> float:
    """Return the least makespan of indivisible jobs on equal lanes, or a proven lower bound where there are many jobs.

    The bound is the largest of the longest job, the mean load and, for k = 2, 3, ...: of the (k - 1) * lanes + 1
    longest jobs some k share a lane, and take at least as long as the k shortest of them. Between it and the longest
    jobs first a depth-first search finds the optimum, in at most `SEARCH_NODES` branches.
    """
    jobs = sorted((length for length in lengths if length > 0), reverse=True)
    if not jobs:
        return 0.0
    bound = max(jobs[0], math.fsum(jobs) / lanes)
    for crowd in range(2, (len(jobs) - 1) // lanes + 2):
        last = (crowd - 1) * lanes + 1
        bound = max(bound, math.fsum(jobs[last - crowd : last]))
    best = _longest_first(jobs, lanes)
    nodes = 0

    def place(index: int, loads: list[float]) -> None:
        nonlocal best, nodes
        if index == len(jobs):
            best = max(loads)  # below the best before, or it would have been cut off
            return
        for load in sorted(set(loads)):  # equal loads are the same choice
            nodes += 1
            if best <= bound * (1 + 1e-12) or nodes > SEARCH_NODES:
                return
            if load + jobs[index] < best:
                lane = loads.index(load)
                place(index + 1, [*loads[:lane], load + jobs[index], *loads[lane + 1 :]])

    if len(jobs) <= 4 * lanes and len(jobs) <= 64:
        place(0, [0.0] * lanes)
        return best if nodes <= SEARCH_NODES else bound
    return bound


def _longest_first(jobs: Sequence[float], lanes: int) -> float:
    loads = [0.0] * lanes
    for job in jobs:
        heapq.heapreplace(loads, loads[0] + job)
    return max(loads)


@dataclass(frozen=True)
class Bounds:
    """Three lower bounds on the seconds of any schedule of the work; None where tuning decides what the work is."""

    chain_s: float | None  # longest chain: a trial's pre-training to its snapshot, then its fine-tuning
    work_s: float  # all work, spread evenly over the GPUs, slots or CPUs
    packing_s: float | None  # best packing of the indivisible pre-trainings (of the trials, where nothing is shared)

    @property
    def largest_s(self) -> float:
        """The largest of those that are known."""
        return max(self.chain_s or 0.0, self.work_s, self.packing_s or 0.0)


def lower_bounds(plan: Plan, costs: Costs, machine: Machine, *, share: bool = True) -> Bounds:
    """Return the seconds below which no schedule of `plan` can end, whatever the policy.

    Args:
        plan: the trials and their pre-trainings.
        costs: seconds of stages; without sharing, `finetune` is that of a whole trial's share of a GPU.
        machine: what the stages run on.
        share: whether trials share pre-trainings.
    """
    finetunes = [costs.finetune(trial) for trial in plan.trials]
    before = [
        trial.pretraining.fields.steps * costs.pretrain_step(trial.pretraining) if trial.pretraining else 0.0
        for trial in plan.trials
    ]
    chains = [first + then for first, then in zip(before, finetunes, strict=True)]
    whole = machine.request(Stage("pretrain", ""))
    if not share:
        work = math.fsum(chains)
        held = work * whole
        packing = best_packing(chains, machine.lanes(whole)) if chains else 0.0
    else:
        tails: dict[str, dict[int, float]] = {}  # key -> step -> longest fine-tuning from that snapshot
        for trial, seconds in zip(plan.trials, finetunes, strict=True):
            if trial.pretraining is not None:
                steps = tails.setdefault(trial.pretraining.key, {})
                steps[trial.pretraining.fields.steps] = max(seconds, steps.get(trial.pretraining.fields.steps, 0.0))
        lengths = {key: item.fields.steps * costs.pretrain_step(item) for key, item in plan.pretrainings.items()}
        jobs = [(steps[max(steps)], lengths[key]) for key, steps in tails.items()]
        work = math.fsum(lengths.values()) + math.fsum(finetunes)
        part = machine.request(Stage("finetune", ""))
        if whole >= UNIT > part > 0:
            part = UNIT // (UNIT // part)  # only fine-tunings share a GPU: what no further one fits into is lost
        held = whole * math.fsum(lengths.values()) + part * math.fsum(finetunes)
        packing = 0.0
        for tail in {tail for tail, _ in jobs}:  # those with at least this much behind them must end that much earlier
            packed = best_packing([length for other, length in jobs if other >= tail], machine.lanes(whole))
            packing = max(packing, packed + tail)
    spread = [held / (UNIT * machine.gpus) if machine.gpus else 0.0, work / machine.places if machine.places else 0.0]
    return Bounds(max(chains, default=0.0), max(spread), packing)


@dataclass(frozen=True)
class Forecast:
    """A simulated run beside its lower bounds."""

    share: bool
    schedule: Schedule
    bounds: Bounds

    @property
    def ratio(self) -> float:
        """The makespan in multiples of the lower bound."""
        return self.schedule.makespan_s / self.bounds.largest_s if self.bounds.largest_s else 1.0


def forecast(plan: Plan, costs: Costs, machine: Machine, *, share: bool = True) -> Forecast:
    """Simulate a new run of `plan`, see `simulate` and `lower_bounds` for the arguments."""
    policy, ended = rehearsal(plan, costs, share=share)
    schedule = simulate(policy, machine, ended)
    if plan.studies:  # what is tried depends on the rounds before: only its sum is a bound
        width = machine.gpus or machine.places or 1
        work_s = (schedule.gpu_seconds if machine.gpus else schedule.stage_seconds) / width
        return Forecast(share, schedule, Bounds(None, work_s, None))
    return Forecast(share, schedule, lower_bounds(plan, costs, machine, share=share))
