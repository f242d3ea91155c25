"""Label Studio: the export 'JSON', documented at labelstud.io under 'Export annotations' and 'KeyPointLabels'.

Read with the standard library: label-studio-sdk talks to a server.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ablate.datasets.images import IMAGE_SUFFIXES
from ablate.datasets.importing.exports import (
    Imported,
    ImportedImage,
    Lenient,
    Point,
    add_point,
    by_name,
    parsed,
    read_json,
)
from ablate.datasets.importing.options import ImportOptions
from ablate.errors import InputError
from ablate.words import counted

_UPLOADED = re.compile(r"^[0-9a-f]{8}-(.+)$")  # Label Studio puts eight hex digits before the name of what it stores


class _Value(Lenient):
    x: float
    y: float
    keypointlabels: tuple[str, ...]


class _Result(Lenient):
    value: _Value
    original_width: float
    original_height: float
    image_rotation: float = 0


class _Annotation(Lenient):
    result: tuple[dict[str, Any], ...] = ()
    was_cancelled: bool | None = False


class _Task(Lenient):
    data: dict[str, Any]
    annotations: tuple[_Annotation, ...]


def read_labelstudio(source: Path, options: ImportOptions) -> Imported:
    """Read keypoint labels; their percentages become pixels of `original_width` and `original_height`.

    The image is the file name in `data.image`, or in the only field of `data` that names an image; the digits that
    Label Studio puts before an uploaded file's name are ignored. Predictions and cancelled annotations are left out.
    Landmarks stand in the order of their labels. Points count from the corner of the top-left pixel.

    Raises:
        InputError: the file is none, a task has two annotations, a label twice or a turned image.
    """
    value = read_json(source)
    if not isinstance(value, list) or not all(isinstance(task, dict) and "data" in task for task in value):
        raise InputError(
            f"{source}: must be a list of tasks with data and annotations; export as 'JSON', not 'JSON-MIN'"
        )
    images, others = [], 0
    for number, given in enumerate(value):
        where = f"{source}: task {given.get('id', number)}"
        task = parsed(_Task, given, where)
        kept = [annotation for annotation in task.annotations if annotation.result and not annotation.was_cancelled]
        if len(kept) > 1:
            raise InputError(f"{where}: every image must have one annotation; got {len(kept)}; delete the others")
        points: dict[str, Point] = {}
        sizes = set()
        for item in kept[0].result if kept else ():
            if item.get("type") != "keypointlabels":
                others += 1
                continue
            result = parsed(_Result, item, where)
            if result.image_rotation:
                raise InputError(
                    f"{where}: image_rotation must be 0; got {result.image_rotation:g}; "
                    "turn the image back in Label Studio, or save it as it should stand and annotate that"
                )
            if len(result.value.keypointlabels) != 1:
                raise InputError(f"{where}: a point must have one label; got {list(result.value.keypointlabels)}")
            size = (result.original_width, result.original_height)
            sizes.add(size)
            place = (result.value.x / 100 * size[0], result.value.y / 100 * size[1])
            add_point(points, result.value.keypointlabels[0], place, where)
        if len(sizes) > 1:
            raise InputError(
                f"{where}: original_width and original_height must be the same for every point of an image"
            )
        name = _file_name(task.data, where)
        folder, _, base = name.rpartition("/")
        uploaded = _UPLOADED.match(base)
        images.append(
            ImportedImage(
                name=name,
                where=where,
                points=points,
                size=next(iter(sizes), None),
                other_names=(f"{folder}/{uploaded[1]}",) if uploaded else (),
            )
        )
    return Imported(
        images=tuple(images),
        landmark_names=by_name(name for image in images for name in image.points),
        notes=(f"{counted(others, 'result')} other than keypoint labels left out",) if others else (),
    )


def _file_name(data: dict[str, Any], where: str) -> str:
    """Return the path in an address or a path, without what stands before and behind it."""
    paths = {key: _path(text) for key, text in data.items() if isinstance(text, str)}
    found = [path for path in paths.values() if path.lower().endswith(IMAGE_SUFFIXES)]
    if "image" in paths:
        return paths["image"]
    if len(found) != 1:
        raise InputError(
            f"{where}: data must have a field image with the image's address; it has {', '.join(data) or 'none'}"
        )
    return found[0]


def _path(address: str) -> str:
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/a.png
    return local[0] if local else unquote(parts.path)
