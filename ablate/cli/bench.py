"""The command that measures this machine: `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.cli import completion
from ablate.cli.interrupts import raise_again
from ablate.cli.shared import GridOption, SetOption, grid_of

DEVICES = ("auto", "cpu", "cuda")


def bench(
    grid: GridOption = "demo",
    minutes: Annotated[float, typer.Option(min=0.1, help="minutes that all of it may take")] = 5.0,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="also write the figures there, for `ablate plan --bench`"),
    ] = None,
    set_: SetOption = None,
    cpus_per_stage: Annotated[int, typer.Option(min=1, help="CPU threads of each process, as in `ablate run`")] = 1,
    deterministic: Annotated[
        bool, typer.Option("--deterministic/--no-deterministic", help="how a GPU computes, as in `ablate run`")
    ] = True,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="how a GPU is launched, as in `ablate run`")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="U-Nets are compiled, on a GPU, whether or not that pays")
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            autocompletion=completion.choices("auto", "cpu", "cuda"),
            help="auto (a GPU where there is one), cpu or cuda",
        ),
    ] = "auto",
) -> None:
    """Measure what this machine does of a search space's work, without Ray, and how long a run would take."""
    from ablate.errors import InputError, nearest

    if device not in DEVICES:
        raise InputError(f"--device must be auto, cpu or cuda; got '{device}'{nearest(device, DEVICES)}")
    path = None if json is None else Path(json)
    if path is not None and not path.parent.is_dir():
        raise InputError(f"--json must be a file in a folder that exists; got {json}: make {path.parent} first")
    found = grid_of(grid, set_)
    raise_again()  # from here on there are processes to be ended
    from ablate.bench.measuring import run_bench
    from ablate.bench.words import bench_lines
    from ablate.schedule.bench_file import write_bench
    from ablate.stage.settings import Settings

    measured = run_bench(
        found,
        minutes=minutes,
        settings=Settings(
            threads=cpus_per_stage,
            device=device,  # type: ignore[arg-type]
            deterministic=deterministic,
            cuda_graphs=cuda_graphs,
            compiled=compiled,
        ),
        say=lambda text: typer.echo(f"measuring {text}", err=True),
    )
    print("\n".join(bench_lines(measured)))
    if path is not None:
        write_bench(measured, path)
        print(f"\nablate plan --grid {grid} --bench {json} predicts from it")
