"""A report: its parts, and the files it is written to."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich import filesize

from ablate.report import comparison_tables, rankings, run_tables, suspects, tunings
from ablate.report.analysis import Analysis, analyse
from ablate.report.answer import answers
from ablate.report.axis_charts import figure_of
from ablate.report.chart_kinds import Chart, LineChart
from ablate.report.charts import FIGURES, setting_charts
from ablate.report.figures import draw, files_of
from ablate.report.grouping import MISSING
from ablate.report.kept import references_of
from ablate.report.page import Section, page
from ablate.report.pictures import ddpm_strips
from ablate.report.render import Table, latex_document, render_table, unique_names
from ablate.report.run_data import read_run
from ablate.report.selection import check_best_by
from ablate.report.style import Print
from ablate.report.viewer import build_gallery
from ablate.store import Store
from ablate.store.layout import REPORT
from ablate.words import counted

LISTING = "files.json"
"""The file that lists the files of a report, so that the next report deletes those that it does not write itself."""


@dataclass(frozen=True)
class ReportSummary:
    """What was written, and what could not be written."""

    folder: str  # address
    page: str  # address of index.html
    num_tables: int
    num_figures: int
    num_pictures: int
    finished: int
    failed: int
    missing: int
    remarks: tuple[str, ...]  # what is not there or left out, in sentences
    page_bytes: int
    seconds: float

    def lines(self) -> list[str]:
        """Return the summary as lines for the screen."""
        return [
            f"report on {self.finished} finished, {self.failed} failed and {self.missing} missing trials in "
            f"{self.seconds:.1f} s",
            *(f"- {remark}" for remark in self.remarks),
            f"{self.num_tables} tables (Markdown, LaTeX, CSV), {self.num_figures} figures (PNG, SVG, PDF) and "
            f"{counted(self.num_pictures, 'picture sheet')} in {self.folder}",
            f"{self.page} ({filesize.decimal(self.page_bytes)})",
        ]


def write_report(
    run: Store,
    out: str | None = None,
    *,
    style: Print | None = None,
    best_by: str | None = None,
    figures: Sequence[str] = (),
    reference: Path | None = None,
    across_networks: bool = False,
) -> ReportSummary:
    """Write tables, figures, pictures and a page about a run, finished or not.

    Args:
        run: the run.
        out: folder or address for the report; default: `report/` in the run.
        style: font and column width of the figures for print.
        best_by: `val_mre` or `val_loss`: where several settings were run for one cell, the best on the validation
            images stands in every table and figure, which say so.
        figures: further figures, each `METRIC:AXIS`, see `ablate.report.axis_charts.figure_of`.
        reference: CSV file with rows of the literature, see `ablate.report.literature`, beside those that the run
            keeps.
        across_networks: test and rank initialisations on different networks against each other too.

    Raises:
        CorruptArtifact: a table's part is damaged.
        InputError: `out` cannot be written, settings cannot be chosen by `best_by`, a figure cannot be drawn, or the
            reference file is wrong.
    """
    start = time.monotonic()
    if best_by is not None:
        check_best_by(best_by)
    target = _Target(run, f"{REPORT}/") if out is None else _Target(Store.open(out), "")
    data = read_run(run)
    units = sorted({str(unit) for unit in data.trials["unit"].dropna()})
    unit = units[0] if len(units) == 1 else None
    wanted: dict[str, tuple[Callable[[Analysis], Iterator[Chart]], str]] = {
        figure.title(unit): (functools.partial(setting_charts, figure=figure), "no initialisation has two points of it")
        for figure in (figure_of(data.trials, text) for text in figures)
    }
    references = references_of(data, reference)
    analysis = analyse(data, best_by=best_by, references=references, across_networks=across_networks)
    remarks = list(data.missing)
    if apart := [panel.title for panel in analysis.panels if panel.within_networks]:
        remarks.append(
            f"no tests and ranks across different networks ({', '.join(apart)}); --across-networks asks for them"
        )

    sections = _sections(analysis)
    tables = [table for section in sections for table in section.tables]
    for table in tables:
        for form, suffix in (("github", "md"), ("latex", "tex"), ("csv", "csv")):
            target.write(f"tables/{table.name}.{suffix}", render_table(table, form).encode())  # type: ignore[arg-type]
    target.write("tables/all.tex", latex_document(tables).encode())

    drawn: dict[str, list[Chart]] = {}
    for kind, (build, lacking) in {**FIGURES, **wanted}.items():
        charts = [_marked(chart, analysis) for chart in build(analysis)]
        if charts:
            drawn[kind] = charts
        elif lacking:
            remarks.append(f"no figure {kind}: {lacking}")
        for chart in charts:
            for suffix, content in files_of(draw(chart, style), style).items():
                target.write(f"figures/{chart.name}.{suffix}", content)

    gallery = build_gallery(analysis)
    for sheet in gallery.sheets:
        target.write(f"pictures/{sheet.name}.png", sheet.png)
    remarks += gallery.remarks
    written_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    found = tuple(answers(analysis))
    html = page(data, found, sections, drawn, gallery, ddpm_strips(run), remarks, written_at=written_at).encode()
    target.write("index.html", html)
    target.finish()
    return ReportSummary(
        folder=target.label,
        page=f"{target.label}/index.html",
        num_tables=len(tables),
        num_figures=sum(map(len, drawn.values())),
        num_pictures=len(gallery.sheets),
        finished=data.count("finished"),
        failed=data.count("failed"),
        missing=data.count(MISSING),
        remarks=tuple(remarks),
        page_bytes=len(html),
        seconds=time.monotonic() - start,
    )


def _sections(analysis: Analysis) -> list[Section]:
    """Return all tables under their headings, each table's name used once."""
    headings: tuple[tuple[str, Iterator[Table]], ...] = (
        (MAIN, run_tables.error_tables(analysis)),
        ("Success detection rates and other metrics", run_tables.other_tables(analysis)),
        ("Errors with intervals", comparison_tables.interval_tables(analysis)),
        ("Against published numbers", comparison_tables.published_tables(analysis)),
        ("Comparisons of initialisations", comparison_tables.pair_tables(analysis)),
        ("Average ranks", rankings.rank_tables(analysis)),
        ("Label efficiency", comparison_tables.efficiency_tables(analysis)),
        ("Timesteps and pre-training steps", run_tables.diffusion_tables(analysis)),
        ("Tuning", tunings.tuning_tables(analysis)),
        ("Settings chosen on the validation set", comparison_tables.selection_tables(analysis)),
        ("Suspicious test images", suspects.suspect_tables(analysis)),
        ("With and without duplicate radiographs", comparison_tables.leakage_tables(analysis)),
        ("Landmarks", run_tables.landmark_tables(analysis)),
        ("Cost", run_tables.cost_tables(analysis)),
        ("Trials without a result", run_tables.status_tables(analysis)),
    )
    found = [(title, list(tables)) for title, tables in headings]
    named = iter(unique_names([table for _, tables in found for table in tables]))
    sections = [
        (title, tuple(_noted(next(named), analysis if title not in NOT_SELECTED else None) for _ in tables))
        for title, tables in found
    ]
    return [Section(title, tables, title == MAIN) for title, tables in sections if tables]


MAIN = "Errors"
"""The section that stands first."""

NOT_SELECTED = (
    MAIN,
    "Success detection rates and other metrics",
    "Settings chosen on the validation set",
    "Trials without a result",
)
"""Sections whose tables say by themselves how settings were chosen, or hold all trials."""


def _noted(table: Table, analysis: Analysis | None) -> Table:
    """Return a table that says how its settings were chosen, and that folds are pooled, if so."""
    lacking = [note for note in analysis.grouping.notes if note not in table.notes] if analysis else []
    return replace(table, notes=(*table.notes, *lacking)) if lacking else table


def _marked(chart: Chart, analysis: Analysis) -> Chart:
    """Return a figure that says how its settings were chosen, and that folds are pooled, on the page and in print."""
    if isinstance(chart, LineChart) and chart.own_selection:
        return chart
    selected = analysis.selected
    marks = (selected.mark,) if selected is not None and selected.choices else ()
    return replace(chart, note=" ".join([chart.note, *analysis.grouping.notes]), marks=(*marks, *chart.marks))


class _Target:
    """The report's folder; files of an earlier report that are not written again are deleted."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._written: list[str] = []

    @property
    def label(self) -> str:
        """Address of the folder."""
        return f"{self._store.label}/{self._prefix}".rstrip("/")

    def write(self, path: str, content: bytes) -> None:
        """Write a file, complete or not at all."""
        self._store.write(f"{self._prefix}{path}", content)
        self._written.append(path)

    def finish(self) -> None:
        """Delete the files that only an earlier report wrote, and list those of this one."""
        for path in self._earlier():
            if path not in self._written:
                self._store.delete(f"{self._prefix}{path}")
        self._store.write(f"{self._prefix}{LISTING}", json.dumps(sorted(self._written), indent=1).encode())

    def _earlier(self) -> Sequence[str]:
        try:
            listed = json.loads(self._store.read(f"{self._prefix}{LISTING}"))
        except (FileNotFoundError, ValueError):
            return []
        present = set(self._store.sizes(self._prefix.rstrip("/")))
        names = listed if isinstance(listed, list) else []
        return [path for path in names if isinstance(path, str) and f"{self._prefix}{path}" in present]
