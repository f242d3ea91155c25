"""Training states and snapshots: saved in the background while training goes on, and found again later."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ablate.stage.settings import Later
from ablate.store import BackgroundPublisher, CorruptArtifact, Store, step_of
from ablate.store.layout import MODEL, state_folder, step_folder
from ablate.training import Interrupted, State, Stopwatch, copied, pack, unpack

logger = logging.getLogger("ablate")


class SnapshotMissing(Exception):  # noqa: N818
    """The snapshot that a fine-tuning starts from is not in the store."""


class Saver:
    """Saves a stage's training states and snapshots in the background, and tells when a state is due.

    A state is saved when `minutes` have passed since the last one, but not while the store is away and holds up an
    earlier one. Snapshots and states are written in the order they are handed in, so a state never exists without
    the snapshots before it.
    """

    def __init__(
        self, publisher: BackgroundPublisher, folder: str, *, minutes: float, seconds_before: float = 0.0
    ) -> None:
        self._publisher, self._folder, self._seconds = publisher, folder, minutes * 60
        self._watch = Stopwatch(seconds_before)
        self._last = time.monotonic()
        self._written: deque[int] = deque()  # steps of snapshots; filled in the background
        self.saved_step: int | None = None
        """Step of the newest state that was handed in."""
        self.durable_step: int | None = None
        """Step of the newest state that the store holds."""

    def due(self) -> bool:
        """Whether it is time to save a state."""
        return time.monotonic() - self._last >= self._seconds and not self._publisher.is_held_up

    def save(self, step: int, state: State) -> None:
        """Copy a state; pack and write it in the background. The older ones go once it is there."""

        def written() -> None:
            self.durable_step = step

        folder = step_folder(state_folder(self._folder), step)
        now = copied(state)
        self._publisher.submit(folder, lambda: pack(now), prune=True, then=written, step=step)
        self._last = time.monotonic()
        self.saved_step = step

    def publish(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a snapshot, whose tensors nobody changes any more, with its seconds of training in the background."""
        now, seconds = dict(tensors), self._watch.seconds
        self._publisher.submit(
            step_folder(self._folder, step),
            lambda: {MODEL: save_tensors(now)},
            then=lambda: self._written.append(step),
            step=step,
            seconds=seconds,
        )

    @property
    def later(self) -> Later:
        """Writes in the background, after what was handed in before."""
        return self._publisher.later

    def arrived(self) -> list[int]:
        """Return the steps of snapshots that have become complete since the last call."""
        if self._publisher.idle:
            self._publisher.flush()  # raises what went wrong
        return [self._written.popleft() for _ in range(len(self._written))]

    def wait(self) -> list[int]:
        """Wait until everything is written; return the steps of snapshots not told by `arrived`."""
        self._publisher.flush()
        return self.arrived()


@contextlib.contextmanager
def saving(store: Store, folder: str, *, minutes: float, seconds_before: float = 0.0) -> Iterator[Saver]:
    """Yield a saver for the time of a training loop; all is written at the end, also when the loop is interrupted."""
    with BackgroundPublisher(store) as publisher:
        saver = Saver(publisher, folder, minutes=minutes, seconds_before=seconds_before)
        try:
            yield saver
        except Interrupted:
            saver.wait()  # raises if the state could not be written
            raise


def load_state(store: Store, folder: str, *, at_most: int | None = None) -> tuple[int, State | None]:
    """Return the step and content of the newest whole training state under `folder`, up to step `at_most`.

    (0, None) if there is none. A damaged state is logged, deleted and passed over.
    """
    steps = sorted((s for s in map(step_of, store.list(state_folder(folder))) if s is not None), reverse=True)
    for step in steps:
        if at_most is not None and step > at_most:
            continue
        path = step_folder(state_folder(folder), step)
        try:
            return step, unpack(store.load(path))
        except FileNotFoundError:
            continue
        except CorruptArtifact as error:
            logger.warning("a training state is damaged and is made anew: %s", error)
            store.delete(path)
    return 0, None


def load_snapshot(store: Store, folder: str, step: int) -> dict[str, Tensor]:
    """Return a snapshot's tensors by name.

    Raises:
        SnapshotMissing: it does not exist.
        CorruptArtifact: it is damaged; it has been deleted, so that it is made anew.
    """
    path = step_folder(folder, step)
    try:
        tensors: dict[str, Tensor] = load_tensors(store.load(path)[MODEL])
        return tensors
    except FileNotFoundError as error:
        raise SnapshotMissing(f"there is no snapshot {store.label}/{path}") from error
    except CorruptArtifact as error:
        logger.warning("a snapshot is damaged and is made anew: %s", error)
        store.delete(path)
        raise
