"""The roles of trials in a run that was tuned: its arms stand in tables with their default and with the tuned settings.

Whatever fields were searched, trials are grouped by arm and role: the chosen values are a result, and split no table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

ROLE = "role"
"""Column: `default`, `tuned`, or `both` where the default was chosen; null where nothing was tuned."""

SEARCHED = "searched"
"""Column: the columns of the fields that were searched, joined by commas; null where nothing was tuned."""

REPEAT = "repeat"
"""Column: which of several independent tunings chose the trial's settings; null for the default."""


def tune_spec(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section `tune` of a run's search space; empty where there is none."""
    space = described.get("search_space")
    found = space.get("tune") if isinstance(space, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def with_roles(trials: pd.DataFrame, described: Mapping[str, Any]) -> pd.DataFrame:
    """Return trials with their roles as `run.yaml` lists them, without those of an earlier choice of settings."""
    listed = {row["trial_id"]: row for row in described.get("trials") or () if isinstance(row, Mapping)}
    if not any(ROLE in row for row in listed.values()):
        return trials
    searched = ",".join(str(name).replace(".", "_") for name in tune_spec(described).get("search", ()))
    kept = trials[trials["trial_id"].isin(listed.keys())].reset_index(drop=True)
    rows = [listed[str(trial_id)] for trial_id in kept["trial_id"]]
    repeats = [next(iter(row.get("repeats") or ()), None) for row in rows]
    kept[ROLE] = pd.Series([row.get(ROLE) for row in rows], dtype=object)
    kept[SEARCHED] = pd.Series([searched if row.get(ROLE) else None for row in rows], dtype=object)
    kept[REPEAT] = pd.array(repeats, dtype="Int64")
    return kept


def by_role(trials: pd.DataFrame) -> pd.DataFrame:
    """Return trials with two rows for each whose settings are both the default and the chosen ones."""
    if ROLE not in trials:
        return trials
    twice = [[("default", None), ("tuned", repeat)] if role == "both" else [(role, repeat)]
             for role, repeat in zip(trials[ROLE], trials[REPEAT], strict=True)]  # fmt: skip
    positions = [position for position, roles in enumerate(twice) for _ in roles]
    frame = trials.iloc[positions].reset_index(drop=True)
    frame[ROLE] = pd.Series([role for roles in twice for role, _ in roles], dtype=object)
    frame[REPEAT] = pd.array([repeat for roles in twice for _, repeat in roles], dtype="Int64")
    return frame


def searched_fields(trials: pd.DataFrame) -> tuple[str, ...]:
    """Return the columns of the fields that were searched for some trial."""
    if SEARCHED not in trials:
        return ()
    return tuple(dict.fromkeys(name for text in trials[SEARCHED].dropna().unique() for name in str(text).split(",")))
