"""Tables of what the trials reached, what they cost, and which have no result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ablate.report.analysis import Analysis, Compared, Panel, compare_rates
from ablate.report.conditions import CONDITIONAL, ONE_NETWORK, is_tuned, networks_of
from ablate.report.grouping import (
    INITIALISATION,
    Key,
    Value,
    field_label,
    initialisations,
    plain,
    value_label,
)
from ablate.report.metrics import METRICS, Metric, rate_metric, thresholds_of
from ablate.report.pivot import Pivot, PivotTable, as_tables, pivot, pivot_of
from ablate.report.render import Cell, Table, slug
from ablate.report.run_data import landmark_labels
from ablate.report.ticks import HOUR, time_text
from ablate.words import counted

BOLD_NOTE = "Bold: best initialisation of the column, by the mean alone; no test was made."


def error_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield the MRE, initialisation x shots: what a reader looks for first."""
    yield from _tables_of(analysis, [METRICS["mre"]])


def metric_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield initialisation x shots for every metric: MRE first, then the others."""
    yield from error_tables(analysis)
    yield from other_tables(analysis)


def other_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield initialisation x shots for the other metrics: SDR at each threshold, median, and the paper's protocol."""
    trials = analysis.run.trials
    metrics = [*(rate_metric("sdr", threshold) for threshold in thresholds_of(trials))]
    metrics.append(METRICS["mre_median"])
    if trials["paper_mre"].notna().any():
        metrics.append(METRICS["paper_mre"])
    metrics += [rate_metric("paper_sdr", threshold) for threshold in thresholds_of(trials, "paper_sdr")]
    yield from _tables_of(analysis, metrics)


def _tables_of(analysis: Analysis, metrics: Sequence[Metric]) -> Iterator[Table]:
    panels = {id(panel.group): panel for panel in analysis.panels}
    networks_by_group = {
        id(group): dict.fromkeys(group.cells, ()) if analysis.across_networks else networks_of(analysis.grouping, group)
        for group in analysis.grouping.groups
    }
    for metric in metrics:
        made = pivot_of(analysis.grouping, metric, analysis.references, analysis.intervals)
        if metric.threshold is not None:  # a threshold belongs to some of the data sets
            having = [table for table in made.tables if any(cell.num for cell in table.cells.values())]
            made = replace(made, tables=tuple(having))
        marks: dict[tuple[int, Key, Key], str] = {}
        notes: dict[int, tuple[str, ...]] = {}
        for number, table in enumerate(made.tables):
            panel = panels.get(id(table.group))
            compared = _compared(panel, metric) if panel else None
            networks = networks_by_group[id(table.group)]
            found = _marks(table, metric, compared, networks)
            marks |= {(number, row, column): mark for (row, column), mark in found.items()}
            own = _mark_notes(compared, several=len(set(networks.values())) > 1)
            tuned = [CONDITIONAL] if any(is_tuned(row) for row in table.group.rows) else []
            withheld = [panel.tuned_note] if panel and panel.tuned_note and compared else []
            notes[number] = (*own, *withheld, *tuned)
        yield from as_tables(made, marks, notes)


def _compared(panel: Panel, metric: Metric) -> Compared | None:
    """Return the tests behind a table of a metric; None for a metric without."""
    if metric.column == "mre":
        return panel.compared
    return compare_rates(panel, metric.threshold) if metric.column == "sdr" and metric.threshold is not None else None


def _marks(
    table: PivotTable, metric: Metric, compared: Compared | None, networks: Mapping[tuple[Key, Key], tuple[Value, ...]]
) -> dict[tuple[Key, Key], str]:
    """Mark the best cell of each column on each network, and those that were tested and are not worse."""
    marks: dict[tuple[Key, Key], str] = {}
    for column in table.group.columns:
        means: dict[tuple[Value, ...], dict[Key, float]] = {}
        for row in table.group.rows:
            cell = table.cells.get((row, column))
            if cell is not None and cell.mean is not None:
                means.setdefault(networks[row, column], {})[row] = cell.mean
        for present in means.values():
            if len(present) > 1:
                marks |= dict.fromkeys(((row, column) for row in _best_rows(present, metric)), "best")
        tied = [name for best in (compared.best.get(column, ()) if compared else ()) for name in best.not_worse]
        for row in table.group.rows:
            if row.label(INITIALISATION) in tied:
                marks.setdefault((row, column), "tied")
    return marks


def _mark_notes(compared: Compared | None, *, several: bool) -> Iterator[str]:
    """Yield what the marks of a table mean, what they are corrected over, and what was not tested."""
    if compared is None or not compared.family_size:
        yield BOLD_NOTE
    else:
        yield (
            "Bold: best initialisation of the column. † not significantly worse: the paired difference to the best has "
            f"p ≥ 0.05 after Holm's correction over the {counted(compared.family_size, 'test')} of this table, one for "
            "every two initialisations at the same shots; that is no evidence of being equal."
        )
        without = [
            f"{name} at {column.label('shots')}"
            for column, found in compared.best.items()
            for best in found
            for name in best.untested
        ]
        if without:
            yield (
                "Without a test against a best, for want of seeds, of variation, of independent tunings or of another "
                f"on the same network: {', '.join(without)}."
            )
    if several:
        yield ONE_NETWORK


def _best_rows(means: Mapping[Key, float], metric: Metric) -> list[Key]:
    best = min(means.values()) if metric.better == "lower" else max(means.values())
    return [row for row, mean in means.items() if mean == best] if metric.better else []


def diffusion_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield timesteps x pre-training steps where either was varied."""
    trials = analysis.run.trials
    ddpm = trials[trials[INITIALISATION] == "ddpm"].reset_index(drop=True)
    if ddpm["pretrain_timesteps"].nunique() > 1 or ddpm["pretrain_steps"].nunique() > 1:
        made = pivot(ddpm, rows="pretrain_timesteps", columns="pretrain_steps", best_by=analysis.best_by)
        varied = [t for t in made.tables if len(t.group.rows) > 1 or len(t.group.columns) > 1]
        yield from as_tables(Pivot(made.metric, made.grouping, tuple(varied)))


def landmark_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield the error of each landmark by initialisation, at the most shots; the CSV has all shots."""
    for panel in analysis.panels:
        column = fullest(panel)
        shown = panel.column_arms(column)
        records = []
        labels = landmark_labels(analysis.run.described, panel.dataset, panel.errors.errors_TIK.shape[2])
        curves = {key: analysis.intervals.landmark_curve(arm.sample) for key, arm in panel.arms.items()}
        for arm in panel.arms.values():
            curve = curves[arm.row, arm.column]
            for landmark, (value, lower, upper) in enumerate(
                zip(curve.values_M, curve.lower_M, curve.upper_M, strict=True)
            ):
                records.append(
                    {
                        "initialisation": arm.label,
                        "shots": arm.shots,
                        "landmark": landmark,
                        "name": labels[landmark],
                        "mre": _number(value),
                        "lower": _number(lower),
                        "upper": _number(upper),
                        "unit": panel.unit,
                    }
                )
        networks = [() if panel.across_networks else arm.network for arm in shown]
        values_AK = np.stack([curves[arm.row, arm.column].values_M for arm in shown])
        rows = []
        for landmark in range(values_AK.shape[1]):
            values = values_AK[:, landmark].tolist()
            rivals = [
                [value for value, network in zip(values, networks, strict=True) if network == own and value == value]
                for own in networks
            ]
            cells = [
                Cell(METRICS["mre"].text(value), value, best=len(others) > 1 and value == min(others))
                if np.isfinite(value)
                else Cell("–", None)
                for value, others in zip(values, rivals, strict=True)
            ]
            rows.append((Cell(labels[landmark], labels[landmark]), *cells))
        named = labels != tuple(map(str, range(len(labels))))
        yield Table(
            slug("landmarks", panel.title),
            f"MRE ({panel.unit}) of each landmark{'' if named else ' (numbered from 0)'} by initialisation: "
            f"{panel.title}, {column.label('shots')} shots. Mean over seeds.",
            ("landmark", *(arm.label for arm in shown)),
            tuple(rows),
            tuple(records),
            (BOLD_NOTE.replace("column", "row"), *([ONE_NETWORK] * (len(set(networks)) > 1))),
        )


def fullest(panel: Panel) -> Key:
    """Return the most shots at which the most initialisations have a result."""
    counts = {column: len(panel.column_arms(column)) for column in panel.group.columns}
    return max(panel.group.columns, key=lambda column: (counts[column], panel.group.columns.index(column)))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# --- cost -------------------------------------------------------------------------------------------


def trial_costs(trials: pd.DataFrame, stages: pd.DataFrame) -> pd.DataFrame:
    """Return for each finished trial the hours it takes by itself, and the share of GPUs its stages held.

    A shared pre-training counts in full for each trial: that is what the initialisation costs whoever uses it once.
    """
    held: dict[str, dict[str, float]] = {}
    for kind, name in (("pretrain", "pretrain_key"), ("finetune", "trial_id"), ("trial", "trial_id")):
        part = stages[stages["kind"] == kind].dropna(subset=[name, "gpus"])
        held[kind] = dict(zip(part[name].astype(str), part["gpus"].astype(float), strict=True))
    finished = trials[trials["status"] == "finished"]
    rows = []
    for trial_id, key, before, after in zip(
        finished["trial_id"].astype(str),
        finished["pretrain_key"],
        finished["pretrain_seconds"].fillna(0.0).astype(float),
        finished["finetune_seconds"].astype(float) + finished["evaluate_seconds"].fillna(0.0).astype(float),
        strict=True,
    ):
        gpus = held["finetune"].get(trial_id, held["trial"].get(trial_id, 0.0))
        gpus_before = held["pretrain"].get(str(key), gpus)
        rows.append((trial_id, (before + after) / HOUR, (before * gpus_before + after * gpus) / HOUR))
    return pd.DataFrame(rows, columns=["trial_id", "hours", "gpu_hours"]).set_index("trial_id")


def cost_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield what each initialisation cost in this run: all attempts, also those that failed."""
    run = analysis.run
    costs = trial_costs(run.single, run.stages)
    keys_of = dict(zip(run.single["trial_id"], run.single["pretrain_key"], strict=True))
    laid_out = run.single[["trial_id", "status", "parameters"]]
    row_ids = analysis.grouping.trials["trial_id"]
    stages = run.stages.drop(columns=["node", "outcome", "from_step", "to_step"])
    rows = []
    records: list[dict[str, object]] = []
    for group in analysis.grouping.groups:
        for row in group.rows:
            positions = [p for (r, _), found in group.cells.items() if r == row for p in found]
            ids = set(run.trials_of(list(row_ids.iloc[positions])))
            trials = laid_out[laid_out["trial_id"].isin(ids)]
            keys = {keys_of[trial_id] for trial_id in ids if isinstance(keys_of[trial_id], str)}
            before = stages[(stages["kind"] == "pretrain") & stages["pretrain_key"].isin(keys)]
            after = stages[(stages["kind"] != "pretrain") & stages["trial_id"].isin(ids)]
            done = trials[trials["status"] == "finished"]
            single = costs.loc[[trial_id for trial_id in done["trial_id"] if trial_id in costs.index]]
            record: dict[str, object] = dict(group.fixed)
            record |= {
                "initialisation": row.label(INITIALISATION),
                "trials": len(done),
                "pretrain_hours": float(before["seconds"].sum()) / HOUR,
                "finetune_hours": float(after["seconds"].sum()) / HOUR,
                "gpu_hours": _gpu_hours(before) + _gpu_hours(after),
                "hours_of_one_trial": _number(float(single["hours"].median())) if len(single) else None,
                "gpu_hours_of_one_trial": _number(float(single["gpu_hours"].median())) if len(single) else None,
                "parameters": _largest(done["parameters"]),
                "peak_memory_bytes": _largest(pd.concat([before["peak_memory_bytes"], after["peak_memory_bytes"]])),
                "pretrain_images_per_second": _median(before["images_per_second"]),
                "finetune_images_per_second": _median(after["images_per_second"]),
            }
            records.append(record)
            title = group.title
            rows.append(
                (
                    Cell(f"{title}, {row.label(INITIALISATION)}" if title else row.label(INITIALISATION)),
                    *(_cost_cell(record[name], scale, digits) for name, _, scale, digits in _COSTS),
                )
            )
    if rows:
        yield Table(
            "cost",
            "Cost by initialisation. Times are those of all attempts in this run, also failed ones, a shared "
            "pre-training counted once; one trial: median over trials, its pre-training counted in full.",
            ("initialisation", *(label for _, label, _, _ in _COSTS)),
            tuple(rows),
            tuple(records),
            (
                "GPU time is wall time times the GPUs held; 0 on a machine without. Memory: of the GPU, or of the "
                "process on a CPU. The CSV has all times in hours.",
            ),
        )


_COSTS: Sequence[tuple[str, str, float | None, int]] = (
    ("trials", "trials", 1, 0),
    ("pretrain_hours", "pre-training", None, 0),
    ("finetune_hours", "fine-tuning", None, 0),
    ("gpu_hours", "GPU time", None, 0),
    ("hours_of_one_trial", "one trial", None, 0),
    ("parameters", "parameters (million)", 1e-6, 2),
    ("peak_memory_bytes", "peak memory (GiB)", 2**-30, 2),
    ("pretrain_images_per_second", "pre-training (images/s)", 1, 1),
    ("finetune_images_per_second", "fine-tuning (images/s)", 1, 1),
)
"""Columns of the table of costs: the record's name, the header, and scale and digits; hours have no scale."""


def _cost_cell(value: object, scale: float | None, digits: int) -> Cell:
    if not isinstance(value, (int, float)):
        return Cell("–", None)
    return Cell(time_text(HOUR * value) if scale is None else f"{value * scale:.{digits}f}", value)


def _gpu_hours(stages: pd.DataFrame) -> float:
    return float((stages["seconds"] * stages["gpus"]).sum()) / HOUR


def _median(values: pd.Series) -> float | None:
    present = values.dropna().astype(float)
    return float(present.median()) if len(present) else None


def _largest(values: pd.Series) -> int | None:
    present = values.dropna()
    return int(present.max()) if len(present) else None


# --- what has no result -----------------------------------------------------------------------------


def status_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield the trials without a result, each with its reason."""
    trials = analysis.run.trials
    without = trials[trials["status"] != "finished"]
    if not len(without):
        return
    without = without.assign(**{INITIALISATION: initialisations(without)})
    rows = []
    records = []
    for _, trial in without.iterrows():
        names = ("dataset", INITIALISATION, "shots", "seed")
        values = [value_label(name, plain(trial[name])) for name in names]
        error = str(plain(trial["error"]) or "not finished yet")
        texts = (str(trial["trial_id"]), *values, str(trial["status"]), error)
        rows.append(tuple(Cell(text, text) for text in texts))
        records.append(dict(zip(("trial_id", *names, "status", "error"), texts, strict=True)))
    yield Table(
        "without-result",
        f"Trials without a result: {len(without)} of {len(trials)}. They enter no mean; the cells they belong to say "
        "so.",
        ("trial", *(field_label(name) for name in ("dataset", INITIALISATION, "shots", "seed")), "status", "error"),
        tuple(rows),
        tuple(records),
        text_columns=7,
    )
