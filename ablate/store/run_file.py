"""`run.yaml`: what a run is about, on which data, and by which versions; and what a run holds already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ablate.errors import InputError
from ablate.space import Source, find_grid
from ablate.store.addresses import is_remote
from ablate.store.files import Store
from ablate.store.layout import PRETRAINED, RUN_FILE, pretrained_folder, step_folder
from ablate.store.manifest import MANIFEST, step_of


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
    present = set(store.list(PRETRAINED))
    for key in keys:
        if key not in present:
            continue
        folder = pretrained_folder(key)
        for step in map(step_of, store.list(folder)):
            if step is None:
                continue
            path = step_folder(folder, step)
            if store.manifest(path) is not None:
                found.add((key, step))
            elif store.exists(f"{path}/{MANIFEST}"):
                damaged(path)
    return found


def open_run(address: str | Path) -> Store:
    """Return the store of a run, to be read.

    Raises:
        InputError: there is no run.
    """
    store = Store.open(address, writable=False)
    if not store.exists(RUN_FILE):
        raise _no_run(store)
    return store


def find_search_space(name: str) -> Source:
    """Return a search space by its name, the path of its file, or the path or address of a run's `run.yaml`.

    Raises:
        InputError: there is none.
    """
    address, mark, query = name.partition("?")
    if not is_remote(name) or not address.endswith(f"/{RUN_FILE}"):
        return find_grid(name)
    store = open_run(f"{address.removesuffix(f'/{RUN_FILE}')}{mark}{query}")
    return Source.parse(store.read(RUN_FILE).decode(), f"{store.label}/{RUN_FILE}")


def planned_trials(store: Store) -> list[dict[str, Any]]:
    """Return the trials that `run.yaml` names, each a mapping with `trial_id` and the spec's fields.

    Raises:
        InputError: there is no run.
    """
    content = read_run_file(store)
    if not content:
        raise _no_run(store)
    trials: list[dict[str, Any]] = content["trials"]
    return trials


def read_run_file(store: Store) -> dict[str, Any]:
    """Return the content of `run.yaml`; empty if there is none, as in a new run."""
    try:
        content = yaml.load(store.read(RUN_FILE), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def _no_run(store: Store) -> InputError:
    return InputError(f"{store.label}: there is no run here (no {RUN_FILE}); give the folder that --out named")
