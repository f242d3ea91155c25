"""The course of a tuning: rounds, halves, failures, the choice; the samplers; the records in the store."""

import math
import random
from collections import Counter

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuned import load_space, tune_section

from ablate import tables
from ablate.errors import InputError
from ablate.schedule.forecast import forecast
from ablate.schedule.machine import Machine
from ablate.schedule.stages import Costs
from ablate.space import plan_of
from ablate.stats import best_so_far, expected_best
from ablate.store import Store
from ablate.tuning import (
    Ask,
    Course,
    Over,
    Result,
    Run,
    read_configurations,
    read_result,
    write_configurations,
    write_result,
)
from ablate.tuning.export import export_storage
from ablate.tuning.sampling import ask


def study_of(tmp_path, number=0, **changes):
    return load_space(tmp_path / "space.yaml", tune=tune_section(**changes)).studies[number]


def play(study, value_of, courses=None, chance=None):
    """Take a course to its end; results come in an order of `chance`. Returns it, and the segments that ran."""
    course, results, ran = courses or Course(study, []), {}, []
    while True:
        step = course.next(results)
        if isinstance(step, Ask):
            course.add(ask(study, course.configurations, step.size))
        elif isinstance(step, Over):
            return course, step, ran
        else:
            assert isinstance(step, Run)
            segments = list(step.segments)
            if chance is not None:
                chance.shuffle(segments)
                segments = segments[:1]
            for segment in segments:
                ran.append(segment)
                results[segment.key] = Result(value_of(segment), 1, 0.5)


def by_rate(segment):
    """Return an error with its minimum at a learning rate of 0.01, which falls as training goes on."""
    return abs(math.log10(segment.trial.finetune.lr) + 2) + 1 / segment.until + segment.trial.seed / 1e6


def told(course):
    return [(c.number, c.round, dict(c.settings), c.state, c.value, c.values, c.chosen) for c in course.configurations]


def test_the_default_comes_first_and_the_least_value_is_chosen(tmp_path):
    course, step, _ = play(study_of(tmp_path, budget=8), by_rate)
    assert [c.number for c in course.configurations] == list(range(8))
    assert course.configurations[0].settings == course.study.defaults
    finished = [c for c in course.configurations if c.state == "finished"]
    assert step.chosen is min(finished, key=lambda c: (c.value, c.number))
    assert [c.number for c in course.configurations if c.chosen] == [step.chosen.number]


def test_the_chosen_value_is_never_above_the_default_s(tmp_path):
    for seed in range(5):
        chance = random.Random(seed)
        course, step, _ = play(study_of(tmp_path), lambda segment, chance=chance: chance.random())
        assert step.chosen.value <= course.configurations[0].value


def test_the_worse_half_of_a_round_stops_at_the_rung_but_never_the_default(tmp_path):
    study = study_of(tmp_path, budget=8, round=4)
    course, _, ran = play(study, lambda segment: 9.0 if segment.trial.finetune.lr == 1e-3 else by_rate(segment))
    first = [c for c in course.configurations if c.round == 0]
    assert first[0].state == "finished"
    assert sorted(c.state for c in first[1:]) == ["finished", "stopped", "stopped"]
    stopped = [c for c in first if c.state == "stopped"]
    assert min(c.value for c in stopped) >= max(c.values[0] for c in first[1:] if c.state == "finished") - 1.0
    ids = {trial.trial_id for c in stopped for trial in c.trials}
    assert {segment.until for segment in ran if segment.trial.trial_id in ids} == {0.5}


def test_of_equal_values_the_lower_number_goes_on(tmp_path):
    course, step, _ = play(study_of(tmp_path, budget=4, round=4), lambda segment: 1.0)
    assert [c.state for c in course.configurations] == ["finished", "finished", "stopped", "stopped"]
    assert step.chosen.number == 0


def test_several_rungs_halve_again_and_again(tmp_path):
    course, _, _ = play(study_of(tmp_path, budget=8, round=8, halve=[0.25, 0.5]), by_rate)
    states = [c.state for c in course.configurations]
    assert (states.count("stopped"), states.count("finished")) == (6, 2)
    assert sorted(c.halted_at for c in course.configurations if c.state == "stopped") == [0, 0, 0, 0, 1, 1]


def test_a_configuration_that_fails_on_any_seed_has_used_its_budget_and_no_value(tmp_path):
    study = study_of(tmp_path, halve=[])

    def value(segment):
        failing = segment.trial.seed == 101 and segment.trial.finetune.lr != 1e-3
        return math.nan if failing else by_rate(segment)

    course, step, _ = play(study, value)
    assert [c.state for c in course.configurations] == ["finished", "failed", "failed", "failed"]
    assert [c.value for c in course.configurations[1:]] == [None, None, None]
    assert step.chosen.number == 0


def test_without_any_value_nothing_is_chosen(tmp_path):
    _, step, _ = play(study_of(tmp_path), lambda segment: math.nan)
    assert step.chosen is None


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_the_outcome_does_not_depend_on_the_order_in_which_results_come(sampler, tmp_path):
    study = study_of(tmp_path, budget=8, round=4, sampler=sampler)
    straight, _, _ = play(study, by_rate)
    for seed in range(3):
        shuffled, _, _ = play(study, by_rate, chance=random.Random(seed))
        assert told(shuffled) == told(straight)


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_a_larger_budget_appends_rounds(sampler, tmp_path):
    small, _, _ = play(study_of(tmp_path, budget=4, sampler=sampler), by_rate)
    large, _, _ = play(study_of(tmp_path, budget=8, sampler=sampler), by_rate)
    assert [dict(c.settings) for c in large.configurations[:4]] == [dict(c.settings) for c in small.configurations]


def test_equal_arms_get_equal_configurations(tmp_path):
    search = {"finetune.lr": {"log": [1e-4, 1e-1]}}
    grid = load_space(tmp_path / "space.yaml", tune=tune_section(budget=8, round=4, search=search))
    one, other = (play(study, by_rate)[0] for study in grid.studies[:2])
    assert [dict(c.settings) for c in one.configurations] == [dict(c.settings) for c in other.configurations]
    elsewhere = play(grid.studies[2], by_rate)[0]
    assert [dict(c.settings) for c in elsewhere.configurations] != [dict(c.settings) for c in one.configurations]


def test_a_quasi_random_sequence_goes_on_over_rounds_without_repeats(tmp_path):
    study = study_of(tmp_path, budget=32, round=4, sampler="qmc", halve=[])
    course, _, _ = play(study, by_rate)
    rates = np.array([math.log10(c.settings["finetune.lr"]) for c in course.configurations[1:]])
    assert len(set(rates)) == 31
    counts, _ = np.histogram(rates, bins=8, range=(-4, -1))
    assert counts.min() >= 3  # 31 points of one sequence fill eighths of the range evenly; restarts would not


def test_tpe_learns_from_the_rounds_before(tmp_path):
    study = study_of(tmp_path, budget=48, round=4, search={"finetune.lr": {"log": [1e-4, 1e-1]}}, halve=[])
    course, step, _ = play(study, by_rate)
    far = [abs(math.log10(c.settings["finetune.lr"]) + 2) for c in course.configurations]
    assert np.median(far[24:]) < np.median(far[1:24])
    assert step.chosen.value < course.configurations[0].value


def test_values_stay_within_the_bounds_and_choices(tmp_path):
    course, _, _ = play(study_of(tmp_path, budget=32, round=4, halve=[]), by_rate)
    for c in course.configurations:
        assert 1e-4 <= c.settings["finetune.lr"] <= 1e-1
        assert c.settings["finetune.epochs"] in (2, 4)
        assert c.settings["pretrain.steps"] in (4, 6)


# --- in the store -----------------------------------------------------------------------------------


def test_a_study_is_rebuilt_from_its_rows_at_every_round(tmp_path):
    study = study_of(tmp_path, budget=8)
    whole, _, _ = play(study, by_rate)
    store = Store.open(tmp_path / "run")
    for count in (2, 4, 6, 8):
        write_configurations(store, study, whole.configurations[:count])
        rebuilt = Course(study, read_configurations(store, study))
        again, _, _ = play(study, by_rate, rebuilt)
        assert told(again) == told(whole)


def test_rows_hold_what_was_tried_and_why_it_ended(tmp_path):
    study = study_of(tmp_path)
    course, _, _ = play(study, by_rate)
    store = Store.open(tmp_path / "run")
    write_configurations(store, study, course.configurations)
    rows = tables.read_table(store, "tuning").to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert {row["arm"] for row in rows} == {"pretrain_method=ddpm"}
    assert {row["place"] for row in rows} == {"dataset=synthetic,shots=3"}
    assert rows[0]["trial_ids"] == [study.tuning_trial(study.defaults, seed).trial_id for seed in (100, 101)]
    assert rows[0]["val_mre"] == pytest.approx(np.mean(rows[0]["val_mre_seeds"]))
    assert rows[0]["finetune_gpu_hours"] == 1.0
    assert sum(row["chosen"] for row in rows) == 1
    assert {row["stopped_at"] for row in rows if row["state"] == "stopped"} == {0.5}
    assert [found.halted_at for found in read_configurations(store, study)] == [
        c.halted_at for c in course.configurations
    ]


def test_a_result_keeps_every_bit_and_is_written_once(tmp_path):
    store = Store.open(tmp_path / "run")
    result = Result(0.1 + 0.2, 7, 1 / 3)
    write_result(store, "abc", 0.25, result)
    write_result(store, "abc", 0.25, Result(9.0, 9, 9.0))
    assert read_result(store, "abc", 0.25) == result
    assert read_result(store, "abc", 1.0) is None
    write_result(store, "abc", 1.0, Result(math.nan, 0, 0.0, "Diverged: the loss is nan"))
    failed = read_result(store, "abc", 1.0)
    assert math.isnan(failed.val_mre)
    assert failed.error == "Diverged: the loss is nan"


def test_an_export_is_an_optuna_storage_with_a_study_for_each_arm_and_place(tmp_path):
    grid = load_space(tmp_path / "space.yaml")
    courses = [play(study, by_rate)[0] for study in grid.studies[:2]]
    courses[1].configurations[3].close("failed", [Result(math.nan, 0, 0.0)] * 2)
    export_storage(courses, tmp_path / "tuning.db")
    storage = f"sqlite:///{tmp_path / 'tuning.db'}"
    assert sorted(optuna.get_all_study_names(storage)) == [
        "pretrain_method=ddpm, dataset=synthetic, shots=3",
        "pretrain_method=scratch, dataset=synthetic, shots=3",
    ]
    found = optuna.load_study(study_name="pretrain_method=ddpm, dataset=synthetic, shots=3", storage=storage)
    chosen = next(c for c in courses[0].configurations if c.chosen)
    assert found.best_value == chosen.value
    assert found.best_params == dict(chosen.settings)
    other = optuna.load_study(study_name="pretrain_method=scratch, dataset=synthetic, shots=3", storage=storage)
    assert other.trials[3].state == optuna.trial.TrialState.FAIL


def test_an_open_round_is_exported_as_running(tmp_path):
    study = load_space(tmp_path / "space.yaml").studies[0]
    course = Course(study, [])
    course.add(ask(study, [], 1))
    export_storage([course], tmp_path / "tuning.db")
    (name,) = optuna.get_all_study_names(f"sqlite:///{tmp_path / 'tuning.db'}")
    found = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path / 'tuning.db'}")
    assert {trial.state for trial in found.trials} == {optuna.trial.TrialState.RUNNING}


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "tuning.db").write_text("mine")
    with pytest.raises(InputError, match=r"tuning.db exists; give another name, or delete it first"):
        export_storage([], tmp_path / "tuning.db")
    assert (tmp_path / "tuning.db").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["tuning.db"]


# --- what a budget brings ---------------------------------------------------------------------------


def test_the_best_so_far_passes_over_what_has_no_value():
    np.testing.assert_array_equal(best_so_far([np.nan, 3.0, 4.0, 2.0]), [np.nan, 3.0, 3.0, 2.0])


def test_the_expected_best_of_all_is_the_least_and_of_one_the_mean():
    found = expected_best([3.0, 1.0, 2.0])
    np.testing.assert_allclose(found, [2.0, 4 / 3, 1.0])  # of two: subsets {3,1}, {3,2}, {1,2}: (1 + 2 + 1) / 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=7))
def test_the_expected_best_is_the_mean_over_all_subsets(values):
    import itertools

    for size, found in enumerate(expected_best(values), start=1):
        every = [min(subset) for subset in itertools.combinations(values, size)]
        assert found == pytest.approx(np.mean(every))


# --- predicted ----------------------------------------------------------------------------------------


def test_a_predicted_run_has_every_round_and_the_trials_of_both_roles(tmp_path):
    grid = load_space(tmp_path / "space.yaml", tune=tune_section(budget=4, round=4, halve=[0.5]))
    costs = Costs(lambda pretraining: 1.0, lambda trial: 100.0)
    plan = plan_of(grid.trials, grid.studies)
    one, four = (forecast(plan, costs, Machine(0, 0, 0, slots=slots)).schedule for slots in (1, 4))
    kinds = Counter(span.stage.kind for span in one.spans)
    # 4 studies: 4 configurations x 2 seeds to the rung, 2 of them on to the end; then 2 shots x 2 arms x 2 seeds of the
    # default, and as many of what is chosen, which may be the default
    assert kinds["tune"] == 4 * (8 + 4)
    assert kinds["finetune"] in (8, 10, 12, 14, 16)
    tuned = sum(span.end_s - span.start_s for span in one.spans if span.stage.kind == "tune")
    assert tuned == pytest.approx(4 * (8 * 50 + 4 * 50))
    assert Counter(span.stage.kind for span in four.spans)["tune"] == kinds["tune"]
    assert four.makespan_s < one.makespan_s / 2


def test_where_nothing_validates_a_share_of_the_shots_judges_configurations(tmp_path):
    grid = load_space(tmp_path / "space.yaml", validation="none", finetune={"schedule": "constant"})
    study = grid.studies[1]
    assert study.default.validation == "none"
    assert study.tuning_trial({}, 100).validation == "inside_shots"
    assert study.configured(study.default, {"finetune.lr": 0.01}).validation == "none"


def test_a_length_in_steps_takes_the_place_of_one_in_epochs(tmp_path):
    search = {"finetune.steps": [4, 8]}
    grid = load_space(tmp_path / "space.yaml", finetune={"epochs": None, "steps": 4}, tune=tune_section(search=search))
    study = grid.studies[1]
    assert dict(study.defaults) == {"finetune.steps": 4}
    chosen = study.configured(study.default, {"finetune.steps": 8}).finetune
    assert (chosen.steps, chosen.epochs) == (8, None)
    in_epochs = study.configured(study.default, {"finetune.epochs": 3}).finetune
    assert (in_epochs.steps, in_epochs.epochs) == (None, 3)
