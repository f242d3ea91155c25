"""What the mean shape of the shots reaches, beside the initialisations that are held against it."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np

from ablate.report.grouping import INITIALISATION, Group, Grouping, Key
from ablate.report.metrics import MEAN_SHAPE, Metric, mean_shape_values

LABEL = "mean shape"
"""What readers call it."""

NO_BETTER = "‡"
"""Mark of an initialisation whose mean over seeds does not beat the mean shape."""

NO_BETTER_NOTE = (
    f"{NO_BETTER} no better than the mean shape: the average place of each landmark in the shots, without any training"
)


def mean_shapes(grouping: Grouping, group: Group, metric: Metric) -> dict[Key, tuple[float, ...]]:
    """Return what the mean shape reaches at each number of shots, one value for each draw of the shots.

    Args:
        grouping: trials by initialisation and shots; along other axes there is none.
        group: one of its tables.
        metric: `mre`, `mre_median` or an `sdr`; of others there is none.
    """
    if (grouping.rows, grouping.columns) != (INITIALISATION, "shots"):
        return {}
    return mean_shapes_along(grouping, group, metric)


def mean_shapes_along(grouping: Grouping, group: Group, metric: Metric) -> dict[Key, tuple[float, ...]]:
    """Return what the mean shape of the trials of each column reaches, whatever the columns are."""
    values = mean_shape_values(grouping.trials, metric)
    if not any(value is not None for value in values):
        return {}
    parts = list(grouping.trials[f"{MEAN_SHAPE}_part"])
    found: dict[Key, tuple[float, ...]] = {}
    for column in group.columns:
        positions = [p for (_, other), members in group.cells.items() if other == column for p in members]
        distinct = {parts[p]: value for p in positions if (value := values[p]) is not None}
        if distinct:
            found[column] = tuple(distinct.values())
    return found


def average_mean_shapes(grouping: Grouping, group: Group, metric: Metric) -> dict[Key, float]:
    """Return what the mean shape reaches on average over the draws of the shots, see `mean_shapes`."""
    return {column: fmean(values) for column, values in mean_shapes(grouping, group, metric).items()}


def mean_shape_landmarks(grouping: Grouping, group: Group, column: Key) -> tuple[float, ...]:
    """Return the mean shape's error at each landmark (NaN: none), averaged over the draws of a number of shots.

    Empty where it is not known: of folds that are pooled, and of runs before it was recorded.
    """
    name = f"{MEAN_SHAPE}_landmarks"
    if name not in grouping.trials:
        return ()
    positions = [p for (_, other), members in group.cells.items() if other == column for p in members]
    found = grouping.trials.iloc[positions].drop_duplicates(f"{MEAN_SHAPE}_part")[name]
    known = [np.array([math.nan if value is None else value for value in row]) for row in found if row is not None]
    return tuple(np.mean(known, axis=0).tolist()) if known else ()


def mark(metric: Metric, value: float | None, reference: float | None) -> str:
    """Return the mark of a mean that does not beat the mean shape of the same shots, with a space before; else ''."""
    if value is None or reference is None:
        return ""
    worse = value <= reference if metric.better == "higher" else value >= reference
    return f" {NO_BETTER}" if worse else ""
