"""Who holds a run's lock: a process on a machine, and whether it is still there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


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
    """Return a text that stays the same as long as process `pid` lives; None if it is gone or a zombie."""
    if sys.platform == "linux":
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else fields[18]  # field 22 of the line: clock ticks since boot
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = found.stdout.strip().partition(" ")
    return None if not state or state[0] == "Z" else start.strip()


def this_machine() -> str:
    """Name the running system and, on Linux, the process namespace."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()
