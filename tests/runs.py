"""Whole runs of tiny grids, and what to look at after them; for tests of going on, stopping and killing."""

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from rich.console import Console
from tiny import tiny_fields

from ablate import tables
from ablate.running.driver import Options, check_run, closing_lines, run_grid
from ablate.space import Grid
from ablate.stage.settings import Settings
from ablate.stage.task import data_in
from ablate.stage.trial import TrialFailed, run_trial
from ablate.store import Store

DATA = data_in(None)
CLI = [sys.executable, "-c", "from ablate.cli import main; main()"]


def run(out, trials, **options):
    """Run trials through Ray; return the result, and all that was printed."""
    screen = io.StringIO()
    options = {"checkpoint_minutes": 0, **options}
    result = run_grid(
        Grid("tiny", "", tuple(trials), {}), Options(out=str(out), **options), Console(file=screen, width=500)
    )
    return result, screen.getvalue() + "\n".join(closing_lines(Store.open(str(out)), result))


def check(out, trials, name="tiny", **options):
    """Check a run of trials as `--dry-run` does; return all that was printed."""
    screen = io.StringIO()
    check_run(Grid(name, "", tuple(trials), {}), Options(out=str(out), **options), Console(file=screen, width=500))
    return screen.getvalue()


def undisturbed(out, trials):
    """Run trials one after the other in this process, as a run with one thread would; return the store."""
    store = Store.open(str(out))
    keys = [trial.pretrain_key for trial in trials]
    shared = frozenset(key for key in keys if key is not None and keys.count(key) > 1)
    torch.set_num_threads(1)
    for trial in sorted(trials, key=lambda trial: getattr(trial.pretrain, "steps", 0)):
        with contextlib.suppress(TrialFailed):
            run_trial(trial, store, DATA, settings=Settings(shared_keys=shared))
    return store


def attempts(store, kind="pretrain", **columns):
    """Return the rows of `stages` of one kind, in the order in which they were last written."""
    names = store.list("tables/stages")
    rows = []
    for name in names:
        part = name.removesuffix(".parquet")
        written = Path(store.path(f"tables/stages/{name}")).stat().st_mtime_ns if store.is_local else 0
        rows += [(written, row) for row in tables.read_part(store, "stages", part)]
    rows = [row for _, row in sorted(rows, key=lambda item: item[0])]
    return [row for row in rows if row["kind"] == kind and all(row[name] == value for name, value in columns.items())]


def spans(rows):
    """Return the steps that attempts went through, as (from, to) pairs, without those that did nothing."""
    return [(row["from_step"], row["to_step"]) for row in rows if row["to_step"] > row["from_step"]]


def content(folder):
    """Return every file but the hidden ones, with its content and its time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def write_grid(path, blocks, method="ddpm", **fields):
    """Write a search space of tiny trials; `blocks` are its grids. Returns the path and the trials."""
    base = {name: value for name, value in tiny_fields(method, **fields).items() if name not in ("shots", "pretrain")}
    path.write_text(
        yaml.safe_dump({"name": "tiny", "base": base, "blocks": [{"grid": {"shots": 3, **block}} for block in blocks]})
    )
    from ablate.space import find_grid, load_grid

    return path, load_grid(find_grid(str(path)), []).trials


@contextlib.contextmanager
def driver(grid, out, *options, **environment):
    """Start `ablate run` in a process group of its own; yield the process, and end the group."""
    process = subprocess.Popen(
        [*CLI, "run", "--grid", str(grid), "--out", str(out), "--checkpoint-minutes", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def on_terminal(arguments, *, answer, columns=80):
    """Run `ablate` on a terminal of its own and answer its question; return the exit code and all that was shown."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [*CLI, *map(str, arguments)], {**os.environ, "TERM": "dumb", "COLUMNS": str(columns)})
    seen, answered = "", False
    while True:
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the program has ended
            break
        if not answered and "[y/N]" in seen:
            answered = True
            os.write(terminal, f"{answer}\n".encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), seen.replace("\r\n", "\n")


def wait_until(condition, seconds=120, every=0.05):
    """Wait for a condition and return its value; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"did not happen within {seconds} s")


def descendants(pid):
    """Return the pids of all processes below `pid`, with their command lines (Linux)."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                parents[int(folder.name)] = (int(stat[1]), command)
    found, frontier = {}, {pid}
    while frontier:
        frontier = {child for child, (parent, _) in parents.items() if parent in frontier and child not in found}
        found |= {child: parents[child][1] for child in frontier}
    return found


def workers_at_work(pid):
    """Return the pids of the Ray workers below `pid` that run a stage."""
    return [child for child, command in descendants(pid).items() if command.startswith("ray::") and "train" in command]


def status_of(store):
    """Return the run's trials by id with their status; empty while there are none."""
    return tables.trial_status(store) if store.exists("tables/trials") else {}
