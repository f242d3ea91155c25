"""The table of all commands, in the order in which the help lists them."""

from __future__ import annotations

from typing import Annotated

import typer

from ablate.cli import clusters, data, looking, planning, running

app = typer.Typer(
    name="ablate",
    help="Distributed ablations of few-shot landmark detection in X-ray images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Import, check, look at and prepare data sets.", no_args_is_help=True, rich_markup_mode=None
)
cluster_app = typer.Typer(
    help="Look at a launched cluster, and take it down.", no_args_is_help=True, rich_markup_mode=None
)

app.command()(planning.grids)
app.command()(planning.plan)
app.command(epilog=running.EXIT_CODES)(running.run)
app.command()(running.trial)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="--grid and --out must be given; every other option of `ablate run` may be.",
)(clusters.launch)
app.command()(clusters.attach)
app.command()(looking.status)
app.command()(looking.stop)
app.command()(looking.doctor)
app.command()(looking.results)
app.command()(looking.report)
app.command()(looking.predict)
app.command()(looking.clean)

data_app.command("import", epilog=data.FORMATS)(data.data_import)
data_app.command("check")(data.data_check)
data_app.command("preview")(data.data_preview)
data_app.command("prepare")(data.data_prepare)
app.add_typer(data_app, name="data")

cluster_app.command("status")(clusters.cluster_status)
cluster_app.command("logs")(clusters.cluster_logs)
cluster_app.command("down")(clusters.cluster_down)
app.add_typer(cluster_app, name="cluster")


def _version(show: bool) -> None:
    if show:
        from ablate import __version__

        print(f"ablate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Distributed ablations of few-shot landmark detection in X-ray images."""
