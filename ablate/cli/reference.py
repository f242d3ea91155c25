"""The commands of `ablate reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.cli import completion
from ablate.cli.shared import RunArgument, store_of

COLUMNS = """\b
Example:
  ablate reference add runs/demo di-via.csv

\b
Columns of the file:
  dataset, initialisation, shots  as tables name them
  source                          where the numbers were published
  mre, mre_median, sdr_2.5        as this run measures; SDR in percent
  paper_mre, paper_sdr_2.5        by the published protocol
  protocol, unit, std             may be left out
At least one metric must be there. No published results ship with ablate."""


def reference_add(
    run_: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV file, see below; the run keeps it by its name")],
) -> None:
    """Keep published results beside a run: its tables and figures mark them as not run here."""
    from ablate.report.kept import keep_reference
    from ablate.store import Store

    store_of(run_)  # refuses a folder that holds no run before anything is written
    print("\n".join(keep_reference(Store.open(run_), file)))


def reference_list(run_: RunArgument) -> None:
    """List the published results that a run keeps: sources, protocols, rows."""
    from ablate.report.kept import reference_lines

    print("\n".join(reference_lines(store_of(run_))))


def reference_remove(
    run_: RunArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=completion.references, help="the file's name, without .csv")
    ],
) -> None:
    """Remove published results from a run."""
    from ablate.report.kept import remove_reference
    from ablate.store import Store

    store_of(run_)
    print(remove_reference(Store.open(run_), name))
