"""The rows that a trial leaves in the tables, finished or failed."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import torch

from ablate import __version__, tables
from ablate.datasets import Dataset
from ablate.finetune import FinetuneOutcome, mean_shape_errors, num_labels
from ablate.network.evaluation import Evaluation
from ablate.network.metrics import Summary, summarise
from ablate.revision import git_revision
from ablate.space import TrialSpec
from ablate.stage.attempt import Attempt
from ablate.stage.machine import peak_memory_bytes
from ablate.store import Store
from ablate.store.layout import pretrained_folder, state_folder, trial_folder
from ablate.training import CurvePoint


def curve_rows(
    curve: Sequence[CurvePoint], phase: str, *, trial_id: str | None, pretrain_key: str | None
) -> list[dict[str, object]]:
    """Return the rows of `curves` for a learning curve of a trial, or of a pre-training."""
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


def trial_row(
    spec: TrialSpec,
    dataset: Dataset,
    outcome: FinetuneOutcome,
    evaluation: Evaluation,
    attempt: Attempt,
    *,
    tuned_by: Sequence[TrialSpec] = (),
) -> dict[str, object]:
    """Return the row of `trials` for a finished trial; what only its stage knows is left blank.

    Args:
        spec: the trial.
        dataset: its data set.
        outcome: what fine-tuning ended with.
        evaluation: on the test images.
        attempt: the attempt that finished.
        tuned_by: trials on the same data set by which its settings were chosen; their annotated images count too.
    """
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
        "labels": num_labels((spec, *tuned_by), len(dataset.train.names), len(dataset.val.names)),
        "finetune_seconds": outcome.seconds,
        "evaluate_seconds": evaluation.seconds,
    }


def _identity_row(spec: TrialSpec, attempt: Attempt) -> dict[str, object]:
    return tables.blank("trials") | tables.spec_columns(spec) | _identity_columns(attempt)


def _identity_columns(attempt: Attempt) -> dict[str, object]:
    return {
        "peak_memory_bytes": peak_memory_bytes(attempt.device),
        "device": attempt.row["device"],
        "node": socket.gethostname(),
        "started_at": attempt.started_at,
        "finished_at": datetime.now(UTC),
        "ablate_version": __version__,
        "torch_version": torch.__version__,
        "git_revision": git_revision(),
    }


def _sdr_column(summary: Summary) -> list[dict[str, float]]:
    return [{"threshold": rate.threshold, "rate": rate.rate} for rate in summary.sdr]


def write_baseline(spec: TrialSpec, dataset: Dataset, store: Store) -> None:
    """Write the row of `baselines` that a trial is held against, if another trial has not written it."""
    columns = tables.baseline_columns(tables.field_columns(spec))
    part = tables.baseline_part(columns)
    if tables.read_part(store, "baselines", part):
        return
    errors_NK = mean_shape_errors(spec, dataset)
    found = summarise(errors_NK, dataset.sdr_thresholds)
    of_landmarks = [errors[np.isfinite(errors)] for errors in errors_NK.T]
    landmarks = [float(errors.mean()) if errors.size else None for errors in of_landmarks]
    measured = {
        "unit": dataset.unit,
        "mre": found.mre,
        "mre_median": found.median,
        "sdr": _sdr_column(found),
        "landmarks": landmarks,
    }
    tables.write_rows(store, "baselines", part, [columns | measured])


def error_rows(spec: TrialSpec, evaluation: Evaluation) -> list[dict[str, object]]:
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
        before = tables.read_part(store, "trials", spec.trial_id)
        if any(row["status"] == "finished" or row["error"] == error for row in before):
            return
    row = tables.blank("trials") | tables.spec_columns(spec)
    row |= _identity_columns(attempt) if attempt else {"finished_at": datetime.now(UTC), "ablate_version": __version__}
    tables.commit_trial(store, row | {"status": "failed", "error": error}, [], [])


def is_finished(spec: TrialSpec, store: Store) -> bool:
    """Whether all rows of a trial are there: its row of `trials`, which is written last, says so."""
    return any(row["status"] == "finished" for row in tables.read_part(store, "trials", spec.trial_id))


def clear_leftovers(spec: TrialSpec, store: Store) -> None:
    """Delete a finished trial's own training states and snapshots, which no other stage uses.

    They are there where a worker was lost after it had written the rows and before it could say so.
    """
    store.delete(state_folder(trial_folder(spec.trial_id)))
    if spec.pretrain_key is not None:
        store.delete(pretrained_folder(spec.pretrain_key, spec.trial_id))
