"""Who is at work on a run, and was it asked to stop?

The lock and the stop requests are hidden files of the run's store.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from ablate.space import InputError
from ablate.store import Store

CONTROL = ".ablate"
"""Folder of the lock and the stop flags; hidden, so that it counts among nobody's files."""


# --- one driver at a time ---------------------------------------------------------------------------


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


def _machine() -> str:
    """Name the running system and, on Linux, the process namespace."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


class RunLock:
    """Keeps a second driver off a run: `with RunLock(store): ...`; raises `InputError` if another is at work.

    The lock is a file that names its owner and is renewed every `heartbeat_s`. An owner on the same machine
    is gone when its process is; one elsewhere when its heartbeat is older than `stale_s` and does not move
    while it is watched (clocks may differ). On a local file system taking the lock is exclusive, through
    a file lock around looking and writing. Object stores offer no such thing here (pyarrow has no
    conditional put): there the lock is best effort, and two drivers that start within the same
    fraction of a second may both go on until the next heartbeat, when one of them finds the lock `lost`.
    """

    def __init__(
        self, store: Store, *, heartbeat_s: float = 10.0, stale_s: float = 60.0, settle_s: float = 0.5
    ) -> None:
        self.store = store
        self.path = f"{CONTROL}/lock.json"
        self.heartbeat_s = heartbeat_s
        self.stale_s = stale_s
        self.settle_s = settle_s
        self.token = uuid.uuid4().hex
        self.took_over: Owner | None = None
        self._lost = threading.Event()
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self._started_at = ""

    @property
    def lost(self) -> bool:
        """Has another driver taken the lock, because this one seemed to be gone?"""
        return self._lost.is_set()

    def owner(self) -> Owner | None:
        """Return who holds the lock, alive or not; None if nobody does."""
        try:
            return Owner(**json.loads(self.store.read(self.path)))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None

    def acquire(self) -> None:
        """Take the lock and keep it alive; raise `InputError` if another driver holds it."""
        owner = self.owner()
        if owner is not None and not self.is_gone(owner):
            self._refuse(owner)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        with _exclusive(self.store):
            current = self.owner()
            if current is not None and (owner is None or current.token != owner.token):
                self._refuse(current)  # somebody was quicker
            self._beat()
        if not self.store.is_local:
            time.sleep(self.settle_s)
            current = self.owner()
            if current is not None and current.token != self.token:
                self._refuse(current)
        self.took_over = owner
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)
        self._thread.start()
        atexit.register(self.release)  # before pyarrow shuts its S3 client down

    def is_gone(self, owner: Owner) -> bool:
        """Has `owner` ended without giving the lock back? May watch an owner elsewhere for 1.5 `heartbeat_s`."""
        if owner.machine == _machine():
            return process_start(owner.pid) != owner.process_start
        if time.time() - owner.heartbeat < self.stale_s:
            return False
        deadline = time.monotonic() + 1.5 * self.heartbeat_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.heartbeat_s / 4))
            now = self.owner()
            if now is not None and now != owner:
                return False
        return True

    def _refuse(self, owner: Owner) -> None:
        age = max(0.0, time.time() - owner.heartbeat)
        raise InputError(
            f"{self.store.label}: a run may have one driver at a time, and one is at work: host {owner.host}, "
            f"pid {owner.pid}, started {owner.started_at}, last seen {age:.0f} s ago; wait for its end, stop it "
            f"there with {shlex.join(['kill', str(owner.pid)])}, or give another --out"
        )

    def _beat(self) -> None:
        pid = os.getpid()
        start = process_start(pid) or ""
        owner = Owner(self.token, socket.gethostname(), _machine(), pid, start, self._started_at, time.time())
        self.store.put(self.path, json.dumps(owner.__dict__).encode(), durable=False)

    def _keep(self) -> None:
        while not self._released.wait(self.heartbeat_s):
            try:
                owner = self.owner()
                if owner is not None and owner.token != self.token:
                    self._lost.set()
                    return
                self._beat()
            except OSError:  # the store is away for a moment: the next beat tries again
                continue

    def release(self) -> None:
        """End the heartbeat and give the lock back, unless it was lost."""
        self._released.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        atexit.unregister(self.release)
        owner = self.owner()
        if owner is not None and owner.token == self.token:
            self.store.delete(self.path)

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextlib.contextmanager
def _exclusive(store: Store) -> Iterator[None]:
    """Hold the store's file lock where there is one: local file systems that support it."""
    if not store.is_local or sys.platform == "win32":
        yield
        return
    import fcntl

    guard = Path(store.path(f"{CONTROL}/guard"))
    guard.parent.mkdir(parents=True, exist_ok=True)
    with guard.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


# --- asking a run to stop ---------------------------------------------------------------------------


def request_stop(store: Store, run_token: str, reason: str = "") -> None:
    """Ask every running stage of the driver `run_token` to save its state and return."""
    store.put(_stop_path(run_token), reason.encode(), durable=False)


def stop_requested(store: Store, run_token: str) -> bool:
    """Was the driver `run_token` asked to stop? One look-up by name; `StopFlag` asks now and then."""
    return store.exists(_stop_path(run_token))


def clear_stop(store: Store, run_token: str) -> None:
    """Take the request back."""
    store.delete(_stop_path(run_token))


def _stop_path(run_token: str) -> str:
    return f"{CONTROL}/stop-{run_token}"


class StopFlag:
    """The stop request as a training loop asks for it, at every step: looks it up once in `every_s` seconds."""

    def __init__(self, store: Store, run_token: str, *, every_s: float = 1.0) -> None:
        self._store = store
        self._token = run_token
        self._every_s = every_s
        self._next = 0.0
        self._raised = False

    def __call__(self) -> bool:
        """Was the run asked to stop?"""
        if not self._raised and time.monotonic() >= self._next:
            self._raised = stop_requested(self._store, self._token)
            self._next = time.monotonic() + self._every_s
        return self._raised
