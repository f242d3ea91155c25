"""From an annotation tool's export to a data set's folder.

Shape suffixes: N annotated images, K landmarks, 2 = (x, y).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ablate.datasets.images import has_orientation
from ablate.datasets.importing.cures import Annotations, cure, without_missing
from ablate.datasets.importing.exports import Imported, ImportedImage, Point
from ablate.datasets.importing.formats import FORMATS
from ablate.datasets.importing.matching import ImageFile, list_images, match_images
from ablate.datasets.importing.options import ImportOptions, Origin
from ablate.datasets.importing.report import ImportReport, check_command
from ablate.datasets.importing.write import NewDataset, check_target, write_dataset
from ablate.datasets.source import data_folder
from ablate.datasets.types import SPACING, SPLITS, FloatArray, SplitName
from ablate.errors import InputError, nearest
from ablate.space import BUILT_IN_DATASETS
from ablate.words import counted

SMALLEST_DATASET = 3
"""Annotated images: one for each split."""

_LISTED = 5  # names written out in one line


def import_dataset(
    format_name: str,
    source: Path | str,
    *,
    out: str,
    data_dir: Path | str | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Make the data set `out` in the data folder of an annotation tool's export.

    Points are written in pixels of the files, from the centre of the top-left pixel. Images that the export does not
    annotate become images without a row. Nothing is cured unless the options say so.

    Args:
        format_name: one of `FORMATS`.
        source: the export's file, or its folder where the tool writes a file for each image.
        out: name of the new folder, which must not exist or be empty.
        data_dir: folder of the data sets, as everywhere.
        options: where the images are, and how the points are to be understood.

    Raises:
        InputError: the export cannot be read, an image is missing, points are not where they should be, or the folder
            cannot be written; nothing is written then.
    """
    options = options or ImportOptions()
    known = FORMATS.get(format_name)
    if known is None:
        raise InputError(
            f"FORMAT must be one of {', '.join(FORMATS)}; got {format_name!r}{nearest(format_name, FORMATS)}"
        )
    target = _target(out, data_dir)
    path = _source(Path(source).expanduser(), format_name)
    imported = known.read(path, options)
    folder = options.images.expanduser() if options.images is not None else path if path.is_dir() else path.parent
    other_sets = [target.parent / name for name in BUILT_IN_DATASETS]
    files = list_images(folder, [target, target.parent, *other_sets])
    images, told = match_images(imported.images, files)
    points, taken = without_missing({name: image for name, image in told.items() if image.points}, options)
    annotated = {name: told[name] for name, given in points.items() if given}
    if len(annotated) < SMALLEST_DATASET:
        raise InputError(
            f"{path}: at least {SMALLEST_DATASET} images must be annotated, one for each split; "
            f"found {len(annotated)} of {counted(len(imported.images), 'image')}"
        )
    given = _annotations(annotated, points, images, imported.landmark_names)
    origin: Origin = options.origin or ("corner" if options.normalised else known.origin)
    cured = cure(given, options, origin)
    splits, said = _splits(annotated, imported, options)
    by_spacing = SPACING in imported.extra_columns
    if by_spacing and options.mm_per_pixel is not None:
        raise InputError(
            f"--mm-per-pixel must be left out where the export has the millimetres per pixel of each image; got "
            f"{options.mm_per_pixel:g} and the column {SPACING} in {path}; remove one of the two"
        )
    columns = imported.extra_columns
    dataset = NewDataset(
        images=list(images.values()),
        names=given.names,
        landmark_names=imported.landmark_names,
        points_NK2=cured.points_NK2,
        extra={column: [image.extra[column] for image in annotated.values()] for column in columns},
        bare={
            name: [image.extra[column] for column in columns]
            for name, image in sorted(told.items())
            if columns and name not in annotated
        },
        split=splits if isinstance(splits, list) else None,
        counts=splits if isinstance(splits, tuple) else (0, 0, 0),
        counts_chosen=options.splits is None,
        mm_per_pixel=options.mm_per_pixel,
        source=f"{path.name} ({format_name})",
    )
    if not options.dry_run:
        write_dataset(dataset, target)
    notes = [*imported.notes, *_notes(imported, told, annotated, files.renamed)]
    if taken:
        notes.append(f"{counted(taken, 'point')} marked as not annotated left out")
    widths, heights = zip(*(image.size for image in images.values()), strict=True)
    return ImportReport(
        name=out,
        folder=target,
        written=not options.dry_run,
        format_name=format_name,
        source=path,
        num_annotated=len(annotated),
        num_unlabelled=len(images) - len(annotated),
        landmark_names=imported.landmark_names,
        not_annotated=int(np.isnan(cured.points_NK2[..., 0]).sum()),
        widths=(min(widths), max(widths)),
        heights=(min(heights), max(heights)),
        origin=origin,
        applied=cured.applied,
        splits=said,
        unit=_unit(options.mm_per_pixel, by_spacing=by_spacing),
        extra_columns=imported.extra_columns,
        notes=tuple(notes),
        warnings=(*cured.warnings, *_warnings(given, images, cured.points_NK2)),
        check=check_command(out, None if data_dir is None else str(data_dir)),
    )


def _unit(mm_per_pixel: float | None, *, by_spacing: bool) -> str:
    if by_spacing:
        return f"mm, by the column {SPACING}"
    return "px" if mm_per_pixel is None else f"mm, {mm_per_pixel:g} in each pixel"


def _target(out: str, data_dir: Path | str | None) -> Path:
    if not out or out.startswith(".") or set(out) & set("/\\\0"):
        raise InputError(f"--out must be the name of a folder, without / and not hidden; got {out!r}")
    folder = data_folder(data_dir)
    if not isinstance(folder, Path):
        raise InputError(f"--data must be a folder of this machine to import into; got {folder}; copy the result there")
    check_target(folder / out)
    return folder / out


def _source(path: Path, format_name: str) -> Path:
    if not path.exists():
        raise InputError(f"SOURCE must be an export of {format_name}; {path} does not exist")
    if path.is_dir() and not FORMATS[format_name].takes_folder:
        raise InputError(
            f"SOURCE must be one file for the format {format_name}; {path} is a folder; give the file in it"
        )
    return path


def _annotations(
    annotated: Mapping[str, ImportedImage],
    points: Mapping[str, Mapping[str, Point]],
    images: Mapping[str, ImageFile],
    landmark_names: tuple[str, ...],
) -> Annotations:
    absent = (np.nan, np.nan)
    return Annotations(
        names=tuple(annotated),
        landmark_names=landmark_names,
        points_NK2=np.array(
            [[points[name].get(landmark, absent) for landmark in landmark_names] for name in annotated]
        ),
        sizes_N2=np.array([images[name].size for name in annotated], dtype=np.float64),
        stated_N2=np.array([image.size or absent for image in annotated.values()], dtype=np.float64),
    )


def _splits(
    annotated: Mapping[str, ImportedImage], imported: Imported, options: ImportOptions
) -> tuple[tuple[int, int, int] | list[SplitName], str]:
    """Return the split of each image, or how many each split takes, and the same in words."""
    count = len(annotated)
    if options.splits is None and imported.has_splits:
        column = [image.split for image in annotated.values()]
        given = [split for split in column if split is not None]
        counts = Counter(given)
        empty = [name for name in SPLITS if not counts[name]]
        if len(given) < count or empty:
            what = f"gives none to {empty[0]}" if empty else f"is empty for {count - len(given)} annotated images"
            raise InputError(
                f"column split must give every annotated image to train, val or test, and each of them one; it {what}; "
                "complete it, or give --splits TRAIN,VAL, which takes its place"
            )
        return given, ", ".join(f"{name} {counts[name]}" for name in SPLITS) + ", from the column split"
    if options.splits is None:
        val = max(1, round(0.15 * count))
        train = min(max(1, round(0.6 * count)), count - val - 1)
        said = "60 % and 15 %, chosen by the import"
    else:
        (train, val), said = options.splits, "as given"
    test = count - train - val
    if test < 1:
        raise InputError(
            f"--splits must leave at least one image to test; got {train},{val} of {count} annotated images; "
            "give smaller numbers"
        )
    return (train, val, test), f"train {train}, val {val}, test {test}, by sorted name ({said})"


def _notes(
    imported: Imported,
    told: Mapping[str, ImportedImage],
    annotated: Mapping[str, ImportedImage],
    renamed: Sequence[str],
) -> list[str]:
    notes = []
    absent = len(imported.images) - len(told)
    if absent:
        notes.append(f"{counted(absent, 'image')} of the export without annotation and without a file left out")
    blank = [name for name in told if name not in annotated]
    if blank:
        notes.append(
            f"{counted(len(blank), 'image')} of the export without a point, used without annotation: {_some(blank)}"
        )
    if renamed:
        notes.append(
            f"{counted(len(renamed), 'image')} of equal names got that of the folder before it: {_some(renamed)}"
        )
    return notes


def _warnings(given: Annotations, images: Mapping[str, ImageFile], points_NK2: FloatArray) -> list[str]:
    warnings = []
    never = [given.landmark_names[k] for k in np.flatnonzero(np.isnan(points_NK2[..., 0]).all(axis=0))]
    if never:
        warnings.append(f"{counted(len(never), 'landmark')} not annotated in any image: {_some(never)}")
    turned = [name for name in given.names if (path := images[name].path) is not None and has_orientation(path)]
    if turned:
        warnings.append(
            f"{counted(len(turned), 'annotated image')} with an EXIF orientation, which is not applied: points must be "
            f"in pixels as stored ({_some(turned)})"
        )
    return warnings


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
