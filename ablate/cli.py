"""The command line: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.schedule.policy import Costs
    from ablate.space import Grid, Plan
    from ablate.store import Store

app = typer.Typer(
    name="ablate",
    help="Distributed ablations of few-shot landmark detection in X-ray images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Check, look at and prepare data sets.", no_args_is_help=True, rich_markup_mode=None)
cluster_app = typer.Typer(
    help="Look at a launched cluster, and take it down.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")
app.add_typer(cluster_app, name="cluster")

GridOption = Annotated[str, typer.Option("--grid", "-g", help="name of a search space, or the path of its file")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a field of the search space's base: finetune.epochs=20")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="folder or address with the data sets; default $ABLATE_DATA, else ./data"),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="a run's folder, or s3:// or gs:// address")]
FilterOption = Annotated[
    list[str] | None, typer.Option("--filter", help="keep trials with this value only: network_kind=unet")
]


def main() -> None:
    """Run the command line; refusals are one message on stderr and exit code 2."""
    try:
        app()
    except BrokenPipeError:  # the reader of our output has gone, as in `ablate grids | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from ablate.space import InputError  # not needed to print the help
        from ablate.store import CorruptArtifact, StoreAway, StoreTrouble

        if not isinstance(error, InputError | CorruptArtifact | StoreTrouble):
            raise
        sys.stdout.flush()
        print(f"ablate: {error}", file=sys.stderr, flush=True)
        if isinstance(error, StoreAway):  # a request that hangs must not hold up the end
            os._exit(error.exit_code)
        sys.exit(2 if isinstance(error, InputError) else getattr(error, "exit_code", 1))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _grid(name: str, overrides: list[str] | None) -> Grid:
    from ablate.space import find_grid, load_grid

    return load_grid(find_grid(name), overrides or [])


def _store(address: str) -> Store:
    from ablate.store.run_file import open_run

    return open_run(address)


def _data_dir(given: str | None) -> str:
    from ablate.store.addresses import absolute

    return absolute(given or os.environ.get("ABLATE_DATA") or "data")


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


@app.command()
def grids() -> None:
    """List the search spaces that ship with ablate."""
    from ablate.space import find_grid, load_grid, shipped_grids

    for name in shipped_grids():
        grid = load_grid(find_grid(name))
        print(f"{name:<18}{len(grid.trials):>5} trials  {grid.description}")


@app.command()
def plan(
    grid: GridOption,
    set_: SetOption = None,
    trials: Annotated[bool, typer.Option("--trials", help="list every trial with its id")] = False,
    gpus: Annotated[int | None, typer.Option(help="predict how long a run on so many GPUs takes")] = None,
    slots: Annotated[int | None, typer.Option(help="most stages at a time; without --gpus, CPU cores")] = None,
    gpus_per_pretrain: Annotated[float | None, typer.Option(help="default 1; 0 without --gpus")] = None,
    gpus_per_finetune: Annotated[float | None, typer.Option(help="default 0.25; 0 without --gpus")] = None,
    cpus_per_gpu: Annotated[
        int | None, typer.Option(help="CPU cores of a node for each of its GPUs; default: not counted")
    ] = None,
    cpus_per_stage: Annotated[int, typer.Option(help="CPU cores of each stage; needs --cpus-per-gpu")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node; needs --cpus-per-gpu")] = 1,
    costs: Annotated[
        str | None, typer.Option(metavar="RUN", help="take the stages' times from an earlier run; default: estimates")
    ] = None,
    no_share: Annotated[
        bool, typer.Option("--no-share", help="predict a run without shared pre-trainings only")
    ] = False,
) -> None:
    """Print a search space's trials, pre-trainings and axes, and how long they would take; runs nothing."""
    from ablate.errors import InputError
    from ablate.running.plan_words import plan_lines, trial_lines
    from ablate.space import plan_of

    found = _grid(grid, set_)
    work = plan_of(found.trials)
    lines = plan_lines(found, work)
    if gpus is not None or slots is not None:
        cores = {"cpus_per_gpu": cpus_per_gpu, "cpus_per_stage": cpus_per_stage, "gpus_per_node": gpus_per_node}
        lines += _forecast(work, gpus or 0, slots, gpus_per_pretrain, gpus_per_finetune, cores, costs, not no_share)
    elif (costs, gpus_per_pretrain, gpus_per_finetune, cpus_per_gpu, cpus_per_stage, gpus_per_node, no_share) != (
        *(None, None, None, None),
        *(1, 1, False),
    ):
        raise InputError("--gpus or --slots must be given to predict how long a run takes, such as --gpus 8")
    print("\n".join(lines))
    if trials:
        print("\n".join(trial_lines(work.trials)))


def _forecast(
    work: Plan,
    gpus: int,
    slots: int | None,
    gpus_per_pretrain: float | None,
    gpus_per_finetune: float | None,
    cores: dict[str, Any],
    measured: str | None,
    share: bool,
) -> list[str]:
    """Return the lines that say how long a run of `work` takes, with and without sharing."""
    from ablate.running.plan_words import forecast_lines
    from ablate.schedule.costs import default_costs, require_measured
    from ablate.schedule.simulate import Machine, forecast

    pretrain = gpus_per_pretrain if gpus_per_pretrain is not None else 1.0 * (gpus > 0)
    finetune = gpus_per_finetune if gpus_per_finetune is not None else 0.25 * (gpus > 0)
    machine = Machine(gpus, pretrain, finetune, slots, **cores)
    store = None if measured is None else _store(measured)

    def costs(gpus_finetune: float) -> Costs:
        if store is None:
            return default_costs(gpus_pretrain=pretrain, gpus_finetune=gpus_finetune)
        return require_measured(store, gpus_pretrain=pretrain, gpus_finetune=gpus_finetune)

    # a whole trial fine-tunes on what its pre-training holds
    forecasts = [forecast(work, costs(finetune), machine)] if share else []
    forecasts.append(forecast(work, costs(pretrain), machine, share=False))
    device = "one modern GPU" if gpus else "one CPU core"
    source = f"estimated for {device}, see --costs" if store is None else f"measured in {store.label}"
    return forecast_lines(forecasts, machine, source)


@app.command()
def run(
    grid: GridOption,
    data: DataOption = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="folder, s3:// or gs:// address; default runs/GRID; goes on if it exists"),
    ] = None,
    set_: SetOption = None,
    address: Annotated[str | None, typer.Option(help="a running Ray cluster: auto or HOST:PORT")] = None,
    gpus_per_pretrain: Annotated[float | None, typer.Option(help="default 1 where there is a GPU, else 0")] = None,
    gpus_per_finetune: Annotated[float | None, typer.Option(help="default 0.25 where there is a GPU, else 0")] = None,
    cpus_per_stage: Annotated[int, typer.Option(min=1, help="CPU cores, and threads, of each stage")] = 1,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="most stages at a time")] = None,
    accelerator_type: Annotated[
        str | None, typer.Option("--accelerator-type", help="use only such GPUs, by Ray's name: H100, A100, ...")
    ] = None,
    max_failures: Annotated[
        int, typer.Option(min=0, help="losses of a stage's worker or node in a row, without progress, that are made up")
    ] = 3,
    store_patience: Annotated[
        float, typer.Option("--store-patience", min=0, help="minutes to wait for a store that does not answer")
    ] = 15.0,
    checkpoint_minutes: Annotated[float, typer.Option(min=0, help="minutes between saved training states")] = 5.0,
    no_share: Annotated[bool, typer.Option("--no-share", help="pre-train anew for every trial")] = False,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="keep the fine-tuned weights, for predict")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed trials again")] = False,
    log: Annotated[
        list[str] | None, typer.Option("--log", help="also log to tensorboard, mlflow or wandb; may be repeated")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
) -> None:
    """Run every trial of a search space, or go on with a run that was interrupted or whose grid has grown."""
    from ablate.report.pivot import pivot, render
    from ablate.report.run_data import read_trials
    from ablate.running.driver import Options, closing_lines, run_grid
    from ablate.running.plan_words import plan_lines
    from ablate.space import plan_of
    from ablate.store import Store

    found = _grid(grid, set_)
    print("\n".join(plan_lines(found, plan_of(found.trials))), flush=True)
    if dry_run:
        return
    options = Options(
        out=out or f"runs/{found.name}",
        data_dir=_data_dir(data),
        address=address,
        gpus_per_pretrain=gpus_per_pretrain,
        gpus_per_finetune=gpus_per_finetune,
        cpus_per_stage=cpus_per_stage,
        max_concurrent=max_concurrent,
        max_failures=max_failures,
        checkpoint_minutes=checkpoint_minutes,
        store_patience=store_patience,
        accelerator_type=accelerator_type,
        share=not no_share,
        keep_weights=keep_weights,
        retry_failed=retry_failed,
        log=tuple(log or ()),
    )
    result = run_grid(found, options, _console())
    store = Store.open(options.out, writable=False)
    print()
    if result.finished + result.failed:
        print(render(pivot(read_trials(store)), "plain"))
    print("\n".join(closing_lines(store, result)))
    raise typer.Exit(result.exit_code)


@app.command()
def trial(
    spec: Annotated[str, typer.Argument(metavar="SPEC.yaml|TRIAL_ID", help="a trial's file, or its id in --grid")],
    out: Annotated[str, typer.Option("--out", help="folder, s3:// or gs:// address")] = "runs/trial",
    data: DataOption = None,
    grid: Annotated[str | None, typer.Option("--grid", "-g", help="the search space that holds TRIAL_ID")] = None,
    set_: SetOption = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="keep the fine-tuned weights, for predict")
    ] = False,
) -> None:
    """Run one trial in this process, without Ray: for debugging and profiling."""
    from ablate.running.single import find_trial, run_single

    found = find_trial(spec, grid, set_ or [], out)
    raise typer.Exit(run_single(found, out, _data_dir(data), threads, keep_weights, _console()))


LaunchedArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="the cluster file that was launched, or its name")
]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="--grid and --out must be given; every other option of `ablate run` may be.",
)
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
    found, (arguments, options) = find_cluster(file), _run_options(context.args)
    source = find_grid(options["grid"])
    grid = load_grid(source, options["set_"] or [])
    request = request_for(found, grid, source, out=options["out"], arguments=arguments, options=options, keep=keep)
    raise typer.Exit(launch_run(request, _console(), yes=yes, dry_run=dry_run, costs=costs))


def _run_options(words: list[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return what `ablate run` makes of options: those that differ from the default as words, and all by name.

    The words leave out what a launch says itself: the search space, the store and the address.
    """
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
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


@app.command()
def attach(file: LaunchedArgument) -> None:
    """Watch a launched run again, from the machine that launched it, until its report is here and all is taken down."""
    from ablate.launch.launching import attach as attach_run

    raise typer.Exit(attach_run(file, _console()))


@cluster_app.command("status")
def cluster_status(file: LaunchedArgument) -> None:
    """Print a launched cluster's machines, and how its driver is."""
    from ablate.launch.launching import cluster_status as status_of

    print("\n".join(status_of(file)))


@cluster_app.command("logs")
def cluster_logs(
    file: LaunchedArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the driver ends")] = False,
) -> None:
    """Print what the driver on a launched cluster printed."""
    from ablate.launch.launching import cluster_logs as logs_of

    for line in logs_of(file, follow=follow):
        print(line, flush=True)


@cluster_app.command("down")
def cluster_down(file: LaunchedArgument) -> None:
    """Let the driver save, end everything of a launched cluster, and verify that nothing is left."""
    from ablate.launch.launching import cluster_down as take_down

    raise typer.Exit(take_down(file, _console()))


@app.command()
def status(
    run_: RunArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="first show the live display of a run, wherever it goes on, until it ends")
    ] = False,
) -> None:
    """Print how far a run is: trials, pre-trainings, attempts, and who is at work on it."""
    from ablate.running.inspection import status_lines

    store = _store(run_)
    if watch:
        from ablate.running.watching import watch_run

        watch_run(store, _console())
    print("\n".join(status_lines(store)))


@app.command()
def stop(
    run_: RunArgument,
    wait: Annotated[bool, typer.Option("--wait", help="return only when the run has ended")] = False,
) -> None:
    """Ask a run to save its stages' states and to end, from any machine that reaches its store."""
    from ablate.running.watching import stop_run

    for line in stop_run(_store(run_), wait=wait):
        print(line, flush=True)


@app.command()
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

    report = examine(address, out, data, cpus_per_stage=cpus_per_stage)
    console = _console()
    for line in report.lines():
        console.print(line, soft_wrap=True)
    raise typer.Exit(report.exit_code)


@app.command()
def results(
    run_: RunArgument,
    metric: Annotated[str, typer.Option(help="a numeric column of `trials`, or sdr@2.5, paper_sdr@2.5")] = "mre",
    rows: Annotated[str, typer.Option(help="field down the table")] = "pretrain_method",
    columns: Annotated[str, typer.Option(help="field across the table")] = "shots",
    filter_: FilterOption = None,
    format_: Annotated[str, typer.Option("--format", help="plain, github, latex or csv")] = "plain",
) -> None:
    """Print a metric over two fields: mean and standard deviation over the seeds."""
    from ablate.report.pivot import pivot, render
    from ablate.report.run_data import read_trials

    trials = read_trials(_store(run_))
    print(render(pivot(trials, metric=metric, rows=rows, columns=columns, filters=filter_ or []), format_))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN [OTHER_RUN]", help="one run, or two to lay side by side")],
    out: Annotated[
        str | None, typer.Option("--out", help="where to write; default RUN/report, for two runs nothing is written")
    ] = None,
) -> None:
    """Write tables, figures and a web page about a run, also while it goes on; or compare two runs trial by trial."""
    from ablate.errors import InputError
    from ablate.report import compare_runs, write_report
    from ablate.store import Store

    stores = [_store(run_) for run_ in runs]  # refuses a folder that holds no run before anything is written
    if len(stores) > 2:
        raise InputError(f"report takes one run, or two to compare; got {len(stores)}")
    if len(stores) == 2:
        comparison = compare_runs(stores[0], stores[1], out=out)
        print(comparison.render("plain"))
        print("\n".join(comparison.lines()))
        return
    print("\n".join(write_report(Store.open(runs[0]), out).lines()))


@app.command()
def predict(
    run_: RunArgument,
    trial_id: Annotated[str, typer.Argument(help="a finished trial, run with --keep-weights")],
    images: Annotated[Path, typer.Argument(help="folder of images, or one image")],
    out: Annotated[Path, typer.Option("--out", help="folder for predictions.csv and the overlays")] = Path(
        "predictions"
    ),
    overlays: Annotated[bool, typer.Option(help="draw the landmarks on each image")] = True,
) -> None:
    """Find the landmarks in new images with a finished trial's network: a CSV file and drawn overlays."""
    from ablate.predict import predict_folder

    print("\n".join(predict_folder(_store(run_), trial_id, images, out, overlays=overlays)))


@app.command()
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

    store = _store(run_)
    print("\n".join(storage_lines(store)))
    kinds = [name for name, chosen in (("states", states), ("snapshots", snapshots), ("weights", weights)) if chosen]
    if kinds:
        if not yes:
            typer.confirm(f"Delete the {' and '.join(kinds)} of {store.label}?", abort=True)
        print("\n".join(clean_run(Store.open(run_), kinds)))


@data_app.command("check")
def data_check(name: Annotated[str, typer.Argument(help="a data set's name")], data: DataOption = None) -> None:
    """Report counts, splits, unreadable files, stray landmarks, and radiographs that occur in two splits."""
    from ablate.datasets import check_dataset

    found = check_dataset(name, _data_dir(data))
    print(found.text())
    raise typer.Exit(2 if found.errors else 0)


@data_app.command("preview")
def data_preview(
    name: Annotated[str, typer.Argument(help="a data set's name")],
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG file; default NAME.png")] = None,
) -> None:
    """Write a contact sheet of a data set with its landmarks drawn."""
    from ablate.datasets import preview_dataset

    path = out or Path(f"{name}.png")
    preview_dataset(name, _data_dir(data), path)
    print(path)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="a data set's name")],
    data: DataOption = None,
    image_size: Annotated[list[int] | None, typer.Option(min=16, help="network input sizes; default 256")] = None,
) -> None:
    """Decode a data set into the cache ahead of a run."""
    from ablate.datasets import prepare_dataset

    for path in prepare_dataset(name, _data_dir(data), image_size or [256]):
        print(path)


if __name__ == "__main__":
    main()
