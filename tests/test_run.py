"""Runs through Ray, from a grid to tables: equal to single trials, nothing twice, nothing lost, one driver."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from runs import (
    CLI,
    attempts,
    check,
    content,
    run,
    spans,
    status_of,
    undisturbed,
    wait_until,
    workers_at_work,
    write_grid,
)
from same_tables import compare, unreadable_parts
from tiny import tiny_trial

import ablate.running.driver
from ablate import tables
from ablate.errors import InputError
from ablate.running.driver import RunResult
from ablate.store import LockLost, Store, step_name
from ablate.store.fence import FENCE_S
from ablate.store.lock import RunLock

DDPM = {"timesteps": 20}
DDPM_KEY = tiny_trial("ddpm", pretrain=DDPM).pretrain_key
SIMCLR_KEY = tiny_trial("simclr").pretrain_key


def ddpm(steps=6, **fields):
    return tiny_trial("ddpm", pretrain={"steps": steps, **DDPM}, **fields)


def simclr(steps=6, **fields):
    return tiny_trial("simclr", pretrain={"steps": steps}, **fields)


GOOD = [
    *(make(steps, shots=shots) for make in (ddpm, simclr) for steps in (6, 10) for shots in (2, 3)),
    *(tiny_trial(shots=shots) for shots in (2, 3)),
]
DIVERGING = tiny_trial(finetune={"lr": 1e30})
DOOMED = [tiny_trial("byol", shots=shots, pretrain={"lr": 1e30}) for shots in (2, 3)]
FIRST = [*GOOD, DIVERGING, *DOOMED]
NEW = [ddpm(shots=4), ddpm(seed=1), ddpm(steps=14)]  # one more shot count, one more seed, more steps
NEEDS_DAMAGED = simclr(10, seed=1)


@dataclass
class Case:
    """A run that several tests look at."""

    store: Store
    result: RunResult
    text: str
    seconds: float
    alone: Store  # the same trials, each run in one process

    def finetuned(self):
        return {row["trial_id"] for row in attempts(self.store, "finetune")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if "ABLATE_CACHE" not in os.environ:
            patch.setenv("ABLATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(folder):
    """A run of two pre-trainings with two step counts each, scratch, and trials that must fail."""
    begin = time.monotonic()
    result, text = run(folder / "first", FIRST)
    seconds = time.monotonic() - begin
    return Case(Store.open(folder / "first"), result, text, seconds, undisturbed(folder / "alone", FIRST))


@pytest.fixture(scope="module")
def grown(first, folder):
    """The run enlarged, its failed trials tried again, after one snapshot was altered and one truncated."""
    out = folder / "grown"
    shutil.copytree(first.store.address, out)
    store = Store.open(out)
    altered = f"pretrained/{SIMCLR_KEY}/{step_name(10)}/model.safetensors"
    content = bytearray(store.read(altered))
    content[-1] ^= 1
    store.write(altered, bytes(content))
    truncated = f"pretrained/{DDPM_KEY}/{step_name(10)}/model.safetensors"
    store.write(truncated, store.read(truncated)[:-1])
    trials = [*FIRST, *NEW, NEEDS_DAMAGED]
    begin = time.monotonic()
    result, text = run(out, trials, retry_failed=True)
    seconds = time.monotonic() - begin
    shutil.copytree(first.alone.address, folder / "alone-grown")
    return Case(store, result, text, seconds, undisturbed(folder / "alone-grown", [*NEW, NEEDS_DAMAGED]))


def test_a_run_gives_the_tables_of_its_trials_run_one_by_one(first):
    assert compare(first.store, first.alone) == []
    assert len(tables.read_table(first.store, "trials")) == len(FIRST)
    assert unreadable_parts(first.store) == {}


def test_a_run_says_what_it_does_from_the_start_and_the_error_of_each_trial_when_it_ends(first):
    assert first.text.startswith("preparing synthetic at 16 x 16 pixels\nstarting Ray on this machine\n")
    for row in tables.read_table(first.store, "trials", filters=[("status", "==", "finished")]).to_pylist():
        assert f"\nfinished    {row['trial_id']}  MRE {row['mre']:.2f} mm " in first.text


def test_one_pretraining_serves_every_trial_that_needs_it(first):
    assert spans(attempts(first.store, pretrain_key=DDPM_KEY)) == [(0, 10)]
    assert spans(attempts(first.store, pretrain_key=SIMCLR_KEY)) == [(0, 10)]
    for key in (DDPM_KEY, SIMCLR_KEY):
        snapshots = [name for name in first.store.list(f"pretrained/{key}") if name.startswith("step_")]
        assert snapshots == [step_name(6), step_name(10)]


def test_a_failing_trial_does_not_stop_the_others(first):
    status = status_of(first.store)
    assert {trial.trial_id for trial in GOOD} == {name for name, state in status.items() if state == "finished"}
    assert first.result == RunResult(exit_code=1, finished=len(GOOD), failed=3, missing=0)
    assert f"failed {DIVERGING.trial_id}: Diverged: " in first.text
    (row,) = tables.read_part(first.store, "trials", DIVERGING.trial_id)
    assert row["error"].startswith("Diverged: ")
    assert "lr" in row["error"]
    assert "Traceback" in first.store.read(f"trials/{DIVERGING.trial_id}/log.txt").decode()


def test_a_failed_pretraining_fails_its_trials_at_once_with_its_reason(first):
    (row,) = attempts(first.store, pretrain_key=DOOMED[0].pretrain_key)
    assert row["outcome"] == "failed"
    for trial in DOOMED:
        (row,) = tables.read_part(first.store, "trials", trial.trial_id)
        assert row["error"].startswith(f"pre-training {trial.pretrain_key} failed: Diverged: ")
        assert f"failed {trial.trial_id}: pre-training" in first.text
    assert not {trial.trial_id for trial in DOOMED} & first.finetuned()
    assert first.seconds < 300  # Tune would wait for 600 s if it were never told


def test_running_a_finished_grid_again_writes_nothing(first):
    before = content(first.store.address)
    begin = time.monotonic()
    result, _ = run(first.store.address, FIRST)
    assert time.monotonic() - begin < 10
    assert result == first.result
    assert content(first.store.address) == before


def test_an_enlarged_grid_gives_the_tables_of_its_trials_run_one_by_one(grown):
    assert compare(grown.store, grown.alone) == []
    assert grown.result == RunResult(exit_code=1, finished=len(GOOD) + len(NEW) + 1, failed=3, missing=0)


def test_an_enlarged_grid_runs_its_new_trials_only(first, grown):
    for trial in GOOD:
        assert len(attempts(grown.store, "finetune", trial_id=trial.trial_id)) == 1
    for trial in NEW:
        (row,) = attempts(grown.store, "finetune", trial_id=trial.trial_id)
        assert row["outcome"] == "finished"


def test_more_steps_continue_the_kept_state(grown):
    assert spans(attempts(grown.store, pretrain_key=DDPM_KEY)) == [(0, 10), (10, 14)]


def test_an_altered_snapshot_is_made_anew_with_a_warning(grown):
    outcomes = [row["outcome"] for row in attempts(grown.store, "finetune", trial_id=NEEDS_DAMAGED.trial_id)]
    assert outcomes == ["lost", "finished"]
    assert f"lost        {NEEDS_DAMAGED.trial_id}  finetune" in grown.text
    assert "expected SHA-256" in grown.text
    assert "damaged" in grown.store.read(f"trials/{NEEDS_DAMAGED.trial_id}/log.txt").decode()
    assert spans(attempts(grown.store, pretrain_key=SIMCLR_KEY)) == [(0, 10)]  # from the kept state


def test_a_truncated_snapshot_is_reported_and_left_unless_it_is_needed(grown):
    assert f"warning: {grown.store.address}/pretrained/{DDPM_KEY}/{step_name(10)} is damaged" in grown.text


def test_failed_trials_are_run_again_on_request_only(first, grown):
    assert len(attempts(first.store, "finetune", trial_id=DIVERGING.trial_id)) == 1
    assert len(attempts(grown.store, "finetune", trial_id=DIVERGING.trial_id)) == 2
    assert len(attempts(grown.store, pretrain_key=DOOMED[0].pretrain_key)) == 2


def test_without_sharing_every_trial_is_one_stage_with_the_same_numbers(first, tmp_path):
    trials = [simclr(shots=2), simclr(shots=3)]
    result, _ = run(tmp_path, trials, share=False)
    assert result == RunResult(0, 2, 0, 0)
    store = Store.open(tmp_path)
    assert [(row["outcome"], row["trial_id"] is not None) for row in attempts(store, "trial")] == [
        ("finished", True)
    ] * 2
    assert attempts(store, "pretrain") == attempts(store, "finetune") == []
    for trial in trials:
        for table in ("trials", "errors"):
            ours, theirs = (tables.read_part(s, table, trial.trial_id) for s in (store, first.store))
            for one, other in zip(ours, theirs, strict=True):
                assert tables.unequal(one, other, one.keys() - tables.VOLATILE) == []


# --- what happens to a run while it goes on ---------------------------------------------------------


@contextlib.contextmanager
def running(out, trials, **options):
    """Run trials in a thread; yield the dict that will hold `result` and `text`, or `error`."""
    outcome = {}

    def go():
        try:
            outcome["result"], outcome["text"] = run(out, trials, **options)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(240)
        assert not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_a_killed_worker_is_replaced_and_goes_on_from_its_newest_state(folder, tmp_path):
    trials = [simclr(steps=40)]
    store = Store.open(tmp_path / "run")
    state = f"pretrained/{SIMCLR_KEY}/state"
    with running(tmp_path / "run", trials) as outcome:
        wait_until(lambda: (store.newest(state) or 0) >= 5)
        for pid in workers_at_work(os.getpid()):
            os.kill(pid, signal.SIGKILL)
    assert outcome["result"] == RunResult(0, 1, 0, 0)
    killed, second = attempts(store)
    assert (killed["outcome"], second["outcome"]) == ("running", "finished")
    assert 4 <= killed["to_step"] < 40  # the row is written after the state
    assert killed["to_step"] - 1 <= second["from_step"] <= killed["to_step"] + 1  # a state is at most one behind
    assert compare(store, undisturbed(tmp_path / "alone", trials)) == []


def test_a_driver_that_lost_its_lock_stops_and_writes_nothing_more(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate.running.driver, "RunLock", functools.partial(RunLock, heartbeat_s=0.3))
    store = Store.open(tmp_path / "run")
    state = f"pretrained/{SIMCLR_KEY}/state"
    with running(tmp_path / "run", [simclr(steps=100_000)]) as outcome:
        wait_until(lambda: (store.newest(state) or 0) >= 3)
        owner = json.loads(store.read(".ablate/lock.json"))
        store.write(".ablate/lock.json", json.dumps(owner | {"token": "another"}).encode())
        lost_at = time.monotonic()
        wait_until(lambda: outcome.get("error") is not None)
        assert time.monotonic() - lost_at < FENCE_S + 15
        newest = store.newest(state)
    assert isinstance(outcome["error"], LockLost)
    assert outcome["error"].exit_code == 4
    assert "another driver" in str(outcome["error"])
    assert "has taken this run over" in str(outcome["error"])
    (row,) = attempts(store)
    assert row["outcome"] in ("running", "interrupted")  # its end is written where the fence has just looked
    assert store.newest(state) == newest
    assert json.loads(store.read(".ablate/lock.json"))["token"] == "another"  # it is not ours to give back


# --- refusals ---------------------------------------------------------------------------------------


def test_other_data_than_before_is_refused(first, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(first.store.address, out)
    described = yaml.safe_load((out / "run.yaml").read_text())
    described["data"]["synthetic"]["fingerprint"] = "0" * 12
    (out / "run.yaml").write_text(yaml.safe_dump(described))
    before = content(out)
    for start in (run, check):
        with pytest.raises(InputError, match=r"another version of data set synthetic \(fingerprint 000000000000, now"):
            start(out, FIRST)
    assert content(out) == before


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_a_second_driver_is_refused_with_the_first_ones_host_pid_and_start(tmp_path, dry):
    grid, _ = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch")
    store = Store.open(tmp_path / "run")
    with RunLock(store) as lock:
        done = subprocess.run(
            [*CLI, "run", "--grid", str(grid), "--out", store.address, *dry],
            capture_output=True,
            text=True,
            check=False,
        )
        owner = lock.owner()
    assert done.returncode == 2
    assert f"host {owner.host}, pid {os.getpid()}, started {owner.started_at}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_lock_of_a_dead_driver_is_taken_over(first):
    code = (
        "import os, sys; from ablate.store.lock import RunLock; from ablate.store import Store; "
        "RunLock(Store.open(sys.argv[1])).acquire(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, first.store.address], check=False)
    assert Path(first.store.address, ".ablate", "lock.json").exists()
    assert run(first.store.address, FIRST)[0] == first.result
    assert not Path(first.store.address, ".ablate", "lock.json").exists()


# --- no room ----------------------------------------------------------------------------------------

FULL = """
mount -t tmpfs -o size=$1 tmpfs "$2" || exit 99
cd "$2"
shift 2
"$@" >>"$LOG" 2>&1; echo "exit $?" >>"$LOG"
mount -o remount,size=256m "$PWD" || exit 99
"$@" >>"$LOG" 2>&1; echo "exit $?" >>"$LOG"
cp -r "$PWD/run" "$KEEP"
"""


def test_a_full_disk_stops_the_run_with_a_clear_error_and_nothing_corrupt(folder, tmp_path):
    small, log, keep = tmp_path / "small", tmp_path / "log.txt", tmp_path / "kept"
    small.mkdir()
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if shutil.which("unshare") is None or subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("needs a file system of its own of a few kilobytes: unshare -rm mount is not allowed here")
    grid, trials = write_grid(
        tmp_path / "grid.yaml", [{"shots": [2, 3], "pretrain": [simclr().pretrain.model_dump(mode="json")]}], "simclr"
    )
    command = [*CLI, "run", "--grid", str(grid), "--out", "run", "--checkpoint-minutes", "0"]
    subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL, "sh", "700k", str(small), *command],
        env={**os.environ, "LOG": str(log), "KEEP": str(keep)},
        check=True,
        timeout=300,
    )
    text = log.read_text()
    before, _, after = text.partition("exit 1\n")
    assert "no room for" in before.splitlines()[-1], text
    assert "free some space there" in before.splitlines()[-1]
    assert "Traceback" not in before
    assert after.endswith("exit 0\n"), text
    store = Store.open(keep)
    assert compare(store, undisturbed(tmp_path / "alone", trials)) == []
