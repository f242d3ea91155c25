"""Performing one stage, from its task to its rows, and a whole trial in one process.

No Ray here: `run_trial` is how a trial is debugged, profiled and tested, and `perform` is what the workers of a run
call.
"""

from __future__ import annotations

import contextlib
import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace

from safetensors.torch import save as save_tensors
from torch import Tensor

from ablate import tables, tuning
from ablate.finetune import finetune
from ablate.network.building import count_parameters
from ablate.network.evaluation import evaluate, inference_batch_size
from ablate.pretrain import run_pretraining
from ablate.schedule.stages import Stage
from ablate.space import Pretraining, TrialSpec
from ablate.stage.attempt import Attempt, cause_of
from ablate.stage.checkpoints import SnapshotMissing, load_state, saving
from ablate.stage.inputs import initial_network, pretraining_images
from ablate.stage.log import StageLog
from ablate.stage.machine import deterministic, release_memory, slow_bf16, thread_count
from ablate.stage.pictures import write_strips
from ablate.stage.rows import curve_rows, error_rows, trial_row, write_baseline, write_failed_trial
from ablate.stage.settings import Settings, StageResult
from ablate.stage.task import Data, Task
from ablate.store import TROUBLES, CorruptArtifact, Store, StoreTrouble
from ablate.store.layout import MODEL, SPEC, log_file, pretrained_folder, state_folder, step_folder
from ablate.training import CurvePoint, Interrupted, Progress, Report, silent

logger = logging.getLogger("ablate")


class TrialFailed(Exception):  # noqa: N818
    """A trial's stage failed; the traceback is in its log."""


def perform_pretraining(task: Task, pretraining: Pretraining, snapshots: Sequence[int], attempt: Attempt) -> None:
    """Run a pre-training until every one of `snapshots` (ascending steps) is published.

    Goes on from the newest state that does not lie beyond the first missing snapshot.
    """
    store, settings, report, folder = task.store, task.settings, task.report, task.pretrained(pretraining)
    missing = []
    for step in snapshots:
        if store.manifest(step_folder(folder, step)) is None:
            missing.append(step)
        else:  # an attempt that was lost had no time to tell
            report(Progress("pretrain", step, snapshots[-1], published=step))
    if not missing:
        return
    last = missing[-1]
    dataset = task.dataset(pretraining.fields.dataset, pretraining.image_size, pretraining.fold)
    images_NHW = pretraining_images(pretraining, dataset)
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
            attempt.reached(progress, saver)
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
            passes=attempt.passes,
        )
        # Once the last snapshot is there nobody comes back to write the curve: the curve goes first.
        _write_pretraining_curve(task, pretraining.key, curve)
        saver.publish(last, final)
        for step in saver.wait():
            report(Progress("pretrain", last, last, published=step))
    attempt.row["to_step"] = last
    if pretraining.fields.method == "ddpm" and task.stage.kind == "pretrain":
        write_strips(store, pretraining, final, images_NHW[0], device=attempt.device)


def _write_pretraining_curve(task: Task, key: str, curve: Sequence[CurvePoint]) -> None:
    """Write a pre-training's curve; what an earlier, longer pre-training had beyond its end stays."""
    part = task.stage.name  # the pre-training's key, or the trial's id where it is the trial's own
    rows = curve_rows(curve, "pretrain", trial_id=None, pretrain_key=key)
    with contextlib.suppress(CorruptArtifact):
        last = max((point.step for point in curve), default=0)
        before = tables.read_part(task.store, "curves", part)
        rows += [row for row in before if row["phase"] == "pretrain" and int(str(row["step"])) > last]
    tables.write_rows(task.store, "curves", part, rows)


def perform_finetuning(task: Task, spec: TrialSpec, attempt: Attempt) -> None:
    """Fine-tune from the snapshot of the trial's pre-training, evaluate on the test set, commit the trial's rows.

    Raises `SnapshotMissing` or `CorruptArtifact` if the snapshot is not there.
    """
    store, settings, home = task.store, task.settings, task.home
    dataset = task.dataset(spec.dataset, spec.image_size, spec.fold)
    folder = None if spec.pretraining is None else task.pretrained(spec.pretraining)
    network, pretrain_seconds = initial_network(spec, dataset.num_landmarks, store, folder)
    network.to(attempt.device)
    parameters = count_parameters(network)
    start, state = load_state(store, home)
    attempt.began_at(start)
    logger.info("fine-tuning %s goes on from optimizer step %d", spec.trial_id, start)

    with saving(store, home, minutes=settings.checkpoint_minutes) as saver:

        def tell(progress: Progress) -> bool:  # after every optimizer step, before its state is saved
            attempt.reached(progress, saver)
            return task.report(replace(progress, saved=saver.durable_step))

        def tell_evaluation(progress: Progress) -> bool:
            attempt.save_log(saver)
            return task.report(progress)

        device, passes = attempt.device, attempt.passes
        outcome = finetune(
            spec, network, dataset, device=device, passes=passes, state=state, checkpoint=saver, report=tell
        )
        network.load_state_dict(outcome.best_state)
        evaluation = evaluate(
            network,
            spec,
            dataset.test,
            dataset,
            device=attempt.device,
            report=tell_evaluation,
            batch_size=inference_batch_size(spec, outcome.groups),
        )
    if settings.keep_weights:
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in network.state_dict().items()}
        store.publish(home, {MODEL: save_tensors(tensors), SPEC: spec.model_dump_json().encode()})
    judges = () if task.tuned_by is None else (task.tuned_by,)
    row = trial_row(spec, dataset, outcome, evaluation, attempt, tuned_by=judges) | {
        "pretrain_seconds": pretrain_seconds,
        "pretrain_shared": spec.pretrain_key in settings.shared_keys,
        "parameters": parameters,
    }
    done, found = len(evaluation.split.names), evaluation.summary
    metrics = {"mre": found.mre, "mre_median": found.median}
    metrics |= {} if outcome.val_mre is None else {"val_mre": outcome.val_mre}
    task.report(Progress("evaluate", done, done, metrics))
    curve = curve_rows(outcome.curve, "finetune", trial_id=spec.trial_id, pretrain_key=None)
    write_baseline(spec, dataset, store)
    tables.commit_trial(store, row, error_rows(spec, evaluation), curve)
    store.delete(state_folder(home))


def perform_tuning(task: Task, spec: TrialSpec, attempt: Attempt) -> None:
    """Fine-tune a tuning trial to its next rung, and publish its validation error there; no test image is looked at.

    Raises `SnapshotMissing` or `CorruptArtifact` if the snapshot it starts from is not there.
    """
    store, settings, home = task.store, task.settings, task.home
    dataset = task.dataset(spec.dataset, spec.image_size, spec.fold).without_test()
    folder = None if spec.pretraining is None else task.pretrained(spec.pretraining)
    start, state = load_state(store, home)
    network, _ = initial_network(spec, dataset.num_landmarks, store, folder if state is None else None)
    network.to(attempt.device)
    attempt.began_at(start)
    logger.info("tuning trial %s goes from optimizer step %d to %g of its length", spec.trial_id, start, task.until)
    with saving(store, home, minutes=settings.checkpoint_minutes) as saver:

        def tell(progress: Progress) -> bool:
            attempt.reached(progress, saver)
            return task.report(replace(progress, phase="tune", saved=saver.durable_step))

        outcome = finetune(
            spec,
            network,
            dataset,
            device=attempt.device,
            state=state,
            checkpoint=saver,
            report=tell,
            until=task.until,
            passes=attempt.passes,
        )
        saver.wait()  # the state at the rung goes before what was reached there
    hours = outcome.seconds / 3600 * (settings.gpus or 1.0)
    assert outcome.val_mre is not None  # something validates every tuning trial
    result = tuning.Result(outcome.val_mre, outcome.epochs, hours)
    tuning.write_result(store, spec.trial_id, task.until, result)
    task.report(Progress("tune", outcome.epochs, outcome.epochs, tuning.metrics_of(result)))


def perform(task: Task) -> StageResult:
    """Make one attempt at a stage, and record it whatever happens.

    An exception is recorded with its traceback in the stage's log and its last line in the tables; it is not
    raised. Where the store is full, refuses or stays away, or the run's lock is lost, the attempt counts as
    interrupted, with an error, because it can go on later. Only that, or the loss of the process itself, leaves
    the attempt's row at `running`.
    """

    def held_up(error: StoreTrouble) -> StageResult:
        logger.error("interrupted: %s", cause_of(error))
        return StageResult("interrupted", cause_of(error), type(error).__name__)

    with thread_count(task.settings.threads), StageLog(task.store, log_file(task.home)) as log:
        attempt = Attempt(task, log)
        try:
            attempt.write()
            if task.spec.precision == "bf16" and (slow := slow_bf16(attempt.device)):
                logger.warning("%s", slow)
            with deterministic(attempt.device, wanted=task.settings.deterministic):
                _perform_parts(task, attempt)
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
            if result.outcome == "failed" and isinstance(task.spec, TrialSpec):
                if task.stage.kind == "tune":
                    failed = tuning.Result(math.nan, 0, 0.0, str(result.error))
                    tuning.write_result(task.store, task.spec.trial_id, task.until, failed)
                else:
                    write_failed_trial(task.spec, task.store, str(result.error), attempt)
            attempt.write(result.outcome)
            log.write()
        except StoreTrouble as error:
            result = held_up(error)
    release_memory()
    return result


def _perform_parts(task: Task, attempt: Attempt) -> None:
    """Pre-train, fine-tune, or do both, as the kind of the task's stage says."""
    spec = task.spec
    if isinstance(spec, Pretraining):
        perform_pretraining(task, spec, task.snapshots, attempt)
        return
    if task.stage.kind == "tune":
        perform_tuning(task, spec, attempt)
        return
    pretraining = spec.pretraining if task.stage.kind == "trial" else None
    if pretraining is not None:
        perform_pretraining(task, pretraining, [pretraining.fields.steps], attempt)
    perform_finetuning(task, spec, attempt)
    if pretraining is not None:
        task.store.delete(task.pretrained(pretraining))


def run_trial(
    spec: TrialSpec,
    store: Store,
    data: Data,
    report: Report = silent,
    threads: int | None = None,
    *,
    settings: Settings | None = None,
) -> dict[str, object]:
    """Pre-train, fine-tune and evaluate one trial in this process, and commit its rows.

    A pre-training that the store holds already is used, one that it does not hold is made and kept there.

    Args:
        spec: the trial.
        store: takes artifacts and tables.
        data: returns a data set by name, image size and fold.
        report: is told of progress; returns True to stop the trial with its state saved.
        threads: CPU threads; None for those of `settings`.
        settings: how to use the machine and the store; default `Settings()`.

    Returns:
        The trial's row of `trials`.

    Raises:
        TrialFailed: a stage failed; the traceback is in its log.
        Interrupted: `report` asked to stop.
        StoreTrouble: the store is full, refuses or stays away; the trial can go on later.
        ValueError: `threads` and `settings` say different numbers of threads.
    """
    settings = _with_threads(settings, threads)
    pretraining = spec.pretraining
    finetuning = Stage("finetune", spec.trial_id)
    for _ in range(2):  # a damaged snapshot is made anew, once
        if pretraining is not None and not _is_published(store, pretraining):
            stage = Stage("pretrain", pretraining.key)
            steps = (pretraining.fields.steps,)
            result = perform(Task(stage, pretraining, store, data, report, settings, steps))
            if result.outcome == "failed":
                reason = f"pre-training {pretraining.key} failed: {result.error}"
                write_failed_trial(spec, store, reason)
                raise TrialFailed(f"trial {spec.trial_id}: {reason}")
            _raise_unless_finished(result, spec)
        result = perform(Task(finetuning, spec, store, data, report, settings))
        if result.outcome != "lost":
            break
    _raise_unless_finished(result, spec)
    (row,) = tables.read_part(store, "trials", spec.trial_id)
    return row


def _with_threads(settings: Settings | None, threads: int | None) -> Settings:
    """Return the settings with a number of threads that was given beside them."""
    if settings is None:
        return Settings() if threads is None else Settings(threads=threads)
    if threads is not None and threads != settings.threads:
        raise ValueError(
            f"threads must be left out or equal settings.threads; got threads {threads} and settings.threads "
            f"{settings.threads}; give the number in settings alone"
        )
    return settings


def _is_published(store: Store, pretraining: Pretraining) -> bool:
    folder = pretrained_folder(pretraining.key)
    return store.manifest(step_folder(folder, pretraining.fields.steps)) is not None


def _raise_unless_finished(result: StageResult, spec: TrialSpec) -> None:
    if result.outcome == "interrupted":
        if result.trouble is not None:
            raise TROUBLES[result.trouble](result.error)
        raise Interrupted
    if result.outcome != "finished":
        raise TrialFailed(f"trial {spec.trial_id}: {result.error}")
