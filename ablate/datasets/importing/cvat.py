"""CVAT for images 1.1: one XML file, documented at docs.cvat.ai under 'XML annotation format'.

Read with the standard library, whose expat limits entities that expand; cvat-sdk talks to a server.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from ablate.datasets.importing.exports import Imported, ImportedImage, Point, add_point, by_name, read_text
from ablate.datasets.importing.options import ImportOptions
from ablate.errors import InputError
from ablate.words import counted

_SHAPES = ("box", "polygon", "polyline", "cuboid", "ellipse", "mask")


def read_cvat(source: Path, options: ImportOptions) -> Imported:
    """Read points and skeletons; what is marked `outside` is not annotated.

    A label whose element has several points gives `label_0`, `label_1`, ...; a point of a skeleton is called by its
    own label, or `skeleton_label` where that is not unique. Landmarks stand in the order of these names. Points count
    from the corner of the top-left pixel.

    Raises:
        InputError: the file is none, is an export for video, or an image has a label twice.
    """
    try:
        root = ElementTree.fromstring(read_text(source))
    except ElementTree.ParseError as error:
        raise InputError(f"{source}: must be XML; {error}; export as 'CVAT for images 1.1'") from error
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        found = f"{counted(len(root.findall('track')), 'track')}" if root.find("track") is not None else f"<{root.tag}>"
        raise InputError(
            f"{source}: must be <annotations> with <image> elements; found {found}; export as 'CVAT for images 1.1'"
        )
    several = {
        element.get("label", "")
        for element in root.iterfind("image/points")
        if len(element.get("points", "").split(";")) > 1
    }
    within: Counter[str] = Counter(element.get("label", "") for element in _distinct(root))
    result = []
    for image in images:
        name = image.get("name", "")
        where = f"{source}: image {name!r}"
        points: dict[str, Point] = {}
        for element in image.findall("points"):
            label = element.get("label", "")
            for index, point in enumerate(_points(element, where)):
                add_point(points, f"{label}_{index}" if label in several else label, point, where)
        for skeleton in image.findall("skeleton"):
            for element in skeleton.findall("points"):
                label = element.get("label", "")
                given = _points(element, where)
                if element.get("outside") == "1":
                    continue
                if len(given) != 1:
                    raise InputError(f"{where}: a point of a skeleton must have one place; {label!r} has {len(given)}")
                full = f"{skeleton.get('label', '')}_{label}" if within[label] > 1 else label
                add_point(points, full, given[0], where)
        result.append(ImportedImage(name=name, where=where, points=points, size=_size(image, where)))
    others = sum(len(image.findall(shape)) for image in images for shape in _SHAPES)
    return Imported(
        images=tuple(result),
        landmark_names=by_name(name for image in result for name in image.points),
        notes=(f"{counted(others, 'shape')} other than points left out",) if others else (),
    )


def _distinct(root: ElementTree.Element) -> list[ElementTree.Element]:
    """Return one element for each label of its own and for each label within each skeleton."""
    found = {("", element.get("label")): element for element in root.iterfind("image/points")}
    for skeleton in root.iterfind("image/skeleton"):
        for element in skeleton.findall("points"):
            found[f"skeleton {skeleton.get('label')}", element.get("label")] = element
    return list(found.values())


def _points(element: ElementTree.Element, where: str) -> list[Point]:
    text = element.get("points", "")
    try:
        pairs = [tuple(float(number) for number in pair.split(",")) for pair in text.split(";")]
    except ValueError:
        pairs = []
    if not pairs or any(len(pair) != 2 or not all(map(math.isfinite, pair)) for pair in pairs):
        raise InputError(f"{where}: points must be x,y or x,y;x,y;...; got {text!r} (label {element.get('label')!r})")
    return [(pair[0], pair[1]) for pair in pairs]


def _size(image: ElementTree.Element, where: str) -> tuple[float, float] | None:
    width, height = image.get("width"), image.get("height")
    if width is None or height is None:
        return None
    try:
        return float(width), float(height)
    except ValueError as error:
        raise InputError(f"{where}: width and height must be numbers; got {width!r} and {height!r}") from error
