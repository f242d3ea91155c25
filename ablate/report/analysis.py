"""The statistics of a run: each initialisation at each number of shots, and their comparisons.

S seeds, I test images, K landmarks. An arm is one cell of the comparison: an initialisation at one number of
shots, with all its seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ablate.report.grouping import INITIALISATION, Group, Grouping, Key, field_label, group_trials, plain, value_label
from ablate.report.run_data import Errors, RunData
from ablate.stats import (
    Best,
    Comparison,
    Estimate,
    PerImage,
    Resamples,
    adjust_family,
    best_of,
    compare_pairs,
    crossed_bootstrap,
    error_sums,
    hit_sums,
)
from ablate.stats.samples import FloatArray

SEED = 20_250_101
"""Seed of every bootstrap in a report, so that a report of the same tables is the same."""

MANY_ARMS = 60
"""From this number of arms on, intervals come from fewer replicates, so that a report stays quick."""

NUM_RESAMPLES = 10_000
FEWER_RESAMPLES = 2_000


@dataclass(frozen=True, eq=False)
class Arm:
    """An initialisation at one number of shots."""

    row: Key
    column: Key
    number: int  # of the arm in its panel, so that its seeds are resampled by themselves
    trial_ids: tuple[str, ...]  # finished trials, by seed
    errors_SIK: FloatArray
    clusters: tuple[int, ...] | None  # seed of the pre-training of each trial, where that varies too
    scores: PerImage
    mre: Estimate

    @property
    def label(self) -> str:
        """Name of the initialisation for a reader."""
        return self.row.label(INITIALISATION)

    @property
    def shots(self) -> str:
        """The number of shots for a reader: `10`, `all`."""
        return self.column.label("shots")

    def hits(self, threshold: float) -> PerImage:
        """Return the scores whose value is the SDR at a threshold."""
        return hit_sums(self.errors_SIK, threshold, self.clusters)


@dataclass(frozen=True, eq=False)
class Panel:
    """One comparison: trials of one data set that differ in initialisation, shots and seeds only."""

    group: Group
    dataset: str
    unit: str
    errors: Errors
    resamples: Resamples
    arms: Mapping[tuple[Key, Key], Arm]
    best: Mapping[Key, Best]  # by column; names are labels of rows
    comparisons: Mapping[Key, tuple[Comparison, ...]]  # by column; Holm's family is the whole panel

    @property
    def title(self) -> str:
        """The data set, and the fields that distinguish this panel from others."""
        return f"{self.dataset}, {self.others}" if self.others else self.dataset

    @property
    def others(self) -> str:
        """The fields whose values distinguish this panel from others of its data set."""
        fixed = [(name, value) for name, value in self.group.fixed if name != "dataset"]
        return ", ".join(f"{field_label(name)} {value_label(name, value)}" for name, value in fixed)

    def column_arms(self, column: Key) -> list[Arm]:
        """Return the arms of one number of shots, in the order of the rows."""
        return [self.arms[row, column] for row in self.group.rows if (row, column) in self.arms]

    def row_arms(self, row: Key) -> list[Arm]:
        """Return the arms of one initialisation, from few shots to many."""
        return [self.arms[row, column] for column in self.group.columns if (row, column) in self.arms]


@dataclass(frozen=True, eq=False)
class Analysis:
    """A run with its statistics."""

    run: RunData
    grouping: Grouping
    panels: tuple[Panel, ...]  # of groups that have a result
    num_resamples: int


def analyse(run: RunData, *, num_resamples: int | None = None) -> Analysis:
    """Compute the intervals and comparisons of a run, initialisation by shots."""
    grouping = group_trials(run.trials)
    num_arms = sum(len(group.cells) for group in grouping.groups)
    chosen = num_resamples or (NUM_RESAMPLES if num_arms < MANY_ARMS else FEWER_RESAMPLES)
    resamples = {name: Resamples(np.random.default_rng(SEED), chosen) for name in run.errors}
    panels = []
    for group in grouping.groups:
        dataset = str(plain(grouping.trials["dataset"].iloc[next(iter(group.cells.values()))[0]]))
        if dataset in run.errors:
            panel = _panel(group, grouping, run.errors[dataset], resamples[dataset])
            if panel.arms:
                panels.append(panel)
    return Analysis(run, grouping, tuple(panels), chosen)


def _clusters(trials: pd.DataFrame) -> tuple[int, ...] | None:
    """Return the unit of each trial for the bootstrap: its pre-training, or its draw of the shots; None: itself."""
    seeds = [plain(seed) for seed in trials["pretrain_seed"]]
    if len(set(seeds)) > 1:
        return tuple(int(str(seed)) for seed in seeds if seed is not None)
    pairs = zip(trials["draw"], trials["seed"], strict=True)
    draws = tuple(int(seed) if plain(draw) is None else int(draw) for draw, seed in pairs)
    return draws if trials["draw"].notna().any() and len(set(draws)) < len(draws) else None


def _panel(group: Group, grouping: Grouping, errors: Errors, resamples: Resamples) -> Panel:
    arms: dict[tuple[Key, Key], Arm] = {}
    laid_out = grouping.trials[["trial_id", "status", "seed", "pretrain_seed", "draw"]]
    for row in group.rows:
        for column in group.columns:
            positions = group.cells.get((row, column), ())
            trials = laid_out.iloc[list(positions)]
            trials = trials[trials["status"] == "finished"].sort_values(["seed", "trial_id"])
            trial_ids = tuple(str(trial_id) for trial_id in trials["trial_id"])
            errors_SIK = errors.of(trial_ids)
            if not np.isfinite(errors_SIK).any():
                continue
            clusters = _clusters(trials)
            scores = error_sums(errors_SIK, clusters)
            mre = crossed_bootstrap(scores, resamples, arm=len(arms))
            arms[row, column] = Arm(row, column, len(arms), trial_ids, errors_SIK, clusters, scores, mre)
    best: dict[Key, Best] = {}
    compared: list[tuple[Key, Comparison]] = []
    for column in group.columns:
        scores_of = {row.label(grouping.rows): arms[row, column].scores for row in group.rows if (row, column) in arms}
        if scores_of:
            best[column] = best_of(scores_of, resamples)
            compared += [(column, comparison) for comparison in compare_pairs(scores_of, resamples)]
    family = adjust_family([comparison for _, comparison in compared])
    comparisons: dict[Key, tuple[Comparison, ...]] = dict.fromkeys(group.columns, ())
    for (column, _), comparison in zip(compared, family, strict=True):
        comparisons[column] += (comparison,)
    return Panel(group, errors.dataset, errors.unit, errors, resamples, arms, best, comparisons)


def best_rates(panel: Panel, column: Key, threshold: float) -> Best:
    """Return which initialisation has the highest SDR at one number of shots."""
    arms = {arm.label: arm.hits(threshold) for arm in panel.column_arms(column)}
    return best_of(arms, panel.resamples, higher_is_better=True)
