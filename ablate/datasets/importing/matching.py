"""The image files of an export: their names in the data set, and which of them an export means."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ablate.datasets.images import IMAGE_SUFFIXES, is_image, read_size
from ablate.datasets.importing.exports import ImportedImage
from ablate.datasets.types import DESCRIPTION
from ablate.errors import InputError, nearest


@dataclass(frozen=True)
class ImageFile:
    """One image of the data set that is made."""

    name: str
    size: tuple[int, int]  # width, height
    path: Path | None  # None: `content` has the bytes
    content: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class ImageFolder:
    """The image files below a folder, by the names that they get in the data set."""

    folder: Path
    paths: Mapping[str, Path]  # sorted by name
    renamed: tuple[str, ...]  # names made of folder and name, since another folder has the same name
    by_last_part: Mapping[str, Sequence[str]] = field(
        repr=False
    )  # names by the file's name, and by that without ending

    def find(self, names: Iterable[str], where: str) -> str | None:
        """Return the name in the data set of the file that an export calls by one of `names`.

        As much of a path is compared as helps; a name without ending means any image of that name. Raises `InputError`
        if several files are meant.
        """
        for given in names:
            parts = [part for part in PurePosixPath(given.replace("\\", "/")).parts if part not in ("/", ".", "..")]
            found = list(self.by_last_part.get(parts[-1], ())) if parts else []
            for length in range(2, len(parts) + 1):
                longer = [name for name in found if self._tail(name, length)[:-1] == tuple(parts[-length:-1])]
                if len(found) <= 1 or not longer:
                    break
                found = longer
            if len(found) > 1:
                raise InputError(
                    f"{where}: image {given!r} must mean one file; it may be "
                    f"{' or '.join(str(self.paths[name]) for name in found[:3])}; rename one of them, or give --images"
                )
            if found:
                return found[0]
        return None

    def _tail(self, name: str, length: int) -> tuple[str, ...]:
        return self.paths[name].relative_to(self.folder).parts[-length:]


def list_images(folder: Path, leave_out: Collection[Path] = ()) -> ImageFolder:
    """Return the visible images below `folder`, but not those of data sets there nor those below `leave_out`.

    Where two folders have files of one name, each gets the names of its folders before its own: `sub__a.png`.

    Raises:
        InputError: there is no such folder, or two files get one name nonetheless.
    """
    if not folder.is_dir():
        raise InputError(f"--images must be a folder; '{folder}' is none")
    left_out = [folder / place for place in _inside(folder, leave_out)]
    left_out += [path.parent for path in folder.rglob(DESCRIPTION) if path.parent != folder]
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or any(path.is_relative_to(other) for other in left_out):
            continue
        if is_image(path):
            found.append(path)
    count = Counter(path.name for path in found)
    paths: dict[str, Path] = {}
    for path in found:
        name = path.name if count[path.name] == 1 else "__".join(path.relative_to(folder).parts)
        if name in paths:
            raise InputError(
                f"{path}: every image must get a name of its own; {paths[name]} gets {name!r} too; rename one"
            )
        paths[name] = path
    paths = dict(sorted(paths.items()))
    last: defaultdict[str, list[str]] = defaultdict(list)
    for name, path in paths.items():
        last[path.name].append(name)
        last[path.stem].append(name)
    renamed = tuple(name for name, path in paths.items() if name != path.name)
    return ImageFolder(folder, paths, renamed, last)


def _inside(folder: Path, places: Iterable[Path]) -> list[Path]:
    """Return those of `places` that lie inside `folder`, relative to it."""
    whole = folder.resolve()
    resolved = [place.resolve() for place in places]
    return [place.relative_to(whole) for place in resolved if place != whole and place.is_relative_to(whole)]


def match_images(
    images: Sequence[ImportedImage], files: ImageFolder
) -> tuple[dict[str, ImageFile], dict[str, ImportedImage]]:
    """Return every image of the data set, and what the export tells of it, both by its name in the data set.

    Raises:
        InputError: an annotated image is neither a file nor in the export, or stands in the export twice.
    """
    told: dict[str, ImportedImage] = {}
    embedded: dict[str, ImageFile] = {}
    absent = []
    for image in images:
        name = files.find((image.name, *image.other_names), image.where)
        if name is None and image.embedded is not None:
            inside = image.embedded()
            name = inside.name
            if name in files.paths:
                raise InputError(
                    f"{image.where}: the embedded image {name!r} must not be a file too; rename {files.paths[name]}"
                )
            embedded.setdefault(name, ImageFile(name, inside.size, None, inside.content))
        if name is None:
            if image.points:
                absent.append(image)
            continue
        if name in told:
            raise InputError(
                f"{image.where}: every image must stand once in the export; {name!r} is also in {told[name].where}; "
                "remove one of them"
            )
        told[name] = image
    if absent:
        raise InputError(_absent(absent, len(images), files))
    on_disk = {name: ImageFile(name, read_size(path), path) for name, path in files.paths.items()}
    return dict(sorted({**on_disk, **embedded}.items())), dict(sorted(told.items()))


def _absent(absent: Sequence[ImportedImage], count: int, files: ImageFolder) -> str:
    first = absent[0]
    last = first.name.replace("\\", "/").rpartition("/")[2]
    kinds = ", ".join(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
    return (
        f"{first.where}: every annotated image must be a file below {files.folder}; {first.name!r} is none"
        f"{nearest(last, files.paths)}, {len(absent)} of {count} images are missing there "
        f"(it holds {len(files.paths)} of {kinds}); give the folder of the images as --images"
    )
