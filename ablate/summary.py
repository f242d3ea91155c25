"""How much work is a search space, in a few lines of text?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ablate.display import initialisation
from ablate.space import METHODS, Grid, Plan, TrialSpec, axes_of

_LISTED = 12


def _values(values: Sequence[Any]) -> str:
    texts = [METHODS[value].label if value in METHODS else str(value) for value in values]
    more = f", ... ({len(texts)} values)" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def plan_lines(grid: Grid, plan: Plan, *, done: int = 0) -> list[str]:
    """Return the trials, the pre-trainings, what sharing saves, and what each axis holds, a line each."""
    need = Counter(trial.pretrain_key for trial in plan.trials if trial.pretrain_key is not None)
    total, distinct = need.total(), len(plan.pretrainings)
    steps_alone = sum(trial.pretraining.fields.steps for trial in plan.trials if trial.pretraining is not None)
    steps_shared = sum(pretraining.fields.steps for pretraining in plan.pretrainings.values())
    lines = [
        f"{grid.name}: {grid.description}" if grid.description else grid.name,
        f"  trials         {len(plan.trials)}" + (f", {done} of them finished before" if done else ""),
        f"  pre-trainings  {distinct} for {total} trials: sharing saves {total - distinct} pre-trainings, "
        f"{steps_alone - steps_shared:,} of {steps_alone:,} optimizer steps"
        if total
        else "  pre-trainings  none",
    ]
    for key, pretraining in plan.pretrainings.items():
        snapshots = plan.snapshots[key]
        taken = f"; snapshots at {', '.join(map(str, snapshots))}" if len(snapshots) > 1 else ""
        lines.append(
            f"    {key}  {initialisation(pretraining.spec)} on {pretraining.fields.dataset}, "
            f"{pretraining.network.kind}, {need[key]} trials{taken}"
        )
    lines.append("  axes")
    for name, values in axes_of(plan.trials).items():
        lines.append(f"    {name:<24} {_values(values)}")
    return lines


def trial_lines(trials: Sequence[TrialSpec]) -> list[str]:
    """Return one line for each trial: its id and what it is."""
    from ablate.display import trial_words

    return [f"{trial.trial_id}  {trial_words(trial)}" for trial in trials]
