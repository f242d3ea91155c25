"""What the mean shape of the shots reaches, beside the initialisations that are held against it."""

from __future__ import annotations

from ablate.report.grouping import INITIALISATION, Group, Grouping, Key, plain
from ablate.report.metrics import Metric, mean_shape_values

NO_BETTER = "‡"
"""Mark of an initialisation whose mean over seeds does not beat the mean shape."""

NO_BETTER_NOTE = (
    f"{NO_BETTER} no better than the mean shape: the average place of each landmark in the shots, without any training"
)

_WHICH = ("dataset", "exclude_duplicates", "few_shot", "seed", "draw")


def mean_shapes(grouping: Grouping, group: Group, metric: Metric) -> dict[Key, tuple[float, ...]]:
    """Return what the mean shape reaches at each number of shots, one value for each draw of the shots.

    Args:
        grouping: trials by initialisation and shots; along other axes there is none.
        group: one of its tables.
        metric: `mre`, `mre_median` or an `sdr`; of others there is none.
    """
    if (grouping.rows, grouping.columns) != (INITIALISATION, "shots"):
        return {}
    values = mean_shape_values(grouping.trials, metric)
    draws = [tuple(map(plain, row)) for row in grouping.trials[[*_WHICH]].itertuples(index=False)]
    found: dict[Key, tuple[float, ...]] = {}
    for column in group.columns:
        positions = [p for (_, other), members in group.cells.items() if other == column for p in members]
        distinct = {
            draws[p] if draws[p][2] == "random" else draws[p][:2]: value
            for p in positions
            if (value := values[p]) is not None
        }
        if distinct:
            found[column] = tuple(distinct.values())
    return found


def mark(metric: Metric, value: float | None, constants: tuple[float, ...] | None) -> str:
    """Return the mark of a mean that does not beat the mean shape of the same shots, with a space before; else ''."""
    if value is None or not constants:
        return ""
    reference = sum(constants) / len(constants)
    worse = value <= reference if metric.better == "higher" else value >= reference
    return f" {NO_BETTER}" if worse else ""
