"""`ablate stop` and `ablate status --watch`, from another process that shares nothing with the run but its store."""

import os
import pty
import select
import socket
import subprocess
import sys
import time

import pytest
from runs import CLI, attempts, driver, status_of, undisturbed, wait_until, write_grid
from same_tables import compare
from tiny import tiny_trial

from ablate.running.driver import RunResult, closing_lines
from ablate.running.picture import Picture, Row
from ablate.running.supervision import read_picture
from ablate.store import Store
from ablate.store.lock import RunLock
from ablate.store.stopping import STOP_COMMAND, request_stop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

PRETRAIN = tiny_trial("simclr", pretrain={"steps": 120}).pretrain.model_dump(mode="json")
LONG = {**PRETRAIN, "steps": 300}


def ablate(*arguments):
    done = subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_stop_saves_and_ends_with_exit_code_5_and_goes_on_later(place, tmp_path, request):
    address = str(tmp_path / "run") if place == "local" else request.getfixturevalue("s3_address")
    grid, trials = write_grid(tmp_path / "grid.yaml", [{"seed": [0, 1], "pretrain": PRETRAIN}], "simclr")
    store = Store.open(address)
    (key,) = {trial.pretrain_key for trial in trials}
    with driver(grid, address) as process:
        wait_until(lambda: (store.newest(f"pretrained/{key}/state") or 0) >= 5 or process.poll() is not None)
        assert process.poll() is None, process.stdout.read()
        asked = ablate("stop", address, "--wait")
        assert asked == (
            0,
            f"{store.label}: asked the driver on {socket.gethostname()} (pid {process.pid}) to save the running "
            "stages' states and to end; it hears within seconds, and ends once the states are saved\n"
            "the run has ended; start the same command again to go on\n",
            "",
        )
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 5, text
    assert "asked to stop by 'ablate stop'" in text
    assert "to go on run the same command again" in text
    assert "Traceback" not in text
    (row,) = attempts(store)
    assert row["outcome"] == "interrupted"
    assert store.newest(f"pretrained/{key}/state") == row["to_step"]
    with driver(grid, address) as process:  # the request was for that driver alone
        text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert status_of(store) == {trial.trial_id: "finished" for trial in trials}
    assert compare(store, undisturbed(tmp_path / "alone", list(trials))) == []
    assert ablate("stop", address) == (0, f"{store.label}: no driver is at work, there is nothing to stop\n", "")


def test_a_request_before_the_first_stage_is_heard_too(tmp_path):
    grid, _ = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch", finetune={"epochs": 500})
    store = Store.open(tmp_path / "run")
    with driver(grid, store.address) as process:
        owner = wait_until(RunLock(store).owner)
        request_stop(store, owner.token, STOP_COMMAND)
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 5, text


def test_what_waits_when_a_run_stops_is_withdrawn_without_a_word(tmp_path):
    grid, _ = write_grid(tmp_path / "grid.yaml", [{"seed": [0, 1]}], "scratch", finetune={"epochs": 5000})
    store = Store.open(tmp_path / "run")
    with driver(grid, store.address, "--cpus-per-stage", str(os.cpu_count())) as process:  # one at a time
        wait_until(lambda: (picture := read_picture(store)) is not None and picture.rows and picture.rows[0].step > 0)
        request_stop(store, RunLock(store).owner().token, STOP_COMMAND)
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 5, text
    _, _, after = text.partition("asked to stop by 'ablate stop'")
    shown = [line for line in after.splitlines()[1:] if line and not line.startswith((" ", "0/2 trials finished"))]
    assert [line.split()[0] for line in shown] == ["interrupted", "0", "interrupted,", "tables"], text


def test_the_display_of_a_run_is_seen_from_elsewhere_on_a_terminal_and_off_one(tmp_path):
    grid, trials = write_grid(tmp_path / "grid.yaml", [{"shots": 2, "pretrain": LONG}], "simclr")
    store = Store.open(tmp_path / "run")
    with driver(grid, store.address) as process:
        wait_until(lambda: (picture := read_picture(store)) is not None and picture.rows and picture.rows[0].step > 3)
        plain = subprocess.Popen([*CLI, "status", store.address, "--watch"], stdout=subprocess.PIPE, text=True)
        master, terminal = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150", "LINES": "30"}
        live = subprocess.Popen([*CLI, "status", store.address, "--watch"], stdout=terminal, env=environment)
        os.close(terminal)
        seen = read_until(master, "300", 60)
        text, _ = process.communicate(timeout=240)
        assert process.returncode == 0, text
        out, _ = plain.communicate(timeout=60)
        seen += read_until(master, "attempts", 60)
        live.wait(60)
        os.close(master)
    for shown in (out, seen):
        assert "pretrain SimCLR, 300 steps on synthetic" in shown
        assert f"pid {process.pid}, as of" in shown
        assert "0/1 trials finished" in shown
        assert "1 finished, 0 failed, 0 open" in shown  # the status at the end
    assert plain.returncode == live.returncode == 0
    assert "━" in seen  # a bar
    assert trials


def read_until(terminal, text, seconds):
    """Return what a terminal shows until `text` has come."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                seen += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                break
    return seen


def test_a_picture_survives_the_store():
    row = Row("pretrain DDPM", 3, 10, loss=1.5, left_s=4.0)
    picture = Picture([row], 1, 2, "1/2 trials finished", "the store has not answered", 12.5)
    assert Picture.from_bytes(picture.to_bytes()) == picture
    assert picture.lines() == [
        "1/2 trials finished",
        "the store has not answered",
        "  pretrain DDPM: 3/10, loss 1.5, 0:00:04 left",
    ]


def test_where_nothing_was_started_no_tables_are_named(tmp_path):
    assert closing_lines(Store.open(tmp_path), RunResult(130, 0, 0, 3)) == [
        "interrupted before anything was started; to start run the same command again"
    ]
