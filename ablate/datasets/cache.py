"""The folder where a node keeps what it fetched and prepared, `ABLATE_CACHE` (default `~/.cache/ablate`).

It holds entries, each complete or absent, however many processes work on it at once; nothing in it is unpickled:

    NAME-SIZE-KEY.npz       the prepared images of one data set, image size and content
    fetched/NAME-KEY/       one data set as it lay at its address, see `ablate.datasets.remote`
    locks/                  an empty lock file of each entry; the operating system holds a lock, so that it is free
                            again when its holder is killed

A process makes, repairs or deletes an entry under the entry's lock, and marks one whose files it reads. When
`ABLATE_CACHE_GB` would be exceeded, the entries that were used longest ago go, except where one is locked or marked.
Shape suffixes: N images, H = W = image size.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ablate.datasets.types import ByteArray, IntArray
from ablate.errors import InputError
from ablate.store.local_write import replacing

CACHE_VERSION = 2
"""Raised when decoding, resizing, normalising or the search for duplicates changes."""

DEFAULT_LIMIT_GB = 50.0

FETCHED = "fetched"
LOCKS = "locks"
PARTIAL = ".partial"
"""Ending of the folder of a data set that is not completely fetched yet."""

MANIFEST = ".manifest.json"
"""What a fetched data set consists of; its modification time is when the data set was last used."""

_PREPARED = re.compile(r".+-\d+-[0-9a-f]{24}\.npz")
_UNFINISHED = re.compile(r"\.(.+-\d+-[0-9a-f]{24}\.npz)\.[0-9a-f]{32}(\.tmp)?")  # earlier versions added no .tmp
_FETCHED = re.compile(r".+-[0-9a-f]{24}(\.partial)?")


@dataclass(frozen=True)
class Prepared:
    """What is kept of the images of a data set, train before val before test (of the first fold)."""

    images_NHW: ByteArray
    duplicates_P2: IntArray  # the pairs of images that show the same radiograph


@dataclass(frozen=True)
class Cache:
    """The folder, and how much it may hold."""

    folder: Path
    limit_bytes: float

    @contextlib.contextmanager
    def locked(self, entry: str) -> Iterator[None]:
        """Keep every other process out of `entry` while the block runs, after waiting for the one that is in it.

        Raises:
            InputError: the cache cannot be written.
        """
        with self.writable():
            lock = self._lock(entry)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def marked(self, entry: str) -> Iterator[None]:
        """Keep `entry` from being deleted while the block runs; entered under the lock of the entry."""
        with self.writable():
            mark = self._lock(f"{entry}.{uuid.uuid4().hex}.use")
            mark.acquire()
        try:
            yield
        finally:
            Path(mark.lock_file).unlink(missing_ok=True)
            mark.release()

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """Turn what the operating system says of writing to the cache into an `InputError`."""
        try:
            yield
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def make_room(self, entry: str, num_bytes: int) -> None:
        """Delete entries, least recently used first, until `entry` fits with `num_bytes` more.

        Neither `entry` nor one that a process makes or reads is deleted, so that it may not fit after all.
        """
        with self.locked("eviction"):
            kept = self._kept()
            excess = sum(size for _, size, _ in kept) + num_bytes - self.limit_bytes
            for _, size, path in sorted(kept):
                if excess <= 0:
                    break
                if _entry_of(path) != entry and self._delete(path):
                    excess -= size

    def _kept(self) -> list[tuple[float, int, Path]]:
        """Return when each entry was last used, its size in bytes, and where it lies."""
        kept = []
        for path in self._entries():
            with contextlib.suppress(OSError):  # finished or deleted meanwhile
                if path.is_dir():
                    files = [file.stat() for file in path.rglob("*") if file.is_file()]
                    used = max((file.st_mtime for file in files), default=path.stat().st_mtime)
                    if (path / MANIFEST).is_file():
                        used = (path / MANIFEST).stat().st_mtime
                    kept.append((used, sum(file.st_size for file in files), path))
                else:
                    kept.append((path.stat().st_mtime, path.stat().st_size, path))
        return kept

    def _entries(self) -> list[Path]:
        """Return what `ablate` made in the folder, by the form of the name; there may be other files."""
        files = [
            path
            for path in self.folder.iterdir()
            if (_PREPARED.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)) and path.is_file()
        ]
        fetched = self.folder / FETCHED
        folders = fetched.iterdir() if fetched.is_dir() else ()
        return [*files, *(path for path in folders if _FETCHED.fullmatch(path.name) and path.is_dir())]

    def _delete(self, path: Path) -> bool:
        """Delete an entry and return True; return False if a process makes or reads it, or it cannot be deleted."""
        lock = self._lock(_entry_of(path))
        try:
            with lock.acquire(blocking=False):
                if self._is_marked(_entry_of(path)):
                    return False
                if path.is_dir():
                    for inner in path.iterdir():
                        if inner.name != MANIFEST:  # it goes last: what is left is known, and made whole when needed
                            shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except (Timeout, OSError):
            return False
        return True

    def _is_marked(self, entry: str) -> bool:
        """Whether a process reads `entry`, whose lock is held; removes the marks of killed processes."""
        prefix = f"{entry}."
        for path in (self.folder / LOCKS).iterdir():
            if path.name.startswith(prefix) and path.name.endswith(".use.lock"):
                try:
                    with FileLock(path).acquire(blocking=False):
                        path.unlink(missing_ok=True)
                except Timeout:
                    return True
        return False

    def _lock(self, name: str) -> FileLock:
        folder = self.folder / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")


def open_cache(data_dir: Path | None) -> Cache:
    """Return the cache; `data_dir` is the folder of data sets if it is a local one.

    Raises:
        InputError: `ABLATE_CACHE` lies inside `data_dir`, or `ABLATE_CACHE_GB` is no size.
    """
    folder = Path(os.environ.get("ABLATE_CACHE") or Path.home() / ".cache" / "ablate").expanduser().resolve()
    if data_dir is not None and folder.is_relative_to(data_dir.resolve()):
        raise InputError(
            f"ABLATE_CACHE must lie outside the data folder {data_dir.resolve()}; got {folder}; "
            "set ABLATE_CACHE to another folder"
        )
    given = os.environ.get("ABLATE_CACHE_GB") or str(DEFAULT_LIMIT_GB)
    try:
        limit_gb = float(given)
    except ValueError:
        limit_gb = math.nan
    if not 0 < limit_gb < math.inf:
        raise InputError(
            f"ABLATE_CACHE_GB must be a number of gigabytes greater than 0; got '{given}'; "
            f"set it to how much {folder} may hold, or leave it out for {DEFAULT_LIMIT_GB:g}"
        )
    return Cache(folder, limit_gb * 1e9)


def cache_path(folder: Path, name: str, image_size: int, fingerprint: str) -> Path:
    """Return the file for this content at this image size."""
    key = hashlib.sha256(f"{CACHE_VERSION} {image_size} {fingerprint}".encode()).hexdigest()[:24]
    return folder / f"{name}-{image_size}-{key}.npz"


def read_cache(path: Path, *, num_images: int, image_size: int) -> Prepared | None:
    """Return what lies at `path`, and note that it was used; None if nothing whole does."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            prepared = Prepared(arrays["images_NHW"], arrays["duplicates_P2"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # absent, or damaged on disk: prepared anew and replaced
    whole = prepared.images_NHW.shape == (num_images, image_size, image_size)
    whole &= prepared.images_NHW.dtype == np.uint8 and prepared.duplicates_P2.shape[1:] == (2,)
    if whole:
        touch(path)
    return prepared if whole else None


def write_cache(path: Path, prepared: Prepared) -> None:
    """Publish `prepared` at `path` in one step; raise `InputError` if the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as file:  # what a power cut damages is found by `read_cache`
            np.savez(file, images_NHW=prepared.images_NHW, duplicates_P2=prepared.duplicates_P2)
    except OSError as error:
        raise unwritable(path.parent, error) from error


def unwritable(folder: Path, error: OSError) -> InputError:
    """Return what is said when the cache cannot be written."""
    return InputError(
        f"{folder}: the cache of prepared data must be writable; {error.strerror}; set ABLATE_CACHE to a folder that is"
    )


def touch(path: Path) -> None:
    """Note that an entry is used; one that others own and share counts as used when they say so."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _entry_of(path: Path) -> str:
    """Return the entry that a file or folder of the cache belongs to, also an unfinished one."""
    unfinished = _UNFINISHED.fullmatch(path.name)
    return unfinished.group(1) if unfinished else path.name.removesuffix(PARTIAL)
