"""What is recorded of one attempt at a stage: its row of `stages`."""

from __future__ import annotations

import functools
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

from ablate import tables
from ablate.errors import InputError
from ablate.schedule.policy import Stage
from ablate.stage.machine import choose_device, device_name, peak_memory_bytes, reset_peak_memory
from ablate.stage.settings import Outcome, Settings
from ablate.store import Store, StoreTrouble
from ablate.words import one_line

Later: TypeAlias = Callable[[Callable[[], None]], None]
"""Takes a piece of writing that may be done in the background."""


def _at_once(write: Callable[[], None]) -> None:
    write()


class Attempt:
    """The row of `stages` and the log of one attempt; both are in the store also when the attempt is killed.

    The row is written with the outcome `running` at the start, and again whenever the attempt gets further.
    """

    def __init__(self, store: Store, stage: Stage, pretrain_key: str | None, settings: Settings) -> None:
        self.store, self.stage, self.settings = store, stage, settings
        self.device = choose_device(settings)
        self.started_at = datetime.now(UTC)
        self._start = time.monotonic()
        self._part = tables.stage_part(stage.kind, stage.name, uuid.uuid4().hex[:8])
        self._images: float | None = None
        self._saved: int | None = None
        self.row: dict[str, object] = tables.blank("stages") | {
            "kind": stage.kind,
            "pretrain_key": pretrain_key,
            "trial_id": None if stage.kind == "pretrain" else stage.name,
            "from_step": 0,
            "to_step": 0,
            "gpus": settings.gpus,
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
        write = functools.partial(tables.write_rows, self.store, "stages", self._part, [dict(self.row)])
        (later or _at_once)(write)

    def reached(self, step: int, images_per_second: float | None, saved: int | None, later: Later) -> None:
        """Note how far the attempt has come, in optimizer steps; written when another state, `saved`, is."""
        self.row["to_step"] = step
        self._images = images_per_second or self._images
        if saved != self._saved:
            self._saved = saved
            self.write(later=later)

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
