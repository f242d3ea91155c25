"""Publishing artifacts in the background, while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from ablate.store.files import Store
from ablate.store.manifest import Fact, step_of

HELD_UP_S = 10.0
"""Nobody waits for a publication that takes longer."""


class BackgroundPublisher:
    """Publishes artifacts in a thread of its own, in the order in which they are handed in.

    At most one is behind, so that memory does not fill, except while the store is away or slow: then nobody waits,
    and what is handed in stays in memory until it is written.

    Use it as a context manager. What went wrong in the background is raised by the next `submit`, `flush`
    or `close`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._pending: list[tuple[float, Future[None]]] = []  # with the time at which it was handed in

    def submit(
        self,
        folder: str,
        files: Mapping[str, bytes] | Callable[[], Mapping[str, bytes]],
        *,
        prune: bool = False,
        then: Callable[[], None] | None = None,
        **facts: Fact,
    ) -> None:
        """Publish `files` in `folder`; wait first if the previous publication is still going on.

        A function is called for the files in the background; what it reads must not change any more. With `prune`,
        `folder` is named by `step_name`, and once it is published the earlier steps beside it are deleted. `then` is
        called, in the background, when all that is done.
        """
        made = files if callable(files) else {name: bytes(data) for name, data in files.items()}

        def publish() -> None:
            self._publish(folder, dict(made() if callable(made) else made), prune, facts)
            if then is not None:
                then()

        self.later(publish)

    def later(self, work: Callable[[], None]) -> None:
        """Do `work`, which writes to the store, after what was handed in before; wait as `submit` does."""
        while self._pending:
            if self._pending[0][1].done():
                self._pending.pop(0)[1].result()
            elif self.is_held_up:
                break
            else:
                wait([self._pending[0][1]], timeout=0.2)
        self._pending.append((time.monotonic(), self._pool.submit(work)))

    def _publish(self, folder: str, files: dict[str, bytes], prune: bool, facts: dict[str, Fact]) -> None:
        self.store.publish(folder, files, **facts)
        if prune:
            parent, _, name = folder.rpartition("/")
            step = step_of(name)
            if step is None:
                raise ValueError(f"only folders named by step_name can be pruned; got {folder!r}")
            try:
                self.store.prune(parent, keep=step)
            except FileNotFoundError:
                if (self.store.newest(parent) or 0) < step:
                    raise
                # another attempt at the same work is further, and has deleted this step already

    @property
    def idle(self) -> bool:
        """Whether nothing is being written; writing may have failed, which `flush` raises."""
        return all(work.done() for _, work in self._pending)

    @property
    def is_held_up(self) -> bool:
        """Whether something waits to be written while the store is away, or takes its time over a request."""
        waiting = [since for since, work in self._pending if not work.done()]
        late = bool(waiting) and time.monotonic() - waiting[0] > HELD_UP_S
        return bool(waiting) and (late or self.store.patience.away_since is not None)

    def flush(self) -> None:
        """Wait until all is published; raise what went wrong first."""
        pending, self._pending = [work for _, work in self._pending], []
        wait(pending)
        for work in pending:
            work.result()

    def close(self) -> None:
        """Wait until all is published and end the thread; raise what went wrong."""
        try:
            self.flush()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> BackgroundPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"Publishing in the background failed too: {failure}")
