"""The statistics of a run: each initialisation at each number of shots, and their comparisons.

S seeds, I test images, K landmarks. An arm is one cell of the comparison: an initialisation at one number of
shots, with all its seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.report.grouping import INITIALISATION, Group, Grouping, Key, field_label, plain, value_label
from ablate.report.intervals import Intervals, Sample
from ablate.report.literature import Reference
from ablate.report.metrics import METRICS
from ablate.report.run_data import Errors, RunData
from ablate.report.selection import Selected, lay_out_trials
from ablate.stats import Best, Comparison, Estimate, PerImage, Resamples, adjust_family, best_of, compare_pairs
from ablate.stats.samples import FloatArray


@dataclass(frozen=True, eq=False)
class Arm:
    """An initialisation at one number of shots."""

    row: Key
    column: Key
    sample: Sample
    mre: Estimate

    @property
    def label(self) -> str:
        """Name of the initialisation for a reader."""
        return self.row.label(INITIALISATION)

    @property
    def shots(self) -> str:
        """The number of shots for a reader: `10`, `all`."""
        return self.column.label("shots")

    @property
    def trial_ids(self) -> tuple[str, ...]:
        """The finished trials, by seed."""
        return self.sample.trial_ids

    @property
    def errors_SIK(self) -> FloatArray:  # noqa: N802 - the shape suffix
        """Radial errors; NaN = not annotated, or not evaluated."""
        return self.sample.errors_SIK

    @property
    def clusters(self) -> tuple[int, ...] | None:
        """Unit of each trial for the bootstrap."""
        return self.sample.clusters

    @functools.cached_property
    def scores(self) -> PerImage:
        """The scores whose value is the MRE."""
        return self.sample.scores


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
    intervals: Intervals
    references: tuple[Reference, ...] = ()  # rows of the literature
    selected: Selected | None = None  # by which the settings were chosen on the validation set

    @property
    def best_by(self) -> str | None:
        """The metric by which settings were chosen."""
        return self.selected.metric.name if self.selected else None

    @property
    def num_resamples(self) -> int:
        """Replicates behind each interval."""
        return self.intervals.num_resamples


def analyse(
    run: RunData, *, num_resamples: int | None = None, best_by: str | None = None, references: Sequence[Reference] = ()
) -> Analysis:
    """Compute the intervals and comparisons of a run, initialisation by shots.

    Args:
        run: the run.
        num_resamples: see `Intervals`.
        best_by: see `ablate.report.selection.select`; default: every setting stands for itself.
        references: rows of the literature.
    """
    grouping, selected = lay_out_trials(run.trials, best_by=best_by)
    intervals = Intervals(run, num_resamples)
    panels = []
    for group in grouping.groups:
        dataset = str(plain(grouping.trials["dataset"].iloc[next(iter(group.cells.values()))[0]]))
        if dataset in run.errors:
            panel = _panel(group, grouping, run.errors[dataset], intervals)
            if panel.arms:
                panels.append(panel)
    return Analysis(run, grouping, tuple(panels), intervals, tuple(references), selected)


def _panel(group: Group, grouping: Grouping, errors: Errors, intervals: Intervals) -> Panel:
    arms: dict[tuple[Key, Key], Arm] = {}
    resamples = intervals.resamples(errors.dataset)
    laid_out = grouping.trials[["trial_id", "dataset", "status", "seed", "pretrain_seed", "draw"]]
    for row in group.rows:
        for column in group.columns:
            sample = intervals.sample(laid_out.iloc[list(group.cells.get((row, column), ()))])
            mre = intervals.of(sample, METRICS["mre"]) if sample else None
            if sample and mre:
                arms[row, column] = Arm(row, column, sample, mre)
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
    arms = {arm.label: arm.sample.hits(threshold) for arm in panel.column_arms(column)}
    return best_of(arms, panel.resamples, higher_is_better=True)
