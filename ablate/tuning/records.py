"""Tunings in the store: the rows of the table `tuning`, and the results of tuning trials."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ablate import tables
from ablate.space import Study
from ablate.store import Store
from ablate.store.layout import tuning_folder
from ablate.tuning.configuration import Configuration, Result
from ablate.tuning.course import Course
from ablate.tuning.sampling import as_json


def write_configurations(store: Store, study: Study, configurations: Sequence[Configuration]) -> None:
    """Write the rows of a study, complete or not at all."""
    tables.write_rows(store, "tuning", study.key, [_row(study, found) for found in configurations])


def read_configurations(store: Store, study: Study) -> list[Configuration]:
    """Return the configurations of a study that were written before, by number; none in a new run."""
    rows = sorted(tables.read_part(store, "tuning", study.key), key=lambda row: int(str(row["number"])))
    return [_configuration(study, row) for row in rows]


def load_courses(store: Store, studies: Sequence[Study]) -> list[Course]:
    """Return the tunings of a run as far as they are in its store."""
    return [Course(study, read_configurations(store, study)) for study in studies]


def _row(study: Study, found: Configuration) -> dict[str, object]:
    return {
        "study": study.key,
        "arm": study.arm,
        "place": study.place,
        "repeat": study.repeat,
        "round": found.round,
        "number": found.number,
        "fields": json.dumps(as_json(found.settings)),
        "seeds": list(study.spec.seeds),
        "trial_ids": [trial.trial_id for trial in found.trials],
        "val_mre": found.value,
        "val_mre_seeds": [None if math.isnan(value) else value for value in found.values],
        "state": found.state,
        "stopped_at": None if found.halted_at is None else study.spec.halve[found.halted_at],
        "epochs": list(found.epochs),
        "finetune_gpu_hours": found.hours if found.state else None,
        "chosen": found.chosen,
    }


def _configuration(study: Study, row: dict[str, Any]) -> Configuration:
    found = Configuration.of(study, row["number"], json.loads(row["fields"]))
    found.state, found.value, found.chosen = row["state"], row["val_mre"], row["chosen"]
    found.values = tuple(math.nan if value is None else value for value in row["val_mre_seeds"])
    found.epochs, found.hours = tuple(row["epochs"]), row["finetune_gpu_hours"] or 0.0
    found.halted_at = None if row["stopped_at"] is None else study.spec.halve.index(row["stopped_at"])
    return found


def result_folder(trial_id: str, until: float) -> str:
    """Return the artifact that holds what a tuning trial has come to at a rung, a share of its optimizer steps."""
    return f"{tuning_folder(trial_id)}/results/at_{until:g}"


def read_result(store: Store, trial_id: str, until: float) -> Result | None:
    """Return what a tuning trial came to at a rung; None if it has not come so far."""
    manifest = store.manifest(result_folder(trial_id, until))
    if manifest is None:
        return None
    facts = manifest.facts
    error = str(facts["error"]) if "error" in facts else None
    return Result(float(facts["val_mre"]), int(facts["epochs"]), float(facts["hours"]), error)


def metrics_of(result: Result) -> dict[str, float]:
    """Return a result as metrics that a stage reports."""
    return {"val_mre": result.val_mre, "epochs": result.epochs, "hours": result.hours}


def result_of(metrics: Mapping[str, float]) -> Result:
    """Return the result that a stage has reported as metrics."""
    return Result(float(metrics["val_mre"]), int(metrics["epochs"]), float(metrics["hours"]))


def write_result(store: Store, trial_id: str, until: float, result: Result) -> None:
    """Publish what a tuning trial came to at a rung, unless that is known already."""
    if read_result(store, trial_id, until) is None:
        facts: dict[str, Any] = {"val_mre": result.val_mre, "epochs": result.epochs, "hours": result.hours}
        store.publish(result_folder(trial_id, until), {}, **facts, **({"error": result.error} if result.error else {}))
