"""The fence that keeps a process from writing once its driver has lost the run's lock."""

from __future__ import annotations

import sys
import time

from ablate.store.errors import LockLost
from ablate.store.files import Store
from ablate.store.lock_file import looked_for, read_once
from ablate.store.owner import Owner

FENCE_S = 5.0
"""A change to the store is preceded by a look at the lock if the last one was longer ago; far below `STALE_S`."""


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
        data = looked_for(lambda: read_once(self._store))
        owner = None if data is None else Owner.from_bytes(data)
        if owner is None or owner.token != self._token or owner.released:
            raise lock_lost(self._store, owner)
        self._confirmed = now
