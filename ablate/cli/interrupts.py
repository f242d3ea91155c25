"""What Ctrl-C does to a command: it ends with exit code 130.

A command that holds nothing is ended at once. `KeyboardInterrupt` would not do while modules are imported: it is
raised in the middle of a library, which may swallow it or turn it into another error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

INTERRUPTED_EXIT_CODE = 130


def _leave(number: int, frame: FrameType | None) -> None:
    # the reader has gone, or the signal came in the middle of a write
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        sys.stdout.flush()
    os._exit(INTERRUPTED_EXIT_CODE)


def leave_at_once() -> None:
    """Let SIGINT end the process at once, until `raise_again`.

    Where SIGINT is ignored or handled otherwise, as in the background of a script, that stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # only the main thread gets signals
            signal.signal(signal.SIGINT, _leave)


def raise_again() -> None:
    """Let SIGINT raise `KeyboardInterrupt`: from here on the command holds something that it gives back then."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
