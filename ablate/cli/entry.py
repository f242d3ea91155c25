"""The start and the end of every command: what is imported first, and how errors are told."""

from __future__ import annotations

import os
import sys

from ablate.cli.interrupts import INTERRUPTED_EXIT_CODE, leave_at_once, raise_again


def main() -> None:
    """Run the command line.

    A refusal is one message on stderr and exit code 2, trouble with the store a message and its own exit code.
    """
    leave_at_once()
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)
    finally:
        raise_again()


def _run() -> None:
    from ablate.cli.app import app

    try:
        app(prog_name="ablate")
    except BrokenPipeError:  # the reader of our output has gone, as in `ablate grids | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from ablate.errors import InputError  # not needed to print the help
        from ablate.store import CorruptArtifact, StoreAway, StoreTrouble

        if not isinstance(error, InputError | CorruptArtifact | StoreTrouble):
            raise
        sys.stdout.flush()
        print(f"ablate: {error}", file=sys.stderr, flush=True)
        if isinstance(error, StoreAway):  # a request that hangs must not hold up the end
            os._exit(error.exit_code)
        sys.exit(2 if isinstance(error, InputError) else getattr(error, "exit_code", 1))
