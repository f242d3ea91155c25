"""How does one stage of work turn its inputs into rows, and how does a whole trial run in one process?

No Ray here: `run_trial` is how a trial is debugged, profiled and tested, and the stages below are what the
workers of a run call.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import resource
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ablate import __version__, results
from ablate.datasets import Dataset, load_dataset
from ablate.evaluate import Evaluation, evaluate
from ablate.finetune import FinetuneOutcome, finetune
from ablate.metrics import Summary
from ablate.models import Network, build_network, count_parameters, load_imagenet
from ablate.pictures import write_strips
from ablate.policy import Stage
from ablate.pretrain import run_pretraining
from ablate.space import InputError, Pretraining, TrialSpec
from ablate.store import BackgroundPublisher, CorruptArtifact, Store, StoreFull, step_name, step_of
from ablate.training import CurvePoint, Interrupted, Progress, Report, State, Stopwatch, pack, silent, unpack

logger = logging.getLogger("ablate")

Data: TypeAlias = Callable[[str, int], Dataset]
"""Returns a data set by name and image size; see `data_in`."""

Outcome: TypeAlias = Literal["running", "finished", "failed", "interrupted", "lost"]
"""How an attempt at a stage ended; `lost`: the snapshot it starts from is missing or damaged."""

MODEL = "model.safetensors"
LOG_LIMIT_BYTES = 1_000_000
"""A stage's log keeps its last million bytes: logs of runs have filled disks."""


class TrialFailed(Exception):  # noqa: N818
    """A trial's stage failed; the traceback is in its log."""


class SnapshotMissing(Exception):  # noqa: N818
    """The snapshot that a fine-tuning starts from is not in the store."""


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
    error: str | None = None  # one line; of an interrupted attempt: the store is full, and the run cannot go on


def data_in(data_dir: Path | str | None) -> Data:
    """Return the data sets of a data folder; each is loaded once and kept."""
    return functools.lru_cache(maxsize=4)(lambda name, image_size: load_dataset(name, data_dir, image_size))


def pretrained_folder(key: str, trial_id: str | None = None) -> str:
    """Return where a pre-training's artifacts lie: shared by all trials, or one trial's own."""
    return f"pretrained/{key}" if trial_id is None else f"trials/{trial_id}/pretrained"


def choose_device(settings: Settings) -> torch.device:
    """Return the device a stage computes on."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


@functools.cache
def git_revision() -> str | None:
    """Return the git revision of the checkout that this package runs from; None outside one."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _dataset(data: Data, name: str, image_size: int, settings: Settings) -> Dataset:
    """Load a data set and refuse one that is not what the run was started with."""
    dataset = data(name, image_size)
    expected = settings.fingerprints.get(name)
    if expected is not None and dataset.fingerprint != expected:
        raise InputError(
            f"data set {name} on {socket.gethostname()} is not the one the run was started with: fingerprint "
            f"{dataset.fingerprint}, expected {expected}; give every machine the same data"
        )
    return dataset


# --- saving -----------------------------------------------------------------------------------------


class Saver:
    """Saves a stage's training states and snapshots in the background, and tells when it is time to.

    A state is saved when `minutes` have passed since the last one. Snapshots and states are written in the
    order they are handed in, so a state never exists without the snapshots before it.
    """

    def __init__(
        self, publisher: BackgroundPublisher, folder: str, *, minutes: float, seconds_before: float = 0.0
    ) -> None:
        self._publisher, self._folder, self._seconds = publisher, folder, minutes * 60
        self._watch = Stopwatch(seconds_before)
        self._last = time.monotonic()
        self._in_writing: list[int] = []  # steps of snapshots
        self._written: list[int] = []
        self.saved_step: int | None = None

    def due(self) -> bool:
        """Whether it is time to save a state."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, step: int, state: State) -> None:
        """Copy a state and write it in the background; the older ones go once it is there."""
        self._publisher.submit(f"{self._folder}/state/{step_name(step)}", pack(state), prune=True, step=step)
        self._note_written()
        self._last = time.monotonic()
        self.saved_step = step

    def publish(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a snapshot, with the seconds of pre-training in it, in the background."""
        files = {MODEL: save_tensors(dict(tensors))}
        seconds = self._watch.seconds
        self._publisher.submit(f"{self._folder}/{step_name(step)}", files, step=step, seconds=seconds)
        self._note_written()
        self._in_writing.append(step)

    def _note_written(self) -> None:
        """Note that all but what was just handed in is complete: at most one is being written."""
        self._written += self._in_writing
        self._in_writing = []

    def arrived(self) -> list[int]:
        """Return the steps of snapshots that have become complete since the last call."""
        if self._in_writing and self._publisher.idle:
            self._publisher.flush()  # raises what went wrong
            self._note_written()
        steps, self._written = self._written, []
        return steps

    def wait(self) -> list[int]:
        """Wait until everything is written; return the steps of snapshots not told by `arrived`."""
        self._publisher.flush()
        self._note_written()
        return self.arrived()


@contextlib.contextmanager
def _saving(store: Store, folder: str, settings: Settings, seconds_before: float = 0.0) -> Iterator[Saver]:
    """Yield a saver for the time of a training loop; all is written at the end, also when the loop is interrupted."""
    with BackgroundPublisher(store) as publisher:
        saver = Saver(publisher, folder, minutes=settings.checkpoint_minutes, seconds_before=seconds_before)
        try:
            yield saver
        except Interrupted:
            saver.wait()  # raises if the state could not be written
            raise


def load_state(store: Store, folder: str, *, at_most: int | None = None) -> tuple[int, State | None]:
    """Return the step and content of the newest whole training state under `folder`, up to step `at_most`.

    (0, None) if there is none.

    A damaged state is reported, deleted and passed over.
    """
    steps = sorted((s for s in map(step_of, store.list(f"{folder}/state")) if s is not None), reverse=True)
    for step in steps:
        if at_most is not None and step > at_most:
            continue
        path = f"{folder}/state/{step_name(step)}"
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
    path = f"{folder}/{step_name(step)}"
    try:
        tensors: dict[str, Tensor] = load_tensors(store.load(path)[MODEL])
        return tensors
    except FileNotFoundError as error:
        raise SnapshotMissing(f"there is no snapshot {store.label}/{path}") from error
    except CorruptArtifact as error:
        logger.warning("a snapshot is damaged and is made anew: %s", error)
        store.delete(path)
        raise


# --- one attempt at a stage -------------------------------------------------------------------------


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
        self.row: dict[str, object] = results.blank("stages") | {
            "kind": stage.kind,
            "pretrain_key": pretrain_key,
            "trial_id": None if stage.kind == "pretrain" else stage.name,
            "from_step": 0,
            "to_step": 0,
            "gpus": settings.gpus,
            "node": socket.gethostname(),
            "outcome": "running",
        }
        _reset_peak_memory(self.device)

    def write(self, outcome: Outcome = "running") -> None:
        """Write the attempt's row as it stands."""
        self.row |= {
            "seconds": time.monotonic() - self._start,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "images_per_second": self._images,
            "outcome": outcome,
        }
        results.write_rows(self.store, "stages", self._part, [self.row])

    def reached(self, progress: Progress) -> None:
        """Note how far the attempt has come."""
        if progress.phase != "evaluate":
            self.row["to_step"] = progress.step
            self._images = progress.images_per_second or self._images

    def began_at(self, step: int) -> None:
        """Note the step at which the attempt goes on."""
        self.row |= {"from_step": step, "to_step": step}
        self.write()


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


class _StageLog:
    """Sends a stage's log records, warnings and prints to `log.txt` beside its artifacts."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _StageLog:
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
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_line(error: BaseException) -> str:
    """Return an exception as one line of text."""
    text = " ".join(str(error.strerror if isinstance(error, StoreFull) else error).split())
    return (
        text
        if isinstance(error, InputError | StoreFull)
        else f"{type(error).__name__}: {text}"
        if text
        else repr(error)
    )


# --- the stages -------------------------------------------------------------------------------------


def pretrain_stage(
    pretraining: Pretraining,
    snapshots: Sequence[int],
    store: Store,
    data: Data,
    report: Report,
    *,
    folder: str,
    attempt: Attempt,
) -> None:
    """Run a pre-training until every one of `snapshots` (ascending steps) is published in `folder`.

    Goes on from the newest state that does not lie beyond the first missing snapshot.
    """
    missing = []
    for step in snapshots:
        if store.manifest(f"{folder}/{step_name(step)}") is None:
            missing.append(step)
        else:  # an attempt that was lost had no time to tell
            report(Progress("pretrain", step, snapshots[-1], published=step))
    if not missing:
        return
    settings, last = attempt.settings, missing[-1]
    dataset = _dataset(data, pretraining.fields.dataset, pretraining.image_size, settings)
    images_NHW = np.concatenate([dataset.train.images_NHW, dataset.val.images_NHW])
    start, state = load_state(store, folder, at_most=missing[0])
    attempt.began_at(start)
    logger.info("pre-training %s goes from step %d to %d", folder, start, last)
    final: dict[str, Tensor] = {}
    with _saving(store, folder, settings, float(state["seconds"]) if state else 0.0) as saver:
        saved: int | None = None

        def publish(step: int, tensors: Mapping[str, Tensor]) -> None:
            if step == last:
                final.update(tensors)
            else:
                saver.publish(step, tensors)

        def tell(progress: Progress) -> bool:
            nonlocal saved
            attempt.reached(progress)
            if saver.saved_step != saved:
                saved = saver.saved_step
                attempt.write()
            stop = False
            for step in saver.arrived():
                stop |= report(Progress("pretrain", progress.step, progress.total, published=step))
            return report(replace(progress, published=None)) or stop

        curve = run_pretraining(
            pretraining,
            images_NHW,
            steps=last,
            snapshots=missing,
            device=attempt.device,
            state=state,
            checkpoint=saver,
            publish=publish,
            report=tell,
        )
        # Once the last snapshot is there nobody comes back to write the curve: the curve goes first.
        _write_pretraining_curve(store, pretraining.key, curve, folder, attempt)
        saver.publish(last, final)
        for step in saver.wait():
            report(Progress("pretrain", last, last, published=step))
    attempt.row["to_step"] = last
    if pretraining.fields.method == "ddpm" and folder == pretrained_folder(pretraining.key):
        write_strips(store, pretraining, final, dataset.train.images_NHW[0], device=attempt.device)


def _write_pretraining_curve(
    store: Store, key: str, curve: Sequence[CurvePoint], folder: str, attempt: Attempt
) -> None:
    """Write a pre-training's curve; what an earlier, longer pre-training had beyond its end stays."""
    part = key if folder == pretrained_folder(key) else attempt.stage.name
    rows = _curve_rows(curve, "pretrain", trial_id=None, pretrain_key=key)
    with contextlib.suppress(CorruptArtifact):
        last = max((point.step for point in curve), default=0)
        before = results.read_part(store, "curves", part)
        rows += [row for row in before if row["phase"] == "pretrain" and int(str(row["step"])) > last]
    results.write_rows(store, "curves", part, rows)


def _curve_rows(
    curve: Sequence[CurvePoint], phase: str, *, trial_id: str | None, pretrain_key: str | None
) -> list[dict[str, object]]:
    return [
        {
            "trial_id": trial_id,
            "pretrain_key": pretrain_key,
            "phase": phase,
            "step": point.step,
            "epoch": point.epoch,
            "metric": point.metric,
            "value": point.value,
            "seconds": point.seconds,
        }
        for point in curve
    ]


def initial_network(spec: TrialSpec, num_landmarks: int, store: Store, folder: str | None) -> tuple[Network, float]:
    """Return the network a trial's fine-tuning starts from, and the seconds of pre-training in it.

    `folder` holds the pre-training's snapshots; None for scratch and imagenet.
    """
    network = build_network(spec.network, num_outputs=num_landmarks, image_size=spec.image_size, seed=spec.seed)
    pretraining = spec.pretraining
    if pretraining is not None and folder is not None:
        steps = pretraining.fields.steps
        network.load_initial(load_snapshot(store, folder, steps))
        manifest = store.manifest(f"{folder}/{step_name(steps)}")
        return network, float(manifest.facts.get("seconds", 0.0)) if manifest else 0.0
    if spec.method == "imagenet":
        load_imagenet(network, getattr(spec.pretrain, "weights", None))
    return network, 0.0


def finetune_stage(
    spec: TrialSpec, store: Store, data: Data, report: Report, *, folder: str | None, attempt: Attempt
) -> dict[str, object]:
    """Fine-tune from the snapshot in `folder`, evaluate on the test set, commit the trial's rows.

    Returns the row of `trials`. Raises `SnapshotMissing` or `CorruptArtifact` if the snapshot is not there.
    """
    settings, home = attempt.settings, f"trials/{spec.trial_id}"
    dataset = _dataset(data, spec.dataset, spec.image_size, settings)
    network, pretrain_seconds = initial_network(spec, dataset.num_landmarks, store, folder)
    network.to(attempt.device)
    parameters = count_parameters(network)
    start, state = load_state(store, home)
    attempt.began_at(start)
    logger.info("fine-tuning %s goes on from optimizer step %d", spec.trial_id, start)

    def tell(progress: Progress) -> bool:
        attempt.reached(progress)
        return report(progress)

    with _saving(store, home, settings) as saver:
        outcome = finetune(spec, network, dataset, device=attempt.device, state=state, checkpoint=saver, report=tell)
    network.load_state_dict(outcome.best_state)
    evaluation = evaluate(network, spec, dataset.test, dataset, device=attempt.device, report=tell)
    if settings.keep_weights:
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in network.state_dict().items()}
        store.publish(home, {MODEL: save_tensors(tensors), "spec.json": spec.model_dump_json().encode()})
    row = _trial_row(spec, dataset, outcome, evaluation, attempt) | {
        "pretrain_seconds": pretrain_seconds,
        "pretrain_shared": spec.pretrain_key in settings.shared_keys,
        "parameters": parameters,
    }
    done, found = len(evaluation.split.names), evaluation.summary
    tell(Progress("evaluate", done, done, {"mre": found.mre, "mre_median": found.median, "val_mre": outcome.val_mre}))
    curve = _curve_rows(outcome.curve, "finetune", trial_id=spec.trial_id, pretrain_key=None)
    results.commit_trial(store, row, _error_rows(spec, evaluation), curve)
    store.delete(f"{home}/state")
    return row


def _identity_row(spec: TrialSpec, attempt: Attempt) -> dict[str, object]:
    return results.blank("trials") | results.spec_columns(spec) | _identity_columns(attempt)


def _identity_columns(attempt: Attempt) -> dict[str, object]:
    gpu = attempt.device.type == "cuda"
    return {
        "peak_memory_bytes": peak_memory_bytes(attempt.device),
        "device": torch.cuda.get_device_name(attempt.device) if gpu else "cpu",
        "node": socket.gethostname(),
        "started_at": attempt.started_at,
        "finished_at": datetime.now(UTC),
        "ablate_version": __version__,
        "torch_version": torch.__version__,
        "git_revision": git_revision(),
    }


def _trial_row(
    spec: TrialSpec, dataset: Dataset, outcome: FinetuneOutcome, evaluation: Evaluation, attempt: Attempt
) -> dict[str, object]:
    summary, paper = evaluation.summary, evaluation.paper_summary
    return _identity_row(spec, attempt) | {
        "status": "finished",
        "unit": dataset.unit,
        "mre": summary.mre,
        "mre_median": summary.median,
        "mre_std": summary.std,
        "sdr": _sdr_column(summary),
        "paper_mre": None if paper is None else paper.mre,
        "paper_sdr": None if paper is None else _sdr_column(paper),
        "val_loss": outcome.val_loss,
        "val_mre": outcome.val_mre,
        "best_epoch": outcome.best_epoch,
        "epochs": outcome.epochs,
        "finetune_seconds": outcome.seconds,
        "evaluate_seconds": evaluation.seconds,
    }


def _sdr_column(summary: Summary) -> list[dict[str, float]]:
    return [{"threshold": rate.threshold, "rate": rate.rate} for rate in summary.sdr]


def _error_rows(spec: TrialSpec, evaluation: Evaluation) -> list[dict[str, object]]:
    """Return one row for each test image and annotated landmark."""
    split, paper_NK = evaluation.split, evaluation.errors_paper_NK
    return [
        {
            "trial_id": spec.trial_id,
            "image": split.names[image],
            "landmark": int(landmark),
            "x_true": float(split.points_NK2[image, landmark, 0]),
            "y_true": float(split.points_NK2[image, landmark, 1]),
            "x_pred": float(evaluation.points_file_NK2[image, landmark, 0]),
            "y_pred": float(evaluation.points_file_NK2[image, landmark, 1]),
            "error": float(evaluation.errors_NK[image, landmark]),
            "error_paper": None if paper_NK is None else float(paper_NK[image, landmark]),
        }
        for image, landmark in np.argwhere(~np.isnan(evaluation.errors_NK))
    ]


def write_failed_trial(spec: TrialSpec, store: Store, error: str, attempt: Attempt | None = None) -> None:
    """Write the row of a trial that failed, unless it is finished or its own worker has written that row."""
    if attempt is None:
        before = results.read_part(store, "trials", spec.trial_id)
        if any(row["status"] == "finished" or row["error"] == error for row in before):
            return
    row = results.blank("trials") | results.spec_columns(spec)
    row |= _identity_columns(attempt) if attempt else {"finished_at": datetime.now(UTC), "ablate_version": __version__}
    results.commit_trial(store, row | {"status": "failed", "error": error}, [], [])


def is_finished(spec: TrialSpec, store: Store) -> bool:
    """Whether a trial's rows are all there; if so, what its training left in the store is deleted.

    A worker may be lost after it has written the rows and before it could say so.
    """
    if not any(row["status"] == "finished" for row in results.read_part(store, "trials", spec.trial_id)):
        return False
    store.delete(f"trials/{spec.trial_id}/state")
    store.delete(f"trials/{spec.trial_id}/pretrained")
    return True


# --- whole attempts ---------------------------------------------------------------------------------


def perform(
    stage: Stage,
    spec: Pretraining | TrialSpec,
    snapshots: Sequence[int],
    store: Store,
    data: Data,
    report: Report,
    settings: Settings,
) -> StageResult:
    """Make one attempt at a stage, and record it whatever happens.

    An exception is recorded with its traceback in the stage's log and its last line in the tables; it is not
    raised. Where the store is full the attempt counts as interrupted, with an error, because it can go on later.
    Only the loss of the process itself, or a full store, leaves the attempt's row at `running`.
    """
    key = spec.key if isinstance(spec, Pretraining) else spec.pretrain_key
    home = pretrained_folder(stage.name) if stage.kind == "pretrain" else f"trials/{stage.name}"
    with _threads(settings.threads), _StageLog(store, f"{home}/log.txt") as log:
        attempt = Attempt(store, stage, key, settings)
        try:
            attempt.write()
            _dispatch(stage, spec, snapshots, store, data, report, attempt)
            result = StageResult("finished")
        except Interrupted:
            logger.info("stopped on request; the state is saved")
            result = StageResult("interrupted")
        except (CorruptArtifact, SnapshotMissing) as error:
            result = StageResult("lost", one_line(error))
        except StoreFull as error:
            logger.error("interrupted: %s", one_line(error))
            result = StageResult("interrupted", one_line(error))
        except Exception as error:
            logger.error("failed:\n%s", traceback.format_exc())
            result = StageResult("failed", one_line(error))
        try:
            if result.outcome == "failed" and isinstance(spec, TrialSpec):
                write_failed_trial(spec, store, str(result.error), attempt)
            attempt.write(result.outcome)
            log.write()
        except StoreFull as error:
            result = StageResult("interrupted", one_line(error))
    release_memory()
    return result


def _dispatch(
    stage: Stage,
    spec: Pretraining | TrialSpec,
    snapshots: Sequence[int],
    store: Store,
    data: Data,
    report: Report,
    attempt: Attempt,
) -> None:
    if isinstance(spec, Pretraining):
        pretrain_stage(spec, snapshots, store, data, report, folder=pretrained_folder(stage.name), attempt=attempt)
        return
    pretraining = spec.pretraining
    if pretraining is None:
        finetune_stage(spec, store, data, report, folder=None, attempt=attempt)
    elif stage.kind == "finetune":
        finetune_stage(spec, store, data, report, folder=pretrained_folder(pretraining.key), attempt=attempt)
    else:
        folder = pretrained_folder(pretraining.key, spec.trial_id)
        pretrain_stage(pretraining, [pretraining.fields.steps], store, data, report, folder=folder, attempt=attempt)
        finetune_stage(spec, store, data, report, folder=folder, attempt=attempt)
        store.delete(folder)


def run_trial(
    spec: TrialSpec,
    store: Store,
    data: Data,
    report: Report = silent,
    threads: int = 1,
    *,
    settings: Settings | None = None,
) -> dict[str, object]:
    """Pre-train, fine-tune and evaluate one trial in this process, and commit its rows.

    A pre-training that the store holds already is used, one that it does not hold is made and kept there.

    Args:
        spec: the trial.
        store: takes artifacts and tables.
        data: returns a data set by name and image size.
        report: is told of progress; returns True to stop the trial with its state saved.
        threads: CPU threads.
        settings: the other settings; default `Settings()`.

    Returns:
        The trial's row of `trials`.

    Raises:
        TrialFailed: a stage failed; the traceback is in its log.
        Interrupted: `report` asked to stop.
        StoreFull: there is no room in the store; the trial can go on once there is.
    """
    settings = replace(settings or Settings(), threads=threads)
    pretraining = spec.pretraining
    finetuning = Stage("finetune", spec.trial_id)
    for _ in range(2):  # a damaged snapshot is made anew, once
        if pretraining is not None and not _is_published(store, pretraining):
            stage = Stage("pretrain", pretraining.key)
            steps = (pretraining.fields.steps,)
            result = perform(stage, pretraining, steps, store, data, report, settings)
            if result.outcome == "failed":
                reason = f"pre-training {pretraining.key} failed: {result.error}"
                write_failed_trial(spec, store, reason)
                raise TrialFailed(f"trial {spec.trial_id}: {reason}")
            _raise_unless_finished(result, spec)
        result = perform(finetuning, spec, (), store, data, report, settings)
        if result.outcome != "lost":
            break
    _raise_unless_finished(result, spec)
    (row,) = results.read_part(store, "trials", spec.trial_id)
    return row


def _is_published(store: Store, pretraining: Pretraining) -> bool:
    folder = pretrained_folder(pretraining.key)
    return store.manifest(f"{folder}/{step_name(pretraining.fields.steps)}") is not None


def _raise_unless_finished(result: StageResult, spec: TrialSpec) -> None:
    if result.outcome == "interrupted":
        if result.error is not None:
            raise StoreFull(errno.ENOSPC, result.error)
        raise Interrupted
    if result.outcome != "finished":
        raise TrialFailed(f"trial {spec.trial_id}: {result.error}")
