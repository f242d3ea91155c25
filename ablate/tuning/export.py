"""A tuning as an Optuna storage, which Optuna's own tools and optuna-dashboard open."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate.errors import InputError
from ablate.tuning.configuration import Configuration
from ablate.tuning.course import Course
from ablate.tuning.sampling import distribution, frozen, known_settings, quiet


def export_storage(courses: Sequence[Course], file: Path) -> None:
    """Write tunings into a new SQLite file, one study for each arm and place; complete or not at all.

    A configuration that failed is a failed trial, one that was stopped is pruned, an open one is running.

    Raises:
        InputError: the file exists, or its folder cannot be written.
    """
    if file.exists():
        raise InputError(f"{file} exists; give another name, or delete it first")
    try:
        with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".ablate-") as folder:
            made = Path(folder) / "studies.db"
            _write(courses, made)
            os.link(made, file)  # refuses a file that has come to be meanwhile
    except FileExistsError as error:
        raise InputError(f"{file} exists; give another name, or delete it first") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); give another place") from error


def _write(courses: Sequence[Course], file: Path) -> None:
    import optuna

    with quiet():
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        try:
            for course in courses:
                study = optuna.create_study(storage=storage, study_name=study_name(course), direction="minimize")
                study.set_metric_names(["val_mre"])
                study.add_trials([_trial(course, found) for found in course.configurations])
        finally:
            storage.engine.dispose()


def study_name(course: Course) -> str:
    """Return the name of a tuning: `pretrain_method=ddpm, shots=5`, with its repeat where there are several."""
    study = course.study
    repeat = f"repeat {study.repeat}" if study.spec.repeats > 1 else ""
    return ", ".join(filter(None, [study.arm, study.place.replace(",", ", "), repeat]))


def _trial(course: Course, found: Configuration) -> Any:
    import optuna

    told = {
        "number": found.number,
        "round": found.round,
        "chosen": found.chosen,
        "seeds": list(course.study.spec.seeds),
        "trial_ids": [trial.trial_id for trial in found.trials],
        "epochs": list(found.epochs),
        "finetune_gpu_hours": found.hours,
    }
    if found.state in ("finished", "stopped"):
        trial = frozen(course.study, found)
        for name, value in {**told, "val_mre_seeds": list(found.values)}.items():
            trial.set_user_attr(name, value)
        return trial
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.FAIL if found.state == "failed" else states.RUNNING,
        params=known_settings(found),
        distributions={name: distribution(search) for name, search in course.study.search.items()},
        user_attrs=told,
    )
