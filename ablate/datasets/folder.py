"""A user's own data set: a folder with `dataset.yaml`, `landmarks.csv` and `images/`.

Everything is checked here, at the boundary; each refusal names file, line, column, rule, value and cure.
Shape suffixes: K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import math
import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from ablate.datasets.layout import Frame, Label, Layout, PerPixel, Reference, Scale, SplitCounts
from ablate.datasets.types import PARTS, UNLABELLED, Part, Problems, Unit
from ablate.errors import InputError, nearest
from ablate.space import Source, Spec
from ablate.space.explain import explain
from ablate.space.spec import Positive, PositiveNumber, as_tuple

DESCRIPTION = "dataset.yaml"
LABELS = "landmarks.csv"
IMAGES = "images"

DEFAULT_SDR_THRESHOLDS: dict[Unit, tuple[float, ...]] = {"mm": (2.0, 2.5, 3.0, 4.0), "px": (3.0, 6.0, 9.0)}
"""Thresholds in use for cephalograms (ISBI 2015) and for chest X-rays at 256 x 256."""

_MM_SCALES = ("mm_per_pixel", "film_mm", "reference")


Pair = Annotated[tuple[PositiveNumber, PositiveNumber], BeforeValidator(as_tuple)]
Index = Annotated[int, Field(ge=0)]


class ReferenceDescription(Spec):
    """Two landmarks whose distance is known on every image."""

    landmarks: Annotated[tuple[Index, Index], BeforeValidator(as_tuple)] = Field(
        description="indices of the two, from 0"
    )
    mm: PositiveNumber = Field(description="millimetres between them")


class SplitsDescription(Spec):
    """Images of each split, by sorted file name."""

    train: Positive = Field(description="number of training images")
    val: Positive = Field(description="number of validation images")
    test: Positive | None = Field(None, description="number of test images; default: the rest")


class Description(Spec):
    """The content of `dataset.yaml`."""

    name: str | None = Field(None, description="the folder's name; may be left out")
    unit: Literal["mm", "px"] = Field(description="unit of errors and thresholds")
    mm_per_pixel: PositiveNumber | None = Field(None, description="millimetres per pixel of the image files")
    film_mm: Pair | None = Field(None, description="width and height of the whole image in millimetres")
    reference: ReferenceDescription | None = Field(None, description="two landmarks at a known distance")
    px_frame: Pair | None = Field(None, description="errors are in pixels of the image at this width and height")
    sdr_thresholds: Annotated[tuple[PositiveNumber, ...], BeforeValidator(as_tuple), Field(min_length=1)] | None = (
        Field(None, description="thresholds of the successful detection rate, ascending, in `unit`")
    )
    splits: SplitsDescription | None = Field(None, description="left out: landmarks.csv has a column split")
    landmark_names: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] | None = Field(
        None, description="a name for each landmark, in the order of the columns of landmarks.csv"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        given = [name for name in _MM_SCALES if getattr(self, name) is not None]
        if self.unit == "mm" and len(given) != 1:
            raise ValueError(
                f"unit mm needs exactly one of {', '.join(_MM_SCALES)}; got {' and '.join(given) or 'none'}; "
                "write, for example, mm_per_pixel: 0.1, or unit: px"
            )
        if self.unit == "px" and given:
            raise ValueError(f"{given[0]} needs unit mm; got unit 'px'; write unit: mm or remove {given[0]}")
        if self.unit == "mm" and self.px_frame is not None:
            raise ValueError("px_frame needs unit px; got unit 'mm'; write unit: px or remove px_frame")
        if self.reference is not None and len(set(self.reference.landmarks)) != 2:
            raise ValueError(f"reference.landmarks must be two different landmarks; got {self.reference.landmarks}")
        thresholds = self.sdr_thresholds
        if thresholds is not None and any(b <= a for a, b in itertools.pairwise(thresholds)):
            raise ValueError(f"sdr_thresholds must be ascending; got {list(thresholds)}; sort them")
        names = self.landmark_names or ()
        if any(not name.strip() for name in names):
            raise ValueError(f"landmark_names must not be empty; got {list(names)}; give every landmark a name")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"landmark_names must be different; got {twice!r} twice; rename one")
        return self

    @property
    def scale(self) -> Scale:
        """Units per pixel, as described."""
        if self.mm_per_pixel is not None:
            return PerPixel(self.mm_per_pixel)
        if self.reference is not None:
            return Reference(*self.reference.landmarks, self.reference.mm)
        frame = self.film_mm or self.px_frame
        return Frame(*frame) if frame is not None else PerPixel(1.0)


def read_folder(folder: Path) -> Layout:
    """Return the layout of a user's data set; raise `InputError` if `dataset.yaml` or the table's head is wrong."""
    path = folder / DESCRIPTION
    source = Source.parse(_read_text(path), str(path))
    description = _read_description(source, folder.name)
    table = folder / LABELS
    num_landmarks, has_splits = _read_head(table)
    if description.reference is not None:
        largest = max(description.reference.landmarks)
        if largest >= num_landmarks:
            source.refuse(
                ("reference", "landmarks"),
                f"must be between 0 and {num_landmarks - 1}, the landmarks of {LABELS}; got {largest}",
            )
    names = description.landmark_names
    if names is not None and len(names) != num_landmarks:
        source.refuse(
            ("landmark_names",),
            f"must have as many names as {LABELS} has landmarks, {num_landmarks}; got {len(names)}",
        )
    if has_splits and description.splits is not None:
        source.refuse(("splits",), f"must stand in one place; {table} also has a column split; remove one of the two")
    if not has_splits and description.splits is None:
        raise InputError(
            f"{path}: splits is required, for example splits: {{train: 130, val: 20}} by sorted file name "
            f"(the rest is test), or give {LABELS} a column split with {', '.join(PARTS)}"
        )
    splits = description.splits
    return Layout(
        name=folder.name,
        title=folder.name,
        num_landmarks=num_landmarks,
        unit=description.unit,
        scale=description.scale,
        sdr_thresholds=description.sdr_thresholds or DEFAULT_SDR_THRESHOLDS[description.unit],
        image_folder=IMAGES,
        label_file=LABELS,
        label_key=str,
        read_labels=functools.partial(_read_labels, num_landmarks),
        splits=SplitCounts(splits.train, splits.val, splits.test) if splits is not None else None,
        unlabelled="pre-train",
        unlabelled_folder=UNLABELLED,
        landmark_names=names or (),
    )


# --- dataset.yaml -----------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: must be a readable file; {error.strerror}; a data set of one's own is a folder with "
            f"{DESCRIPTION}, {LABELS} and {IMAGES}/"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text; byte {error.start} is not; save it as UTF-8") from error


def _read_description(source: Source, folder_name: str) -> Description:
    if not isinstance(source.value, dict):
        raise InputError(f"{source.name}: must be a mapping with unit and its scale; got {source.value!r}")
    try:
        description = Description.model_validate(source.value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fields = _model_at([str(part) for part in first["loc"][:-1]]).model_fields
        source.refuse(*explain(first, {name: info.annotation for name, info in fields.items()}))
    if description.name not in (None, folder_name):
        source.refuse(
            ("name",),
            f"must be the folder's name '{folder_name}'; got '{description.name}'; rename one, or leave name out",
        )
    return description


def _model_at(path: list[str]) -> type[BaseModel]:
    nested: dict[str, type[BaseModel]] = {"reference": ReferenceDescription, "splits": SplitsDescription}
    return nested.get(path[0], Description) if path else Description


# --- landmarks.csv ----------------------------------------------------------------------------------

_KNOWN = ("image", "split")
_COORDINATE = re.compile(r"[xy]\d+")


def _read_head(path: Path) -> tuple[int, bool]:
    """Return the number of landmarks and whether there is a column split; other columns are the user's own."""
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path}: must have a header image,x0,y0,x1,y1,... and a row for every image; it is empty")
    number, header = rows[0]
    names = [name.strip() for name in header]
    if len(names) == 1 and re.search(r"[;\t]", names[0]):
        raise InputError(
            f"{path}:{number}: columns must be separated by commas; got {names[0]!r}; export the table as CSV"
        )
    rule = "the header is image,x0,y0,x1,y1,... and, if wanted, split and columns of your own"
    if "image" not in names:
        raise InputError(f"{path}:{number}: column 1 must be 'image'; got {names[0]!r}; {rule}")
    for column, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{path}:{number}: column {column} must have a name; {rule}")
        if names.count(name) > 1:
            raise InputError(
                f"{path}:{number}: column {name} must stand once; got {names.count(name)}; remove or rename one"
            )
        close = nearest(name, _KNOWN) if name not in _KNOWN else ""
        if close:
            raise InputError(f"{path}:{number}: column {column} must not be {name!r}{close}; rename it; {rule}")
    given = [name for name in names if _COORDINATE.fullmatch(name)]
    pairs = max(1, -(-len(given) // 2))
    expected = [f"{axis}{index}" for index in range(pairs) for axis in "xy"]
    for position, name in enumerate(expected):
        got = given[position] if position < len(given) else None
        if got != name:
            column = names.index(got) + 1 if got is not None else len(names) + 1
            raise InputError(
                f"{path}:{number}: column {column} must be {name!r}; "
                f"got {'the end of the line' if got is None else repr(got)}; {rule}"
            )
    return pairs, "split" in names


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, each with the number of its last line."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: must be comma-separated values; {error}") from error
    return rows


def _read_labels(num_landmarks: int, folder: Path, problems: Problems) -> dict[str, Label | None]:
    """Read the table's rows by image name; a row that cannot be used is reported and maps to None."""
    path = folder / LABELS
    (_, header), *rows = _rows(path)
    names = [name.strip() for name in header]
    split_column = names.index("split") if "split" in names else None
    labels: dict[str, Label | None] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        cells = [cell.strip() for cell in row]
        image_column = names.index("image")
        image = cells[image_column] if image_column < len(cells) else ""
        if not image:
            problems.error(f"{where}: column image must be the name of a file in {IMAGES}/; it is empty")
            continue
        if image in lines:
            problems.error(f"{where}: image {image!r} already has a row in line {lines[image]}; remove one of them")
            continue
        lines[image] = number
        labels[image] = None
        if len(cells) < len(names) and not any(cell for cell in cells[:image_column] + cells[image_column + 1 :]):
            cells += [""] * (len(names) - len(cells))  # nothing but the image's name
        if len(cells) != len(names):
            relation = "few" if len(cells) < len(names) else "many"
            problems.error(
                f"{where}: must have {len(names)} columns ({num_landmarks} landmarks) as the header; got {len(cells)}, "
                f"too {relation} (image {image}); leave both fields of a landmark empty if it is not annotated"
            )
            continue
        coordinates = [cell for name, cell in zip(names, cells, strict=True) if _COORDINATE.fullmatch(name)]
        split: Part | None = None
        if split_column is not None:
            given = cells[split_column] or (UNLABELLED if not any(coordinates) else "")
            split = next((name for name in PARTS if name == given), None)
            if split is None:
                problems.error(
                    f"{where}: column split must be one of {', '.join(PARTS)}; got {given!r}"
                    f"{nearest(given, PARTS)} (image {image})"
                )
                continue
        try:
            values = [_coordinate(coordinates[i : i + 2], i // 2) for i in range(0, len(coordinates), 2)]
        except ValueError as error:
            problems.error(f"{where}: {error} (image {image})")
            continue
        labels[image] = Label(np.array(values, dtype=np.float64), where, split)
    return labels


def _coordinate(pair: list[str], landmark: int) -> tuple[float, float]:
    """Parse one landmark's two fields; both empty = not annotated. Raises `ValueError`."""
    if pair == ["", ""]:
        return math.nan, math.nan
    values = []
    for axis, text in zip("xy", pair, strict=True):
        if not text:
            raise ValueError(
                f"column {axis}{landmark} must not be empty when its partner is {''.join(pair)!r}; "
                "give both coordinates, or leave both empty for a landmark that is not annotated"
            )
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(
                f"column {axis}{landmark} must be a number of pixels; got {text!r}; write the coordinate, or leave "
                f"x{landmark} and y{landmark} empty if the landmark is not annotated"
            )
        values.append(value)
    return values[0], values[1]
