"""Settings chosen on the validation set, where several were run for one cell of a table.

A cell is what stands at one place of a table: a data set, an initialisation, a number of shots. Its candidates differ
in settings of the training (learning rate, timesteps, ...); the one with the lowest value on the validation images is
kept, for all its seeds, without a look at the test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ablate.errors import InputError, nearest
from ablate.report.grouping import (
    FIELDS,
    INITIALISATION,
    SEED_FIELDS,
    TRANSFER,
    Grouping,
    Value,
    check_axis,
    field_label,
    filter_trials,
    group_trials,
    initialisations,
    order_of,
    plain,
    value_label,
)
from ablate.report.metrics import METRICS, RATES, Metric, metric_values
from ablate.report.roles import ROLE
from ablate.stats import select_by_validation

ON_VALIDATION = ("val_mre", "val_loss")
"""Metrics that settings may be chosen by: those of the validation images."""

_ON_TEST = ("mre", "mre_median", "mre_std", "paper_mre", *RATES)

_CONDITIONS = (INITIALISATION, "pretrain_name", "pretrain_dataset", "pretrain_images", TRANSFER, *SEED_FIELDS)
"""Fields of a pre-training that are what is compared, and the seeds: never settings."""

SETTINGS: tuple[str, ...] = tuple(
    name for name in FIELDS if name.startswith(("pretrain_", "finetune_")) and name not in _CONDITIONS
)
"""Fields that may be chosen on the validation set; data, network and evaluation stay apart."""

_LOSS = ("finetune_loss", "finetune_target", "finetune_sigma")
"""Fields by which a validation loss is another quantity."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for one cell."""

    where: tuple[tuple[str, Value], ...]  # the cell's fields
    chosen: tuple[tuple[str, Value], ...]  # settings that differ between its candidates
    candidates: int
    without_value: int  # candidates that lack a value on the validation set, or a seed
    value: float  # on the validation images, over the seeds that all candidates have
    num_seeds: int
    trial_ids: tuple[str, ...]  # of the chosen candidate, finished or not

    @property
    def text(self) -> str:
        """The chosen settings for a reader: `timesteps 250, finetune lr 0.001`."""
        return ", ".join(f"{field_label(name)} {value_label(name, value)}" for name, value in self.chosen)


@dataclass(frozen=True)
class Selected:
    """The trials of a run of which each cell has one setting."""

    trials: pd.DataFrame
    metric: Metric
    choices: tuple[Choice, ...]  # of cells with several candidates
    settled: tuple[str, ...]  # fields that were chosen
    undecided: int  # cells without a value on the validation set; they are left out

    @property
    def mark(self) -> str:
        """The same in a few words, for a figure."""
        most = max((choice.candidates for choice in self.choices), default=1)
        return f"selected on validation ({self.metric.name}), out of up to {most} settings"

    @property
    def note(self) -> str:
        """How the settings were chosen, in sentences."""
        counts = sorted({choice.candidates for choice in self.choices})
        if not counts:
            return f"No cell has several settings to choose from by {self.metric.label}."
        among = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        fields = ", ".join(field_label(name) for name in self.settled)
        text = (
            f"Selected on validation: each cell is the setting ({fields}) with the lowest {_in_words(self.metric)} "
            f"out of {among}, the test images unseen."
        )
        lacking = sum(choice.without_value > 0 for choice in self.choices)
        text += f" In {_cells(lacking)} some candidates have no such value yet." if lacking else ""
        left = f" {_cells(self.undecided).capitalize()} without any such value left out."
        return text + (left if self.undecided else "")


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _in_words(metric: Metric) -> str:
    label = metric.label if metric.label[:3] == "MRE" else metric.label.lower()
    return f"{label} ({metric.name})"


def check_best_by(name: str) -> Metric:
    """Return the metric to choose by; raise `InputError` if it is not one of the validation images."""
    if name in ON_VALIDATION:
        return METRICS[name]
    column, choices = name.partition("@")[0].replace(".", "_"), " or ".join(ON_VALIDATION)
    if column in _ON_TEST:
        raise InputError(
            f"--best-by must be {choices}; got {name!r}: a choice by what was measured on the test images would make "
            "their error look better than it is"
        )
    if column in METRICS:
        raise InputError(f"--best-by must be {choices}; got {name!r}, which was not measured on the validation images")
    raise InputError(f"--best-by must be {choices}; got {name!r}{nearest(name, ON_VALIDATION)}")


def select(trials: pd.DataFrame, *, by: str, axes: Sequence[str] = (INITIALISATION, "shots")) -> Selected:
    """Keep, for each cell, the trials of the setting with the lowest value on the validation images.

    Args:
        trials: the table `trials`, of one or several data sets.
        by: `val_mre` or `val_loss`.
        axes: fields that are shown, and therefore never chosen.

    Raises:
        InputError: `by` is no metric of the validation images, or candidates have losses that cannot be compared.
    """
    metric = check_best_by(by)
    shown = [check_axis("the axis", name) for name in axes]
    settings = [name for name in SETTINGS if name not in shown and _count(trials[name]) > 1]
    kept = [name for name in FIELDS if name not in settings and name not in SEED_FIELDS]
    columns = {name: [plain(value) for value in trials[name]] for name in FIELDS}
    columns[INITIALISATION] = list(initialisations(trials))
    values = metric_values(trials, metric)
    finished = [str(status) == "finished" for status in trials["status"]]
    cells: dict[tuple[Value, ...], dict[tuple[Value, ...], list[int]]] = {}
    for position in range(len(trials)):
        cell = tuple(columns[name][position] for name in kept)
        candidate = tuple(columns[name][position] for name in settings)
        cells.setdefault(cell, {}).setdefault(candidate, []).append(position)
    ids = [str(trial_id) for trial_id in trials["trial_id"]]
    positions: list[int] = []
    choices: list[Choice] = []
    undecided = 0
    for cell, candidates in cells.items():
        if len(candidates) == 1:
            positions += next(iter(candidates.values()))
            continue
        if metric.name == "val_loss":
            _check_losses(candidates, settings)
        seeds = [
            {tuple(columns[name][p] for name in SEED_FIELDS): values[p] for p in found if finished[p]}
            for found in candidates.values()
        ]
        every = sorted({seed for one in seeds for seed in one}, key=str)
        table = np.array([[_number(one.get(seed)) for seed in every] for one in seeds], np.float64)
        chosen = select_by_validation(table.reshape(len(seeds), len(every)), range(len(seeds)))
        if chosen is None:
            undecided += 1
            continue
        number = int(chosen.candidate)
        found = list(candidates.values())[number]
        positions += found
        varied = [i for i in range(len(settings)) if len({candidate[i] for candidate in candidates}) > 1]
        setting = list(candidates)[number]
        choices.append(Choice(
            where=tuple(zip(kept, cell, strict=True)),
            chosen=tuple((settings[i], setting[i]) for i in varied),
            candidates=len(candidates),
            without_value=int((~np.isfinite(table)).any(axis=1).sum()),
            value=chosen.val_mre,
            num_seeds=chosen.num_seeds,
            trial_ids=tuple(ids[p] for p in found),
        ))  # fmt: skip
    first = ["dataset", *shown]
    order = [*first, *(name for name in kept if name not in first)]
    choices.sort(key=lambda choice: [order_of(name, dict(choice.where)[name]) for name in order])
    settled = [name for name in settings if any(name in dict(choice.chosen) for choice in choices)]
    chosen_trials = trials.iloc[sorted(positions)].reset_index(drop=True)
    return Selected(chosen_trials, metric, tuple(choices), tuple(settled), undecided)


def lay_out_trials(
    trials: pd.DataFrame,
    *,
    rows: str = INITIALISATION,
    columns: str = "shots",
    filters: Sequence[str] = (),
    best_by: str | None = None,
) -> tuple[Grouping, Selected | None]:
    """Lay trials out along two fields as `group_trials` does, with one setting in each cell if `best_by` says so.

    Raises:
        InputError: as `group_trials` and `select` do.
    """
    if best_by is None:
        return group_trials(trials, rows=rows, columns=columns, filters=filters), None
    if ROLE in trials:
        raise InputError(
            "--best-by must be left out for a run that was tuned: its settings are chosen on the validation images by "
            "the tuning itself"
        )
    selected = select(filter_trials(trials, filters), by=best_by, axes=(rows, columns))
    grouping = group_trials(selected.trials, rows=rows, columns=columns, settled=selected.settled)
    return replace(grouping, notes=(selected.note, *grouping.notes)), selected


def _count(values: pd.Series) -> int:
    return len({plain(value) for value in values})


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _check_losses(
    candidates: Sequence[tuple[Value, ...]] | dict[tuple[Value, ...], list[int]], names: list[str]
) -> None:
    found = list(candidates)
    for name in _LOSS:
        if name in names and len({candidate[names.index(name)] for candidate in found}) > 1:
            raise InputError(
                f"--best-by val_loss: settings of one cell differ in {name}, so that their losses are different "
                "quantities; choose by val_mre, or keep one with --filter"
            )
