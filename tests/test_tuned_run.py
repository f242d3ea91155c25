"""Runs that tune: the same choices however they are run, idle reruns, grown budgets, failures, and what is unseen."""

import contextlib
import io
import math
import os
import random
import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from rich.console import Console
from runs import DATA, attempts, content, driver
from same_tables import compare
from tuned import load_space, tune_section, write_space

from ablate import tables
from ablate.report.roles import by_role
from ablate.report.run_data import read_trials
from ablate.running.driver import Options, run_grid
from ablate.schedule.stages import Stage
from ablate.stage.settings import Settings
from ablate.stage.task import Task
from ablate.stage.trial import perform
from ablate.store import Store
from ablate.training import silent
from ablate.tuning import read_result


def run(grid, out, **options):
    """Run a search space through Ray; return the result and what was printed."""
    screen = io.StringIO()
    options = Options(out=str(out), **{"checkpoint_minutes": 0, **options})
    return run_grid(grid, options, Console(file=screen, width=300)), screen.getvalue()


def rows(store, table="tuning"):
    """Return the rows of a table without what differs between two runs, in order."""
    found = tables.read_table(store, table).to_pylist()
    order = sorted(found, key=lambda row: (row["arm"], row["place"], row["repeat"], row["number"]))
    return [{name: value for name, value in row.items() if name not in tables.VOLATILE} for row in order]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def first(folder):
    """A tuned run on every slot that there is."""
    grid = load_space(folder / "space.yaml", grid={"shots": 3})
    result, screen = run(grid, folder / "run")
    return grid, Store.open(folder / "run"), result, screen


@pytest.fixture(scope="module")
def grown(folder, first):
    """The same with two more rounds: what had been attempted before, and the run."""
    _, store, _, _ = first
    before = {row["trial_id"] for row in attempts(store, "tune")}, rows(store)
    grid = load_space(folder / "larger.yaml", grid={"shots": 3}, tune=tune_section(budget=8))
    result, _ = run(grid, folder / "run")
    return before, grid, store, result


def test_a_tuned_run_ends_with_the_defaults_and_the_chosen_settings(first):
    _, store, result, _ = first
    assert result.exit_code == 0
    trials = by_role(read_trials(store))
    assert set(trials["status"]) == {"finished"}
    counts = trials.groupby(["pretrain_method", "shots", "role"]).size()
    assert set(counts) == {2}
    assert len(counts) == 4
    assert result.finished == len(read_trials(store)) == len(tables.trial_status(store))


def test_what_was_chosen_has_the_least_value_of_its_arm_and_place(first):
    _, store, _, _ = first
    found = tables.read_frame(store, "tuning")
    for _, own in found.groupby(["arm", "place"]):
        finished = own[own["state"] == "finished"]
        chosen = own[own["chosen"]]
        assert len(chosen) == 1
        assert float(chosen["val_mre"].iloc[0]) == finished["val_mre"].min()
        assert float(chosen["val_mre"].iloc[0]) <= float(own[own["number"] == 0]["val_mre"].iloc[0])


def test_tuning_trials_enter_neither_trials_nor_errors(first):
    _, store, _, _ = first
    tried = {name for names in tables.read_frame(store, "tuning")["trial_ids"] for name in names}
    for table in ("trials", "errors", "curves"):
        assert not tried & set(tables.read_frame(store, table)["trial_id"].dropna())
    assert set(store.list("tuning")) == tried
    assert not [path for path in store.sizes("tuning") if "/state/" in path]


def test_the_validation_error_of_a_configuration_is_that_of_its_trials(first):
    """A trial of the run whose settings, seed and shots are those of a tuning trial would validate equally."""
    grid, store, _, _ = first
    study = grid.studies[0]
    trial = study.tuning_trial(study.defaults, 100)
    other = Store.open(store.root + "-alone")
    for until in (0.5, 1.0):
        task = Task(Stage("tune", trial.trial_id), trial, other, DATA, silent, Settings(), until=until)
        if until == 0.5:
            key = trial.pretraining
            assert key is not None
            made = Task(Stage("pretrain", key.key), key, other, DATA, silent, Settings(), (trial.pretrain.steps,))
            assert perform(made).outcome == "finished"
        assert perform(task).outcome == "finished"
        assert read_result(other, trial.trial_id, until).val_mre == read_result(store, trial.trial_id, until).val_mre


def test_the_run_says_what_it_tries_and_in_which_round(first):
    _, _, _, screen = first
    ended, name = r"finished +[0-9a-f]{12} +", r"DDPM, 3 shots, number 1: lr [\d.e-]+, epochs"
    assert re.search(rf"{ended}val MRE [\d.]+ mm .* {name}", screen)
    assert re.search(r"finished +[0-9a-f]{12} +MRE [\d.]+ mm .*, tuned\n", screen)


def test_running_a_tuned_run_again_does_nothing(first, folder):
    grid, _, _, _ = first
    before = content(folder / "run")
    result, screen = run(grid, folder / "run")
    assert result.exit_code == 0
    assert content(folder / "run") == before
    assert "starting Ray" not in screen


def test_a_raised_budget_runs_its_new_rounds_only(grown):
    (tried, earlier), _, store, result = grown
    assert result.exit_code == 0
    now = rows(store)
    strip = lambda found: [{k: v for k, v in row.items() if k != "chosen"} for row in found]  # noqa: E731
    assert strip([row for row in now if row["number"] < 4]) == strip(earlier)
    assert sorted({row["round"] for row in now}) == [0, 1, 2, 3]
    again = [row for row in attempts(store, "tune") if row["trial_id"] in tried]
    assert len(again) == len({(row["trial_id"], row["from_step"]) for row in again})


def test_an_earlier_choice_stays_stored_and_leaves_the_report(grown):
    _, _, store, _ = grown
    listed = yaml.safe_load(store.read("run.yaml"))["trials"]
    shown = set(read_trials(store)["trial_id"])
    assert shown == {row["trial_id"] for row in listed}
    assert shown <= set(tables.read_frame(store, "trials")["trial_id"])
    assert {row["role"] for row in listed} <= {"default", "tuned", "both"}


def test_the_recorded_grid_of_a_tuned_run_is_its_grid(first, folder, ablate):
    code, out, _ = ablate("plan", "--grid", folder / "run" / "run.yaml")
    assert code == 0
    assert "  trials         4 of the defaults" in out


def test_another_search_than_the_run_was_tuned_with_is_refused(first, folder, ablate):
    path = write_space(folder / "other.yaml", grid={"shots": 3}, tune=tune_section(halve=[0.25]))
    code, _, err = ablate("run", "--grid", path, "--out", folder / "run")
    assert code == 2
    assert "this run was tuned with another tune.halve, [0.5]; got [0.25]; only budget and repeats may change" in err


def test_status_and_results_of_a_tuned_run(grown, folder, ablate):
    _, out, _ = ablate("status", folder / "run")
    assert "tuning         2 begun, 8 configurations each, in 4 rounds" in out
    assert "  pretrain_method=ddpm, dataset=synthetic,shots=3: round 4 of 4, " in out
    _, out, _ = ablate("results", folder / "run")
    assert [line.split("  ")[0] for line in out.splitlines()[3:7]] == [
        "DDPM (default) ¶", "DDPM (tuned) ¶", "scratch (default)", "scratch (tuned)"
    ]  # fmt: skip
    _, out, _ = ablate("results", folder / "run", "--rows", "role", "--filter", "pretrain_method=ddpm")
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["default", "tuned"]


def test_the_report_of_a_tuned_run_shows_choices_and_budgets(grown, folder, ablate):
    code, _, err = ablate("report", folder / "run")
    assert (code, err) == (0, "")
    names = {path.name for path in (folder / "run" / "report" / "tables").iterdir()}
    assert {"tuning-chosen.md", "tuning-budget.md"} <= names
    chosen = (folder / "run" / "report" / "tables" / "tuning-chosen.md").read_text()
    assert "pretrain.steps \\*" in chosen
    assert "Every statement about tuned arms is about the settings that were chosen" in chosen
    figures = {path.name for path in (folder / "run" / "report" / "figures").iterdir()}
    assert "tuning-configurations-dataset-synthetic-shots-3.svg" in figures


class Unseen:
    """Stands for the arrays of a test split that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError("a tuning stage looks at the test images")


def test_a_tuning_stage_does_not_look_at_the_test_images(tmp_path):
    study = load_space(tmp_path / "space.yaml").studies[1]
    trial = study.tuning_trial(study.defaults, 100)

    def data(name, image_size, fold=None):
        return replace(DATA(name, image_size, fold), test=Unseen())

    store = Store.open(tmp_path / "run")
    task = Task(Stage("tune", trial.trial_id), trial, store, data, silent, Settings(), until=1.0)
    result = perform(task)
    assert (result.outcome, result.error) == ("finished", None)
    assert read_result(store, trial.trial_id, 1.0).epochs == 2


def test_a_configuration_that_diverges_has_no_value_and_changes_no_exit_code(tmp_path):
    search = {"finetune.lr": [1e-3, 1e30]}
    grid = load_space(
        tmp_path / "space.yaml",
        grid={"shots": 3, "pretrain": [{"method": "scratch"}]},
        tune=tune_section(budget=4, round=4, search=search, halve=None),
    )
    result, screen = run(grid, tmp_path / "run")
    found = rows(Store.open(tmp_path / "run"))
    diverged = [row for row in found if '"finetune.lr": 1e+30' in row["fields"]]
    assert result.exit_code == 0
    assert diverged
    assert {(row["state"], row["val_mre"]) for row in diverged} == {("failed", None)}
    assert "Diverged" in screen


def test_an_arm_without_any_value_fails_its_trials(tmp_path):
    search = {"finetune.lr": [1e30, 1e31]}
    grid = load_space(
        tmp_path / "space.yaml",
        grid={"shots": 3, "pretrain": [{"method": "scratch"}]},
        tune=tune_section(budget=2, search=search, halve=None),
        finetune={"lr": 1e30},
    )
    result, _ = run(grid, tmp_path / "run")
    assert (result.exit_code, result.failed, result.missing) == (1, 2, 0)
    errors = set(tables.read_frame(Store.open(tmp_path / "run"), "trials")["error"])
    assert errors == {
        "no configuration of pretrain_method=scratch at dataset=synthetic,shots=3 has a value: every one failed"
    }
    result, _ = run(grid, tmp_path / "run")
    assert result.exit_code == 1


def same_run(one, other):
    """Assert that two tuned runs chose the same settings, and have equal tables."""
    assert rows(one) == rows(other)
    assert compare(one, other) == []
    assert not math.isnan(np.nanmean([row["val_mre"] for row in rows(one) if row["val_mre"] is not None]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_slot_gives_what_two_give(first, folder):
    grid, _, _, _ = first
    two, _ = run(grid, folder / "two", max_concurrent=2)
    one, _ = run(grid, folder / "one", max_concurrent=1)
    assert (one.exit_code, two.exit_code) == (0, 0)
    same_run(Store.open(folder / "one"), Store.open(folder / "two"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_kills_of_the_driver_change_no_choice(first, folder):
    run(first[0], folder / "straight")
    chance, kills = random.Random(0), 0
    path = write_space(folder / "space.yaml", grid={"shots": 3})
    while True:
        with driver(path, folder / "killed") as process:
            deadline = time.monotonic() + chance.uniform(12, 40)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            if process.poll() is not None:
                assert process.returncode == 0, process.stdout.read()
                break
            kills += 1
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, chance.choice([signal.SIGKILL, signal.SIGTERM]))
            process.wait()
    assert kills >= 3
    same_run(Store.open(folder / "killed"), Store.open(folder / "straight"))
