"""Reports of tuned runs on generated rows: roles, marks that need several tunings, choices and budgets."""

import json

import pytest
import yaml
from fake_run import Shape, specs, write_fake_run
from tuned import tune_section

from ablate import tables
from ablate.report.analysis import analyse
from ablate.report.answer import answers
from ablate.report.comparison_tables import pair_tables
from ablate.report.pivot import pivot, render
from ablate.report.rankings import rank_tables
from ablate.report.run_data import read_run, read_trials
from ablate.report.run_tables import error_tables
from ablate.report.tunings import tuning_charts, tuning_tables, tunings
from ablate.stats import tuned_claims

RATES = {0: 2e-5, 1: 3e-5, 2: 5e-5}
"""The learning rate that each independent tuning has chosen; the default is 1e-5, from scratch 1e-4."""


def tuned_run(folder, *, repeats=1, seeds=(0, 1, 2), both=(), **tuned):
    """Write a generated run of ddpm and scratch at 5 and 10 shots; for `both` the default is what was chosen."""
    methods = ["ddpm", "scratch"]
    default = specs(methods=methods, shots=[5, 10], seeds=seeds)
    roles = {spec.trial_id: {"role": "both" if spec.method in both else "default", "repeats": []} for spec in default}
    trials = list(default)
    for repeat in range(repeats):
        for spec in default:
            if spec.method in both:
                roles[spec.trial_id]["repeats"].append(repeat)
                continue
            fields = spec.model_dump()
            fields["finetune"]["lr"] = RATES[repeat]
            chosen = type(spec).model_validate(fields)
            trials.append(chosen)
            roles[chosen.trial_id] = {"role": "tuned", "repeats": [repeat]}
    store = write_fake_run(folder, trials, shapes={"cephalo": Shape(num_images=10, num_landmarks=3)}, pictures=False)
    described = yaml.safe_load(store.read("run.yaml"))
    search = {"finetune.lr": {"log": [1e-6, 1e-2]}}
    tune = tune_section(budget=4, round=2, search=search, repeats=repeats, **{"halve": [0.25], **tuned})
    described["search_space"] = {"tune": tune}
    described["trials"] = [{**row, **roles[row["trial_id"]]} for row in described["trials"]]
    store.write("run.yaml", yaml.safe_dump(described, sort_keys=False).encode())
    for method in methods:
        for shots in (5, 10):
            for repeat in range(repeats):
                _write_tuning(store, method, shots, repeat, chosen=0 if method in both else 3)
    return store


def _write_tuning(store, method, shots, repeat, *, chosen, network=None):
    rows, on = [], f",network_kind={network}" if network else ""
    for number in range(4):
        state = "stopped" if number == 2 else "failed" if number == 1 else "finished"
        rows.append(
            tables.blank("tuning")
            | {
                "study": f"{method}{on}{shots}{repeat}",
                "arm": f"pretrain_method={method}{on}",
                "place": f"dataset=cephalo,shots={shots}",
                "repeat": repeat,
                "round": number // 2,
                "number": number,
                "fields": json.dumps({"finetune.lr": 1e-5 * (1 + number)}),
                "seeds": [100, 101],
                "trial_ids": [f"{method}{shots}{repeat}{number}{seed}" for seed in (100, 101)],
                "val_mre": None if state == "failed" else 9.0 - number,
                "val_mre_seeds": [8.5 - number, 9.5 - number],
                "state": state,
                "epochs": [10, 10],
                "finetune_gpu_hours": 0.5,
                "chosen": number == chosen,
            }
        )
    tables.write_rows(store, "tuning", f"{method}{network or ''}-{shots}-{repeat}", rows)


def test_the_default_stands_beside_the_tuned_whatever_was_searched(tmp_path):
    text = render(pivot(read_trials(tuned_run(tmp_path))), "plain")
    rows = [line.split("  ")[0].rstrip(" ¶") for line in text.splitlines()[3:7]]
    assert rows == ["DDPM (default)", "DDPM (tuned)", "scratch (default)", "scratch (tuned)"]
    assert "finetune lr" not in text


def test_a_default_that_was_chosen_stands_in_both_rows(tmp_path):
    store = tuned_run(tmp_path, both=["scratch"])
    text = render(pivot(read_trials(store)), "csv")
    values = {tuple(line.split(",")[2:4]): line.split(",")[4:] for line in text.splitlines()[1:]}
    found = [line for line in text.splitlines() if "scratch" in line and ",5," in line]
    assert len(found) == 2, values
    assert found[0].replace("default", "") == found[1].replace("tuned", "")
    assert len(read_trials(store)) == 18


def test_differences_of_arms_that_were_tuned_once_have_an_interval_and_no_mark(tmp_path):
    analysis = analyse(read_run(tuned_run(tmp_path)), num_resamples=200)
    (panel,) = analysis.panels
    pairs = [pair for found in panel.compared.comparisons.values() for pair in found]
    assert {pair.tested for pair in pairs if "tuned" in pair.a + pair.b} == {False}
    assert {pair.tested for pair in pairs if "tuned" not in pair.a + pair.b} == {True}
    assert all(pair.difference.lower is not None for pair in pairs if pair.a.split()[0] != pair.b.split()[0])
    (table,) = pair_tables(analysis)
    share = f"{100 * tuned_claims(4, 3):.0f} %"
    assert any(f"each tuned once with 4 configurations, {share} differed significantly" in note for note in table.notes)
    (errors,) = error_tables(analysis)
    assert not [cell for row in errors.rows for cell in row if cell.tied and "tuned" in str(row[0].text)]
    (ranks,) = rank_tables(analysis)
    assert any("No test: arms were tuned once." in note for note in ranks.notes)
    (answer,) = answers(analysis)
    assert all("(tuned)" in text and "; not tested" in text for text in answer.findings)


def test_with_three_tunings_these_are_the_units_and_differences_are_tested(tmp_path):
    analysis = analyse(read_run(tuned_run(tmp_path, repeats=3)), num_resamples=200)
    (panel,) = analysis.panels
    tuned = [arm for arm in panel.arms.values() if "tuned" in arm.label]
    assert {len(arm.trial_ids) for arm in tuned} == {9}
    assert {arm.mre.num_seeds for arm in tuned} == {3}
    pairs = [pair for found in panel.compared.comparisons.values() for pair in found]
    of_tuned = [pair for pair in pairs if "tuned" in pair.a and "tuned" in pair.b]
    assert {pair.tested for pair in of_tuned} == {True}
    assert panel.tuned_note is None


def test_the_choices_and_the_budget_of_each_arm_and_place(tmp_path):
    analysis = analyse(read_run(tuned_run(tmp_path)), num_resamples=200)
    chosen, budget = tuning_tables(analysis)
    assert [tuple(cell.text for cell in row) for row in chosen.rows[:2]] == [
        ("DDPM", "cephalo, 5 shots", "1e-05 → 4e-05", "9.00", "6.00", "3"),
        ("scratch", "cephalo, 5 shots", "1e-05 → 4e-05", "9.00", "6.00", "3"),
    ]
    assert [cell.text for cell in budget.rows[0][2:6]] == ["2", "1", "1", "8"]
    assert any("the worse half of a round stopped" in note for note in budget.notes)
    charts = {chart.name: chart for chart in tuning_charts(analysis)}
    best = charts["tuning-configurations-dataset-cephalo-shots-5"].lines[0]
    assert (best.x, best.y) == ((1.0, 2.0, 3.0, 4.0), (9.0, 9.0, 9.0, 6.0))


def test_lines_of_one_method_on_two_networks_are_told_apart(tmp_path):
    store = tuned_run(tmp_path)
    _write_tuning(store, "ddpm", 5, 0, chosen=3, network="scn")
    charts = {chart.name: chart for chart in tuning_charts(analyse(read_run(store), num_resamples=200))}
    lines = charts["tuning-configurations-dataset-cephalo-shots-5"].lines
    assert [(line.label, line.method, line.style) for line in lines] == [
        ("DDPM", "ddpm", 0),
        ("DDPM, network scn", "ddpm", 1),
        ("scratch", "scratch", 0),
    ]


def test_random_configurations_without_halving_have_an_expected_best_without_the_default(tmp_path):
    analysis = analyse(read_run(tuned_run(tmp_path, sampler="random", halve=None)), num_resamples=200)
    charts = {chart.name: chart for chart in tuning_charts(analysis)}
    line = charts["tuning-draws-dataset-cephalo-shots-5"].lines[0]
    # numbers 1 and 2 have no value at their end, number 3 has 6.00: only the subset of all three is sure to have one
    assert (line.x, line.y) == ((3.0,), (6.0,))
    assert "the default is left out" in charts["tuning-draws-dataset-cephalo-shots-5"].note


def test_at_equal_time_counts_what_the_cheapest_arm_spent(tmp_path):
    store = tuned_run(tmp_path)
    trial = f"ddpm50{0}{100}"
    before = {"kind": "pretrain", "pretrain_key": "abc", "seconds": 3600.0, "gpus": 1.0, "outcome": "finished"}
    tables.write_rows(store, "stages", "pretrain-abc-x", [tables.blank("stages") | before])
    tune = {"kind": "tune", "pretrain_key": "abc", "trial_id": trial, "seconds": 60.0, "gpus": 1.0}
    tables.write_rows(store, "stages", "tune-x", [tables.blank("stages") | tune | {"outcome": "finished"}])
    ddpm, scratch = tunings(read_run(store))[:2]
    assert (ddpm.hours, scratch.hours) == (pytest.approx(3.0), pytest.approx(2.0))
    assert ddpm.best_within(2.0) == 9.0  # its last configuration, 6.00, ends after three hours
    assert scratch.best_within(2.0) == 6.0


def test_rates_of_false_claims_fall_with_the_budget_and_rise_with_the_seeds():
    assert tuned_claims(8, 3) > tuned_claims(16, 3) > tuned_claims(32, 3) > 0.05
    assert tuned_claims(8, 5) > tuned_claims(8, 3)
    assert tuned_claims(4, 3) == tuned_claims(8, 3)
    assert tuned_claims(20, 4) == tuned_claims(16, 5)
