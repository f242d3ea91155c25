"""COCO keypoints: one JSON file, documented at cocodataset.org under 'Data format', 'Keypoint Detection'.

Read with the standard library: pycocotools is compiled and made for masks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from ablate.datasets.importing.exports import Imported, ImportedImage, Lenient, Point, add_point, parsed, read_json
from ablate.datasets.importing.options import ImportOptions
from ablate.errors import InputError
from ablate.words import counted


class _Image(Lenient):
    id: int | str
    file_name: str
    width: float | None = None
    height: float | None = None


class _Category(Lenient):
    id: int | str
    name: str = ""
    keypoints: tuple[str, ...] = ()


class _Annotation(Lenient):
    image_id: int | str
    category_id: int | str
    keypoints: tuple[float, ...] = ()


class _File(Lenient):
    images: tuple[_Image, ...]
    categories: tuple[_Category, ...]
    annotations: tuple[_Annotation, ...]


def read_coco(source: Path, options: ImportOptions) -> Imported:
    """Read a keypoints file; points with v = 0 are not annotated.

    Landmarks stand in the order of `categories.keypoints`; where categories share a name, it becomes
    `category_name`. Points count from the corner of the top-left pixel.

    Raises:
        InputError: the file is none, or an image has two objects with the same landmark.
    """
    content = parsed(_File, read_json(source), str(source))
    used = {annotation.category_id for annotation in content.annotations if annotation.keypoints}
    categories = {category.id: category for category in content.categories if category.id in used}
    if not any(category.keypoints for category in categories.values()):
        raise InputError(
            f"{source}: must have annotations with keypoints, and a category with their names; found "
            f"{counted(len(content.annotations), 'annotation')}, none with keypoints; export as COCO keypoints"
        )
    shared = Counter(name for category in categories.values() for name in category.keypoints)
    names = {
        key: tuple(f"{category.name}_{name}" if shared[name] > 1 else name for name in category.keypoints)
        for key, category in categories.items()
    }
    points: defaultdict[int | str, dict[str, Point]] = defaultdict(dict)
    images = {image.id: image for image in content.images}
    without = 0
    for number, annotation in enumerate(content.annotations):
        where = f"{source}: annotations[{number}]"
        if annotation.image_id not in images:
            raise InputError(f"{where}: image_id must be the id of an image of the file; got {annotation.image_id!r}")
        if not annotation.keypoints:
            without += 1
            continue
        expected = names.get(annotation.category_id, ())
        if len(annotation.keypoints) != 3 * len(expected):
            raise InputError(
                f"{where}: keypoints must be x, y, v for each of the {len(expected)} names of its category; "
                f"got {len(annotation.keypoints)} numbers"
            )
        for index, name in enumerate(expected):
            x, y, visible = annotation.keypoints[3 * index : 3 * index + 3]
            if visible:
                add_point(
                    points[annotation.image_id], name, (x, y), f"{where} of {images[annotation.image_id].file_name}"
                )
    return Imported(
        images=tuple(
            ImportedImage(
                name=image.file_name,
                where=str(source),
                points=points[image.id],
                size=(image.width, image.height) if image.width and image.height else None,
            )
            for image in content.images
        ),
        landmark_names=tuple(dict.fromkeys(name for key in names for name in names[key])),
        notes=(f"{counted(without, 'annotation')} without keypoints left out",) if without else (),
    )
