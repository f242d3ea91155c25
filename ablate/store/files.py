"""A run's files: a folder or an object-store prefix that every part of a run reads and writes through.

A file is complete or absent. Which files there are is defined in `ablate.store.layout`. An artifact is a folder whose
`manifest.json`, written last, holds the size and SHA-256 of every file; without a valid manifest the artifact does
not exist.

What is synchronised: on a local file system every file reaches the disk (fsync) before it takes its final
name, and its folder after, so that a power cut leaves the old content or the new, never an empty file, and
an older state is deleted only after the newer one is on the disk. Heartbeats and stop flags are not
synchronised. On an object store a file appears when its upload is completed; what a killed process had
uploaded until then stays invisible (a bucket rule that aborts incomplete uploads frees its space).

What is tried again: every operation, for as long as the store's patience lasts; see `ablate.store.patience`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from pyarrow import fs

from ablate.errors import InputError
from ablate.store.addresses import explained, is_remote, label_of, locate, word_of
from ablate.store.errors import CorruptArtifact, StoreAway, StoreFull, trouble_of
from ablate.store.layout import step_folder
from ablate.store.local_write import TEMPORARY_PATTERN, write_local
from ablate.store.manifest import MANIFEST, Entry, Fact, Manifest, step_of
from ablate.store.patience import Patience

DEFAULT_PATIENCE_S = 60.0
"""Of commands that read a run; a run itself sets its own."""

Names: TypeAlias = list[str]
_Infos: TypeAlias = list[Any]  # of pyarrow.fs.FileInfo

_TEMPORARY = re.compile(TEMPORARY_PATTERN)


class Fence(Protocol):
    """Lets a change of the store pass, or raises `LockLost`; see `ablate.store.lock`."""

    def __call__(self) -> None:
        """Raise `LockLost` if the run's lock was lost, as far as is known from a moment ago."""

    def confirm(self) -> None:
        """Look at the lock now, and raise as a call does."""


class Store:
    """A folder or an object-store prefix, with paths relative to it, '/'-separated.

    Open it with `Store.open`, or with `Store.connect` where it is known to work. It pickles by its address, so a
    worker on another machine opens its own connection; it may be used by several threads at once. Every operation
    is tried again while the store is away, see `Patience`, and raises a `StoreTrouble` in the end.
    """

    def __init__(self, address: str, filesystem: Any, root: str, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        self.address = address
        self.root = root  # path of the store within `filesystem`
        self.filesystem = filesystem  # for readers that take a pyarrow file system themselves: see `patience`
        self.is_local = not is_remote(address)
        self.patience = Patience(patience_s, self.label, is_local=self.is_local)
        self.fence: Fence | None = None
        """Stands before every change where a run's lock is held."""

    @classmethod
    def connect(cls, address: str | Path, *, patience_s: float = DEFAULT_PATIENCE_S, retry_s: int = 120) -> Store:
        """Return the store at `address` without touching it; raise `InputError` if that is no address."""
        place = locate(str(address), retry_s=retry_s)
        return cls(place.address, place.filesystem, place.root, patience_s)

    @classmethod
    def open(cls, address: str | Path, *, writable: bool = True, patience_s: float = DEFAULT_PATIENCE_S) -> Store:
        """Return the store at `address`, created if it is missing and tried once with a small file.

        With `writable=False` the store must exist and nothing is written. Raises `InputError` when the
        address cannot be used.
        """
        store = cls.connect(address, patience_s=patience_s, retry_s=10)
        with explained(store.label):
            info = store.filesystem.get_file_info(store.root)
            if info.type == fs.FileType.File:
                raise InputError(f"{store.label}: a store must be a folder, and this is a file; give another folder")
            if writable:
                if store.is_local:
                    Path(store.root).mkdir(parents=True, exist_ok=True)
                probe = f".probe.{uuid.uuid4().hex}.tmp"
                store._put(probe, b"", durable=True)
                store.filesystem.delete_file(store.path(probe))
            elif info.type == fs.FileType.NotFound:
                raise InputError(f"{store.label}: there is no run here; give the folder that --out named")
        return cls.connect(address, patience_s=patience_s) if store.address.startswith("gs://") else store

    @property
    def label(self) -> str:
        """The address as it is printed: without credentials and query."""
        return label_of(self.address)

    @property
    def word(self) -> str:
        """The address as a word of a command line, to be copied: without credentials, with its query."""
        return word_of(self.address)

    def __repr__(self) -> str:
        return f"Store({self.label!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __reduce__(self) -> tuple[Callable[[str, float], Store], tuple[str, float]]:
        return _connect, (self.address, self.patience.seconds)

    # --- files --------------------------------------------------------------------------------------

    def path(self, path: str) -> str:
        """Return `path` within `filesystem`; raise `ValueError` if it is not a relative path inside."""
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"a path in the store must be relative, without empty parts or '..'; got {path!r}")
        return "/".join([self.root, *parts])

    def read(self, path: str) -> bytes:
        """Return the content of a file; raise `FileNotFoundError` if there is none."""
        target = self.path(path)

        def read() -> bytes:
            with self.filesystem.open_input_file(target) as file:
                data: bytes = file.read()
            return data

        return self.patience(read)

    def write(self, path: str, data: bytes) -> None:
        """Write a file: afterwards its content is `data`, and until then what it was before.

        Raises `StoreFull` if there is no room.
        """
        self.put(path, data, durable=True)

    def put(self, path: str, data: bytes, *, durable: bool) -> None:
        """Write a file as `write` does; without `durable` it may be lost when the machine fails.

        What is not durable are control files, such as a request to stop: the fence does not hold them up.
        """
        self.path(path)  # refuses a path outside the store
        self.patience(lambda: self._put(path, data, durable=durable), writes=True)

    def try_put(self, path: str, data: bytes) -> bool:
        """Write a file that may be lost, once and without patience; return whether the store took it."""
        try:
            self._put(path, data, durable=False)
        except StoreFull:
            return False
        except OSError as error:
            if trouble_of(error, is_local=self.is_local) is StoreAway:
                self.patience.note(answered=False, writes=True)
            return False
        self.patience.note(answered=True, writes=True)
        return True

    def _put(self, path: str, data: bytes, *, durable: bool) -> None:
        if durable:
            self._check_fence()
        try:
            if self.is_local:
                _write_local(Path(self.root), Path(self.path(path)), data, durable=durable)
            else:
                # the whole content in one write: closing the stream is what makes it appear
                stream = self.filesystem.open_output_stream(self.path(path), compression=None)
                stream.write(data)
                stream.close()
        except OSError as error:
            if error.errno is not None and trouble_of(error, is_local=self.is_local) is StoreFull:
                raise StoreFull(
                    f"{self.label}: no room for {len(data)} bytes of {path} ({os.strerror(error.errno)}); free some "
                    "space there, or give --out another place, and run the same command again to go on"
                ) from error
            raise

    def _check_fence(self) -> None:
        if self.fence is not None:
            self.fence()

    def confirm_lock(self) -> None:
        """Raise `LockLost` unless the run's lock is still held; for writes that others count on."""
        if self.fence is not None:
            self.patience(self.fence.confirm)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder of this name; for an artifact ask `manifest`."""
        target = self.path(path)
        return bool(self.patience(lambda: self.filesystem.get_file_info(target)).type != fs.FileType.NotFound)

    def list(self, folder: str) -> Names:
        """Return the names of files and folders in `folder`, sorted, without hidden ones; [] if it is absent."""
        if self.address.startswith("gs://"):  # pyarrow does not list a folder that has no object of its own there
            start = len(self.path(folder)) + 1
            names = {info.path[start:].partition("/")[0] for info in self._infos(folder, recursive=True)}
        else:
            names = {info.base_name for info in self._infos(folder)}
        return sorted(name for name in names if name[0] != ".")

    def delete(self, path: str) -> None:
        """Delete a file, or a folder and all in it; what is missing is fine.

        A folder's manifest goes first, so that no half artifact can be seen.
        """
        self.path(path)  # refuses a path outside the store
        self.patience(lambda: self._delete(path), writes=True)

    def _delete(self, path: str) -> None:
        target = self.path(path)
        for attempt in range(5):
            self._check_fence()
            try:
                kind = self.filesystem.get_file_info(target).type
                if kind == fs.FileType.Directory:
                    with contextlib.suppress(FileNotFoundError):
                        self.filesystem.delete_file(f"{target}/{MANIFEST}")
                    self.filesystem.delete_dir(target)
                elif kind != fs.FileType.NotFound:
                    self.filesystem.delete_file(target)
                return
            except FileNotFoundError:  # another process deletes the same
                continue
            except OSError as error:  # another process still writes into the folder
                if attempt == 4 or trouble_of(error, is_local=self.is_local) is not None:
                    raise
                time.sleep(0.05)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return every file under `folder`, recursively, with its size in bytes, without hidden ones."""
        prefix = len(self.root) + 1
        found = {info.path[prefix:]: info.size for info in self._infos(folder, recursive=True, files_only=True)}
        return {path: found[path] for path in sorted(found) if not any(part[0] == "." for part in path.split("/"))}

    def _infos(self, folder: str, *, recursive: bool = False, files_only: bool = False) -> _Infos:
        selector = fs.FileSelector(self.path(folder), allow_not_found=True, recursive=recursive)
        for _ in range(5):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # a folder vanished during the listing
                infos = self.patience(lambda: self.filesystem.get_file_info(selector))
                kinds = (fs.FileType.File,) if files_only else (fs.FileType.File, fs.FileType.Directory)
                return [info for info in infos if info.type in kinds]
        return []

    def clean_temporaries(self, older_than_s: float = 3600.0) -> Names:
        """Delete the temporary files that killed writers left more than `older_than_s` ago; return their paths."""
        prefix, now = len(self.root) + 1, time.time()
        stale = [
            info.path[prefix:]
            for info in self._infos("", recursive=True, files_only=True)
            if _TEMPORARY.fullmatch(info.base_name) and now - info.mtime.timestamp() > older_than_s
        ]
        for path in stale:
            self.delete(path)
        return sorted(stale)

    # --- artifacts ----------------------------------------------------------------------------------

    def publish(self, folder: str, files: Mapping[str, bytes], **facts: Fact) -> None:
        """Write an artifact: the files first, then the manifest with their sizes, hashes and `facts`.

        A folder that was published before with other content ceases to exist before its first file
        changes. Two attempts may publish the same folder at once: equal content is harmless, and a mixture
        of different content is found by `load`. Raises `StoreFull` if there is no room.
        """
        for name in files:
            if not name or name[0] == "." or "/" in name or name == MANIFEST:
                raise ValueError(f"an artifact's file must have a plain visible name; got {name!r}")
        entries = {name: Entry(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
        before = self._read_manifest(folder)
        if before is not None and before.files != entries:
            self.delete(f"{folder}/{MANIFEST}")
        for name, data in files.items():
            self.write(f"{folder}/{name}", data)
        self.write(f"{folder}/{MANIFEST}", Manifest(entries, dict(facts)).to_bytes())
        for name in set(before.files if before else ()) - set(entries):
            self.delete(f"{folder}/{name}")

    def _read_manifest(self, folder: str) -> Manifest | None:
        try:
            return Manifest.from_bytes(self.read(f"{folder}/{MANIFEST}"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def manifest(self, folder: str) -> Manifest | None:
        """Return the manifest of the artifact in `folder`; None if it does not exist.

        It does not exist when its manifest is missing or unreadable, or names a file that is missing or of
        another size. The content is verified by `load`.
        """
        manifest = self._read_manifest(folder)
        if manifest is None:
            return None
        sizes = {info.base_name: info.size for info in self._infos(folder) if info.type == fs.FileType.File}
        whole = all(sizes.get(name) == entry.size for name, entry in manifest.files.items())
        return manifest if whole else None

    def load(self, folder: str) -> dict[str, bytes]:
        """Return the verified files of the artifact in `folder` by name.

        Raises `FileNotFoundError` if there is no readable manifest, and `CorruptArtifact` if a file is not
        what the manifest says.
        """
        manifest = self._read_manifest(folder)
        if manifest is None:
            raise FileNotFoundError(errno.ENOENT, "no artifact with a readable manifest", f"{self.label}/{folder}")
        files: dict[str, bytes] = {}
        for name, entry in manifest.files.items():
            where = f"{self.label}/{folder}/{name}"
            try:
                data = self.read(f"{folder}/{name}")
            except FileNotFoundError as error:
                raise CorruptArtifact(f"{where}: expected {entry.size} bytes, found no such file") from error
            if len(data) != entry.size:
                raise CorruptArtifact(f"{where}: expected {entry.size} bytes, found {len(data)}")
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 != entry.sha256:
                raise CorruptArtifact(f"{where}: expected SHA-256 {entry.sha256}, found {sha256}")
            files[name] = data
        return files

    def newest(self, folder: str) -> int | None:
        """Return the highest step whose artifact `folder/step_N` exists; None if there is none."""
        steps = (step for step in map(step_of, self.list(folder)) if step is not None)
        for step in sorted(steps, reverse=True):
            if self.manifest(step_folder(folder, step)) is not None:
                return step
        return None

    def prune(self, folder: str, keep: int) -> None:
        """Delete the states before step `keep`; raise `FileNotFoundError` if step `keep` itself does not exist."""
        kept = step_folder(folder, keep)
        if self.manifest(kept) is None:
            raise FileNotFoundError(errno.ENOENT, "the step to keep does not exist", f"{self.label}/{kept}")
        for name in self.list(folder):
            step = step_of(name)
            if step is not None and step < keep:
                self.delete(f"{folder}/{name}")


def _connect(address: str, patience_s: float) -> Store:
    return Store.connect(address, patience_s=patience_s)


def _write_local(root: Path, target: Path, data: bytes, *, durable: bool) -> None:
    """Write a file of the store in the folder `root`, in folders that are made where they are missing."""
    for attempt in range(5):
        if not root.is_dir():  # its disk was unplugged or unmounted: nothing may be written in its place
            raise OSError(errno.ENODEV, "the store's folder is gone", str(root))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_local(target, data, durable=durable)
            return
        except FileNotFoundError:  # another process deleted the folder in between
            if attempt == 4:
                raise
