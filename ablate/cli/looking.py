"""Commands for a run that is there: `status`, `stop`, `doctor`, `results`, `report`, `predict` and `clean`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.cli import completion
from ablate.cli.interrupts import raise_again
from ablate.cli.shared import DataOption, RunArgument, console_of_stdout, store_of

FilterOption = Annotated[
    list[str] | None, typer.Option("--filter", help="keep trials with this value only: network_kind=unet")
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option("--reference", help="CSV file with published results, beside those kept by `ablate reference add`"),
]
BestByOption = Annotated[
    str | None,
    typer.Option(
        "--best-by", help="val_mre or val_loss: of several settings in one cell keep the best on the validation images"
    ),
]


def status(
    run_: RunArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="first show the live display of a run, wherever it goes on, until it ends")
    ] = False,
    trials: Annotated[bool, typer.Option("--trials", help="list every trial, however many there are")] = False,
) -> None:
    """Print how far a run is: data sets, trials with ids, pre-trainings, attempts, and who is at work on it."""
    from ablate.running.inspection import status_lines

    store = store_of(run_)
    if watch:
        from ablate.running.watching import watch_run

        raise_again()
        watch_run(store, console_of_stdout())
    print("\n".join(status_lines(store, every_trial=trials)))


def stop(
    run_: RunArgument,
    wait: Annotated[bool, typer.Option("--wait", help="return only when the run has ended")] = False,
) -> None:
    """Ask a run to save its stages' states and to end, from any machine that reaches its store."""
    from ablate.running.watching import stop_run

    for line in stop_run(store_of(run_), wait=wait):
        print(line, flush=True)


def doctor(
    address: Annotated[
        str | None, typer.Option(help="a running Ray cluster; default: this machine, without Ray")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="a run's store, which every node must be able to write")
    ] = None,
    data: DataOption = None,
    cpus_per_stage: Annotated[int, typer.Option(min=1, help="CPU cores of each stage, as a run will be given")] = 1,
) -> None:
    """Look at every node of a cluster, or at this machine: what a run needs, and how to put right what is red."""
    from ablate.doctor import examine

    raise_again()
    report = examine(address, out, data, cpus_per_stage=cpus_per_stage)
    console = console_of_stdout()
    for line in report.lines():
        console.print(line, soft_wrap=True)
    raise typer.Exit(report.exit_code)


def results(
    run_: RunArgument,
    metric: Annotated[
        str,
        typer.Option(
            autocompletion=completion.metrics,
            help=f"{', '.join(completion.METRICS)}, sdr@2.5, paper_sdr@2.5, or another numeric column of `trials`",
        ),
    ] = "mre",
    rows: Annotated[str, typer.Option(help="field down the table")] = "pretrain_method",
    columns: Annotated[str, typer.Option(help="field across the table")] = "shots",
    filter_: FilterOption = None,
    best_by: BestByOption = None,
    reference: ReferenceOption = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            autocompletion=completion.choices("plain", "github", "latex", "csv"),
            help="plain, github, latex or csv",
        ),
    ] = "plain",
) -> None:
    """Print a metric over two fields: mean and standard deviation over the seeds."""
    from ablate.report.shown import show_table

    shown = show_table(
        store_of(run_), metric, rows=rows, columns=columns, filters=filter_ or [], best_by=best_by, reference=reference
    )
    print(shown.render(format_))


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [OTHER_RUN]", autocompletion=completion.runs, help="one run, or two to lay side by side"
        ),
    ],
    out: Annotated[
        str | None, typer.Option("--out", help="where to write; default RUN/report, for two runs nothing is written")
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option("--figure", help="one more figure, METRIC:AXIS: sdr@2.5:pretrain.timesteps, mre:finetune.lr"),
    ] = None,
    best_by: BestByOption = None,
    reference: ReferenceOption = None,
    across_networks: Annotated[
        bool,
        typer.Option(
            "--across-networks", help="test and rank initialisations on different networks against each other too"
        ),
    ] = False,
    font: Annotated[str | None, typer.Option(help="font of the figures for print; default DejaVu Sans")] = None,
    column_width: Annotated[
        str | None, typer.Option(help="width of the figures for print: 86mm, 3.4in, 252pt; default 3.4in")
    ] = None,
) -> None:
    """Write tables, figures and a web page about a run, also while it goes on; or compare two runs trial by trial."""
    from ablate.errors import InputError
    from ablate.report import compare_runs, print_style, write_report
    from ablate.store import Store

    raise_again()
    style = print_style(font, column_width)
    stores = [store_of(run_) for run_ in runs]  # refuses a folder that holds no run before anything is written
    if len(stores) > 2:
        raise InputError(f"report takes one run, or two to compare; got {len(stores)}")
    if len(stores) == 2:
        given = {"--figure": figure, "--best-by": best_by, "--reference": reference, "--font": font,
                 "--column-width": column_width, "--across-networks": across_networks}  # fmt: skip
        if unused := [option for option, value in given.items() if value]:
            raise InputError(f"{unused[0]} is of the report on one run; got two runs: leave it out, or name one run")
        comparison = compare_runs(stores[0], stores[1], out=out)
        print(comparison.render("plain"))
        print("\n".join(comparison.lines()))
        return
    summary = write_report(
        Store.open(runs[0]), out, style=style, best_by=best_by, figures=figure or [], reference=reference,
        across_networks=across_networks,
    )  # fmt: skip
    print("\n".join(summary.lines()))


def predict(
    run_: RunArgument,
    trial_id: Annotated[
        str, typer.Argument(autocompletion=completion.kept_ids, help="a finished trial, run with --keep-weights")
    ],
    images: Annotated[Path, typer.Argument(help="folder of images, or one image")],
    out: Annotated[Path, typer.Option("--out", help="folder for predictions.csv and the overlays")] = Path(
        "predictions"
    ),
    overlays: Annotated[bool, typer.Option(help="draw the landmarks on each image")] = True,
) -> None:
    """Find the landmarks in new images with a finished trial's network: a CSV file and drawn overlays."""
    from ablate.predict import predict_folder

    raise_again()
    print("\n".join(predict_folder(store_of(run_), trial_id, images, out, overlays=overlays)))


def clean(
    run_: RunArgument,
    states: Annotated[bool, typer.Option("--states", help="delete training states: nothing can be continued")] = False,
    snapshots: Annotated[bool, typer.Option("--snapshots", help="delete pre-trained snapshots")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="delete fine-tuned weights")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Print what a run stores, by kind and size, and delete kinds on request."""
    from ablate.running.inspection import clean_run, storage_lines
    from ablate.store import Store

    raise_again()
    store = store_of(run_)
    print("\n".join(storage_lines(store)))
    kinds = [name for name, chosen in (("states", states), ("snapshots", snapshots), ("weights", weights)) if chosen]
    if kinds:
        if not yes:
            typer.confirm(f"Delete the {' and '.join(kinds)} of {store.label}?", abort=True)
        print("\n".join(clean_run(Store.open(run_), kinds)))
