"""Commands for runs on clusters that ablate brings up: `launch`, `attach` and `cluster`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ablate.cli.interrupts import raise_again
from ablate.cli.running import run
from ablate.cli.shared import console_of_stdout

LaunchedArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="the cluster file that was launched, or its name")
]


def launch(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="a cluster file: a path, or the name of a shipped one")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave the cluster up when the run has ended")] = False,
    costs: Annotated[
        str | None, typer.Option(metavar="RUN", help="predict with the stages' times of an earlier run")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print the file as it will be used, the steps, time and cost; start nothing"),
    ] = False,
) -> None:
    """Run a search space on the cluster that FILE describes: bring it up, watch, fetch the report, take it down."""
    from ablate.errors import InputError
    from ablate.launch.cluster_file import find_cluster
    from ablate.launch.launching import launch as launch_run
    from ablate.launch.launching import request_for
    from ablate.space import find_grid, load_grid

    if file.startswith("-"):
        raise InputError(f"FILE must come before the options of a launch; got {file}")
    raise_again()
    found, (arguments, options) = find_cluster(file), _run_options(context.args)
    source = find_grid(options["grid"])
    grid = load_grid(source, options["set_"] or [])
    request = request_for(found, grid, source, out=options["out"], arguments=arguments, options=options, keep=keep)
    raise typer.Exit(launch_run(request, console_of_stdout(), yes=yes, dry_run=dry_run, costs=costs))


def _run_options(words: list[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return what `ablate run` makes of options: those that differ from the default as words, and all by name.

    The words leave out what a launch says itself: the search space, the store and the address.
    """
    alone = typer.Typer(add_completion=False)
    alone.command()(run)
    command = typer.main.get_command(alone)
    with command.make_context("ablate run", list(words)) as context:
        values = dict(context.params)
        again: list[str] = []
        for parameter in command.get_params(context):
            value = values.get(parameter.name)
            if parameter.name in ("grid", "out", "address", "dry_run", "help") or value in (None, False, [], ()):
                continue
            if value == parameter.get_default(context):
                continue
            option = max(parameter.opts, key=len)
            for item in value if isinstance(value, list | tuple) else [value]:
                again += [option] if item is True else [option, str(item)]
    return tuple(again), values


def attach(file: LaunchedArgument) -> None:
    """Watch a launched run again, from the machine that launched it, until its report is here and all is taken down."""
    from ablate.launch.launching import attach as attach_run

    raise_again()
    raise typer.Exit(attach_run(file, console_of_stdout()))


def cluster_status(file: LaunchedArgument) -> None:
    """Print a launched cluster's machines, and how its driver is."""
    from ablate.launch.launching import cluster_status as status_of

    print("\n".join(status_of(file)))


def cluster_logs(
    file: LaunchedArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the driver ends")] = False,
) -> None:
    """Print what the driver on a launched cluster printed."""
    from ablate.launch.launching import cluster_logs as logs_of

    for line in logs_of(file, follow=follow):
        print(line, flush=True)


def cluster_down(file: LaunchedArgument) -> None:
    """Let the driver save, end everything of a launched cluster, and verify that nothing is left."""
    from ablate.launch.launching import cluster_down as take_down

    raise_again()
    raise typer.Exit(take_down(file, console_of_stdout()))
