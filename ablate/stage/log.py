"""The log of a stage, beside its artifacts."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from types import TracebackType

from ablate.store import Store

logger = logging.getLogger("ablate")


LOG_LIMIT_BYTES = 1_000_000
"""A stage's log keeps its last million bytes: logs of runs have filled disks."""


class StageLog:
    """Sends a stage's log records, warnings and prints to `log.txt` beside its artifacts."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StageLog:
        self._file = self._stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        handler = logging.StreamHandler(self._file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        level, propagate = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False

        def restore() -> None:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate

        self._stack.callback(restore)
        self._stack.enter_context(warnings.catch_warnings())
        self._show = warnings.showwarning
        return self

    def write(self) -> None:
        """Add what was logged to the file in the store."""
        self._file.flush()
        self._file.seek(0)
        new = self._file.read().encode()
        before = self._store.read(self._path) if self._store.exists(self._path) else b""
        self._store.write(self._path, (before + new)[-LOG_LIMIT_BYTES:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
