"""A metric's mean and standard deviation over seeds, along any two fields of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ablate.report.conditions import SINGLE, SINGLE_NOTE, single_rows
from ablate.report.grouping import (
    INITIALISATION,
    MISSING,
    SEED_FIELDS,
    Group,
    Grouping,
    Key,
    field_label,
    plain,
    record_value,
)
from ablate.report.intervals import Intervals
from ablate.report.literature import Reference
from ablate.report.mean_shapes import LABEL, NO_BETTER_NOTE, mark, mean_shapes
from ablate.report.metrics import MEAN_SHAPE, Metric, metric_of, metric_values
from ablate.report.noise_levels import LEVEL_FIELDS, TIMESTEPS, NoiseLevels
from ablate.report.paper_pixels import PAPER_RATE, PIXEL_FIELDS, pixel_notes
from ablate.report.published import Rows, against_tables, table_rows
from ablate.report.render import Cell, Table, check_format, render_table, slug, unique_names
from ablate.report.selection import lay_out_trials
from ablate.stats.samples import over_seeds
from ablate.words import counted


@dataclass(frozen=True)
class Summary:
    """One cell: the trials behind it, and what they say."""

    mean: float | None
    sd: float | None  # over trials (n - 1); None with fewer than two
    values: tuple[float, ...]  # of the finished trials
    num_failed: int
    num_missing: int  # planned, no result yet
    trials: tuple[int, ...]  # positions in `Pivot.grouping.trials`

    @property
    def num(self) -> int:
        """Trials behind the mean."""
        return len(self.values)


@dataclass(frozen=True)
class PivotTable:
    """One table of a pivot: trials that differ in nothing but the axes and the seeds."""

    group: Group
    unit: str | None  # of the trials, if they share one
    cells: Mapping[tuple[Key, Key], Summary]
    mean_shapes: Mapping[Key, tuple[float, ...]]  # by column, see `mean_shapes`


@dataclass(frozen=True)
class Pivot:
    """A metric along two fields of the trials."""

    metric: Metric
    grouping: Grouping
    tables: tuple[PivotTable, ...]
    references: tuple[Reference, ...] = ()  # of the literature; they stand in tables of initialisations by shots
    intervals: Intervals | None = None  # of the run, for differences to the literature

    @property
    def published(self) -> tuple[Reference, ...]:
        """The rows of the literature that its tables can have."""
        axes = (self.grouping.rows, self.grouping.columns)
        return self.references if axes == (INITIALISATION, "shots") else ()


def pivot(
    trials: pd.DataFrame,
    *,
    metric: str = "mre",
    rows: str = INITIALISATION,
    columns: str = "shots",
    filters: Sequence[str] = (),
    best_by: str | None = None,
    references: Sequence[Reference] = (),
    intervals: Intervals | None = None,
) -> Pivot:
    """Return mean and standard deviation of a metric over all trials that agree but for their seeds.

    Args:
        trials: the table `trials`; rows with status `missing` stand for planned trials.
        metric: a numeric column of `trials`, `sdr@2.5` or `paper_sdr@2`.
        rows: field down the side.
        columns: field across.
        filters: `FIELD=VALUE` texts.
        best_by: `val_mre` or `val_loss`: of several settings in one cell the best on the validation images.
        references: rows of the literature.
        intervals: of the run, for differences to the literature.

    Raises:
        InputError: an unknown metric, field or value; the message names the nearest.
    """
    chosen = metric_of(trials, metric)
    grouping, _ = lay_out_trials(trials, rows=rows, columns=columns, filters=filters, best_by=best_by)
    return pivot_of(grouping, chosen, references, intervals)


def pivot_of(
    grouping: Grouping, metric: Metric, references: Sequence[Reference] = (), intervals: Intervals | None = None
) -> Pivot:
    """Return a metric of trials that are laid out already."""
    values = metric_values(grouping.trials, metric)
    status = [str(plain(value)) for value in grouping.trials["status"]]
    units = [plain(value) for value in grouping.trials["unit"]]
    tables = []
    for group in grouping.groups:
        cells = {key: _summary(positions, values, status) for key, positions in group.cells.items()}
        found = {str(units[p]) for positions in group.cells.values() for p in positions if units[p] is not None}
        unit = found.pop() if len(found) == 1 else None
        tables.append(PivotTable(group, unit, cells, mean_shapes(grouping, group, metric)))
    return Pivot(metric, grouping, tuple(tables), tuple(references), intervals)


def _summary(positions: Sequence[int], values: Sequence[float | None], status: Sequence[str]) -> Summary:
    present = tuple(value for p in positions if status[p] == "finished" and (value := values[p]) is not None)
    over = over_seeds(list(present))
    return Summary(
        mean=over.mean,
        sd=over.sd,
        values=present,
        num_failed=sum(status[p] == "failed" for p in positions),
        num_missing=sum(status[p] == MISSING for p in positions),
        trials=tuple(positions),
    )


def render(pivot: Pivot, format: str = "github") -> str:
    """Return all tables of a pivot as text, then those of its differences to the literature.

    Args:
        pivot: what `pivot` returned.
        format: `github`, `latex` (booktabs), `csv` (unrounded mean, sd and counts, and differences to the literature),
            `plain` or `simple`.

    Raises:
        InputError: an unknown format.
    """
    form = check_format(format)
    tables = as_tables(pivot)
    if form == "csv" and tables:  # one table: a header stands once
        records = tuple(record for table in tables for record in table.records)
        return render_table(replace(tables[0], records=records), form)
    shown = [*tables, *differences_of(pivot)]
    return "\n".join(render_table(table, form) for table in shown) if shown else "no trials\n"


def differences_of(pivot: Pivot) -> list[Table]:
    """Return the tables of a pivot's differences to the literature; the records of its own tables have them too."""
    return list(against_tables(pivot.grouping, [pivot.metric], pivot.published, pivot.intervals))


def as_tables(
    pivot: Pivot,
    marks: Mapping[tuple[int, Key, Key], str] | None = None,
    notes: Mapping[int, Sequence[str]] | None = None,
) -> list[Table]:
    """Return the tables of a pivot for people and machines.

    Args:
        pivot: what `pivot` returned.
        marks: `best` or `tied` by number of the table, row and column.
        notes: sentences to add under a table, by its number.
    """
    under = notes or {}
    return unique_names(
        [_table(pivot, number, table, marks or {}, under.get(number, ())) for number, table in enumerate(pivot.tables)]
    )


def _table(
    pivot: Pivot, number: int, table: PivotTable, marks: Mapping[tuple[int, Key, Key], str], notes: Sequence[str]
) -> Table:
    metric, grouping, group = pivot.metric, pivot.grouping, table.group
    counts = [cell.num for cell in table.cells.values()]
    usual = max(set(counts), key=lambda n: (counts.count(n), n), default=0)
    body = []
    worse = False
    single = single_rows(grouping, group)
    has_levels = TIMESTEPS in (grouping.rows, grouping.columns)
    levels = NoiseLevels.of(_trials_of(pivot, table, LEVEL_FIELDS)) if has_levels else NoiseLevels({})
    constants = {column: _over(values) for column, values in table.mean_shapes.items()}
    records: list[dict[str, object]] = []
    for row in group.rows:
        label = _label(grouping.rows, row, grouping, table, levels)
        line = [Cell(f"{label} {SINGLE}" if row in single else label, row.label(grouping.rows))]
        for column in group.columns:
            cell = table.cells.get((row, column))
            if cell is None:
                line.append(Cell("", None))
                continue
            found = marks.get((number, row, column))
            text = _text(cell, metric, usual)
            if below := mark(metric, cell.mean, constants[column].mean if column in constants else None):
                text, worse = text + below, True
            shown = Cell(text, cell.mean, best=found == "best", tied=found == "tied")
            line.append(shown)
            records.append(_record(pivot, table, row, column, cell))
        body.append(tuple(line))
    if constants:
        by_column = (constants.get(column) for column in group.columns)
        body.append((Cell(LABEL, MEAN_SHAPE), *(_constant_cell(constant, metric) for constant in by_column)))
        records += [_record(pivot, table, Key(MEAN_SHAPE), column, constants[column]) for column in constants]
    published = _published(pivot, table)
    body += published.rows
    records += [{**_renamed(record, grouping), **dict(group.fixed)} for record in published.records]
    fixed = group.title
    caption = (
        f"{metric.titled(table.unit)} by {field_label(grouping.rows)} and {field_label(grouping.columns)}"
        f"{f': {fixed}' if fixed else ''}. Mean ± standard deviation over "
        f"{_averaged(grouping)}; "
        f"n = {counted(usual, 'trial')} where no other number is given."
    )
    header = (
        field_label(grouping.rows),
        *(_label(grouping.columns, column, grouping, table, levels) for column in group.columns),
    )
    axes = (grouping.rows, grouping.columns)
    default_axes = axes == (INITIALISATION, "shots")
    file = slug(metric.name, *(() if default_axes else axes), *(str(value) for _, value in group.fixed))
    return Table(
        file,
        caption,
        header,
        tuple(body),
        tuple(records),
        (
            *grouping.notes, *group.notes, *notes, *([levels.note] * has_levels), *([SINGLE_NOTE] * bool(single)),
            *([NO_BETTER_NOTE] * worse),
            *(pixel_notes(_trials_of(pivot, table, PIXEL_FIELDS), metric) if metric.column == PAPER_RATE else ()),
            *published.notes,
        ),
    )  # fmt: skip


def _trials_of(pivot: Pivot, table: PivotTable, columns: Sequence[str]) -> pd.DataFrame:
    shown = pivot.grouping.trials[list(columns)]
    return shown.iloc[[p for positions in table.group.cells.values() for p in positions]]


def _published(pivot: Pivot, table: PivotTable) -> Rows:
    """Return the rows of the literature of a table of initialisations by shots."""
    if not pivot.published or not table.group.cells:
        return Rows()
    return table_rows(pivot.published, pivot.grouping, table.group, pivot.metric, table.unit, pivot.intervals)


def _renamed(record: Mapping[str, object], grouping: Grouping) -> dict[str, object]:
    return {grouping.rows if name == "initialisation" else name: value for name, value in record.items()}


def _over(values: tuple[float, ...]) -> Summary:
    over = over_seeds(list(values))
    return Summary(over.mean, over.sd, values, num_failed=0, num_missing=0, trials=())


def _constant_cell(constant: Summary | None, metric: Metric) -> Cell:
    return Cell("", None) if constant is None else Cell(_text(constant, metric, constant.num), constant.mean)


def _averaged(grouping: Grouping) -> str:
    names = {"seed": "seeds", "pretrain_seed": "seeds of the pre-training", "draw": "draws of the shots"}
    varied = [names[field] for field in SEED_FIELDS if grouping.trials[field].nunique() > 1]
    return " and ".join(varied) or "seeds"


def _text(cell: Summary, metric: Metric, usual: int) -> str:
    if cell.mean is None:
        text = "–"
    else:
        text = metric.text(cell.mean) + (f" ± {metric.spread_text(cell.sd)}" if cell.sd is not None else "")
    parts = [f"n={cell.num}"] if cell.num != usual or cell.num_failed or cell.num_missing else []
    parts += [f"{cell.num_failed} failed"] if cell.num_failed else []
    parts += [f"{cell.num_missing} missing"] if cell.num_missing else []
    return f"{text} ({', '.join(parts)})" if parts else text


def _label(axis: str, key: Key, grouping: Grouping, table: PivotTable, levels: NoiseLevels) -> str:
    """Name the signal left beside timesteps, and the unit beside a data set where a table holds several units."""
    label = key.label(axis)
    if axis == TIMESTEPS and isinstance(key.value, int):
        return levels.label(key.value)
    if axis != "dataset" or table.unit is not None:
        return label
    here = grouping.trials["dataset"] == key.value
    units = grouping.trials.loc[here, "unit"].dropna().unique()
    return f"{label} [{units[0]}]" if len(units) == 1 else label


def _record(pivot: Pivot, table: PivotTable, row: Key, column: Key, cell: Summary) -> dict[str, object]:
    grouping = pivot.grouping
    record: dict[str, object] = {"metric": pivot.metric.name, "unit": pivot.metric.unit_text(table.unit, percent=False)}
    record |= dict(table.group.fixed)
    for axis, key in ((grouping.rows, row), (grouping.columns, column)):
        record[axis] = record_value(axis, key.value)
        record |= dict(key.variant)
    return record | {
        "mean": cell.mean,
        "sd": cell.sd,
        "n": cell.num,
        "failed": cell.num_failed,
        "missing": cell.num_missing,
    }
