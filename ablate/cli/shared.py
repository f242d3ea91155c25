"""Options and arguments that several commands have, and what the commands make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ablate.cli import completion

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.space import Grid
    from ablate.store import Store

SHIPPED = (
    "demo",
    "cephalo-cpu",
    "cephalo-imagenet",
    "scn-cpu",
    "tuned",
    "paper",
    "recommended",
    "label-efficiency",
    "timesteps",
    "cross-domain",
    "matched",
    "tuned-paper",
    "authors-checkpoints",
    "why-ddpm",
    "why-ddpm-cpu",
)
"""The search spaces that ship, as the help names them."""

GRID_HELP = f"{', '.join(SHIPPED)}, or the path of a search-space file or of a run's run.yaml"
GridOption = Annotated[str, typer.Option("--grid", "-g", autocompletion=completion.grids, help=GRID_HELP)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a field of the search space's base: finetune.epochs=20")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="folder or address with the data sets; default $ABLATE_DATA, else ./data"),
]
RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", autocompletion=completion.runs, help="a run's folder, or s3:// or gs:// address"),
]


def console_of_stdout() -> Console:
    """Return a console that prints as it is told, without colouring numbers and the like."""
    from rich.console import Console

    return Console(highlight=False)


def grid_of(name: str, overrides: list[str] | None, costs: str | None = None) -> Grid:
    """Return a search space by its name or path, expanded.

    Args:
        name: of the search space.
        overrides: see `load_grid`.
        costs: folder or address of a run that measured the seconds of optimizer steps.
    """
    from ablate.space import find_grid, load_grid

    measured = None
    if costs is not None:
        from ablate.schedule.costs import measured_steps

        measured = measured_steps(store_of(costs))
    if "://" not in name:  # then nothing of the store is needed, which takes a moment to import
        return load_grid(find_grid(name), overrides or [], measured)
    from ablate.store.run_file import find_search_space

    return load_grid(find_search_space(name), overrides or [], measured)


def by_seconds(grid: Grid) -> bool:
    """Whether a search space makes the seconds of its arms equal, and so can take measured ones."""
    from ablate.space import Equal

    return Equal.of(grid.resolved).by == "seconds"


def store_of(address: str) -> Store:
    """Return the store of a run to read from; raise `InputError` if it holds none."""
    from ablate.store.run_file import open_run

    return open_run(address)


def data_folder_of(given: str | None) -> str:
    """Return where the data sets are."""
    from ablate.datasets import absolute_data_folder

    return absolute_data_folder(given)
