"""A trial's fields as columns of `trials`, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from ablate.space import FILES_OF_WEIGHTS, TrialSpec, flatten, nest, trial_fields
from ablate.tables.schemas import SPEC_COLUMNS

ALL: Literal["all"] = "all"

BASELINE_KEY = ("dataset", "shots", "draw", "fold", "exclude_duplicates")
"""The columns of `baselines` that tell its rows apart."""


def shots_number(shots: int | Literal["all"]) -> int | None:
    """Return a trial's shots as the column `shots` holds them: a number, null for all."""
    return None if shots == ALL else shots


def shots_of_number(number: int | None) -> int | Literal["all"]:
    """Return the shots for which the column `shots` holds `number`; as text they are the column `shots_label`."""
    return ALL if number is None else number


def field_columns(trial: TrialSpec | Mapping[str, Any]) -> dict[str, object]:
    """Return the columns of `trials` for the fields of a trial; null for fields of other methods than its own.

    Args:
        trial: a trial, or a mapping of its fields as `run.yaml` lists them; what that lacks is null, and all shots.
    """
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in flatten(trial).items()}
    shots: Any = found.get("shots", ALL)
    columns: dict[str, object] = dict.fromkeys(column.name for column in SPEC_COLUMNS)
    return columns | found | {"shots": shots_number(shots), "shots_label": str(shots)}


def spec_columns(trial: TrialSpec) -> dict[str, object]:
    """Return the columns of `trials` that describe the trial: identity, and every spec field."""
    return {"trial_id": trial.trial_id, "pretrain_key": trial.pretrain_key, **field_columns(trial)}


def baseline_columns(trial: Mapping[str, Any]) -> dict[str, object]:
    """Return the columns of `baselines` that tell which mean shape a trial is held against.

    Args:
        trial: the trial's columns of `trials`; None for what is null.
    """
    drawn = trial["few_shot"] == "random" and trial["shots"] is not None
    draw = trial["seed"] if trial["draw"] is None else trial["draw"]
    values = (trial["dataset"], trial["shots"], draw if drawn else None, trial["fold"], trial["exclude_duplicates"])
    return dict(zip(BASELINE_KEY, values, strict=True))


def baseline_part(columns: Mapping[str, object]) -> str:
    """Return the part of `baselines` for one mean shape, see `baseline_columns`."""
    text = json.dumps(columns, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def trial_of_row(row: Mapping[str, Any]) -> TrialSpec:
    """Return the trial that a row of `trials` describes, but for the file of weights it may have started from."""
    may_be_none = ("finetune", "timestep")  # where null is no lack of a value that an older version did not write
    values = {field.path: row.get(field.column) for field in trial_fields(row["pretrain_method"])}
    values[("shots",)] = shots_of_number(row["shots"])
    not_kept = {("pretrain", name) for name in (*FILES_OF_WEIGHTS, "weights_sha256")}
    return TrialSpec.model_validate(
        nest(
            (path, value)
            for path, value in values.items()
            if (value is not None or path == may_be_none) and path not in not_kept
        )
    )
