"""The files of a fetched data set: what each must hold, what it does hold, and the manifest that remembers both.

Every file is held against the size that the listing of its address tells, and against its checksum: an S3 ETag of 32
hexadecimal digits is the MD5 of the content, unless the store encrypts with keys of its own. In a store that does, the
ETag of no file fits, and only sizes are held against the listing, as for uploads in parts and Google Cloud Storage,
which tell no MD5. https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ablate.store.local_write import write_local

NUM_THREADS = 8  # files that are read at once

_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Expected:
    """A file of a data set as it must be."""

    path: str  # in the data set's folder
    size: int  # bytes
    tag: str = ""  # what the store calls this content
    sha256: str | None = None  # known once it was fetched

    @property
    def md5(self) -> str | None:
        """The checksum that the store tells."""
        return self.tag if _MD5.fullmatch(self.tag) else None


@dataclass(frozen=True)
class Found:
    """What a file on this machine holds."""

    size: int
    md5: str
    sha256: str


def wrong_files(files: Sequence[Expected], found: Mapping[str, Found]) -> list[Expected]:
    """Return the files that are not there, or not as they must be."""
    md5_holds = any(file.path in found and file.md5 == found[file.path].md5 for file in files)
    return [
        file
        for file in files
        if (got := found.get(file.path)) is None
        or got.size != file.size
        or file.sha256 not in (None, got.sha256)
        or (md5_holds and file.md5 not in (None, got.md5))
    ]


def examine(folder: Path, files: Sequence[Expected]) -> dict[str, Found]:
    """Return what those of `files` hold that can be read."""

    def found_in(file: Expected) -> Found | None:
        try:
            return hashes(folder / file.path)
        except OSError:  # absent, or damaged: fetched again
            return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(found_in, files))
    return {file.path: holds for file, holds in zip(files, found, strict=True) if holds is not None}


def hashes(path: Path) -> Found:
    """Read a file once and return its size and checksums; raise `OSError` if it cannot be read."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            md5.update(block)
            sha256.update(block)
            size += len(block)
    return Found(size, md5.hexdigest(), sha256.hexdigest())


def size_of(path: Path) -> int | None:
    """Return a file's size in bytes; None if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def read_manifest(path: Path) -> tuple[Expected, ...] | None:
    """Return the files of a fetched data set; None if it is not whole."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return tuple(Expected(name, fact["size"], sha256=fact["sha256"]) for name, fact in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_manifest(path: Path, address: str, files: Sequence[Expected]) -> None:
    """Write the manifest of the data set that was fetched from `address`, complete or not at all."""
    facts = {file.path: {"size": file.size, "sha256": file.sha256} for file in files}
    text = json.dumps({"address": address, "files": facts}, indent=1)
    write_local(path, text.encode(), durable=False)  # without a whole one the files are examined again
