"""The time and the cost of a run on a fleet of machines, with and without interruptions.

Assumptions:

- Stages take what `ablate.schedule.costs` says, on GPUs that are all equally fast; fine-tuning does not stop early.
- The head comes up first; then machines come as `ablate.launch.estimate.clock` says: each a queue's time after a stage
  waited for it, of the smallest type that fits, given back when it was idle for a while. A type's
  `min_count` machines are there from the first minute to the last.
- A machine is paid for from the request to its end, the head for all of the time. Disks, traffic and the store are not
  counted.
- Each spot machine is taken back after a time that is drawn from an exponential distribution, independently of the
  others. Its stages lose what they did since their last saved state, though with a cloud's notice of 30 seconds to two
  minutes they usually lose nothing, and wait for their place on another machine, which comes after the queue's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ablate.errors import InputError
from ablate.launch.backend import Fleet, MachineType
from ablate.launch.estimate.clock import Course, Lifetime, Terms, forever, play
from ablate.launch.estimate.notes import fleet_notes, slow_notes
from ablate.schedule.costs import default_costs
from ablate.schedule.fitting import NodeType, Request, Shape, decide_gpus
from ablate.schedule.rounds import rehearsal
from ablate.schedule.stages import Costs
from ablate.space import Plan

INTERRUPTIONS_PER_HOUR = 0.05
"""Interruptions of a spot machine where the file gives none: an assumption, one in 20 hours.

Public figures lie far apart. AWS's Spot Instance Advisor sorts types of machine by the share that was reclaimed in the
last month, from under 5 % to over 20 %; a fifth of the machines in a month of 730 hours is 0.0003 an hour. In the
traces behind Wu et al. (Can't Be Late, NSDI 2024), github.com/skypilot-org/spot-traces, a V100 in us-west-2b was
reclaimed about ten times in the first two days of April 22 to 29, 2023, 0.2 an hour.
"""

RESTART_SECONDS = 60.0
"""Time from an interrupted stage's place on another machine to its next step, cautiously: a process that imports
torch, a data set that this machine has not yet, and the saved state."""

CHECKPOINT_MINUTES = 5.0
"""Time between saved states: the default of --checkpoint-minutes."""

MOST_RUNS, LEAST_RUNS, STAGES_OF_ALL_RUNS = 200, 20, 80_000
"""Simulated runs: fewer where a run has many stages, or interruptions, so that all of them take a few seconds."""

GIVE_UP = 5.0
"""A simulated run that takes so many times as long as one without interruptions does not get on."""

HOPELESS = 3
"""Where none of so many simulated runs gets on, no more are tried."""

DEFAULT_SOURCE = "estimated for {}, right within a factor of a few; --costs RUN takes them from an earlier run"
"""Where the stages' times come from, unless an earlier run measured them."""

CostsAt: TypeAlias = Callable[[float, float], Costs]
"""Returns the stages' times, given the GPUs of a pre-training and of a fine-tuning."""


@dataclass(frozen=True)
class Bill:
    """What one simulated run takes."""

    makespan_s: float  # from the launch to the end of the last stage; infinite if it was given up
    machine_hours: Mapping[str, float]  # that workers are paid for, by type
    gpu_hours: float  # of those, times the machines' GPUs
    cost: float | None  # with the head; None where a price is not known
    interruptions: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the run came to its end."""
        return self.makespan_s < math.inf

    @property
    def hours(self) -> float:
        """Machine-hours of all types."""
        return math.fsum(self.machine_hours.values())


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of a quantity over many simulated runs."""

    low: float  # 5 % are at most this
    median: float
    high: float  # 95 % are at most this

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values; each is one of them, for infinite ones have no mean."""
        ordered = sorted(values)
        return cls(*(ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0.05, 0.5, 0.95)))


@dataclass(frozen=True)
class Interrupted:
    """What many simulated runs with interruptions take; one that was given up takes infinitely much."""

    per_hour: float  # interruptions of one spot machine
    is_assumed: bool  # the file gives none
    bills: tuple[Bill, ...]

    def spread(self, quantity: Callable[[Bill], float]) -> Spread:
        """Return the spread of a quantity of the runs."""
        return Spread.of([quantity(bill) if bill.is_over else math.inf for bill in self.bills])

    @property
    def makespan_s(self) -> Spread:
        """Seconds from the launch to the end of the last stage."""
        return self.spread(lambda bill: bill.makespan_s)

    @property
    def gpu_hours(self) -> Spread:
        """Hours that GPUs are paid for."""
        return self.spread(lambda bill: bill.gpu_hours)

    @property
    def hours(self) -> Spread:
        """Hours that machines are paid for."""
        return self.spread(lambda bill: bill.hours)

    @property
    def cost(self) -> Spread | None:
        """Cost in the fleet's currency; None where a price is not known."""
        costs = [bill.cost if bill.is_over else math.inf for bill in self.bills]
        known = [cost for cost in costs if cost is not None]
        return Spread.of(known) if len(known) == len(costs) else None


@dataclass(frozen=True)
class Estimate:
    """How long a run takes on a fleet, and what it costs; `ablate.launch.estimate.words` tells it."""

    fleet: Fleet
    workers: tuple[MachineType, ...]  # those that stages can use, or that stand
    terms: Terms
    calm: Bill  # without interruptions
    interrupted: Interrupted | None  # None where nothing is interrupted
    source: str  # where the stages' times come from
    notes: tuple[str, ...]


def estimate(
    plan: Plan,
    fleet: Fleet,
    options: Mapping[str, Any],
    costs: CostsAt | None = None,
    *,
    where: str = "the cluster",
    source: str = "",
    seed: int = 0,
) -> Estimate:
    """Return how long a run of `plan` takes on `fleet` and what it costs, by the module's assumptions.

    Args:
        plan: the work.
        fleet: the machines, at most; where it gives no interruptions (0) they are `INTERRUPTIONS_PER_HOUR`.
        options: of `ablate run` by name; what is left out takes its default.
        costs: the stages' times, given the GPUs of a pre-training and of a fine-tuning; None for the default ones.
        where: for messages: what has the machines.
        source: where `costs` come from, such as `measured in RUN`.
        seed: of the simulated interruptions.

    Raises:
        InputError: a stage asks for what no machine of the fleet could ever give.
    """
    workers = [kind for kind in fleet.workers if kind.max_count > 0]
    if fleet.is_guess:
        workers = [_wide_enough(kind, options) for kind in workers]
    gpus_pretrain, gpus_finetune = _gpus(workers, options, where)
    share = not options.get("no_share")
    terms = _terms(options, gpus_pretrain, gpus_finetune, fleet)
    requests = [terms.pretrain, terms.finetune] if share else [terms.pretrain]
    usable = {kind.name: any(terms.usable(kind.shape).fits(request) for request in requests) for kind in workers}
    used = [kind for kind in workers if usable[kind.name] or kind.min_count]  # those that stand cost in any case
    # a whole trial fine-tunes on what its pre-training holds
    times = (costs or _default_costs)(gpus_pretrain, gpus_finetune if share else gpus_pretrain)
    runs = _Runs(plan, times, share, used, terms, fleet)
    calm = runs.bill(runs.course())
    return Estimate(
        fleet=fleet,
        workers=tuple(used),
        terms=terms,
        calm=calm,
        interrupted=_interrupted(runs, calm, np.random.default_rng(seed)),
        source=source or _source(costs, gpus_pretrain),
        notes=(*fleet_notes(fleet, used, calm.machine_hours, terms), *([] if costs else slow_notes(used))),
    )


def _default_costs(gpus_pretrain: float, gpus_finetune: float) -> Costs:
    return default_costs(gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune)


def _source(costs: CostsAt | None, gpus_pretrain: float) -> str:
    if costs is not None:
        return "as given"
    return DEFAULT_SOURCE.format("one modern GPU" if gpus_pretrain else "one CPU core")


# --- what stages ask for ----------------------------------------------------------------------------


def _gpus(workers: Sequence[MachineType], options: Mapping[str, Any], where: str) -> tuple[float, float]:
    """Return GPUs per pre-training and per fine-tuning; refuse what no machine can give."""
    if not workers:
        raise InputError(
            f"{where} must have machines that stages can run on; got none but the head; let it have workers"
        )
    return decide_gpus(
        present=(),
        growable=[NodeType(kind.name, kind.shape, kind.max_count) for kind in workers],
        where=where,
        gpus_per_pretrain=options.get("gpus_per_pretrain"),
        gpus_per_finetune=options.get("gpus_per_finetune"),
        cpus_per_stage=options.get("cpus_per_stage") or 1,
        accelerator_type=options.get("accelerator_type"),
    )


def _wide_enough(kind: MachineType, options: Mapping[str, Any]) -> MachineType:
    """Return a machine whose shape is a guess, with what is asked for: a guess refuses nothing."""
    accelerator = options.get("accelerator_type")
    asked = [options.get("gpus_per_pretrain") or 0.0, options.get("gpus_per_finetune") or 0.0, float(bool(accelerator))]
    accelerators = kind.shape.accelerator_types | ({accelerator} if accelerator else set())
    cpus, gpus = max(kind.shape.cpus, options.get("cpus_per_stage") or 1), max(kind.shape.gpus, *asked)
    return replace(kind, shape=Shape(cpus, math.ceil(gpus), frozenset(accelerators)))


def _terms(options: Mapping[str, Any], gpus_pretrain: float, gpus_finetune: float, fleet: Fleet) -> Terms:
    cpus, accelerator = options.get("cpus_per_stage") or 1, options.get("accelerator_type")
    saved = options.get("checkpoint_minutes")
    return Terms(
        pretrain=Request(cpus, gpus_pretrain, accelerator),
        finetune=Request(cpus, gpus_finetune, accelerator),
        max_concurrent=options.get("max_concurrent"),
        max_machines=fleet.max_workers,
        standing={kind.name: kind.min_count for kind in fleet.workers},
        queue_s=fleet.queue_minutes * 60,
        idle_s=fleet.idle_minutes * 60,
        checkpoint_s=(CHECKPOINT_MINUTES if saved is None else float(saved)) * 60,
        restart_s=RESTART_SECONDS,
    )


# --- simulated runs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runs:
    """Simulates runs of one plan on one fleet."""

    plan: Plan
    costs: Costs
    share: bool
    workers: Sequence[MachineType]
    terms: Terms
    fleet: Fleet

    def course(self, lifetime: Lifetime = forever, limit_s: float = math.inf) -> Course:
        policy, ended = rehearsal(self.plan, self.costs, share=self.share)
        return play(policy, self.workers, self.terms, lifetime=lifetime, limit_s=limit_s, ended=ended)

    def bill(self, course: Course) -> Bill:
        """Return what a simulated run takes, with the start of its head."""
        hours = dict.fromkeys((kind.name for kind in self.workers), 0.0)
        gpu_hours, cost = 0.0, 0.0
        for stay in course.stays:
            hours[stay.kind.name] += stay.hours
            gpu_hours += stay.hours * stay.kind.shape.gpus
            cost += stay.hours * _price(stay.kind)
        makespan_s = course.makespan_s
        if self.fleet.head is not None:
            makespan_s += self.terms.queue_s
            cost += makespan_s / 3600 * _price(self.fleet.head)
        return Bill(makespan_s, hours, gpu_hours, None if math.isnan(cost) else cost, course.interruptions)

    def spot_hours(self, bill: Bill) -> float:
        """Return the hours of machines that may be taken back."""
        return math.fsum(bill.machine_hours[kind.name] for kind in self.workers if kind.spot)


def _price(kind: MachineType) -> float:
    """Return the price of an hour; not a number where it is not known, so that no sum with it is one."""
    return math.nan if kind.price_per_hour is None else kind.price_per_hour


def _interrupted(runs: _Runs, calm: Bill, generator: np.random.Generator) -> Interrupted | None:
    """Simulate runs with interruptions; None where there can be none."""
    spot_hours = runs.spot_hours(calm)
    if not spot_hours:
        return None
    told = runs.fleet.interruptions_per_hour
    per_hour = told or INTERRUPTIONS_PER_HOUR
    # an interruption is about as much work for the simulator as four stages: those that it ends, and their new start
    work = len(runs.plan.trials) + len(runs.plan.pretrainings) + 4 * per_hour * spot_hours
    num_runs = min(MOST_RUNS, max(LEAST_RUNS, int(STAGES_OF_ALL_RUNS / work)))
    bills = list[Bill]()
    for number in range(num_runs):
        if number == HOPELESS and not any(bill.is_over for bill in bills):
            break
        course = runs.course(lambda: float(generator.exponential(3600 / per_hour)), GIVE_UP * calm.makespan_s)
        bills.append(runs.bill(course))
    return Interrupted(per_hour, not told, tuple(bills))
