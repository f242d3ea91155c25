"""The commands of `ablate data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.cli.interrupts import raise_again
from ablate.cli.shared import DataOption, data_folder_of


def data_check(name: Annotated[str, typer.Argument(help="a data set's name")], data: DataOption = None) -> None:
    """Report counts, splits, unreadable files, stray landmarks, and radiographs that occur in two splits."""
    from ablate.datasets import check_dataset

    found = check_dataset(name, data_folder_of(data))
    print(found.text())
    raise typer.Exit(2 if found.errors else 0)


def data_preview(
    name: Annotated[str, typer.Argument(help="a data set's name")],
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG file; default NAME.png")] = None,
) -> None:
    """Write a contact sheet of a data set with its landmarks drawn."""
    from ablate.datasets import preview_dataset

    raise_again()
    path = out or Path(f"{name}.png")
    preview_dataset(name, data_folder_of(data), path)
    print(path)


def data_prepare(
    name: Annotated[str, typer.Argument(help="a data set's name")],
    data: DataOption = None,
    image_size: Annotated[list[int] | None, typer.Option(min=16, help="network input sizes; default 256")] = None,
) -> None:
    """Decode a data set into the cache ahead of a run."""
    from ablate.datasets import prepare_dataset

    raise_again()
    for path in prepare_dataset(name, data_folder_of(data), image_size or [256]):
        print(path)
