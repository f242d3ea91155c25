"""The figures as data, which `figures` draws for print and `interactive` for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from ablate.datasets.builtin import annotators_apart
from ablate.report.analysis import Analysis, Arm, Panel
from ablate.report.axis_charts import Figure, axis_charts, constants_across
from ablate.report.chart_kinds import Chart, HeatChart, Line, LineChart, RankChart
from ablate.report.estimates import condition_notes, numeric_shots
from ablate.report.grouping import INITIALISATION, Key, field_label, plain, value_label
from ablate.report.literature import points_against_shots, points_of_rates
from ablate.report.mean_shapes import LABEL, average_mean_shapes, mean_shape_landmarks
from ablate.report.metrics import MEAN_SHAPE, METRICS, Metric, rate_metric, thresholds_of
from ablate.report.rankings import rankings
from ablate.report.render import slug
from ablate.report.run_data import landmark_labels
from ablate.report.run_tables import fullest, trial_costs
from ablate.report.ticks import HOUR, readable, time_text, time_ticks
from ablate.report.tunings import tuning_charts
from ablate.words import counted

ANNOTATORS = "annotators"
"""The line of the distance between two annotators of a data set."""

MOST_POINTS = 200
"""Points of a learning curve; more are thinned out."""


def _styles(rows: Sequence[Key]) -> dict[Key, int]:
    """Return the number of each initialisation among those of its method."""
    seen: dict[object, int] = {}
    styles = {}
    for row in rows:
        styles[row] = seen.get(row.value, 0)
        seen[row.value] = styles[row] + 1
    return styles


def _limits(arms: Sequence[Arm]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    lower = tuple(math.nan if arm.mre.lower is None else arm.mre.lower for arm in arms)
    upper = tuple(math.nan if arm.mre.upper is None else arm.mre.upper for arm in arms)
    return lower, upper


def _value(arm: Arm) -> float:
    return math.nan if arm.mre.value is None else arm.mre.value


def _interval_note(arms: Sequence[Arm]) -> str:
    if all(arm.mre.lower is None for arm in arms):
        return f"No intervals: {arms[0].mre.note}."
    seeds = sorted({arm.mre.num_seeds for arm in arms})
    text = f"Bars: 95 % crossed-bootstrap interval over seeds ({', '.join(map(str, seeds))}) and test images."
    return text.replace("over seeds (1) and test images", "over test images (one seed)")


def _mean_shape_line(x: Sequence[float], y: Sequence[float], hover: Sequence[str] = ()) -> Line:
    """Return the line of the mean shape, which no method should lie above."""
    return Line(LABEL, MEAN_SHAPE, 1, tuple(x), tuple(y), hover=tuple(hover), mark="rule")


def _constants(analysis: Analysis, panel: Panel, metric: Metric = METRICS["mre"]) -> dict[Key, float]:
    """Return what the mean shape of the shots reaches, by column."""
    return average_mean_shapes(analysis.grouping, panel.group, metric)


def shot_charts(analysis: Analysis) -> Iterator[Chart]:
    """MRE against shots, one line per initialisation."""
    for panel in analysis.panels:
        where = shot_positions(analysis, panel)
        if len(where) < 2:
            continue
        styles = _styles(panel.group.rows)
        lines = []
        for row in panel.group.rows:
            arms = panel.row_arms(row)
            if arms:
                lower, upper = _limits(arms)
                lines.append(Line(
                    row.label(INITIALISATION), str(row.value), styles[row], tuple(where[arm.column] for arm in arms),
                    tuple(_value(arm) for arm in arms), lower, upper,
                    tuple(f"{arm.shots} shots, {arm.mre.num_seeds} seeds" for arm in arms),
                ))  # fmt: skip
        apart = annotators_apart(panel.dataset) if panel.unit == "mm" else None
        if apart is not None:
            ends = (min(where.values()), max(where.values()))
            lines.append(Line(ANNOTATORS, "annotators", 2, ends, (apart, apart), mark="rule"))
        constants = {where[column]: value for column, value in _constants(analysis, panel).items()}
        if constants:
            lines.append(_mean_shape_line(list(constants), list(constants.values())))
        all_shots = next((x for column, x in where.items() if column.value is None), None)
        known = analysis.run.train_images(panel.dataset) or 2 * max(where.values())
        published, sources = points_against_shots(
            analysis.references, panel.dataset, METRICS["mre"], known if all_shots is None else all_shots
        )
        ticks = {x: f"{x:g}" for line in published for x in line.x}
        ticks |= {x: column.label("shots") for column, x in where.items()}
        yield LineChart(
            slug("mre-shots", panel.title), panel.title, "annotated training images", f"MRE ({panel.unit})",
            (*lines, *published), x_log=True, x_ticks=readable(list(ticks.items()), log=True), side_by_side=True,
            note=" ".join((
                _interval_note(list(panel.arms.values())),
                *(_sentence(note) for note in condition_notes(panel)),
                *([f"The two annotators lie {apart:.2f} mm apart on average over all radiographs."] if apart else []),
                *(f"{source}." for source in sources),
            )),
            marks=sources,
        )  # fmt: skip


def shot_positions(analysis: Analysis, panel: Panel) -> dict[Key, float]:
    """Return where each number of shots stands on a log axis; `all` of unknown size stands last."""
    known = {column: numeric_shots(analysis, panel, column) for column in panel.group.columns}
    largest = max((number for number in known.values() if number is not None), default=1)
    return {column: float(2 * largest if number is None else number) for column, number in known.items()}


def rate_charts(analysis: Analysis) -> Iterator[Chart]:
    """Share of landmarks within a distance, at the fewest and at the most shots."""
    for panel in analysis.panels:
        styles = _styles(panel.group.rows)
        ids = [trial_id for arm in panel.arms.values() for trial_id in arm.trial_ids]
        thresholds = thresholds_of(analysis.run.trials[analysis.run.trials["trial_id"].isin(ids)])
        for column in dict.fromkeys([panel.group.columns[0], fullest(panel)]):
            arms = panel.column_arms(column)
            if not arms:
                continue
            reach = _reach(arms, thresholds)
            distances_T = np.union1d(np.linspace(0.0, reach, 61), thresholds)
            lines = []
            for arm in arms:
                curve = analysis.intervals.sdr_curve(arm.sample, distances_T)
                lines.append(Line(
                    arm.label, str(arm.row.value), styles[arm.row], tuple(distances_T.tolist()),
                    tuple((100 * curve.values_M).tolist()), tuple((100 * curve.lower_M).tolist()),
                    tuple((100 * curve.upper_M).tolist()),
                ))  # fmt: skip
            rates = [
                (threshold, 100 * rate)
                for threshold in thresholds
                if (rate := _constants(analysis, panel, rate_metric("sdr", threshold)).get(column)) is not None
            ]
            if rates:  # it is known at the thresholds alone
                lines.append(_mean_shape_line([x for x, _ in rates], [y for _, y in rates]))
            published, sources = points_of_rates(
                analysis.references, panel.dataset, [rate_metric("sdr", t) for t in thresholds], column.value
            )
            yield LineChart(
                slug("sdr", panel.title, column.label("shots")), f"{panel.title}, {column.label('shots')} shots",
                f"distance ({panel.unit})", "landmarks within distance (%)", (*lines, *published),
                x_ticks=readable([(x, f"{x:.3g}") for x in (0.0, *thresholds, reach)], log=False),
                x_end=reach, rules=tuple(thresholds), dense=True, marks=sources,
                note=" ".join((BANDS, *(f"{source}." for source in sources))),
            )  # fmt: skip


BANDS = "Bands: pointwise 95 % crossed-bootstrap intervals. Dotted: thresholds of the SDR."

REACH = 2.0
"""Where the axis of an SDR curve ends, as a multiple of the largest threshold: the thresholds fill its first half."""


def _reach(arms: Sequence[Arm], thresholds: Sequence[float]) -> float:
    """Return the largest distance of an SDR curve: beyond the thresholds, or where nearly every landmark is found."""
    if thresholds:
        return REACH * max(thresholds)
    errors = np.concatenate([arm.errors_SIK[np.isfinite(arm.errors_SIK)] for arm in arms])
    return float(np.quantile(errors, 0.97))


def timestep_charts(analysis: Analysis) -> Iterator[Chart]:
    """MRE against diffusion timesteps."""
    yield from setting_charts(analysis, Figure(METRICS["mre"], "pretrain_timesteps"))


def step_charts(analysis: Analysis) -> Iterator[Chart]:
    """MRE against pre-training steps."""
    yield from setting_charts(analysis, Figure(METRICS["mre"], "pretrain_steps"))


def setting_charts(analysis: Analysis, figure: Figure) -> Iterator[Chart]:
    """Any metric against any axis."""
    yield from axis_charts(
        analysis.run, analysis.intervals, figure, best_by=analysis.best_by, references=analysis.references
    )


NO_ROW = " The mean shape has no row: its error at each landmark is not known of pooled folds and of older runs."


def landmark_charts(analysis: Analysis) -> Iterator[Chart]:
    """MRE of each landmark by initialisation, at the most shots."""
    for panel in analysis.panels:
        column = fullest(panel)
        arms = panel.column_arms(column)
        sums = [np.nansum(arm.errors_SIK, axis=1) for arm in arms]
        counts = [np.isfinite(arm.errors_SIK).sum(axis=1) for arm in arms]
        values = []
        for sum_SK, count_SK in zip(sums, counts, strict=True):
            means_SK = np.divide(sum_SK, count_SK, out=np.full(sum_SK.shape, np.nan), where=count_SK > 0)
            there_SK = np.isfinite(means_SK)
            total_K, seeds_K = np.nansum(means_SK, axis=0), there_SK.sum(axis=0)
            mean_K = np.divide(total_K, seeds_K, out=np.full(total_K.shape, np.nan), where=seeds_K > 0)
            values.append(tuple(mean_K.tolist()))
        constant = mean_shape_landmarks(analysis.grouping, panel.group, column)
        if arms and values[0]:
            yield HeatChart(
                slug("landmarks", panel.title), f"{panel.title}, {column.label('shots')} shots", "landmark",
                f"MRE ({panel.unit})", (*(arm.label for arm in arms), *([LABEL] if constant else [])),
                landmark_labels(analysis.run.described, panel.dataset, len(values[0])),
                (*values, *([constant] if constant else [])),
                f"Mean over seeds.{NO_ROW if _constants(analysis, panel) and not constant else ''}",
            )  # fmt: skip


def rank_charts(analysis: Analysis) -> Iterator[Chart]:
    """Average ranks with the critical difference."""
    for ranking in rankings(analysis):
        result = ranking.result
        joined = "" if result.p_value is None else "; joined by a bar: closer than the critical difference"
        yield RankChart(
            slug("ranks", ranking.title), f"average rank by MRE: {ranking.title}", result.names, ranking.methods,
            result.average_ranks, result.critical_difference, result.cliques,
            " ".join([f"{counted(result.num_blocks, 'block')}{joined}.", *(_sentence(note) for note in ranking.notes)]),
        )  # fmt: skip


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"


def cost_charts(analysis: Analysis) -> Iterator[Chart]:
    """MRE against what one trial costs, its pre-training counted in full."""
    costs = trial_costs(analysis.run.single, analysis.run.stages)
    unit = "gpu_hours" if len(costs) and float(costs["gpu_hours"].max()) > 0 else "hours"
    for panel in analysis.panels:
        styles = _styles(panel.group.rows)
        lines = []
        for row in panel.group.rows:
            points = []
            for arm in panel.row_arms(row):
                seconds = HOUR * float(costs.loc[analysis.run.trials_of(arm.trial_ids), unit].median())
                if math.isfinite(seconds) and seconds > 0:
                    points.append((seconds, arm))
            if points:
                lower, upper = _limits([arm for _, arm in points])
                lines.append(Line(
                    row.label(INITIALISATION), str(row.value), styles[row], tuple(seconds for seconds, _ in points),
                    tuple(_value(arm) for _, arm in points), lower, upper,
                    tuple(f"{time_text(seconds)}, {arm.shots} shots" for seconds, arm in points),
                ))  # fmt: skip
        if lines:
            reached = [seconds for line in lines for seconds in line.x]
            note = "Each point is a number of shots; pre-training counted in full for each."
            if constants := _constants(analysis, panel):
                lines.append(constants_across(constants, (min(reached) / 1.1, max(reached) * 1.1)))
                note += " The mean shape costs nothing: a line for each number of shots."
            label = "GPU time of one trial" if unit == "gpu_hours" else "time of one trial (no GPU was used)"
            yield LineChart(
                slug("cost", panel.title), panel.title, label, f"MRE ({panel.unit})", tuple(lines), x_log=True,
                x_ticks=time_ticks(reached), note=note,
            )  # fmt: skip


def learning_charts(analysis: Analysis) -> Iterator[Chart]:
    """Validation loss of fine-tuning against epochs, and the relative loss of each pre-training against steps."""
    curves = analysis.run.curves
    validation = curves.loc[curves["metric"] == "val_loss", ["trial_id", "epoch", "value"]].dropna()
    for panel in analysis.panels:
        column = fullest(panel)
        styles = _styles(panel.group.rows)
        lines = []
        for arm in panel.column_arms(column):
            part = validation[validation["trial_id"].isin(analysis.run.trials_of(arm.trial_ids))]
            mean = part.groupby("epoch")["value"].mean()
            mean = mean[mean > 0]
            if len(mean):
                x, y = _thin(mean)
                lines.append(Line(arm.label, str(arm.row.value), styles[arm.row], x, y))
        if lines:
            yield LineChart(
                slug("finetuning", panel.title), f"{panel.title}, {column.label('shots')} shots", "epoch",
                "validation loss", tuple(lines), y_log=True, dense=True,
                note="Mean over the seeds that are still training.",
            )  # fmt: skip
    yield from _pretraining_charts(analysis.run.single, curves)


_LOSS_COLUMNS = ["pretrain_key", "step", "value"]


def _pretraining_charts(trials: pd.DataFrame, curves: pd.DataFrame) -> Iterator[Chart]:
    losses = curves.loc[(curves["phase"] == "pretrain") & (curves["metric"] == "loss"), _LOSS_COLUMNS].dropna()
    used = trials.dropna(subset=["pretrain_key"]).drop_duplicates("pretrain_key")
    for dataset, rows in used.groupby("pretrain_dataset", sort=True):
        lines: list[Line] = []
        for _, row in rows.iterrows():
            loss = losses[losses["pretrain_key"] == row["pretrain_key"]].groupby("step")["value"].mean()
            loss = loss[loss > 0]
            if len(loss) < 2:
                continue
            x, y = _thin(loss / loss.iloc[0])
            method = str(row[INITIALISATION])
            parts = [value_label(INITIALISATION, method)]
            for name in ("pretrain_timesteps", "pretrain_betas", "pretrain_seed", "network_kind", "fold"):
                if rows.loc[rows[INITIALISATION] == method, name].nunique() > 1:
                    parts.append(f"{field_label(name)} {value_label(name, plain(row[name]))}")
            style = sum(line.method == method for line in lines)
            lines.append(Line(", ".join(parts), method, style, x, y))
        if lines:
            yield LineChart(
                slug("pretraining", dataset), f"pre-training on {dataset}", "optimizer step",
                "loss / first recorded loss", tuple(lines), y_log=True, dense=True, own_selection=True,
                note="Losses of different methods are different quantities: only their courses can be compared.",
            )  # fmt: skip


def _thin(series: pd.Series) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return at most `MOST_POINTS` points, each the mean of its neighbours."""
    x, y = series.index.to_numpy(np.float64), series.to_numpy(np.float64)
    parts = min(MOST_POINTS, len(x))
    groups = np.array_split(np.arange(len(x)), parts)
    return tuple(float(x[g].mean()) for g in groups), tuple(float(y[g].mean()) for g in groups)


FIGURES: dict[str, tuple[Callable[[Analysis], Iterator[Chart]], str]] = {
    "MRE against shots": (shot_charts, "the run has one number of shots only"),
    "MRE against cost": (cost_charts, "the run's stages have no times yet"),
    "SDR curves": (rate_charts, "the run has no errors yet"),
    "MRE against timesteps": (timestep_charts, "the run has no two numbers of timesteps at otherwise equal settings"),
    "MRE against pre-training steps": (
        step_charts, "the run has no two numbers of pre-training steps at otherwise equal settings"
    ),
    "MRE of each landmark": (landmark_charts, "the run has no errors yet"),
    "Average ranks": (rank_charts, "the run has no two initialisations that were both run at the same shots"),
    "Tuning": (tuning_charts, ""),
    "Learning curves": (learning_charts, "the run has no learning curves yet"),
}  # fmt: skip
"""Every kind of figure: what builds its charts, and what a run lacks that has none; empty where that is no loss."""
