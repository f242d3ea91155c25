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
from ablate.space import Grid
from ablate.store import Store

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
) -> dict[str, Any]:
    """Return the content of `run.yaml`: what is run, on which data, by which versions."""
    from ablate.revision import git_revision

    trials = {row["trial_id"]: row for row in before.get("trials", [])}
    trials |= {
        trial.trial_id: {
            "trial_id": trial.trial_id,
            "pretrain_key": trial.pretrain_key,
            **trial.model_dump(mode="json"),
        }
        for trial in grid.trials
    }
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
        "trials": list(trials.values()),
    }
