"""Python functions for notebooks: search spaces, plans, runs and their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import tables
from ablate.datasets import absolute_data_folder
from ablate.running.driver import Options, RunResult, run_grid
from ablate.running.plan_words import checking_line
from ablate.schedule.costs import measured_steps
from ablate.space import Grid, Plan, plan_of
from ablate.space import load_grid as _load_grid
from ablate.store.run_file import find_search_space, open_run

if TYPE_CHECKING:
    import pandas as pd

    from ablate.report.shown import ShownFigure, ShownTable
    from ablate.store import Store


_FRAMES = ("trials", "errors", "baselines", "tuning", "curves", "stages")


@dataclass(frozen=True, repr=False)
class Results:
    """The tables of a run as pandas frames; columns and units are those of `ablate.tables.TABLES`."""

    trials: pd.DataFrame  # one row a trial
    errors: pd.DataFrame  # one row for each test image and annotated landmark
    baselines: pd.DataFrame  # one row for each mean shape of shots
    tuning: pd.DataFrame  # one row for each configuration that was tried; empty where nothing was tuned
    curves: pd.DataFrame  # learning curves
    stages: pd.DataFrame  # one row for each attempt at a stage
    store: Store  # where they were read

    def __repr__(self) -> str:
        counts = self.trials["status"].value_counts()
        status = ", ".join(f"{counts[name]} {name}" for name in ("finished", "failed") if name in counts) or "none yet"
        rows = ", ".join(f"{name} {len(getattr(self, name))}" for name in _FRAMES)
        return (
            f"Results of {self.store.label}\n"
            f"  trials: {status}\n  rows: {rows}\n"
            "  .table(metric, rows=, columns=), .plot(metric, axis), and a pandas frame of each name"
        )

    def table(
        self,
        metric: str = "mre",
        *,
        rows: str = "pretrain_method",
        columns: str = "shots",
        filters: Sequence[str] = (),
        best_by: str | None = None,
        reference: str | Path | None = None,
    ) -> ShownTable:
        """Return a metric over two fields, mean and standard deviation over seeds, as `ablate results` prints it.

        Args:
            metric: a numeric column of `trials`, or `sdr@2.5`, `paper_sdr@2.5`.
            rows: field down the table.
            columns: field across.
            filters: texts such as `dataset=hand`.
            best_by: `val_mre` or `val_loss`: of several settings in one cell the best on the validation images.
            reference: CSV file with rows of the literature, beside those that the run keeps (`ablate reference`).

        Raises:
            InputError: an unknown metric, field or value, or a wrong reference file.
        """
        from ablate.report.shown import show_table

        return show_table(
            self.store, metric, rows=rows, columns=columns, filters=filters, best_by=best_by,
            reference=None if reference is None else Path(reference),
        )  # fmt: skip

    def plot(
        self,
        metric: str = "mre",
        axis: str = "shots",
        *,
        filters: Sequence[str] = (),
        best_by: str | None = None,
        reference: str | Path | None = None,
        font: str | None = None,
        column_width: str | None = None,
    ) -> ShownFigure:
        """Return a metric against an axis, one line for each initialisation, with the intervals of the report.

        Args:
            metric: see `table`.
            axis: a numeric field of the trial, or a measured number such as `finetune_seconds`.
            filters: see `table`.
            best_by: see `table`.
            reference: see `table`.
            font: name of an installed font.
            column_width: such as `86mm`, `3.4in` or `252pt`.

        Raises:
            InputError: as `table`, or the run has not two numbers of the axis.
        """
        from ablate.report.figures import print_style
        from ablate.report.shown import show_figure

        return show_figure(
            self.store, metric, axis, filters=filters, best_by=best_by, style=print_style(font, column_width),
            reference=None if reference is None else Path(reference),
        )  # fmt: skip


def load_grid(name: str | Path, overrides: Sequence[str] = (), costs: str | Path | None = None) -> Grid:
    """Return a shipped search space by name, or one from a file, expanded.

    Args:
        name: `demo`, `paper`, ..., or the path of a search-space file, or of a run's `run.yaml`.
        overrides: texts such as `finetune.epochs=20`, which take the place of fields of `base`.
        costs: folder or address of a run that measured the seconds of steps, for one that says `equal: seconds`.

    Raises:
        InputError: there is no such search space, or it cannot be run.
    """
    measured = None if costs is None else measured_steps(open_run(costs))
    return _load_grid(find_search_space(str(name)), overrides, measured)


def plan(grid: Grid) -> Plan:
    """Return the work of a search space: its trials, and the pre-trainings they share."""
    return plan_of(grid.trials)


def run(grid: Grid, out: str | Path | None = None, data: str | Path | None = None, **options: Any) -> RunResult:
    """Run every trial of `grid` that is not finished in `out` yet, printing progress.

    Args:
        grid: what to run.
        out: folder, `s3://` or `gs://` address; default `runs/<grid>`.
        data: folder, `s3://` or `gs://` address with the data sets; default `$ABLATE_DATA`, else `./data`.
        options: the other fields of `ablate.running.driver.Options`.

    Raises:
        InputError: something could not run; nothing was computed.
    """
    from rich.console import Console

    folder = absolute_data_folder(data)
    settings = Options(out=str(out or f"runs/{grid.name}"), data_dir=folder, **options)
    console = Console(highlight=False)
    console.print(checking_line(grid), soft_wrap=True)
    return run_grid(grid, settings, console)


def read_results(run: str | Path) -> Results:
    """Return the tables of a run, finished or not.

    Args:
        run: the run's folder, `s3://` or `gs://` address.

    Raises:
        InputError: there is no run.
        CorruptArtifact: a part file is damaged.
    """
    store = open_run(run)
    return Results(
        **{name: tables.read_frame(store, name) for name in _FRAMES},
        store=store,
    )
