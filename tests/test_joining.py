"""A grid and the run that is there: going on, joining it on request only, and running a recorded grid again."""

import io
import sys

import pytest
import yaml
from rich.console import Console
from runs import check, content, on_terminal, run, status_of
from tiny import tiny_fields, tiny_trial

from ablate.errors import InputError
from ablate.running.driver import Options, RunResult, run_grid
from ablate.running.sessions import run_file
from ablate.running.single import run_single
from ablate.space import Grid, Source, find_grid, load_grid
from ablate.store import Store
from ablate.store.run_file import read_run_file, yaml_bytes

HELD = [tiny_trial(shots=shots, finetune={"epochs": 1}) for shots in (2, 3)]
NEW = tiny_trial(shots=4, finetune={"epochs": 1})
IDS = [trial.trial_id for trial in HELD]
NOW = {"address": "later"}  # checks all but the machines


def held(out, name="tiny", trials=HELD, **session):
    """Write the `run.yaml` of a run of some trials, without results; return its store."""
    store = Store.open(out)
    store.write("run.yaml", yaml_bytes(run_file({}, Grid(name, "", tuple(trials), {}), {}, {}, **session)))
    return store


def write_grid(path, name="tiny", shots=(2, 3), **fields):
    """Write the search space of `HELD`, or another one."""
    base = {key: value for key, value in tiny_fields(finetune={"epochs": 1}, **fields).items() if key != "shots"}
    method = base.pop("pretrain")
    blocks = [{"grid": {"shots": list(shots), "pretrain": method}}]
    path.write_text(yaml.safe_dump({"name": name, "base": base, "blocks": blocks}))
    return path


# --- going on, and joining --------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [HELD, [*HELD, NEW], [NEW, *reversed(HELD)]])
def test_the_same_grid_goes_on_also_when_it_has_grown(tmp_path, trials):
    held(tmp_path / "run")
    text = check(tmp_path / "run", trials, **NOW)
    assert text == (
        "preparing synthetic at 16 x 16 pixels\n"
        f"checked: {len(trials)} trials to run, 0 done before; nothing was started\n"
    )


LACKS = (
    "{out} holds a run of this grid with 2 trials, 1 of them not in tiny as given (such as {id}: 2 shots); tiny would "
    "add 1 trial to it; give --extend to do so, or another --out"
)
OTHER = (
    "{out} holds a run of grid tiny with 2 trials; other would add 0 trials to it; give --extend to do so, or another "
    "--out"
)


@pytest.mark.parametrize(
    ("name", "trials", "message"), [("tiny", [HELD[1], NEW], LACKS), ("other", HELD, OTHER)], ids=["lacks", "name"]
)
def test_a_grid_that_lacks_trials_or_has_another_name_is_refused_without_a_terminal(tmp_path, name, trials, message):
    out = tmp_path / "run"
    held(out)
    before = content(out)
    grid, options = Grid(name, "", tuple(trials), {}), Options(str(out))
    expected = message.format(out=out, id=IDS[0])
    for refuse in (
        lambda: run_grid(grid, options, Console(file=io.StringIO())),
        lambda: check(out, trials, name, **NOW),
    ):
        with pytest.raises(InputError) as refusal:
            refuse()
        assert str(refusal.value) == expected
    assert content(out) == before


def test_the_command_refuses_in_one_line_with_exit_code_2_and_extend_lets_it(ablate, tmp_path):
    held(tmp_path / "run")
    grid = write_grid(tmp_path / "grid.yaml", shots=(3, 4))
    command = ("run", "--grid", grid, "--out", tmp_path / "run", "--dry-run", "--address", "later")
    code, _, err = ablate(*command)
    assert (code, err) == (2, f"ablate: {LACKS.format(out=tmp_path / 'run', id=IDS[0])}\n")
    code, out, err = ablate(*command, "--extend")
    assert (code, err) == (0, "")
    assert out.splitlines()[-3:] == [
        f"note: {LACKS.format(out=tmp_path / 'run', id=IDS[0]).partition('; give')[0]}",
        "preparing synthetic at 16 x 16 pixels",
        "checked: 2 trials to run, 0 done before; nothing was started",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_on_a_terminal_it_asks_and_joins_only_after_a_yes(tmp_path):
    store = held(tmp_path / "run", trials=HELD[:1])
    before = content(tmp_path / "run")
    grid = write_grid(tmp_path / "grid.yaml", "other", shots=(3,))
    command = ("run", "--grid", grid, "--out", store.address)
    code, shown = on_terminal(command, answer="n")
    assert code == 2
    assert "tiny with 1 trial" in " ".join(shown.split())
    assert shown.endswith("Add them? [y/N] n\nablate: nothing was started; give another --out\n")
    assert content(tmp_path / "run") == before
    code, shown = on_terminal(command, answer="y")
    assert code == 0, shown
    assert status_of(store) == {IDS[1]: "finished"}
    described = read_run_file(store)
    assert described["name"] == "other"
    assert {row["trial_id"] for row in described["trials"]} == set(IDS)


def test_a_launch_refuses_it_before_anything_is_paid_for(tmp_path):
    from ablate.launch import launching

    store = held(tmp_path / "run", name="another")
    request = launching.LaunchRequest(None, Grid("tiny", "", tuple(HELD), {}), "", store.address, None, (), {}, False)
    with pytest.raises(InputError, match=r"holds a run of grid another .*; give --extend to do so, or another --out$"):
        launching._check_joining(store, request)


def test_a_single_trial_leaves_the_name_of_the_run_alone(tmp_path):
    store = held(tmp_path / "run")
    assert run_single(HELD[0], store.address, str(tmp_path), 1, False, Console(file=io.StringIO())) == 0
    assert read_run_file(store)["name"] == "tiny"
    assert "1 done before" in check(tmp_path / "run", HELD, **NOW)


# --- weights ----------------------------------------------------------------------------------------


def test_going_on_without_keep_weights_warns_where_they_were_kept(tmp_path):
    out = tmp_path / "run"
    assert run(out, HELD[:1], keep_weights=True)[0] == RunResult(0, 1, 0, 0)
    warning = (
        "warning: this run was started with --keep-weights, and goes on without: 2 trials will have no weights for "
        "ablate predict; stop it and give --keep-weights to keep them\n"
    )
    assert warning in check(out, [*HELD, NEW], **NOW)
    assert "warning" not in check(out, [*HELD, NEW], keep_weights=True, **NOW)
    assert "warning" not in check(out, HELD[:1], **NOW)  # nothing is left to do


# --- the grid of a run ------------------------------------------------------------------------------


def test_the_grid_of_a_run_is_run_again_into_another_place(ablate, tmp_path):
    path = write_grid(tmp_path / "grid.yaml")
    grid = load_grid(find_grid(str(path)))
    store = Store.open(tmp_path / "run")
    store.write("run.yaml", yaml_bytes(run_file({}, grid, {}, {})))
    again = tmp_path / "run" / "run.yaml"
    assert load_grid(find_grid(str(again))) == grid
    assert ablate("plan", "--grid", again, "--trials") == ablate("plan", "--grid", path, "--trials")
    code, out, err = ablate(
        *("run", "--grid", again, "--out", tmp_path / "again", "--dry-run", "--address", "later"),
        *("--set", "finetune.epochs=3"),
    )
    assert (code, err) == (0, "")
    assert out.startswith("tiny\n  trials         2\n")
    assert load_grid(find_grid(str(again)), ["finetune.epochs=3"]).trials == tuple(
        tiny_trial(shots=shots, finetune={"epochs": 3}) for shots in (2, 3)
    )


def test_the_grid_of_a_run_that_was_joined_has_all_its_trials(tmp_path):
    grid = load_grid(find_grid(str(write_grid(tmp_path / "grid.yaml"))))
    before = run_file({}, Grid("first", "", (NEW,), {}), {}, {})
    text = yaml_bytes(run_file(before, grid, {}, {})).decode()
    source = Source.parse(text, "RUN/run.yaml")
    assert load_grid(source).trials == (*HELD, NEW)
    with pytest.raises(InputError, match=r"^--set must be left out for RUN/run.yaml: 1 of its 3 trials are not of its"):
        load_grid(source, ["finetune.epochs=3"])


def test_the_grid_of_a_run_at_an_address_is_read_from_there(ablate, tmp_path, s3_address):
    held(s3_address)
    place, _, query = s3_address.partition("?")
    code, out, err = ablate("plan", "--grid", f"{place}/run.yaml?{query}", "--trials")
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == [f"{IDS[0]}  2 shots", f"{IDS[1]}  3 shots"]
