"""Least makespans by trying everything, lower bounds for plans that are too large for that, and random plans.

Written without the product's scheduler: a schedule here is a list of stages by their start, each with a GPU, where it
starts as soon as there is room after the start of the stage before it. Some such list is a shortest schedule, since
starting earlier in the same order and on the same GPUs never makes anything end later.
"""

import functools
import math
import random
from dataclasses import dataclass

from ablate.schedule.machine import UNIT, Machine
from ablate.schedule.stages import Costs
from ablate.space import TrialSpec, plan_of

SHARES = (0.1, 0.2, 0.25, 0.25, 0.25, 1 / 3, 0.5, 1.0)
STEPS = (25, 50, 75, 100)
TINY = 1e-9
PARTS = 10_000
"""Of a second: seconds that are all multiples of these may have a common measure."""


@dataclass(frozen=True)
class Work:
    """A stage: GPU units, seconds, the number of the pre-training whose snapshot it needs, and when that comes."""

    units: int
    seconds: float
    after: int | None = None
    delay_s: float = 0.0


def works_of(plan, costs, machine):
    """Return the stages of a plan, pre-trainings first, and the number of GPUs; slots are GPUs where there are none."""
    whole, share = (round(UNIT * gpus) for gpus in (machine.gpus_pretrain, machine.gpus_finetune))
    if not machine.gpus:
        whole = share = UNIT
    numbers = {key: number for number, key in enumerate(plan.pretrainings)}
    each = {key: costs.pretrain_step(item) for key, item in plan.pretrainings.items()}
    works = [Work(whole, item.fields.steps * each[key]) for key, item in plan.pretrainings.items()]
    for trial in plan.trials:
        before, seconds = trial.pretraining, costs.finetune(trial)
        if before is None:
            works.append(Work(share, seconds))
        else:
            works.append(Work(share, seconds, numbers[before.key], before.fields.steps * each[before.key]))
    return works, machine.gpus or machine.slots


def chains(works):
    """Return the seconds from each stage's start to the end of the last that needs it."""
    longest = [work.seconds for work in works]
    for work in works:
        if work.after is not None:
            longest[work.after] = max(longest[work.after], work.delay_s + work.seconds)
    return longest


def optimum(works, num_gpus, known=math.inf):
    """Return the least makespan, or `known` if none is less: depth first over stages and GPUs, cut by two bounds."""
    chain, has_more = chains(works), {work.after for work in works}
    best = known

    def place(left, now, gpus, starts, last, area):
        nonlocal best
        if not left:
            best = min(best, last)
            return
        ready = []
        for number in left:
            work = works[number]
            if work.after in left:
                continue
            at = now if work.after is None else max(now, starts[work.after] + work.delay_s)
            if at + chain[number] >= best - TINY:
                return
            ready.append((-chain[number], number, at))
        rest = area + sum((end - now) * units for gpu in gpus for end, units in gpu if end > now)
        if now + rest / UNIT / num_gpus >= best - TINY:
            return
        alike = set()
        for _, number, at in sorted(ready):
            work = works[number]
            like = number if number in has_more else work
            if like in alike:
                continue
            alike.add(like)
            options = {}  # what a GPU still holds -> the soonest start there, and the GPU
            for gpu, held in enumerate(gpus):
                live = tuple(sorted((end, units) for end, units in held if end > at))
                if live not in options:
                    free, start = UNIT - sum(units for _, units in live), at
                    for end, units in live:
                        if free >= work.units:
                            break
                        free, start = free + units, end
                    options[live] = start, gpu
            for start, gpu in sorted(options.values()):
                end = start + work.seconds
                held = (*((e, units) for e, units in gpus[gpu] if e > start), (end, work.units))
                place(
                    left - {number},
                    start,
                    (*gpus[:gpu], held, *gpus[gpu + 1 :]),
                    {**starts, number: start},
                    max(last, end),
                    area - work.units * work.seconds,
                )

    whole = sum(work.units * work.seconds for work in works)
    place(frozenset(range(len(works))), 0.0, ((),) * num_gpus, {}, 0.0, whole)
    return best


def crowd(seconds, lanes):
    """Return a lower bound of packing jobs into lanes: mean load, longest, and k of the longest that share a lane."""
    longest = sorted(seconds, reverse=True)
    bound = max(longest[0], sum(longest) / lanes)
    sums = [0.0]
    for job in longest:
        sums.append(sums[-1] + job)
    for share in range(2, (len(longest) - 1) // lanes + 2):
        last = (share - 1) * lanes + 1
        bound = max(bound, sums[last] - sums[last - share])
    return bound


def bins(seconds, size):
    """Return a lower bound on the bins of a size that hold jobs: L2 of Martello and Toth (1990).

    For each least length k: jobs longer than size - k are alone, those longer than half of the size share no bin, and
    those from k to half of it go beside the latter or into more bins.
    """
    most = 0
    for least in {job for job in seconds if job <= size / 2}:
        alone = sum(job > size - least + TINY for job in seconds)
        large = [job for job in seconds if size / 2 + TINY < job <= size - least + TINY]
        small = math.fsum(job for job in seconds if least - TINY <= job <= size / 2 + TINY)
        more = math.ceil((small - (len(large) * size - math.fsum(large))) / size - TINY)
        most = max(most, alone + len(large) + max(0, more))
    return most


def lower_bound(works, num_gpus):
    """Return seconds below which no schedule ends.

    The largest of six: the chains; the packing of the stages of whole GPUs that have at least so much behind them; the
    area of all that starts no earlier and has no less behind it than so much, between the two; the area that is left
    after a time if all starts as early as it can, and before a time if as late; and the counts: if n shares take at
    least x seconds each, then so many lanes of x seconds must fit beside the stages of whole GPUs, which hold all lanes
    of a GPU at once; and, where all stages ask for the same, the packing into lanes as bins.
    """

    def part(seconds, work):
        return min(1.0, max(0.0, seconds / work.seconds))

    chain = chains(works)
    head = [work.delay_s for work in works]
    tail = [max(0.0, chain[number] - work.seconds) for number, work in enumerate(works)]
    wholes = [number for number, work in enumerate(works) if work.units == UNIT]
    shares = [number for number, work in enumerate(works) if work.units < UNIT]
    lanes = UNIT // works[shares[0]].units if shares else 1
    area = [work.seconds / (1 if work.units == UNIT else lanes) for work in works]
    bound = max(head[number] + chain[number] for number in range(len(works)))
    for least in {tail[number] for number in wholes}:
        jobs = [works[number].seconds for number in wholes if tail[number] >= least]
        bound = max(bound, crowd(jobs, num_gpus) + least)
    for first in set(head):
        late = [number for number in range(len(works)) if head[number] >= first]
        for least in {tail[number] for number in late}:
            inner = sum(area[number] for number in late if tail[number] >= least)
            bound = max(bound, first + inner / num_gpus + least)
        inner = sum(area[i] * part(head[i] + work.seconds - first, work) for i, work in enumerate(works))
        bound = max(bound, first + inner / num_gpus)
    for least in set(tail):
        inner = sum(area[i] * part(tail[i] + work.seconds - least, work) for i, work in enumerate(works))
        bound = max(bound, inner / num_gpus + least)
    held = sum(works[number].seconds for number in wholes)
    longest = sorted((works[number].seconds for number in shares), reverse=True)

    def fits(until):
        if not (wholes and shares) and bins(longest or [works[i].seconds for i in wholes], until) > num_gpus * lanes:
            return False
        for count, least in enumerate(longest, 1):
            deep = math.floor(until / least + TINY)
            lost = max(0.0, held - num_gpus * (until - deep * least))  # of the whole stages, beside full lanes
            if count > lanes * (num_gpus * deep - math.ceil(lost / least - TINY)):
                return False
        return True

    low, high = bound, bound
    while not fits(high):
        low, high = high, 2 * high
    for _ in range(40 if high > low else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return _rounded_up(low, works)


def _rounded_up(bound, works):
    """Return the next makespan that can be: a sum of seconds of stages and of their delays, if those have a measure."""
    parts = [PARTS * value for work in works for value in (work.seconds, work.delay_s)]
    if any(abs(value - round(value)) > 1e-4 for value in parts):
        return bound
    measure = math.gcd(*map(round, parts)) / PARTS
    return math.ceil(bound / measure - 1e-6) * measure


@functools.cache
def _trial(key, steps, seed):
    fields = {"method": "scratch"} if key is None else {"method": "simclr", "steps": steps, "seed": key}
    return TrialSpec.model_validate({"dataset": "synthetic", "shots": 5, "seed": seed, "pretrain": fields})


def random_case(draw: random.Random, num_stages, num_gpus):
    """Return a plan of so many stages, costs and a machine, of one of many characters."""
    spread = draw.choice(
        (
            lambda: draw.uniform(1, 10),
            lambda: math.exp(draw.uniform(0, math.log(100))),
            lambda: float(draw.randint(1, 8)),
        )
    )
    share, scale = draw.choice(SHARES), draw.choice((0.2, 1.0, 1.0, 1.0, 3.0))
    num_keys = min(num_stages // 2, round(num_stages * draw.choice((0.0, 0.1, 0.25, 0.4, 0.5))) + draw.choice((0, 1)))
    alone = draw.choice((0.0, 0.2, 0.5)) if num_keys else 1.0
    trials = [_trial(key, STEPS[-1], key) for key in range(num_keys)]
    for seed in range(num_keys, num_stages - num_keys):
        if draw.random() < alone:
            trials.append(_trial(None, 0, seed))
        else:
            steps = draw.choice((*STEPS, STEPS[-1], STEPS[-1]))
            trials.append(_trial(draw.randrange(num_keys), steps, seed))
    plan = plan_of(trials)
    each = {key: spread() / STEPS[-1] for key in plan.pretrainings}
    seconds = {trial.trial_id: spread() * scale for trial in trials}
    costs = Costs(lambda item: each[item.key], lambda trial: seconds[trial.trial_id])
    if draw.random() < 0.1:
        return plan, costs, Machine(0, 0, 0, slots=num_gpus)
    return plan, costs, Machine(num_gpus, 1, share)
