"""What the user says about an export: where its images are, and how its points are to be understood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ablate.errors import InputError, nearest

Origin: TypeAlias = Literal["corner", "centre"]
ORIGINS: tuple[Origin, ...] = ("corner", "centre")


@dataclass(frozen=True)
class ImportOptions:
    """How an export is read; the defaults cure nothing."""

    images: Path | None = None  # folder of the images; None: beside the source
    rescale: bool = False  # multiply by the file's size over the size that the export states
    scale: float | None = None  # multiply by this factor
    normalised: bool = False  # points are shares of width and height
    missing: tuple[float, ...] = ()  # both coordinates this value: not annotated; NaN is a value
    all_places: bool = False  # pairs such as -1 -1 that are not in `missing` are places in the image
    swap_xy: bool = False
    origin: Origin | None = None  # which place of the top-left pixel is (0, 0); None: the format's
    splits: tuple[int, int] | None = None  # train and val; None: the export's split column, else 60 % and 15 %
    mm_per_pixel: float | None = None
    slicer_spacing_mm: tuple[float, float] = (1.0, 1.0)  # of a pixel on x and y, as 3D Slicer had them
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Raise `InputError` for values that cannot be meant."""
        for option, value in (("--scale", self.scale), ("--mm-per-pixel", self.mm_per_pixel)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{option} must be a number above 0; got {value:g}")
        given = [
            option
            for option, is_given in (
                ("--rescale", self.rescale),
                ("--scale", self.scale is not None),
                ("--normalised", self.normalised),
            )
            if is_given
        ]
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} must not be given together; each says in what the points are; keep one"
            )

    @classmethod
    def of_texts(
        cls,
        *,
        missing: Sequence[str] = (),
        origin: str | None = None,
        splits: str | None = None,
        slicer_spacing: str | None = None,
        images: Path | None = None,
        rescale: bool = False,
        scale: float | None = None,
        normalised: bool = False,
        swap_xy: bool = False,
        mm_per_pixel: float | None = None,
        dry_run: bool = False,
    ) -> ImportOptions:
        """Return the options that a command line gives as texts; raise `InputError` for one that is wrong."""
        if origin is not None and origin not in ORIGINS:
            raise InputError(f"--origin must be one of {', '.join(ORIGINS)}; got {origin!r}{nearest(origin, ORIGINS)}")
        return cls(
            images=images,
            rescale=rescale,
            scale=scale,
            normalised=normalised,
            missing=tuple(_missing(text) for text in missing if text != "none"),
            all_places="none" in missing,
            swap_xy=swap_xy,
            origin=next((known for known in ORIGINS if known == origin), None),
            splits=None if splits is None else _splits(splits),
            mm_per_pixel=mm_per_pixel,
            slicer_spacing_mm=(1.0, 1.0) if slicer_spacing is None else _spacing(slicer_spacing),
            dry_run=dry_run,
        )


def _missing(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"--missing must be a number, nan or none; got {text!r}; write, for example, --missing=-1"
        ) from error


def _splits(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--splits must be the numbers of training and validation images, such as 70,10; got {text!r}")
    return int(parts[0]), int(parts[1])


def _spacing(text: str) -> tuple[float, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(math.isfinite(value) and value > 0 for value in values):
        raise InputError(
            f"--slicer-spacing must be millimetres per pixel, such as 0.1 or 0.1,0.2 for x,y; got {text!r}"
        )
    return values[0], values[-1]
