"""Reading the files of a data set into labelled records, and dividing them into splits.

A `Layout` says what is particular about a data set; the one reader below serves the public sets and a
user's own folder. Shape suffixes: K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from ablate.datasets.images import IMAGE_SUFFIXES, is_image, read_grey, read_size, read_spacing
from ablate.datasets.splitting import Division, SplitRule, divide
from ablate.datasets.types import (
    SPLITS,
    UNLABELLED,
    Float32Array,
    FloatArray,
    PaperScale,
    Part,
    Problems,
    Record,
    Unit,
)
from ablate.errors import InputError, nearest
from ablate.space import sha256_of
from ablate.words import counted


@dataclass(frozen=True)
class PerPixel:
    """The same number of units in every pixel of every file."""

    units: float


@dataclass(frozen=True)
class Frame:
    """The whole image, whatever its number of pixels, measures this many units."""

    width: float
    height: float


@dataclass(frozen=True)
class Reference:
    """Two landmarks lie a known number of units apart, so that each image has its own scale."""

    first: int
    second: int
    units: float


@dataclass(frozen=True)
class PerImage:
    """Each image has its own: the label's spacing, else what the header of its DICOM file says, in millimetres."""


Scale: TypeAlias = PerPixel | Frame | Reference | PerImage


@dataclass(frozen=True)
class Label:
    """The landmarks of one image, as its label file gives them."""

    points_K2: FloatArray
    where: str  # file, or file:line
    split: Part | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # the user's own, without empty cells
    spacing: float | None = None  # millimetres per pixel

    @property
    def is_empty(self) -> bool:
        """Whether no landmark is annotated, or the image is declared unlabelled."""
        return self.split == UNLABELLED or bool(np.isnan(self.points_K2).all())


@dataclass(frozen=True)
class Layout:
    """What is particular about a data set."""

    name: str
    title: str
    num_landmarks: int
    unit: Unit
    scale: Scale
    sdr_thresholds: tuple[float, ...]
    image_folder: str
    label_file: str  # what holds an image's label, for messages
    label_key: Callable[[str], str]  # image file name -> key of its label
    read_labels: Callable[[Path, Problems], Mapping[str, Label | None]]  # None: unusable, and reported
    splits: SplitRule | None  # None: the labels say
    fractions: bool = False  # labels are shares of width and height, not pixels
    excluded: frozenset[str] = field(default_factory=frozenset)  # label keys
    unlabelled: Literal["refuse", "leave out", "pre-train"] = "refuse"  # what becomes of an image without a label
    unlabelled_folder: str | None = None  # further images without a label
    spare_labels: int = 0  # labels that may lack an image
    num_images: int | None = None  # as published, after exclusions
    paper: PaperScale | None = None
    annotators_apart: float | None = None  # mean distance of its two annotators, in `unit`; None: there is one
    source: str = ""  # where the data are obtained
    tree: str = ""  # how they are laid out
    landmark_names: tuple[str, ...] = ()  # of every landmark, or none


@dataclass(frozen=True)
class FileRecord(Record):
    """A radiograph that lies in a file."""

    path: Path
    sha256: str | None = None  # of the file, known where it was fetched and checked

    def grey(self) -> Float32Array:
        """Decode the file."""
        return read_grey(self.path)

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        if self.sha256 is not None:
            return self.sha256
        try:
            return sha256_of(self.path)
        except OSError as error:
            raise InputError(
                f"{self.path}: must be a readable image file; {error.strerror}; restore it or remove its label"
            ) from error


@dataclass(frozen=True)
class Reading:
    """The records of a data set, by sorted file name, labelled and unlabelled, and what was left out."""

    records: tuple[FileRecord, ...]
    unlabelled: tuple[FileRecord, ...] = ()  # images for pre-training alone
    excluded: int = 0
    left_out: int = 0  # images that are not used for want of a label


def units_per_pixel(scale: Scale, size: tuple[int, int], points_K2: FloatArray) -> tuple[float, float]:
    """Return units per pixel on x and y for an image of `size` = (width, height) pixels.

    Raises `ValueError` if the scale rests on landmarks that are not annotated or coincide, or on the image itself.
    """
    match scale:
        case PerImage():
            raise ValueError("the scale of each image is its own")
        case PerPixel(units):
            return units, units
        case Frame(width, height):
            return width / size[0], height / size[1]
        case Reference(first, second, units):
            distance = math.dist(points_K2[first], points_K2[second])
            if not distance > 0:  # NaN too
                raise ValueError(
                    f"landmarks {first} and {second} must both be annotated and apart: they give the image's scale"
                )
            return units / distance, units / distance


def read_layout(layout: Layout, folder: Path, problems: Problems) -> Reading:
    """Read labels and file headers of the data set in `folder`; pixels stay undecoded.

    Reports to `problems` every unreadable header, label without image and label that cannot be used, and an image
    without a label where the layout refuses it.
    """
    images = _list_images(layout, folder, problems)
    if not images:
        return Reading(())
    labels = layout.read_labels(folder, problems)
    records: list[FileRecord] = []
    without: list[Path] = []  # a row
    pool: dict[Path, Label] = {}  # without a landmark in their row
    hidden: list[Path] = []  # of these, what stands in val or test
    excluded = 0
    used = set()
    for path in images:
        key = layout.label_key(path.name)
        if key in layout.excluded:
            excluded += 1
        elif key in used:
            problems.error(
                f"{path}: another image has the same label {key!r}; keep one file of each radiograph in {path.parent}"
            )
        elif key not in labels:
            without.append(path)
        else:
            used.add(key)
            label = labels[key]
            if label is None:
                continue  # reported when it was read
            if layout.unlabelled == "pre-train" and label.is_empty:
                if label.split in ("val", "test"):
                    hidden.append(path)
                else:
                    pool[path] = label
            elif (record := _record(layout, path, label, problems)) is not None:
                records.append(record)
    if without and layout.unlabelled == "refuse":
        for path in without:
            problems.error(
                f"{path}: every image needs a label; there is none in {folder / layout.label_file}"
                f"{nearest(layout.label_key(path.name), labels.keys() - used)}; add the label or remove the image"
            )
    elif without and layout.unlabelled == "leave out":
        problems.warn(f"{layout.name}: {len(without)} images without a label are left out")
    if hidden:
        problems.warn(
            f"{layout.name}: {counted(len(hidden), 'image')} of val and test without a landmark are left out, also of "
            f"pre-training, for example {hidden[0].name}"
        )
    spare = {key: label for key, label in labels.items() if key not in used and key not in layout.excluded}
    _report_spare_labels(layout, folder, spare, without, problems)
    unlabelled: list[FileRecord] = []
    if layout.unlabelled == "pre-train":
        unlabelled = _unlabelled_records(layout, folder, {**pool, **dict.fromkeys(without)}, problems)
    left_out = len(hidden) + (len(without) if layout.unlabelled == "leave out" else 0)
    return Reading(tuple(records), tuple(unlabelled), excluded, left_out)


def _unlabelled_records(
    layout: Layout, folder: Path, paths: Mapping[Path, Label | None], problems: Problems
) -> list[FileRecord]:
    """Return records of images without landmarks: those at `paths`, by name, then those in the layout's folder."""
    named = [(path.name, path) for path in sorted(paths)]
    extra = folder / layout.unlabelled_folder if layout.unlabelled_folder is not None else None
    if extra is not None and extra.is_dir():
        found = sorted((path for path in extra.iterdir() if is_image(path)), key=lambda path: path.name)
        named += [(f"{extra.name}/{path.name}", path) for path in found]
    records = []
    for name, path in named:
        try:
            size = read_size(path)
        except InputError as error:
            problems.error(str(error))
        else:
            points_K2 = np.full((layout.num_landmarks, 2), math.nan)
            label = paths.get(path)
            columns = label.columns if label is not None else {}
            records.append(FileRecord(name, size, points_K2, (math.nan, math.nan), UNLABELLED, path, columns=columns))
    return records


def divide_records(
    layout: Layout, records: Sequence[Record], unlabelled: Sequence[Record], problems: Problems
) -> tuple[Division, ...]:
    """Divide records, sorted by name, as the layout's rule or the labels say: one division, or one for each fold."""
    if layout.splits is None:
        parts = {name: tuple(record for record in records if record.split == name) for name in SPLITS}
        for name, part in parts.items():
            if records and not part:
                problems.error(f"{layout.name}: split {name} must have at least one image; the split column gives none")
        return (Division(parts, tuple(unlabelled)),)
    cure = "change splits in dataset.yaml, or leave test out for the rest"
    if layout.source:
        cure = f"complete the data set: {layout.source}"
    return divide(layout.splits, layout.name, records, unlabelled, problems, cure)


def _list_images(layout: Layout, folder: Path, problems: Problems) -> list[Path]:
    image_folder = folder / layout.image_folder
    kinds = ", ".join(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
    origin = f"; the {layout.title} is obtained from {layout.source}" if layout.source else ""
    if not image_folder.is_dir():
        problems.error(
            f"{image_folder}: folder not found; the images ({kinds}) of '{layout.name}' belong there{origin}"
        )
        return []
    images = sorted((path for path in image_folder.iterdir() if is_image(path)), key=lambda path: path.name)
    others = [
        path.name for path in image_folder.iterdir() if path.is_file() and path.name[0] != "." and not is_image(path)
    ]
    if others:
        problems.warn(f"{image_folder}: {len(others)} files are not images and are left out, for example {min(others)}")
    if not images:
        problems.error(f"{image_folder}: must hold at least one image ({kinds}); found none; put them there{origin}")
    return images


def _record(layout: Layout, path: Path, label: Label, problems: Problems) -> FileRecord | None:
    try:
        size = read_size(path)
        points_K2 = label.points_K2 * np.array(size) - 0.5 if layout.fractions else label.points_K2
        scale, scale_from = _scale(layout, path, label, size, points_K2)
    except InputError as error:
        problems.error(str(error))
    except ValueError as error:
        problems.error(f"{label.where}: {error} (image {path.name}); annotate them or remove the image")
    else:
        return FileRecord(
            path.name, size, points_K2, scale, label.split, path, columns=label.columns, scale_from=scale_from
        )
    return None


def _scale(
    layout: Layout, path: Path, label: Label, size: tuple[int, int], points_K2: FloatArray
) -> tuple[tuple[float, float], str]:
    """Return an image's units per pixel on x and y, and what they come from where each image has its own."""
    if not isinstance(layout.scale, PerImage):
        return units_per_pixel(layout.scale, size, points_K2), ""
    if label.spacing is not None:
        return (label.spacing, label.spacing), "column spacing"
    found = read_spacing(path)
    if found is None:
        raise InputError(
            f"{label.where}: every annotated image needs its millimetres per pixel, in column spacing or in the header "
            f"of its DICOM file; image {path.name} has neither; write the column, or mm_per_pixel in dataset.yaml if "
            "it is the same for all"
        )
    return (found.x_mm, found.y_mm), found.source


def _report_spare_labels(
    layout: Layout,
    folder: Path,
    spare: Mapping[str, Label | None],
    unlabelled: Sequence[Path],
    problems: Problems,
) -> None:
    if len(spare) <= layout.spare_labels:
        if spare:
            problems.warn(f"{layout.name}: labels without an image are left out: {', '.join(spare)}")
        return
    keys = [layout.label_key(path.name) for path in unlabelled]
    for key, label in spare.items():
        if label is not None:
            problems.error(
                f"{label.where}: image {key!r} is not in {folder / layout.image_folder}{nearest(key, keys)}; "
                "add the image or remove its label"
            )
