"""One driver at a time: the lock of a run.

The lock is a hidden file of the run's store that names its owner and is renewed while the owner lives. Whoever takes,
renews or releases it says which version of the file it has seen, and the write happens only if that is still the
version: through a file lock on a file system, through conditional requests on an object store.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from types import TracebackType

from ablate.errors import InputError
from ablate.store.errors import LockLost, StoreTrouble
from ablate.store.fence import lock_lost
from ablate.store.files import Store
from ablate.store.lock_file import (
    LockFile,
    Moved,
    Version,
    looked_for,
    open_lock_file,
    read_once,
)
from ablate.store.owner import Owner, is_running, process_start, this_machine

HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A lock whose owner is elsewhere may be taken over when it was not renewed for so long."""

AWAY_BEAT_S = 2.0
"""Between two renewals while the store is away: how soon it is known to be back."""


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
        self._started_at = self._process_start = ""

    @property
    def lost(self) -> bool:
        """Whether another driver has taken the lock, because this one seemed to be gone."""
        return self._lost.is_set()

    def owner(self) -> Owner | None:
        """Return who holds the lock, alive or not; None if nobody does."""
        data = self.store.patience(lambda: read_once(self.store))
        owner = None if data is None else Owner.from_bytes(data)
        return None if owner is None or owner.released else owner

    def require_free(self) -> None:
        """Raise `InputError` if another driver holds the lock; take nothing."""
        owner = self.owner()
        if owner is not None and not self.is_gone(owner):
            self._refuse(owner)

    def acquire(self) -> None:
        """Take the lock and keep it alive; raise `InputError` if another driver holds it."""
        file, self.weakness = open_lock_file(self.store)
        self._file = file
        found = self.store.patience(file.read)
        owner = None if found is None else Owner.from_bytes(found[0])
        if owner is not None and not owner.released and not self.is_gone(owner):
            self._refuse(owner)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._process_start = process_start(os.getpid()) or ""
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
        """Whether `owner` has ended without giving the lock back; may watch one elsewhere for 1.5 `heartbeat_s`."""
        if owner.machine == this_machine():
            return not is_running(owner.pid, owner.process_start)
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
        return Owner(
            token=self.token,
            host=socket.gethostname(),
            machine=this_machine(),
            pid=os.getpid(),
            process_start=self._process_start,
            started_at=self._started_at,
            heartbeat=time.time(),
            released=released,
        )

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
            found = looked_for(self._file.read)
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
