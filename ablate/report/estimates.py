"""Estimates as texts and records of tables, with the notes that their intervals need."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ablate.report.analysis import Analysis, Panel
from ablate.report.conditions import SINGLE, SINGLE_NOTE
from ablate.report.grouping import INITIALISATION, Key
from ablate.report.render import Cell
from ablate.stats import INTERVAL_CAPTION, Estimate, coverage_note
from ablate.stats.samples import BoolArray


def interval_notes(panel: Panel, num_resamples: int) -> tuple[str, ...]:
    """Return what a reader must know about the intervals of a panel."""
    arms = list(panel.arms.values())
    notes = [f"95 % intervals by crossed bootstrap over seeds and test images, {num_resamples} replicates."]
    several = [arm.mre.num_seeds for arm in arms if arm.mre.num_seeds > 1]
    notes.append(coverage_note(min(several, default=1)))
    for note in dict.fromkeys(arm.mre.note for arm in arms if arm.mre.note):
        having = [f"{arm.label} at {arm.shots}" for arm in arms if arm.mre.note == note]
        where = "" if len(having) == len(arms) else f" ({', '.join(having)})"
        notes.append(f"{note[0].upper()}{note[1:]}{where}.")
    return (*notes, INTERVAL_CAPTION, *condition_notes(panel))


def condition_notes(panel: Panel) -> tuple[str, ...]:
    """Return what else differs between the initialisations of a panel, such as the network, and what rests on one."""
    single = [SINGLE_NOTE] if any(arm.single for arm in panel.arms.values()) else []
    return (*panel.group.notes, *single)


def arm_label(panel: Panel, row: Key, column: Key | None = None) -> str:
    """Return the label of an initialisation, marked where it rests on a single pre-training.

    Args:
        panel: where it is shown.
        row: the initialisation.
        column: its number of shots; None: any.
    """
    arms = [arm for arm in panel.row_arms(row) if column in (None, arm.column)]
    label = row.label(INITIALISATION)
    return f"{label} {SINGLE}" if any(arm.single for arm in arms) else label


def estimate_text(estimate: Estimate, *, signed: bool = False) -> str:
    """Return for instance `3.21 [2.95, 3.50]`; without an interval just the number."""
    if estimate.value is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{estimate.value:{sign}.2f}"
    if estimate.lower is None or estimate.upper is None:
        return text
    return f"{text} [{estimate.lower:{sign}.2f}, {estimate.upper:{sign}.2f}]"


def estimate_record(estimate: Estimate) -> dict[str, object]:
    """Return an estimate unrounded, as columns of a table for machines."""
    return {
        "value": estimate.value,
        "lower": estimate.lower,
        "upper": estimate.upper,
        "se_seeds": estimate.se_seeds,
        "se_images": estimate.se_images,
        "seeds": estimate.num_seeds,
        "images": estimate.num_images,
        "note": estimate.note,
    }


def with_and_without(
    analysis: Analysis, panel: Panel, left_out_I: BoolArray, others: str
) -> tuple[tuple[tuple[Cell, ...], ...], tuple[Mapping[str, object], ...]]:
    """Return rows and records of every MRE of a panel, on all test images and without some.

    Args:
        analysis: holds the intervals.
        panel: its arms.
        left_out_I: the test images that are left out of the second number.
        others: what records call the images of the second number.
    """
    rows: list[tuple[Cell, ...]] = []
    records: list[Mapping[str, object]] = []
    for (row, column), arm in panel.arms.items():
        found = {"all": arm.mre, others: analysis.intervals.without(arm.sample, left_out_I)}
        shots = column.value if isinstance(column.value, int) else math.inf
        cells = [Cell(estimate_text(estimate), estimate.value) for estimate in found.values()]
        rows.append((Cell(arm_label(panel, row, column), arm.label), Cell(arm.shots, shots), *cells))
        names = {"initialisation": arm.label, "shots": arm.shots, "unit": panel.unit}
        records += [{**names, "images_of": kind, **estimate_record(estimate)} for kind, estimate in found.items()]
    return tuple(rows), tuple(records)


def numeric_shots(analysis: Analysis, panel: Panel, column: Key) -> int | None:
    """Return the shots as a number, `all` as the number of training images; None if that is not known."""
    return column.value if isinstance(column.value, int) else analysis.run.train_images(panel.dataset)
