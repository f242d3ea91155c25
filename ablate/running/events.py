"""What happens to the stages of a run, and who is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ablate.schedule.stages import Stage
from ablate.stage.settings import StageResult


class Watcher:
    """Is told what the stages of a run do, and does nothing about it; for those who override some of it.

    Everything is told in the driver's loop of stages, which waits until the watcher has heard it.
    """

    def started(self, stage: Stage) -> None:
        """A stage has been handed to Ray, and waits for a place."""

    def placed(self, stage: Stage) -> None:
        """A stage has its place: a worker is about to start it."""

    def tick(self) -> None:
        """Time has passed; told several times a second, also while nothing happens."""

    def progressed(self, stage: Stage, progress: Mapping[str, Any]) -> None:
        """A stage has reported `phase`, `step`, `total`, `metrics` and `rate`."""

    def ended(self, stage: Stage, result: StageResult) -> None:
        """An attempt at a stage has ended; `mre` is in the unit of its data set."""

    def released(self, trial_id: str, reason: str) -> None:
        """A trial fails without having started, because its pre-training did."""


class Watchers(Watcher):
    """Tells several watchers, in their order."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def started(self, stage: Stage) -> None:
        """Tell every watcher."""
        for watcher in self._watchers:
            watcher.started(stage)

    def placed(self, stage: Stage) -> None:
        """Tell every watcher."""
        for watcher in self._watchers:
            watcher.placed(stage)

    def tick(self) -> None:
        """Tell every watcher."""
        for watcher in self._watchers:
            watcher.tick()

    def progressed(self, stage: Stage, progress: Mapping[str, Any]) -> None:
        """Tell every watcher."""
        for watcher in self._watchers:
            watcher.progressed(stage, progress)

    def ended(self, stage: Stage, result: StageResult) -> None:
        """Tell every watcher."""
        for watcher in self._watchers:
            watcher.ended(stage, result)

    def released(self, trial_id: str, reason: str) -> None:
        """Tell every watcher."""
        for watcher in self._watchers:
            watcher.released(trial_id, reason)
