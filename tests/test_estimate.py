"""Time and cost of a run on machines that come and go: hand-worked cases, what nothing may violate, the words."""

import itertools
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.errors import InputError
from ablate.launch.backend import Fleet, MachineType
from ablate.launch.estimate.clock import Terms, play
from ablate.launch.estimate.estimation import INTERRUPTIONS_PER_HOUR, Spread, estimate
from ablate.launch.estimate.words import estimate_lines
from ablate.schedule.costs import default_costs
from ablate.schedule.fitting import NodeType, Request, Shape
from ablate.schedule.forecast import lower_bounds
from ablate.schedule.machine import UNIT, Machine
from ablate.schedule.policy import Policy
from ablate.schedule.simulate import simulate
from ablate.schedule.stages import Costs, Stage
from ablate.space import TrialSpec, find_grid, load_grid, plan_of, shipped_grids

MINUTES = Costs(pretrain_step=lambda pretraining: 60.0, finetune=lambda spec: 60.0 * spec.shots)
"""A minute for each pre-training step, and for each annotated image of a fine-tuning."""

L4, L40S = Shape(8, 1, frozenset({"L4"})), Shape(8, 1, frozenset({"L40S"}))
ON_DEMAND = MachineType("l4", L4, 8, price_per_hour=6.0)
SPOT = MachineType("l4-spot", L4, 8, price_per_hour=6.0, spot=True)
OTHER = MachineType("l40s", L40S, 1, price_per_hour=9.0)
HEAD = MachineType("small", Shape(2), 1, price_per_hour=0.6)


def trial(method="ddpm", steps=10, shots=5, seed=0):
    fields = {"method": method, **({} if method == "scratch" else {"steps": steps})}
    return TrialSpec.model_validate({"dataset": "synthetic", "shots": shots, "seed": seed, "pretrain": fields})


def terms(gpus_pretrain=1.0, gpus_finetune=0.25, cpus=1, accelerator=None, **fields):
    asks = {
        "pretrain": Request(cpus, gpus_pretrain, accelerator),
        "finetune": Request(cpus, gpus_finetune, accelerator),
    }
    return Terms(**asks, **{"queue_s": 300.0, "idle_s": 300.0, "checkpoint_s": 300.0, "restart_s": 60.0, **fields})


def course_of(trials, kinds=(ON_DEMAND,), lifetimes_min=(), share=True, costs=MINUTES, **asked):
    """Return a run's course; spot machines live so many minutes each, and those after them for ever."""
    lives = itertools.chain((60.0 * minutes for minutes in lifetimes_min), itertools.repeat(math.inf))
    policy = Policy(plan_of(trials), costs, share=share)
    course = play(policy, kinds, terms(**asked), lifetime=lambda: next(lives))
    assert policy.is_over
    return course


def minutes_of(course):
    """Return the attempts at each stage as (start, end), and the machines as (asked, up, end), in minutes."""
    attempts = {}
    for span in course.spans:
        attempts.setdefault(span.stage, []).append((span.start_s / 60, span.end_s / 60))
    return attempts, sorted((stay.asked_s / 60, stay.up_s / 60, stay.end_s / 60) for stay in course.stays)


def estimate_of(trials, fleet, costs=lambda pretrain, finetune: MINUTES, **options):
    return estimate(plan_of(trials), fleet, options, costs, source="by hand")


# --- machines that come and go, worked by hand


def test_one_machine_comes_for_the_pretraining_and_stays_for_both_finetunings():
    four, six = trial(shots=4), trial(shots=6)
    attempts, machines = minutes_of(course_of([four, six]))
    assert attempts == {
        Stage("pretrain", four.pretrain_key): [(5, 15)],
        Stage("finetune", four.trial_id): [(15, 19)],
        Stage("finetune", six.trial_id): [(15, 21)],
    }
    assert machines == [(0, 5, 21)]


def test_the_cost_is_that_of_the_machines_hours_and_of_the_heads():
    found = estimate_of([trial(shots=4), trial(shots=6)], Fleet((ON_DEMAND,), HEAD, queue_minutes=5))
    # the head comes up in 5 minutes, then the machine in 5, then 10 of pre-training and 6 of fine-tuning
    assert found.calm.makespan_s == 26 * 60
    assert found.calm.gpu_hours == pytest.approx(21 / 60)
    assert found.calm.cost == pytest.approx(21 / 60 * 6.0 + 26 / 60 * 0.6)
    assert found.interrupted is None


def test_of_two_machines_the_one_that_was_idle_is_given_back():
    long, short = trial(steps=10, shots=5), trial("mocov3", steps=4, shots=3)
    attempts, machines = minutes_of(course_of([long, short]))
    assert attempts[Stage("finetune", short.trial_id)] == [(9, 12)]
    assert attempts[Stage("finetune", long.trial_id)] == [(15, 20)]
    assert machines == [(0, 5, 17), (0, 5, 20)]


def test_a_machine_is_idle_for_a_while_before_it_is_given_back_and_comes_again_when_it_is_needed():
    # pre-training needs no GPU here, and goes on beside
    early, late = trial(steps=2, shots=1), trial(steps=30, shots=1)
    cpu = MachineType("cpu", Shape(4), 1)
    attempts, machines = minutes_of(course_of([early, late], [cpu, ON_DEMAND], gpus_pretrain=0))
    assert attempts == {
        Stage("pretrain", early.pretrain_key): [(5, 35)],
        Stage("finetune", early.trial_id): [(12, 13)],  # asked for at 7, when the first snapshot came
        Stage("finetune", late.trial_id): [(40, 41)],
    }
    assert machines == [(0, 5, 40), (7, 12, 18), (35, 40, 41)]


@pytest.mark.parametrize(("num_stages", "cpus", "num_machines"), [(4, 1, 1), (4, 4, 2), (5, 1, 2), (64, 1, 16)])
def test_as_many_machines_come_at_once_as_the_stages_that_can_start_fill(num_stages, cpus, num_machines):
    # of machines with 8 CPUs and 1 GPU, as Ray's autoscaler launches them for stages of a quarter GPU
    trials = [trial("scratch", shots=30 + number) for number in range(num_stages)]
    _, machines = minutes_of(course_of(trials, [replace(ON_DEMAND, max_count=64)], cpus=cpus))
    assert [asked for asked, _, _ in machines] == [0] * num_machines


@pytest.mark.parametrize("num_machines", [1, 3])
@pytest.mark.parametrize("gpus_finetune", [0.25, 0.3, 1.0])
def test_as_many_stages_are_offered_as_a_run_offers(num_machines, gpus_finetune):
    from ablate.running.ray_tune import demand

    trials = [trial(method, shots=3) for method in ("ddpm", "mocov3", "dino")]
    trials += [trial("scratch", shots=30 + number) for number in range(20)]
    asked = terms(gpus_finetune=gpus_finetune)
    nodes = demand.Nodes.of((), [NodeType("l4", L4, num_machines)])
    offered, policy = [], Policy(plan_of(trials), MINUTES)
    while (stage := policy.next()) is not None:
        beside = [demand.Offered(asked.request(other), placed=False) for other in offered]
        if demand.verdict(asked.request(stage), beside, nodes) == "later":
            break
        policy.started(stage)
        offered.append(stage)
    policy = Policy(plan_of(trials), MINUTES)
    play(policy, [replace(ON_DEMAND, max_count=num_machines)], asked, limit_s=1.0)
    assert policy.running == set(offered)


def test_room_on_a_machine_on_its_way_that_is_no_longer_needed_is_for_the_next_stage():
    first = trial("scratch", shots=2)
    second, third = trial(steps=1, shots=9), trial(steps=4, shots=8)
    attempts, machines = minutes_of(course_of([first, second, third], gpus_pretrain=0, gpus_finetune=1))
    assert attempts[Stage("finetune", first.trial_id)] == [(5, 7)]
    # could start at 6, when its snapshot came, asked for a machine then, and starts where the first one was
    assert attempts[Stage("finetune", second.trial_id)] == [(7, 16)]
    assert attempts[Stage("finetune", third.trial_id)] == [(11, 19)]  # could start at 9, and takes that machine
    assert [asked for asked, _, _ in machines] == [0, 6]


def test_the_smallest_machine_that_fits_is_asked_for_first_and_the_next_type_when_there_is_no_other():
    trials = [trial("scratch", shots=shots) for shots in (5, 6, 7)]
    large, small = MachineType("large", Shape(64, 8), 2), MachineType("small", Shape(4, 1), 1)
    course = course_of(trials, [large, small], gpus_finetune=1)
    assert sorted(stay.kind.name for stay in course.stays) == ["large", "small"]
    course = course_of(trials, [large, small], gpus_pretrain=2, gpus_finetune=2)
    assert [stay.kind.name for stay in course.stays] == ["large"]


def test_all_types_together_may_have_a_limit():
    trials = [trial("scratch", shots=shots) for shots in (9, 8, 7, 6)]
    kinds = [MachineType("small", Shape(4, 1), 2), MachineType("large", Shape(64, 1), 2)]
    most = {None: ["large", "large", "small", "small"], 3: ["large", "small", "small"], 1: ["small"]}
    for limit, names in most.items():
        course = course_of(trials, kinds, gpus_finetune=1, max_machines=limit)
        assert sorted(stay.kind.name for stay in course.stays) == names
    fleet = Fleet(tuple(kinds), queue_minutes=5, max_workers=1)
    assert estimate_of(trials, fleet, gpus_per_finetune=1.0).calm.makespan_s == 35 * 60


def test_only_machines_with_the_accelerator_that_is_asked_for_come():
    both = [MachineType("l4", L4, 4), MachineType("l40s", L40S, 4)]
    course = course_of([trial("scratch")], both, accelerator="L40S")
    assert [stay.kind.name for stay in course.stays] == ["l40s"]


def test_a_machine_that_may_not_be_idle_at_all_still_gets_the_stage_that_it_came_for():
    assert course_of([trial(shots=4), trial(shots=6)], idle_s=0.0).makespan_s == 21 * 60


def test_machines_that_stand_are_there_at_once_and_to_the_end():
    _, machines = minutes_of(course_of([trial("scratch", shots=20)], queue_s=0.0, standing={"l4": 3}))
    assert machines == [(0, 0, 20)] * 3


def test_where_some_machines_stand_only_the_others_are_given_back():
    trials = [trial("scratch", shots=40), *(trial("scratch", shots=3, seed=seed) for seed in range(3))]
    _, machines = minutes_of(course_of(trials, gpus_finetune=1, standing={"l4": 2}))
    assert machines == [(0, 5, 13), (0, 5, 13), (0, 5, 45), (0, 5, 45)]


def test_at_most_so_many_stages_are_out_at_a_time():
    trials = [trial("scratch", shots=shots) for shots in (4, 3, 2)]
    assert course_of(trials, max_concurrent=1).makespan_s == (5 + 4 + 3 + 2) * 60
    assert course_of(trials, max_concurrent=2).makespan_s == (5 + 3 + 2) * 60
    assert course_of(trials).makespan_s == (5 + 4) * 60


def test_without_sharing_every_trial_is_one_stage():
    course = course_of([trial(shots=4), trial(shots=6)], [replace(ON_DEMAND, max_count=1)], share=False)
    assert course.makespan_s == (5 + 10 + 6 + 10 + 4) * 60


# --- interruptions at known times


def test_an_interrupted_pretraining_goes_on_from_its_saved_state_on_another_machine():
    spec = trial(steps=12, shots=4)
    course = course_of([spec], [SPOT], lifetimes_min=[8])
    attempts, machines = minutes_of(course)
    assert attempts == {
        # up at 5, taken back at 13 after 8 minutes of training, of which 5 were saved; a new machine at 18, training
        # again at 19, the last 7 minutes
        Stage("pretrain", spec.pretrain_key): [(5, 13), (18, 26)],
        Stage("finetune", spec.trial_id): [(26, 30)],
    }
    assert machines == [(0, 5, 13), (13, 18, 30)]
    assert course.interruptions == 1


def test_a_stage_that_is_interrupted_before_it_trains_again_loses_nothing_more():
    spec = trial("scratch", shots=12)
    attempts, _ = minutes_of(course_of([spec], [SPOT], lifetimes_min=[8, 0.5]))
    assert attempts == {Stage("finetune", spec.trial_id): [(5, 13), (18, 18.5), (23.5, 31.5)]}


def test_what_several_attempts_saved_adds_up():
    spec = trial("scratch", shots=14)
    attempts, _ = minutes_of(course_of([spec], [SPOT], lifetimes_min=[8, 7]))
    # 5 of 8 minutes saved, then a minute of restart and 5 of 6: the last 4
    assert attempts == {Stage("finetune", spec.trial_id): [(5, 13), (18, 25), (30, 35)]}


def test_without_minutes_between_states_nothing_is_lost():
    spec = trial("scratch", shots=12)
    attempts, _ = minutes_of(course_of([spec], [SPOT], lifetimes_min=[8], checkpoint_s=0.0))
    assert attempts == {Stage("finetune", spec.trial_id): [(5, 13), (18, 18 + 1 + 4)]}


def test_snapshots_outlive_the_machine_and_are_made_once():
    early, late = trial(steps=4, shots=2), trial(steps=12, shots=3)
    attempts, _ = minutes_of(course_of([early, late], [SPOT], lifetimes_min=[8], gpus_pretrain=0.5))
    assert attempts == {
        Stage("pretrain", early.pretrain_key): [(5, 13), (18, 26)],
        Stage("finetune", early.trial_id): [(9, 11)],
        Stage("finetune", late.trial_id): [(26, 29)],
    }


def test_all_stages_of_a_machine_are_interrupted_and_those_of_others_are_not():
    one, two, other = (trial("scratch", shots=shots) for shots in (10, 9, 8))
    kinds = [replace(SPOT, shape=Shape(2, 1))]
    attempts, machines = minutes_of(course_of([one, two, other], kinds, lifetimes_min=[6, math.inf]))
    assert attempts == {
        Stage("finetune", one.trial_id): [(5, 11), (11, 17)],  # beside the third: 5 of 10 saved, a minute of restart
        Stage("finetune", two.trial_id): [(5, 11), (13, 18)],
        Stage("finetune", other.trial_id): [(5, 13)],
    }
    assert [machine for machine in machines if machine[0] == 0] == [(0, 5, 11), (0, 5, 18)]
    assert (11, 16, 18) in machines  # was asked for at the interruption, and came when there was room elsewhere


def test_a_machine_that_stands_is_replaced():
    _, machines = minutes_of(course_of([trial("scratch", shots=20)], [SPOT], [8], standing={"l4-spot": 2}))
    assert machines == [(0, 5, 13), (0, 5, 29), (13, 18, 29)]  # goes on at once on the other one


def test_machines_on_demand_are_never_interrupted():
    assert course_of([trial("scratch", shots=20)], [ON_DEMAND], lifetimes_min=[1]).interruptions == 0


def test_a_run_that_is_not_over_at_the_limit_is_given_up():
    policy = Policy(plan_of([trial("scratch", shots=20)]), MINUTES)
    course = play(policy, [SPOT], terms(), lifetime=lambda: 120.0, limit_s=3600.0)
    assert course.makespan_s == math.inf
    assert course.interruptions > 5


# --- what holds for every run

PARTS = st.lists(
    st.tuples(st.sampled_from(["ddpm", "mocov3", "dino", "scratch"]), st.integers(1, 12), st.integers(1, 9)),
    min_size=1,
    max_size=12,
    unique=True,
)


def trials_of(parts):
    return list({spec.trial_id: spec for spec in (trial(*part) for part in parts)}.values())


@settings(max_examples=100, deadline=None)
@given(
    PARTS,
    st.integers(1, 4),
    st.sampled_from([1, 2]),
    st.integers(2, 8),
    st.integers(1, 2),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    st.booleans(),
)
def test_on_machines_that_stand_the_run_is_that_of_the_simulator(
    parts, num_machines, gpus, cpus_per_gpu, cpus, gpus_pretrain, gpus_finetune, share
):
    trials = trials_of(parts)
    kind = MachineType("standing", Shape(gpus * cpus_per_gpu, gpus), num_machines, spot=True)
    asked = {"gpus_pretrain": gpus_pretrain, "gpus_finetune": gpus_finetune, "cpus": cpus}
    course = course_of(trials, [kind], share=share, queue_s=0.0, standing={"standing": num_machines}, **asked)
    machine = Machine(
        gpus * num_machines,
        gpus_pretrain,
        gpus_finetune,
        cpus_per_gpu=cpus_per_gpu,
        cpus_per_stage=cpus,
        gpus_per_node=gpus,
    )
    schedule = simulate(Policy(plan_of(trials), MINUTES, share=share), machine, looks_ahead=False)
    assert course.makespan_s == schedule.makespan_s
    assert {(span.stage, span.start_s, span.end_s, span.gpus, span.node) for span in course.spans} == {
        (span.stage, span.start_s, span.end_s, span.gpus, span.node) for span in schedule.spans
    }
    assert [stay.hours * 3600 for stay in course.stays] == pytest.approx([schedule.makespan_s] * num_machines)


@settings(max_examples=100, deadline=None)
@given(
    PARTS,
    st.lists(st.floats(0.5, 40), max_size=40),
    st.integers(1, 3),
    st.sampled_from([0.0, 4.0]),
    st.sampled_from([0.25, 1.0]),
)
def test_every_interrupted_run_is_possible_and_does_all_the_work(parts, lifetimes, count, queue, gpus_finetune):
    trials = trials_of(parts)
    course = course_of(
        trials, [replace(SPOT, max_count=count)], lifetimes, queue_s=60 * queue, gpus_finetune=gpus_finetune
    )
    plan = plan_of(trials)
    work = {Stage("finetune", spec.trial_id): 60.0 * spec.shots for spec in trials}
    work |= {Stage("pretrain", key): 60.0 * item.fields.steps for key, item in plan.pretrainings.items()}
    attempts = {}
    for span in course.spans:
        attempts.setdefault(span.stage, []).append(span)
    assert attempts.keys() == work.keys()
    for stage, spans in attempts.items():
        assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(spans))
        trained = sum(max(0.0, span.end_s - span.start_s - 60 * (number > 0)) for number, span in enumerate(spans))
        assert trained >= work[stage] - 1e-6
        assert trained - work[stage] <= 300 * (len(spans) - 1) + 1e-6  # an attempt loses at most what it had not saved
    for moment in {span.start_s for span in course.spans}:
        live = [span for span in course.spans if span.start_s <= moment < span.end_s]
        for gpu in {gpu for span in live for gpu in span.gpus}:
            assert sum(span.request for span in live if gpu in span.gpus) <= UNIT
        held = {gpu for span in live for gpu in span.gpus}
        up = sum(stay.up_s <= moment < stay.end_s for stay in course.stays)
        there = sum(stay.asked_s <= moment < stay.end_s for stay in course.stays)
        assert len(held) <= up <= there <= count
    assert course.makespan_s == max(span.end_s for span in course.spans)
    assert max(stay.end_s for stay in course.stays) == course.makespan_s


@settings(max_examples=40, deadline=None)
@given(PARTS, st.floats(0.05, 1.5), st.floats(3, 8), st.integers(0, 10))
def test_on_one_gpu_interruptions_never_help_and_more_of_them_make_the_median_no_shorter(parts, rate, times, seed):
    def run(per_hour):
        fleet = Fleet((replace(SPOT, max_count=1),), HEAD, queue_minutes=3, interruptions_per_hour=per_hour)
        options = {"gpus_per_finetune": 1.0}
        return estimate(plan_of(trials_of(parts)), fleet, options, lambda *gpus: MINUTES, seed=seed)

    few, many = run(rate), run(rate * times)
    for found in (few, many):
        assert all(bill.makespan_s >= found.calm.makespan_s - 1e-6 for bill in found.interrupted.bills)
        assert all(bill.cost >= found.calm.cost - 1e-6 for bill in found.interrupted.bills)
    assert many.interrupted.makespan_s.median >= few.interrupted.makespan_s.median - 1e-6
    assert few.calm == many.calm


@settings(max_examples=25, deadline=None)
@given(PARTS, st.floats(0.1, 50), st.booleans())
def test_the_cost_is_proportional_to_the_prices(parts, factor, spot):
    def run(scale):
        kinds = (SPOT if spot else ON_DEMAND, HEAD)
        worker, head = (replace(kind, price_per_hour=kind.price_per_hour * scale) for kind in kinds)
        fleet = Fleet((worker,), head, queue_minutes=3, interruptions_per_hour=0.3)
        return estimate(plan_of(trials_of(parts)), fleet, {}, lambda *gpus: MINUTES)

    once, scaled = run(1.0), run(factor)
    assert scaled.calm.cost == pytest.approx(once.calm.cost * factor)
    assert (scaled.calm.makespan_s, scaled.calm.gpu_hours) == (once.calm.makespan_s, once.calm.gpu_hours)
    if spot:
        assert scaled.interrupted.makespan_s == once.interrupted.makespan_s
        assert scaled.interrupted.cost.high == pytest.approx(once.interrupted.cost.high * factor)


@settings(max_examples=25, deadline=None)
@given(PARTS, st.integers(1, 4))
def test_spot_machines_that_are_never_taken_back_are_like_those_on_demand(parts, count):
    plan = plan_of(trials_of(parts))
    spot = Fleet((replace(SPOT, max_count=count),), HEAD, queue_minutes=3, interruptions_per_hour=1e-12)
    firm = replace(spot, workers=(replace(SPOT, max_count=count, spot=False),))
    never, calm = (estimate(plan, fleet, {}, lambda *gpus: MINUTES) for fleet in (spot, firm))
    assert calm.interrupted is None
    assert all(bill == calm.calm for bill in [never.calm, *never.interrupted.bills])


@pytest.mark.parametrize("name", shipped_grids())
def test_shipped_search_spaces_take_no_less_than_the_lower_bound_and_their_start(name):
    plan = plan_of(load_grid(find_grid(name)).trials)
    found = estimate(plan, Fleet((ON_DEMAND,), HEAD, queue_minutes=4), {})
    bounds = lower_bounds(plan, default_costs(), Machine(8, cpus_per_gpu=8))
    assert bounds.largest_s + 8 * 60 <= found.calm.makespan_s <= 1.3 * bounds.largest_s + 10 * 60


def test_the_same_seed_gives_the_same_figures_and_another_one_others():
    plan = plan_of([trial(steps=120, shots=9), trial("mocov3", steps=90, shots=5)])
    fleet = Fleet((SPOT,), HEAD, queue_minutes=5, interruptions_per_hour=0.5)
    one, again, other = (estimate(plan, fleet, {}, lambda *gpus: MINUTES, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.interrupted != other.interrupted
    assert len(one.interrupted.bills) == 200


def test_interruptions_come_as_often_as_expected():
    plan = plan_of([trial("scratch", shots=600)])  # ten hours
    fleet = Fleet((SPOT,), queue_minutes=5, interruptions_per_hour=0.3)
    bills = estimate(plan, fleet, {}, lambda *gpus: MINUTES).interrupted.bills
    up_hours = sum(bill.hours - (bill.interruptions + 1) * 5 / 60 for bill in bills)
    assert sum(bill.interruptions for bill in bills) / up_hours == pytest.approx(0.3, rel=0.15)  # 600 of them: 4 %


def test_a_spread_is_made_of_values_that_occurred():
    assert Spread.of([*range(1, 101)]) == Spread(5, 50, 95)
    assert Spread.of([2.0, math.inf, 1.0]) == Spread(1.0, 2.0, math.inf)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_the_more_work_the_fewer_runs_are_simulated():
    def num_runs(num_trials):
        trials = [trial("scratch", shots=5, seed=seed) for seed in range(num_trials)]
        fleet = Fleet((SPOT,), queue_minutes=5, interruptions_per_hour=0.01)
        return len(estimate(plan_of(trials), fleet, {}, lambda *gpus: MINUTES).interrupted.bills)

    assert num_runs(10) == 200
    assert 60 <= num_runs(1000) <= 80


# --- options and fleets


def test_the_costs_are_asked_for_at_the_shares_that_stages_hold():
    asked = []

    def costs(gpus_pretrain, gpus_finetune):
        asked.append((gpus_pretrain, gpus_finetune))
        return MINUTES

    fleet, cpus = Fleet((ON_DEMAND,)), Fleet((MachineType("cpu", Shape(4), 2),))
    estimate_of([trial()], fleet, costs)
    estimate_of([trial()], fleet, costs, no_share=True)  # a whole trial fine-tunes on what its pre-training holds
    estimate_of([trial()], fleet, costs, gpus_per_pretrain=0.5, gpus_per_finetune=0.1)
    estimate_of([trial()], cpus, costs)
    assert asked == [(1.0, 0.25), (1.0, 1.0), (0.5, 0.1), (0.0, 0.0)]


def test_options_of_a_run_change_the_estimate():
    trials = [trial("scratch", shots=shots) for shots in (4, 3)]
    fleet = Fleet((replace(ON_DEMAND, max_count=1),))
    assert estimate_of(trials, fleet).calm.makespan_s == 4 * 60
    assert estimate_of(trials, fleet, max_concurrent=1).calm.makespan_s == 7 * 60
    assert estimate_of(trials, fleet, cpus_per_stage=8).calm.makespan_s == 7 * 60
    assert estimate_of(trials, fleet, gpus_per_finetune=1.0).calm.makespan_s == 7 * 60
    spot = Fleet((SPOT,), queue_minutes=5, interruptions_per_hour=3.0)
    often, seldom = (estimate_of([trial("scratch", shots=60)], spot, checkpoint_minutes=m).interrupted for m in (0, 20))
    assert often.makespan_s.median < seldom.makespan_s.median


@pytest.mark.parametrize(
    ("workers", "options", "problem"),
    [
        ([ON_DEMAND], {"gpus_per_pretrain": 2}, "--gpus-per-pretrain must be at most 1: a stage runs on one node"),
        ([ON_DEMAND], {"cpus_per_stage": 9}, "--cpus-per-stage must be at most 8 beside --gpus-per-pretrain 1"),
        ([ON_DEMAND], {"accelerator_type": "H100"}, "--accelerator-type must be one of L4, the accelerators of"),
        ([replace(ON_DEMAND, max_count=0)], {}, "FILE must have machines that stages can run on"),
        ([], {}, "FILE must have machines that stages can run on"),
    ],
)
def test_what_no_machine_can_give_is_refused_before_anything_is_paid_for(workers, options, problem):
    with pytest.raises(InputError, match=problem) as caught:
        estimate(plan_of([trial()]), Fleet(tuple(workers), HEAD), options, where="FILE")
    assert "\n" not in str(caught.value)


def test_a_guess_refuses_nothing_and_says_that_it_is_one():
    fleet = Fleet((MachineType("node", Shape(1), 2, min_count=2),), is_guess=True)
    asked = {"gpus_per_pretrain": 2, "cpus_per_stage": 16, "accelerator_type": "H100"}
    found = estimate_of([trial()], fleet, **asked)
    assert found.workers[0].shape == Shape(16, 2, frozenset({"H100"}))
    guess = "the CPUs and GPUs of the machines are not written in the file, and are a guess; so are the times"
    assert found.notes[-1] == guess
    assert estimate_of([trial()], fleet).workers == fleet.workers


def test_the_interruptions_of_a_file_that_gives_none_are_assumed():
    trials = [trial("scratch", shots=60)]
    told = estimate_of(trials, Fleet((SPOT,), queue_minutes=5, interruptions_per_hour=INTERRUPTIONS_PER_HOUR))
    silent = estimate_of(trials, Fleet((SPOT,), queue_minutes=5))
    assert silent.interrupted.bills == told.interrupted.bills
    assert (silent.interrupted.is_assumed, told.interrupted.is_assumed) == (True, False)


def test_where_no_stage_gets_on_few_runs_are_tried():
    fleet = Fleet((SPOT,), queue_minutes=5, interruptions_per_hour=60.0)
    found = estimate_of([trial("scratch", shots=60)], fleet, checkpoint_minutes=30)
    storm = found.interrupted
    assert storm.makespan_s == storm.gpu_hours == storm.hours == storm.cost == Spread(math.inf, math.inf, math.inf)
    assert len(found.interrupted.bills) == 3
    text = "\n".join(estimate_lines(found))
    assert "no end" in text
    assert "3 of 3 simulated runs did not get on" in text


def test_a_cost_with_a_price_that_nobody_knows_is_not_known():
    trials = [trial(shots=4)]
    cheap = Fleet((ON_DEMAND,), replace(HEAD, price_per_hour=None), queue_minutes=5)
    found = estimate_of(trials, cheap)
    assert found.calm.cost is None
    assert "the cost is not known: the file gives no price of an hour of small" in found.notes
    free = Fleet((replace(ON_DEMAND, price_per_hour=None),), queue_minutes=5)
    assert estimate_of(trials, free).notes == ()
    unused = Fleet((ON_DEMAND, MachineType("large", Shape(64, 8), 1)), HEAD, queue_minutes=5)
    assert estimate_of(trials, unused).calm.cost is not None


def test_machines_that_the_file_keeps_up_cost_from_the_first_minute_to_the_last():
    fleet = Fleet((replace(ON_DEMAND, max_count=2, min_count=1), replace(OTHER, min_count=1)), queue_minutes=5)
    for options in ({}, {"accelerator_type": "L4"}):  # also one that no stage may use
        calm = estimate_of([trial("scratch", shots=20)], fleet, **options).calm
        assert calm.makespan_s == 25 * 60  # they come up with the launch
        assert calm.machine_hours == {"l4": pytest.approx(25 / 60), "l40s": pytest.approx(25 / 60)}
        assert calm.cost == pytest.approx(25 / 60 * (6.0 + 9.0))


@pytest.mark.parametrize(
    ("fleet", "options", "note"),
    [
        (Fleet((ON_DEMAND,)), {"cpus_per_stage": 4}, "its CPUs only 2 with --cpus-per-stage 4"),
        (Fleet((ON_DEMAND, OTHER)), {}, "GPUs of several types, which count as equally fast; which of them come"),
        (Fleet((ON_DEMAND, OTHER)), {"accelerator_type": "L4"}, "no stage fits, or may use, l40s"),
        (Fleet((ON_DEMAND,), replace(HEAD, spot=True)), {}, "the head small is a spot machine"),
    ],
)
def test_what_a_reader_must_know_is_noted(fleet, options, note):
    (found,) = estimate_of([trial()], replace(fleet, queue_minutes=5), **options).notes
    assert note in found


def test_default_times_on_slow_gpus_are_said_to_be_too_short():
    def notes(kind, costs=None):
        shape = Shape(8, 1, frozenset({kind} if kind else ()))
        fleet = Fleet((replace(ON_DEMAND, shape=shape),), queue_minutes=5)
        return estimate(plan_of([trial()]), fleet, {}, costs).notes

    (note,) = notes("T4")
    assert "for an A100, with 156 TFLOPS at its peak; T4 has 8.1: expect it to take longer" in note
    assert notes("L40S") == notes("H100") == notes("unheard-of") == notes(None) == ()
    assert notes("T4", lambda *gpus: MINUTES) == ()  # measured times are those of the GPUs that were measured


# --- in words


def test_the_lines_of_a_cloud_are_aligned_and_complete():
    prices = "a price list, 2025-11-03"
    fleet = Fleet((SPOT,), HEAD, queue_minutes=5, interruptions_per_hour=0.0001, prices_from=prices)
    found = estimate(
        plan_of([trial(steps=50, shots=4), trial(steps=50, shots=6)]),
        fleet,
        {"cpus_per_stage": 2},
        lambda *gpus: MINUTES,
        source="measured in runs/earlier",
    )
    assert estimate_lines(found) == [
        "  machines       head small (on demand, 2 CPU), up to 8 x l4-spot (spot, 8 CPU, 1 GPU L4)",
        "  each stage     1 GPU and 2 CPUs to pre-train, 0.25 GPU and 2 CPUs to fine-tune",
        "                                time   GPU-hours       cost",
        "  without interruptions   1 h 06 min        1.02   6.76 USD",
        "  with them, median       1 h 06 min        1.02   6.76 USD",
        "    5 % are below         1 h 06 min        1.02   6.76 USD",
        "    5 % are above         1 h 06 min        1.02   6.76 USD",
        "  interruptions  0.0001 an hour of each spot machine, one in 10000 h 00 min (as the file gives it); "
        "200 simulated runs",
        "  times          measured in runs/earlier",
        "  prices         a price list, 2025-11-03; disks, traffic and the store are not counted",
    ]


def test_the_lines_of_machines_without_prices_tell_time_and_hours_only():
    fleet = Fleet((MachineType("pc", Shape(4), 2, min_count=2),))
    assert estimate_lines(estimate_of([trial("scratch", shots=30)], fleet)) == [
        "  machines       2 x pc (4 CPU)",
        "  each stage     1 CPU to pre-train, 1 CPU to fine-tune",
        "                            time   machine-hours",
        "  without interruptions   30 min            1.00",
        "  times          by hand",
    ]


def test_the_default_times_are_said_to_be_estimates():
    (*_, times) = estimate_lines(
        estimate(plan_of([trial()]), Fleet((MachineType("pc", Shape(4), 2, min_count=2),)), {})
    )
    assert times == (
        "  times          estimated for one CPU core, right within a factor of a few; --costs RUN takes them from an "
        "earlier run"
    )


def test_a_time_to_come_that_nobody_tells_is_noted_and_a_head_without_stages_is_one_for_the_driver():
    fleet = Fleet((MachineType("gpu", L4, 8),), MachineType("head", Shape(0), 1))
    assert estimate_lines(estimate_of([trial("scratch", shots=30)], fleet)) == [
        "  machines       head (for the driver only), up to 8 x gpu (8 CPU, 1 GPU L4)",
        "  each stage     1 GPU and 1 CPU to pre-train, 0.25 GPU and 1 CPU to fine-tune",
        "                            time   GPU-hours",
        "  without interruptions   30 min        0.50",
        "  times          by hand",
        "  note: how long a machine takes to come up is not known: it counts as up as soon as a stage waits for it",
    ]


def test_the_lines_say_what_is_assumed_in_plain_ascii():
    fleet = Fleet((SPOT,), replace(HEAD, name="head", price_per_hour=None), queue_minutes=5)
    text = "\n".join(estimate_lines(estimate_of([trial("scratch", shots=60)], fleet)))
    assert text.isascii()
    assert "  machines       head (on demand, 2 CPU), up to" in text
    assert "0.05 an hour of each spot machine, one in 20 h 00 min (assumed: the file gives none)" in text
    assert "USD" not in text
    assert "note: the cost is not known: the file gives no price of an hour of head" in text


def test_estimating_needs_no_torch_and_no_ray():
    code = "import sys, ablate.launch.estimate.words; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
