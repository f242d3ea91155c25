"""A figure of any metric against any numeric axis, one line for each initialisation.

The axis is a field of the trial that was varied (timesteps, learning rate, shots, ...), or a number that was measured
(seconds, parameters, ...): then the points of a line are its numbers of shots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import pandas as pd

from ablate.errors import InputError, nearest
from ablate.report.chart_kinds import Line, LineChart
from ablate.report.grouping import (
    FIELDS,
    INITIALISATION,
    Group,
    Grouping,
    Key,
    field_label,
    plain,
    value_label,
)
from ablate.report.intervals import Intervals
from ablate.report.literature import Reference, points_against_shots
from ablate.report.mean_shapes import LABEL, mean_shapes_along
from ablate.report.metrics import MEAN_SHAPE, METRICS, Metric, metric_of, metric_values
from ablate.report.noise_levels import TIMESTEPS, NoiseLevels
from ablate.report.render import slug
from ablate.report.run_data import RunData
from ablate.report.selection import Selected, lay_out_trials
from ablate.report.ticks import log_ticks, readable, time_ticks
from ablate.stats.samples import over_seeds

LOG_FROM = 4.0
"""An axis of positive values is logarithmic if its largest is this many times its smallest."""


@dataclass(frozen=True)
class Figure:
    """What to draw: a metric against an axis."""

    metric: Metric
    axis: str  # a field of the trial, or the name of a metric

    def title(self, unit: str | None) -> str:
        """Return the names of both for a reader; `unit` is that of the trials, None if they have several."""
        return f"{self.metric.titled(unit)} against {_axis_name(self.axis)}"


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    lower: float
    upper: float
    hover: str
    num_seeds: int


def figure_of(trials: pd.DataFrame, text: str) -> Figure:
    """Return the figure that `METRIC:AXIS` names, such as `sdr@2.5:pretrain.timesteps`.

    Raises:
        InputError: there is no such metric or axis, the axis holds no numbers, or the run has not two of them.
    """
    metric, colon, axis = text.rpartition(":")
    if not colon or not metric.strip() or not axis.strip():
        raise InputError(f"--figure must be METRIC:AXIS, for example mre:pretrain.timesteps; got {text!r}")
    return Figure(metric_of(trials, metric), check_numeric_axis(trials, axis, f"--figure {text}: the axis"))


def check_numeric_axis(trials: pd.DataFrame, name: str, option: str) -> str:
    """Return the column that an axis stands for; raise `InputError` if the run has not two numbers of it."""
    column = name.strip().replace(".", "_")
    column = "shots" if column == "shots_label" else column
    numeric = [field for field in FIELDS if pd.api.types.is_numeric_dtype(trials[field].dtype)]
    numeric = [field for field in numeric if not pd.api.types.is_bool_dtype(trials[field].dtype)]
    if column not in numeric and column not in METRICS:
        varied = ", ".join(field for field in numeric if len(_numbers(trials, field)) > 1)
        raise InputError(
            f"{option} must be a numeric field of a trial or a measured number; got {name!r}"
            f"{nearest(column, [*numeric, *METRICS])}; the run has several values of {varied or 'no field'} "
            f"and measured {', '.join(METRICS)}"
        )
    if len(found := _numbers(trials, column)) < 2:
        have = f"only {found.pop():g}" if found else "none"
        raise InputError(f"{option} {name} needs two different numbers to draw a line; the run has {have}")
    return column


def _numbers(trials: pd.DataFrame, column: str) -> set[float]:
    values = {plain(value) for value in trials[column]}
    found = {float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return found | {math.inf} if column == "shots" and None in values else found


def axis_charts(
    run: RunData,
    intervals: Intervals,
    figure: Figure,
    *,
    filters: Sequence[str] = (),
    best_by: str | None = None,
    references: Sequence[Reference] = (),
) -> Iterator[LineChart]:
    """Yield a metric against an axis, a chart for each combination of what else differs.

    MRE and SDR have the intervals that the tables have; other metrics their standard deviation over seeds.

    Args:
        run: the run.
        intervals: its intervals.
        figure: metric and axis.
        filters: `FIELD=VALUE` texts, see `filter_trials`.
        best_by: `val_mre` or `val_loss`, see `select`.
        references: rows of the literature; they are drawn against shots.

    Raises:
        InputError: a filter that nothing meets, or settings that cannot be chosen.
    """
    measured = figure.axis not in FIELDS
    columns = "shots" if measured else figure.axis
    grouping, selected = lay_out_trials(run.trials, columns=columns, filters=filters, best_by=best_by)
    for group in grouping.groups:
        chart = _chart(run, intervals, figure, grouping, group)
        if chart is not None:
            chart = _marked(chart, grouping, selected)
            yield _with_published(run, figure, grouping, group, chart, references) if columns == figure.axis else chart


def _marked(chart: LineChart, grouping: Grouping, selected: Selected | None) -> LineChart:
    """Return a chart that says what holds for all of its trials, such as how their settings were chosen."""
    marks = (selected.mark,) if selected is not None and selected.choices else ()
    return replace(chart, note=" ".join([chart.note, *grouping.notes]), marks=marks, own_selection=True)


def _with_published(
    run: RunData,
    figure: Figure,
    grouping: Grouping,
    group: Group,
    chart: LineChart,
    references: Sequence[Reference],
) -> LineChart:
    """Return a chart against shots with the points of the literature; other charts as they are."""
    dataset, _ = _about(grouping, group)
    all_shots = _all_shots(run, group, dataset)
    lines, sources = points_against_shots(references, dataset, figure.metric, all_shots)
    if figure.axis != "shots" or not lines:
        return chart
    ticks = [*chart.x_ticks, *((x, f"{x:g}") for line in lines for x in line.x if x != all_shots)]
    return replace(
        chart, lines=(*chart.lines, *lines), x_ticks=readable(ticks, log=chart.x_log), marks=(*chart.marks, *sources),
        note=" ".join([chart.note, *(f"{source}." for source in sources)]),
    )  # fmt: skip


def _chart(run: RunData, intervals: Intervals, figure: Figure, grouping: Grouping, group: Group) -> LineChart | None:
    metric, measured = figure.metric, figure.axis not in FIELDS
    values = metric_values(grouping.trials, metric)
    axis_values = metric_values(grouping.trials, METRICS[figure.axis]) if measured else []
    dataset, unit = _about(grouping, group)
    scale = METRICS[figure.axis].scale if measured else 1.0
    levels = NoiseLevels.of(_members(grouping, group)) if figure.axis == TIMESTEPS else None

    def x_of(column: Key, positions: Sequence[int]) -> float | None:
        if measured:
            there = [value for p in positions if (value := axis_values[p]) is not None]
            return scale * median(there) if there else None
        if isinstance(column.value, (int, float)):
            return float(column.value)
        return _all_shots(run, group, dataset) if figure.axis == "shots" else None

    lines: list[Line] = []
    kinds: set[str] = set()
    for row in group.rows:
        points = []
        for column in group.columns:
            positions = group.cells.get((row, column), ())
            x = x_of(column, positions) if positions else None
            found = _value(intervals, metric, grouping.trials.iloc[list(positions)], [values[p] for p in positions])
            if x is None or found is None:
                continue
            kind, num_seeds, y, lower, upper = found
            kinds.add(kind)
            at = value_label(grouping.columns, column.value)
            if levels is not None:
                at = NoiseLevels.of(grouping.trials.iloc[list(positions)]).label(int(x))
            points.append(_Point(
                x, metric.scale * y, metric.scale * lower, metric.scale * upper,
                f"{f'{x:.4g}, ' if measured else ''}{at}{' shots' if grouping.columns == 'shots' else ''}, "
                f"{num_seeds} seeds",
                num_seeds,
            ))  # fmt: skip
        if points and (measured or len({point.x for point in points}) > 1):
            points.sort(key=lambda point: point.x)
            style = sum(line.method == str(row.value) for line in lines)
            lines.append(Line(
                row.label(INITIALISATION), str(row.value), style, tuple(p.x for p in points),
                tuple(p.y for p in points), tuple(p.lower for p in points), tuple(p.upper for p in points),
                tuple(p.hover for p in points),
            ))  # fmt: skip
    if not lines:
        return None
    parts = _parts(grouping, group, dataset)
    reached = sorted({x for line in lines for x in line.x})
    log = reached[0] > 0 and reached[-1] / reached[0] >= LOG_FROM
    if constants := mean_shapes_along(grouping, group, metric):
        if measured:
            means = {column: metric.scale * fmean(values) for column, values in constants.items()}
            lines.append(constants_across(means, (reached[0], reached[-1])))
        else:
            lines.append(_mean_shape(constants, metric, lambda column: x_of(column, ()), reached))
    return LineChart(
        slug(metric.name, figure.axis.removeprefix("pretrain_"), *(part for part, _ in parts)),
        ", ".join(text for _, text in parts), levels.title if levels else _axis_label(figure.axis, unit),
        metric.titled(unit), tuple(lines), x_log=log,
        x_ticks=_ticks(reached, figure.axis, levels, log=log, all_shots=None if measured else x_of(Key(None), ())),
        side_by_side=not measured, note=" ".join(sorted(kinds)),
    )  # fmt: skip


def _value(
    intervals: Intervals, metric: Metric, trials: pd.DataFrame, values: Sequence[float | None]
) -> tuple[str, int, float, float, float] | None:
    """Return what the bars are, the seeds, the mean and its limits (NaN: none)."""
    sample = intervals.sample(trials) if len(trials) else None
    estimate = intervals.of(sample, metric) if sample else None
    if estimate is not None and estimate.value is not None:
        lower, upper = (math.nan if limit is None else limit for limit in (estimate.lower, estimate.upper))
        over = "seeds and test images" if estimate.num_seeds > 1 else "test images (one seed)"
        return f"Bars: 95 % crossed-bootstrap interval over {over}.", estimate.num_seeds, estimate.value, lower, upper
    finished = [str(status) == "finished" for status in trials["status"]]
    there = [value for value, done in zip(values, finished, strict=True) if done and value is not None]
    over_all = over_seeds(there)
    if over_all.mean is None:
        return None
    spread = math.nan if over_all.sd is None else over_all.sd
    return (
        "Bars: standard deviation over seeds.", over_all.num_seeds, over_all.mean, over_all.mean - spread,
        over_all.mean + spread,
    )  # fmt: skip


def _mean_shape(
    constants: Mapping[Key, Sequence[float]],
    metric: Metric,
    x_of: Callable[[Key], float | None],
    reached: Sequence[float],
) -> Line:
    """Return the line of the mean shape: at each value of the axis, or one constant across it."""
    points = sorted(
        (x, metric.scale * fmean(values)) for column, values in constants.items() if (x := x_of(column)) is not None
    )
    if not points:  # of trials without the axis' field: the same shots
        value = metric.scale * fmean([fmean(values) for values in constants.values()])
        points = [(x, value) for x in reached]
    return Line(LABEL, MEAN_SHAPE, 1, tuple(x for x, _ in points), tuple(y for _, y in points), mark="rule")


def constants_across(constants: Mapping[Key, float], ends: tuple[float, float]) -> Line:
    """Return what the mean shape reaches at each number of shots as lines across an axis."""
    x = (*ends, math.nan) * len(constants)
    y = tuple(value for constant in constants.values() for value in (constant, constant, math.nan))
    hover = tuple(f"any, {column.label('shots')} shots" for column in constants for _ in range(3))
    return Line(LABEL, MEAN_SHAPE, 1, x, y, hover=hover, mark="rule")


def _about(grouping: Grouping, group: Group) -> tuple[str, str | None]:
    """Return the data set of a table, and the unit of its trials."""
    members = _members(grouping, group)
    units = sorted({str(unit) for unit in members["unit"].dropna()})
    return str(plain(members["dataset"].iloc[0])), units[0] if len(units) == 1 else None


def _members(grouping: Grouping, group: Group) -> pd.DataFrame:
    return grouping.trials.iloc[[p for positions in group.cells.values() for p in positions]]


def _parts(grouping: Grouping, group: Group, dataset: str) -> list[tuple[str, str]]:
    """Return what tells a chart from others, each as a part of its file's name and of its title."""
    parts = [(dataset, dataset)]
    fixed = dict(group.fixed)
    if grouping.columns != "shots" and "shots" not in fixed:
        shots = {plain(grouping.trials["shots"].iloc[p]) for found in group.cells.values() for p in found}
        fixed |= {"shots": shots.pop()} if len(shots) == 1 else {}
    for name, value in fixed.items():
        text = value_label(name, value)
        if name == "shots":
            parts.append((text, f"{text} shots"))
        elif name != "dataset":
            parts.append((text, f"{field_label(name)} {text}"))
    return parts


def _all_shots(run: RunData, group: Group, dataset: str) -> float:
    """Return where `all` shots stand: at the number of training images, or beyond all others if that is not known."""
    known = run.train_images(dataset)
    largest = max((column.value for column in group.columns if isinstance(column.value, int)), default=1)
    return float(2 * largest if known is None else known)


def _axis_name(axis: str) -> str:
    if axis in METRICS and axis not in FIELDS:
        label = METRICS[axis].label
        return label if label[:3] == "MRE" else label.lower()
    return "annotated training images" if axis == "shots" else field_label(axis)


def _axis_label(axis: str, unit: str | None) -> str:
    own = METRICS[axis].unit_text(unit) if axis not in FIELDS and not axis.endswith("_seconds") else ""
    return f"{_axis_name(axis)} ({own})" if own else _axis_name(axis)


def _ticks(
    values: Sequence[float], axis: str, levels: NoiseLevels | None, *, log: bool, all_shots: float | None
) -> tuple[tuple[float, str], ...]:
    if levels is not None:
        return readable([(x, levels.label(int(x))) for x in values], log=log)
    if axis in FIELDS:
        shots = all_shots if axis == "shots" else None
        return readable([(x, "all" if x == shots else f"{x:g}") for x in values], log=log)
    if not log:
        return ()
    return time_ticks(values) if axis.endswith("_seconds") else log_ticks(values)
