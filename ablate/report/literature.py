"""Rows of the literature beside a run: numbers that were published, not run here.

A CSV file has a row for each data set, initialisation and number of shots, with the columns of `COLUMNS` and one for
each metric: `mre`, `mre_median`, `paper_mre`, `sdr@2` (or `sdr_2`), `paper_sdr@2.5`. Those that begin with `paper_` are
by the published protocol (`ablate.network.metrics`), the others physical; `protocol` says in words how a row was
evaluated.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ablate.errors import InputError, nearest
from ablate.report.chart_kinds import Line
from ablate.report.grouping import Value, plain, value_label
from ablate.report.metrics import METRICS, RATES, Metric, rate_metric, thresholds_of

REQUIRED = ("dataset", "initialisation", "shots", "source")
COLUMNS = {
    "dataset": "as in the run",
    "initialisation": "name of the row",
    "shots": "annotated training images, or all",
    "source": "where the numbers were published",
    "protocol": "how they were evaluated, as published",
    "unit": "mm or px, which must be the run's",
    "std": "standard deviation of the mre over seeds",
}
"""Columns that are no metric, and what they hold; those that are not `REQUIRED` may be left out."""

METRIC_NAMES = ("mre", "mre_median", "paper_mre")
MARK = "§"
"""Mark of what was not run here, with the number of its source and protocol."""


@dataclass(frozen=True)
class Reference:
    """Published numbers of one initialisation on one data set at one number of shots."""

    dataset: str
    initialisation: str
    shots: int | None  # None: all
    values: Mapping[str, float]  # by metric, in the table's unit; rates from 0 to 1
    std: float | None  # of the mre over seeds
    source: str
    protocol: str  # empty: none was given
    number: int  # of the source and protocol
    file: str  # where it stands, as messages name it
    line: int

    @property
    def mark(self) -> str:
        """What points to its source and protocol: `§1`."""
        return f"{MARK}{self.number}"

    @property
    def label(self) -> str:
        """The row's name: `DDPM §1`."""
        return f"{self.initialisation} {self.mark}"


@dataclass(frozen=True)
class File:
    """A CSV file with rows of the literature, as bytes."""

    place: str  # as messages name it
    content: bytes


@dataclass(frozen=True)
class Known:
    """What a run has that published rows must fit."""

    units: Mapping[str, str | None]  # by data set; None: not known yet
    metrics: tuple[str, ...]

    @classmethod
    def of(cls, trials: pd.DataFrame, described: Mapping[str, Any]) -> Known:
        """Return what a run has, also one without a finished trial.

        Args:
            trials: the table `trials`, with a row for each planned trial.
            described: what `run.yaml` says.
        """
        data = described.get("data")
        named = data.items() if isinstance(data, Mapping) else ()
        facts = {str(name): each for name, each in named if isinstance(each, Mapping)}
        units: dict[str, str | None] = {}
        for dataset in sorted({str(plain(value)) for value in trials["dataset"]}):
            measured = sorted({str(unit) for unit in trials.loc[trials["dataset"] == dataset, "unit"].dropna()})
            units[dataset] = measured[0] if measured else facts.get(dataset, {}).get("unit")
        planned = {float(value) for name in units for value in facts.get(name, {}).get("sdr_thresholds") or ()}
        rates = [f"{rate}@{t:g}" for rate in RATES for t in sorted(planned | set(thresholds_of(trials, rate)))]
        return cls(units, (*METRIC_NAMES, *rates))


def read_references(files: Iterable[File], known: Known) -> tuple[Reference, ...]:
    """Read rows of the literature for a run; sources are numbered over all files.

    Args:
        files: the CSV files, in their order.
        known: what the run has.

    Raises:
        InputError: a file is no CSV in UTF-8, a line does not fit, or a row stands in two places; the message names
            file, line, column and cure.
    """
    numbers: dict[tuple[str, str], int] = {}
    found: dict[tuple[object, ...], Reference] = {}
    for file in files:
        for one in _rows_of_file(file, known, numbers):
            first = found.setdefault((one.dataset, one.initialisation, one.shots, one.number), one)
            if first is not one:
                own = first.file == one.file
                where = f"line {first.line} already" if own else f"{first.file}, line {first.line}, already"
                raise InputError(
                    f"{one.file}, line {one.line}: {one.initialisation} on {one.dataset} at these shots of this source "
                    f"stands in {where}; keep one of them{'' if own else ', in one of the two files'}"
                )
    return tuple(found.values())


def _rows_of_file(file: File, known: Known, numbers: dict[tuple[str, str], int]) -> list[Reference]:
    """Return the rows of a file."""
    try:
        text = file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file.place}: must be a CSV file in UTF-8; {error}") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{file.place}, line {reader.line_num}: is no CSV: {error}") from error
    metrics = _check_header(file.place, header, known)
    found = []
    for number, row in lines:
        if None in row or None in row.values():
            raise InputError(f"{file.place}, line {number}: must have {len(header)} values, as the header has")
        cells = {name: str(value).strip() for name, value in zip(header, row.values(), strict=True)}
        found.append(_reference(file.place, number, cells, metrics, known, numbers))
    if not found:
        raise InputError(f"{file.place}: holds no row under its header")
    return found


def _check_header(place: str, header: Sequence[str], known: Known) -> dict[str, str]:
    """Return the metric of each column that is one."""
    spelt = {name.replace("@", "_"): name for name in known.metrics} | {name: name for name in known.metrics}
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{place}, line 1: column {name!r} is there twice; rename or remove one")
        if name not in COLUMNS and name not in spelt:
            raise InputError(
                f"{place}, line 1, column {name!r}: must be one of {', '.join([*COLUMNS, *known.metrics])}"
                f"{nearest(name, [*COLUMNS, *spelt])}"
            )
    lacking = [name for name in REQUIRED if name not in header]
    metrics = {name: spelt[name] for name in header if name in spelt}
    if lacking or not metrics:
        lacking = lacking or ["one of " + ", ".join(known.metrics)]
        raise InputError(f"{place}, line 1: needs the column {lacking[0]}; it has {', '.join(header)}")
    return metrics


def _reference(
    file: str,
    line: int,
    cells: Mapping[str, str],
    metrics: Mapping[str, str],
    known: Known,
    numbers: dict[tuple[str, str], int],
) -> Reference:
    place = f"{file}, line {line}"
    for name in REQUIRED:
        if not cells[name]:
            raise InputError(f"{place}, column {name!r}: must not be empty: {COLUMNS[name]}")
    dataset = cells["dataset"]
    if dataset not in known.units:
        raise InputError(
            f"{place}, column 'dataset': must be one of the run's, {', '.join(known.units)}; got {dataset!r}"
            f"{nearest(dataset, known.units)}"
        )
    own = known.units[dataset]
    if (unit := cells.get("unit")) and own and unit != own:
        raise InputError(f"{place}, column 'unit': the run's {dataset} is in {own}; got {unit!r}: convert the row")
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
    rates = {
        name: 100 * values[metric] for name, metric in metrics.items() if metric in values and metric.startswith(RATES)
    }
    if rates and 0 < max(rates.values()) < 1:  # beside a larger rate it can be one below 1 %
        name = next(name for name, rate in rates.items() if rate)
        raise InputError(
            f"{place}, column {name!r}: is a percentage: {100 * rates[name]:g} for a share of {cells[name]}; "
            f"got {cells[name]!r}"
        )
    std = _number(place, "std", cells["std"], share=False) if cells.get("std") else None
    source, protocol = cells["source"], cells.get("protocol", "")
    return Reference(
        dataset, cells["initialisation"], None if shots == "all" else int(shots), values, std, source, protocol,
        numbers.setdefault((source, protocol), len(numbers) + 1), file, line,
    )  # fmt: skip


def _number(place: str, name: str, text: str, *, share: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    largest = 100.0 if share else math.inf
    if not (0 <= value <= largest and math.isfinite(value)):
        what = "a percentage from 0 to 100" if share else "a number from 0, with a point for decimals"
        raise InputError(f"{place}, column {name!r}: must be {what}, or empty; got {text!r}")
    return value / 100 if share else value


def rows_of(references: Sequence[Reference], dataset: str, metric: Metric) -> dict[str, list[Reference]]:
    """Return the rows that a table or figure of a metric on a data set has, by their label."""
    found: dict[str, list[Reference]] = {}
    for one in references:
        if one.dataset == dataset and metric.name in one.values:
            found.setdefault(one.label, []).append(one)
    return found


def metrics_of(references: Iterable[Reference]) -> list[Metric]:
    """Return every metric that was published, in the order of the files' columns."""
    found = []
    for name in dict.fromkeys(name for one in references for name in one.values):
        column, _, threshold = name.partition("@")
        found.append(rate_metric(column, float(threshold)) if threshold else METRICS[name])
    return found


def source_notes(references: Iterable[Reference]) -> tuple[str, ...]:
    """Return for each source that it was not run here, and by which protocol, in the order of their numbers."""
    return tuple(dict.fromkeys(_note(one) for one in sorted(references, key=lambda one: one.number)))


def _note(one: Reference) -> str:
    protocol = f"protocol: {one.protocol}" if one.protocol else "no protocol was given"
    return f"{one.mark} not run here: {one.source}; {protocol}"


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
