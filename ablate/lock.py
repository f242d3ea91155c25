"""One driver at a time: the lock of a run, and the fence that keeps one that lost it from writing.

The lock is a hidden file of the run's store that names its owner and is renewed while the owner lives. Whoever takes,
renews or releases it says which version of the file it has seen, and the write happens only if that is still the
version: through a file lock on a file system, through conditional requests on an object store.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar

from ablate.space import InputError
from ablate.store import LockLost, Store, StoreTrouble
from ablate.store.addresses import object_client

T = TypeVar("T")

CONTROL = ".ablate"
"""Folder of the lock, the stop requests and the progress; hidden, so that it counts among nobody's files."""

LOCK = f"{CONTROL}/lock.json"

HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A lock whose owner is elsewhere may be taken over when it was not renewed for so long."""

MISSING_PAUSES_S = (0.2, 1.0)
"""A lock that seems to be missing is looked for again: some servers replace an object in two steps."""

AWAY_BEAT_S = 2.0
"""Between two renewals while the store is away: how soon it is known to be back."""

FENCE_S = 5.0
"""A change to the store is preceded by a look at the lock if the last one was longer ago; far below `STALE_S`."""


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


def _machine() -> str:
    """Name the running system and, on Linux, the process namespace."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


# --- the lock's file --------------------------------------------------------------------------------

Version: TypeAlias = Any
"""What tells one content of the lock's file from another: an ETag or generation, or a hash of the content."""


class Moved(Exception):  # noqa: N818
    """The file is no longer in the version that was expected."""


class LockFile(Protocol):
    """The lock's file: every change names the version it replaces, None for no file.

    Errors of the store are `OSError`s; nothing is tried again here.
    """

    def read(self) -> tuple[bytes, Version] | None:
        """Return the content and its version; None if there is no file."""

    def replace(self, data: bytes, expected: Version) -> Version:
        """Write the file and return its new version; raise `Moved` if it is not in the expected one."""

    def remove(self, expected: Version) -> bool:
        """Delete the file; return False if that cannot be done under a condition; raise `Moved` as `replace` does."""


class _FolderFile:
    """A lock's file on a file system: looking and writing happen under a file lock."""

    def __init__(self, store: Store) -> None:
        self._path = Path(store.path(LOCK))
        self._guard = Path(store.path(f"{CONTROL}/guard"))

    def read(self) -> tuple[bytes, Version] | None:
        try:
            data = self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, data: bytes, expected: Version) -> Version:
        with self._exclusive():
            self._require(expected)
            temporary = self._path.with_name(f".lock.{uuid.uuid4().hex}.tmp")
            try:
                temporary.write_bytes(data)
                temporary.replace(self._path)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        return hashlib.sha256(data).hexdigest()

    def remove(self, expected: Version) -> bool:
        with self._exclusive():
            self._require(expected)
            self._path.unlink()
        return True

    def _require(self, expected: Version) -> None:
        found = self.read()
        if (found and found[1]) != expected:
            raise Moved

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the file lock where there is one: some network file systems have none."""
        self._guard.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            yield
            return
        import fcntl

        with self._guard.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            yield


class _ObjectFile:
    """A lock's file on an object store that honours conditions, through obstore."""

    def __init__(self, store: Store, *, path: str = LOCK, deletes: bool = False) -> None:
        self._client = object_client(store.address)
        self._path = path
        self.deletes = deletes  # whether deletions are conditional there

    def read(self) -> tuple[bytes, Version] | None:
        import obstore

        with _as_os_errors():
            try:
                found = obstore.get(self._client, self._path)
                return bytes(found.bytes()), _version(found.meta)
            except FileNotFoundError:
                return None

    def replace(self, data: bytes, expected: Version) -> Version:
        import obstore

        with _as_os_errors():
            mode: Any = "create" if expected is None else expected
            return _version(obstore.put(self._client, self._path, data, mode=mode, use_multipart=False))

    def remove(self, expected: Version) -> bool:
        import obstore

        if not self.deletes or "e_tag" not in expected:
            return False
        with _as_os_errors():
            url = obstore.sign(self._client, "DELETE", self._path, timedelta(minutes=1))
        request = urllib.request.Request(url, method="DELETE", headers={"If-Match": expected["e_tag"]})
        try:
            urllib.request.urlopen(request, timeout=20).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 409, 412):
                raise Moved from error
            return False
        return True


def _version(meta: Any) -> Version:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn obstore's exceptions into `Moved` and `OSError`."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise Moved from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise OSError(errno.EACCES, str(error).partition("\n")[0]) from error
    except FileNotFoundError as error:  # obstore's own, which has no number
        if "NoSuchBucket" in str(error):
            raise OSError(errno.EACCES, "there is no such bucket") from error
        raise FileNotFoundError(errno.ENOENT, str(error).partition("\n")[0]) from error
    except exceptions.BaseError as error:
        raise OSError(str(error).partition("\n")[0]) from error


class _PlainFile:
    """A lock's file on an object store that ignores conditions: looking and writing may be interleaved."""

    def __init__(self, store: Store, *, settle_s: float = 0.5) -> None:
        self._store, self._settle_s = store, settle_s

    def read(self) -> tuple[bytes, Version] | None:
        data = _read_once(self._store)
        return None if data is None else (data, hashlib.sha256(data).hexdigest())

    def replace(self, data: bytes, expected: Version) -> Version:
        found = self.read()
        if (found and found[1]) != expected:
            raise Moved
        stream = self._store.filesystem.open_output_stream(self._store.path(LOCK), compression=None)
        stream.write(data)
        stream.close()
        if expected is None:  # a second one that started in the same moment may have written too
            time.sleep(self._settle_s)
            found = self.read()
            if found is None or found[0] != data:
                raise Moved
        return hashlib.sha256(data).hexdigest()

    def remove(self, expected: Version) -> bool:
        found = self.read()
        if (found and found[1]) != expected:
            raise Moved
        self._store.filesystem.delete_file(self._store.path(LOCK))
        return True


def _read_once(store: Store) -> bytes | None:
    """Return the content of the lock's file, without trying again; None if there is none."""
    try:
        with store.filesystem.open_input_file(store.path(LOCK)) as file:
            data: bytes = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data


def _looked_for(read: Callable[[], T | None]) -> T | None:
    """Return what `read` finds, also if that is missing for a moment."""
    for pause_s in MISSING_PAUSES_S:
        found = read()
        if found is not None:
            return found
        time.sleep(pause_s)
    return read()


def condition_problem(store: Store) -> str | None:
    """Return why a store's server cannot keep two drivers apart for sure; None if it can.

    An object store is tried with a small object: a second creation and an update of an old version must be refused.
    """
    return None if store.is_local else _probe(store)[1]


def _probe(store: Store) -> tuple[bool, str | None]:
    """Return whether deletions are conditional on an object store, and what is wrong with its conditional writes."""
    import obstore

    file = _ObjectFile(store, path=f"{CONTROL}/probe-{uuid.uuid4().hex}", deletes=True)

    def refused(change: Callable[[], object]) -> bool:
        try:
            change()
        except Moved:
            return True
        return False

    try:
        first = file.replace(b"1", None)
        if not first:
            return False, "the server gives objects no version"
        if not refused(lambda: file.replace(b"2", None)):
            return False, "the server ignores the condition that an object must not exist yet"
        second = file.replace(b"3", first)
        if not refused(lambda: file.replace(b"4", first)):
            return False, "the server ignores the condition that an object must not have changed"
        deletes = refused(lambda: file.remove(first))
        return deletes and file.remove(second), None
    except Moved:
        return False, "the server refuses a conditional write that should succeed"
    except OSError as error:
        return False, f"the server does not take conditional writes: {error.strerror or error}"
    finally:
        with contextlib.suppress(Exception):
            obstore.delete(file._client, file._path)


# --- one driver at a time ---------------------------------------------------------------------------


class RunLock:
    """Keeps a second driver off a run: `with RunLock(store): ...`; raises `InputError` if another is at work.

    The lock is renewed every `heartbeat_s`. An owner on the same machine is gone when its process is; one elsewhere
    when its heartbeat is older than `stale_s` and does not move while it is watched (clocks may differ). Of two
    drivers that start in the same moment one gets the lock, also on an object store, as long as its server honours
    conditional writes. One that does not is found by a probe; there the lock is best effort, and `weakness` says so.
    """

    def __init__(self, store: Store, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.store = store
        self.heartbeat_s = heartbeat_s
        self.stale_s = stale_s
        self.token = uuid.uuid4().hex
        self.took_over: Owner | None = None
        self.weakness: str | None = None
        """Why two drivers cannot be kept apart for sure; None if they can. Known once the lock is taken."""
        self._file: LockFile | None = None
        self._version: Version = None
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
        data = self.store.patience(lambda: _read_once(self.store))
        owner = None if data is None else Owner.from_bytes(data)
        return None if owner is None or owner.released else owner

    def acquire(self) -> None:
        """Take the lock and keep it alive; raise `InputError` if another driver holds it."""
        file = self._open()
        found = self.store.patience(file.read)
        owner = None if found is None else Owner.from_bytes(found[0])
        if owner is not None and not owner.released and not self.is_gone(owner):
            self._refuse(owner)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._version = self.store.patience(
                lambda: file.replace(self._me().to_bytes(), None if found is None else found[1]), writes=True
            )
        except Moved:
            current = self._adopt(file)
            if current is not None:  # somebody was quicker
                self._refuse(current)
        self.took_over = None if owner is None or owner.released else owner
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)
        self._thread.start()
        atexit.register(self.release)  # before pyarrow shuts its S3 client down

    def _open(self) -> LockFile:
        """Return the strongest kind of file that the store can keep."""
        if self.store.is_local:
            self._file = _FolderFile(self.store)
        else:
            deletes, self.weakness = _probe(self.store)
            self._file = _PlainFile(self.store) if self.weakness else _ObjectFile(self.store, deletes=deletes)
        return self._file

    def _adopt(self, file: LockFile) -> Owner | None:
        """Return who has written the lock; None if it was this one, in a write whose answer was lost."""
        found = self.store.patience(file.read)
        owner = None if found is None else Owner.from_bytes(found[0])
        if found is None or owner is None:
            raise InputError(f"{self.store.label}: the run's lock changes hands just now; run the same command again")
        if owner.token == self.token:
            self._version = found[1]
            return None
        return owner

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
            f"with ablate stop {self.store.word}, or give another --out"
        )

    def _me(self, *, released: bool = False) -> Owner:
        pid = os.getpid()
        start = process_start(pid) or ""
        host, now = socket.gethostname(), time.time()
        return Owner(self.token, host, _machine(), pid, start, self._started_at, now, released)

    def _keep(self) -> None:
        pause_s = self.heartbeat_s
        while not self._released.wait(pause_s):
            pause_s = self.heartbeat_s
            try:
                self._renew()
            except LockLost:
                self._lost.set()
                return
            except OSError:  # the next beat tries again, and whoever waits for the store knows since when
                self.store.patience.note(answered=False, writes=True)
                pause_s = min(AWAY_BEAT_S, self.heartbeat_s)
            else:
                self.store.patience.note(answered=True, writes=True)

    def _renew(self) -> None:
        assert self._file is not None
        try:
            self._version = self._file.replace(self._me().to_bytes(), self._version)
        except Moved:
            found = _looked_for(self._file.read)
            owner = None if found is None else Owner.from_bytes(found[0])
            if found is None or owner is None or owner.token != self.token:
                raise lock_lost(self.store, owner) from None
            self._version = found[1]  # a write whose answer was lost

    def release(self) -> None:
        """End the heartbeat and give the lock back, unless it was lost or the store does not take it."""
        self._released.set()
        if self._thread is None or self._file is None:
            return
        self._thread.join()
        self._thread = None
        atexit.unregister(self.release)
        file = self._file
        for _ in range(2):
            with contextlib.suppress(StoreTrouble):
                try:
                    if not self.store.patience(lambda: file.remove(self._version)):
                        self.store.patience(lambda: file.replace(self._me(released=True).to_bytes(), self._version))
                except Moved:  # by another driver, or by a renewal whose answer was lost
                    found = self.store.patience(file.read)
                    owner = None if found is None else Owner.from_bytes(found[0])
                    if found is not None and owner is not None and owner.token == self.token and not owner.released:
                        self._version = found[1]
                        continue
            return

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


# --- the fence --------------------------------------------------------------------------------------


def lock_lost(store: Store, owner: Owner | None) -> LockLost:
    """Return the exception for a lock that `owner` holds now."""
    who = "somebody" if owner is None else f"another driver (host {owner.host}, pid {owner.pid})"
    return LockLost(f"{store.label}: {who} has taken this run over, because this one seemed to be gone; it stops here")


def _clock() -> float:
    """Seconds that go on while a process, or the whole machine, is asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Fence:
    """Stands before every change of a store that a run makes, in the driver and in its workers.

    A process that was frozen for longer than `max_age_s` looks at the lock before it writes again; if the lock is
    no longer its driver's, the change is refused. So at most the object in flight is finished.
    """

    def __init__(self, store: Store, token: str, *, max_age_s: float = FENCE_S) -> None:
        self._store, self._token, self._max_age_s = store, token, max_age_s
        self._confirmed = -max_age_s

    def __call__(self) -> None:
        """Let a change pass; raise `LockLost` if the lock is another's, `OSError` if the store does not tell."""
        if _clock() - self._confirmed >= self._max_age_s:
            self.confirm()

    def confirm(self) -> None:
        """Look at the lock now; raise as a call does."""
        now = _clock()
        data = _looked_for(lambda: _read_once(self._store))
        owner = None if data is None else Owner.from_bytes(data)
        if owner is None or owner.token != self._token or owner.released:
            raise lock_lost(self._store, owner)
        self._confirmed = now
