"""The radiographs that the page shows, with their points packed for its script.

I images shown, K landmarks.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablate.report.analysis import Analysis, Panel
from ablate.report.grouping import INITIALISATION
from ablate.report.pictures import Shown, Thumbnail, cases, draw_sheet, jpeg_bytes, png_bytes, shown_trials, thumbnails
from ablate.report.render import slug
from ablate.report.run_data import landmark_labels
from ablate.report.style import look_of
from ablate.stats.samples import FloatArray

BUDGET_BYTES = 7_500_000
"""Most bytes of the page for radiographs and points together; the plotting library takes 5 MB more."""

SHEET_BYTES = 1_800_000
"""Most bytes of the page for the picture sheets."""

POINT_SCALE = 64
"""Points are stored as whole 64ths of a thumbnail's pixel."""

ABSENT = -32768
"""Stands for a coordinate that is missing."""


@dataclass(frozen=True)
class Sheet:
    """The worst, the median and the best case of a comparison."""

    name: str
    title: str
    cases: dict[str, str]  # case -> image
    png: bytes
    jpeg: bytes


@dataclass(frozen=True)
class Gallery:
    """The radiographs of the page and the picture sheets."""

    viewer: dict[str, Any]  # data of the page's script
    sheets: tuple[Sheet, ...]
    remarks: tuple[str, ...]  # what is left out, in sentences


def build_gallery(analysis: Analysis, *, budget_bytes: int = BUDGET_BYTES) -> Gallery:
    """Return the viewer's data, with as many radiographs as the budget allows, and the picture sheets."""
    datasets = list(dict.fromkeys(panel.dataset for panel in analysis.panels))
    images: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, dict[str, Thumbnail]] = {}
    remarks = []
    for dataset in datasets:
        panels = [panel for panel in analysis.panels if panel.dataset == dataset]
        errors = panels[0].errors
        found, without = thumbnails(analysis.run.store, dataset, errors.images)
        if not found:
            continue
        if without:
            remarks.append(f"{dataset}: no readable thumbnail of {len(without)} of {len(errors.images)} test images")
        wanted = list(dict.fromkeys(image for panel in panels for image in cases(panel, list(found)).values()))
        num = _affordable(list(found.values()), panels, budget_bytes // len(datasets))
        names = _spread(list(found), wanted, num)
        if len(names) < len(found):
            remarks.append(
                f"{dataset}: {len(names)} of {len(found)} test images are in the viewer, evenly spread by name and "
                "with the worst, the median and the best; the tables are over all of them"
            )
        chosen[dataset] = {name: found[name] for name in names}
        twice = dict(zip(errors.images, errors.duplicates_I.tolist(), strict=True))
        images[dataset] = [
            {
                "name": name,
                "src": data_uri(found[name].jpeg, "jpeg"),
                "width": found[name].width,
                "height": found[name].height,
                "duplicate": twice[name],
            }
            for name in names
        ]
    comparisons, sheets = [], []
    for panel in analysis.panels:
        if panel.dataset in chosen:
            shown = shown_trials(analysis, panel, chosen[panel.dataset])
            comparisons.append(_comparison(panel, shown, analysis))
            sheet = _sheet(panel, chosen[panel.dataset], shown)
            sheets += [sheet] if sheet else []
    return Gallery({"images": images, "comparisons": comparisons}, tuple(sheets), tuple(remarks))


def data_uri(data: bytes, kind: str) -> str:
    """Return a picture as a `data:` address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _affordable(pictures: Sequence[Thumbnail], panels: Sequence[Panel], budget_bytes: int) -> int:
    of_image = sum(len(picture.jpeg) for picture in pictures) / len(pictures)
    points = sum((len(panel.arms) + 1) * panel.errors.errors_TIK.shape[2] * 4 for panel in panels)
    return max(3, int(budget_bytes / ((of_image + points) * 4 / 3 + 100)))


def _spread(names: Sequence[str], wanted: Sequence[str], num: int) -> list[str]:
    """Return `num` of the names, sorted, the wanted ones among them and the others evenly spread."""
    if num >= len(names):
        return list(names)
    kept = list(wanted)[:num]
    others = [name for name in names if name not in kept]
    places = np.linspace(0, len(others) - 1, num - len(kept)).round().astype(int)
    return sorted({*kept, *(others[place] for place in places.tolist())})


def _comparison(panel: Panel, shown: dict[Any, Shown], analysis: Analysis) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    truth_IK2: FloatArray | None = None
    seeds = dict(zip(analysis.run.trials["trial_id"], analysis.run.trials["seed"], strict=True))
    for (row, column), one in shown.items():
        known_IK2 = one.truth_IK2 if truth_IK2 is None else truth_IK2
        # a trial may have been evaluated on fewer images than another
        truth_IK2 = np.where(np.isfinite(known_IK2), known_IK2, one.truth_IK2)
        key = f"{panel.group.rows.index(row)},{panel.group.columns.index(column)}"
        arms[key] = {
            "points": _packed(one.predicted_IK2),
            "errors": [float(f"{error:.4g}") if np.isfinite(error) else None for error in one.error_I],
            "seed": int(seeds[one.trial_id]),
        }
    return {
        "title": panel.title,
        "dataset": panel.dataset,
        "unit": panel.unit,
        "landmarks": list(landmark_labels(analysis.run.described, panel.dataset, panel.errors.errors_TIK.shape[2])),
        "rows": [
            {"label": row.label(INITIALISATION), "colour": look_of(str(row.value)).colour} for row in panel.group.rows
        ],
        "columns": [column.label("shots") for column in panel.group.columns],
        "truth": "" if truth_IK2 is None else _packed(truth_IK2),
        "arms": arms,
    }


def _packed(points_IK2: FloatArray) -> str:
    """Return points as base64 of little-endian 16-bit integers."""
    scaled = np.clip(np.rint(np.nan_to_num(points_IK2) * POINT_SCALE), -32767, 32767)
    return base64.b64encode(np.where(np.isfinite(points_IK2), scaled, ABSENT).astype("<i2").tobytes()).decode()


def _sheet(panel: Panel, pictures: dict[str, Thumbnail], shown: dict[Any, Shown]) -> Sheet | None:
    chosen = cases(panel, list(pictures))
    if not chosen:
        return None
    picture = draw_sheet(panel, chosen, pictures, shown)
    small = picture.copy()
    small.thumbnail((1400, 1400))
    return Sheet(slug("cases", panel.title), panel.title, chosen, png_bytes(picture), jpeg_bytes(small))
