"""Launches on Slurm: a batch script is submitted and does the rest itself; the launch watches it and ends it.

A launch runs on a login node. The home folder is shared with the compute nodes, so the launch and its job leave each
other word in the launch's folder: `exit` is the driver's exit code, written when the job has ended for good; `waiting`
is why there is no driver yet; `stop` tells the job not to go back into the queue.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ablate.errors import InputError
from ablate.launch.backend import CameUpWrongError, DriverState, Fleet, LaunchRequest, LeftOverError, Say
from ablate.launch.memory import Memory
from ablate.launch.slurm.batch_script import BatchScript
from ablate.launch.slurm.queue import OVER, Job, SlurmError, ask_slurm, cancel, last_state, queued_jobs
from ablate.store.addresses import is_remote
from ablate.words import counted

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")

SAVING_S = 600.0
"""Time for a driver that was asked to save, before its job is cancelled."""

ENDING_S = 120.0
"""Time for a cancelled job to leave the queue: Slurm kills after its KillWait, half a minute by default."""

POLL_S = 2.0

NODES_OWN = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders that each node has for itself."""


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
        submission = f"sbatch --parsable {self._script_path} {' '.join(self._words())}"
        if self.script.is_elastic:
            workers = counted(self.script.num_workers(), "worker")
            does = [
                "the job starts a Ray head without GPUs, with a token of its own, and the driver once a worker joins",
                f"it submits an array of up to {workers} with {self._worker_shape()} each, which join and leave as the "
                "queue lets them",
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
            f"submit it: {submission}",
            *does,
            "show the run until it ends, write the report here",
            "cancel what is left in the queue, and verify that nothing is",
        ]

    def account_commands(self) -> list[str]:
        """Return nothing: the account is there."""
        return []

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
                ask_slurm("sbatch", "--test-only", *words, text=self.resolved())
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
            answer = ask_slurm("sbatch", "--parsable", str(self._script_path), *self._words())
            job_id = answer.strip().partition(";")[0]
            facts = ask_slurm("scontrol", "--oneliner", "show", "job", job_id)
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
        """Let the driver save, cancel the job and its workers, and verify that none is left in the queue.

        Raises:
            LeftOverError: a job is still in the queue, or Slurm does not answer.
        """
        try:
            self._end_job(say)
            for job in self._all_jobs():
                cancel(job.job_id)
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
            ask_slurm("scancel", "--batch", "--signal=TERM", job.job_id)
            for left in self._wait(SAVING_S):
                if left.state == "PENDING":  # its node had not seen yet that it should not come back
                    break
            else:
                return
        say(f"cancelling job {job.job_id}")
        cancel(job.job_id)

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
        return f"{counted(shape.gpus, 'GPU')} and {counted(shape.cpus, 'CPU')}"

    def _job(self) -> Job | None:
        """Return this launch's job in the queue, found by its script: also one that nobody noted the id of."""
        jobs = [job for job in queued_jobs("--user", str(os.getuid())) if job.state not in OVER]
        return next((job for job in jobs if job.command.split(" ")[0] == str(self._script_path)), None)

    def _all_jobs(self) -> list[Job]:
        """Return this launch's job and the workers that it has submitted."""
        job = self._job()
        ids = {found for found in (job and job.job_id, self.memory.state().get("job")) if found}
        names = ",".join(f"{self.request.file.name}-workers-{job_id}" for job_id in sorted(ids))
        workers = queued_jobs("--user", str(os.getuid()), "--name", names) if names else []
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
        state, code = last_state(job_id)
        return DriverState("ended", f"job {job_id}: Slurm says {state or 'nothing more'}", code)
