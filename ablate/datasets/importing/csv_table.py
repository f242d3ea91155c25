"""A table of landmarks in CSV: a row for each image, or one for each point.

Read with the standard library: pandas would turn the names of images and landmarks that look like numbers into
numbers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablate.datasets.importing.csv_heads import Heads, understand
from ablate.datasets.importing.exports import Imported, ImportedImage, Point, add_point, by_name, read_text
from ablate.datasets.importing.options import ImportOptions
from ablate.datasets.types import SplitName
from ablate.errors import InputError, nearest

_SPLITS: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NOT_A_NUMBER = ("nan", "na", "n/a", "none", "null")


@dataclass
class _Gathered:
    """What the rows of one image have told so far."""

    where: str
    points: dict[str, Point] = field(default_factory=dict)
    size: tuple[float, float] | None = None
    split: SplitName | None = None
    extra: dict[str, str] = field(default_factory=dict)


def read_csv(source: Path, options: ImportOptions) -> Imported:
    """Read a table separated by commas, semicolons or tabs; an empty pair is not annotated.

    Columns are found by their names, see `csv_heads`. Landmarks stand in the order of the columns, in a table with a
    row for each point in the order of their names. Points count from the centre of the top-left pixel.

    Raises:
        InputError: the table is none, a cell is wrong, or an image or a landmark stands twice.
    """
    text = read_text(source)
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise InputError(f"{source}:{reader.line_num}: must be a table of separated values; {error}") from error
    if len(rows) < 2:
        raise InputError(f"{source}: must have a line of names and a row for every image; it has {len(rows)} lines")
    (number, header), *body = rows
    heads = understand(header, f"{source}:{number}")
    images: dict[str, _Gathered] = {}
    varying: set[str] = set()
    for number, cells in body:
        where = f"{source}:{number}"
        if len(cells) != len(header):
            raise InputError(f"{where}: must have {len(header)} columns as the first line; got {len(cells)}")
        name = cells[heads.image]
        if not name:
            raise InputError(f"{where}: column {header[heads.image]} must name an image; it is empty")
        if name in images and heads.shape == "wide":
            raise InputError(f"{where}: image {name!r} already has a row; remove one of them")
        image = images.setdefault(name, _Gathered(where))
        _read_points(image, heads, header, cells, where, decimal_comma=delimiter != ",")
        size = None if heads.size is None else _size([cells[index] for index in heads.size], where)
        if image.size is not None and size != image.size:
            raise InputError(f"{where}: width and height must be the same for every point of image {name!r}")
        image.size = size
        image.split = _split(cells[heads.split], where) if heads.split is not None else None
        for column, index in heads.extra.items():
            if image.extra.setdefault(column, cells[index]) != cells[index]:
                varying.add(column)
    kept = tuple(column for column in heads.extra if column not in varying)
    notes = (
        [f"columns that differ between the points of an image left out: {', '.join(sorted(varying))}"]
        if varying
        else []
    )
    names = tuple(heads.points) or by_name(name for image in images.values() for name in image.points)
    return Imported(
        images=tuple(
            ImportedImage(
                name=name,
                where=image.where,
                points=image.points,
                size=image.size,
                split=image.split,
                extra={column: image.extra[column] for column in kept},
            )
            for name, image in images.items()
        ),
        landmark_names=names,
        extra_columns=kept,
        has_splits=heads.split is not None,
        notes=tuple(notes),
    )


def _read_points(
    image: _Gathered, heads: Heads, header: Sequence[str], cells: Sequence[str], where: str, *, decimal_comma: bool
) -> None:
    pairs = heads.points
    if heads.landmark is not None and heads.xy is not None:
        pairs = {cells[heads.landmark]: heads.xy}
    for landmark, columns in pairs.items():
        texts = [cells[index] for index in columns]
        if texts == ["", ""]:
            continue
        values = []
        for index, text in zip(columns, texts, strict=True):
            try:
                number = (
                    math.nan
                    if text.lower() in _NOT_A_NUMBER
                    else float(text.replace(",", ".") if decimal_comma else text)
                )
            except ValueError as error:
                raise InputError(
                    f"{where}: column {header[index]} must be a number; got {text!r}; "
                    "leave both coordinates empty if the landmark is not annotated"
                ) from error
            values.append(number)
        add_point(image.points, landmark, (values[0], values[1]), where)


def _size(texts: Sequence[str], where: str) -> tuple[float, float] | None:
    if all(not text for text in texts):
        return None
    try:
        width, height = (float(text) for text in texts)
    except ValueError as error:
        raise InputError(f"{where}: width and height must be numbers; got {texts[0]!r} and {texts[1]!r}") from error
    if not (width > 0 and height > 0):
        raise InputError(f"{where}: width and height must be above 0; got {width:g} and {height:g}")
    return width, height


def _split(text: str, where: str) -> SplitName | None:
    if not text:
        return None
    split = _SPLITS.get(text.lower())
    if split is None:
        raise InputError(
            f"{where}: column split must be one of train, val, test; got {text!r}{nearest(text, _SPLITS)}; "
            "correct it, or rename the column if it is none"
        )
    return split
