"""The statistics of a run: each initialisation at each number of shots, and their comparisons.

S seeds, I test images, K landmarks. An arm is one cell of the comparison: an initialisation at one number of
shots, with all its seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ablate.report.conditions import claims_note, is_tuned, networks_of, single_cells
from ablate.report.grouping import INITIALISATION, Group, Grouping, Key, Value, field_label, plain, value_label
from ablate.report.intervals import COLUMNS, Intervals, Sample
from ablate.report.literature import Reference
from ablate.report.metrics import METRICS
from ablate.report.roles import tune_spec
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
    network: tuple[Value, ...]  # what tells its network from others
    single: bool  # all its trials rest on one pre-training

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
class Compared:
    """What tests say of the initialisations of a panel, by number of shots."""

    comparisons: Mapping[Key, tuple[Comparison, ...]] = field(default_factory=dict)
    best: Mapping[Key, tuple[Best, ...]] = field(default_factory=dict)  # one for each network; names are labels of rows
    family_size: int = 0  # tests that Holm's correction is over: all of the panel


@dataclass(frozen=True, eq=False)
class Panel:
    """One comparison: trials of one data set that differ in initialisation, shots and seeds only."""

    group: Group
    dataset: str
    unit: str
    errors: Errors
    resamples: Resamples
    arms: Mapping[tuple[Key, Key], Arm]
    compared: Compared  # by MRE
    across_networks: bool  # are initialisations on different networks compared too
    tuned_note: str | None = None  # why differences of tuned arms are not tested

    @property
    def title(self) -> str:
        """The data set, and the fields that distinguish this panel from others."""
        return f"{self.dataset}, {self.others}" if self.others else self.dataset

    @property
    def others(self) -> str:
        """The fields whose values distinguish this panel from others of its data set."""
        fixed = [(name, value) for name, value in self.group.fixed if name != "dataset"]
        return ", ".join(f"{field_label(name)} {value_label(name, value)}" for name, value in fixed)

    @property
    def networks(self) -> tuple[tuple[Value, ...], ...]:
        """The networks of its arms, each once."""
        return tuple(dict.fromkeys(arm.network for arm in self.arms.values()))

    @property
    def within_networks(self) -> bool:
        """Whether comparisons are left out because the networks differ."""
        return not self.across_networks and len(self.networks) > 1

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
    across_networks: bool = False  # are initialisations on different networks tested and ranked against each other

    @property
    def best_by(self) -> str | None:
        """The metric by which settings were chosen."""
        return self.selected.metric.name if self.selected else None

    @property
    def num_resamples(self) -> int:
        """Replicates behind each interval."""
        return self.intervals.num_resamples


def analyse(
    run: RunData,
    *,
    num_resamples: int | None = None,
    best_by: str | None = None,
    references: Sequence[Reference] = (),
    across_networks: bool = False,
) -> Analysis:
    """Compute the intervals and comparisons of a run, initialisation by shots.

    Args:
        run: the run.
        num_resamples: see `Intervals`.
        best_by: see `ablate.report.selection.select`; default: every setting stands for itself.
        references: rows of the literature.
        across_networks: test and rank initialisations on different networks against each other too.
    """
    grouping, selected = lay_out_trials(run.trials, best_by=best_by)
    intervals = Intervals(run, num_resamples)
    panels = []
    for group in grouping.groups:
        dataset = str(plain(grouping.trials["dataset"].iloc[next(iter(group.cells.values()))[0]]))
        if dataset in run.errors:
            panel = _panel(
                group, grouping, run.errors[dataset], intervals,
                across_networks=across_networks, spec=tune_spec(run.described),
            )  # fmt: skip
            if panel.arms:
                panels.append(panel)
    return Analysis(run, grouping, tuple(panels), intervals, tuple(references), selected, across_networks)


def _panel(
    group: Group,
    grouping: Grouping,
    errors: Errors,
    intervals: Intervals,
    *,
    across_networks: bool,
    spec: Mapping[str, Any],
) -> Panel:
    arms: dict[tuple[Key, Key], Arm] = {}
    resamples = intervals.resamples(errors.dataset)
    laid_out = grouping.trials[[name for name in COLUMNS if name in grouping.trials]]
    networks, single = networks_of(grouping, group), set(single_cells(grouping, group))
    for row in group.rows:
        for column in group.columns:
            sample = intervals.sample(laid_out.iloc[list(group.cells.get((row, column), ()))])
            mre = intervals.of(sample, METRICS["mre"]) if sample else None
            if sample and mre:
                arms[row, column] = Arm(row, column, sample, mre, networks[row, column], (row, column) in single)
    seeds = [arm.mre.num_seeds for arm in arms.values() if is_tuned(arm.row)]
    note = claims_note(spec, max(seeds)) if spec and max(seeds, default=0) > 1 else None
    panel = Panel(group, errors.dataset, errors.unit, errors, resamples, arms, Compared(), across_networks, note)
    return replace(panel, compared=compare(panel, {key: arm.scores for key, arm in arms.items()}))


def compare(panel: Panel, scores: Mapping[tuple[Key, Key], PerImage], *, higher_is_better: bool = False) -> Compared:
    """Compare every two initialisations on one network at the same shots; Holm's family is the whole panel.

    Args:
        panel: its arms.
        scores: of each arm.
        higher_is_better: True for SDR, False for errors.
    """
    arms_of: dict[tuple[Key, tuple[Value, ...]], dict[str, PerImage]] = {}
    for column in panel.group.columns:
        for arm in panel.column_arms(column):
            network = () if panel.across_networks else arm.network
            arms_of.setdefault((column, network), {})[arm.label] = scores[arm.row, arm.column]
    withheld = {arm.label for arm in panel.arms.values() if panel.tuned_note and is_tuned(arm.row)}
    found = [
        (
            column,
            [_untested(pair) if {pair.a, pair.b} & withheld else pair for pair in compare_pairs(arms, panel.resamples)],
        )
        for (column, _), arms in arms_of.items()
    ]
    family = adjust_family([comparison for _, some in found for comparison in some])
    rest = iter(family)
    comparisons: dict[Key, tuple[Comparison, ...]] = dict.fromkeys(panel.group.columns, ())
    best: dict[Key, tuple[Best, ...]] = dict.fromkeys(panel.group.columns, ())
    for (column, some), arms in zip(found, arms_of.values(), strict=True):
        adjusted = tuple(next(rest) for _ in some)
        comparisons[column] += adjusted
        alone = Best(None, untested=tuple(arms)) if len(arms) == 1 else None  # on its network, at these shots
        best[column] += (alone or best_of(arms, adjusted, higher_is_better=higher_is_better),)
    return Compared(comparisons, best, family[0].family_size if family else 0)


def _untested(pair: Comparison) -> Comparison:
    """Return a comparison with its interval and without its test."""
    return replace(pair, difference=replace(pair.difference, p_value=None))


def compare_rates(panel: Panel, threshold: float) -> Compared:
    """Compare the SDR of every two initialisations at a threshold, see `compare`."""
    scores = {key: arm.sample.hits(threshold) for key, arm in panel.arms.items()}
    return compare(panel, scores, higher_is_better=True)
