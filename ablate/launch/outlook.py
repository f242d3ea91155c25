"""The lines that a launch prints before anything is paid for: the plan, time, cost, and in a dry run its steps."""

from __future__ import annotations

from ablate.launch.backend import Backend, LaunchRequest
from ablate.launch.estimate.estimation import estimate
from ablate.launch.estimate.words import estimate_lines
from ablate.schedule.stages import Costs
from ablate.space import plan_of


def outlook(request: LaunchRequest, backend: Backend, costs: str | None) -> list[str]:
    """Return the plan, the machines, time and cost, a line each.

    Args:
        request: what is to be launched.
        backend: of its kind of cluster.
        costs: address of an earlier run whose stages tell how long stages take; None for estimates.

    Raises:
        InputError: no machine can run a stage, or the earlier run does not tell its times.
    """
    from ablate.running.plan_words import plan_lines
    from ablate.schedule.costs import require_measured
    from ablate.store.run_file import open_run

    plan, fleet = plan_of(request.grid.trials, request.grid.studies), backend.fleet()
    earlier = None if costs is None else open_run(costs)

    def measured(gpus_pretrain: float, gpus_finetune: float) -> Costs:
        assert earlier is not None
        return require_measured(earlier, gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune)

    found = estimate(
        plan,
        fleet,
        request.options,
        None if earlier is None else measured,
        where=str(request.file.path),
        source="" if earlier is None else f"measured in {earlier.label}",
    )
    return [*plan_lines(request.grid, plan), *estimate_lines(found)]


def rehearsal(request: LaunchRequest, backend: Backend) -> list[str]:
    """Return the steps of a launch, the commands that set an account up, and the file as it will be used."""
    lines = ["", "steps", *(f"  {number}. {step}" for number, step in enumerate(backend.steps(), start=1))]
    commands = backend.account_commands()
    if commands:  # each in a line that a shell takes
        lines += ["", "by you, once for each account (a command may fail because its object exists)", *commands]
    return [*lines, "", f"{request.file.path} as it will be used:", backend.resolved()]
