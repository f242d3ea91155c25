"""Launches on Slurm: a batch script is submitted, and does the rest itself; here it is watched, and ended.

A launch runs on a login node. The home folder is shared with the compute nodes, so the launch and its job leave each
other word in the launch's folder: `exit` is the driver's exit code, written when the job has ended for good; `waiting`
is why there is no driver yet; `stop` tells the job not to go back into the queue.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.errors import InputError
from ablate.launch.backend import CameUpWrongError, DriverState, Fleet, LaunchRequest, LeftOverError, Say
from ablate.launch.batch_script import BatchScript
from ablate.launch.memory import Memory
from ablate.store.addresses import is_remote

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")

ANSWER_S = 60.0
"""Slurm's controller may be busy; it answers within so long, or is away."""

SAVING_S = 600.0
"""For a driver that was asked to save, before its job is cancelled."""

ENDING_S = 120.0
"""For a cancelled job to leave the queue: Slurm kills after its KillWait, half a minute by default."""

POLL_S = 2.0

NODES_OWN = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders that each node has for itself."""

REASONS = {
    "Resources": "for free nodes",
    "Priority": "behind jobs of higher priority",
    "BeginTime": "for a short while, after it went back into the queue",
    "JobHeldUser": "held; release it with scontrol release",
    "JobHeldAdmin": "held by the administrator",
    "(null)": "in the queue",
    "None": "in the queue",
}
"""What Slurm's reasons mean for whoever waits; others are shown as they are."""

OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
"""States of a job that has ended."""


class SlurmError(Exception):
    """A command of Slurm failed; the message is what it said."""


@dataclass(frozen=True)
class Job:
    """A job in the queue, or a task of an array of jobs."""

    job_id: str
    state: str
    reason: str
    nodes: str
    elapsed: str
    left: str
    start: str  # expected, of one that waits
    command: str  # the script's path

    def __str__(self) -> str:
        if self.state == "PENDING":
            return f"job {self.job_id} waits {self.why}"
        return f"job {self.job_id} {self.state.lower()} on {self.nodes or '?'} for {self.elapsed}, {self.left} left"

    @property
    def why(self) -> str:
        """Why it waits, in words."""
        words = REASONS.get(self.reason, f"({self.reason})")
        return words + (f", expected to start at {self.start}" if self.start not in ("", "N/A") else "")


_FORMAT = "%i\x1f%T\x1f%r\x1f%N\x1f%M\x1f%L\x1f%S\x1f%o"


class SlurmBackend:
    """A copy of `slurm.sbatch` or `slurm-elastic.sbatch`."""

    several_machines = False
    """Nodes of a Slurm cluster share a file system: --out may be a folder on it, which `check` looks at."""

    def __init__(self, request: LaunchRequest, memory: Memory) -> None:
        self.request, self.memory = request, memory
        self.script = BatchScript(request.file)

    # --- before anything is submitted

    def check(self) -> None:
        """Refuse a script without the lines that it needs, and folders that nodes do not share."""
        self.script.check()
        for option, folder in (("--out", self.request.out), ("--data", self.request.data)):
            if folder is None or is_remote(folder):
                continue
            path = Path(os.path.abspath(folder)) if option == "--data" else Path(folder)  # noqa: PTH100
            if not path.is_absolute() or any(path.is_relative_to(own) for own in NODES_OWN):
                raise InputError(
                    f"{option} must be an address, or an absolute folder on a file system that all nodes share, not "
                    f"under {', '.join(NODES_OWN)}; got {folder}"
                )

    def fleet(self) -> Fleet:
        """Return the nodes that the script asks for."""
        return self.script.fleet(self.request.options.get("accelerator_type"))

    def resolved(self) -> str:
        """Return the script with the launch's folder in it."""
        return self.script.with_folder(str(self.memory.folder))

    def steps(self) -> list[str]:
        """Return what a launch does."""
        ask = f"sbatch --parsable {self._script_path} {' '.join(self._words())}"
        if self.script.is_elastic:
            does = [
                "the job leads: a Ray head without GPUs, a token of its own, and the driver once a worker has joined",
                f"it submits an array of up to {self.script.num_workers()} workers with {self._worker_shape()} each, "
                "which join and leave as the queue lets them",
                "at its time limit each saves and goes back into the queue, until the grid is done",
            ]
        else:
            count = self.script.nodes
            together = f"the job makes its {count} nodes one Ray cluster with a token of its own, and runs the driver"
            does = [
                together if count > 1 else "the job runs the driver on its node",
                "before its time limit it saves, goes back into the queue and goes on, until the grid is done",
            ]
        return [
            f"ask Slurm whether it would take the job (sbatch --test-only {self.request.file.path})",
            f"write the script, the search space and a token to {self.memory.folder}, for this user only",
            ask,
            *does,
            "show the run until it ends, write the report here",
            "cancel what is left in the queue, and verify that nothing is",
        ]

    def check_online(self, say: Say) -> None:
        """Refuse without Slurm's programs, and what Slurm itself refuses."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise InputError(
                f"{self.request.file.path}: a launch on Slurm must be made on a login node of its cluster; got a "
                f"machine without {', '.join(missing)}"
            )
        for words in ([], *([self.script.worker_words()] if self.script.is_elastic else [])):
            try:
                _slurm("sbatch", "--test-only", *words, text=self.resolved())
            except SlurmError as error:
                of, where = ("the workers", "WORKERS") if words else ("the job", "the #SBATCH lines")
                raise InputError(
                    f"{self.request.file.path}: Slurm must take {of}; it says: {error}; edit {where}"
                ) from error

    # --- the job

    def start(self, say: Say) -> None:
        """Submit the job, unless this launch has one in the queue.

        Raises:
            CameUpWrongError: Slurm does not take it.
        """
        try:
            job = self._job()
            if job is not None:
                self.memory.remember(job=job.job_id)
                self.memory.path("stop").unlink(missing_ok=True)
                say(f"goes on with {job}")
                return
            for name in ("exit", "stop", "waiting", "ended", "head", "away"):
                self.memory.path(name).unlink(missing_ok=True)
            self.memory.token()
            self.memory.write("grid.yaml", self.request.grid_text)
            self.memory.write(self._script_path.name, self.resolved())
            answer = _slurm("sbatch", "--parsable", str(self._script_path), *self._words())
            job_id = answer.strip().partition(";")[0]
            facts = _slurm("scontrol", "--oneliner", "show", "job", job_id)
        except SlurmError as error:
            raise CameUpWrongError(f"{self.request.file.path}: Slurm does not take the job: {error}") from error
        log = re.search(r" StdOut=(.*?)(?= \w+=|$)", facts, re.MULTILINE)
        self.memory.remember(job=job_id, log=log.group(1) if log else "")
        say(f"submitted job {job_id}" + (f", which prints to {log.group(1)}" if log else ""))

    def driver(self) -> DriverState:
        """Return how the driver is, by the queue and by what the job has left."""
        try:
            job = self._job()
            if job is None:
                return self._ended()
        except SlurmError as error:
            return DriverState("unknown", f"Slurm does not answer: {error}")
        if job.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            return DriverState("waiting", str(job))
        code = self._exit_code()
        if code is not None and job.state == "COMPLETING":
            return DriverState("ended", exit_code=code)
        waiting = self._left("waiting")
        if waiting:
            return DriverState("waiting", waiting)
        return DriverState("running", str(job))

    def tend(self, say: Say) -> None:
        """Do nothing: Slurm and the script mend what they can."""

    def status(self) -> list[str]:
        """Return the job and the workers in the queue, and the driver."""
        state = self.driver()
        try:
            jobs = self._all_jobs()
        except SlurmError:
            jobs = []
        lines = [f"driver   {state}"]
        lines += [f"queue    {job}" for job in jobs] or ["queue    no job of this launch"]
        log = self.memory.state().get("log")
        return [*lines, *([f"log      {log}"] if log else [])]

    def logs(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines of the job's output."""
        log = self.memory.state().get("log")
        path, offset, rest = Path(log) if log else None, 0, b""
        while True:
            is_over = not follow or self.driver().phase == "ended"
            if path is not None and path.is_file():
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
                offset += len(data)
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if is_over:
                if rest:
                    yield rest.decode(errors="replace")
                return
            time.sleep(POLL_S)

    def down(self, say: Say) -> None:
        """Let the driver save, cancel the job and its workers, and see that none is left in the queue.

        Raises:
            LeftOverError: a job is still in the queue, or Slurm does not answer.
        """
        try:
            self._end_job(say)
            for job in self._all_jobs():
                _cancel(job.job_id)
            left = self._wait_until_gone(ENDING_S)
        except SlurmError as error:
            job_id = self.memory.state().get("job", "?")
            raise LeftOverError(f"Slurm does not answer: {error}; job {job_id} may go on") from error
        if left:
            ids = " ".join(job.job_id for job in left)
            raise LeftOverError(f"{'; '.join(map(str, left))}; end it by hand: scancel {ids}")

    def _end_job(self, say: Say) -> None:
        self.memory.write("stop", "")
        job = self._job()
        if job is None:
            return
        if job.state == "RUNNING":
            say(f"asking job {job.job_id} to save and to end")
            _slurm("scancel", "--batch", "--signal=TERM", job.job_id)
            for left in self._wait(SAVING_S):
                if left.state == "PENDING":  # its node had not seen yet that it should not come back
                    break
            else:
                return
        say(f"cancelling job {job.job_id}")
        _cancel(job.job_id)

    def _wait(self, seconds: float) -> Iterator[Job]:
        """Yield the job again and again while it is in the queue, for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (job := self._job()) is not None:
            yield job
            time.sleep(POLL_S)

    def _wait_until_gone(self, seconds: float) -> list[Job]:
        """Return the jobs that are left in the queue after so long."""
        deadline = time.monotonic() + seconds
        while (left := self._all_jobs()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return left

    # --- what Slurm says

    @property
    def _script_path(self) -> Path:
        return self.memory.path(f"job{self.request.file.path.suffix}")

    def _words(self) -> list[str]:
        return self.request.run_words(grid=str(self.memory.path("grid.yaml")), address=None)[1:]

    def _worker_shape(self) -> str:
        shape = self.fleet().workers[0].shape
        return f"{shape.gpus:g} GPU and {shape.cpus:g} CPUs"

    def _job(self) -> Job | None:
        """Return this launch's job in the queue, found by its script: also one that nobody noted the id of."""
        jobs = [
            job for job in _queue("--user", str(os.getuid())) if job.command.split(" ")[0] == str(self._script_path)
        ]
        return next((job for job in jobs if job.state not in OVER), None)

    def _all_jobs(self) -> list[Job]:
        """Return this launch's job and the workers that it has submitted."""
        job = self._job()
        ids = {found for found in (job and job.job_id, self.memory.state().get("job")) if found}
        names = ",".join(f"{self.request.file.name}-workers-{job_id}" for job_id in sorted(ids))
        workers = _queue("--user", str(os.getuid()), "--name", names) if names else []
        return [*([job] if job else []), *(worker for worker in workers if worker.state not in OVER)]

    def _left(self, name: str) -> str:
        """Return what the job has left in a file; empty if there is none."""
        try:
            return self.memory.path(name).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def _exit_code(self) -> int | None:
        text = self._left("exit")
        return int(text) if text.isdigit() else None

    def _ended(self) -> DriverState:
        """Return how a job that is no longer in the queue has ended."""
        code = self._exit_code()
        if code is not None:
            return DriverState("ended", exit_code=code)
        job_id = self.memory.state().get("job")
        if job_id is None:
            return DriverState("unknown", "no job was submitted")
        state, code = _verdict(job_id)
        return DriverState("ended", f"job {job_id}: Slurm says {state or 'nothing more'}", code)


def _slurm(program: str, *words: str, text: str | None = None) -> str:
    """Run one of Slurm's programs; return what it printed; raise `SlurmError` if it fails."""
    try:
        done = subprocess.run(
            [program, *words],
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
            start_new_session=True,  # Ctrl-C is for the launch
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{program}: {error}") from error
    if done.returncode:
        raise SlurmError(" ".join(done.stderr.split()) or f"{program} failed with exit code {done.returncode}")
    return done.stdout


def _queue(*words: str) -> list[Job]:
    """Return jobs in the queue, tasks of arrays one by one."""
    text = _slurm("squeue", "--noheader", "--array", f"--format={_FORMAT}", *words)
    return [Job(*line.split("\x1f")) for line in text.splitlines() if line.count("\x1f") == _FORMAT.count("\x1f")]


def _cancel(job_id: str) -> None:
    try:
        _slurm("scancel", job_id)
    except SlurmError as error:
        if "Invalid job id" not in str(error) and "already" not in str(error):
            raise


def _verdict(job_id: str) -> tuple[str, int | None]:
    """Return a job's last state and its exit code, as far as Slurm still knows them."""
    lookups: Sequence[tuple[Sequence[str], str]] = (
        (("scontrol", "--oneliner", "show", "job", job_id), r"JobState=(\w+).* ExitCode=(\d+):(\d+)"),
        (
            ("sacct", "--noheader", "--allocations", "--parsable2", "--format=State,ExitCode", "--jobs", job_id),
            r"(\w+)[^|]*\|(\d+):(\d+)",
        ),
    )
    for words, pattern in lookups:
        try:
            found = re.search(pattern, _slurm(*words))
        except SlurmError:  # forgotten already, or no accounting here
            continue
        if found:
            state, code, signal = found.groups()
            known = state in ("COMPLETED", "FAILED") and signal == "0"
            return state, int(code) if known else None
    return "", None
