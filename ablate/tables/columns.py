"""A trial's fields as columns of `trials`, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ablate.space import METHODS, Spec, TrialSpec, flatten
from ablate.tables.schemas import SPEC_COLUMNS


def spec_columns(trial: TrialSpec) -> dict[str, object]:
    """Return the columns of `trials` that describe the trial: identity, and every spec field.

    Fields of other methods than the trial's are null.
    """
    values: dict[str, object] = dict.fromkeys(column.name for column in SPEC_COLUMNS)
    for name, value in flatten(trial).items():
        values[name] = list(value) if isinstance(value, tuple) else value
    values["shots"] = None if trial.shots == "all" else trial.shots
    values["shots_label"] = trial.shots_label
    return {"trial_id": trial.trial_id, "pretrain_key": trial.pretrain_key, **values}


def trial_of_row(row: Mapping[str, Any]) -> TrialSpec:
    """Return the trial that a row of `trials` describes, but for the file of weights it may have started from."""
    fields = dict(_nested(TrialSpec, "", row))
    fields["shots"] = "all" if row["shots"] is None else row["shots"]
    return TrialSpec.model_validate(fields)


def _nested(spec: type[Spec], prefix: str, row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, info in spec.model_fields.items():
        column, inner = prefix + name, info.annotation
        if name == "pretrain" and spec is TrialSpec:
            method = METHODS[row["pretrain_method"]].spec
            yield name, {"method": row["pretrain_method"], **dict(_nested(method, "pretrain_", row))}
        elif isinstance(inner, type) and issubclass(inner, Spec):
            yield name, dict(_nested(inner, f"{column}_", row))
        elif name not in ("method", "weights", "weights_sha256") and row.get(column) is not None:
            yield name, row[column]
