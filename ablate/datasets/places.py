"""Places where data sets lie: a folder of this machine, or an address in an object store.

Both hold a folder for each data set.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ablate.datasets.types import DESCRIPTION


@dataclass(frozen=True)
class Copy:
    """The files of one data set on this machine."""

    root: Path  # holds the data set's folder
    label: str  # of the place that they are from, as it is printed
    digests: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by path in the data set's folder, where known
    restore: Callable[[], bool] = lambda: False  # compares checksums, mends damaged files, tells whether any was

    def told(self, message: str) -> str:
        """Return `message` with the names of files at the place that they are from."""
        return message.replace(f"{self.root}/", f"{self.label}/")


class Place(ABC):
    """Where data sets lie."""

    label: str
    """As it is printed."""

    folder: Path | None
    """None: it is no folder of this machine."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the names of the folders in it, sorted; raise `InputError` if an address cannot be read."""

    @abstractmethod
    def has_folder(self, name: str) -> bool:
        """Whether a folder of data lies in it; raises `InputError` if an address cannot be read."""

    @abstractmethod
    def has_file(self, path: str) -> bool:
        """Whether a file lies at `path`; raises `InputError` if an address cannot be read."""

    @abstractmethod
    def opened(self, name: str) -> contextlib.AbstractContextManager[Copy]:
        """Return the files of the data set `name`, which stay where they are until the block ends.

        Raises:
            InputError: the data set cannot be fetched.
        """

    def described(self) -> list[str]:
        """Return the folders with `dataset.yaml`; raise `InputError` if an address cannot be read."""
        return [name for name in self.folders() if self.has_file(f"{name}/{DESCRIPTION}")]


class Folder(Place):
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self.label = str(folder)

    def folders(self) -> list[str]:
        """Return the names of the folders in it, sorted; none if it cannot be read."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.name[0] != "." and path.is_dir())
        except OSError:  # no data folder
            return []

    def has_folder(self, name: str) -> bool:
        """Whether a folder lies in it."""
        return (self.folder / name).is_dir()

    def has_file(self, path: str) -> bool:
        """Whether a file lies at `path`."""
        return (self.folder / path).is_file()

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Copy]:
        """Return the data set's own files."""
        yield Copy(self.folder, self.label)
