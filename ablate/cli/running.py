"""Commands that train: `run` and `trial`."""

from __future__ import annotations

from typing import Annotated

import typer

from ablate.cli import completion
from ablate.cli.interrupts import raise_again
from ablate.cli.shared import (
    GRID_HELP,
    DataOption,
    GridOption,
    SetOption,
    by_seconds,
    console_of_stdout,
    data_folder_of,
    grid_of,
)
from ablate.running.options import Options

RUN_NOTES = """\b
Example:
  ablate run --grid demo --out runs/demo --set finetune.epochs=20

\b
Exit codes:
  0         done
  1         some trials failed, or the store is full or refuses files
  2         refused before any compute: bad input, bad environment
  3         the store stayed away for longer than --store-patience
  4         another driver has taken the run over, because this one seemed
            to be gone
  5         stopped by `ablate stop`
  130, 143  interrupted by SIGINT (Ctrl-C) or SIGTERM, every state saved
After every one but 2 the same command goes on with what is left."""


def run(
    grid: GridOption,
    data: DataOption = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="folder, s3:// or gs:// address; default runs/GRID; goes on if it exists"),
    ] = None,
    set_: SetOption = None,
    address: Annotated[
        str | None, typer.Option(help="a running Ray cluster: auto or HOST:PORT; later: see --dry-run")
    ] = Options.address,
    gpus_per_pretrain: Annotated[
        float | None, typer.Option(help="default 1 where there is a GPU, else 0")
    ] = Options.gpus_per_pretrain,
    gpus_per_finetune: Annotated[
        float | None, typer.Option(help="default 0.25 where there is a GPU, else 0")
    ] = Options.gpus_per_finetune,
    cpus_per_stage: Annotated[
        int, typer.Option(min=1, help="CPU cores, and threads, of each stage")
    ] = Options.cpus_per_stage,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="most stages at a time")] = Options.max_concurrent,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic/--no-deterministic", help="equal bits for equal inputs on GPUs of one type"),
    ] = Options.deterministic,
    cuda_graphs: Annotated[
        bool,
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="launch passes on a GPU as recorded graphs; see bench"),
    ] = Options.cuda_graphs,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="compile U-Nets on a GPU where the steps left pay for it; see bench"
        ),
    ] = Options.compiled,
    accelerator_type: Annotated[
        str | None, typer.Option("--accelerator-type", help="use only such GPUs, by Ray's name: H100, A100, ...")
    ] = Options.accelerator_type,
    max_failures: Annotated[
        int, typer.Option(min=0, help="losses of a stage's worker or node in a row, without progress, that are made up")
    ] = Options.max_failures,
    store_patience: Annotated[
        float, typer.Option("--store-patience", min=0, help="minutes to wait for a store that does not answer")
    ] = Options.store_patience,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, help="minutes between saved training states")
    ] = Options.checkpoint_minutes,
    no_share: Annotated[bool, typer.Option("--no-share", help="pre-train anew for every trial")] = not Options.share,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="keep the fine-tuned weights, for predict")
    ] = Options.keep_weights,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="run failed trials again")
    ] = Options.retry_failed,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="add the grid to a run that has another name or trials beyond it; do not ask"),
    ] = Options.extend,
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            autocompletion=completion.choices("tensorboard", "mlflow", "wandb"),
            help="also log to tensorboard, mlflow or wandb; may be repeated",
        ),
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="of a search space that says equal: seconds: a run that measured them"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="print the plan, check all that a run checks, start nothing; with --address later all but the cluster",
        ),
    ] = False,
) -> None:
    """Run every trial of a search space, or go on with a run that was interrupted or whose grid has grown."""
    from ablate.errors import InputError
    from ablate.running.plan_words import checking_line, plan_lines
    from ablate.space import plan_of

    found = grid_of(grid, set_, costs)
    if costs is not None and not by_seconds(found):
        raise InputError(f"--costs must go with a search space that says equal: seconds; {found.name} does not")
    print("\n".join(plan_lines(found, plan_of(found.trials))))
    print(checking_line(found), flush=True)
    from ablate.running.driver import check_run, closing_lines, run_grid  # takes seconds, during which this is seen
    from ablate.store import Store

    options = Options(
        out=out or f"runs/{found.name}",
        data_dir=data_folder_of(data),
        address=address,
        gpus_per_pretrain=gpus_per_pretrain,
        gpus_per_finetune=gpus_per_finetune,
        cpus_per_stage=cpus_per_stage,
        max_concurrent=max_concurrent,
        deterministic=deterministic,
        cuda_graphs=cuda_graphs,
        compiled=compiled,
        max_failures=max_failures,
        checkpoint_minutes=checkpoint_minutes,
        store_patience=store_patience,
        accelerator_type=accelerator_type,
        share=not no_share,
        keep_weights=keep_weights,
        retry_failed=retry_failed,
        extend=extend,
        log=tuple(log or ()),
    )
    if dry_run:
        raise_again()
        check_run(found, options, console_of_stdout())
        return
    result = run_grid(found, options, console_of_stdout())
    store = Store.open(options.out, writable=False)
    print()
    if result.finished:
        from ablate.report.pivot import pivot, render
        from ablate.report.run_data import read_trials

        trials = read_trials(store)
        print(render(pivot(trials[trials["status"] == "finished"] if result.missing else trials), "plain"))
    print("\n".join(closing_lines(store, result)))
    raise typer.Exit(result.exit_code)


def trial(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC.yaml|TRIAL_ID",
            autocompletion=completion.trial_ids,
            help="a trial's file, or its id in --grid or in the run at --out",
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="folder, s3:// or gs:// address")] = "runs/trial",
    data: DataOption = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid", "-g", autocompletion=completion.grids, help=f"the search space that holds TRIAL_ID: {GRID_HELP}"
        ),
    ] = None,
    set_: SetOption = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="keep the fine-tuned weights, for predict")
    ] = False,
) -> None:
    """Run one trial in this process, without Ray: for debugging and profiling."""
    from ablate.running.single import find_trial, run_single

    raise_again()
    found = find_trial(spec, grid, set_ or [], out)
    raise typer.Exit(run_single(found, out, data_folder_of(data), threads, keep_weights, console_of_stdout()))
