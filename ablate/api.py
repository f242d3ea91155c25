"""Python functions for notebooks: search spaces, plans, runs and their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import tables
from ablate.datasets import absolute_data_folder
from ablate.running.driver import Options, RunResult, run_grid
from ablate.space import Grid, Plan, find_grid, plan_of
from ablate.space import load_grid as _load_grid
from ablate.store.run_file import open_run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """The tables of a run as pandas frames; columns and units are those of `ablate.tables.TABLES`."""

    trials: pd.DataFrame  # one row a trial
    errors: pd.DataFrame  # one row for each test image and annotated landmark
    baselines: pd.DataFrame  # one row for each mean shape of shots
    curves: pd.DataFrame  # learning curves
    stages: pd.DataFrame  # one row for each attempt at a stage


def load_grid(name: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """Return a shipped search space by name, or one from a file, expanded.

    Args:
        name: `demo`, `paper`, ..., or the path of a search-space file.
        overrides: texts such as `finetune.epochs=20`, which take the place of fields of `base`.

    Raises:
        InputError: there is no such search space, or it cannot be run.
    """
    return _load_grid(find_grid(str(name)), overrides)


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
    return run_grid(grid, settings, Console(highlight=False))


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
        **{name: tables.read_frame(store, name) for name in ("trials", "errors", "baselines", "curves", "stages")}
    )
