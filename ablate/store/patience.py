"""Trying an operation again with growing pauses until the store answers, or the patience is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import tenacity

from ablate.store.errors import StoreAway, StoreTrouble, reason_of, trouble_of

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

T = TypeVar("T")


class Patience:
    """How long the operations of one store are tried again, counted from the first that failed to the next success.

    Operations share it: once the patience is over every further one is tried once, so that a process ends soon.
    It may be used by several threads at once.
    """

    def __init__(self, seconds: float, label: str, *, is_local: bool) -> None:
        self.seconds = seconds
        self._label, self._is_local = label, is_local
        self._since: tuple[float, float] | None = None  # monotonic and wall time of the first failure
        self._for_writes = False  # whether a write was among the failures

    @property
    def away_since(self) -> datetime | None:
        """When the store stopped answering (UTC); None while it answers."""
        since = self._since
        return None if since is None else datetime.fromtimestamp(since[1], UTC)

    @property
    def is_over(self) -> bool:
        """Whether the store has been away for longer than the patience."""
        since = self._since
        return since is not None and time.monotonic() - since[0] >= self.seconds

    @property
    def verdict(self) -> str:
        """What is to say once the patience is over."""
        since = self.away_since or datetime.now(UTC)
        return (
            f"the store has not answered since {since:%Y-%m-%d %H:%M:%S} UTC, longer than --store-patience "
            f"({self.seconds / 60:g} minutes); run the same command again to go on"
        )

    def note(self, *, answered: bool, writes: bool) -> None:
        """Take note of an operation that was tried without patience; a read does not heal a failed write."""
        if not answered:
            self._since = self._since or (time.monotonic(), time.time())
            self._for_writes |= writes
        elif writes or not self._for_writes:
            self._since, self._for_writes = None, False

    def __call__(self, operation: Callable[[], T], *, writes: bool = False) -> T:
        """Return what `operation` returns; it is tried again while it fails in a way that may pass.

        Args:
            operation: may be called several times.
            writes: whether it changes the store; on a disk that became read-only only such operations fail.

        Raises:
            StoreTrouble: the store is full, refuses, or stayed away.
            OSError: an answer, such as `FileNotFoundError`.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: self._may_heal(error, writes)),
            wait=tenacity.wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            stop=lambda state: self.is_over,
            reraise=True,
        )
        try:
            result = retrying(operation)
        except OSError as error:
            trouble = trouble_of(error, is_local=self._is_local)
            if trouble is None:
                self.note(answered=True, writes=writes)
                raise
            raise self._trouble(trouble, error) from error
        self.note(answered=True, writes=writes)
        return result

    def _may_heal(self, error: BaseException, writes: bool) -> bool:
        away = isinstance(error, OSError) and trouble_of(error, is_local=self._is_local) is StoreAway
        if away:
            self.note(answered=False, writes=writes)
        return away

    def _trouble(self, kind: type[StoreTrouble], error: OSError) -> StoreTrouble:
        if kind is StoreAway:
            text = f"{self.verdict} ({reason_of(error)})"
        else:
            text = f"the store refuses: {reason_of(error)}; check its address, and your permissions and credentials"
        return kind(f"{self._label}: {text}")
