"""How large a pixel is in the metric protocol `paper`, which counts whole pixels of the network's image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pandas as pd

from ablate.datasets.builtin import DATASETS
from ablate.report.grouping import plain
from ablate.report.metrics import Metric, thresholds_of

PAPER_RATE = "paper_sdr"

PIXEL_FIELDS = ("dataset", "image_size", "unit", PAPER_RATE)
"""The columns of trials that `pixel_notes` reads."""


def pixel_notes(trials: pd.DataFrame, metric: Metric) -> Iterator[str]:
    """Yield what a reader must know of rates by protocol `paper` whose pixels are larger than the distances told apart.

    Where a pixel's size in the unit of the errors depends on the radiograph (`hand`), nothing is known of it here.

    Args:
        trials: those of one table.
        metric: what the table shows.
    """
    if metric.column != PAPER_RATE or metric.threshold is None:
        return
    for (dataset, image_size), rows in trials.groupby(["dataset", "image_size"], sort=True):
        side = int(str(image_size))
        layout = DATASETS.get(str(dataset))
        if layout is None or layout.paper is None or layout.paper.frame is None:
            continue
        width, height = (length / side for length in layout.paper.frame)
        gaps = [after - before for before, after in itertools.pairwise(thresholds_of(rows, PAPER_RATE))]
        unit = next((str(name) for name in map(plain, rows["unit"]) if name), "")
        if max(width, height) > metric.threshold:
            what = (
                f"the distance of {metric.threshold:g} {unit}, so that hardly anything but the right pixel is a success"
            )
        elif gaps and max(width, height) > min(gaps):
            what = f"the {min(gaps):g} {unit} between two distances, so that their rates can be the same number"
        else:
            continue
        yield (
            f"On {dataset} this protocol counts whole pixels of the {side} x {side} image, {width:.2f} x {height:.2f} "
            f"{unit} each: more than {what}."
        )
