"""What is recorded of one attempt at a stage, and which means does it have?"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import resource
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import torch

from ablate import results
from ablate.policy import Stage
from ablate.space import InputError
from ablate.store import Store, StoreTrouble

logger = logging.getLogger("ablate")


LOG_LIMIT_BYTES = 1_000_000
"""A stage's log keeps its last million bytes: logs of runs have filled disks."""


Outcome: TypeAlias = Literal["running", "finished", "failed", "interrupted", "lost"]
"""How an attempt at a stage ended; `lost`: the snapshot it starts from is missing or damaged."""


@dataclass(frozen=True)
class Settings:
    """How stages use the machine and the store; nothing here changes a number that is reported on a CPU."""

    threads: int = 1  # CPU threads; results agree to the bit only for equal counts
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: float = 0.0  # recorded in `stages`
    checkpoint_minutes: float = 5.0
    keep_weights: bool = False
    shared_keys: frozenset[str] = frozenset()  # pre-trainings that several trials of the run use
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of the data sets, as the run recorded them


@dataclass(frozen=True)
class StageResult:
    """How an attempt ended."""

    outcome: Outcome
    error: str | None = None  # one line
    trouble: str | None = None  # of an interrupted attempt whose run cannot go on now: a key of `TROUBLES`


def choose_device(settings: Settings) -> torch.device:
    """Return the device a stage computes on."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


REVISION = "REVISION"
"""The file beside this one that tells the git revision in a package that was packed for other machines."""


@functools.cache
def git_revision() -> str | None:
    """Return the git revision of the checkout that this package runs from, or was packed from; None outside one."""
    folder = Path(__file__).resolve().parent
    packed = folder / REVISION
    if packed.is_file():
        return packed.read_text(encoding="utf-8").strip() or None
    command = ["git", "-C", str(folder), "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


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
        self._part = results.stage_part(stage.kind, stage.name, uuid.uuid4().hex[:8])
        self._images: float | None = None
        self._saved: int | None = None
        self.row: dict[str, object] = results.blank("stages") | {
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
        _reset_peak_memory(self.device)

    def write(self, outcome: Outcome = "running", *, later: Later | None = None) -> None:
        """Write the attempt's row as it stands, at once or through `later`."""
        self.row |= {
            "seconds": time.monotonic() - self._start,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "images_per_second": self._images,
            "outcome": outcome,
        }
        write = functools.partial(results.write_rows, self.store, "stages", self._part, [dict(self.row)])
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


def device_name(device: torch.device) -> str:
    """Return what computes: `cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers do not allow it: the peak is then the process's
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held since the attempt began: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def release_memory() -> None:
    """Give back what a stage leaves behind: reused workers keep it otherwise."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


@contextlib.contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Compute with `count` CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_line(error: BaseException) -> str:
    """Return an exception as one line of text."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError | StoreTrouble):
        return text
    return f"{type(error).__name__}: {text}" if text else repr(error)
