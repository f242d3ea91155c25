"""The commands of `ablate tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.cli.shared import RunArgument, store_of


def tune_export(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the new SQLite file, such as tuning.db")],
) -> None:
    """Write a run's tuning as an Optuna storage, which optuna-dashboard opens."""
    from ablate.errors import InputError
    from ablate.space import Source, load_grid
    from ablate.store.layout import RUN_FILE
    from ablate.store.run_file import read_run_file
    from ablate.tuning import load_courses
    from ablate.tuning.export import export_storage

    store = store_of(run)
    grid = load_grid(Source(f"{store.label}/{RUN_FILE}", read_run_file(store), None))
    if not grid.studies:
        raise InputError(f"{store.label}: this run tunes nothing: its search space has no section tune")
    courses = load_courses(store, grid.studies)
    export_storage(courses, file)
    print(
        f"{file}: {len(courses)} {'study' if len(courses) == 1 else 'studies'}, for optuna-dashboard sqlite:///{file}"
    )
