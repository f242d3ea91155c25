"""Recording of what no worker can record itself: trials that fail with a lost worker or with their pre-training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ablate.running.events import Watcher
from ablate.schedule.stages import Stage
from ablate.space import TrialSpec
from ablate.stage.settings import StageResult
from ablate.store import TROUBLES, Store, StoreTrouble


class Recorder(Watcher):
    """Writes the rows of failed trials, and stops the run when its store takes nothing more.

    The rows are written in a thread of the recorder's own: the loop of stages must not wait for the store. Use it as
    a context manager: its end waits until all is written, and raises what went wrong with that, trouble with the
    store excepted, which `stop` is told.

    Args:
        store: of the run.
        trials: by id; of others nothing is recorded.
        stop: stops the run because of trouble with the store; must not wait for the store.
    """

    def __init__(self, store: Store, trials: Mapping[str, TrialSpec], stop: Callable[[StoreTrouble], None]) -> None:
        self._store, self._trials, self._stop = store, trials, stop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._written: list[Future[None]] = []

    def ended(self, stage: Stage, result: StageResult) -> None:
        """Record a failed trial, unless its worker did; stop for the trouble that a stage had with the store."""
        if result.trouble is not None:
            self._stop(TROUBLES[result.trouble](result.error))
        if result.outcome == "failed" and stage.name in self._trials:
            self._record(stage.name, result.error or "failed")

    def released(self, trial_id: str, reason: str) -> None:
        """Record a trial that fails with its pre-training."""
        if trial_id in self._trials:
            self._record(trial_id, reason)

    def _record(self, trial_id: str, error: str) -> None:
        self._written.append(self._pool.submit(self._write, self._trials[trial_id], error))

    def _write(self, trial: TrialSpec, error: str) -> None:
        from ablate.stage.rows import write_failed_trial

        try:
            write_failed_trial(trial, self._store, error)
        except StoreTrouble as trouble:
            self._stop(trouble)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        for written in self._written:
            failure = written.exception()
            if failure is None:
                continue
            if error is None:
                raise failure
            error.add_note(f"Recording failed trials failed too: {failure}")
