"""The trials of a run that was tuned: of the default and of the chosen settings of each arm and place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from ablate.space import Settings, Study, TrialSpec

Role: TypeAlias = Literal["default", "tuned", "both"]
"""Whether a trial has the settings of its arm's default, the chosen ones, or both, because they are equal."""


def final_trials(study: Study, settings: Settings | None) -> tuple[TrialSpec, ...]:
    """Return the replicates of the chosen settings of a study; none where nothing was chosen."""
    return () if settings is None else tuple(study.configured(trial, settings) for trial in study.trials)


class FinalTrial(NamedTuple):
    """A trial of a run that was tuned."""

    trial: TrialSpec
    role: Role
    repeats: tuple[int, ...]  # the independent tunings in which its settings were chosen


def roles_of(choices: Iterable[tuple[Study, Settings | None]]) -> dict[str, FinalTrial]:
    """Return the trials of a run by id, given what each of its studies has chosen."""
    defaults: dict[str, TrialSpec] = {}
    tuned: dict[str, TrialSpec] = {}
    repeats: dict[str, list[int]] = {}
    for study, settings in choices:
        defaults |= {trial.trial_id: trial for trial in study.trials}
        for trial in final_trials(study, settings):
            tuned[trial.trial_id] = trial
            repeats.setdefault(trial.trial_id, []).append(study.repeat)
    found: dict[str, FinalTrial] = {}
    for key, trial in {**defaults, **tuned}.items():
        role: Role = "both" if key in defaults and key in tuned else "tuned" if key in tuned else "default"
        found[key] = FinalTrial(trial, role, tuple(repeats.get(key, ())))
    return found
