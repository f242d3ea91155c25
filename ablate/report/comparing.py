"""Two runs side by side: the trials that agree in every bit, and how far the others moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ablate.report.estimates import estimate_text
from ablate.report.grouping import INITIALISATION, group_trials, initialisations, plain, record_value, value_label
from ablate.report.intervals import NUM_RESAMPLES, SEED, clusters_of
from ablate.report.render import Cell, Table, check_format, render_table, slug
from ablate.report.run_data import RunData, read_run
from ablate.stats import Resamples, coverage_note, error_sums, paired_difference
from ablate.store import Store
from ablate.tables import RESULTS, unequal

_ABOUT = ("dataset", INITIALISATION, "shots", "seed")


@dataclass(frozen=True)
class RunComparison:
    """Two runs side by side."""

    tables: tuple[Table, ...]
    num_both: int  # trials finished in both
    num_agree: int  # of these, equal in every error of every landmark and in every number compared
    num_only_a: int
    num_only_b: int
    notes: tuple[str, ...]  # differences of data and versions

    @property
    def agree(self) -> bool:
        """Whether both runs hold the same trials with the same results."""
        return self.num_agree == self.num_both and not (self.num_only_a or self.num_only_b)

    def lines(self) -> list[str]:
        """Return the comparison in a few lines."""
        moved = self.num_both - self.num_agree
        return [
            f"{self.num_both} trials finished in both runs: {self.num_agree} agree in every number, {moved} moved",
            f"finished only in A: {self.num_only_a}; only in B: {self.num_only_b}",
            *self.notes,
        ]

    def render(self, format: str = "plain") -> str:
        """Return all tables as text; raise `InputError` for an unknown format."""
        form = check_format(format)
        return "\n".join(render_table(table, form) for table in self.tables)


def compare_runs(a: Store, b: Store, *, out: str | None = None) -> RunComparison:
    """Lay two runs side by side, trial by trial (trials are the same if their ids are).

    Args:
        a: the run before.
        b: the run after; differences are B minus A.
        out: folder or address to write the tables to, as Markdown, LaTeX and CSV.

    Raises:
        CorruptArtifact: a table's part is damaged.
        InputError: `out` cannot be written.
    """
    runs = (read_run(a, pooled=False), read_run(b, pooled=False))  # a trial is a trial, also one of a fold
    finished = [_finished(run) for run in runs]
    both = [trial_id for trial_id in finished[0] if trial_id in finished[1]]
    moved = {t: _moved(t, finished[0][t], finished[1][t], runs) for t in both}
    agree = [t for t in both if moved[t] is None]
    tables = (
        *_arm_tables(runs, both),
        *_trial_tables(finished, moved, [t for run in finished for t in run if t not in both]),
    )
    if out is not None:
        target = Store.open(out)
        for table in tables:
            for form, suffix in (("github", "md"), ("latex", "tex"), ("csv", "csv")):
                target.write(f"{table.name}.{suffix}", render_table(table, check_format(form)).encode())
    return RunComparison(
        tables=tables,
        num_both=len(both),
        num_agree=len(agree),
        num_only_a=len(finished[0]) - len(both),
        num_only_b=len(finished[1]) - len(both),
        notes=tuple(_notes(runs)),
    )


@dataclass(frozen=True)
class _Move:
    """The change of a trial that does not agree."""

    largest: float  # of the changes of one landmark's error, in the unit; NaN: other images or landmarks
    columns: tuple[str, ...]  # numbers of the trial that differ


def _finished(run: RunData) -> dict[str, Mapping[str, Any]]:
    trials = run.trials[run.trials["status"] == "finished"]
    names = ("trial_id", *_ABOUT, *RESULTS)
    trials = trials.assign(**{INITIALISATION: initialisations(trials)})
    return {
        str(values[0]): dict(zip(names, map(plain, values), strict=True))
        for values in zip(*(trials[name] for name in names), strict=True)
    }


def _moved(
    trial_id: str, one: Mapping[str, Any], other: Mapping[str, Any], runs: tuple[RunData, RunData]
) -> _Move | None:
    columns = tuple(unequal(one, other, RESULTS))
    errors = [run.errors[str(row["dataset"])] for run, row in zip(runs, (one, other), strict=True)]
    if errors[0].images != errors[1].images or errors[0].errors_TIK.shape[2] != errors[1].errors_TIK.shape[2]:
        return _Move(math.nan, columns)
    first, second = (each.of([trial_id]) for each in errors)
    if np.array_equal(first, second, equal_nan=True):
        return _Move(0.0, columns) if columns else None
    if (np.isnan(first) != np.isnan(second)).any():
        return _Move(math.nan, columns)
    return _Move(float(np.nanmax(np.abs(second - first))), columns)


def _arm_tables(runs: tuple[RunData, RunData], both: list[str]) -> Iterator[Table]:
    """Yield the mean change of each initialisation over the trials that both runs finished."""
    trials = runs[0].trials[runs[0].trials["trial_id"].isin(both)].reset_index(drop=True)
    if not len(trials):
        return
    grouping = group_trials(pd.DataFrame(trials))
    resamples = Resamples(np.random.default_rng(SEED), NUM_RESAMPLES)
    for group in grouping.groups:
        rows, records = [], []
        seeds: list[int] = []
        unit = ""
        for row in group.rows:
            cells = []
            for column in group.columns:
                positions = list(group.cells.get((row, column), ()))
                members = grouping.trials.iloc[positions]
                if not positions or not _same_images(runs, str(plain(members["dataset"].iloc[0]))):
                    cells.append(Cell("–", None))
                    continue
                dataset, ids = str(plain(members["dataset"].iloc[0])), [str(t) for t in members["trial_id"]]
                unit = runs[0].errors[dataset].unit
                clusters = clusters_of(members)
                scores = [error_sums(run.errors[dataset].of(ids), clusters) for run in runs]
                moved = paired_difference(scores[1], scores[0], resamples, seeds="paired")
                cells.append(Cell(estimate_text(moved, signed=True), moved.value))
                seeds += [moved.num_seeds] if moved.lower is not None and moved.num_seeds > 1 else []
                records.append(
                    {
                        "initialisation": row.label(INITIALISATION),
                        "shots": column.label("shots"),
                        "difference": moved.value,
                        "lower": moved.lower,
                        "upper": moved.upper,
                        "trials": len(ids),
                        "unit": unit,
                        "note": moved.note,
                    }
                )
            rows.append((Cell(row.label(INITIALISATION)), *cells))
        yield Table(
            slug("moved", *(value for _, value in group.fixed)),
            f"Change of the MRE{f' ({unit})' if unit else ''}, B minus A, over the trials that both runs finished"
            f"{f': {group.title}' if group.title else ''}.",
            ("initialisation", *(column.label("shots") for column in group.columns)),
            tuple(rows),
            tuple(records),
            (
                "In brackets: 95 % interval by Student's t over seeds (trials paired by their id) and test images; "
                "none where nothing varies.",
                *([coverage_note(min(seeds), "paired")] if seeds else []),
            ),
        )


def _same_images(runs: tuple[RunData, RunData], dataset: str) -> bool:
    one, other = (run.errors[dataset] for run in runs)
    return one.images == other.images and one.errors_TIK.shape[2] == other.errors_TIK.shape[2]


def _trial_tables(
    finished: list[dict[str, Mapping[str, Any]]], moved: Mapping[str, _Move | None], single: list[str]
) -> Iterator[Table]:
    rows, records = [], []
    for trial_id in [*moved, *single]:
        one, other = finished[0].get(trial_id), finished[1].get(trial_id)
        about = one or other or {}
        move = moved.get(trial_id)
        if trial_id not in moved:
            verdict = "only in A" if one else "only in B"
        elif move is None:
            verdict = "agrees"
        else:
            verdict = "moved" + (f": {', '.join(move.columns)}" if move.columns else "")
        mre = [None if row is None else row["mre"] for row in (one, other)]
        change = mre[1] - mre[0] if mre[0] is not None and mre[1] is not None else None
        largest = None if move is None else move.largest
        rows.append(
            (
                Cell(trial_id),
                *(Cell(value_label(name, about[name]), str(about[name])) for name in _ABOUT),
                *(Cell("–" if value is None else f"{value:.4f}", value) for value in mre),
                Cell("–" if change is None else f"{change:+.4f}", change),
                Cell(
                    "" if largest is None else "other landmarks" if math.isnan(largest) else f"{largest:.4f}", largest
                ),
                Cell(verdict, verdict),
            )
        )
        records.append(
            {
                "trial_id": trial_id,
                **{name: record_value(name, about[name]) for name in _ABOUT},
                "unit": about["unit"],
                "mre_a": mre[0],
                "mre_b": mre[1],
                "difference": change,
                "largest_landmark_change": largest,
                "verdict": verdict,
            }
        )
    order = {"moved": 0, "only": 1, "agrees": 2}
    ranked = sorted(range(len(rows)), key=lambda i: order[str(records[i]["verdict"]).split()[0].rstrip(":")])
    yield Table(
        "trials",
        "Trials of both runs: MRE in A and in B, B minus A, and the largest change of a single landmark's error, each "
        "in the trial's unit.",
        ("trial", "data set", "initialisation", "shots", "seed", "A", "B", "B - A", "largest", "verdict"),
        tuple(rows[i] for i in ranked),
        tuple(records[i] for i in ranked),
        ("Trials agree if every landmark's error and every number in the table trials is the same to the last bit.",),
        text_columns=5,
    )


def _notes(runs: tuple[RunData, RunData]) -> Iterator[str]:
    data = [run.described.get("data") for run in runs]
    prints = [
        {str(n): f.get("fingerprint") for n, f in one.items() if isinstance(f, Mapping)} if isinstance(one, Mapping)
        else {}
        for one in data
    ]  # fmt: skip
    for name in prints[0]:
        if name in prints[1] and prints[0][name] != prints[1][name]:
            yield f"data set {name} differs: fingerprint {prints[0][name]} in A, {prints[1][name]} in B"
    for column in ("ablate_version", "torch_version", "git_revision", "device"):
        values = [", ".join(sorted({str(value) for value in run.trials[column].dropna()})) for run in runs]
        if values[0] != values[1]:
            yield f"{column.replace('_', ' ')}: {values[0] or 'none'} in A, {values[1] or 'none'} in B"
