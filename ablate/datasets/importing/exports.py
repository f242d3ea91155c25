"""What the export of an annotation tool holds, whatever its format, and how its files are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ablate.datasets.types import SplitName
from ablate.errors import InputError
from ablate.space.explain import explain
from ablate.space.files import place_text

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Embedded:
    """An image that the export holds itself."""

    name: str
    size: tuple[int, int]  # width, height
    content: Callable[[], bytes]


@dataclass(frozen=True)
class ImportedImage:
    """One image as the export tells of it."""

    name: str  # a file name, a path with / or \, or a name without ending
    where: str  # in which file of the export, for messages
    points: Mapping[str, Point]  # by landmark, as exported; absent: not annotated; NaN: the export says nan
    size: tuple[float, float] | None = None  # width and height on which the points were set, where stated
    other_names: tuple[str, ...] = ()  # tried where there is no file `name`
    split: SplitName | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    embedded: Callable[[], Embedded] | None = None  # used where there is no file


@dataclass(frozen=True)
class Imported:
    """The images of an export, in its order."""

    images: tuple[ImportedImage, ...]
    landmark_names: tuple[str, ...]  # in the order of the columns of landmarks.csv
    extra_columns: tuple[str, ...] = ()
    has_splits: bool = False
    notes: tuple[str, ...] = ()


class Lenient(BaseModel):
    """Base of what is read of a JSON file; other fields are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path) -> str:
    """Return a file's text; raise `InputError` if it cannot be read as UTF-8."""
    cure = "unpack it and give the file inside" if path.suffix == ".zip" else "save it as UTF-8"
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: must be a readable file; {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text; byte {error.start} is not; {cure}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raise `InputError` if it is none."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: must be JSON; {error.msg}; export it again") from error


def parsed(model: type[Model], value: Any, where: str) -> Model:
    """Return what was read from `where` as `model`; raise `InputError` naming the first field at fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        place, message = explain(error.errors(include_url=False)[0], {})
        raise InputError(f"{where}: {place_text(place)}: {message}") from error


def files_of(source: Path, patterns: Iterable[str]) -> list[Path]:
    """Return `source` if it is a file, else the visible files below it that match one of `patterns`, sorted."""
    if source.is_file():
        return [source]
    found = {path for pattern in patterns for path in source.rglob(pattern) if path.is_file()}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts))


def add_point(points: dict[str, Point], name: str, point: Point, where: str) -> None:
    """Add a landmark to those of an image; raise `InputError` if it is there already or has no name."""
    if not name.strip():
        raise InputError(f"{where}: every point must have a label; one at ({point[0]:g}, {point[1]:g}) has none")
    if name in points:
        raise InputError(
            f"{where}: every landmark must stand once in an image; {name!r} stands twice; "
            "remove one of them, or give each landmark a label of its own"
        )
    points[name] = point


def by_name(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct names sorted, numbers in them by value: 2 before 10."""
    return tuple(sorted(set(names), key=_natural))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
