"""The log of a stage: what it logs, prints and warns, in `log.txt` beside its artifacts and where it was shown before.

Everything is gathered in one temporary file. Text for `sys.stdout` and `sys.stderr` is written to it and to the screen
by `_Tee`, so that the streams stay what they were, a terminal for example. Text that does not pass them (of native
libraries, of child processes, of whoever keeps an older stream) goes through the file descriptors 1 and 2: each is a
pipe to the program `tee` while the stage goes on. A process of its own is needed there: a thread could not read
what native code writes while it holds Python's lock, and the last words of a process that aborts would be lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from ablate.store import Store

logger = logging.getLogger("ablate")


LOG_LIMIT_BYTES = 1_000_000
"""A stage's log keeps its last million bytes: logs of runs have filled disks."""

SPOOL_LIMIT_BYTES = 16 * LOG_LIMIT_BYTES
"""The temporary file is emptied when it is read and larger than this."""

CLOSING_SECONDS = 5.0
"""How long the end of a log waits for `tee`, which goes on while a process that the stage started keeps its pipe."""


class StageLog:
    """Records what a stage logs, prints and warns, and stores it behind what earlier attempts have stored.

    Use it as a context manager, one at a time in a process. `save` stores what is there so far, so that the log of a
    stage that is killed reaches up to one of its last reports; `write` ends the recording and stores the rest.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._stack = contextlib.ExitStack()
        self._recording = contextlib.ExitStack()
        self._every_s = 3.0 if store.is_local else 10.0
        self._writing = threading.Lock()
        self._before: bytes | None = None  # what earlier attempts stored, once it is read
        self._text = b""  # of this attempt so far, its last LOG_LIMIT_BYTES
        self._read_bytes = 0  # how much of the temporary file is in `_text`
        self._is_waiting = False  # whether a `save` is still to be done in the background
        self._saved_at = -float("inf")  # monotonic time

    def __enter__(self) -> StageLog:
        with contextlib.ExitStack() as stack:
            self._spool = stack.enter_context(_Spool())
            recording = self._recording = stack.enter_context(contextlib.ExitStack())
            recording.enter_context(_logged(self._spool))
            recording.enter_context(warnings.catch_warnings())  # so each stage has its warnings, told before or not
            for number, name in ((1, "stdout"), (2, "stderr")):
                recording.enter_context(_copied(name, number, self._spool))
            self._stack = stack.pop_all()
        return self

    def save(self, later: Callable[[Callable[[], None]], None]) -> None:
        """Store what is new through `later`, at most every few seconds; to be called at every report of progress.

        Args:
            later: takes a function that writes to the store, and calls it in the background.
        """
        if self._is_waiting or time.monotonic() - self._saved_at < self._every_s:
            return
        if self._spool.size == self._read_bytes:
            return
        self._is_waiting, self._saved_at = True, time.monotonic()
        later(self._save)

    def _save(self) -> None:
        self._is_waiting = False
        self._store_all()

    def write(self) -> None:
        """End the recording and store the rest.

        Raises:
            StoreTrouble: the store is full, refuses or stays away.
        """
        self._recording.close()
        self._store_all()

    def _store_all(self) -> None:
        """Replace the file in the store by what earlier attempts wrote and this attempt's text."""
        with self._writing:
            if self._before is None:
                try:
                    self._before = self._store.read(self._path)
                except FileNotFoundError:
                    self._before = b""
            new = self._spool.read(self._read_bytes)
            self._read_bytes += len(new)
            self._text = (self._text + new)[-LOG_LIMIT_BYTES:]
            if self._read_bytes > SPOOL_LIMIT_BYTES:
                self._spool.empty()
                self._read_bytes = 0
            self._store.write(self._path, (self._before + self._text)[-LOG_LIMIT_BYTES:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _Spool:
    """The temporary file that gathers a log; every writer appends, so that several may write at once."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by __exit__
        self.fd = self._file.fileno()
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)  # mode "a" does not

    def write(self, text: str) -> None:
        self._file.write(text.encode(errors="replace"))

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, start: int) -> bytes:
        return os.pread(self.fd, max(0, self.size - start), start)

    def empty(self) -> None:
        os.ftruncate(self.fd, 0)

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


@contextlib.contextmanager
def _logged(spool: _Spool) -> Iterator[None]:
    """Write the records of the logger `ablate` to `spool`."""
    handler = logging.StreamHandler(spool)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Tee(io.TextIOBase):
    """A text stream that also writes to a log; all else is the stream's that it stands for.

    Who keeps it beyond the log writes to that stream alone.
    """

    def __init__(self, stream: TextIO, shown: TextIO, spool: _Spool) -> None:
        self._stream, self._shown = stream, shown
        self._spool: _Spool | None = spool

    def write(self, text: str) -> int:
        if self._spool is not None:
            self._spool.write(text)
        return self._shown.write(text)

    def flush(self) -> None:
        self._shown.flush()
        self._stream.flush()

    def isatty(self) -> bool:
        return self._shown.isatty()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def end(self) -> None:
        """Write to the stream alone from now on."""
        self.flush()
        self._spool, self._shown = None, self._stream


@contextlib.contextmanager
def _copied(name: str, number: int, spool: _Spool) -> Iterator[None]:
    """Copy to `spool` what is written to `sys.stdout` or `sys.stderr` (`name`) and its file descriptor (`number`)."""
    stream: TextIO | None = getattr(sys, name)
    if stream is not None:
        stream.flush()
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(_copied_descriptor(number, spool))
        if stream is None:
            yield
            return
        shown = stream
        if screen is not None and _number_of(stream) == number:  # its text must not come through the pipe once more
            shown = stack.enter_context(
                open(screen, "w", encoding=stream.encoding, errors=stream.errors, buffering=1, closefd=False)
            )
        tee = _Tee(stream, shown, spool)
        setattr(sys, name, tee)
        try:
            yield
        finally:
            if getattr(sys, name) is tee:
                setattr(sys, name, stream)
            tee.end()


def _number_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # not a file: a notebook's cell, text in memory
        return None


@contextlib.contextmanager
def _copied_descriptor(number: int, spool: _Spool) -> Iterator[int | None]:
    """Copy to `spool` what is written to a file descriptor; yield one that goes to the screen alone, None for none."""
    try:
        screen = os.dup(number)
    except OSError:  # closed: nothing is shown there
        yield None
        return
    copier = subprocess.Popen(
        ["tee", "-a", f"/dev/fd/{spool.fd}"],
        stdin=subprocess.PIPE,
        stdout=screen,
        stderr=subprocess.DEVNULL,
        pass_fds=[spool.fd],
        start_new_session=True,  # Ctrl-C in the terminal is not for it
    )
    assert copier.stdin is not None
    os.dup2(copier.stdin.fileno(), number)
    copier.stdin.close()
    try:
        yield screen
    finally:
        ctypes.CDLL(None).fflush(None)  # what the C library still holds
        os.dup2(screen, number)  # closes the pipe, and so ends the copier
        with contextlib.suppress(subprocess.TimeoutExpired):
            copier.wait(CLOSING_SECONDS)
        os.close(screen)
