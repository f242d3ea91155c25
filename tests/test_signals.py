"""Ctrl-C and SIGTERM on the real command: every state is saved, the exit code tells, the next run goes on."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from runs import CLI, attempts, driver, status_of, undisturbed, wait_until, write_grid
from same_tables import compare, unreadable_parts
from tiny import tiny_trial

from ablate.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

PRETRAIN = tiny_trial("simclr", pretrain={"steps": 150}).pretrain.model_dump(mode="json")
GRID = [{"seed": [0, 1], "pretrain": PRETRAIN}]


@dataclass
class Session:
    """How one `ablate run` ended."""

    code: int
    text: str
    status: dict[str, str]
    rows: list[dict]  # of `stages` so far
    unreadable: dict[str, str]


@dataclass
class Sessions:
    store: Store
    trials: tuple
    interrupted: Session
    terminated: Session
    left: Session
    finished: Session
    alone: Store


def session(grid, store, until=None, *signals, group=False):
    """Run the command, send signals once `until` holds, and tell how it ended."""
    with driver(grid, store.address) as process:
        if until is not None:
            wait_until(lambda: until() or process.poll() is not None, 400)
            assert process.poll() is None, process.stdout.read()
            for number in signals:
                os.killpg(process.pid, number) if group else process.send_signal(number)
                time.sleep(0.2)
        text, _ = process.communicate(timeout=400)
    rows = attempts(store) + attempts(store, "finetune")
    return Session(process.returncode, text, status_of(store), rows, unreadable_parts(store))


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """One run: Ctrl-C in pre-training, SIGTERM in fine-tuning, Ctrl-C twice, and then left alone."""
    folder = tmp_path_factory.mktemp("signals")
    with pytest.MonkeyPatch.context() as patch:
        if "ABLATE_CACHE" not in os.environ:
            patch.setenv("ABLATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        grid, trials = write_grid(folder / "grid.yaml", GRID, "simclr", finetune={"epochs": 40})
        store = Store.open(folder / "run")
        (key,) = {trial.pretrain_key for trial in trials}
        homes = [f"trials/{trial.trial_id}/state" for trial in trials]

        def pretraining():
            return (store.newest(f"pretrained/{key}/state") or 0) >= 5

        def finetuning(steps):
            return lambda: max(store.newest(home) or 0 for home in homes) >= steps

        interrupted = session(grid, store, pretraining, signal.SIGINT, group=True)
        terminated = session(grid, store, finetuning(1), signal.SIGTERM)
        steps = max(store.newest(home) or 0 for home in homes)
        left = session(grid, store, finetuning(steps + 1), signal.SIGINT, signal.SIGINT, group=True)
        finished = session(grid, store)
        yield Sessions(
            store, trials, interrupted, terminated, left, finished, undisturbed(folder / "alone", list(trials))
        )


def test_control_c_saves_the_states_and_says_how_to_go_on(sessions):
    told = sessions.interrupted
    assert told.code == 130, told.text
    assert "SIGINT: saving the running stages' states; once more to leave at once" in told.text
    assert "interrupted, every state is saved; to go on run the same command again" in told.text
    assert "2 open" in told.text
    assert "Traceback" not in told.text
    (row,) = told.rows
    assert (row["outcome"], row["from_step"]) == ("interrupted", 0)
    assert 5 <= row["to_step"] < 150


def test_sigterm_does_the_same_with_its_own_exit_code(sessions):
    told = sessions.terminated
    assert told.code == 143, told.text
    assert "SIGTERM: saving the running stages' states" in told.text
    assert "interrupted, every state is saved" in told.text
    assert "Traceback" not in told.text
    assert "interrupted" in {row["outcome"] for row in told.rows if row["kind"] == "finetune"}


def test_no_step_is_done_twice_after_a_signal(sessions):
    rows = [row for row in sessions.finished.rows if row["kind"] == "pretrain" and row["to_step"] > row["from_step"]]
    assert rows[0]["from_step"] == 0
    assert rows[-1]["to_step"] == 150
    assert all(one["to_step"] == other["from_step"] for one, other in itertools.pairwise(rows))


def test_a_second_control_c_leaves_at_once(sessions):
    assert sessions.left.code == 130, sessions.left.text
    assert "every state is saved" not in sessions.left.text


def test_nothing_is_unreadable_after_any_of_them(sessions):
    for told in (sessions.interrupted, sessions.terminated, sessions.left, sessions.finished):
        assert told.unreadable == {}


def test_the_run_then_ends_with_the_tables_of_an_undisturbed_one(sessions):
    assert sessions.finished.code == 0, sessions.finished.text
    assert sessions.finished.status == {trial.trial_id: "finished" for trial in sessions.trials}
    assert compare(sessions.store, sessions.alone) == []


def test_control_c_before_the_first_stage_gives_the_same_exit_code(tmp_path):
    grid, _ = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch")
    with driver(grid, tmp_path / "run") as process:
        process.stdout.readline()  # the plan: nothing is started yet
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert not (tmp_path / "run" / ".ablate" / "lock.json").exists()


# --- the first seconds -------------------------------------------------------------------------------

AFTER_S = (0.05, 0.2, 0.5, 1, 2, 4)

STARTING = "ablate/cli/entry.py"
"""The interpreter's own start takes some hundredths of a second: a traceback without this was none of ours."""


@contextlib.contextmanager
def busy(number):
    """Keep so many processes at work, so that everything else is slow."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def assert_interrupted(code, text):
    """The shell sees 130, and our own code prints no traceback."""
    if code != 130:
        # Python itself: killed by the signal before our first line, or, while it reads its `site`, exit code 1
        assert code == -signal.SIGINT or (code == 1 and "<frozen site>" in text), (code, text)
        assert STARTING not in text, text
    else:
        assert "Traceback" not in text, text


@pytest.mark.parametrize("loops", [0, 2])
@pytest.mark.parametrize("after_s", AFTER_S)
def test_control_c_in_the_first_seconds_ends_with_130(tmp_path, after_s, loops):
    grid, _ = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch", finetune={"epochs": 5000})
    with busy(loops), driver(grid, tmp_path / "run") as process:
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=400)
    assert_interrupted(process.returncode, text)
    assert not (tmp_path / "run" / ".ablate" / "lock.json").exists()


INTERRUPTS_ITSELF = """
import importlib.abc, os, signal, sys
MODULE = sys.argv.pop(1)

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):  # the signal is heard between two instructions
                    pass
            except BaseException:  # as libraries do that try an import
                pass

sys.meta_path.insert(0, Interrupting())
from ablate.cli import main
main()
"""


@pytest.mark.parametrize(
    "module",
    ["ablate.cli.app", "typer", "yaml", "ablate.running.plan_words", "pandas", "pyarrow", "ablate.running.driver"],
)
def test_control_c_during_an_import_is_not_swallowed(tmp_path, module):
    grid, _ = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTS_ITSELF, module, "run", "--grid", str(grid), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert not (tmp_path / "run").exists()


def test_control_c_in_a_trial_of_its_own_gives_the_lock_back(tmp_path):
    _, (trial,) = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch", finetune={"epochs": 5000})
    command = [*CLI, "trial", trial.trial_id, "--grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("finetune  "):
                process.send_signal(signal.SIGINT)
                break
        text = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in text
    assert not (tmp_path / "run" / ".ablate" / "lock.json").exists()
