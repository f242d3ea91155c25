"""The order in which stages start: how near it comes to the least makespan, and what it does when things go otherwise.

The least is known for plans of few stages, see `schedule_oracle`; of more, a lower bound is.
"""

import heapq
import itertools
import random

import pytest
from schedule_oracle import Work, lower_bound, optimum, random_case, works_of

from ablate.schedule.jobs import Job, Running
from ablate.schedule.lookahead import Lookahead
from ablate.schedule.machine import UNIT, Machine, Pool
from ablate.schedule.orders import best_order
from ablate.schedule.policy import Policy
from ablate.schedule.simulate import simulate
from ablate.schedule.stages import Costs
from ablate.space import plan_of

NEAR = 1.1 + 1e-6
"""What a schedule may take over the least, or over the lower bound of many stages; the bound is found by halving."""


def makespan_s(case, **how):
    plan, costs, machine = case
    return simulate(Policy(plan, costs), machine, **how).makespan_s


def small_ratio(draw):
    """Return the makespan over the least, of a random plan of at most 8 stages."""
    case = random_case(draw, draw.randint(2, 8), draw.choice((1, 1, 2, 2, 3, 4, 8)))
    works, num_gpus = works_of(*case)
    assert len(works) <= 8
    taken = makespan_s(case)
    return taken / optimum(works, num_gpus, taken + 1e-9)


def large_ratio(draw):
    """Return the makespan over the lower bound, of a random plan of at least 20 stages for each GPU."""
    num_gpus = draw.randint(1, 8)
    case = random_case(draw, 20 * num_gpus + draw.choice((0, 0, 3, 5 * num_gpus, 10 * num_gpus)), num_gpus)
    works, num_gpus = works_of(*case)
    assert len(works) >= 20 * num_gpus
    return makespan_s(case) / lower_bound(works, num_gpus)


# --- how near it comes


@pytest.mark.parametrize("seed", range(4))
def test_plans_of_few_stages_end_within_a_tenth_of_the_least(seed):
    draw = random.Random(seed)
    assert all(1 - 1e-6 <= small_ratio(draw) <= NEAR for _ in range(60))


@pytest.mark.parametrize("seed", range(4))
def test_plans_of_many_stages_end_within_a_tenth_of_the_lower_bound(seed):
    draw = random.Random(seed)
    assert all(1 - 1e-6 <= large_ratio(draw) <= NEAR for _ in range(10))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_thousands_of_plans_are_as_near(seed):
    draw = random.Random(seed)
    assert all(1 - 1e-6 <= small_ratio(draw) <= NEAR for _ in range(1000))
    assert all(1 - 1e-6 <= large_ratio(draw) <= NEAR for _ in range(100))


def test_a_gpu_is_drained_for_a_whole_stage_with_much_behind_it():
    """By hand, on one GPU of which a quarter is held until 2 s.

    The whole stage of 6 s, at 2 s, with 5 s of a quarter behind it, ends at 13 s; other quarters of 2 s and 5 s fit
    beside those. Would the quarter of 5 s go first, though three quarters of the GPU are free, all would end at 16 s.
    """
    machine, quarter = Machine(1), UNIT // 4
    pool = Pool.of(machine)
    held = pool.take(quarter)
    jobs = [Job(UNIT, 6.0), Job(quarter, 5.0, after=0, delay_s=6.0), Job(quarter, 2.0), Job(quarter, 5.0)]
    planned = best_order(jobs, machine, pool, [Running(2.0, held, quarter)], 0.0)
    assert planned.end_s == 13
    assert planned.starts_s[0] == 2
    assert planned.starts_s[1] == planned.starts_s[3] == 8


def test_of_two_gpus_one_is_kept_for_whole_stages_while_shares_fill_the_other():
    """By hand: eight quarters of 4 s and four whole stages of 2 s, on two GPUs, take 8 s: all of both GPUs."""
    machine = Machine(2)
    jobs = [*(Job(UNIT // 4, 4.0) for _ in range(8)), *(Job(UNIT, 2.0) for _ in range(4))]
    assert best_order(jobs, machine, Pool.of(machine), (), 0.0).end_s == 8


def test_the_oracle_agrees_with_schedules_worked_by_hand():
    quarter = UNIT // 4
    assert optimum([Work(UNIT, 2), Work(quarter, 3), Work(quarter, 3)], 1) == 5
    assert optimum([Work(UNIT, 2), Work(quarter, 3), Work(quarter, 3)], 2) == 3
    assert optimum([Work(UNIT, 4), Work(quarter, 3, 0, 2)], 1) == 7  # its snapshot is there at 2, the GPU at 4
    assert optimum([Work(UNIT, 4), Work(quarter, 3, 0, 2)], 2) == 5
    assert optimum([Work(UNIT, seconds) for seconds in (3, 3, 2, 2, 2)], 2) == 6
    lanes = [Work(UNIT, 1)] * 15 + [Work(quarter, 10)] * 5  # two of the five share a lane
    assert lower_bound(lanes, 1) == pytest.approx(35)
    early = [Work(UNIT, 3), *[Work(quarter, 2, 0, 1)] * 8]  # after 1 s two of the whole stage and four of quarters
    assert lower_bound(early, 2) == pytest.approx(1 + (2 + 4) / 2)
    assert lower_bound([Work(UNIT, 100), *[Work(quarter, 10, 0, 100)] * 64], 8) == pytest.approx(120)


def test_the_lower_bound_is_no_larger_than_the_least():
    draw = random.Random(5)
    for _ in range(100):
        case = random_case(draw, draw.randint(2, 7), draw.choice((1, 2, 3)))
        works, num_gpus = works_of(*case)
        assert lower_bound(works, num_gpus) <= optimum(works, num_gpus) * (1 + 1e-9)


def test_the_same_stages_have_the_same_order_whatever_their_order_in_the_file():
    draw = random.Random(3)
    for _ in range(10):
        plan, costs, machine = random_case(draw, 24, 2)
        mixed = list(plan.trials)
        draw.shuffle(mixed)
        assert makespan_s((plan_of(mixed), costs, machine)) == makespan_s((plan, costs, machine))


# --- when things go otherwise than expected


class Actual:
    """A machine on a virtual clock on which stages take other times than expected, fail, and lose their snapshots.

    It offers stages as a run does: one waits beyond what fits. What is placed is told, as Ray Tune tells it.
    """

    def __init__(self, case, truth, chance, *, trouble=0.0, looks_ahead=True):
        self.plan, costs, self.machine = case
        self.truth, self.chance, self.trouble = truth, chance, trouble
        self.policy, self.now_s, self.log = Policy(self.plan, costs), 0.0, []
        self.events, self.count, self.pool = [], itertools.count(), Pool.of(self.machine)
        if looks_ahead:
            self.ahead = Lookahead(self.policy, self.machine, clock=lambda: self.now_s)

    def _later(self, after_s, *what):
        heapq.heappush(self.events, (self.now_s + after_s, next(self.count), what))

    def _start(self, stage, place):
        self.log.append((stage, self.now_s))
        self.policy.placed(stage)
        goes_well = self.chance.random() >= self.trouble
        if stage.kind == "pretrain":
            pretraining, steps = self.policy.pretraining(stage)
            each = self.truth.pretrain_step(pretraining)
            begin = pretraining.fields.steps - self.policy.stage_seconds(stage) / (
                self.policy.costs.pretrain_step(pretraining) or 1
            )
            seconds = {step: max(0.0, step - begin) * each for step in steps}
            for step, after_s in seconds.items():
                if goes_well or after_s < max(seconds.values()):
                    self._later(after_s, "publish", stage, step)
            length_s = max(seconds.values(), default=0.0)
        else:
            length_s = self.truth.finetune(self.policy.trial(stage))
        self._later(length_s if goes_well else 0.6 * length_s, "end" if goes_well else "trouble", stage, place)

    def run(self):
        waiting = None
        while True:
            while True:
                if waiting is None:
                    waiting = self.policy.next()
                    if waiting is not None:
                        self.policy.started(waiting)
                place = None if waiting is None else self.pool.take(self.machine.request(waiting))
                if place is None:
                    break
                self._start(waiting, place)
                waiting = None
            if not self.events:
                break
            self.now_s, _, (what, stage, detail) = heapq.heappop(self.events)
            if what == "publish":
                self.policy.publish(stage.name, detail)
                continue
            self.pool.give_back(detail, self.machine.request(stage))
            if what == "end":
                self.policy.finish(stage)
            elif self.chance.random() < 0.5:
                self.policy.requeue(stage)
            elif self.policy.starts_from_snapshot(stage):
                self.policy.lose(stage)
            else:
                self.policy.fail(stage, "for good")
        assert waiting is None
        assert self.policy.is_over
        assert not self.policy.running
        return self.now_s


def otherwise(draw, costs, spread):
    """Return costs that are off by a factor of each kind of stage and of each stage."""
    kinds = [draw.uniform(1 / spread, spread) for _ in range(2)]
    own = {}

    def factor(name):
        return own.setdefault(name, draw.uniform(1 / spread, spread))

    return Costs(
        lambda item: costs.pretrain_step(item) * kinds[0] * factor(item.key),
        lambda trial: costs.finetune(trial) * kinds[1] * factor(trial.trial_id),
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_run_comes_to_its_end_and_twice_the_same_whatever_goes_wrong(seed):
    draw = random.Random(seed)
    for _ in range(5):
        case = random_case(draw, draw.choice((6, 9, 12)), draw.randint(1, 4))
        truth, chance = otherwise(draw, case[1], 3.0), draw.random()
        runs = [Actual(case, truth, random.Random(chance), trouble=0.15) for _ in range(2)]
        assert runs[0].run() == runs[1].run()
        assert runs[0].log == runs[1].log
        if not runs[0].policy.failures:
            ended = {stage.name for stage, _ in runs[0].log if stage.kind == "finetune"}
            assert ended == {trial.trial_id for trial in case[0].trials}


def test_where_costs_are_right_the_run_is_the_simulation():
    draw = random.Random(11)
    for _ in range(20):
        case = random_case(draw, draw.randint(2, 30), draw.randint(1, 4))
        assert Actual(case, case[1], random.Random(0)).run() == pytest.approx(makespan_s(case), rel=1e-9)


def test_where_costs_are_wrong_it_still_ends_sooner_than_the_longest_chain():
    draw, taken, chain = random.Random(2), [], []
    for _ in range(10):
        case = random_case(draw, 30, draw.randint(1, 4))
        truth = otherwise(draw, case[1], 2.0)
        chain.append(Actual(case, truth, random.Random(0), looks_ahead=False).run())
        taken.append(Actual(case, truth, random.Random(0)).run() / chain[-1])
    assert sum(taken) / len(taken) < 0.99
    assert max(taken) < 1.25
