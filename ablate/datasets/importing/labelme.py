"""labelme: a JSON file for each image, documented in labelme's `label_file.py`.

Read with the standard library: the package labelme is a graphical program.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
from pathlib import Path, PureWindowsPath

from PIL import Image, UnidentifiedImageError

from ablate.datasets.importing.exports import (
    Embedded,
    Imported,
    ImportedImage,
    Lenient,
    Point,
    add_point,
    by_name,
    files_of,
    parsed,
    read_json,
)
from ablate.datasets.importing.options import ImportOptions
from ablate.errors import InputError
from ablate.words import counted

_ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp"}
_SAME = {".jpeg": ".jpg", ".tiff": ".tif"}


class _Shape(Lenient):
    label: str
    points: tuple[tuple[float, float], ...]
    shape_type: str = "polygon"


class _File(Lenient):
    shapes: tuple[_Shape, ...]
    imagePath: str
    imageWidth: float | None = None
    imageHeight: float | None = None
    imageData: str | None = None


def read_labelme(source: Path, options: ImportOptions) -> Imported:
    """Read the shapes of type point of every JSON file below a folder, or of one file.

    Landmarks stand in the order of their labels. Points count from the corner of the top-left pixel. An image that is
    no file is taken from `imageData`.

    Raises:
        InputError: there is no such file, or one has a label twice.
    """
    images, others, strangers = [], 0, []
    for path in files_of(source, ["*.json"]):
        value = read_json(path)
        if not (isinstance(value, dict) and "shapes" in value and "imagePath" in value):
            strangers.append(path.name)
            continue
        content = parsed(_File, value, str(path))
        points: dict[str, Point] = {}
        for shape in content.shapes:
            if shape.shape_type != "point":
                others += 1
                continue
            if len(shape.points) != 1:
                raise InputError(
                    f"{path}: a shape of type point must have one point; {shape.label!r} has {len(shape.points)}"
                )
            add_point(points, shape.label, shape.points[0], str(path))
        images.append(
            ImportedImage(
                name=content.imagePath,
                where=str(path),
                points=points,
                size=(content.imageWidth, content.imageHeight) if content.imageWidth and content.imageHeight else None,
                embedded=functools.partial(_embedded, path) if content.imageData else None,
            )
        )
    if not images:
        raise InputError(
            f"{source}: must hold JSON files of labelme, with shapes and imagePath; found none; give their folder"
        )
    notes = []
    if others:
        notes.append(f"{counted(others, 'shape')} other than points left out")
    if strangers:
        notes.append(f"{counted(len(strangers), 'JSON file')} not of labelme left out, for example {strangers[0]}")
    return Imported(tuple(images), by_name(name for image in images for name in image.points), notes=tuple(notes))


def _embedded(path: Path) -> Embedded:
    """Return the image in `imageData`, named as `imagePath` with the ending of its real format."""
    name = PureWindowsPath(parsed(_File, read_json(path), str(path)).imagePath)
    try:
        with Image.open(io.BytesIO(_content(path))) as image:
            size, ending = image.size, _ENDINGS.get(image.format or "", ".png")
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path}: imageData must be an image; it cannot be decoded; put {name.name} beside it"
        ) from error
    suffix = name.suffix.lower()
    known = _SAME.get(suffix, suffix) == ending
    return Embedded(name.name if known else f"{name.stem}{ending}", size, functools.partial(_content, path))


def _content(path: Path) -> bytes:
    text = parsed(_File, read_json(path), str(path)).imageData or ""
    try:
        return base64.b64decode(text, validate=False)
    except binascii.Error as error:
        raise InputError(f"{path}: imageData must be base64; {error}; put the image beside the file") from error
