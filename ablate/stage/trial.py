"""How does one stage of work turn its inputs into rows, and how does a whole trial run in one process?

No Ray here: `run_trial` is how a trial is debugged, profiled and tested, and the stages below are what the
workers of a run call.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from safetensors.torch import save as save_tensors
from torch import Tensor

from ablate import tables
from ablate.datasets import Dataset, load_dataset
from ablate.errors import InputError
from ablate.finetune import finetune
from ablate.network.building import Network, build_network, count_parameters
from ablate.network.evaluation import evaluate
from ablate.network.imagenet import load_imagenet
from ablate.pretrain import run_pretraining
from ablate.schedule.policy import Stage
from ablate.space import Pretraining, TrialSpec
from ablate.stage.attempt import Attempt, cause_of
from ablate.stage.checkpoints import (
    MODEL,
    SnapshotMissing,
    load_snapshot,
    load_state,
    pretrained_folder,
    saving,
)
from ablate.stage.log import StageLog
from ablate.stage.machine import release_memory, thread_count
from ablate.stage.pictures import write_strips
from ablate.stage.rows import curve_rows, error_rows, trial_row, write_failed_trial
from ablate.stage.settings import Settings, StageResult
from ablate.store import TROUBLES, CorruptArtifact, Store, StoreTrouble, step_name
from ablate.training import CurvePoint, Interrupted, Progress, Report, silent

logger = logging.getLogger("ablate")


Data: TypeAlias = Callable[[str, int], Dataset]
"""Returns a data set by name and image size; see `data_in`."""


class TrialFailed(Exception):  # noqa: N818
    """A trial's stage failed; the traceback is in its log."""


def data_in(data_dir: Path | str | None) -> Data:
    """Return the data sets of a data folder; each is loaded once and kept."""
    return functools.lru_cache(maxsize=4)(lambda name, image_size: load_dataset(name, data_dir, image_size))


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
    with saving(
        store, folder, minutes=settings.checkpoint_minutes, seconds_before=float(state["seconds"]) if state else 0.0
    ) as saver:

        def publish(step: int, tensors: Mapping[str, Tensor]) -> None:
            if step == last:
                final.update(tensors)
            else:
                saver.publish(step, tensors)

        def tell(progress: Progress) -> bool:
            attempt.reached(progress.step, progress.images_per_second, saver.saved_step, saver.later)
            stop = False
            for step in saver.arrived():
                stop |= report(Progress("pretrain", progress.step, progress.total, published=step))
            return report(replace(progress, published=None, saved=saver.durable_step)) or stop

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
    rows = curve_rows(curve, "pretrain", trial_id=None, pretrain_key=key)
    with contextlib.suppress(CorruptArtifact):
        last = max((point.step for point in curve), default=0)
        before = tables.read_part(store, "curves", part)
        rows += [row for row in before if row["phase"] == "pretrain" and int(str(row["step"])) > last]
    tables.write_rows(store, "curves", part, rows)


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

    with saving(store, home, minutes=settings.checkpoint_minutes) as saver:
        steps = itertools.count(start + 1)

        def tell(progress: Progress) -> bool:  # after every optimizer step, before its state is saved
            attempt.reached(next(steps), progress.images_per_second, saver.saved_step, saver.later)
            return report(replace(progress, saved=saver.durable_step))

        outcome = finetune(spec, network, dataset, device=attempt.device, state=state, checkpoint=saver, report=tell)
    network.load_state_dict(outcome.best_state)
    evaluation = evaluate(network, spec, dataset.test, dataset, device=attempt.device, report=report)
    if settings.keep_weights:
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in network.state_dict().items()}
        store.publish(home, {MODEL: save_tensors(tensors), "spec.json": spec.model_dump_json().encode()})
    row = trial_row(spec, dataset, outcome, evaluation, attempt) | {
        "pretrain_seconds": pretrain_seconds,
        "pretrain_shared": spec.pretrain_key in settings.shared_keys,
        "parameters": parameters,
    }
    done, found = len(evaluation.split.names), evaluation.summary
    report(Progress("evaluate", done, done, {"mre": found.mre, "mre_median": found.median, "val_mre": outcome.val_mre}))
    curve = curve_rows(outcome.curve, "finetune", trial_id=spec.trial_id, pretrain_key=None)
    tables.commit_trial(store, row, error_rows(spec, evaluation), curve)
    store.delete(f"{home}/state")
    return row


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
    raised. Where the store is full, refuses or stays away, or the run's lock is lost, the attempt counts as
    interrupted, with an error, because it can go on later. Only that, or the loss of the process itself, leaves
    the attempt's row at `running`.
    """
    key = spec.key if isinstance(spec, Pretraining) else spec.pretrain_key
    home = pretrained_folder(stage.name) if stage.kind == "pretrain" else f"trials/{stage.name}"

    def held_up(error: StoreTrouble) -> StageResult:
        logger.error("interrupted: %s", cause_of(error))
        return StageResult("interrupted", cause_of(error), type(error).__name__)

    with thread_count(settings.threads), StageLog(store, f"{home}/log.txt") as log:
        attempt = Attempt(store, stage, key, settings)
        try:
            attempt.write()
            _dispatch(stage, spec, snapshots, store, data, report, attempt)
            result = StageResult("finished")
        except Interrupted:
            logger.info("stopped on request; the state is saved")
            result = StageResult("interrupted")
        except (CorruptArtifact, SnapshotMissing) as error:
            result = StageResult("lost", cause_of(error))
        except StoreTrouble as error:
            result = held_up(error)
        except Exception as error:
            logger.error("failed:\n%s", traceback.format_exc())
            result = StageResult("failed", cause_of(error))
        try:
            if result.outcome == "failed" and isinstance(spec, TrialSpec):
                write_failed_trial(spec, store, str(result.error), attempt)
            attempt.write(result.outcome)
            log.write()
        except StoreTrouble as error:
            result = held_up(error)
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
        StoreTrouble: the store is full, refuses or stays away; the trial can go on later.
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
    (row,) = tables.read_part(store, "trials", spec.trial_id)
    return row


def _is_published(store: Store, pretraining: Pretraining) -> bool:
    folder = pretrained_folder(pretraining.key)
    return store.manifest(f"{folder}/{step_name(pretraining.fields.steps)}") is not None


def _raise_unless_finished(result: StageResult, spec: TrialSpec) -> None:
    if result.outcome == "interrupted":
        if result.trouble is not None:
            raise TROUBLES[result.trouble](result.error)
        raise Interrupted
    if result.outcome != "finished":
        raise TrialFailed(f"trial {spec.trial_id}: {result.error}")
