"""The folder of an imported data set: complete or absent."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablate.datasets.importing.matching import ImageFile
from ablate.datasets.types import DESCRIPTION, IMAGES, LABELS, SPACING, UNLABELLED, FloatArray, SplitName
from ablate.errors import InputError
from ablate.store.local_write import write_local
from ablate.words import one_line


@dataclass(frozen=True)
class NewDataset:
    """Everything that is written; shape suffixes: N annotated images, K landmarks, 2 = (x, y)."""

    images: Sequence[ImageFile]  # also those that are not annotated
    names: tuple[str, ...]  # N, sorted
    landmark_names: tuple[str, ...]  # K
    points_NK2: FloatArray  # pixels of the files from the centre of the top-left pixel; NaN: not annotated
    extra: Mapping[str, Sequence[str]]  # further columns, N values each
    bare: Mapping[str, Sequence[str]]  # images that are not annotated and have further columns: their values
    split: Sequence[SplitName] | None  # None: by `counts`
    counts: tuple[int, int, int]  # train, val and test
    counts_chosen: bool  # whether the counts are the import's own choice
    mm_per_pixel: float | None  # None: pixels, or as the further column `spacing` says
    source: str  # for the first line of the description


def check_target(target: Path) -> None:
    """Raise `InputError` if there is something where the data set is to be written; an empty folder is nothing."""
    try:
        taken = next(target.iterdir(), None) if target.is_dir() else target if os.path.lexists(target) else None
    except OSError as error:
        raise InputError(f"{target}: must be a folder that can be written; {error.strerror}") from error
    if taken is not None:
        raise InputError(
            f"--out must name a folder that does not exist or is empty; {target} exists; give another name"
        )


def write_dataset(dataset: NewDataset, target: Path) -> None:
    """Write the data set into a folder beside `target`, which gets that name when it is complete.

    Images are hard links where the file system has them, else copies. Raises `InputError` if it cannot be written.
    """
    check_target(target)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        (temporary / IMAGES).mkdir(parents=True)
        for image in dataset.images:
            _put(image, temporary / IMAGES / image.name)
        write_local(temporary / LABELS, table(dataset).encode())
        write_local(temporary / DESCRIPTION, description(dataset).encode())
        temporary.rename(target)  # POSIX: also over an empty folder
    except OSError as error:
        raise InputError(
            f"{target}: must be a folder that can be written; {error.strerror} ({error.filename})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)


def table(dataset: NewDataset) -> str:
    """Return the content of `landmarks.csv`: image, further columns, split if there is one, and the points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    split = ["split"] if dataset.split is not None else []
    axes = [f"{axis}{index}" for index in range(len(dataset.landmark_names)) for axis in "xy"]
    writer.writerow(["image", *dataset.extra, *split, *axes])
    for number, name in enumerate(dataset.names):
        further = [values[number] for values in dataset.extra.values()]
        own_split = [dataset.split[number]] if dataset.split is not None else []
        writer.writerow([name, *further, *own_split, *map(_number, dataset.points_NK2[number].ravel())])
    for name, values in dataset.bare.items():
        writer.writerow([name, *values, *([UNLABELLED] if split else []), *([""] * len(axes))])
    return text.getvalue()


def description(dataset: NewDataset) -> str:
    """Return the content of `dataset.yaml`."""
    lines = [f"# Imported from {one_line(dataset.source)}"]
    if SPACING in dataset.extra:
        lines.append("unit: mm  # by the column spacing, millimetres per pixel of each image")
    elif dataset.mm_per_pixel is None:
        lines.append("unit: px")
    else:
        lines += ["unit: mm", f"mm_per_pixel: {float(dataset.mm_per_pixel)!r}"]
    if dataset.split is None:
        train, val, test = dataset.counts
        if dataset.counts_chosen:
            lines.append(
                "# Chosen by the import: 60 % train, 15 % val, the rest test. Change the numbers as you need them."
            )
        lines.append(f"splits: {{train: {train}, val: {val}}}  # by sorted name; the rest, {test}, is test")
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in dataset.landmark_names)
    lines.append(f"landmark_names: [{names}]")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Write a coordinate to a millionth of a pixel; nothing for NaN."""
    if np.isnan(value):
        return ""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _put(image: ImageFile, path: Path) -> None:
    if image.path is None:
        if image.content is not None:
            path.write_bytes(image.content())
        return
    source = image.path.resolve()  # the file that a symbolic link means
    try:
        os.link(source, path)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, path)
