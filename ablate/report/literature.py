"""Rows of the literature beside a run: numbers that were published, not run here.

A CSV file has a row for each data set, initialisation and number of shots, with the columns of `COLUMNS` and one for
each metric: `mre`, `mre_median`, `paper_mre`, `sdr@2` (or `sdr_2`), `paper_sdr@2.5`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ablate.errors import InputError, nearest
from ablate.report.chart_kinds import Line
from ablate.report.grouping import Key, Value, plain, record_value, value_label
from ablate.report.metrics import RATES, Metric, thresholds_of
from ablate.report.render import Cell

REQUIRED = ("dataset", "initialisation", "shots", "source")
COLUMNS = {
    "dataset": "as in the run",
    "initialisation": "name of the row",
    "shots": "annotated training images, or all",
    "source": "where the numbers were published",
    "unit": "mm or px, which must be the run's",
    "std": "standard deviation of the mre over seeds",
}
"""Columns that are no metric, and what they hold; `unit` and `std` may be left out."""

METRIC_NAMES = ("mre", "mre_median", "paper_mre")
MARK = "§"
"""Mark of what was not run here, with the number of its source."""


@dataclass(frozen=True)
class Reference:
    """Published numbers of one initialisation on one data set at one number of shots."""

    dataset: str
    initialisation: str
    shots: int | None  # None: all
    values: Mapping[str, float]  # by metric, in the table's unit; rates from 0 to 1
    std: float | None  # of the mre over seeds
    source: str
    number: int  # of the source

    @property
    def label(self) -> str:
        """The row's name: `DDPM §1`."""
        return f"{self.initialisation} {MARK}{self.number}"


def read_references(path: Path, trials: pd.DataFrame) -> tuple[Reference, ...]:
    """Read rows of the literature for a run.

    Args:
        path: the CSV file.
        trials: the run's table `trials`, whose data sets, units and thresholds the rows must have.

    Raises:
        InputError: the file cannot be read, or a line does not fit; the message names line, column and cure.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--reference {path}: must be a CSV file in UTF-8; {error}") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"--reference {path}, line {reader.line_num}: is no CSV: {error}") from error
    metrics = _check_header(path, header, trials)
    sources: dict[str, int] = {}
    found: dict[tuple[object, ...], tuple[int, Reference]] = {}
    for number, row in lines:
        if None in row or None in row.values():
            raise InputError(f"--reference {path}, line {number}: must have {len(header)} values, as the header has")
        cells = {name: str(value).strip() for name, value in zip(header, row.values(), strict=True)}
        one = _reference(f"--reference {path}, line {number}", cells, metrics, trials, sources)
        key = (one.dataset, one.initialisation, one.shots, one.source)
        if key in found:
            raise InputError(
                f"--reference {path}, line {number}: {one.initialisation} on {one.dataset} at these shots of this "
                f"source stands in line {found[key][0]} already; keep one of them"
            )
        found[key] = (number, one)
    if not found:
        raise InputError(f"--reference {path}: holds no row under its header")
    return tuple(one for _, one in found.values())


def _check_header(path: Path, header: Sequence[str], trials: pd.DataFrame) -> dict[str, str]:
    """Return the metric of each column that is one."""
    known = [*METRIC_NAMES, *(f"{rate}@{t:g}" for rate in RATES for t in thresholds_of(trials, rate))]
    spelt = {name.replace("@", "_"): name for name in known} | {name: name for name in known}
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"--reference {path}, line 1: column {name!r} is there twice; rename or remove one")
        if name not in COLUMNS and name not in spelt:
            raise InputError(
                f"--reference {path}, line 1, column {name!r}: must be one of {', '.join([*COLUMNS, *known])}"
                f"{nearest(name, [*COLUMNS, *spelt])}"
            )
    lacking = [name for name in REQUIRED if name not in header]
    metrics = {name: spelt[name] for name in header if name in spelt}
    if lacking or not metrics:
        lacking = lacking or ["one of " + ", ".join(known)]
        raise InputError(f"--reference {path}, line 1: needs the column {lacking[0]}; it has {', '.join(header)}")
    return metrics


def _reference(
    place: str, cells: Mapping[str, str], metrics: Mapping[str, str], trials: pd.DataFrame, sources: dict[str, int]
) -> Reference:
    for name in REQUIRED:
        if not cells[name]:
            raise InputError(f"{place}, column {name!r}: must not be empty: {COLUMNS[name]}")
    datasets = sorted({str(plain(value)) for value in trials["dataset"]})
    dataset = cells["dataset"]
    if dataset not in datasets:
        raise InputError(
            f"{place}, column 'dataset': must be one of the run's, {', '.join(datasets)}; got {dataset!r}"
            f"{nearest(dataset, datasets)}"
        )
    units = sorted({str(unit) for unit in trials.loc[trials["dataset"] == dataset, "unit"].dropna()})
    if (unit := cells.get("unit")) and units and unit not in units:
        raise InputError(f"{place}, column 'unit': the run's {dataset} is in {units[0]}; got {unit!r}: convert the row")
    shots = cells["shots"]
    if shots != "all" and not (shots.isdecimal() and int(shots) > 0):
        raise InputError(f"{place}, column 'shots': must be a whole number from 1, or all; got {shots!r}")
    values = {
        metric: _number(place, name, cells[name], share=metric.startswith(RATES))
        for name, metric in metrics.items()
        if cells[name]
    }
    if not values:
        raise InputError(f"{place}: needs a number in one of the columns {', '.join(metrics)}")
    std = _number(place, "std", cells["std"], share=False) if cells.get("std") else None
    number = sources.setdefault(cells["source"], len(sources) + 1)
    return Reference(
        dataset, cells["initialisation"], None if shots == "all" else int(shots), values, std, cells["source"], number
    )


def _number(place: str, name: str, text: str, *, share: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    largest = 100.0 if share else math.inf
    if not (0 <= value <= largest and math.isfinite(value)):
        what = "a percentage from 0 to 100" if share else "a number from 0, with a point for decimals"
        raise InputError(f"{place}, column {name!r}: must be {what}, or empty; got {text!r}")
    if share and 0 < value < 1:
        raise InputError(
            f"{place}, column {name!r}: is a percentage: {100 * value:g} for a share of {text}; got {text!r}"
        )
    return value / 100 if share else value


def rows_of(references: Sequence[Reference], dataset: str, metric: Metric) -> dict[str, list[Reference]]:
    """Return the rows that a table or figure of a metric on a data set has, by their label."""
    found: dict[str, list[Reference]] = {}
    for one in references:
        if one.dataset == dataset and metric.name in one.values:
            found.setdefault(one.label, []).append(one)
    return found


def source_notes(references: Sequence[Reference]) -> tuple[str, ...]:
    """Return for each source that it was not run here, in the order of their numbers."""
    sources = sorted({(one.number, one.source) for one in references})
    return tuple(f"{MARK}{number} not run here: {source}" for number, source in sources)


@dataclass(frozen=True)
class Rows:
    """Rows of the literature for one table of initialisations by shots."""

    rows: tuple[tuple[Cell, ...], ...] = ()
    records: tuple[Mapping[str, object], ...] = ()
    notes: tuple[str, ...] = ()


def table_rows(
    references: Sequence[Reference], dataset: str, metric: Metric, columns: Sequence[Key], unit: str | None
) -> Rows:
    """Return what was published on a data set as rows of a table whose columns are numbers of shots."""
    shown = [key.value for key in columns]
    rows, records, elsewhere = [], [], []
    used = []
    for label, found in rows_of(references, dataset, metric).items():
        by_shots = {one.shots: one for one in found}
        others = [value_label("shots", shots) for shots in by_shots if shots not in shown]
        elsewhere += [f"{label} also at {', '.join(others)} shots, which this run has not."] if others else []
        if len(others) == len(by_shots):
            continue
        used += found
        rows.append((Cell(label), *(_cell(by_shots.get(_whole(shots)), metric) for shots in shown)))
        records += [
            {
                "metric": metric.name,
                "unit": metric.unit_text(unit, percent=False),
                "initialisation": one.initialisation,
                "shots": record_value("shots", one.shots),
                "mean": one.values[metric.name],
                "sd": one.std if metric.name == "mre" else None,
                "not_run_here": one.source,
            }
            for one in found
            if one.shots in shown
        ]
    return Rows(tuple(rows), tuple(records), (*(f"{note}." for note in source_notes(used)), *elsewhere))


def _whole(value: Value) -> int | None:
    return value if isinstance(value, int) else None


def _cell(one: Reference | None, metric: Metric) -> Cell:
    if one is None:
        return Cell("", None)
    spread = f" ± {metric.spread_text(one.std)}" if metric.name == "mre" and one.std is not None else ""
    return Cell(metric.text(one.values[metric.name]) + spread, one.values[metric.name])


REFERENCE_LOOK = "literature"
"""What decides the look of points of the literature in figures."""


def points_against_shots(
    references: Sequence[Reference], dataset: str, metric: Metric, all_shots: float
) -> tuple[list[Line], tuple[str, ...]]:
    """Return the points of a figure against shots that were published on its data set, and their sources."""
    found = rows_of(references, dataset, metric)
    lines = []
    for style, (label, several) in enumerate(found.items()):
        points = [(float(all_shots if one.shots is None else one.shots), one) for one in several]
        points.sort(key=lambda point: point[0])
        lines.append(_points(
            label, style, [x for x, _ in points], [metric.scale * one.values[metric.name] for _, one in points],
            [f"{value_label('shots', one.shots)} shots, not run here: {one.source}" for _, one in points],
        ))  # fmt: skip
    return lines, source_notes([one for several in found.values() for one in several])


def points_of_rates(
    references: Sequence[Reference], dataset: str, rates: Sequence[Metric], shots: Value
) -> tuple[list[Line], tuple[str, ...]]:
    """Return the success detection rates that were published on a data set at a number of shots, and their sources."""
    found: dict[str, list[tuple[float, float, Reference]]] = {}
    for metric in rates:
        for label, several in rows_of(references, dataset, metric).items():
            found.setdefault(label, []).extend(
                (metric.threshold or 0.0, metric.scale * one.values[metric.name], one)
                for one in several
                if one.shots == shots
            )
    there = {label: points for label, points in found.items() if points}
    lines = [
        _points(
            label, style, [x for x, _, _ in points], [y for _, y, _ in points],
            [f"{x:g}, not run here: {one.source}" for x, _, one in points],
        )
        for style, (label, points) in enumerate(there.items())
    ]  # fmt: skip
    return lines, source_notes([one for points in there.values() for _, _, one in points])


def _points(label: str, style: int, x: Sequence[float], y: Sequence[float], hover: Sequence[str]) -> Line:
    return Line(label, f"{REFERENCE_LOOK} {style}", style, tuple(x), tuple(y), hover=tuple(hover), mark="points")
