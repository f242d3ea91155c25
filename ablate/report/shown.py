"""Tables and figures of a run as a notebook shows them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from ablate.errors import InputError
from ablate.report.axis_charts import axis_charts, figure_of
from ablate.report.chart_kinds import LineChart
from ablate.report.figures import FORMATS, draw, files_of
from ablate.report.folds import shows_folds
from ablate.report.intervals import Intervals
from ablate.report.kept import kept_names, references_of
from ablate.report.pivot import Pivot, as_tables, differences_of, pivot, render
from ablate.report.run_data import read_run, read_trials
from ablate.report.style import Print
from ablate.store import Store


@dataclass(frozen=True, eq=False, repr=False)
class ShownTable:
    """A metric over two fields: printed as text, shown by a notebook as a table."""

    pivot: Pivot

    @property
    def frame(self) -> pd.DataFrame:
        """The same numbers, unrounded, a row for each cell."""
        return pd.DataFrame([dict(record) for table in as_tables(self.pivot) for record in table.records])

    def render(self, format: str = "github") -> str:
        """Return the table as `github`, `latex`, `csv`, `plain` or `simple`; raise `InputError` for another format."""
        return render(self.pivot, format)

    def __repr__(self) -> str:
        return render(self.pivot, "plain").rstrip("\n")

    def _repr_html_(self) -> str:
        parts = []
        for table in [*as_tables(self.pivot), *differences_of(self.pivot)]:
            head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
            rows = "".join(f"<tr>{''.join(f'<td>{escape(cell.text)}</td>' for cell in row)}</tr>" for row in table.rows)
            notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
            parts.append(
                f"<table><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>"
                f"<tbody>{rows}</tbody></table>{notes}"
            )
        return "".join(parts) or "no trials"


@dataclass(frozen=True, eq=False, repr=False)
class ShownFigure:
    """One or several charts: printed as their numbers, shown by a notebook as pictures."""

    charts: tuple[LineChart, ...]
    style: Print

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the figure as PNG, SVG or PDF, by the ending; of several charts each gets its name into the file's.

        Raises:
            InputError: another ending.
        """
        path = Path(path)
        form = next((form for form in FORMATS if path.suffix.lower() == f".{form}"), None)
        if form is None:
            raise InputError(f"a figure is saved as one of {', '.join(FORMATS)}; got the ending of {path.name!r}")
        names = [path.stem if len(self.charts) == 1 else f"{path.stem}-{chart.name}" for chart in self.charts]
        found = tuple(path.with_name(f"{name}{path.suffix}") for name in names)
        for one, chart in zip(found, self.charts, strict=True):
            one.write_bytes(files_of(draw(chart, self.style), self.style)[form])
        return found

    def __repr__(self) -> str:
        return "\n\n".join(_words(chart) for chart in self.charts)

    def _repr_html_(self) -> str:
        return "".join(
            f"<figure>{files_of(draw(chart, self.style), self.style)['svg'].decode().partition('?>')[2]}"
            f"<figcaption>{escape(f'{chart.title}. {chart.note}')}</figcaption></figure>"
            for chart in self.charts
        )


def _words(chart: LineChart) -> str:
    lines = [f"{chart.title}: {chart.y_label} against {chart.x_label}"]
    labels = dict(chart.x_ticks)
    for line in chart.lines:
        points = []
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            limits = (
                f" [{line.lower[i]:.4g}, {line.upper[i]:.4g}]" if line.lower and line.lower[i] == line.lower[i] else ""
            )
            points.append(f"{labels.get(x, f'{x:.4g}')}: {y:.4g}{limits}")
        lines.append(f"  {line.label}  {', '.join(points)}")
    return "\n".join([*lines, chart.note])


def show_table(
    store: Store,
    metric: str,
    *,
    rows: str,
    columns: str,
    filters: Sequence[str],
    best_by: str | None,
    reference: Path | None,
) -> ShownTable:
    """Return a metric over two fields; arguments and refusals are those of `ablate.report.pivot.pivot`.

    Published results stand in it that the run keeps, and those of the file `reference`, see `references_of`.
    """
    pooled = not shows_folds(rows, columns, filters)
    show = functools.partial(pivot, metric=metric, rows=rows, columns=columns, filters=filters, best_by=best_by)
    if reference is None and not kept_names(store):  # then nothing needs the errors of single images
        return ShownTable(show(read_trials(store, pooled=pooled)))
    run = read_run(store, pooled=pooled)
    return ShownTable(show(run.trials, references=references_of(run, reference), intervals=Intervals(run)))


def show_figure(
    store: Store,
    metric: str,
    axis: str,
    *,
    filters: Sequence[str],
    best_by: str | None,
    reference: Path | None,
    style: Print,
) -> ShownFigure:
    """Return a metric against an axis; arguments and refusals are those of `ablate.report.axis_charts`."""
    run = read_run(store)
    figure = figure_of(run.trials, f"{metric}:{axis}")
    references = references_of(run, reference)
    charts = axis_charts(run, Intervals(run), figure, filters=filters, best_by=best_by, references=references)
    found = tuple(charts)
    if not found:
        raise InputError(f"--figure {metric}:{axis}: no initialisation has results at two points of the axis")
    return ShownFigure(found, style)
