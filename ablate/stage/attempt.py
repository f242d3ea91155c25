"""The record of one attempt at a stage: its row of `stages`, and its log while it goes on."""

from __future__ import annotations

import functools
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from ablate import tables
from ablate.errors import InputError
from ablate.stage.checkpoints import Saver
from ablate.stage.log import StageLog
from ablate.stage.machine import choose_device, device_name, pass_size, peak_memory_bytes, reset_peak_memory
from ablate.stage.settings import Later, Outcome
from ablate.stage.task import Task
from ablate.store import StoreTrouble
from ablate.training import Progress
from ablate.words import one_line


def _at_once(write: Callable[[], None]) -> None:
    write()


class Attempt:
    """The row of `stages` and the log of one attempt; both are in the store also when the attempt is killed.

    The row is written with the outcome `running` at the start, and again whenever a newer state has been saved; the
    log is saved every few seconds while the attempt reports progress.
    """

    def __init__(self, task: Task, log: StageLog) -> None:
        stage = task.stage
        self._store, self._log = task.store, log
        self.device = choose_device(task.settings)
        self.passes = pass_size(self.device, task.settings)
        self.started_at = datetime.now(UTC)
        self._start = time.monotonic()
        self._part = tables.stage_part(stage.kind, stage.name, uuid.uuid4().hex[:8])
        self._images: float | None = None
        self._saved: int | None = None
        self.row: dict[str, object] = tables.blank("stages") | {
            "kind": stage.kind,
            "pretrain_key": task.pretrain_key,
            "trial_id": None if stage.kind == "pretrain" else stage.name,
            "from_step": 0,
            "to_step": 0,
            "gpus": task.settings.gpus,
            "node": socket.gethostname(),
            "device": device_name(self.device),
            "outcome": "running",
        }
        reset_peak_memory(self.device)

    def write(self, outcome: Outcome = "running", *, later: Later | None = None) -> None:
        """Write the attempt's row as it stands, at once or through `later`."""
        self.row |= {
            "seconds": time.monotonic() - self._start,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "images_per_second": self._images,
            "outcome": outcome,
        }
        write = functools.partial(tables.write_rows, self._store, "stages", self._part, [dict(self.row)])
        (later or _at_once)(write)

    def reached(self, progress: Progress, saver: Saver) -> None:
        """Note how far the attempt has come; its row is written when `saver` has been given a newer state."""
        self.row["to_step"] = progress.step if progress.optimizer_steps is None else progress.optimizer_steps
        self._images = progress.images_per_second or self._images
        if saver.saved_step != self._saved:
            self._saved = saver.saved_step
            self.write(later=saver.later)
        self.save_log(saver)

    def save_log(self, saver: Saver) -> None:
        """Save what the log has gained, in the background of `saver`, unless that was done a few seconds ago."""
        self._log.save(saver.later)

    def began_at(self, step: int) -> None:
        """Note the step at which the attempt goes on."""
        self.row |= {"from_step": step, "to_step": step}
        self.write()


def cause_of(error: BaseException) -> str:
    """Return why a stage ended, as one line: what the exception says, behind its class unless it is one of ours."""
    text = one_line(error)
    if isinstance(error, InputError | StoreTrouble):
        return text
    return f"{type(error).__name__}: {text}" if text else repr(error)
