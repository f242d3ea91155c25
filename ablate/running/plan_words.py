"""The work that a search space is, in a few lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ablate.running.naming import Names
from ablate.schedule.fitting import sharing_lines
from ablate.space import METHODS, Equal, Grid, Plan, TrialSpec, axes_of
from ablate.space.words import initialisation, spoken
from ablate.words import counted

if TYPE_CHECKING:
    from ablate.schedule.forecast import Forecast
    from ablate.schedule.machine import Machine

_LISTED = 12


def _values(name: str, values: Sequence[Any]) -> str:
    texts = [METHODS[value].label if value in METHODS else str(spoken(name, value)) for value in values]
    more = f", ... ({len(texts)} values)" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def plan_lines(grid: Grid, plan: Plan, *, done: int = 0) -> list[str]:
    """Return the trials, the pre-trainings, what sharing saves, and what each axis holds, a line each."""
    need = Counter(trial.pretrain_key for trial in plan.trials if trial.pretrain_key is not None)
    total, distinct = need.total(), len(plan.pretrainings)
    steps_alone = sum(trial.pretraining.fields.steps for trial in plan.trials if trial.pretraining is not None)
    saved = counted(total - distinct, "pre-training")
    steps_shared = sum(pretraining.fields.steps for pretraining in plan.pretrainings.values())
    lines = [
        f"{grid.name}: {grid.description}" if grid.description else grid.name,
        f"  trials         {len(plan.trials)}"
        + (f", {done} of them finished before" if done else "")
        + (f" of the defaults, and at most {len(plan.trials)} of chosen settings" if grid.studies else ""),
        f"  pre-trainings  {distinct} for {counted(total, 'trial')}: sharing saves {saved}, "
        f"{steps_alone - steps_shared:,} of {steps_alone:,} optimizer steps"
        if total
        else "  pre-trainings  none",
    ]
    words = {key: f"{initialisation(p.spec)} on {p.fields.dataset}" for key, p in plan.pretrainings.items()}
    names, counts = Names(plan.trials), Counter(words.values())
    apart = {
        key: f" ({names.pretraining(pretraining)})" if counts[words[key]] > 1 else ""
        for key, pretraining in plan.pretrainings.items()
    }
    for key, pretraining in plan.pretrainings.items():
        snapshots = plan.snapshots[key]
        taken = f"; snapshots at {', '.join(map(str, snapshots))}" if len(snapshots) > 1 else ""
        lines.append(
            f"    {key}  {words[key]}{apart[key]}, {pretraining.network.kind}, {counted(need[key], 'trial')}{taken}"
        )
    lines += [*_equal_lines(Equal.of(grid.resolved)), *_tuning_lines(grid), "  axes"]
    for name, values in axes_of(plan.trials).items():
        lines.append(f"    {name:<24} {_values(name, values)}")
    return lines


def _tuning_lines(grid: Grid) -> list[str]:
    """Return what is tuned, and by how many trials: none where nothing is."""
    if not grid.studies:
        return []
    spec = grid.studies[0].spec
    trials = sum(study.spec.budget * len(study.spec.seeds) for study in grid.studies)
    halved = f"; the worse half of a round stops after {', '.join(f'{share:.0%}' for share in spec.halve)}"
    lines = [
        f"  tuning         {counted(trials, 'trial')} at most: {spec.budget} configurations ({spec.sampler}, in "
        f"{counted(spec.num_rounds, 'round')} of {spec.round}) for each of {len(grid.studies)}, by "
        f"{counted(len(spec.seeds), 'seed')}{halved if spec.halve else ''}"
    ]
    if spec.halve and spec.round < 3:
        lines.append("    note: the default is never stopped, so that of two configurations the other always is")
    for name, found in spec.search.items():
        only = f" ({', '.join(found.only)})" if found.only else ""
        lines.append(f"    {name:<24} {found.words}{only}")
    return lines


def _equal_lines(equal: Equal) -> list[str]:
    """Return what is made equal between the arms beside the epochs, with the seconds that it rests on."""
    if equal.by == "epochs":
        return []
    costs = [f"      {words}: {seconds:g}" for words, seconds in (equal.costs or {}).items()]
    return [
        f"  equal          {equal.by}: what is not pre-trained fine-tunes for what others spend on theirs "
        f"({equal.pretraining})",
        *(["    costs, seconds of an optimizer step:", *costs] if costs else []),
    ]


def trial_lines(trials: Sequence[TrialSpec]) -> list[str]:
    """Return one line for each trial: its id and what it is."""
    names = Names(trials)
    return [f"{trial.trial_id}  {names.trial(trial)}" for trial in trials]


def checking_line(grid: Grid) -> str:
    """Return the line about the first work of a run, which takes seconds before anything else is heard of it."""
    return f"checking {counted(len(grid.trials), 'trial')}: data sets, networks, weights"


def forecast_lines(forecasts: Sequence[Forecast], machine: Machine, source: str) -> list[str]:
    """Return what simulated runs predict, a line for each; `source` says where the stages' times come from."""
    cores = ""
    if machine.cpus_per_gpu is not None:
        node = f"nodes of {counted(int(machine.node.cpus), 'CPU')} and {counted(machine.gpus_per_node, 'GPU')}"
        cores = f" in {node}"
    where = [counted(machine.gpus, "GPU") + cores] if machine.gpus else []
    where += [counted(machine.slots, "slot")] if machine.slots is not None else []
    shares = f" ({machine.gpus_pretrain:g} per pre-training, {machine.gpus_finetune:g} per fine-tuning"
    shares += f", {counted(machine.cpus_per_stage, 'CPU')} per stage)" if cores else ")"
    device = "GPU" if machine.gpus else "slot"
    columns = ("makespan", f"{device}-hours", "idle", "chain", f"work/{device}s", "packing", "ratio")
    lines = [
        f"  prediction     {' and '.join(where)}{shares if machine.gpus else ''}; times {source}",
        f"    {'':<12}" + "".join(f"{name:>12}" for name in columns),
    ]
    for forecast in forecasts:
        schedule, bounds = forecast.schedule, forecast.bounds
        hours = (schedule.gpu_seconds if machine.gpus else schedule.stage_seconds) / 3600
        values = (
            _clock(schedule.makespan_s),
            f"{hours:,.2f}",
            f"{schedule.idle_share:.1%}",
            *("-" if at is None else _clock(at) for at in (bounds.chain_s, bounds.work_s, bounds.packing_s)),
            f"{forecast.ratio:.3f}",
        )
        name = "shared" if forecast.share else "not shared"
        lines.append(f"    {name:<12}" + "".join(f"{value:>12}" for value in values))
    if machine.cpus_per_gpu is not None:
        idle = sharing_lines(
            [machine.node],
            gpus_pretrain=machine.gpus_pretrain,
            gpus_finetune=machine.gpus_finetune,
            cpus_per_stage=machine.cpus_per_stage,
        )
        lines += [f"    note: {line}" for line in idle]
    if len(forecasts) == 2 and forecasts[0].schedule.makespan_s > 0:
        shared, alone = (forecast.schedule for forecast in forecasts)
        lines.append(f"    sharing ends {alone.makespan_s / shared.makespan_s:.1f} times as early")
    lines.append(
        "    ratio: the makespan over the largest lower bound: the longest chain of pre-training and fine-tuning,"
    )
    lines.append(f"    all work spread over the {device}s, the best packing of pre-trainings (or of unshared trials)")
    if any(forecast.bounds.chain_s is None for forecast in forecasts):
        lines.append("    -: not known before the run, as tuning decides which stages there are")
    return lines


def benched_lines(forecast: Forecast, start_s: float, missing: Sequence[str]) -> list[str]:
    """Return what is to be said of a prediction by a bench.

    Args:
        forecast: the run's.
        start_s: seconds that it takes besides its stages.
        missing: what the bench did not measure, and the plan needs.
    """
    lines = [
        f"    from the command to its end a run takes {_clock(start_s + forecast.schedule.makespan_s)}: about "
        f"{start_s:.0f} s go into checks and the start of Ray and its workers"
    ]
    if missing:
        lines.append("    not measured by the bench, at the rate of the most similar that was:")
        lines += [f"      {what}" for what in missing]
    return lines


def _clock(seconds: float) -> str:
    """Return seconds as `100:01:30`, hours first."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
