"""Which column of a table is what, by the spellings in use.

Names are compared in lower case, with `_` for spaces and other marks between words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ablate.errors import InputError

IMAGE_NAMES = (
    *("image", "image_path", "image_name", "image_file", "image_filename", "imagepath", "imagename", "img", "img_path"),
    *("img_name", "file", "file_name", "filename", "file_path", "filepath", "path", "name", "image_id", "img_id", "id"),
)
"""Heads of the column of images; the first that occurs is taken."""

LANDMARK_NAMES = (
    *("landmark", "landmark_name", "landmark_id", "keypoint", "keypoint_name", "keypoint_id", "label", "point"),
    *("point_name", "point_id", "name"),
)
"""Heads of the column of landmarks in a table with a row for each point; the first that occurs is taken."""

_WORDS = "(?:(?:image|img|orig|original|source|src|native|full|raw|file)_?)*"
_WIDTH = re.compile(f"({_WORDS})(width|w)(?:_px)?")
_HEIGHT = re.compile(f"({_WORDS})(height|h)(?:_px)?")
_NUMBERED = re.compile(r"([xy])_?(\d+)")
_AXIS_LAST = re.compile(r"(.+?)[\s_.:/-]+([xy])(?:_?px)?", re.IGNORECASE)
_AXIS_FIRST = re.compile(r"([xy])[\s_.:/-]+(.+)", re.IGNORECASE)
_NO_LANDMARK = {"spacing", "resolution", "dpi", "scale", "offset", "size", "dim"}
"""Words of columns that have an x and a y and are no landmark."""


@dataclass(frozen=True)
class Heads:
    """Numbers of columns by what they hold."""

    shape: Literal["wide", "long"]
    image: int
    points: dict[str, tuple[int, int]]  # wide: x and y of each landmark, in the order of the columns
    landmark: int | None  # long
    xy: tuple[int, int] | None  # long
    size: tuple[int, int] | None  # width, height
    split: int | None
    extra: dict[str, int]  # whatever else, by its name


def understand(header: Sequence[str], where: str) -> Heads:
    """Return what the columns of a table hold; raise `InputError` if images or points are not among them."""
    plain = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in header]
    nameless = {index for index, name in enumerate(plain) if not name or re.fullmatch(r"unnamed_\d+", name)}
    given = [name.strip() for index, name in enumerate(header) if index not in nameless]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: every column must have a name of its own; {twice!r} stands twice; rename one")
    image = next((plain.index(name) for name in IMAGE_NAMES if name in plain), None)
    if image is None:
        raise InputError(
            f"{where}: a column must name the images: {', '.join(IMAGE_NAMES[:3])}, file, filename, path, name or id; "
            f"got {', '.join(given)}"
        )
    size = _size(plain)
    split = plain.index("split") if "split" in plain else None
    taken = {image, *(size or ()), *nameless, *(() if split is None else (split,))}
    landmark = next(
        (plain.index(name) for name in LANDMARK_NAMES if name in plain and plain.index(name) != image), None
    )
    points: dict[str, tuple[int, int]] = {}
    xy = (plain.index("x"), plain.index("y")) if {"x", "y"} <= set(plain) else None
    if xy is not None and landmark is not None:
        taken |= {landmark, *xy}
    else:
        landmark = None
        points = {"0": xy} if xy is not None else _pairs(header, plain, taken, where)
        taken |= {index for pair in points.values() for index in pair}
        if not points:
            raise InputError(
                f"{where}: points must stand in columns x0,y0,x1,y1,... or NAME_x,NAME_y,... or, with a row for each "
                f"point, landmark,x,y; got {', '.join(given)}"
            )
    return Heads(
        shape="long" if landmark is not None else "wide",
        image=image,
        points=points,
        landmark=landmark,
        xy=xy if landmark is not None else None,
        size=size,
        split=split,
        extra={name.strip(): index for index, name in enumerate(header) if index not in taken},
    )


def _size(plain: Sequence[str]) -> tuple[int, int] | None:
    """Return the columns of width and height, if there is a pair of one spelling."""
    heights = {match[1]: index for index, name in enumerate(plain) if (match := _HEIGHT.fullmatch(name))}
    for index, name in enumerate(plain):
        match = _WIDTH.fullmatch(name)
        if match and match[1] in heights:
            return index, heights[match[1]]
    return None


def _pairs(header: Sequence[str], plain: Sequence[str], taken: set[int], where: str) -> dict[str, tuple[int, int]]:
    """Return x and y of each landmark; raise `InputError` for one without the other."""
    axes: dict[str, dict[str, int]] = {}
    axis_first = set()
    for index, name in enumerate(header):
        if index in taken or _NO_LANDMARK.intersection(plain[index].split("_")):
            continue
        if numbered := _NUMBERED.fullmatch(plain[index]):
            axis, landmark = numbered[1], numbered[2]
        elif last := _AXIS_LAST.fullmatch(name.strip()):
            landmark, axis = last[1], last[2]
        elif first := _AXIS_FIRST.fullmatch(name.strip()):
            axis, landmark = first[1], first[2]
            axis_first.add(landmark)
        else:
            continue
        pair = axes.setdefault(landmark, {})
        if axis.lower() in pair:
            raise InputError(f"{where}: landmark {landmark!r} must have one column {axis}; it has two; rename one")
        pair[axis.lower()] = index
    lonely = {landmark: axes.pop(landmark) for landmark in [name for name, pair in axes.items() if len(pair) != 2]}
    for landmark, pair in lonely.items():
        (index,) = pair.values()
        if landmark not in axis_first or axis_first & axes.keys():  # otherwise a name such as x_ray_date
            raise InputError(
                f"{where}: landmark {landmark!r} needs columns x and y; it has {header[index].strip()!r} alone; "
                "rename the column if it is none of a landmark"
            )
    return {landmark: (pair["x"], pair["y"]) for landmark, pair in axes.items()}
