"""Radiographs with true and predicted landmarks, as picture sheets and as points for the page.

I images shown, K landmarks, 2 = (x, y). Points are in pixels of a thumbnail, the centre of its top-left pixel at
(0, 0): x_thumbnail = (x + 0.5) * width_thumbnail / width - 0.5.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ablate import tables
from ablate.report.analysis import Analysis, Arm, Panel
from ablate.report.figures import drawable, drawable_names
from ablate.report.grouping import Key
from ablate.report.run_data import RunData
from ablate.report.run_tables import fullest
from ablate.report.style import FONT
from ablate.stats.samples import FloatArray
from ablate.store import Store
from ablate.store.layout import INDEX, PICTURES, STRIPS, thumbnail_file, thumbnail_folder, thumbnail_index

TRUTH_COLOUR = "#56B4E9"
PREDICTION_COLOUR = "#D55E00"
LINE_COLOUR = "#F0E442"

LARGEST_SIDE_PX = 1024
"""Thumbnails with a longer side are not shown: they are not what the stages write."""


@dataclass(frozen=True)
class Thumbnail:
    """A test image as the report shows it."""

    image: str
    jpeg: bytes
    width: int  # of the thumbnail
    height: int
    original_width: int
    original_height: int


@dataclass(frozen=True, eq=False)
class Shown:
    """The points of one trial, the lowest seed of an arm, on some test images."""

    arm: Arm
    trial_id: str
    truth_IK2: FloatArray
    predicted_IK2: FloatArray
    error_I: FloatArray  # MRE of each image, in the panel's unit


def thumbnails(store: Store, dataset: str, images: Sequence[str]) -> tuple[dict[str, Thumbnail], list[str]]:
    """Return the thumbnails of a data set's test images, and the images whose thumbnail is missing or damaged."""
    if dataset not in store.list(PICTURES):
        return {}, list(images)
    present = set(store.list(thumbnail_folder(dataset)))
    index = _index(store, dataset) if INDEX in present else {}
    found: dict[str, Thumbnail] = {}
    without = []
    for image in images:
        entry = index.get(image)
        thumbnail = _thumbnail(store, dataset, image, entry) if entry and f"{image}.jpg" in present else None
        if thumbnail is None:
            without.append(image)
        else:
            found[image] = thumbnail
    return found, without


def _index(store: Store, dataset: str) -> dict[str, tuple[int, int]]:
    try:
        value = json.loads(store.read(thumbnail_index(dataset)))
        return {str(name): (int(entry["width"]), int(entry["height"])) for name, entry in value.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _thumbnail(store: Store, dataset: str, image: str, size: tuple[int, int]) -> Thumbnail | None:
    data = store.read(thumbnail_file(dataset, image))
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
            opened.load()
            width, height = opened.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    if max(width, height) > LARGEST_SIDE_PX or min(size) < 1:
        return None
    return Thumbnail(image, data, width, height, *size)


# --- points -----------------------------------------------------------------------------------------


def read_points(run: RunData, trial_ids: Sequence[str], images: Sequence[str], num_landmarks: int) -> FloatArray:
    """Return truth and prediction of some trials: (trials, I, K, 4) with x, y, x, y in pixels of the original file."""
    points = np.full((len(trial_ids), len(images), num_landmarks, 4), np.nan)
    if not trial_ids or not images:
        return points
    names = ["trial_id", "image", "landmark", "x_true", "y_true", "x_pred", "y_pred"]
    trial_of = {trial_id: number for number, trial_id in enumerate(trial_ids)}
    trial_of |= {fold: trial_of[row] for fold, row in run.row_of.items() if row in trial_of}
    filters = [("trial_id", "in", list(trial_of)), ("image", "in", list(images))]
    table = tables.read_table(run.store, "errors", names, filters)
    image_of = {image: number for number, image in enumerate(images)}
    trial_N = np.array([trial_of[value] for value in table["trial_id"].to_pylist()], dtype=np.int64)
    image_N = np.array([image_of[value] for value in table["image"].to_pylist()], dtype=np.int64)
    landmark_N = table["landmark"].to_numpy().astype(np.int64)
    for axis, name in enumerate(names[3:]):
        points[trial_N, image_N, landmark_N, axis] = table[name].to_numpy().astype(np.float64)
    return points


def shown_trials(analysis: Analysis, panel: Panel, pictures: Mapping[str, Thumbnail]) -> dict[tuple[Key, Key], Shown]:
    """Return for each arm the points of its lowest seed, in pixels of the thumbnails."""
    images = list(pictures)
    arms = {key: arm for key, arm in panel.arms.items() if arm.trial_ids}
    firsts = [_first(arm) for arm in arms.values()]
    trial_ids = [arm.trial_ids[number] for arm, number in zip(arms.values(), firsts, strict=True)]
    num_landmarks = panel.errors.errors_TIK.shape[2]
    points = read_points(analysis.run, trial_ids, images, num_landmarks)
    thumbs = [pictures[image] for image in images]
    scale_I12 = np.array([[[t.width / t.original_width, t.height / t.original_height]] for t in thumbs])
    places = [panel.errors.images.index(image) for image in images]
    shown = {}
    for (key, arm), first, trial_id, points_IK4 in zip(arms.items(), firsts, trial_ids, points, strict=True):
        truth_IK2 = (points_IK4[..., :2] + 0.5) * scale_I12 - 0.5
        predicted_IK2 = (points_IK4[..., 2:] + 0.5) * scale_I12 - 0.5
        errors_IK = arm.errors_SIK[first][places]
        counts_I = np.isfinite(errors_IK).sum(axis=1)
        total_I = np.nansum(errors_IK, axis=1)
        error_I = np.divide(total_I, counts_I, out=np.full(len(places), np.nan), where=counts_I > 0)
        shown[key] = Shown(arm, trial_id, truth_IK2, predicted_IK2, error_I)
    return shown


def _first(arm: Arm) -> int:
    """Return the first seed that has errors."""
    return next(s for s in range(len(arm.trial_ids)) if np.isfinite(arm.errors_SIK[s]).any())


def cases(panel: Panel, images: Sequence[str]) -> dict[str, str]:
    """Return the worst, the median and the best of some images, by MRE over all initialisations at the most shots."""
    arms = panel.column_arms(fullest(panel))
    means_AI = np.stack([arm.scores.seed_mean_I() for arm in arms])
    mean_I = means_AI.mean(axis=0)  # NaN where an initialisation lacks the image; such images sort last
    wanted = set(images)
    order = [
        panel.errors.images[i]
        for i in np.argsort(-mean_I, kind="stable").tolist()
        if np.isfinite(mean_I[i]) and panel.errors.images[i] in wanted
    ]
    if not order:
        return {}
    return {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}


# --- sheets -----------------------------------------------------------------------------------------

MARGIN_PX = 8
SHEET_WIDTH_PX = 2000
SMALLEST_TILE_PX = 240


def draw_sheet(
    panel: Panel, chosen: Mapping[str, str], pictures: Mapping[str, Thumbnail], shown: Mapping[tuple[Key, Key], Shown]
) -> Image.Image:
    """Return a picture with a row for each case and a column for each initialisation, all at the most shots."""
    column = fullest(panel)
    arms = [shown[row, column] for row in panel.group.rows if (row, column) in shown]
    images = list(pictures)
    tallest = max(pictures[image].height / pictures[image].width for image in chosen.values())
    tile_width = max(SMALLEST_TILE_PX, min(512, (SHEET_WIDTH_PX - MARGIN_PX) // len(arms) - MARGIN_PX))
    tile_height = int(tile_width * min(tallest, 1.6))
    font_px = max(11, tile_width // 22)
    font = ImageFont.truetype(findfont(FontProperties(family=FONT)), font_px)
    line_px = font_px * 3 // 2
    width = MARGIN_PX + len(arms) * (tile_width + MARGIN_PX)
    row_height = tile_height + line_px + MARGIN_PX
    sheet = Image.new("RGB", (max(width, 480), line_px * 2 + MARGIN_PX + len(chosen) * row_height + line_px), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN_PX, 2), drawable(f"{panel.title}, {column.label('shots')} shots", 90, FONT), "black", font)
    names = drawable_names([one.arm.label for one in arms], max(8, 3 * tile_width // (2 * font_px)), FONT)
    for number, (one, name) in enumerate(zip(arms, names, strict=True)):
        left = MARGIN_PX + number * (tile_width + MARGIN_PX)
        pen.text((left, line_px), name, "black", font)
        for place, (case, image) in enumerate(chosen.items()):
            top = 2 * line_px + place * row_height
            index = images.index(image)
            tile = _tile(pictures[image], one, index, tile_width, tile_height)
            sheet.paste(tile, (left, top))
            text = f"{case}: {one.error_I[index]:.2f} {panel.unit}"
            pen.text((left, top + tile_height), drawable(text, 40, FONT), "black", font)
    bottom = sheet.height - line_px
    for number, name in enumerate(("truth", "prediction")):
        left, middle, radius = MARGIN_PX + number * 8 * font_px, bottom + font_px * 5 // 8, font_px // 3
        circle = (left, middle - radius, left + 2 * radius, middle + radius)
        pen.ellipse(circle, outline=TRUTH_COLOUR if name == "truth" else PREDICTION_COLOUR, width=2)
        if name == "prediction":
            pen.ellipse(circle, fill=PREDICTION_COLOUR)
        pen.text((left + font_px, bottom), name, "black", font)
    return sheet


def _tile(picture: Thumbnail, shown: Shown, index: int, width: int, height: int) -> Image.Image:
    with Image.open(io.BytesIO(picture.jpeg), formats=["JPEG"]) as opened:
        grey = opened.convert("L")
    scale = min(width / picture.width, height / picture.height)
    tile = grey.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))).convert("RGB")
    pen = ImageDraw.Draw(tile)
    radius = max(2.0, width / 120)
    for truth, predicted in zip(shown.truth_IK2[index], shown.predicted_IK2[index], strict=True):
        if not np.isfinite([*truth, *predicted]).all():
            continue
        (x0, y0), (x1, y1) = (((p + 0.5) * scale - 0.5).tolist() for p in (truth, predicted))
        pen.line((x0, y0, x1, y1), fill=LINE_COLOUR, width=max(1, round(radius / 2)))
        pen.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), outline=TRUTH_COLOUR, width=2)
        pen.ellipse((x1 - radius, y1 - radius, x1 + radius, y1 + radius), fill=PREDICTION_COLOUR)
    framed = Image.new("RGB", (width, height), "#111111")
    framed.paste(tile, ((width - tile.width) // 2, 0))
    return framed


def ddpm_strips(store: Store) -> dict[str, bytes]:
    """Return the pictures of DDPMs at work by the key of their pre-training, as JPEG of at most 1200 pixels' width."""
    strips = {}
    for name in store.list(STRIPS):
        if not name.endswith(".png"):
            continue
        try:
            with Image.open(io.BytesIO(store.read(f"{STRIPS}/{name}")), formats=["PNG"]) as opened:
                picture = opened.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
        picture.thumbnail((1200, 1200))
        strips[name.removesuffix(".png")] = jpeg_bytes(picture)
    return strips


def jpeg_bytes(picture: Image.Image, quality: int = 80) -> bytes:
    """Return a picture as JPEG."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
