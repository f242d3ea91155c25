"""What is wrong with exported points, and the cures that the user may choose.

Nothing is cured unasked: what is recognised is refused with the option that cures it. Shape suffixes: N annotated
images, K landmarks, 2 = (x, y). A place that counts from the corner of the top-left pixel is 0.5 larger than one that
counts from its centre.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.datasets.importing.exports import ImportedImage, Point
from ablate.datasets.importing.options import ImportOptions, Origin
from ablate.datasets.types import BoolArray, FloatArray
from ablate.errors import InputError
from ablate.words import counted

MOST_OUTSIDE = 0.05
"""Largest share of points outside their images that is imported, with a warning."""

_LISTED = 5  # places written out in one warning
_EDGE_PX = 1e-6  # of rounding
_LARGEST_SHARE = 1.5  # of width or height: above, a coordinate is no share
_FEW_PX = 0.5  # sizes that differ by less are equal


@dataclass(frozen=True)
class Annotations:
    """The points of the annotated images as they were exported."""

    names: tuple[str, ...]  # N
    landmark_names: tuple[str, ...]  # K
    points_NK2: FloatArray  # NaN: not annotated
    sizes_N2: FloatArray  # of the files
    stated_N2: FloatArray  # sizes that the export states; NaN: none


@dataclass(frozen=True)
class Cured:
    """Points in pixels of the files, from the centre of the top-left pixel."""

    points_NK2: FloatArray
    applied: tuple[str, ...]  # what was done, in words
    warnings: tuple[str, ...]


def without_missing(
    images: Mapping[str, ImportedImage], options: ImportOptions
) -> tuple[dict[str, dict[str, Point]], int]:
    """Return the points that are places, by image, and the number of those that mean 'not annotated'.

    Raises:
        InputError: points look like marks for 'not annotated' and `--missing` does not say that they are, or one
            coordinate is nan alone.
    """
    kept: dict[str, dict[str, Point]] = {}
    marks: Counter[float] = Counter()
    first: dict[float, str] = {}
    taken = 0
    for name, image in images.items():
        kept[name] = {}
        for landmark, (x, y) in image.points.items():
            if math.isnan(x) != math.isnan(y) or math.isinf(x) or math.isinf(y):
                raise InputError(
                    f"{image.where}: both coordinates must be numbers; got ({x:g}, {y:g}) for {landmark!r} of {name}"
                )
            if (x == y and x in options.missing) or (math.isnan(x) and any(map(math.isnan, options.missing))):
                taken += 1
                continue
            if math.isnan(x) or (x == y and x <= 0 and x.is_integer()):
                value = math.nan if math.isnan(x) else x + 0.0  # no -0
                key = next((known for known in marks if math.isnan(known)), value) if math.isnan(x) else value
                marks[key] += 1
                first.setdefault(key, f"landmark {landmark!r} of {name}")
            kept[name][landmark] = (x, y)
    if marks and (not options.all_places or any(map(math.isnan, marks))):
        value, count = marks.most_common(1)[0]
        cures = " ".join(f"--missing={mark:g}" for mark in (*options.missing, *marks))
        alternative = "" if any(map(math.isnan, marks)) else ", or --missing=none if they are places in the image"
        raise InputError(
            f"--missing must say what marks a landmark that is not annotated; {counted(count, 'point')} at "
            f"{value:g} {value:g}, the first is {first[value]}; give {cures} to leave them out{alternative}"
        )
    return kept, taken


def cure(given: Annotations, options: ImportOptions, origin: Origin) -> Cured:
    """Return the points in pixels of the files, cured as the options say.

    Args:
        given: what was exported.
        options: the cures.
        origin: which place of the top-left pixel the exported points count from.

    Raises:
        InputError: a mistake is recognised that no option cures, or more than 5 % of the points lie outside.
    """
    _check_shares(given, options)
    factor_N2, scaled = _factors(given, options)
    points_NK2 = _transformed(given, factor_N2, options, origin, swap=options.swap_xy)
    applied = ["x and y exchanged"] if options.swap_xy else []
    applied += [scaled] if scaled else []
    applied.append("0.5 subtracted" if origin == "corner" else "taken as they are")
    warnings = []
    outside_NK = _outside(points_NK2, given.sizes_N2)
    share = _share(outside_NK, points_NK2)
    if share > 0:
        other_NK2 = _transformed(given, factor_N2, options, origin, swap=not options.swap_xy)
        other_share = _share(_outside(other_NK2, given.sizes_N2), other_NK2)
        found = (
            f"{counted(int(outside_NK.sum()), 'point')} of {int(np.isfinite(points_NK2[..., 0]).sum())} outside the "
            f"image, {_listed(points_NK2, outside_NK, given)}"
        )
        swap = "leave --swap-xy out" if options.swap_xy else "give --swap-xy"
        if share > MOST_OUTSIDE and other_share <= MOST_OUTSIDE:
            raise InputError(
                f"points must be x, y, and lie in their images; {found}; "
                f"with x and y exchanged {'all' if other_share == 0 else f'{1 - other_share:.0%}'} lie inside; {swap}"
            )
        if share > MOST_OUTSIDE:
            raise InputError(
                f"at most {MOST_OUTSIDE:.0%} of the points may lie outside; {found}; "
                f"{_hint(given, points_NK2, options)}"
            )
        warnings.append(found + (f"; all lie inside with x and y exchanged ({swap})" if other_share == 0 else ""))
    width, height = _extent(points_NK2, given.sizes_N2)
    stated = np.isfinite(given.stated_N2).all()
    if max(width, height) < 0.5 and not (stated or options.scale or options.normalised):
        warnings.append(
            f"all points lie in the left {width:.0%} and the upper {height:.0%} of their images; if they were set at a "
            "lower resolution, give --scale FACTOR"
        )
    return Cured(points_NK2, tuple(applied), tuple(warnings))


def _check_shares(given: Annotations, options: ImportOptions) -> None:
    """Refuse shares of width and height that are not said to be, and pixels that are said to be shares."""
    values = given.points_NK2[np.isfinite(given.points_NK2)]
    if not options.normalised and values.size and values.min() >= 0 and values.max() <= 1:
        raise InputError(
            f"points must be in pixels; all {counted(values.size // 2, 'point')} lie between 0 and 1: they are "
            "shares of width and height; give --normalised"
        )
    if options.normalised and values.size and np.abs(values).max() > _LARGEST_SHARE:
        raise InputError(
            f"--normalised needs shares of width and height, from 0 to 1; got {np.abs(values).max():g}; leave it out"
        )


def _factors(given: Annotations, options: ImportOptions) -> tuple[FloatArray, str]:
    """Return pixels of the file for each unit of the export, on x and y, and the same in words."""
    ones_N2 = np.ones_like(given.sizes_N2)
    if options.normalised:
        return given.sizes_N2, "multiplied by width and height of the file"
    if options.scale is not None:
        return ones_N2 * options.scale, f"multiplied by {options.scale:g}"
    stated_N: BoolArray = np.asarray(np.isfinite(given.stated_N2).all(axis=1))
    if options.rescale and not stated_N.all():
        first = given.names[int(np.argmin(stated_N))]
        raise InputError(
            f"--rescale needs an export that states the size of every image; it states none for {first}; "
            "give --scale FACTOR, the pixels of the file for each pixel of the annotation"
        )
    differs_N = stated_N & (np.abs(given.stated_N2 - given.sizes_N2) > _FEW_PX).any(axis=1)
    if not differs_N.any():
        return ones_N2, ""
    turned_N = differs_N & (np.abs(given.stated_N2 - given.sizes_N2[:, ::-1]) <= _FEW_PX).all(axis=1)
    index = int(np.argmax(turned_N if turned_N.any() else differs_N))
    seen = (
        f"it states {_size(given.stated_N2[index])} for {given.names[index]}, "
        f"the file has {_size(given.sizes_N2[index])} "
        f"({int(differs_N.sum())} of {counted(len(given.names), 'image')} differ)"
    )
    if turned_N.any():
        raise InputError(
            f"the size that the export states must be that of the file; {seen}: the image was shown turned, as by an "
            "EXIF orientation, which is not applied here; save the image as it was shown, without orientation, or give "
            "--scale 1 if the points are in pixels of the file as it is stored"
        )
    if not options.rescale:
        raise InputError(
            f"the size that the export states must be that of the file; {seen}; give --rescale to bring the points "
            "to the file's pixels, or --scale 1 if they are in them already"
        )
    factor_N2 = np.where(stated_N[:, None], given.sizes_N2 / given.stated_N2, 1.0)
    return factor_N2, "multiplied by the file's size over the size that the export states"


def _transformed(
    given: Annotations, factor_N2: FloatArray, options: ImportOptions, origin: Origin, *, swap: bool
) -> FloatArray:
    points_NK2 = given.points_NK2[..., ::-1] if swap else given.points_NK2
    # pixels grow about the corner of the image; shares have no pixel
    before = 0.5 if origin == "centre" and not options.normalised else 0.0
    after = 0.0 if origin == "centre" and options.normalised else 0.5
    if before and (factor_N2 == 1).all():
        return points_NK2.copy()
    return np.asarray((points_NK2 + before) * factor_N2[:, None, :] - after, dtype=np.float64)


def _outside(points_NK2: FloatArray, sizes_N2: FloatArray) -> BoolArray:
    """Return (N, K), whether a point lies beyond the outer edge of its image's pixels."""
    beyond = (points_NK2 < -0.5 - _EDGE_PX) | (points_NK2 > sizes_N2[:, None, :] - 0.5 + _EDGE_PX)
    return np.asarray(beyond.any(axis=-1))


def _share(outside_NK: BoolArray, points_NK2: FloatArray) -> float:
    return float(outside_NK.sum() / max(1, np.isfinite(points_NK2[..., 0]).sum()))


def _extent(points_NK2: FloatArray, sizes_N2: FloatArray) -> tuple[float, float]:
    """Return how far points reach to the right and down, as shares of width and height."""
    reach_2 = np.nanmax((points_NK2 + 0.5) / sizes_N2[:, None, :], axis=(0, 1))
    return float(reach_2[0]), float(reach_2[1])


def _hint(given: Annotations, points_NK2: FloatArray, options: ImportOptions) -> str:
    width, height = _extent(points_NK2, given.sizes_N2)
    negative = float(np.nanmin(points_NK2)) < -0.5 - _EDGE_PX
    if negative or max(width, height) <= 1 or options.rescale or options.normalised:
        return "check the images, and the options --images, --swap-xy, --scale and --missing"
    largest = (options.scale or 1.0) / max(width, height)
    return (
        f"they reach to {width:.2f} times the width and {height:.2f} times the height, as if they were set at another "
        "resolution; give --scale FACTOR, the pixels of the file for each pixel of the annotation, "
        f"at most {largest:.4g}"
    )


def _listed(points_NK2: FloatArray, outside_NK: BoolArray, given: Annotations) -> str:
    places: Sequence[tuple[int, int]] = [(int(n), int(k)) for n, k in np.argwhere(outside_NK)]
    texts = [
        f"{given.landmark_names[k]!r} of {given.names[n]} at ({points_NK2[n, k, 0]:.1f}, {points_NK2[n, k, 1]:.1f}) "
        f"of {_size(given.sizes_N2[n])}"
        for n, k in places[:_LISTED]
    ]
    return "; ".join(texts) + (f" and {len(places) - _LISTED} more" if len(places) > _LISTED else "")


def _size(size_2: FloatArray) -> str:
    return f"{size_2[0]:g} x {size_2[1]:g} px"
