"""A run as a report reads it: its tables so far, and the trials of its plan that have no result yet.

T trials, S seeds, I test images, K landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ablate import tables
from ablate.report.folds import Pooled, pool_folds
from ablate.report.grouping import INITIALISATION, MISSING, plain
from ablate.report.metrics import MEAN_SHAPE
from ablate.report.roles import with_roles
from ablate.space import METHODS, NETWORKS, TrialSpec, flatten
from ablate.stats.samples import BoolArray, FloatArray
from ablate.store import Store
from ablate.store.layout import PICTURES, STRIPS
from ablate.store.run_file import read_run_file
from ablate.words import one_line


@dataclass(frozen=True, eq=False)
class Errors:
    """Radial errors of all finished trials of one data set."""

    dataset: str
    unit: str
    trial_ids: tuple[str, ...]
    images: tuple[str, ...]  # file names, sorted
    errors_TIK: FloatArray  # in `unit`; NaN = not annotated, or not evaluated by this trial
    duplicates_I: BoolArray  # this radiograph also occurs in train or val

    def of(self, trial_ids: Sequence[str]) -> FloatArray:
        """Return the errors (S, I, K) of some trials; a trial without rows has NaN."""
        rows = {trial_id: row for row, trial_id in enumerate(self.trial_ids)}
        errors_SIK = np.full((len(trial_ids), *self.errors_TIK.shape[1:]), np.nan)
        for seed, trial_id in enumerate(trial_ids):
            if trial_id in rows:
                errors_SIK[seed] = self.errors_TIK[rows[trial_id]]
        return errors_SIK


@dataclass(frozen=True, eq=False)
class RunData:
    """What the tables of a run and its `run.yaml` hold."""

    store: Store
    described: Mapping[str, Any]  # run.yaml; empty if there is none
    trials: pd.DataFrame  # the table `trials`, and a row with status `missing` for each planned trial without one
    curves: pd.DataFrame
    stages: pd.DataFrame
    errors: Mapping[str, Errors]  # by data set
    missing: tuple[str, ...]  # what a reader must know to be missing, in sentences
    single: pd.DataFrame  # as `trials`, but each fold of a data set by itself
    tuning: pd.DataFrame = field(default_factory=pd.DataFrame)  # the table `tuning`
    row_of: Mapping[str, str] = field(default_factory=dict)  # trial -> row of `trials`, where folds are pooled

    def count(self, status: str) -> int:
        """Return the number of trials with a status: finished, failed or missing."""
        return int((self.trials["status"] == status).sum())

    def trials_of(self, trial_ids: Sequence[str]) -> list[str]:
        """Return the ids of the trials, in `single`, that rows of `trials` stand for."""
        wanted = set(trial_ids)
        return [name for name in map(str, self.single["trial_id"]) if self.row_of.get(name, name) in wanted]

    def train_images(self, dataset: str) -> int | None:
        """Return how many annotated images `all` shots are; None if `run.yaml` does not say."""
        counts = _mapping(_mapping(self.described.get("data")).get(dataset)).get("counts")
        count = _mapping(counts).get("train")
        return int(count) if isinstance(count, int) else None


def landmark_labels(described: Mapping[str, Any], dataset: str, count: int) -> tuple[str, ...]:
    """Return what the landmarks of a data set are called: the names in `run.yaml`, or their numbers."""
    names = _mapping(_mapping(described.get("data")).get(dataset)).get("landmark_names")
    known = [one_line(name) for name in names] if isinstance(names, list) else []
    return tuple(known[number] if number < len(known) else str(number) for number in range(count))


def read_trials(store: Store, *, pooled: bool = True) -> pd.DataFrame:
    """Return the table `trials` of a run, with a row of status `missing` for each planned trial that has none yet.

    Trials of the folds of one data set are pooled, see `pool_folds`, unless `pooled` is False.
    """
    found, single = _read_trials(store, read_run_file(store))
    return found.trials if pooled else single


_MAY_BE_NULL = ("shots", "finetune_epochs", "finetune_timestep")
"""Fields with a default of which null is a value: all shots, no number of epochs, no timestep."""

_ADDED = {
    column: value
    for column, value in flatten(TrialSpec(dataset="any")).items()
    if isinstance(value, (str, int, float)) and not column.startswith("pretrain_") and column not in _MAY_BE_NULL
}
"""Defaults of the columns for fields of every trial, which rows of older versions may lack."""


def _with_defaults(trials: pd.DataFrame) -> pd.DataFrame:
    """Return trials with the default of every field that was added after their rows were written."""
    ranges = trials["network_kind"].map({kind: row.input_range for kind, row in NETWORKS.items()})
    filled = trials.assign(network_input_range=trials["network_input_range"].fillna(ranges)).fillna(_ADDED)
    for method, row in METHODS.items():
        own = filled[INITIALISATION] == method
        for column, default in flatten({"pretrain": row.spec().model_dump()}).items():
            if default is not None and column in filled and (lacking := own & filled[column].isna()).any():
                filled.loc[lacking, column] = default
    return filled


def _with_labels(trials: pd.DataFrame, data: Mapping[str, Any]) -> pd.DataFrame:
    """Return trials with the annotated images they see, where their rows lack them and `run.yaml` tells the counts.

    Of a data set that is divided into folds it does not: its counts are of one of them.

    Args:
        trials: with the defaults of fields.
        data: what `run.yaml` says of data sets.
    """
    labels = trials["labels"].copy()
    for dataset, facts in data.items():
        counts = _mapping(_mapping(facts).get("counts"))
        if "folds" in _mapping(facts) or not {"train", "val"} <= counts.keys():
            continue
        here = (trials["dataset"] == dataset) & labels.isna()
        shots = trials.loc[here, "shots"].fillna(int(counts["train"]))
        labels[here] = shots + int(counts["val"]) * (trials.loc[here, "validation"] == "full")
    return trials.assign(labels=labels)


_MEASURED = ("mre", "mre_median", "sdr", "landmarks")


def _with_baselines(trials: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Return trials with the errors of the mean shape of their shots, in columns that begin with `mean_shape_`.

    `mean_shape_part` tells equal ones.
    """
    known: dict[tuple[object, ...], dict[str, Any]] = {
        tuple(plain(row[name]) for name in tables.BASELINE_KEY): {name: row[name] for name in _MEASURED}
        for row in tables.read_frame(store, "baselines").to_dict("records")
    }
    if not known:
        return trials
    given = trials[["dataset", "shots", "few_shot", "seed", "draw", "fold", "exclude_duplicates"]].to_dict("records")
    keys = [tables.baseline_columns({str(name): plain(value) for name, value in row.items()}) for row in given]
    found = [known.get(tuple(key.values()), {}) for key in keys]
    columns = {f"{MEAN_SHAPE}_{name}": [row.get(name) for row in found] for name in _MEASURED}
    columns[f"{MEAN_SHAPE}_part"] = [tables.baseline_part(key) for key in keys]
    return pd.concat([trials, pd.DataFrame(columns, index=trials.index)], axis="columns")


def _read_trials(store: Store, described: Mapping[str, Any]) -> tuple[Pooled, pd.DataFrame]:
    """Return recorded and planned trials together, first with those of folds pooled, then as they are."""
    recorded = tables.read_frame(store, "trials").sort_values("trial_id", ignore_index=True)
    planned = _planned(described, set(recorded["trial_id"]))
    trials = pd.DataFrame(
        {name: pd.concat([recorded[name], planned[name]], ignore_index=True) for name in recorded.columns}
        if len(planned)
        else recorded
    )

    def read_errors(trial_ids: Sequence[str]) -> pd.DataFrame:
        names = ["trial_id", "error", "error_paper"]
        frame: pd.DataFrame = tables.read_table(
            store, "errors", names, [("trial_id", "in", list(trial_ids))]
        ).to_pandas()
        return frame

    data = _mapping(described.get("data"))
    folds_of = {
        str(name): facts["folds"] for name, facts in data.items() if isinstance(_mapping(facts).get("folds"), int)
    }
    single = _with_labels(_with_defaults(with_roles(trials, described)), data)
    single = _with_baselines(single, store)
    return pool_folds(single, folds_of, read_errors), single


def read_run(store: Store, *, pooled: bool = True) -> RunData:
    """Read a run's tables, finished or not.

    Trials of the folds of one data set are pooled, see `pool_folds`, unless `pooled` is False.

    Raises:
        CorruptArtifact: a part of a table is damaged; the message names it.
    """
    described = read_run_file(store)
    found, single = _read_trials(store, described)
    trials, row_of = (found.trials, found.row_of) if pooled else (single, {})
    errors = dict(_read_errors(store, single, described, row_of))
    stages = tables.read_frame(store, "stages")
    curves = tables.read_frame(store, "curves")
    missing = tuple(_whats_missing(store, described, trials, errors))
    tuning = tables.read_frame(store, "tuning")
    return RunData(store, described, trials, curves, stages, errors, missing, single, tuning, row_of)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _planned(described: Mapping[str, Any], known: set[str]) -> pd.DataFrame:
    """Return a row with status `missing` for each trial of `run.yaml` that is not `known`."""
    rows = []
    for trial in described.get("trials") or ():
        if not isinstance(trial, Mapping) or trial.get("trial_id") in known:
            continue
        identity = {"trial_id": str(trial.get("trial_id")), "pretrain_key": trial.get("pretrain_key")}
        rows.append(tables.blank("trials") | tables.field_columns(trial) | identity | {"status": MISSING})
    return tables.frame_of("trials", rows)


def _read_errors(
    store: Store, trials: pd.DataFrame, described: Mapping[str, Any], row_of: Mapping[str, str]
) -> Iterator[tuple[str, Errors]]:
    """Read the errors of finished trials, one array for each data set; trials of one row in `row_of` are one.

    Rows of a trial that has no row in `trials` do not count: it is still being written.
    """
    table = tables.read_table(store, "errors", ["trial_id", "image", "landmark", "error"])
    trial_index_N, trial_names = _codes(table["trial_id"])
    image_index_N, image_names = _codes(table["image"])
    landmark_N = table["landmark"].to_numpy().astype(np.int64)
    error_N = table["error"].to_numpy().astype(np.float64)
    del table
    finished = trials[trials["status"] == "finished"]
    for dataset, rows in finished.groupby("dataset", sort=True):
        name = str(dataset)
        rows_of = {str(trial_id): row_of.get(trial_id, str(trial_id)) for trial_id in rows["trial_id"]}
        wanted = {name: number for number, name in enumerate(dict.fromkeys(rows_of.values()))}
        number_of_T = np.array([wanted.get(rows_of.get(trial, ""), -1) for trial in trial_names], dtype=np.int64)
        trial_N = number_of_T[trial_index_N] if len(number_of_T) else trial_index_N
        here_N = np.flatnonzero(trial_N >= 0)
        used = np.unique(image_index_N[here_N])
        order = sorted(used.tolist(), key=lambda code: image_names[code])
        place = np.full(len(image_names), -1, dtype=np.int64)
        place[order] = np.arange(len(order))
        num_landmarks = int(landmark_N[here_N].max()) + 1 if here_N.size else 0
        errors_TIK = np.full((len(wanted), len(order), num_landmarks), np.nan)
        errors_TIK[trial_N[here_N], place[image_index_N[here_N]], landmark_N[here_N]] = error_N[here_N]
        images = tuple(image_names[code] for code in order)
        units = [str(unit) for unit in rows["unit"].dropna().unique()]
        twice = {str(image) for image in _mapping(_mapping(described.get("data")).get(name)).get("duplicates") or ()}
        duplicates_I = np.array([image in twice for image in images], dtype=np.bool_)
        yield name, Errors(name, units[0] if units else "", tuple(wanted), images, errors_TIK, duplicates_I)


def _codes(column: Any) -> tuple[np.ndarray, list[str]]:
    """Return a text column as numbers and what they stand for."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    codes: np.ndarray = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, [str(name) for name in encoded.dictionary.to_pylist()]


def _whats_missing(
    store: Store, described: Mapping[str, Any], trials: pd.DataFrame, errors: Mapping[str, Errors]
) -> Iterator[str]:
    if not described:
        yield "run.yaml: without it, planned trials that have no result yet and duplicate radiographs are not known"
    status = trials["status"]
    if (status == MISSING).any():
        yield f"{int((status == MISSING).sum())} of {len(trials)} planned trials have no result yet"
    if (status == "failed").any():
        failed = int((status == "failed").sum())
        yield f"{failed} of {len(trials)} trials failed; see the table of trials without result"
    with_rows = {trial_id for one in errors.values() for trial_id in _with_errors(one)}
    without = [t for t in trials.loc[status == "finished", "trial_id"] if t not in with_rows]
    if without:
        yield f"no rows in the table errors for {len(without)} finished trials: {', '.join(without[:5])}"
    folders = set(store.list(PICTURES))
    for dataset in sorted({str(plain(value)) for value in trials["dataset"]}):
        if dataset not in folders:
            yield f"no thumbnails of data set {one_line(dataset)}: its test images are not shown"
    if (trials[INITIALISATION] == "ddpm").any() and not store.list(STRIPS):
        yield "no DDPM strips"


def _with_errors(errors: Errors) -> list[str]:
    return [
        trial_id
        for trial_id, errors_IK in zip(errors.trial_ids, errors.errors_TIK, strict=True)
        if np.isfinite(errors_IK).any()
    ]
