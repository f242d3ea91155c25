"""The simulator: hand-worked schedules, what no schedule may violate, and how near the policy comes to the least."""

import itertools
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ablate.cli.app import app
from ablate.errors import InputError
from ablate.running.plan_words import forecast_lines
from ablate.schedule.costs import default_costs
from ablate.schedule.fitting import Shape
from ablate.schedule.forecast import Bounds, best_packing, forecast, lower_bounds
from ablate.schedule.machine import UNIT, Machine, Place, Pool
from ablate.schedule.policy import Policy
from ablate.schedule.simulate import simulate
from ablate.schedule.stages import Costs, Stage
from ablate.space import TrialSpec, find_grid, load_grid, plan_of, shipped_grids


def trial(method="ddpm", steps=100, shots=5, **pretrain):
    fields = {"method": method, **({} if method == "scratch" else {"steps": steps}), **pretrain}
    return TrialSpec.model_validate({"dataset": "synthetic", "shots": shots, "pretrain": fields})


COSTS = Costs(pretrain_step=lambda pretraining: 1.0, finetune=lambda spec: float(spec.shots))
"""A second for each pre-training step, and for each annotated image of a fine-tuning."""


def run(trials, machine, share=True, **how):
    schedule = simulate(Policy(plan_of(trials), COSTS, share=share), machine, **how)
    return schedule, {span.stage: (span.start_s, span.end_s, span.gpus) for span in schedule.spans}


# --- hand-worked schedules


def test_a_schedule_on_two_gpus_worked_by_hand():
    three, two, five, one = (
        trial(steps=4, shots=3),
        trial(steps=4, shots=2),
        trial("mocov3", 2, 5),
        trial("scratch", 0, 1),
    )
    schedule, spans = run([three, two, five, one], Machine(2, 1, 0.5))
    assert spans == {
        Stage("pretrain", three.pretrain_key): (0, 4, (0,)),
        Stage("pretrain", five.pretrain_key): (0, 2, (1,)),
        Stage("finetune", one.trial_id): (2, 3, (1,)),  # was next in line when the snapshot of five came
        Stage("finetune", five.trial_id): (2, 7, (1,)),
        Stage("finetune", three.trial_id): (4, 7, (1,)),  # beside five: the fullest GPU with room
        Stage("finetune", two.trial_id): (4, 6, (0,)),
    }
    assert schedule.makespan_s == 7
    assert schedule.gpu_seconds == 4 + 2 + 0.5 * (1 + 5 + 3 + 2)
    assert schedule.idle_share == pytest.approx(1 - 11.5 / 14)
    assert lower_bounds(plan_of([three, two, five, one]), COSTS, Machine(2, 1, 0.5)) == Bounds(7, 11.5 / 2, 7)


def test_a_snapshot_in_passing_lets_its_trials_start_while_the_pretraining_goes_on():
    early, late = trial(steps=2, shots=3), trial(steps=6, shots=3)
    schedule, spans = run([early, late], Machine(2, 1, 1))
    assert spans[Stage("pretrain", early.pretrain_key)] == (0, 6, (0,))
    assert spans[Stage("finetune", early.trial_id)] == (2, 5, (1,))
    assert spans[Stage("finetune", late.trial_id)] == (6, 9, (0,))
    assert schedule.idle_share == pytest.approx(1 / 3)


def test_a_whole_gpu_is_given_out_only_when_empty_and_nothing_overtakes_who_waits_for_it():
    long, after, short = trial("scratch", shots=4), trial(steps=2, shots=1), trial("scratch", shots=2)
    schedule, spans = run([long, after, short], Machine(1, 1, 0.5), looks_ahead=False)
    assert spans[Stage("finetune", long.trial_id)][:2] == (0, 4)
    assert spans[Stage("pretrain", after.pretrain_key)][:2] == (4, 6)
    assert spans[Stage("finetune", short.trial_id)][:2] == (6, 8)
    assert schedule.makespan_s == 8


def test_a_whole_gpu_goes_first_where_a_drained_one_would_come_later():
    long, after, short = trial("scratch", shots=4), trial(steps=2, shots=1), trial("scratch", shots=2)
    schedule, spans = run([long, after, short], Machine(1, 1, 0.5))
    assert spans[Stage("pretrain", after.pretrain_key)][:2] == (0, 2)
    assert spans[Stage("finetune", long.trial_id)][:2] == (2, 6)
    assert schedule.makespan_s == 6


def test_where_two_stages_wait_at_a_time_the_first_that_fits_starts():
    long, after, short = trial("scratch", shots=4), trial(steps=2, shots=1), trial("scratch", shots=2)
    schedule, spans = run([long, after, short], Machine(1, 1, 0.5, pending=2))
    assert spans[Stage("finetune", short.trial_id)][:2] == (0, 2)
    assert schedule.makespan_s == 7


def test_a_stage_of_two_gpus_waits_for_two_empty_ones():
    one, two = trial("scratch", shots=3), trial(steps=1, shots=1)
    _, spans = run([one, two], Machine(2, 2, 1), looks_ahead=False)
    assert spans[Stage("pretrain", two.pretrain_key)] == (3, 4, (0, 1))


def test_without_gpus_slots_limit_the_stages():
    trials = [trial("scratch", shots=shots) for shots in (4, 3, 2)]
    schedule, _ = run(trials, Machine(0, 0, 0, slots=2))
    assert schedule.makespan_s == 5
    assert schedule.idle_share == pytest.approx(1 / 10)


def test_without_sharing_every_trial_pretrains_for_itself_on_a_whole_gpu():
    trials = [trial(steps=4, shots=3), trial(steps=4, shots=2), trial("scratch", shots=1)]
    schedule, _ = run(trials, Machine(1, 1, 0.25), share=False)
    assert schedule.makespan_s == schedule.gpu_seconds == (4 + 3) + (4 + 2) + 1
    assert run(trials, Machine(1, 1, 0.25))[0].makespan_s == 4 + 3


def test_ten_shares_of_a_tenth_fill_a_gpu_exactly():
    trials = [trial("scratch", shots=n) for n in range(1, 12)]
    _, spans = run(trials, Machine(1, 1, 0.1))
    assert sum(start == 0 for start, _, _ in spans.values()) == 10


# --- with CPUs counted

WORKER = {"cpus_per_gpu": 8, "cpus_per_stage": 4}
"""Nodes of 8 CPUs and 1 GPU, and stages that ask for half of the CPUs."""


def test_where_stages_ask_for_many_cpus_two_quarters_of_a_gpu_run_and_not_four():
    trials = [trial("scratch", shots=shots) for shots in (5, 4, 3, 2)]
    assert run(trials, Machine(1, 1, 0.25, cpus_per_gpu=8, cpus_per_stage=2))[0].makespan_s == 5
    schedule, spans = run(trials, Machine(1, 1, 0.25, **WORKER))
    assert {spans[Stage("finetune", spec.trial_id)][:2] for spec in trials} == {(0, 5), (0, 4), (4, 7), (5, 7)}
    assert schedule.makespan_s == 7
    assert lower_bounds(plan_of(trials), COSTS, Machine(1, 1, 0.25, **WORKER)).work_s == 14 / 2


def test_a_finetuning_goes_to_another_gpu_when_the_cpus_beside_the_fullest_are_taken():
    trials = [trial("scratch", shots=shots) for shots in (5, 4, 3)]
    _, spans = run(trials, Machine(2, 1, 0.25, **WORKER))
    assert [spans[Stage("finetune", spec.trial_id)] for spec in trials] == [(0, 5, (0,)), (0, 4, (0,)), (0, 3, (1,))]


def test_a_stage_of_two_gpus_takes_them_from_one_node():
    small, large = trial("scratch", shots=9), trial(steps=1, shots=1)
    machine = Machine(4, 2, 1, cpus_per_gpu=1, gpus_per_node=2)
    _, spans = run([small, large], machine)
    assert spans[Stage("finetune", small.trial_id)][2] == (0,)
    assert spans[Stage("pretrain", large.pretrain_key)] == (0, 1, (2, 3))
    assert (machine.num_nodes, machine.places) == (2, 4)


def test_stages_without_a_gpu_are_limited_by_the_cpus():
    trials = [trial("scratch", shots=shots) for shots in (4, 3, 2)]
    assert run(trials, Machine(1, 1, 0, **WORKER))[0].makespan_s == 5


# --- nodes that come and go


def test_a_node_that_is_added_has_gpus_of_its_own_and_takes_them_with_it():
    pool = Pool(1)
    assert pool.take(UNIT) is None
    first, second = pool.add(Shape(8, 1)), pool.add(Shape(8, 2))
    assert pool.take(2 * UNIT) == Place(second, (1, 2))
    assert pool.take(UNIT) == Place(first, (0,))
    pool.remove(second)
    assert pool.take(UNIT) is None
    pool.give_back(Place(second, (1, 2)), 2 * UNIT)  # nobody has it any more
    assert pool.take(UNIT // 4) is None
    assert pool.take(UNIT // 4) is None
    pool.give_back(Place(first, (0,)), UNIT)
    assert pool.take(UNIT // 4) == Place(first, (0,))
    assert pool.add(Shape(2, 1)) == 2
    assert pool.take(UNIT) == Place(2, (3,))


def test_slots_count_over_all_nodes_and_come_back_from_those_that_have_gone():
    pool = Pool(1, slots=2)
    node, other = pool.add(Shape(8)), pool.add(Shape(4))
    places = [pool.take(0), pool.take(0)]
    assert places == [Place(node, ()), Place(node, ())]
    assert pool.take(0) is None
    pool.remove(node)
    for place in places:
        pool.give_back(place, 0)
    assert pool.take(0) == Place(other, ())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_share_goes_to_the_fullest_gpu_with_room_beside_free_cpus(data):
    pool, free, cpus, held = Pool(1), {}, {}, []
    for _ in range(30):
        if not cpus or data.draw(st.integers(0, 9)) == 0:
            shape = Shape(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2)))
            node, next_gpu = pool.add(shape), len(free)
            free |= {next_gpu + number: (node, UNIT) for number in range(int(shape.gpus))}
            cpus[node] = shape.cpus
        elif held and data.draw(st.booleans()):
            place, request = held.pop(data.draw(st.integers(0, len(held) - 1)))
            pool.give_back(place, request)
            cpus[place.node] += 1
            free[place.gpus[0]] = (place.node, free[place.gpus[0]][1] + request)
        else:
            request = data.draw(st.sampled_from([1000, 2500, 5000, UNIT]))
            fits = [(left, gpu) for gpu, (node, left) in free.items() if left >= request and cpus[node] >= 1]
            place = pool.take(request)
            assert (place is None) == (not fits)
            if place is not None:
                left, gpu = min(fits)
                assert place == Place(free[gpu][0], (gpu,))
                cpus[place.node] -= 1
                free[gpu] = (place.node, left - request)
                held.append((place, request))


# --- what holds for every schedule

PARTS = st.lists(
    st.tuples(st.sampled_from(["ddpm", "mocov3", "dino", "scratch"]), st.integers(1, 4), st.integers(1, 6)),
    min_size=1,
    max_size=14,
)
MACHINES = st.builds(
    Machine,
    st.integers(2, 5),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([1, 4]),
) | st.builds(
    Machine,
    st.sampled_from([2, 4, 6]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]),
    st.sampled_from([None, 3]),
    st.sampled_from([1, 4]),
    cpus_per_gpu=st.integers(2, 8),
    cpus_per_stage=st.integers(1, 4),
    gpus_per_node=st.just(2),
)
SECONDS = st.fixed_dictionaries({name: st.floats(0.1, 5) for name in ("ddpm", "mocov3", "dino")})


def plan_and_costs(parts, seconds):
    plan = plan_of(
        {spec.trial_id: spec for spec in (trial(method, steps, shots) for method, steps, shots in parts)}.values()
    )
    # irrational-looking times, so that no two chains are equal by chance
    return plan, Costs(
        lambda item: seconds[item.fields.method], lambda spec: spec.shots * 1.37 + int(spec.trial_id, 16) / 16**12
    )


@settings(max_examples=150, deadline=None)
@given(PARTS, MACHINES, SECONDS, st.booleans())
def test_every_schedule_is_possible_complete_and_not_below_the_lower_bound(parts, machine, seconds, share):
    plan, costs = plan_and_costs(parts, seconds)
    schedule = simulate(Policy(plan, costs, share=share), machine)
    spans = schedule.spans
    assert Counter(span.stage for span in spans if span.stage.kind != "pretrain") == Counter(
        Stage("finetune" if share else "trial", spec.trial_id) for spec in plan.trials
    )
    assert sorted(span.stage.name for span in spans if span.stage.kind == "pretrain") == (
        sorted(plan.pretrainings) if share else []
    )
    began = {span.stage: span.start_s for span in spans}
    for spec in plan.trials if share else ():
        if spec.pretraining is not None:
            snapshot_s = spec.pretraining.fields.steps * seconds[spec.method]
            ready = began[Stage("pretrain", spec.pretrain_key)] + snapshot_s
            assert began[Stage("finetune", spec.trial_id)] >= ready - 1e-9
    for moment in began.values():
        live = [span for span in spans if span.start_s <= moment < span.end_s]
        assert machine.slots is None or len(live) <= machine.slots
        for gpu in range(machine.gpus):
            held = [min(span.request, UNIT) for span in live if gpu in span.gpus]
            assert sum(held) <= UNIT
        for node in range(machine.num_nodes):
            here = [span for span in live if span.node == node]
            assert len(here) * machine.cpus_per_stage <= machine.node.cpus
            assert {gpu // machine.node.gpus for span in here for gpu in span.gpus} <= {node}
    assert schedule.makespan_s >= lower_bounds(plan, costs, machine, share=share).largest_s * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(PARTS, MACHINES, SECONDS, st.randoms())
def test_the_order_of_the_file_does_not_matter_and_times_scale(parts, machine, seconds, chance):
    plan, costs = plan_and_costs(parts, seconds)
    mixed = list(plan.trials)
    chance.shuffle(mixed)
    slow = Costs(lambda item: 4 * costs.pretrain_step(item), lambda spec: 4 * costs.finetune(spec))
    makespan_s = simulate(Policy(plan, costs), machine).makespan_s
    if len({costs.pretrain_step(item) for item in plan.pretrainings.values()}) == len(plan.pretrainings):
        assert simulate(Policy(plan_of(mixed), costs), machine).makespan_s == pytest.approx(makespan_s)
    assert simulate(Policy(plan, slow), machine).makespan_s == pytest.approx(4 * makespan_s)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=7), st.integers(1, 3))
def test_the_best_packing_of_few_jobs_is_that_of_trying_everything(jobs, lanes):
    least = min(
        max(sum(job for job, lane in zip(jobs, choice, strict=True) if lane == number) for number in range(lanes))
        for choice in itertools.product(range(lanes), repeat=len(jobs))
    )
    assert best_packing(jobs, lanes) == least


def test_five_pretrainings_on_four_gpus_put_two_on_one():
    assert best_packing([10, 9, 8, 7, 6], 4) == 13
    assert best_packing([10] * 500 + [1], 250) == 21


def test_the_packing_bound_counts_the_finetuning_behind_the_last_pretraining():
    trials = [trial(method, 10, 4) for method in ("ddpm", "mocov3", "dino")]
    bounds = lower_bounds(plan_of(trials), COSTS, Machine(2, 1, 0.25))
    assert bounds == Bounds(chain_s=14, work_s=(30 + 3) / 2, packing_s=24)


# --- how near the policy comes


FEW_STAGES = {"scn-cpu": 4 / 3, "why-ddpm-cpu": 1.15}
"""Search spaces with so few stages that no order comes nearer: 6 equal ones on the 4 places of a GPU take 2 rounds."""


@pytest.mark.parametrize("name", shipped_grids())
def test_shipped_search_spaces_end_within_a_twentieth_of_the_lower_bound(name):
    plan = plan_of(load_grid(find_grid(name)).trials)
    for gpus in (1, 4, 8, 32, 64):
        assert forecast(plan, default_costs(), Machine(gpus)).ratio <= FEW_STAGES.get(name, 1.05) + 1e-9


# --- the command


def plan_output(*arguments):
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_plan_prints_the_prediction_with_and_without_sharing():
    lines = plan_output("--grid", "paper", "--gpus", "8").splitlines()
    shared, alone = (
        next(line.split() for line in lines if line.startswith(f"    {name}  ")) for name in ("shared", "not shared")
    )
    schedule = forecast(plan_of(load_grid(find_grid("paper")).trials), default_costs(), Machine(8)).schedule
    hours, minutes, seconds = map(int, shared[1].split(":"))
    assert abs(hours * 3600 + minutes * 60 + seconds - schedule.makespan_s) <= 1
    assert float(shared[2]) == pytest.approx(schedule.gpu_seconds / 3600, abs=0.01)
    assert float(shared[-1]) <= 1.05
    assert float(alone[3].replace(",", "")) > 5 * float(shared[2])


def test_plan_without_gpus_predicts_for_cpu_slots_and_only_what_is_asked_for():
    text = plan_output("--grid", "demo", "--slots", "2", "--no-share")
    assert "2 slots" in text
    assert "    not shared  " in text
    assert "    shared  " not in text
    assert "prediction" not in plan_output("--grid", "demo")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--gpus", "0"], "--slots must be given where --gpus is 0"),
        (["--gpus", "-1"], "--gpus must be at least 0"),
        (["--gpus", "2", "--gpus-per-pretrain", "3"], "--gpus-per-pretrain must be at most --gpus, 2; got 3"),
        (["--gpus", "2", "--gpus-per-finetune", "1.5"], "--gpus-per-finetune must be a share of a GPU"),
        (["--gpus", "2", "--gpus-per-finetune", "nan"], "--gpus-per-finetune must be a share of a GPU"),
        (["--gpus", "2", "--gpus-per-finetune", "0"], "--slots must be given where --gpus-per-finetune is 0"),
        (["--no-share"], "--gpus or --slots must be given"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(arguments, problem):
    with pytest.raises(InputError, match=problem):
        plan_output("--grid", "demo", *arguments)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"cpus_per_stage": 2}, "--cpus-per-gpu must be given for --cpus-per-stage and --gpus-per-node to count"),
        ({"cpus_per_gpu": 0}, "must be at least 1; got 0, 1, 1"),
        ({"cpus_per_gpu": 8, "gpus_per_node": 3}, "--gpus must be a multiple of --gpus-per-node, 3; got 8"),
        ({"cpus_per_gpu": 8, "cpus_per_stage": 9}, "--cpus-per-stage must be at most 8 beside --gpus-per-pretrain 1"),
        ({"cpus_per_gpu": 8, "gpus_pretrain": 2}, "--gpus-per-pretrain must be at most 1: a stage runs on one node"),
        ({"gpus": 0, "slots": 2, "cpus_per_gpu": 8, "gpus_pretrain": 0, "gpus_finetune": 0}, "must be left out where"),
    ],
)
def test_nodes_that_cannot_be_are_refused(fields, problem):
    with pytest.raises(InputError, match=problem):
        Machine(**{"gpus": 8, **fields})


def test_the_prediction_says_when_cpus_keep_finetunings_from_sharing_a_gpu():
    plan = plan_of(load_grid(find_grid("demo")).trials)
    machine = Machine(8, **WORKER)
    lines = forecast_lines([forecast(plan, default_costs(), machine)], machine, "estimated")
    assert (
        "8 GPUs in nodes of 8 CPUs and 1 GPU (1 per pre-training, 0.25 per fine-tuning, 4 CPUs per stage)" in lines[0]
    )
    (note,) = [line for line in lines if "note" in line]
    assert "its CPUs only 2 with --cpus-per-stage 4" in note
    enough = Machine(8, cpus_per_gpu=8, cpus_per_stage=2)
    assert not any("note" in line for line in forecast_lines([forecast(plan, default_costs(), enough)], enough, ""))


def test_simulating_needs_no_torch_and_no_ray():
    code = "import sys, ablate.schedule.forecast; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
