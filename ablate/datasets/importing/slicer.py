"""3D Slicer: point lists in `.mrk.json` and `.fcsv`, documented at slicer.readthedocs.io under 'Markups'.

Read with the standard library: slicerio brings readers of volumes and a client of the web, and takes points that
were never set for places.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ablate.datasets.importing.exports import (
    Imported,
    ImportedImage,
    Lenient,
    Point,
    add_point,
    by_name,
    files_of,
    parsed,
    read_json,
    read_text,
)
from ablate.datasets.importing.options import ImportOptions
from ablate.errors import InputError
from ablate.words import counted

ENDINGS = (".mrk.json", ".fcsv")
_SYSTEMS = {"LPS": 1, "1": 1, "RAS": -1, "0": -1}
"""Sign of x and y towards pixels; the digits are those of Slicer before 4.11."""

_DEFINED = "2"  # vtkMRMLMarkupsNode: 0 undefined, 1 preview, 2 defined, 3 missing


class _ControlPoint(Lenient):
    label: str
    position: tuple[float, float, float] | None = None
    positionStatus: str = "defined"


class _Markup(Lenient):
    type: str = "Fiducial"
    coordinateSystem: str | int = "LPS"
    controlPoints: tuple[_ControlPoint, ...] = ()


class _File(Lenient):
    markups: tuple[_Markup, ...]


def read_slicer(source: Path, options: ImportOptions) -> Imported:
    """Read the point lists of every file below a folder, or of one file; `a.mrk.json` belongs to the image `a`.

    Positions are millimetres in the space of the image: x and y of LPS over `--slicer-spacing`, of RAS with the other
    sign, where the image's origin is (0, 0) and its axes are not turned, as for a radiograph opened from a PNG file.
    They count from the centre of the top-left pixel. Labels that Slicer made of the list's name (`a-1` in `a.mrk.json`)
    lose it. Landmarks stand in the order of their labels.

    Raises:
        InputError: there is no such file, or one has a label twice.
    """
    images = []
    for path in files_of(source, [f"*{ending}" for ending in ENDINGS]):
        given = _read_fcsv(path) if path.suffix == ".fcsv" else _read_markups(path)
        width, height = options.slicer_spacing_mm
        points = {label: (x / width, y / height) for label, (x, y) in given.items()}
        images.append(ImportedImage(name=_stem(path), where=str(path), points=points))
    if not images:
        raise InputError(
            f"{source}: must hold files of 3D Slicer, {' or '.join(ENDINGS)}; found none; give their folder"
        )
    notes = [
        f"positions divided by a spacing of {options.slicer_spacing_mm[0]:g} x {options.slicer_spacing_mm[1]:g} mm"
    ]
    named = [re.compile(rf"{re.escape(image.name)}[-_ ](?=.)") for image in images]
    if all(prefix.match(label) for image, prefix in zip(images, named, strict=True) for label in image.points):
        images = [
            replace(image, points={prefix.sub("", label, count=1): point for label, point in image.points.items()})
            for image, prefix in zip(images, named, strict=True)
        ]
        notes.append("the list's own name before every label left out")
    names = by_name(name for image in images for name in image.points)
    return Imported(tuple(images), names, notes=tuple(notes))


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(ending) for ending in (*ENDINGS, path.suffix) if path.name.endswith(ending))


def _sign(system: object, where: str) -> int:
    sign = _SYSTEMS.get(str(system).strip())
    if sign is None:
        raise InputError(f"{where}: the coordinate system must be LPS or RAS; got {system!r}; save the points in one")
    return sign


def _read_markups(path: Path) -> Mapping[str, Point]:
    points: dict[str, Point] = {}
    for markup in parsed(_File, read_json(path), str(path)).markups:
        sign = _sign(markup.coordinateSystem, str(path))
        for point in markup.controlPoints:
            if point.positionStatus == "defined" and point.position is not None:
                add_point(points, point.label, (sign * point.position[0], sign * point.position[1]), str(path))
    return points


def _read_fcsv(path: Path) -> Mapping[str, Point]:
    lines = read_text(path).splitlines()
    head = dict(line.lstrip("# ").split("=", 1) for line in lines if line.startswith("#") and "=" in line)
    head = {key.strip(): value.strip() for key, value in head.items()}
    columns = [
        name.strip().lower() for name in head.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label").split(",")
    ]
    if not {"x", "y", "label"} <= set(columns):
        raise InputError(f"{path}: columns must have x, y and label; got {', '.join(columns)}")
    sign = _sign(head.get("CoordinateSystem", "RAS"), str(path))
    points: dict[str, Point] = {}
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    for number, line in rows:
        cells = next(csv.reader([line]))
        if len(cells) > len(columns) and cells[len(columns)] != _DEFINED:  # a column without a head since Slicer 5.2
            continue
        try:
            x, y, label = (cells[columns.index(name)] for name in ("x", "y", "label"))
            place = (sign * float(x), sign * float(y))
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{path}:{number}: must be {counted(len(columns), 'column')} with numbers; got {line!r}"
            ) from error
        add_point(points, label.strip(), place, f"{path}:{number}")
    return points
