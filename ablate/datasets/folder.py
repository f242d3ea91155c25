"""A user's own data set: a folder with `dataset.yaml`, `landmarks.csv` and `images/`.

Everything is checked here, at the boundary; each refusal names file, line, column, rule, value and cure.
Shape suffixes: K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from ablate.datasets.landmark_table import KNOWN_COLUMNS, is_coordinate, read_head, read_labels, read_text
from ablate.datasets.layout import Frame, Layout, PerImage, PerPixel, Reference, Scale
from ablate.datasets.splitting import SplitRule
from ablate.datasets.types import DESCRIPTION, IMAGES, LABELS, PARTS, SPACING, UNLABELLED, Unit
from ablate.errors import InputError, nearest
from ablate.space import Source, Spec
from ablate.space.explain import explain
from ablate.space.spec import PositiveNumber, as_tuple

DEFAULT_SDR_THRESHOLDS: dict[Unit, tuple[float, ...]] = {"mm": (2.0, 2.5, 3.0, 4.0), "px": (3.0, 6.0, 9.0)}
"""Thresholds in use for cephalograms (ISBI 2015) and for chest X-rays at 256 x 256."""

_MM_SCALES = ("mm_per_pixel", "film_mm", "reference")


Pair = Annotated[tuple[PositiveNumber, PositiveNumber], BeforeValidator(as_tuple)]
Index = Annotated[int, Field(ge=0)]


class ReferenceDescription(Spec):
    """Two landmarks whose distance is known on every image."""

    landmarks: Annotated[tuple[Index, Index], BeforeValidator(as_tuple)] = Field(
        description="indices of the two, from 0"
    )
    mm: PositiveNumber = Field(description="millimetres between them")


def _amount(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError(f"must be a number of images, such as 20, or a share of them, such as 0.1; got {value!r}")


Amount = Annotated[int | float, BeforeValidator(_amount)]


class SplitsDescription(Spec):
    """How the annotated images are divided into splits, or into folds."""

    train: Amount | None = Field(None, description="training images, a number or a share")
    val: Amount | None = Field(None, description="validation images; with folds the default is the next fold")
    test: Amount | None = Field(None, description="test images; default: the rest")
    random: Index | None = Field(None, description="seed of a random division; default: by sorted file name")
    stratify: str | None = Field(None, description="column of landmarks.csv whose shares every split keeps")
    group: str | None = Field(
        None, description="column of landmarks.csv whose images stay in one split, as a patient's"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(None, description="number of folds; each is the test split once")

    @model_validator(mode="after")
    def _fits_together(self) -> SplitsDescription:
        given = {name: value for name in ("train", "val", "test") if (value := getattr(self, name)) is not None}
        if self.folds is not None and (extra := [name for name in ("train", "test") if name in given]):
            raise ValueError(f"{extra[0]} must be left out with folds: each fold is the test split once; remove it")
        if self.folds is None and (lacking := [name for name in ("train", "val") if name not in given]):
            raise ValueError(
                f"{lacking[0]} is required; write, for example, {{train: 130, val: 20}} (the rest is test), "
                "{train: 0.7, val: 0.1, random: 0} or {folds: 5, random: 0}"
            )
        if len({type(value) for value in given.values()}) > 1:
            raise ValueError(f"train, val and test must all be numbers or all be shares; got {given}; write one kind")
        if self.test is not None and isinstance(self.test, float) and abs(sum(given.values()) - 1) > 1e-6:
            raise ValueError(f"the shares must sum to 1; got {given}; leave test out for the rest")
        if self.test is None and self.folds is None and isinstance(self.train, float) and sum(given.values()) >= 1:
            raise ValueError(f"the shares must leave test images; got {given}; lower them")
        if self.folds == 2 and self.val is None:
            raise ValueError("val is required with 2 folds: there is no third one to validate on; write val: 0.1")
        needs = [name for name in ("stratify", "group", "folds") if getattr(self, name) is not None]
        if needs and self.random is None:
            raise ValueError(f"{needs[0]} needs random, the seed of the division; write random: 0")
        return self

    @property
    def rule(self) -> SplitRule:
        """The rule as the division takes it."""
        return SplitRule(**self.model_dump())


class Description(Spec):
    """The content of `dataset.yaml`."""

    name: str | None = Field(None, description="the folder's name; may be left out")
    unit: Literal["mm", "px"] = Field(description="unit of errors and thresholds")
    mm_per_pixel: PositiveNumber | None = Field(None, description="millimetres per pixel of the image files")
    film_mm: Pair | None = Field(None, description="width and height of the whole image in millimetres")
    reference: ReferenceDescription | None = Field(None, description="two landmarks at a known distance")
    px_frame: Pair | None = Field(None, description="errors are in pixels of the image at this width and height")
    sdr_thresholds: Annotated[tuple[PositiveNumber, ...], BeforeValidator(as_tuple), Field(min_length=1)] | None = (
        Field(None, description="thresholds of the successful detection rate, ascending, in `unit`")
    )
    splits: SplitsDescription | None = Field(None, description="left out: landmarks.csv has a column split")
    landmark_names: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] | None = Field(
        None, description="a name for each landmark, in the order of the columns of landmarks.csv"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        given = [name for name in _MM_SCALES if getattr(self, name) is not None]
        if self.unit == "mm" and len(given) > 1:
            raise ValueError(
                f"unit mm needs one of {', '.join(_MM_SCALES)}, or none of them where each image has its own spacing; "
                f"got {' and '.join(given)}; write, for example, mm_per_pixel: 0.1"
            )
        if self.unit == "px" and given:
            raise ValueError(f"{given[0]} needs unit mm; got unit 'px'; write unit: mm or remove {given[0]}")
        if self.unit == "mm" and self.px_frame is not None:
            raise ValueError("px_frame needs unit px; got unit 'mm'; write unit: px or remove px_frame")
        if self.reference is not None and len(set(self.reference.landmarks)) != 2:
            raise ValueError(f"reference.landmarks must be two different landmarks; got {self.reference.landmarks}")
        thresholds = self.sdr_thresholds
        if thresholds is not None and any(b <= a for a, b in itertools.pairwise(thresholds)):
            raise ValueError(f"sdr_thresholds must be ascending; got {list(thresholds)}; sort them")
        names = self.landmark_names or ()
        if any(not name.strip() for name in names):
            raise ValueError(f"landmark_names must not be empty; got {list(names)}; give every landmark a name")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"landmark_names must be different; got {twice!r} twice; rename one")
        return self

    @property
    def scale(self) -> Scale:
        """Units per pixel, as described; in millimetres and not described: each image's own."""
        if self.mm_per_pixel is not None:
            return PerPixel(self.mm_per_pixel)
        if self.reference is not None:
            return Reference(*self.reference.landmarks, self.reference.mm)
        frame = self.film_mm or self.px_frame
        if frame is not None:
            return Frame(*frame)
        return PerImage() if self.unit == "mm" else PerPixel(1.0)


def read_folder(folder: Path) -> Layout:
    """Return the layout of a user's data set; raise `InputError` if `dataset.yaml` or the table's head is wrong."""
    path = folder / DESCRIPTION
    source = Source.parse(read_text(path), str(path))
    description = _read_description(source, folder.name)
    table = folder / LABELS
    columns = read_head(table)
    num_landmarks, has_splits = sum(map(is_coordinate, columns)) // 2, "split" in columns
    own = [name for name in columns if name not in KNOWN_COLUMNS and not is_coordinate(name)]
    _check_scale(source, description, folder, has_spacing=SPACING in columns)
    if description.reference is not None:
        largest = max(description.reference.landmarks)
        if largest >= num_landmarks:
            source.refuse(
                ("reference", "landmarks"),
                f"must be between 0 and {num_landmarks - 1}, the landmarks of {LABELS}; got {largest}",
            )
    names = description.landmark_names
    if names is not None and len(names) != num_landmarks:
        source.refuse(
            ("landmark_names",),
            f"must have as many names as {LABELS} has landmarks, {num_landmarks}; got {len(names)}",
        )
    if has_splits and description.splits is not None:
        source.refuse(("splits",), f"must stand in one place; {table} also has a column split; remove one of the two")
    if not has_splits and description.splits is None:
        raise InputError(
            f"{path}: splits is required, for example splits: {{train: 130, val: 20}} by sorted file name "
            f"(the rest is test), or give {LABELS} a column split with {', '.join(PARTS)}"
        )
    splits = description.splits
    for option in ("stratify", "group"):
        column = getattr(splits, option, None)
        if column is not None and column not in own:
            source.refuse(
                ("splits", option),
                f"must be a column of {LABELS} ({', '.join(own) or 'it has none of your own'}); got {column!r}"
                f"{nearest(column, own)}",
            )
    return Layout(
        name=folder.name,
        title=folder.name,
        num_landmarks=num_landmarks,
        unit=description.unit,
        scale=description.scale,
        sdr_thresholds=description.sdr_thresholds or DEFAULT_SDR_THRESHOLDS[description.unit],
        image_folder=IMAGES,
        label_file=LABELS,
        label_key=str,
        read_labels=functools.partial(read_labels, num_landmarks),
        splits=splits.rule if splits is not None else None,
        unlabelled="pre-train",
        unlabelled_folder=UNLABELLED,
        landmark_names=names or (),
    )


def _check_scale(source: Source, description: Description, folder: Path, *, has_spacing: bool) -> None:
    """Refuse millimetres without a scale, and a column of spacings beside another scale."""
    given = [name for name in _MM_SCALES if getattr(description, name) is not None]
    if has_spacing and (given or description.unit == "px"):
        source.refuse(
            (given[0] if given else "unit",),
            f"the scale must stand in one place; {folder / LABELS} has a column spacing (millimetres per pixel of each "
            "image); remove one of the two",
        )
    if description.unit == "mm" and not given and not has_spacing and not any((folder / IMAGES).glob("*.[dD][cC][mM]")):
        source.refuse(
            ("unit",),
            f"mm needs one of {', '.join(_MM_SCALES)}, a column spacing in {LABELS} (millimetres per pixel of each "
            "image), or DICOM files that say it; write, for example, mm_per_pixel: 0.1, or unit: px",
        )


# --- dataset.yaml -----------------------------------------------------------------------------------


def _read_description(source: Source, folder_name: str) -> Description:
    if not isinstance(source.value, dict):
        raise InputError(f"{source.name}: must be a mapping with unit and its scale; got {source.value!r}")
    try:
        description = Description.model_validate(source.value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fields = _model_at([str(part) for part in first["loc"][:-1]]).model_fields
        source.refuse(*explain(first, {name: info.annotation for name, info in fields.items()}))
    if description.name not in (None, folder_name):
        source.refuse(
            ("name",),
            f"must be the folder's name '{folder_name}'; got '{description.name}'; rename one, or leave name out",
        )
    return description


def _model_at(path: list[str]) -> type[BaseModel]:
    nested: dict[str, type[BaseModel]] = {"reference": ReferenceDescription, "splits": SplitsDescription}
    return nested.get(path[0], Description) if path else Description
