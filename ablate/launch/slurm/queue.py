"""Slurm's programs and its queue: which jobs of this user wait, run or have ended."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ablate.words import one_line

ANSWER_S = 60.0
"""Time for Slurm's controller, which may be busy, to answer."""

REASONS = {
    "Resources": "for free nodes",
    "Priority": "behind jobs of higher priority",
    "BeginTime": "for a short while, after it went back into the queue",
    "JobHeldUser": "held; release it with scontrol release",
    "JobHeldAdmin": "held by the administrator",
    "(null)": "in the queue",
    "None": "in the queue",
}
"""Slurm's reasons for which a job waits, in words; others are shown as they are."""

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


def ask_slurm(program: str, *words: str, text: str | None = None) -> str:
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
        raise SlurmError(one_line(done.stderr) or f"{program} failed with exit code {done.returncode}")
    return done.stdout


def queued_jobs(*words: str) -> list[Job]:
    """Return jobs in the queue, tasks of arrays one by one."""
    text = ask_slurm("squeue", "--noheader", "--array", f"--format={_FORMAT}", *words)
    return [Job(*line.split("\x1f")) for line in text.splitlines() if line.count("\x1f") == _FORMAT.count("\x1f")]


def cancel(job_id: str) -> None:
    """Cancel a job; one that has ended already is none the worse."""
    try:
        ask_slurm("scancel", job_id)
    except SlurmError as error:
        if "Invalid job id" not in str(error) and "already" not in str(error):
            raise


def last_state(job_id: str) -> tuple[str, int | None]:
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
            found = re.search(pattern, ask_slurm(*words))
        except SlurmError:  # forgotten already, or no accounting here
            continue
        if found:
            state, code, signal = found.groups()
            known = state in ("COMPLETED", "FAILED") and signal == "0"
            return state, int(code) if known else None
    return "", None
