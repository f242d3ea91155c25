"""The check of a data set: whether it is fit for use, and what is worth knowing about it.

`check_dataset` decodes every image and gathers all problems instead of stopping at the first. An error
keeps the data from being used; a warning does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from ablate.datasets.balance import PREFIX, in_two_splits, kept_words, nearly_equal, unlike_splits
from ablate.datasets.contents import Contents, num_threads, outside_landmarks
from ablate.datasets.duplicates import MAX_LABEL_DISTANCE, find_duplicates, image_hash
from ablate.datasets.images import has_orientation
from ablate.datasets.layout import FileRecord
from ablate.datasets.loading import dataset_names, open_contents, points_of, sizes_of
from ablate.datasets.mirrored import find_mirrored, small_image
from ablate.datasets.types import DESCRIPTION, SPLITS, Float32Array, Part, Problems, Record, SplitName, Unit
from ablate.errors import InputError
from ablate.space import BUILT_IN_DATASETS
from ablate.words import counted

_SHOWN = 3  # messages that are written out where many are alike
_VARYING = re.compile(
    r"\S*[/\\]\S*|'[^']*'|[\w-]*\.(?:png|jpe?g|tiff?|bmp|dcm)\b|\(did you mean[^)]*\)|[\d.]+", re.IGNORECASE
)

_ODD_SCALE = 5  # an image's scale, in medians, that is worth a warning; scanners differ by less

_LISTED = 8  # names written out in one warning


@dataclass(frozen=True)
class Duplicate:
    """Two files of a data set that show the same radiograph; the splits are None if there are none."""

    first: str
    second: str
    first_split: Part | None
    second_split: Part | None
    opposite: float  # share of opposite signs in the difference hash
    label_distance: float  # mean distance of the landmarks, as a share of the side; NaN: none in common

    @property
    def crosses(self) -> bool:
        """Whether the two lie in different splits, or one of them is unlabelled."""
        return self.first_split != self.second_split


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found."""

    name: str
    folder: str | None  # as printed, also of an address; None: generated
    unit: Unit | None
    num_landmarks: int
    num_images: int  # annotated and in use
    splits: dict[SplitName, int]  # of the first fold, where there are folds
    folds: int | None  # None: it has no folds
    scales: Mapping[str, int]  # images by what gave their scale, where that differs between images
    kept: tuple[tuple[str, str], ...]  # what a stratified or grouped division holds, of the first fold
    unlabelled: int  # for pre-training alone
    excluded: int  # left out as in the paper
    left_out: int  # left out because they have no label
    widths: tuple[int, int] | None  # smallest and largest, px
    heights: tuple[int, int] | None
    unit_per_pixel: tuple[float, float] | None  # smallest and largest
    not_annotated: int  # landmarks without coordinates
    unreadable: tuple[str, ...]  # file names
    outside: tuple[str, ...]  # landmarks outside their image
    duplicates: tuple[Duplicate, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to print as (what, value)."""
        crossing = sum(pair.crosses for pair in self.duplicates)
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        rows = [
            ("data set", self.name if self.folder is None else f"{self.name} ({self.folder})"),
            ("images", f"{self.num_images} annotated, {self.unlabelled} unlabelled"),
            ("splits", ("" if self.folds is None else f"{self.folds} folds; of the first ") + splits),
            *self.kept,
            ("landmarks", f"{self.num_landmarks} per image, {self.not_annotated} not annotated"),
        ]
        if self.excluded or self.left_out:
            rows.append(("left out", f"{self.excluded} excluded as in the paper, {self.left_out} without a label"))
        if self.widths and self.heights:
            rows.append(("image width", _range(*self.widths, "px")))
            rows.append(("image height", _range(*self.heights, "px")))
        if self.unit_per_pixel and self.unit:
            rows.append(("scale", _range(*self.unit_per_pixel, f"{self.unit} per pixel")))
        rows += [("scale from", f"{source}: {counted(count, 'image')}") for source, count in self.scales.items()]
        rows += [
            ("unreadable", ", ".join(self.unreadable) or "none"),
            ("landmarks outside their image", str(len(self.outside))),
            (
                "radiographs that occur twice",
                f"{counted(len(self.duplicates), 'pair')}, {crossing} of them in two splits",
            ),
        ]
        return rows

    def text(self) -> str:
        """Return the report as plain text: what keeps the data from being used comes first, what is alike once."""
        width = max(len(what) for what, _ in self.rows())
        lines = [f"error: {message}" for message in grouped(self.errors)]
        lines += [f"{what:<{width}}  {value}" for what, value in self.rows()]
        lines += [f"  {_pair(pair)}" for pair in self.duplicates]
        lines += [f"warning: {message}" for message in grouped(self.warnings)]
        return "\n".join(lines)


def grouped(messages: Sequence[str]) -> list[str]:
    """Return messages with at most `_SHOWN` of those that differ in names and numbers alone, and how many more."""
    alike: dict[str, list[str]] = {}
    for message in messages:
        alike.setdefault(_VARYING.sub("", message), []).append(message)
    lines = []
    for found in alike.values():
        lines += found[:_SHOWN]
        if len(found) > _SHOWN:
            lines.append(f"{len(found) - _SHOWN} more like the last one, up to: {found[-1]}")
    return lines


def check_dataset(name: str, data_dir: Path | str | None = None) -> CheckReport:
    """Read and decode everything and report all that is wrong or odd.

    Raises `InputError` only if there is no data set of this name, or its address cannot be read.
    """
    problems = Problems(stop=False)
    try:
        with open_contents(name, data_dir, problems) as contents:
            readable, hashes, small, unreadable = _decode([*contents.records, *contents.unlabelled], problems)
    except InputError as error:
        if name not in BUILT_IN_DATASETS and name not in dataset_names(data_dir):
            raise
        return _empty(name, str(error))
    outside = [text for record in contents.records for text in outside_landmarks(record)]
    division = contents.divisions[0]
    parts: dict[int, Part] = {}
    if contents.folds is None:
        parts = {id(record): part for part, record in zip(division.parts, division.ordered, strict=True)}
    duplicates: list[Duplicate] = []
    if readable:
        for pair in find_duplicates(np.stack(hashes), points_of(readable), sizes_of(readable)):
            first, second = readable[pair.first], readable[pair.second]
            if pair.label_distance > MAX_LABEL_DISTANCE:
                problems.warn(
                    f"{first.name} and {second.name} are the same picture, but their landmarks lie "
                    f"{pair.label_distance:.0%} of the side apart: one of the labels is wrong"
                )
            duplicates.append(
                Duplicate(
                    first.name,
                    second.name,
                    parts.get(id(first)),
                    parts.get(id(second)),
                    pair.opposite,
                    pair.label_distance,
                )
            )
    mirrored = find_mirrored(small)
    if mirrored:
        names = [f"{readable[m.number].name} ({m.mirrored:.2f} against {m.straight:.2f})" for m in mirrored]
        problems.warn(
            f"{counted(len(mirrored), 'radiograph')} may be mirrored, by the correlation with the mirrored mean image "
            f"against that with the mean: {_some(names)}; look at them, and mirror picture and landmarks, or leave "
            "them out"
        )
    _warn(contents, outside, duplicates, problems)
    sizes = sizes_of(contents.records) if contents.records else None
    scales = [value for record in contents.records for value in record.unit_per_pixel]
    return CheckReport(
        name=name,
        folder=contents.folder,
        unit=contents.unit,
        num_landmarks=contents.num_landmarks,
        num_images=len(contents.records),
        splits={split: len(division.splits[split]) for split in SPLITS},
        folds=contents.folds,
        kept=tuple(_kept(contents)),
        scales=Counter(record.scale_from for record in contents.records if record.scale_from),
        unlabelled=len(contents.unlabelled),
        excluded=contents.excluded,
        left_out=contents.left_out,
        widths=None if sizes is None else (int(sizes[:, 0].min()), int(sizes[:, 0].max())),
        heights=None if sizes is None else (int(sizes[:, 1].min()), int(sizes[:, 1].max())),
        unit_per_pixel=(min(scales), max(scales)) if scales else None,
        not_annotated=sum(int(np.isnan(record.points_K2[:, 0]).sum()) for record in contents.records),
        unreadable=tuple(unreadable),
        outside=tuple(outside),
        duplicates=tuple(duplicates),
        errors=tuple(problems.errors),
        warnings=tuple(problems.warnings),
    )


def _decode(
    records: Sequence[Record], problems: Problems
) -> tuple[list[Record], list[npt.NDArray[np.int8]], list[Float32Array], list[str]]:
    """Decode all; return the readable records, their hashes and small images, and the names of the unreadable."""

    def decode(record: Record) -> tuple[tuple[npt.NDArray[np.int8], Float32Array] | None, str, bool, bool]:
        try:
            grey_HW = record.grey()
            turned = isinstance(record, FileRecord) and has_orientation(record.path)
        except InputError as error:
            return None, str(error), False, False
        return (image_hash(grey_HW), small_image(grey_HW)), "", bool(grey_HW.min() == grey_HW.max()), turned

    readable, hashes, small, unreadable, turned = [], [], [], [], []
    with ThreadPoolExecutor(num_threads()) as pool:
        for record, (seen, error, flat, orientation) in zip(records, pool.map(decode, records), strict=True):
            if seen is None:
                problems.error(error)
                unreadable.append(record.name)
                continue
            readable.append(record)
            hashes.append(seen[0])
            small.append(seen[1])
            if flat:
                problems.warn(f"{record.name}: every pixel has the same grey value; the network sees a black image")
            if orientation:
                turned.append(record.name)
    if turned:
        problems.warn(
            f"{len(turned)} images carry an EXIF orientation, which is not applied: landmarks must be in pixels as "
            f"stored ({_some(turned)})"
        )
    return readable, hashes, small, unreadable


def _warn(contents: Contents, outside: Sequence[str], duplicates: Sequence[Duplicate], problems: Problems) -> None:
    if outside:
        problems.warn(f"{len(outside)} landmarks lie outside their image: {_some(outside)}")
    crossing = [pair for pair in duplicates if pair.crosses]
    if crossing:
        problems.warn(
            f"{len(crossing)} radiographs occur in two splits, listed above; with exclude_duplicates: true, test "
            "images that also occur in train or val are left out of the evaluation"
        )
    if contents.described:
        _warn_of_scales(contents, problems)
        _warn_of_splits(contents, problems)
    published = contents.num_images
    if published is not None and len(contents.records) != published:
        problems.warn(
            f"{contents.name}: the published set has {published} labelled radiographs; found {len(contents.records)}; "
            "splits and results are not comparable with the paper's"
        )


def _kept(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield what the division of a data set holds of the columns that it goes by."""
    rule, division = contents.rule, contents.divisions[0]
    if rule is None or not division.ordered:
        return
    yield from kept_words(division, rule.stratify, rule.group)
    if rule.group is not None and (left_out := len(contents.unlabelled) - len(division.unlabelled)):
        yield "left out of pre-training", f"{counted(left_out, 'unlabelled image')} of a {rule.group} in val or test"


def _warn_of_scales(contents: Contents, problems: Problems) -> None:
    """Warn of images whose pixels are far larger or smaller than those of most."""
    scales = [max(record.unit_per_pixel) for record in contents.records]
    middle = median(scales) if scales else 1.0
    odd = [
        f"{record.name} {scale:.4g}"
        for record, scale in zip(contents.records, scales, strict=True)
        if record.scale_from and not 1 / _ODD_SCALE < scale / middle < _ODD_SCALE
    ]
    if odd:
        problems.warn(
            f"{counted(len(odd), 'image')} with more than {_ODD_SCALE} times, or less than 1/{_ODD_SCALE} of, the "
            f"median scale of {middle:.4g} {contents.unit} per pixel: {_some(odd)}; look whether the values are "
            "millimetres"
        )


def _warn_of_splits(contents: Contents, problems: Problems) -> None:
    """Warn where splits that were not drawn at random differ, where a person is in two, and of unlabelled images."""
    rule, division = contents.rule, contents.divisions[0]
    if rule is None or rule.random is None:
        how = "the split column" if rule is None else "sorted file name"
        for name, said in unlike_splits(division):
            what = name if name == PREFIX else f"column {name}"
            cure = "random: 0" if name == PREFIX else f"random: 0, stratify: {name}"
            problems.warn(
                f"splits by {how} differ in {what}: {said}; a result on test then says little about train; "
                f"for alike splits write {cure} into splits of {DESCRIPTION}"
            )
    if rule is None or rule.group is None:
        for name, twice in in_two_splits(division):
            problems.warn(
                f"{counted(len(twice), 'value')} of column {name} occur in two splits ({_some(twice)}); to keep each "
                f"in one write random: 0, group: {name} into splits of {DESCRIPTION}"
            )
    if rule is not None and rule.group is not None:
        pairs = nearly_equal([*contents.records, *contents.unlabelled], rule.group)
        if pairs:
            one, other = pairs[0]
            problems.warn(
                f"{counted(len(pairs), 'value')} of column {rule.group} occur in two spellings, which count as two "
                f"groups, such as {one!r} and {other!r}; write them alike"
            )
        without = [record.name for record in contents.unlabelled if not record.columns.get(rule.group)]
        if without:
            problems.warn(
                f"{counted(len(without), 'unlabelled image')} without a value in column {rule.group} may show a group "
                f"of val or test, and take part in pre-training: {_some(without)}"
            )


def _empty(name: str, error: str) -> CheckReport:
    return CheckReport(
        name=name,
        folder=None,
        unit=None,
        num_landmarks=0,
        num_images=0,
        splits=dict.fromkeys(SPLITS, 0),
        folds=None,
        scales={},
        kept=(),
        unlabelled=0,
        excluded=0,
        left_out=0,
        widths=None,
        heights=None,
        unit_per_pixel=None,
        not_annotated=0,
        unreadable=(),
        outside=(),
        duplicates=(),
        errors=(error,),
        warnings=(),
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _range(low: float, high: float, unit: str) -> str:
    return f"{low:.4g} {unit}" if low == high else f"{low:.4g} to {high:.4g} {unit}"


def _pair(pair: Duplicate) -> str:
    first = f"{pair.first} ({pair.first_split})" if pair.first_split else pair.first
    second = f"{pair.second} ({pair.second_split})" if pair.second_split else pair.second
    return f"{first} = {second}"
