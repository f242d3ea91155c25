"""Tables of intervals, of paired differences, and of what a choice of settings or leaked test images change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ablate.report.analysis import Analysis, Arm, Panel
from ablate.report.conditions import CONDITIONAL, ONE_NETWORK, is_tuned
from ablate.report.estimates import (
    arm_label,
    condition_notes,
    estimate_record,
    estimate_text,
    interval_notes,
    numeric_shots,
    with_and_without,
)
from ablate.report.grouping import FIELDS, INITIALISATION, Key, field_label, plain, record_value, value_label
from ablate.report.literature import metrics_of
from ablate.report.mean_shapes import LABEL, NO_BETTER_NOTE, average_mean_shapes, mark
from ablate.report.metrics import MEAN_SHAPE, METRICS
from ablate.report.published import against_tables, table_rows
from ablate.report.render import Cell, Table, slug
from ablate.report.selection import Selected
from ablate.stats import (
    INTERVAL_CAPTION,
    WILCOXON_CAPTION,
    Comparison,
    coverage_note,
    label_efficiency,
    select_by_validation,
    signed_rank,
)
from ablate.words import counted


def interval_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield the MRE with its interval, initialisation by shots."""
    metric = METRICS["mre"]
    for panel in analysis.panels:
        rows, records = [], []
        constants = average_mean_shapes(analysis.grouping, panel.group, metric)
        notes = [*interval_notes(panel, analysis.num_resamples)]
        for row in panel.group.rows:
            cells = []
            for column in panel.group.columns:
                arm = panel.arms.get((row, column))
                below = mark(metric, arm.mre.value, constants.get(column)) if arm else ""
                notes += [NO_BETTER_NOTE] if below and NO_BETTER_NOTE not in notes else []
                cells.append(Cell(estimate_text(arm.mre) + below, arm.mre.value) if arm else Cell("–", None))
                if arm:
                    names = {
                        "initialisation": row.label(INITIALISATION),
                        "shots": column.label("shots"),
                        "unit": panel.unit,
                    }
                    records.append({**names, **estimate_record(arm.mre)})
            rows.append((Cell(arm_label(panel, row), row.label(INITIALISATION)), *cells))
        if constants:
            means = [constants.get(column) for column in panel.group.columns]
            cells = [Cell("–" if mean is None else metric.text(mean), mean) for mean in means]
            rows.append((Cell(LABEL, MEAN_SHAPE), *cells))
            records += [
                {"initialisation": LABEL, "shots": column.label("shots"), "unit": panel.unit, "value": value}
                for column, value in constants.items()
            ]
        published = table_rows(
            analysis.references, analysis.grouping, panel.group, metric, panel.unit, analysis.intervals
        )
        rows += published.rows
        for record in published.records:
            own = {name: value for name, value in record.items() if name not in ("metric", "mean", "sd")}
            records.append({**own, "value": record["mean"]})
        notes += published.notes
        yield Table(
            slug("mre-intervals", panel.title),
            f"MRE ({panel.unit}) with its 95 % interval by initialisation and shots: {panel.title}.",
            ("initialisation", *(column.label("shots") for column in panel.group.columns)),
            tuple(rows),
            tuple(records),
            tuple(notes),
        )


def published_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield run minus published, for every metric that was published of what the run has a result of."""
    metrics = metrics_of(analysis.references)
    yield from against_tables(analysis.grouping, metrics, analysis.references, analysis.intervals)


def pair_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield every pair of initialisations at the same shots: difference, interval, p-value corrected by Holm.

    Where one has one seed, its difference stands alone: an interval over images would look like a test. The CSV has
    it, and Wilcoxon's test over images.
    """
    for panel in analysis.panels:
        rows, records = [], []
        for column in panel.group.columns:
            arms = {arm.label: arm for arm in panel.column_arms(column)}
            for pair in panel.compared.comparisons.get(column, ()):
                difference, (a, b) = pair.difference, (arms[pair.a], arms[pair.b])
                value = replace(difference, lower=None) if difference.num_seeds < 2 else difference
                text = estimate_text(value, signed=True) + (" *" if pair.differs else "")
                rows.append(
                    (
                        Cell(column.label("shots"), column.value if isinstance(column.value, int) else math.inf),
                        Cell(arm_label(panel, a.row, column), pair.a),
                        Cell(arm_label(panel, b.row, column), pair.b),
                        Cell(text, difference.value),
                        Cell(_p_text(pair.p_holm), pair.p_holm if pair.tested else None),
                        Cell(f"{difference.num_seeds}", difference.num_seeds),
                        Cell(f"{difference.num_images}", difference.num_images),
                    )
                )
                records.append(_pair_record(panel, column, pair, a, b))
        if rows:
            yield Table(
                slug("pairs", panel.title),
                f"Paired differences of MRE, A minus B ({panel.unit}; below 0: A is better), of every two "
                f"initialisations at the same shots: {panel.title}.",
                ("shots", "A", "B", "difference", "p (Holm)", "units", "images"),
                tuple(rows),
                tuple(records),
                tuple(_pair_notes(panel, analysis.num_resamples)),
                text_columns=3,
            )


def _pair_record(panel: Panel, column: Key, pair: Comparison, a: Arm, b: Arm) -> dict[str, object]:
    over_images = signed_rank(a.scores.seed_mean_I(), b.scores.seed_mean_I())
    return {
        "shots": column.label("shots"),
        "a": pair.a,
        "b": pair.b,
        "unit": panel.unit,
        **{f"difference_{name}": value for name, value in estimate_record(pair.difference).items()},
        "units": {"paired": "paired", "unpaired": "independent"}[pair.difference.kind],
        "p": pair.difference.p_value,
        "p_holm": pair.p_holm if pair.tested else None,
        "family_size": pair.family_size,
        "one_pretraining": " ".join(name for name, arm in (("a", a), ("b", b)) if arm.single),
        "p_wilcoxon": over_images.p_value if pair.tested else None,
        "rank_biserial": over_images.effect,
        "images": over_images.num_images,
        "equal_images": over_images.num_zeros,
    }


def _pair_notes(panel: Panel, num_resamples: int) -> Iterator[str]:
    """Yield how the differences of a panel were tested and corrected, and how often such intervals hold the truth."""
    pairs = [pair for column in panel.compared.comparisons.values() for pair in column]
    tested = [pair.difference for pair in pairs if pair.tested]
    if tested:
        yield (
            f"* differs: p < 0.05 after Holm's correction over the {counted(len(tested), 'test')} of this table, and "
            "the 95 % interval, which is not corrected, leaves out 0. Units: pre-trainings where their seed varies, "
            "else draws of the shots, else seeds; of two arms the smaller number."
        )
    if len(tested) < len(pairs) and not panel.tuned_note:
        yield "No interval, p-value or mark where one of the two has one seed; no p-value where nothing varies."
    for kind, how in (
        ("paired", "Units with the same draw of the shots are paired: Student's t over units and test images."),
        (
            "unpaired",
            f"{'Other differences' if {found.kind for found in tested} > {'unpaired'} else 'Differences'}: interval by "
            f"crossed bootstrap over units and test images, {num_resamples} replicates; p by Student's t with Welch's "
            "degrees of freedom.",
        ),
    ):
        units = [found.num_seeds for found in tested if found.kind == kind]
        if units:
            yield how
            yield coverage_note(min(units), "paired" if kind == "paired" else "unpaired")
    if panel.tuned_note:
        yield panel.tuned_note
    if any(is_tuned(row) for row in panel.group.rows):
        yield CONDITIONAL
    yield WILCOXON_CAPTION
    yield INTERVAL_CAPTION
    yield from condition_notes(panel)
    if panel.within_networks:
        yield ONE_NETWORK


def _p_text(p_value: float) -> str:
    if not math.isfinite(p_value):
        return "–"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def efficiency_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield how many annotated images each initialisation needs to reach the error of another."""
    for panel in analysis.panels:
        shots = {column: numeric_shots(analysis, panel, column) for column in panel.group.columns}
        curves = {
            row: {number: arm.mre for arm in panel.row_arms(row) if (number := shots[arm.column]) is not None}
            for row in panel.group.rows
        }
        curves = {row: curve for row, curve in curves.items() if len(curve) > 1}
        if len(curves) < 2:
            continue
        rows, records = [], []
        for target_row in panel.group.rows:
            for target in panel.row_arms(target_row):
                cells = []
                for row, curve in curves.items():
                    found = label_efficiency(target.mre, curve) if row != target_row else None
                    cells.append(Cell(found.text() if found else "–", found.shots.value if found else None))
                    if found:
                        records.append(
                            {
                                "target": target_row.label(INITIALISATION),
                                "target_shots": target.shots,
                                "initialisation": row.label(INITIALISATION),
                                "shots": found.shots.text(),
                                "lower": found.lower.text() if found.lower else None,
                                "upper": found.upper.text() if found.upper else None,
                                "note": found.note,
                            }
                        )
                name = f"{arm_label(panel, target_row, target.column)} at {target.shots}"
                rows.append((Cell(name), *(Cell(c.text.replace("95 % interval ", ""), c.value) for c in cells)))
        unknown = [column.label("shots") for column, number in shots.items() if number is None]
        notes = ["Log-linear interpolation between the measured shots; beyond them censored (> or <)."]
        notes += _efficiency_notes(panel, list(curves), analysis.num_resamples)
        if unknown:
            notes.append("How many images `all` are is not known, so it is left out.")
        yield Table(
            slug("label-efficiency", panel.title),
            "Annotated images that an initialisation (column) needs to reach the MRE of another at its shots (row): "
            f"{panel.title}.",
            ("reach", *(arm_label(panel, row) for row in curves)),
            tuple(rows),
            tuple(records),
            (*notes, INTERVAL_CAPTION, *condition_notes(panel)),
        )


def _efficiency_notes(panel: Panel, rows: Sequence[Key], num_resamples: int) -> Iterator[str]:
    """Yield what the intervals of label efficiencies are, and how often they hold the truth."""
    seeds = [arm.mre.num_seeds for row in rows for arm in panel.row_arms(row)]
    if max(seeds) > 1:
        yield (
            f"In brackets: 95 % interval by crossed bootstrap over seeds and test images, {num_resamples} replicates."
        )
        yield coverage_note(min(number for number in seeds if number > 1), "efficiency")
    if min(seeds) < 2:
        yield "No interval where a number behind it is of one seed."


def choice_tables(analysis: Analysis, selected: Selected) -> Iterator[Table]:
    """Yield what the validation set chose for each cell, out of how many, and what that reaches on the test set."""
    if not selected.choices:
        return
    trials = analysis.run.trials
    varying = {name for name in FIELDS if len({dict(choice.where).get(name) for choice in selected.choices}) > 1}
    shown = (varying | {"dataset", INITIALISATION, "shots"}) - {"pretrain_name"}
    names = [name for name in FIELDS if name in shown]
    rows, records = [], []
    for choice in selected.choices:
        where = dict(choice.where)
        sample = analysis.intervals.sample(trials[trials["trial_id"].isin(choice.trial_ids)])
        reached = analysis.intervals.of(sample, METRICS["mre"]) if sample else None
        test = estimate_text(reached) if reached else "–"
        rows.append((
            *(Cell(value_label(name, where[name]), value_label(name, where[name])) for name in names),
            Cell(choice.text),
            Cell(f"{choice.candidates}", choice.candidates),
            Cell(selected.metric.text(choice.value), choice.value),
            Cell(test, reached.value if reached else None),
        ))  # fmt: skip
        records.append({
            **{name: record_value(name, where[name]) for name in names},
            "chosen": choice.text,
            "candidates": choice.candidates,
            "candidates_without_value": choice.without_value,
            selected.metric.name: choice.value,
            "val_seeds": choice.num_seeds,
            **({f"test_mre_{name}": value for name, value in estimate_record(reached).items()} if reached else {}),
        })  # fmt: skip
    yield Table(
        "selected-on-validation",
        f"Settings chosen by {selected.metric.label} for each cell, never on the test set, each data set in its unit.",
        (*(field_label(name) for name in names), "chosen", "of", selected.metric.name, "MRE (test)"),
        tuple(rows),
        tuple(records),
        (selected.note,),
        text_columns=len(names) + 1,
    )


def selection_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield, where a method was run with several settings, which one the validation set chooses."""
    if analysis.selected:
        yield from choice_tables(analysis, analysis.selected)
    for panel in analysis.panels:
        rows, records = [], []
        for method in dict.fromkeys(row.value for row in panel.group.rows):
            variants = [row for row in panel.group.rows if row.value == method]
            for column in panel.group.columns if len(variants) > 1 else ():
                arms = [panel.arms[row, column] for row in variants if (row, column) in panel.arms]
                if len(arms) < 2:
                    continue
                chosen = select_by_validation(_validation(analysis, [arm.trial_ids for arm in arms]), range(len(arms)))
                if chosen is None:
                    continue
                arm = arms[int(chosen.candidate)]
                rows.append(
                    (
                        Cell(column.label("shots"), column.value if isinstance(column.value, int) else math.inf),
                        Cell(arm_label(panel, arm.row, column), arm.label),
                        Cell(f"{len(arms)}", len(arms)),
                        Cell(METRICS["mre"].text(chosen.val_mre), chosen.val_mre),
                        Cell(estimate_text(arm.mre), arm.mre.value),
                    )
                )
                records.append(
                    {
                        "shots": column.label("shots"),
                        "chosen": arm.label,
                        "candidates": len(arms),
                        "val_mre": chosen.val_mre,
                        "val_seeds": chosen.num_seeds,
                        "unit": panel.unit,
                        **{f"test_mre_{name}": value for name, value in estimate_record(arm.mre).items()},
                    }
                )
        if rows:
            yield Table(
                slug("selection", panel.title),
                f"Settings of a method chosen by MRE on the validation set, never on the test set: {panel.title} "
                f"({panel.unit}).",
                ("shots", "chosen", "of", "MRE (validation)", "MRE (test)"),
                tuple(rows),
                tuple(records),
                interval_notes(panel, analysis.num_resamples),
                text_columns=2,
            )


def _validation(analysis: Analysis, arms: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the validation MRE of each arm's trials, one column for each seed that any arm has."""
    trials = analysis.run.trials.set_index("trial_id")
    found = []
    for ids in arms:
        columns = (trials.loc[list(ids), name] for name in ("seed", "pretrain_seed", "val_mre"))
        found.append({(plain(a), plain(b)): plain(value) for a, b, value in zip(*columns, strict=True)})
    seeds = sorted({seed for one in found for seed in one}, key=str)
    values = [[np.nan if one.get(seed) is None else one[seed] for seed in seeds] for one in found]
    return np.array(values, dtype=np.float64)


def leakage_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield every MRE with and without the test images that also occur in train or val.

    If the two differ by more than their intervals, networks gain from images they were trained on; if they agree, that
    is not seen at this precision, which does not prove that there is none.
    """
    for panel in analysis.panels:
        if not panel.errors.duplicates_I.any():
            continue
        rows, records = with_and_without(analysis, panel, panel.errors.duplicates_I, "without duplicates")
        num = int(panel.errors.duplicates_I.sum())
        yield Table(
            slug("leakage", panel.title),
            f"MRE ({panel.unit}) on all {len(panel.errors.images)} test images, and without the {num} that also occur "
            f"in the training or validation images: {panel.title}.",
            ("initialisation", "shots", "all test images", "without duplicates"),
            rows,
            records,
            interval_notes(panel, analysis.num_resamples),
            text_columns=2,
        )
