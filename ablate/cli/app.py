"""The table of all commands, in the order in which the help lists them."""

from __future__ import annotations

from typing import Annotated

import typer

from ablate.cli import bench, clusters, data, looking, planning, reference, running, tuning

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

tune_app = typer.Typer(help="Look at the tuning of a run.", no_args_is_help=True, rich_markup_mode=None)
reference_app = typer.Typer(help="Keep published results beside a run.", no_args_is_help=True, rich_markup_mode=None)


def _example(line: str, *more: str) -> str:
    """Return the end of a help: a command as one types it, and what else there is to say, a paragraph each."""
    return "\n\n".join([f"\b\nExample:\n  {line}", *more])


app.command(epilog=_example("ablate grids"))(planning.grids)
app.command(epilog=_example("ablate plan --grid paper --gpus 8"))(planning.plan)
app.command(epilog=_example("ablate bench --grid cephalo-cpu --json bench.json"))(bench.bench)
app.command(epilog=running.RUN_NOTES)(running.run)
app.command(epilog=_example("ablate trial TRIAL_ID --grid demo --out runs/trial"))(running.trial)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=_example(
        "ablate launch ssh.yaml --grid demo --out s3://BUCKET/PREFIX --dry-run",
        "--grid and --out must be given; every other option of `ablate run` may be.",
    ),
)(clusters.launch)
app.command(epilog=_example("ablate attach ssh.yaml"))(clusters.attach)
app.command(epilog=_example("ablate status runs/demo --watch"))(looking.status)
app.command(epilog=_example("ablate stop runs/demo --wait"))(looking.stop)
app.command(epilog=_example("ablate doctor --address HOST:6379 --out s3://BUCKET/PREFIX"))(looking.doctor)
app.command(
    epilog=_example("ablate results runs/demo --metric sdr@2.5 --rows pretrain_method --columns shots --format github")
)(looking.results)
app.command(epilog=_example("ablate report runs/demo"))(looking.report)
app.command(epilog=_example("ablate predict runs/demo TRIAL_ID images/ --out predictions"))(looking.predict)
app.command(epilog=_example("ablate clean runs/demo --states --snapshots"))(looking.clean)

data_app.command("import", epilog=data.FORMATS)(data.data_import)
data_app.command("check", epilog=_example("ablate data check cephalo --data DATA"))(data.data_check)
data_app.command("preview", epilog=_example("ablate data preview cephalo --data DATA --out sheet.png"))(
    data.data_preview
)
data_app.command("prepare", epilog=_example("ablate data prepare cephalo --image-size 64 --image-size 256"))(
    data.data_prepare
)
app.add_typer(data_app, name="data")

cluster_app.command("status", epilog=_example("ablate cluster status ssh.yaml"))(clusters.cluster_status)
cluster_app.command("logs", epilog=_example("ablate cluster logs ssh.yaml --follow"))(clusters.cluster_logs)
cluster_app.command("down", epilog=_example("ablate cluster down ssh.yaml"))(clusters.cluster_down)
app.add_typer(cluster_app, name="cluster")

tune_app.command("export", epilog=_example("ablate tune export runs/tuned tuning.db"))(tuning.tune_export)
app.add_typer(tune_app, name="tune")

reference_app.command("add", epilog=reference.COLUMNS)(reference.reference_add)
reference_app.command("list", epilog=_example("ablate reference list runs/demo"))(reference.reference_list)
reference_app.command("remove", epilog=_example("ablate reference remove runs/demo di-via"))(reference.reference_remove)
app.add_typer(reference_app, name="reference")


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
