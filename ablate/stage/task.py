"""The task of one attempt at a stage: what it works on and with, and its config, the part that travels to a worker."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ablate.datasets import Dataset, load_dataset
from ablate.errors import InputError
from ablate.schedule.stages import Stage, StageKind
from ablate.space import Pretraining, TrialSpec
from ablate.stage.settings import Settings
from ablate.store import Store
from ablate.store.layout import pretrained_folder, trial_folder, tuning_folder
from ablate.training import Report

_HOMES: Mapping[StageKind, Callable[[str], str]] = {
    "pretrain": pretrained_folder,
    "finetune": trial_folder,
    "trial": trial_folder,
    "tune": tuning_folder,
}
"""The folder of each kind of stage."""


class Data(Protocol):
    """Returns data sets, see `data_in`."""

    def __call__(self, name: str, image_size: int, fold: int | None = None, /) -> Dataset:
        """Return a data set, or one of its folds, with images of `image_size` x `image_size` pixels."""
        ...


def data_in(data_dir: Path | str | None) -> Data:
    """Return the data sets of a data folder or address; each of the last four is loaded once and kept."""

    @functools.lru_cache(maxsize=4)
    def load(name: str, image_size: int, fold: int | None = None, /) -> Dataset:
        return load_dataset(name, data_dir, image_size, fold)

    return load


@dataclass(frozen=True)
class Task:
    """A stage, what it works on, and what it may use."""

    stage: Stage
    spec: Pretraining | TrialSpec  # the former of a `pretrain` stage
    store: Store
    data: Data
    report: Report
    settings: Settings
    snapshots: tuple[int, ...] = ()  # of a `pretrain` stage: the steps to be published, ascending
    tuned_by: TrialSpec | None = None  # of a `finetune` stage: a trial like those that judged its settings
    until: float = 1.0  # of a `tune` stage: the share of its optimizer steps at which it pauses

    @classmethod
    def of(cls, config: Mapping[str, Any], *, store: Store, data: Data, report: Report, settings: Settings) -> Task:
        """Return the task of a stage whose config `config_of` has written."""
        stage = stage_of(config)
        kind = Pretraining if stage.kind == "pretrain" else TrialSpec
        spec = kind.model_validate_json(config["spec"])
        snapshots, until = tuple(config.get("snapshots", ())), float(config.get("until", 1.0))
        judge = config.get("tuned_by")
        tuned_by = None if judge is None else TrialSpec.model_validate_json(judge)
        return cls(stage, spec, store, data, report, settings, snapshots, tuned_by, until)

    @property
    def pretrain_key(self) -> str | None:
        """Key of the pre-training that the stage runs or starts from."""
        return self.spec.key if isinstance(self.spec, Pretraining) else self.spec.pretrain_key

    @property
    def home(self) -> str:
        """Folder of the stage's log, state and artifacts in the store."""
        return _HOMES[self.stage.kind](self.stage.name)

    def pretrained(self, pretraining: Pretraining) -> str:
        """Return the folder of the snapshots of the pre-training that the stage runs or starts from."""
        return pretrained_folder(pretraining.key, self.stage.name if self.stage.kind == "trial" else None)

    def dataset(self, name: str, image_size: int, fold: int | None) -> Dataset:
        """Load a data set, or one of its folds.

        Raises:
            InputError: it is not the one that the run was started with.
        """
        dataset = self.data(name, image_size, fold)
        expected = self.settings.fingerprints.get(name)
        if expected is not None and dataset.fingerprint != expected:
            raise InputError(
                f"data set {name} on {socket.gethostname()} is not the one the run was started with: fingerprint "
                f"{dataset.fingerprint}, expected {expected}; give every machine the same data"
            )
        return dataset


def config_of(
    stage: Stage,
    spec: Pretraining | TrialSpec,
    snapshots: Sequence[int] = (),
    *,
    until: float = 1.0,
    tuned_by: TrialSpec | None = None,
) -> dict[str, Any]:
    """Return what a stage works on as plain values, which `Task.of` reads in the worker."""
    own: dict[str, dict[str, Any]] = {"pretrain": {"snapshots": list(snapshots)}, "tune": {"until": until}}
    if tuned_by is not None:
        own["finetune"] = {"tuned_by": tuned_by.model_dump_json()}
    return {"kind": stage.kind, "name": stage.name, "spec": spec.model_dump_json(), **own.get(stage.kind, {})}


def stage_of(config: Mapping[str, Any]) -> Stage:
    """Return the stage of a config that `config_of` has written."""
    return Stage(config["kind"], config["name"])
