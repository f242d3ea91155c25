"""Asking a run to stop: requests in the run's store, and the flags that its parts look at.

A request is a hidden file named by the driver's token, so that it never stops a later driver.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from ablate.store.errors import StoreTrouble
from ablate.store.files import Store
from ablate.store.layout import stop_request

STOP_COMMAND = "ablate stop"
"""Reason of a request that a person has made."""


def request_stop(store: Store, run_token: str, reason: str = "") -> None:
    """Ask the driver `run_token`, and every stage of it, to save its state and end.

    Raises:
        StoreTrouble: the store does not take the request.
    """
    store.put(stop_request(run_token), reason.encode(), durable=False)


def stop_reason(store: Store, run_token: str) -> str | None:
    """Return why the driver `run_token` was asked to stop; None if it was not. One look-up, tried once.

    Raises:
        OSError: the store does not tell.
    """
    try:
        with store.filesystem.open_input_file(store.path(stop_request(run_token))) as file:
            return str(file.read().decode())
    except (FileNotFoundError, NotADirectoryError):
        return None


def clear_stop(store: Store, run_token: str) -> None:
    """Take the request back."""
    store.delete(stop_request(run_token))


class StopWatch:
    """Looks for a reason to stop every `every_s` seconds in a thread of its own, and remembers the first.

    Training never waits for it: a store that does not answer only delays the answer.

    Args:
        look: each returns a reason, or None; an `OSError` or `StoreTrouble` counts as None.
        every_s: seconds between two rounds.
        told: is called once, in the thread, with the reason.
    """

    def __init__(
        self,
        *look: Callable[[], str | None],
        every_s: float = 1.0,
        told: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._look, self._every_s, self._told = look, every_s, told
        self.reason: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop-watch", daemon=True)

    def __call__(self) -> bool:
        """Whether there is a reason to stop."""
        return self.reason is not None

    def _watch(self) -> None:
        while True:
            for look in self._look:
                try:
                    self.reason = look()
                except (OSError, StoreTrouble):
                    continue
                if self.reason is not None:
                    self._told(self.reason)
                    return
            if self._over.wait(self._every_s):
                return

    def __enter__(self) -> StopWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()  # a look that hangs must not hold up the end
