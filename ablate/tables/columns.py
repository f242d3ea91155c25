"""A trial's fields as columns of `trials`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ablate.space import FILES_OF_WEIGHTS, TrialSpec, flatten, nest, trial_fields
from ablate.tables.schemas import SPEC_COLUMNS

ALL: Literal["all"] = "all"


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


def trial_of_row(row: Mapping[str, Any]) -> TrialSpec:
    """Return the trial that a row of `trials` describes, but for the file of weights it may have started from."""
    values = {field.path: row.get(field.column) for field in trial_fields(row["pretrain_method"])}
    values[("shots",)] = shots_of_number(row["shots"])
    not_kept = {("pretrain", name) for name in (*FILES_OF_WEIGHTS, "weights_sha256")}
    return TrialSpec.model_validate(
        nest((path, value) for path, value in values.items() if value is not None and path not in not_kept)
    )
