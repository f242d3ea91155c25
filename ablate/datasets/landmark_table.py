"""The table `landmarks.csv` of a user's own data set: landmarks, splits, spacings, and columns of the user's own.

Shape suffixes: K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import numpy as np

from ablate.datasets.layout import Label
from ablate.datasets.types import DESCRIPTION, IMAGES, LABELS, PARTS, SPACING, UNLABELLED, Part, Problems
from ablate.errors import InputError, nearest

KNOWN_COLUMNS = ("image", "split", SPACING)
_COORDINATE = re.compile(r"[xy]\d+")


def is_coordinate(name: str) -> bool:
    """Whether a column holds a coordinate of a landmark."""
    return _COORDINATE.fullmatch(name) is not None


def read_head(path: Path) -> list[str]:
    """Return the columns: image, x0, y0, ..., and, if wanted, split, spacing and the user's own."""
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path}: must have a header image,x0,y0,x1,y1,... and a row for every image; it is empty")
    number, header = rows[0]
    names = [name.strip() for name in header]
    if len(names) == 1 and re.search(r"[;\t]", names[0]):
        raise InputError(
            f"{path}:{number}: columns must be separated by commas; got {names[0]!r}; export the table as CSV"
        )
    rule = "the header is image,x0,y0,x1,y1,... and, if wanted, split, spacing and columns of your own"
    if "image" not in names:
        raise InputError(f"{path}:{number}: column 1 must be 'image'; got {names[0]!r}; {rule}")
    for column, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{path}:{number}: column {column} must have a name; {rule}")
        if names.count(name) > 1:
            raise InputError(
                f"{path}:{number}: column {name} must stand once; got {names.count(name)}; remove or rename one"
            )
        close = nearest(name, KNOWN_COLUMNS, cutoff=0.75) if name not in KNOWN_COLUMNS else ""
        if close:
            raise InputError(f"{path}:{number}: column {column} must not be {name!r}{close}; rename it; {rule}")
    given = [name for name in names if is_coordinate(name)]
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
    return names


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, each with the number of its last line."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: must be comma-separated values; {error}") from error
    return rows


def read_labels(num_landmarks: int, folder: Path, problems: Problems) -> dict[str, Label | None]:
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
        cell_of = dict(zip(names, cells, strict=True))
        coordinates = [cell for name, cell in cell_of.items() if is_coordinate(name)]
        own = {name for name in names if name not in KNOWN_COLUMNS and not is_coordinate(name)}
        columns = {name: cell for name, cell in cell_of.items() if cell and name in own}
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
            spacing = _spacing(cell_of.get(SPACING, ""))
            values = [_coordinate(coordinates[i : i + 2], i // 2) for i in range(0, len(coordinates), 2)]
        except ValueError as error:
            problems.error(f"{where}: {error} (image {image})")
            continue
        labels[image] = Label(np.array(values, dtype=np.float64), where, split, columns, spacing)
    return labels


def _spacing(text: str) -> float | None:
    """Parse the millimetres per pixel of an image; empty = not given. Raises `ValueError`."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(
            f"column spacing must be millimetres per pixel, a number greater than 0; got {text!r}; correct it"
        )
    return value


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


def read_text(path: Path) -> str:
    """Return the text of a file of the data set; raise `InputError` if it is not there, or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: must be a readable file; {error.strerror}; a data set of one's own is a folder with "
            f"{DESCRIPTION}, {LABELS} and {IMAGES}/"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text; byte {error.start} is not; save it as UTF-8") from error
