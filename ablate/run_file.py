"""`run.yaml`: what a run is about, on which data, and by which versions; and what a run holds already."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ablate import __version__
from ablate.datasets import Dataset
from ablate.space import Grid, InputError
from ablate.store import MANIFEST, Store, step_of

RUN_FILE = "run.yaml"
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


def yaml_bytes(content: dict[str, Any]) -> bytes:
    """Return the content of `run.yaml` as text."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C where there is one: 10 000 trials are megabytes
    text: str = yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


def published_snapshots(
    store: Store, keys: Sequence[str], damaged: Callable[[str], None] = lambda path: None
) -> set[tuple[str, int]]:
    """Return (key, step) of every snapshot that exists whole, of the pre-trainings `keys`.

    `damaged` is told the path of each that was whole once: it has a manifest which its files do not fit.
    """
    found = set()
    present = set(store.list("pretrained"))
    for key in keys:
        if key not in present:
            continue
        for name in store.list(f"pretrained/{key}"):
            step, path = step_of(name), f"pretrained/{key}/{name}"
            if step is not None and store.manifest(path) is not None:
                found.add((key, step))
            elif step is not None and store.exists(f"{path}/{MANIFEST}"):
                damaged(path)
    return found


def open_run(address: str | Path) -> Store:
    """Return the store of a run, to be read.

    Raises:
        InputError: there is no run.
    """
    store = Store.open(address, writable=False)
    if not store.exists(RUN_FILE):
        raise InputError(f"{store.label}: there is no run here (no {RUN_FILE}); give the folder that --out named")
    return store


def read_run_file(store: Store) -> dict[str, Any]:
    """Return the content of `run.yaml`; empty if the run is new."""
    try:
        content = yaml.load(store.read(RUN_FILE), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def check_same_data(before: dict[str, Any], loaded: dict[str, Dataset], store: Store) -> None:
    """Raise `InputError` if a data set is not the one that the run was started with."""
    for name, facts in before.get("data", {}).items():
        if name in loaded and loaded[name].fingerprint != facts["fingerprint"]:
            raise InputError(
                f"{store.label}: this run was started with another version of data set {name} (fingerprint "
                f"{facts['fingerprint']}, now {loaded[name].fingerprint}); give its own data, or another --out"
            )


def run_file(
    before: dict[str, Any], grid: Grid, loaded: dict[str, Dataset], resources: dict[str, float], *, share: bool = True
) -> dict[str, Any]:
    """Return the content of `run.yaml`: what is run, on which data, by which versions."""
    from ablate.attempt import git_revision

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
    for name, dataset in loaded.items():
        splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
        data[name] = {
            "fingerprint": dataset.fingerprint,
            "unit": dataset.unit,
            "num_landmarks": dataset.num_landmarks,
            "sdr_thresholds": list(dataset.sdr_thresholds),
            "counts": {split: len(part.names) for split, part in splits.items()},
            "duplicates": [n for n, twice in zip(dataset.test.names, dataset.test.duplicates_N, strict=True) if twice],
        }
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
    }
    return {
        "name": grid.name,
        "description": grid.description,
        "search_space": grid.resolved,
        "data": data,
        "sessions": [*before.get("sessions", []), session],
        "trials": list(trials.values()),
    }
