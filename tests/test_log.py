"""The log of a stage: all that is printed and warned in it, kept in the store also when its process is killed."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from runs import driver, wait_until, write_grid
from tiny import tiny_trial

from ablate.stage.log import LOG_LIMIT_BYTES, StageLog
from ablate.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX file descriptors")

PATH = "trials/x/log.txt"


@contextlib.contextmanager
def process(code, *arguments, **environment):
    """Start Python with a program and what it imports; yield the process, and end it."""
    begin = "import ctypes, logging, os, signal, subprocess, sys, time, warnings\n"
    with subprocess.Popen(
        [sys.executable, "-c", begin + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as started:
        try:
            yield started
        finally:
            started.kill()


SPEAKS = """
from ablate.stage.log import StageLog
from ablate.store import Store

before = logging.StreamHandler()  # keeps the stream of now
with StageLog(Store.open(sys.argv[1]), "trials/x/log.txt") as log:
    print("a print")
    print("a print to stderr", file=sys.stderr)
    warnings.warn("a warning")
    logging.getLogger("library").warning("a library's logger")
    logging.getLogger("other").addHandler(before)
    logging.getLogger("other").warning("a library's handler")
    logging.getLogger("ablate").info("a record of ours")
    sys.stdout.buffer.write(b"bytes\\n")
    sys.stdout.buffer.flush()
    os.write(1, b"native code\\n")
    os.write(2, b"native code to stderr\\n")
    ctypes.CDLL(None).printf(b"the C library\\n")
    subprocess.run(["echo", "a child"], check=True)
    for number in range(20):
        print(f"print {number}", flush=True)
        os.write(1, f"write {number}\\n".encode())
        time.sleep(0.01)
    log.write()
    print("after the log")
print("after the stage")
"""


def test_all_that_a_stage_says_is_in_its_log_and_shown_as_before(tmp_path):
    with process(SPEAKS, tmp_path) as started:
        out, err = started.communicate(timeout=60)
    assert started.returncode == 0, err
    log = Store.open(tmp_path).read(PATH).decode()
    for said in ("a print", "bytes", "native code", "the C library", "a child"):
        assert (log.splitlines().count(said), out.splitlines().count(said)) == (1, 1), said
    for said in ("a print to stderr", "a library's logger", "a library's handler", "native code to stderr"):
        assert (log.splitlines().count(said), err.splitlines().count(said)) == (1, 1), said
    for text in (log, out):
        for kind in ("print", "write"):
            numbers = [line for line in text.splitlines() if line.startswith(f"{kind} ")]
            assert numbers == [f"{kind} {number}" for number in range(20)]
    for text in (log, err):
        assert text.count("UserWarning: a warning") == 1
    assert log.count("INFO a record of ours\n") == 1
    assert out.endswith("after the log\nafter the stage\n")
    assert "after" not in log
    assert "a record of ours" not in out + err


def test_a_terminal_stays_one(tmp_path):
    import pty

    code = (
        "from ablate.stage.log import StageLog\nfrom ablate.store import Store\n"
        "with StageLog(Store.open(sys.argv[1]), 'log.txt') as log:\n"
        "    print('in color' if sys.stdout.isatty() and sys.stderr.isatty() else 'plain')\n"
        "    log.write()\n"
    )
    master, terminal = pty.openpty()
    command = [sys.executable, "-c", f"import sys\n{code}", str(tmp_path)]
    subprocess.run(command, stdout=terminal, stderr=terminal, check=True, timeout=60)
    os.close(terminal)
    assert os.read(master, 1000) == b"in color\r\n"
    os.close(master)
    assert Store.open(tmp_path).read("log.txt") == b"in color\n"


def test_the_last_words_of_a_stage_that_aborts_are_shown(tmp_path):
    code = (
        "from ablate.stage.log import StageLog\nfrom ablate.store import Store\n"
        "import faulthandler; faulthandler.enable()\n"
        "with StageLog(Store.open(sys.argv[1]), 'log.txt') as log:\n"
        "    os.abort()\n"
    )
    with process(code, tmp_path) as started:
        _, err = started.communicate(timeout=60)
    assert started.returncode == -signal.SIGABRT
    assert err.startswith("Fatal Python error: Aborted\n")


def test_more_text_than_a_pipe_holds_passes_while_nobody_else_may_run(tmp_path):
    code = (
        "from ablate.stage.log import StageLog\nfrom ablate.store import Store\n"
        "write = ctypes.PyDLL(None).write  # keeps Python's lock, as native code of a library does\n"
        "with StageLog(Store.open(sys.argv[1]), 'log.txt') as log:\n"
        "    for _ in range(100):\n"
        "        assert write(2, b'x' * 9999 + b'\\n', 10000) == 10000\n"
        "    log.write()\n"
    )
    with process(code, tmp_path) as started:
        _, err = started.communicate(timeout=60)
    assert started.returncode == 0, err[-1000:]
    assert err.count("x\n") == 100
    assert Store.open(tmp_path).read("log.txt").count(b"x\n") == 100


def at_once(write):
    write()


def test_what_earlier_attempts_wrote_stays_and_nothing_is_there_twice(tmp_path):
    store = Store.open(tmp_path)
    for attempt in ("first", "second"):
        with StageLog(store, PATH) as log:
            print(f"{attempt}: begins")
            log.save(at_once)
            print(f"{attempt}: goes on")
            log.save(at_once)  # a moment later: this waits for the next
            log.write()
    assert store.read(PATH).decode().splitlines() == [
        "first: begins",
        "first: goes on",
        "second: begins",
        "second: goes on",
    ]


def test_a_save_that_is_not_done_yet_is_not_handed_in_again(tmp_path):
    store, waiting = Store.open(tmp_path), []
    with StageLog(store, PATH) as log:
        print("one")
        log.save(waiting.append)
        print("two")
        log.save(waiting.append)
        (write,) = waiting
        write()
        assert store.read(PATH) == b"one\ntwo\n"
        log.write()
    assert store.read(PATH) == b"one\ntwo\n"


def test_the_log_keeps_its_end(tmp_path):
    store = Store.open(tmp_path)
    for attempt in range(2):
        with StageLog(store, PATH) as log:
            for number in range(LOG_LIMIT_BYTES // 20):  # 0.6 of the limit
                print(f"{attempt} {number:>9}")
            log.write()
    text = store.read(PATH)
    assert len(text) == LOG_LIMIT_BYTES
    last = LOG_LIMIT_BYTES // 20 - 1
    assert text.endswith(f"1 {last:>9}\n".encode())
    assert f"0 {last:>9}\n1 {0:>9}\n".encode() in text


TRAINS = """
from ablate.space import TrialSpec
from ablate.stage.settings import Settings
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store

def report(progress):
    print(f"{sys.argv[3]}: {progress.phase} {progress.step}", flush=True)
    warnings.warn(f"{sys.argv[3]}: step {progress.step} is a warning")
    os.write(2, f"{sys.argv[3]}: native {progress.step}\\n".encode())
    time.sleep(float(sys.argv[4]))
    return False

spec = TrialSpec.model_validate_json(sys.argv[2])
run_trial(spec, Store.open(sys.argv[1]), data_in(None), report, settings=Settings(checkpoint_minutes=0))
"""


def test_the_log_of_a_killed_stage_reaches_to_one_of_its_last_reports_and_the_next_attempt_goes_on(tmp_path):
    spec, store = tiny_trial(finetune={"epochs": 20}), Store.open(tmp_path)
    path = f"trials/{spec.trial_id}/log.txt"

    def lines():
        return store.read(path).decode().splitlines() if store.exists(path) else []

    with process(TRAINS, tmp_path, spec.model_dump_json(), "killed", 0.7) as started:
        wait_until(lambda: "killed: finetune 5" in lines() or started.poll() is not None, 240)
        assert started.poll() is None, started.stderr.read()
        os.kill(started.pid, signal.SIGKILL)
        out, err = started.communicate(timeout=60)
    assert started.returncode == -signal.SIGKILL
    assert "killed: finetune 5" in out.splitlines()
    assert "killed: native 5" in err.splitlines()
    kept = lines()
    assert [line for line in kept if "step 4 is a warning" in line]  # the log may end between the prints of step 5
    assert "killed: native 4" in kept
    with process(TRAINS, tmp_path, spec.model_dump_json(), "second", 0) as started:
        _, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    assert lines()[: len(kept)] == kept
    for number in range(1, 6):
        assert lines().count(f"killed: finetune {number}") == 1
    assert lines().count("second: finetune 20") == 1


IN_WORKERS = """
import sys
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    import os, threading, time

    def speak():
        while True:
            time.sleep(0.05)
            print("a library prints", flush=True)
            os.write(2, b"a native library writes\\n")

    threading.Thread(target=speak, daemon=True).start()
"""


def test_the_log_of_a_stage_in_a_worker_of_ray_has_what_libraries_print(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(IN_WORKERS)
    grid, (trial,) = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch", finetune={"epochs": 5})
    with driver(grid, tmp_path / "run", PYTHONPATH=str(tmp_path / "site")) as started:
        text, _ = started.communicate(timeout=240)
    assert started.returncode == 0, text
    log = (tmp_path / "run" / "trials" / trial.trial_id / "log.txt").read_text().splitlines()
    assert "a library prints" in log
    assert "a native library writes" in log
    assert sum(f"fine-tuning {trial.trial_id}" in line for line in log) == 1
