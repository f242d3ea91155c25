"""The owner of a run's lock: a process on a machine, and whether it still runs."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Owner:
    """Who holds a run's lock."""

    token: str  # of this holding
    host: str
    machine: str  # names the running system in which `pid` has a meaning
    pid: int
    process_start: str  # tells a process from a later one with the same pid
    started_at: str  # UTC
    heartbeat: float  # seconds since 1970, by the owner's clock
    released: bool = False  # given back where a file cannot be deleted under a condition

    def to_bytes(self) -> bytes:
        """Return the content of the lock's file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Owner | None:
        """Read the content of the lock's file; None if it is none."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


def process_start(pid: int) -> str | None:
    """Return a number that stays the same as long as process `pid` lives; None if it is gone or a zombie.

    It is the clock ticks from the boot to the process's start on Linux, the seconds from 1970 elsewhere.

    Raises:
        psutil.AccessDenied: the system does not tell.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        if sys.platform != "linux":
            return f"{process.create_time():.3f}"
        # There psutil adds the boot time to what the kernel tells, and the boot time moves when the clock is set: it
        # is taken off again, so that a process keeps its number.
        boot = psutil.boot_time()
        while True:
            created = psutil.Process(pid).create_time()
            before, boot = boot, psutil.boot_time()
            if before == boot:
                return str(round((created - boot) * os.sysconf("SC_CLK_TCK")))
    except psutil.NoSuchProcess:
        return None


def is_running(pid: int, start: str) -> bool:
    """Whether the process `pid` of this machine is the one whose `process_start` was `start`.

    A process that lives counts as the same where its start is not told, and where `start` is not a number: earlier
    versions wrote a date on some systems. So the lock of a driver that lives is never taken away.
    """
    try:
        now = process_start(pid)
    except psutil.AccessDenied:
        return True
    return now is not None and (now == start or not re.fullmatch(r"[0-9.]+", start))


def this_machine() -> str:
    """Name the running system and, on Linux, the process namespace.

    psutil tells neither the boot's id nor the namespace: the id of the boot, unlike its time, stays the same when the
    clock is set, and in two containers of one machine the same pid names two processes.
    """
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()
