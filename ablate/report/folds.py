"""The folds of a data set pooled: trials that differ in the fold alone become one row, over all of their test images.

Each image is in the test split of one fold, so that the row's errors are those of a trial with all images as its
test set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ablate.report.grouping import FIELDS, MISSING, plain
from ablate.report.metrics import MEAN_SHAPE
from ablate.report.roles import ROLE
from ablate.stats.samples import FloatArray

FOLD = "fold"

POOLED = "folds"
"""Column of the number of folds behind a row; only where folds are pooled."""


@dataclass(frozen=True, eq=False)
class Pooled:
    """Trials with those of one data set's folds pooled."""

    trials: pd.DataFrame
    row_of: Mapping[str, str] = field(default_factory=dict)  # trial -> the trial whose id its row bears, where pooled


def pool_folds(
    trials: pd.DataFrame, folds_of: Mapping[str, int], read_errors: Callable[[Sequence[str]], pd.DataFrame]
) -> Pooled:
    """Return trials with one row instead of those that differ in the fold alone; it bears the id of the first fold.

    The row is finished when every fold of the data set is there and finished; else it counts as missing, because
    errors on some of the test images cannot stand beside errors on all of them. Its errors are those of all their
    test images together; times, sizes and validation errors are means over the folds.

    Args:
        trials: recorded and planned trials, see `read_trials`.
        folds_of: the number of folds of each data set; one that is not in it has those that some trial has.
        read_errors: returns the columns trial_id, error and error_paper of some trials' rows in `errors`.
    """
    if FOLD not in trials or not trials[FOLD].notna().any():
        return Pooled(trials)
    names = [name for name in (*FIELDS, ROLE) if name != FOLD and name in trials]
    members: dict[tuple[object, ...], list[int]] = {}
    for position, row in enumerate(trials[[*names, FOLD]].to_dict("records")):
        key = (position,) if plain(row[FOLD]) is None else tuple(plain(row[name]) for name in names)
        members.setdefault(key, []).append(position)
    finished = set(trials.loc[trials["status"] == "finished", "trial_id"])
    errors = {str(name): rows for name, rows in read_errors(sorted(finished)).groupby("trial_id")}
    row_of: dict[str, str] = {}
    rows: list[Mapping[Any, Any]] = []
    numbers: list[int | None] = []
    for positions in members.values():
        folds = trials.iloc[positions].sort_values(FOLD)
        if folds[FOLD].isna().all():
            rows += folds.to_dict("records")
            numbers += [None] * len(folds)
            continue
        row_of |= dict.fromkeys(folds["trial_id"], str(folds["trial_id"].iloc[0]))
        dataset = str(folds["dataset"].iloc[0])
        complete = len(folds) >= folds_of.get(dataset, len(folds))
        rows.append(_pooled(folds, [errors[name] for name in folds["trial_id"] if name in errors], complete=complete))
        numbers.append(max(len(folds), folds_of.get(dataset, 0)))
    frame = pd.DataFrame(rows, columns=trials.columns).astype(trials.dtypes.to_dict())
    return Pooled(frame.assign(**{POOLED: pd.array(numbers, dtype="Int64")}), row_of)


def shows_folds(rows: str, columns: str, filters: Sequence[str]) -> bool:
    """Whether a table is to show single folds: one of its fields, or a filter, is the fold."""
    return FOLD in (rows, columns, *(text.partition("=")[0].strip() for text in filters))


def _pooled(folds: pd.DataFrame, errors: Sequence[pd.DataFrame], *, complete: bool) -> dict[str, Any]:
    """Return one row for the trials of several folds, by fold."""
    row: dict[str, Any] = {str(name): value for name, value in folds.iloc[0].items()} | {FOLD: None}
    status = list(folds["status"])
    if not complete or status != ["finished"] * len(folds):
        failed = folds[folds["status"] == "failed"]
        row["status"] = "failed" if len(failed) else MISSING
        if len(failed):
            row["error"] = f"fold {int(failed[FOLD].iloc[0])}: {failed['error'].iloc[0]}"
        return row
    for name in folds.columns:
        if name.endswith("seconds") or name in (
            "val_loss",
            "val_mre",
            "best_epoch",
            "epochs",
            "labels",
            "peak_memory_bytes",
        ):
            mean = folds[name].mean()
            whole = pd.api.types.is_integer_dtype(folds[name].dtype) and not pd.isna(mean)
            row[str(name)] = round(mean) if whole else mean
    for prefix, column in (("", "error"), ("paper_", "error_paper")):
        values = np.concatenate([rows[column].to_numpy(dtype=np.float64) for rows in errors]) if errors else np.empty(0)
        values = values[np.isfinite(values)]
        if values.size:
            row |= _summary(values, folds[f"{prefix}sdr"].iloc[0], prefix)
    weights = [int(rows["error"].notna().sum()) for rows in errors]
    if f"{MEAN_SHAPE}_mre" in folds and len(weights) == len(folds):
        row |= _mean_shape(folds, weights)
    return row


def _summary(errors: FloatArray, rates: Sequence[Mapping[str, float]], prefix: str) -> dict[str, Any]:
    """Return the columns of `trials` for the errors of all annotated landmarks of all images."""
    thresholds = [float(rate["threshold"]) for rate in rates]
    found: dict[str, Any] = {
        f"{prefix}mre": float(errors.mean()),
        f"{prefix}sdr": [{"threshold": t, "rate": float((errors <= t).mean())} for t in thresholds],
    }
    return found if prefix else found | {"mre_median": float(np.median(errors)), "mre_std": float(errors.std())}


def _mean_shape(folds: pd.DataFrame, weights: Sequence[int]) -> dict[str, Any]:
    """Return what the mean shapes of the folds reach together; their median cannot be known from the folds' medians."""
    if folds[f"{MEAN_SHAPE}_mre"].isna().any():
        return {f"{MEAN_SHAPE}_{name}": None for name in ("mre", "mre_median", "sdr", "landmarks")}
    rates = [{rate["threshold"]: rate["rate"] for rate in found} for found in folds[f"{MEAN_SHAPE}_sdr"]]
    return {
        f"{MEAN_SHAPE}_mre": float(np.average(folds[f"{MEAN_SHAPE}_mre"], weights=weights)),
        f"{MEAN_SHAPE}_mre_median": None,
        f"{MEAN_SHAPE}_landmarks": None,
        f"{MEAN_SHAPE}_sdr": [
            {"threshold": t, "rate": float(np.average([found[t] for found in rates], weights=weights))}
            for t in rates[0]
        ],
    }
