"""The content of `run.yaml`: what a run is about, on which data, and by which versions each session ran."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from ablate import __version__
from ablate.datasets import Dataset
from ablate.datasets.types import SPLITS
from ablate.errors import InputError
from ablate.space import Grid, TrialSpec, TuneSpec
from ablate.store import Store
from ablate.tuning import FinalTrial

_LIBRARIES = (
    "torch",
    "torchvision",
    "ray",
    "diffusers",
    "segmentation-models-pytorch",
    "lightly",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
)


def check_same_data(before: dict[str, Any], loaded: Mapping[str, Sequence[Dataset]], store: Store) -> None:
    """Raise `InputError` if a data set is not the one that the run was started with."""
    for name, facts in before.get("data", {}).items():
        if name in loaded and loaded[name][0].fingerprint != facts["fingerprint"]:
            raise InputError(
                f"{store.label}: this run was started with another version of data set {name} (fingerprint "
                f"{facts['fingerprint']}, now {loaded[name][0].fingerprint}); give its own data, or another --out"
            )


def _data_facts(folds: Sequence[Dataset], duplicates: Iterable[str]) -> dict[str, Any]:
    """Return what `run.yaml` says of a data set, or of those of its folds that are used; counts are of the first.

    `duplicates` are the test images of other sessions that also occur in train or val.
    """
    dataset = folds[0]
    counts = {
        split: len(part.names) for split, part in zip(SPLITS, (dataset.train, dataset.val, dataset.test), strict=True)
    }
    twice = {
        image for fold in folds for image, seen in zip(fold.test.names, fold.test.duplicates_N, strict=True) if seen
    }
    facts: dict[str, Any] = {
        "fingerprint": dataset.fingerprint,
        "unit": dataset.unit,
        "num_landmarks": dataset.num_landmarks,
        "sdr_thresholds": list(dataset.sdr_thresholds),
        "counts": {**counts, "unlabelled": len(dataset.unlabelled.names)},
        "duplicates": sorted({*duplicates, *twice}),
    }
    if dataset.folds is not None:
        facts["folds"] = dataset.folds
    if dataset.landmark_names:
        facts["landmark_names"] = list(dataset.landmark_names)
    return facts


def keeps_weights(before: dict[str, Any]) -> bool:
    """Whether an earlier session of a run kept the fine-tuned weights."""
    sessions = before.get("sessions", [])
    return any(session.get("keep_weights", "--keep-weights" in session.get("command", "")) for session in sessions)


def run_file(
    before: dict[str, Any],
    grid: Grid,
    loaded: Mapping[str, Sequence[Dataset]],
    resources: dict[str, float],
    *,
    share: bool = True,
    keep_weights: bool = False,
    finals: Mapping[str, FinalTrial] | None = None,
) -> dict[str, Any]:
    """Return the content of `run.yaml`: what is run, on which data, by which versions.

    `finals` are the trials of a run that is tuned; see `listed_trials`.
    """
    from ablate.revision import git_revision

    data = dict(before.get("data", {}))
    for name, folds in loaded.items():
        data[name] = _data_facts(folds, data.get(name, {}).get("duplicates", ()))
    session = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["ablate", *sys.argv[1:]]),
        "ablate": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
        "resources": {name: resources[name] for name in ("CPU", "GPU") if name in resources},
        "share": share,
        "keep_weights": keep_weights,
    }
    return {
        "name": grid.name,
        "description": grid.description,
        "search_space": grid.resolved,
        "data": data,
        "sessions": [*before.get("sessions", []), session],
        "trials": listed_trials(before, grid, finals),
    }


def listed_trials(
    before: Mapping[str, Any], grid: Grid, finals: Mapping[str, FinalTrial] | None
) -> list[dict[str, Any]]:
    """Return the trials of a run as `run.yaml` lists them.

    Args:
        before: content of `run.yaml` before; its trials stay, but those of an earlier choice of settings.
        grid: what is run.
        finals: where settings are tuned, the trials of the defaults and of what was chosen; they have a role.
    """
    kept = [row for row in before.get("trials", []) if not (finals is not None and row.get("role") == "tuned")]
    trials = {row["trial_id"]: row for row in kept}
    trials |= {trial.trial_id: _listed(trial) for trial in grid.trials}
    for key, final in (finals or {}).items():
        trials[key] = _listed(final.trial) | {"role": final.role, "repeats": list(final.repeats)}
    return list(trials.values())


def _listed(trial: TrialSpec) -> dict[str, Any]:
    return {"trial_id": trial.trial_id, "pretrain_key": trial.pretrain_key, **trial.model_dump(mode="json")}


def check_same_tuning(before: Mapping[str, Any], grid: Grid, store: Store) -> None:
    """Raise `InputError` if a run was tuned by other rules; a budget and repeats may grow."""
    known = (before.get("search_space") or {}).get("tune")
    if not known or not grid.studies:
        return
    may_grow = {"budget", "repeats"}
    specs = (TuneSpec.model_validate(known), grid.studies[0].spec)
    old, new = (spec.model_dump(mode="json", by_alias=True, exclude=may_grow) for spec in specs)
    changed = [name for name in old if old[name] != new[name]]
    if changed:
        raise InputError(
            f"{store.label}: this run was tuned with another tune.{changed[0]}, {old[changed[0]]!r}; got "
            f"{new[changed[0]]!r}; only budget and repeats may change; give another --out"
        )
