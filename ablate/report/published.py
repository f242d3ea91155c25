"""Published results in tables: as rows that are marked as not run here, and beside what the run reached.

A published row is compared with the run's row of the same name on the same data set, at the same number of shots and by
the same metric. The published number is taken as exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablate.report.conditions import CONDITIONAL, SINGLE, SINGLE_NOTE, is_tuned, single_rows
from ablate.report.grouping import (
    INITIALISATION,
    Group,
    Grouping,
    Key,
    Value,
    field_label,
    plain,
    record_value,
    value_label,
)
from ablate.report.intervals import Intervals
from ablate.report.literature import Reference, rows_of, source_notes
from ablate.report.metrics import Metric, metric_values
from ablate.report.render import Cell, Table, slug
from ablate.stats import coverage_note
from ablate.stats.samples import over_seeds


@dataclass(frozen=True)
class Difference:
    """What the run reached where a number was published, in the table's unit; rates from 0 to 1."""

    row: Key
    reference: Reference
    metric: Metric
    run: float  # mean over seeds
    lower: float | None  # limits of its 95 % interval
    upper: float | None
    num_seeds: int  # units behind it, see `Estimate.num_seeds`

    @property
    def published(self) -> float:
        """The published number."""
        return self.reference.values[self.metric.name]

    @property
    def value(self) -> float:
        """Run minus published."""
        return self.run - self.published

    @property
    def limits(self) -> tuple[float, float] | None:
        """The run's interval less the published number; None where it has none."""
        if self.lower is None or self.upper is None:
            return None
        return self.lower - self.published, self.upper - self.published

    @property
    def text(self) -> str:
        """For instance `+0.35 [-0.20, +0.90]`; with one seed, or without an interval, just the number."""
        limits = self.limits if self.num_seeds > 1 else None  # an interval over images alone would look like a test
        value, *ends = (self._signed(number) for number in (self.value, *(limits or ())))
        return f"{value} [{', '.join(ends)}]" if ends else value

    def _signed(self, number: float) -> str:
        return f"{number * self.metric.scale:+.{self.metric.digits}f}"

    @property
    def record(self) -> dict[str, object]:
        """The same as columns of a table for machines, unrounded."""
        lower, upper = self.limits or (None, None)
        return {
            "run_minus_published": self.value,
            "run_minus_published_lower": lower,
            "run_minus_published_upper": upper,
        }


def dataset_of(grouping: Grouping, group: Group) -> str:
    """Return the data set of a table of which it is no axis."""
    return str(plain(grouping.trials["dataset"].iloc[next(iter(group.cells.values()))[0]]))


def differences(
    references: Sequence[Reference], grouping: Grouping, group: Group, metric: Metric, intervals: Intervals | None
) -> tuple[Difference, ...]:
    """Return what the run reached for each published number that it has a result for.

    Args:
        references: rows of the literature.
        grouping: initialisations by shots.
        group: one of its tables.
        metric: what is compared.
        intervals: of the run; None: numbers alone.
    """
    dataset = dataset_of(grouping, group)
    there = [one for several in rows_of(references, dataset, metric).values() for one in several]
    if not there:
        return ()
    values = metric_values(grouping.trials, metric)
    return tuple(
        found
        for row in group.rows
        for column in group.columns
        for one in there
        if row.label(INITIALISATION) == one.initialisation and column.value == one.shots
        if (found := _difference(one, row, metric, grouping, group.cells.get((row, column), ()), values, intervals))
    )


def _difference(
    one: Reference,
    row: Key,
    metric: Metric,
    grouping: Grouping,
    positions: Sequence[int],
    values: Sequence[float | None],
    intervals: Intervals | None,
) -> Difference | None:
    trials = grouping.trials.iloc[list(positions)]
    sample = intervals.sample(trials) if intervals is not None else None
    estimate = intervals.of(sample, metric) if intervals is not None and sample is not None else None
    if estimate is not None and estimate.value is not None:
        return Difference(row, one, metric, estimate.value, estimate.lower, estimate.upper, estimate.num_seeds)
    finished = [str(status) == "finished" for status in trials["status"]]
    own = (values[p] for p, done in zip(positions, finished, strict=True) if done)
    over = over_seeds([value for value in own if value is not None])
    return None if over.mean is None else Difference(row, one, metric, over.mean, None, None, over.num_seeds)


# --- as rows beside the run's own -------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows of the literature for one table of initialisations by shots."""

    rows: tuple[tuple[Cell, ...], ...] = ()
    records: tuple[Mapping[str, object], ...] = ()
    notes: tuple[str, ...] = ()


def table_rows(
    references: Sequence[Reference],
    grouping: Grouping,
    group: Group,
    metric: Metric,
    unit: str | None,
    intervals: Intervals | None,
) -> Rows:
    """Return what was published on a table's data set as rows of it; `intervals` as in `differences`."""
    shown = [key.value for key in group.columns]
    found = differences(references, grouping, group, metric, intervals)
    own = {(one.reference.label, one.reference.shots): one.record for one in found}
    rows, records, elsewhere = [], [], []
    used: list[Reference] = []
    for label, several in rows_of(references, dataset_of(grouping, group), metric).items():
        by_shots = {one.shots: one for one in several}
        others = [value_label("shots", shots) for shots in by_shots if shots not in shown]
        elsewhere += [f"{label} also at {', '.join(others)} shots, which this run has not."] if others else []
        if len(others) == len(by_shots):
            continue
        used += several
        rows.append((Cell(label), *(_cell(by_shots.get(_whole(shots)), metric) for shots in shown)))
        records += [
            {
                "metric": metric.name,
                "unit": metric.unit_text(unit, percent=False),
                "initialisation": one.initialisation,
                "shots": record_value("shots", one.shots),
                "mean": one.values[metric.name],
                "sd": one.std if metric.name == "mre" else None,
                **_source(one),
                **own.get((label, one.shots), {}),
            }
            for one in several
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


def _source(one: Reference) -> dict[str, object]:
    return {"not_run_here": one.source, "protocol": one.protocol or None}


# --- as differences ---------------------------------------------------------------------------------


PUBLISHED_NOTE = (
    "Published numbers are taken as exact, also those that were published with a spread over seeds, and nothing was "
    "tested. What was evaluated by another protocol than this run's metric of its name differs for that reason too."
)
"""What a reader must know of every difference to a published number."""


def against_tables(
    grouping: Grouping, metrics: Sequence[Metric], references: Sequence[Reference], intervals: Intervals | None
) -> Iterator[Table]:
    """Yield run minus published, a table for each of a grouping that has something to compare.

    Args:
        grouping: initialisations by shots.
        metrics: what is compared, in their order.
        references: rows of the literature.
        intervals: see `differences`.
    """
    for group in grouping.groups if references else ():
        found = [one for metric in metrics for one in differences(references, grouping, group, metric, intervals)]
        if found:
            yield _against_table(grouping, group, found, intervals.num_resamples if intervals else 0)


def _against_table(grouping: Grouping, group: Group, found: Sequence[Difference], num_resamples: int) -> Table:
    dataset = dataset_of(grouping, group)
    others = [f"{field_label(name)} {value_label(name, value)}" for name, value in group.fixed if name != "dataset"]
    title = ", ".join([dataset, *others])
    members = [p for positions in group.cells.values() for p in positions]
    units = {str(unit) for unit in grouping.trials["unit"].iloc[members].dropna()}
    unit = units.pop() if len(units) == 1 else None
    single = single_rows(grouping, group)
    rows, records = [], []
    for one in found:
        reference, metric = one.reference, one.metric
        shots = reference.shots
        rows.append((
            Cell(metric.titled(unit), metric.name),
            Cell(f"{reference.label} {SINGLE}" if one.row in single else reference.label, reference.label),
            Cell(value_label("shots", shots), math.inf if shots is None else shots),
            Cell(metric.text(one.run), one.run),
            Cell(metric.text(one.published), one.published),
            Cell(one.text, one.value),
            Cell(f"{one.num_seeds}", one.num_seeds),
        ))  # fmt: skip
        records.append({
            "dataset": dataset,
            **dict(group.fixed),
            "metric": metric.name,
            "unit": metric.unit_text(unit, percent=False),
            "initialisation": reference.initialisation,
            "shots": record_value("shots", shots),
            "run": one.run,
            "run_lower": one.lower,
            "run_upper": one.upper,
            "seeds": one.num_seeds,
            "published": one.published,
            **one.record,
            **_source(reference),
        })  # fmt: skip
    return Table(
        slug("against-published", title),
        f"Against published numbers: run minus published, where both have the same initialisation, shots and metric: "
        f"{title}.",
        ("metric", "initialisation", "shots", "this run", "published", "run minus published", "seeds"),
        tuple(rows),
        tuple(records),
        (*_notes(found, num_resamples), *grouping.notes, *group.notes,
         *([SINGLE_NOTE] if any(one.row in single for one in found) else [])),
        text_columns=3,
    )  # fmt: skip


def _notes(found: Sequence[Difference], num_resamples: int) -> Iterator[str]:
    """Yield what the numbers and intervals of a table are, and where they were published."""
    having = [one for one in found if one.limits is not None]
    if shown := [one.num_seeds for one in having if one.num_seeds > 1]:
        yield (
            "In brackets: the 95 % interval of the run's number, less the published one, by crossed bootstrap over "
            f"seeds and test images, {num_resamples} replicates."
        )
        yield coverage_note(min(shown))
    if len(shown) < len(having):
        yield "No interval of one seed: it would be over test images alone, and look like a test. The CSV has it."
    if len(having) < len(found):
        yield "Intervals are of the MRE and the SDR, where something varies; the median and paper_ metrics have none."
    yield PUBLISHED_NOTE
    if any(one.metric.unit == "%" for one in found):
        yield "Differences of percentages are in percentage points."
    yield from (f"{note}." for note in source_notes(one.reference for one in found))
    if any(is_tuned(one.row) for one in found):
        yield CONDITIONAL
