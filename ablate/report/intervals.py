"""The intervals of a run: whichever table or figure shows a number, its interval comes from here.

The same trials have the same interval wherever they are shown: the seed of the bootstrap, the number of replicates
and the draws of an arm's seeds depend on the run and on the arm's own trials, never on what else is in a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ablate.report.grouping import group_trials, plain
from ablate.report.metrics import Metric
from ablate.report.roles import REPEAT
from ablate.report.run_data import RunData
from ablate.stats import Curve, Estimate, PerImage, Resamples, crossed_bootstrap, error_sums, hit_sums
from ablate.stats import landmark_curve as _landmark_curve
from ablate.stats import sdr_curve as _sdr_curve
from ablate.stats.samples import BoolArray, FloatArray

SEED = 20_250_101
"""Seed of every bootstrap in a report, so that a report of the same tables is the same."""

MANY_ARMS = 60
"""From this number of arms on, intervals come from fewer replicates, so that a report stays quick."""

NUM_RESAMPLES = 10_000
FEWER_RESAMPLES = 2_000


COLUMNS = ("trial_id", "dataset", "status", "shots", "few_shot", "seed", "pretrain_seed", "draw", REPEAT)
"""The columns of `trials` that an interval needs; the last is there only where settings were tuned."""


@dataclass(frozen=True, eq=False)
class Sample:
    """The errors of finished trials of one data set that differ in their seeds only."""

    dataset: str
    trial_ids: tuple[str, ...]  # by seed
    errors_SIK: FloatArray
    clusters: tuple[int, ...] | None  # unit of each trial for the bootstrap, see `clusters_of`
    draws: tuple[int, ...] | None  # which draw of the shots each trial was trained on, see `draws_of`
    stream: int  # a number of these trials alone, by which their seeds are resampled

    @property
    def scores(self) -> PerImage:
        """The scores whose value is the MRE."""
        return error_sums(self.errors_SIK, self.clusters, self.draws)

    def hits(self, threshold: float) -> PerImage:
        """Return the scores whose value is the SDR at a threshold."""
        return hit_sums(self.errors_SIK, threshold, self.clusters, self.draws)


class Intervals:
    """Every interval of a run; numbers of one data set share their resampled images.

    Args:
        run: the run.
        num_resamples: replicates; default: `NUM_RESAMPLES`, for a large run `FEWER_RESAMPLES`.
    """

    def __init__(self, run: RunData, num_resamples: int | None = None) -> None:
        if num_resamples is None:
            num_arms = sum(len(group.cells) for group in group_trials(run.trials).groups)
            num_resamples = NUM_RESAMPLES if num_arms < MANY_ARMS else FEWER_RESAMPLES
        self.num_resamples = num_resamples
        self._errors = run.errors
        self._resamples = {name: Resamples(np.random.default_rng(SEED), num_resamples) for name in run.errors}
        self._found: dict[tuple[str, float | None, int], Estimate] = {}

    def resamples(self, dataset: str) -> Resamples:
        """Return the bootstrap counts of a data set."""
        return self._resamples[dataset]

    def sample(self, trials: pd.DataFrame) -> Sample | None:
        """Return the errors of rows of the table `trials`; None if no finished one of them has any.

        The rows are of one data set. What is not finished is left out.
        """
        finished = trials[trials["status"] == "finished"].sort_values(["seed", "trial_id"])
        if not len(finished) or (dataset := str(plain(finished["dataset"].iloc[0]))) not in self._errors:
            return None
        trial_ids = tuple(str(trial_id) for trial_id in finished["trial_id"])
        errors_SIK = self._errors[dataset].of(trial_ids)
        if not np.isfinite(errors_SIK).any():
            return None
        return Sample(dataset, trial_ids, errors_SIK, clusters_of(finished), draws_of(finished), _stream(trial_ids))

    def of(self, sample: Sample, metric: Metric) -> Estimate | None:
        """Return a metric with its interval; None for a metric that is no mean over test images and landmarks."""
        if metric.column not in ("mre", "sdr"):
            return None
        key = (sample.dataset, metric.threshold, sample.stream)
        if key not in self._found:
            scores = sample.scores if metric.threshold is None else sample.hits(metric.threshold)
            self._found[key] = crossed_bootstrap(scores, self._resamples[sample.dataset], arm=sample.stream)
        return self._found[key]

    def sdr_curve(self, sample: Sample, thresholds_T: FloatArray) -> Curve:
        """Return the SDR at each threshold, see `ablate.stats.sdr_curve`."""
        return _sdr_curve(
            sample.errors_SIK, thresholds_T, self._resamples[sample.dataset], clusters_S=sample.clusters,
            arm=sample.stream,
        )  # fmt: skip

    def landmark_curve(self, sample: Sample) -> Curve:
        """Return the MRE of each landmark, see `ablate.stats.landmark_curve`."""
        return _landmark_curve(
            sample.errors_SIK, self._resamples[sample.dataset], clusters_S=sample.clusters, arm=sample.stream
        )

    def without(self, sample: Sample, left_out_I: BoolArray) -> Estimate:
        """Return the MRE on all test images but some, with the seeds resampled as for all of them."""
        scores = sample.scores.images(~left_out_I)
        return crossed_bootstrap(scores, self._resamples[sample.dataset], arm=sample.stream)


def clusters_of(trials: pd.DataFrame) -> tuple[int, ...] | None:
    """Return the independent unit behind each trial of one cell; None: the trial itself.

    Units are independent tunings where there are several, else pre-trainings where their seed varies, else draws of
    the shots where those vary, else seeds.
    """
    repeats = [plain(repeat) for repeat in trials[REPEAT]] if REPEAT in trials else []
    if len(set(repeats)) > 1:
        return tuple(-1 if repeat is None else int(str(repeat)) for repeat in repeats)
    seeds = [plain(seed) for seed in trials["pretrain_seed"]]
    if len(set(seeds)) > 1:
        return tuple(-1 if seed is None else int(str(seed)) for seed in seeds)
    pairs = zip(trials["draw"], trials["seed"], strict=True)
    draws = tuple(int(seed) if plain(draw) is None else int(draw) for draw, seed in pairs)
    return draws if trials["draw"].notna().any() and len(set(draws)) < len(draws) else None


def draws_of(trials: pd.DataFrame) -> tuple[int, ...] | None:
    """Return which draw of the shots each trial of one cell was trained on; None where they do not differ in it.

    It is `draw`, or the seed where that draws; trials of two initialisations with the same draw share their shots.
    """
    if not (trials["few_shot"] == "random").all() or trials["shots"].isna().any():
        return None
    if REPEAT in trials and trials[REPEAT].nunique() > 1:  # the tunings are the units, each with all draws
        return None
    pairs = zip(trials["draw"], trials["seed"], strict=True)
    draws = tuple(int(seed) if plain(draw) is None else int(draw) for draw, seed in pairs)
    return draws if len(set(draws)) > 1 else None


def _stream(trial_ids: Sequence[str]) -> int:
    digest = hashlib.sha256(" ".join(sorted(trial_ids)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
