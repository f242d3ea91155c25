"""Where do prepared images lie between runs?

One `.npz` per data set, image size and content, under `ABLATE_CACHE` (default `~/.cache/ablate`): a file is
complete or absent, however many processes prepare the same data at once, and nothing in it is unpickled.
Shape suffixes: N images, H = W = image size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablate.datasets.types import BoolArray, ByteArray
from ablate.space import InputError

CACHE_VERSION = 1
"""Raised when decoding, resizing, normalising or the search for duplicates changes."""


@dataclass(frozen=True)
class Prepared:
    """What is kept of the images of a data set, train before val before test."""

    images_NHW: ByteArray
    duplicates_N: BoolArray


def cache_folder(data_dir: Path) -> Path:
    """Return the folder of prepared data; raise `InputError` if it would lie inside `data_dir`."""
    folder = Path(os.environ.get("ABLATE_CACHE") or Path.home() / ".cache" / "ablate").expanduser().resolve()
    if folder.is_relative_to(data_dir.resolve()):
        raise InputError(
            f"ABLATE_CACHE must lie outside the data folder {data_dir.resolve()}; got {folder}; "
            "set ABLATE_CACHE to another folder"
        )
    return folder


def cache_path(folder: Path, name: str, image_size: int, fingerprint: str) -> Path:
    """Return the file for this content at this image size."""
    key = hashlib.sha256(f"{CACHE_VERSION} {image_size} {fingerprint}".encode()).hexdigest()[:24]
    return folder / f"{name}-{image_size}-{key}.npz"


def read_cache(path: Path, *, num_images: int, image_size: int) -> Prepared | None:
    """Return what lies at `path`; None if nothing whole does."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            prepared = Prepared(arrays["images_NHW"], arrays["duplicates_N"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # absent, or damaged on disk: prepared anew and replaced
    whole = prepared.images_NHW.shape == (num_images, image_size, image_size)
    whole &= prepared.images_NHW.dtype == np.uint8 and prepared.duplicates_N.shape == (num_images,)
    return prepared if whole else None


def write_cache(path: Path, prepared: Prepared) -> None:
    """Publish `prepared` at `path` in one step; raise `InputError` if the folder cannot be written."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            np.savez(file, images_NHW=prepared.images_NHW, duplicates_N=prepared.duplicates_N)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path.parent}: the cache of prepared data must be writable; {error.strerror}; "
            "set ABLATE_CACHE to a folder that is"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # published, or never begun
            temporary.unlink()
