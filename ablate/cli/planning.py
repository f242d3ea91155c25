"""Commands that look at search spaces: `grids` and `plan`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablate.cli.shared import GridOption, SetOption, by_seconds, grid_of, store_of

if TYPE_CHECKING:
    from ablate.schedule.bench_file import Bench
    from ablate.schedule.costs import Expected
    from ablate.schedule.forecast import Forecast
    from ablate.schedule.machine import Machine
    from ablate.schedule.stages import Costs
    from ablate.space import Plan
    from ablate.store import Store


def grids() -> None:
    """List the search spaces that ship with ablate."""
    from ablate.space import find_grid, load_grid, shipped_grids

    for name in shipped_grids():
        grid = load_grid(find_grid(name))
        print(f"{name:<18}{len(grid.trials):>5} trials  {grid.description}")


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
        str | None,
        typer.Option(
            metavar="RUN", help="take times from an earlier run, also those of equal: seconds; default: estimates"
        ),
    ] = None,
    bench: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="take times from what `ablate bench --json FILE` measured; those of --costs go before them; without "
            "--gpus and --slots, on one such machine",
        ),
    ] = None,
    no_share: Annotated[
        bool, typer.Option("--no-share", help="predict a run without shared pre-trainings only")
    ] = False,
) -> None:
    """Print a search space's trials, pre-trainings and axes, and how long they would take; runs nothing."""
    from ablate.errors import InputError
    from ablate.running.plan_words import plan_lines, trial_lines
    from ablate.space import plan_of

    found = grid_of(grid, set_, costs)
    work = plan_of(found.trials, found.studies)
    lines = plan_lines(found, work)
    if gpus is not None or slots is not None or bench is not None:
        cores = {"cpus_per_gpu": cpus_per_gpu, "cpus_per_stage": cpus_per_stage, "gpus_per_node": gpus_per_node}
        shares = (gpus_per_pretrain, gpus_per_finetune)
        lines += _forecast(work, gpus, slots, shares, cores, costs, bench, not no_share)
    elif (
        None if by_seconds(found) else costs,
        gpus_per_pretrain,
        gpus_per_finetune,
        cpus_per_gpu,
        cpus_per_stage,
        gpus_per_node,
        no_share,
    ) != (
        *(None, None, None, None),
        *(1, 1, False),
    ):
        raise InputError("--gpus or --slots must be given to predict how long a run takes, such as --gpus 8")
    print("\n".join(lines))
    if trials:
        print("\n".join(trial_lines(work.trials)))


def _machine(
    gpus: int,
    slots: int | None,
    gpus_per_pretrain: float | None,
    gpus_per_finetune: float | None,
    cores: dict[str, Any],
) -> Machine:
    """Return what the stages run on."""
    from ablate.schedule.fitting import FINETUNE_GPUS, PRETRAIN_GPUS
    from ablate.schedule.machine import Machine

    pretrain = gpus_per_pretrain if gpus_per_pretrain is not None else PRETRAIN_GPUS * (gpus > 0)
    finetune = gpus_per_finetune if gpus_per_finetune is not None else FINETUNE_GPUS * (gpus > 0)
    return Machine(gpus, pretrain, finetune, slots, **cores)


def _forecasts(work: Plan, machine: Machine, costs: Expected, share: bool) -> list[Forecast]:
    """Return simulated runs of `work`, with and without sharing."""
    from ablate.schedule.forecast import forecast

    pretrain, finetune = machine.gpus_pretrain, machine.gpus_finetune
    shared, alone = (costs(gpus_pretrain=pretrain, gpus_finetune=gpus) for gpus in (finetune, pretrain))
    forecasts = [forecast(work, shared, machine)] if share else []
    if not work.studies:  # tuning always shares; a whole trial fine-tunes on what its pre-training holds
        forecasts.append(forecast(work, alone, machine, share=False))
    return forecasts


def _forecast(
    work: Plan,
    gpus: int | None,
    slots: int | None,
    shares: tuple[float | None, float | None],
    cores: dict[str, Any],
    measured: str | None,
    bench_file: str | None,
    share: bool,
) -> list[str]:
    """Return the lines that say how long a run of `work` takes, with and without sharing.

    Times are those of the run `measured`, then those of a bench, then estimates.
    """
    from ablate.running.plan_words import benched_lines, forecast_lines
    from ablate.schedule.bench_file import read_bench
    from ablate.schedule.benched import not_measured, require_device, start_seconds
    from ablate.schedule.costs import default_costs, require_measured

    bench = None if bench_file is None else read_bench(bench_file)
    if bench is not None and gpus is None and slots is None:
        gpus, slots = (bench.device.count, None) if bench.device.kind == "cuda" else (0, bench.device.places)
    machine = _machine(gpus or 0, slots, *shares, cores)
    store = None if measured is None else store_of(measured)
    if bench is None:
        costs: Expected = default_costs if store is None else functools.partial(require_measured, store)
        device = "one modern GPU" if gpus else "one CPU core"
        estimated = f"estimated for {device}, see --costs and --bench"
        source = estimated if store is None else f"measured in {store.label}"
        return forecast_lines(_forecasts(work, machine, costs, share), machine, source)
    require_device(bench, gpus=machine.gpus > 0)
    source = f"measured by {bench_file} on {bench.device.words}"
    if store is not None:
        source += f", and by the finished stages of {store.label}"
    found = _forecasts(work, machine, _by_bench(bench, machine, store), share)
    notes = benched_lines(found[0], start_seconds(bench), not_measured(bench, work.trials))
    return [*forecast_lines(found, machine, source), *notes]


def _by_bench(bench: Bench, machine: Machine, store: Store | None) -> Expected:
    """Return the costs that a bench measured, and before that those of the finished stages of the run in `store`."""
    from ablate.schedule.benched import Crowd, bench_costs
    from ablate.schedule.costs import measured_costs

    def by_bench(*, gpus_pretrain: float, gpus_finetune: float) -> Costs:
        shares = {"gpus_pretrain": gpus_pretrain, "gpus_finetune": gpus_finetune}
        return bench_costs(bench, Crowd.of(**shares, slots=machine.slots, most=bench.device.places))

    def by_both(*, gpus_pretrain: float, gpus_finetune: float) -> Costs:
        assert store is not None
        shares = {"gpus_pretrain": gpus_pretrain, "gpus_finetune": gpus_finetune}
        return measured_costs(store, **shares, expected=by_bench) or by_bench(**shares)

    return by_bench if store is None else by_both
