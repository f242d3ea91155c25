"""What ends a run before its work is done: signals, requests, a lost lock, a store that stays away."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from ablate.running.picture import Picture
from ablate.store import Store, StoreAway, StoreFull, StoreTrouble
from ablate.store.fence import lock_lost
from ablate.store.layout import PROGRESS
from ablate.store.lock import RunLock
from ablate.store.owner import Owner
from ablate.store.stopping import STOP_COMMAND, StopWatch, clear_stop, request_stop, stop_reason

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

STOPPED_EXIT_CODE = 5
"""Of a run that `ablate stop` has ended."""


class Stop:
    """Whether a run has to stop, and why; the first reason holds."""

    def __init__(self, store: Store, token: str) -> None:
        self._store, self._token = store, token
        self._first = threading.Lock()
        self._requested, self._abandoned = threading.Event(), threading.Event()
        self._asking: threading.Thread | None = None
        self.exit_code: int | None = None
        """Of the run, if trials are left open."""
        self.trouble: StoreTrouble | None = None

    def __call__(self) -> bool:
        """Whether nothing more may start."""
        return self._requested.is_set()

    @property
    def abandoned(self) -> bool:
        """Whether running stages are ended without a word, because no word can reach them."""
        return self._abandoned.is_set()

    def because_of(self, trouble: StoreTrouble) -> None:
        """Stop for a store that does not take what the run makes."""
        with self._first:
            self.trouble = self.trouble or trouble
            if isinstance(trouble, StoreAway):  # neither can a word reach the stages, nor can they save a state
                self.exit_code = self.exit_code or trouble.exit_code
                self._requested.set()
                self._abandoned.set()
        self.request(type(trouble).__name__, trouble.exit_code)

    def request(self, reason: str, exit_code: int) -> bool:
        """Start nothing more, and ask every running stage to save its state; False if that was asked before."""
        with self._first:
            if self._requested.is_set():
                return False
            self.exit_code = exit_code
            self._requested.set()
        self._asking = threading.Thread(target=self._ask, args=(reason,), name="ask-to-stop", daemon=True)
        self._asking.start()
        return True

    def _ask(self, reason: str) -> None:
        try:
            request_stop(self._store, self._token, reason)
        except StoreFull:  # then no running stage gets far
            pass
        except StoreTrouble as trouble:
            self.trouble = self.trouble or trouble
            self._abandoned.set()

    def forget(self) -> None:
        """Take the request back once nobody is left to read it."""
        if self._asking is None or self.abandoned:
            return
        self._asking.join()
        with suppress(StoreTrouble):
            clear_stop(self._store, self._token)


@contextmanager
def signals(stop: Stop, console: Console) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the run with every state saved; a second one leaves at once.

    A thread hears them, so that they are heard while the main thread waits in a request to the store.
    """

    def handle(number: int) -> None:
        name = signal.Signals(number).name
        if not stop.request(name, 128 + number):
            os._exit(128 + number)
        console.print(f"{name}: saving the running stages' states; once more to leave at once")

    def listen(heard: int) -> None:
        while number := os.read(heard, 1)[0]:
            if number in _STOP_SIGNALS:
                handle(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals: a caller in another one stops the run its own way
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    thread = threading.Thread(target=listen, args=(heard,), name="signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, lambda number, frame: None) for number in _STOP_SIGNALS}
    woken = signal.set_wakeup_fd(told)  # gets the number of every signal that Python handles
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(told, b"\0")
        thread.join()
        os.close(heard)
        os.close(told)


@contextmanager
def supervised(stop: Stop, store: Store, lock: RunLock, say: Callable[[str], None]) -> Iterator[None]:
    """Stop the run when it is asked to, when its lock is lost, and when the store is away for too long.

    `say` is told when the store goes away and when it is back.
    """
    over = threading.Event()

    def stop_if_asked(reason: str) -> None:
        if reason == STOP_COMMAND and stop.request(reason, STOPPED_EXIT_CODE):
            say("asked to stop by 'ablate stop': saving the running stages' states")

    def watch() -> None:
        away = None
        while not over.wait(0.5):
            if lock.lost:
                stop.because_of(lock_lost(store, _owner(lock)))
                return
            since = store.patience.away_since
            if since is not None and away is None:
                away = time.monotonic()
                say(away_words(store) or "")
            elif since is None and away is not None and not stop():
                say(f"the store answers again, after {time.monotonic() - away:.0f} s")
                away = None
            if store.patience.is_over:
                stop.because_of(StoreAway(f"{store.label}: {store.patience.verdict}"))

    look = functools.partial(stop_reason, store, lock.token)
    thread = threading.Thread(target=watch, name="supervision", daemon=True)
    thread.start()
    try:
        with StopWatch(look, every_s=1.0 if store.is_local else 3.0, told=stop_if_asked):
            yield
    finally:
        over.set()
        thread.join(timeout=10)


def _owner(lock: RunLock) -> Owner | None:
    try:
        return lock.owner()
    except StoreTrouble:
        return None


def away_words(store: Store) -> str | None:
    """Return since when a store has not answered, and what happens meanwhile; None while it answers."""
    since = store.patience.away_since
    if since is None:
        return None
    return (
        f"the store has not answered since {since:%H:%M:%S} UTC: training goes on in memory, and every write is tried "
        f"again for {store.patience.seconds / 60:g} minutes"
    )


@contextmanager
def shown_in_store(store: Store, picture: Callable[[], Picture]) -> Iterator[None]:
    """Write what the live display shows into the store now and then, for whoever watches from elsewhere."""
    over = threading.Event()

    def write() -> None:
        while True:
            store.try_put(PROGRESS, picture().to_bytes())
            if over.wait(3.0 if store.is_local else 10.0):
                return

    thread = threading.Thread(target=write, name="picture", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


def read_picture(store: Store) -> Picture | None:
    """Return what a run's live display shows; None if it shows nothing."""
    try:
        return Picture.from_bytes(store.read(PROGRESS))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
