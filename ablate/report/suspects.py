"""Test images that every arm fails on, and the headline numbers without them.

Such an image is more often a fault of the data (mirrored, another body part, labels of another patient) than of the
networks, and a handful of them can move a mean more than an initialisation does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ablate.report.analysis import Analysis, Panel
from ablate.report.estimates import interval_notes, with_and_without
from ablate.report.mean_shapes import average_mean_shapes
from ablate.report.metrics import METRICS
from ablate.report.render import Cell, Table, slug
from ablate.stats.samples import BoolArray, FloatArray
from ablate.words import counted

TIMES = 10.0
"""An image is suspicious if its error is over so many times the median over images, in every arm."""


def image_ratios(panel: Panel) -> FloatArray:
    """Return each test image's error over the median over images, by arm (A, I); NaN where an arm has no error.

    The error of an image is the mean over its landmarks, averaged over seeds.
    """
    ratios = []
    for arm in panel.arms.values():
        errors_I = arm.scores.seed_mean_I()
        known_I = np.isfinite(errors_I)
        middle = float(np.median(errors_I[known_I])) if known_I.any() else math.nan
        ratios.append(errors_I / middle if middle > 0 else np.full_like(errors_I, math.nan))
    return np.stack(ratios)


def learnt_ratios(analysis: Analysis, panel: Panel) -> FloatArray:
    """Return `image_ratios` without arms that are no better than the mean shape: there every image fails."""
    constants = average_mean_shapes(analysis.grouping, panel.group, METRICS["mre"])
    learnt_A = [(arm.mre.value or 0.0) < constants.get(arm.column, math.inf) for arm in panel.arms.values()]
    return np.asarray(image_ratios(panel)[np.array(learnt_A, np.bool_)], np.float64)


def suspicious(ratios_AI: FloatArray) -> BoolArray:
    """Return which test images have an error of over `TIMES` times the median in every arm; none without an arm."""
    over_AI = np.isfinite(ratios_AI) & (ratios_AI > TIMES)
    return np.asarray(over_AI.all(axis=0) & (len(ratios_AI) > 0), np.bool_)


def suspect_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield the suspicious test images of each panel, and every MRE with and without them."""
    for panel in analysis.panels:
        ratios_AI = learnt_ratios(analysis, panel)
        found_I = suspicious(ratios_AI)
        if found_I.any():
            yield _images(panel, ratios_AI, found_I)
            yield _headline(analysis, panel, found_I)


def _images(panel: Panel, ratios_AI: FloatArray, found_I: BoolArray) -> Table:
    rows, records = [], []
    for number in np.flatnonzero(found_I):
        errors = [float(arm.scores.seed_mean_I()[number]) for arm in panel.arms.values()]
        low, high = min(errors), max(errors)
        ratio, name = float(ratios_AI[:, number].min()), panel.errors.images[number]
        text = METRICS["mre"].text
        rows.append((Cell(name, name), Cell(text(low), low), Cell(text(high), high), Cell(f"{ratio:.0f}", ratio)))
        records.append({"image": name, "lowest": low, "highest": high, "times_median": ratio, "unit": panel.unit})
    return Table(
        slug("suspicious", panel.title),
        f"Test images whose error is over {TIMES:.0f} times the median in every arm that beats the mean shape: "
        f"{panel.title}. Lowest and highest error ({panel.unit}) over all arms, and the least multiple of a median.",
        ("image", "lowest", "highest", "times the median"),
        tuple(rows),
        tuple(records),
        ("Look at them: an image that every network fails on may be mirrored, or labelled wrongly.",),
    )


def _headline(analysis: Analysis, panel: Panel, found_I: BoolArray) -> Table:
    rows, records = with_and_without(analysis, panel, found_I, "without suspicious")
    return Table(
        slug("without-suspicious", panel.title),
        f"MRE ({panel.unit}) on all {len(panel.errors.images)} test images, and without the "
        f"{counted(int(found_I.sum()), 'image')} of the table above: {panel.title}.",
        ("initialisation", "shots", "all test images", "without them"),
        rows,
        records,
        interval_notes(panel, analysis.num_resamples),
        text_columns=2,
    )
