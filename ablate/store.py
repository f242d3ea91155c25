"""Where does a run keep what it made, and is what lies there whole?

A store is a folder, or an `s3://` or `gs://` address; every part of a run reads and writes through it.
A file is complete or absent. An artifact is a folder whose `manifest.json`, written last, holds the size
and SHA-256 of every file; without a valid manifest the artifact does not exist.

What is synchronised: on a local file system every file reaches the disk (fsync) before it takes its final
name, and its folder after, so that a power cut leaves the old content or the new, never an empty file, and
an older state is deleted only after the newer one is on the disk. Heartbeats and stop flags are not
synchronised. On an object store a file appears when its upload is completed; what a killed process had
uploaded until then stays invisible (a bucket rule that aborts incomplete uploads frees its space).

Object stores take their credentials from the usual places (environment, profile, instance role). Other S3
servers are reached by `s3://bucket/prefix?endpoint_override=http://host:port` (also `scheme`, `region`), or
by the environment variables `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL`. For Google Cloud Storage `?` may set
`endpoint_override`, `scheme` and `retry_limit_seconds` (default 120).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from ablate.space import InputError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1

Fact: TypeAlias = str | int | float
Names: TypeAlias = list[str]
_Infos: TypeAlias = list[Any]  # of pyarrow.fs.FileInfo

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_STEP = re.compile(r"step_([0-9]{6,})")


class CorruptArtifact(Exception):  # noqa: N818
    """A file of a published artifact is missing, truncated or altered: the artifact must be made anew."""


class StoreFull(OSError):  # noqa: N818
    """There is no room for a file; nothing of it was published, and what was there before is whole."""


@dataclass(frozen=True)
class Entry:
    """What a manifest says of one file."""

    size: int  # bytes
    sha256: str  # 64 hex digits


@dataclass(frozen=True)
class Manifest:
    """What an artifact holds: its files by name, and the facts that were published with it."""

    files: dict[str, Entry]
    facts: dict[str, Fact] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in self.files.items()}
        data = {"format": MANIFEST_FORMAT, "files": files, "facts": self.facts}
        return json.dumps(data, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read the content of `manifest.json`; raise `ValueError` if it is not one."""
        try:
            value = json.loads(data)
            if value["format"] != MANIFEST_FORMAT:
                raise ValueError(f"manifest format {value['format']!r}, expected {MANIFEST_FORMAT}")
            files = {str(n): Entry(int(e["size"]), str(e["sha256"])) for n, e in value["files"].items()}
            return cls(files, {str(name): fact for name, fact in value["facts"].items()})
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a manifest: {error!r}") from error


def step_name(step: int) -> str:
    """Return the folder name of a step: `step_000800`; names of up to a million steps sort as numbers."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """Return the step of a folder name made by `step_name`; None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


class Store:
    """A folder or an object-store prefix, with paths relative to it, '/'-separated.

    Open it with `Store.open`. It pickles by its address, so a worker on another machine opens its own
    connection; it may be used by several threads at once.
    """

    def __init__(self, address: str, filesystem: Any, root: str) -> None:
        self.address = address
        self.root = root  # path of the store within `filesystem`
        self.filesystem = filesystem  # for readers that take a pyarrow file system themselves
        self.is_local = "://" not in address

    @classmethod
    def open(cls, address: str | Path, *, writable: bool = True) -> Store:
        """Return the store at `address`, created if it is missing and tried with a small file.

        With `writable=False` the store must exist and nothing is written. Raises `InputError` when the
        address cannot be used.
        """
        store = _connect(str(address), retry_s=10)
        with _explained(store.label):
            info = store.filesystem.get_file_info(store.root)
            if info.type == fs.FileType.File:
                raise InputError(f"{store.label}: a store must be a folder, and this is a file; give another folder")
            if writable:
                probe = f".probe.{uuid.uuid4().hex}.tmp"
                store.write(probe, b"")
                store.delete(probe)
            elif info.type == fs.FileType.NotFound:
                raise InputError(f"{store.label}: there is no run here; give the folder that --out named")
        return _connect(store.address) if store.address.startswith("gs://") else store

    @property
    def label(self) -> str:
        """The address as it is printed: without credentials and query."""
        if self.is_local:
            return self.address
        parts = urlsplit(self.address)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def __repr__(self) -> str:
        return f"Store({self.label!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return _connect, (self.address,)

    # --- files --------------------------------------------------------------------------------------

    def path(self, path: str) -> str:
        """Return `path` within `filesystem`; raise `ValueError` if it is not a relative path inside."""
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"a path in the store must be relative, without empty parts or '..'; got {path!r}")
        return "/".join([self.root, *parts])

    def read(self, path: str) -> bytes:
        """Return the content of a file; raise `FileNotFoundError` if there is none."""
        with self.filesystem.open_input_file(self.path(path)) as file:
            data: bytes = file.read()
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write a file: afterwards its content is `data`, and until then what it was before.

        Raises `StoreFull` if there is no room.
        """
        self.put(path, data, durable=True)

    def put(self, path: str, data: bytes, *, durable: bool) -> None:
        """Write a file as `write` does; without `durable` it may be lost when the machine fails."""
        try:
            if self.is_local:
                _replace_local(Path(self.path(path)), data, durable=durable)
            else:
                # the whole content in one write: closing the stream is what makes it appear
                stream = self.filesystem.open_output_stream(self.path(path), compression=None)
                stream.write(data)
                stream.close()
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFull(
                    error.errno,
                    f"{self.label}: no room for {len(data)} bytes of {path} ({os.strerror(error.errno)}); free some "
                    "space there, or give --out another place, and run the same command again to go on",
                ) from error
            raise

    def exists(self, path: str) -> bool:
        """Is there a file or folder of this name? (For an artifact ask `manifest`.)"""
        return bool(self.filesystem.get_file_info(self.path(path)).type != fs.FileType.NotFound)

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
        target = self.path(path)
        for attempt in range(5):
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
            except OSError:  # another process still writes into the folder
                if attempt == 4:
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
                infos = self.filesystem.get_file_info(selector)
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
            if self.manifest(f"{folder}/{step_name(step)}") is not None:
                return step
        return None

    def prune(self, folder: str, keep: int) -> None:
        """Delete the states before step `keep`; raise `FileNotFoundError` if step `keep` itself does not exist."""
        kept = f"{folder}/{step_name(keep)}"
        if self.manifest(kept) is None:
            raise FileNotFoundError(errno.ENOENT, "the step to keep does not exist", f"{self.label}/{kept}")
        for name in self.list(folder):
            step = step_of(name)
            if step is not None and step < keep:
                self.delete(f"{folder}/{name}")


def _replace_local(target: Path, data: bytes, *, durable: bool) -> None:
    """Write `data` beside `target` under a name of its own, then let it take the target's name."""
    temporary = target.parent / f".{target.name[:120]}.{uuid.uuid4().hex}.tmp"
    for attempt in range(5):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(target)
            break
        except FileNotFoundError:  # another process deleted the folder in between
            if attempt == 4:
                raise
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if durable:
        with contextlib.suppress(FileNotFoundError):
            _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


# --- addresses --------------------------------------------------------------------------------------

_QUERIES = {"s3": "endpoint_override, scheme, region", "gs": "endpoint_override, scheme, retry_limit_seconds"}


def _connect(address: str, retry_s: int = 120) -> Store:
    """Return the store at `address` without touching it; gs:// tries again for `retry_s` when it is disturbed."""
    if address.startswith("file://"):
        address = urlsplit(address).path
    scheme, separator, rest = address.partition("://")
    if not separator and address.strip() and not re.match(r"(s3|gs|gcs):", address):
        folder = os.path.abspath(Path(address).expanduser())  # noqa: PTH100 (resolve() would follow links)
        return Store(folder, fs.LocalFileSystem(), folder)
    if scheme not in _QUERIES or not rest.partition("?")[0].strip("/"):
        raise InputError(f"--out must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; got '{address}'")
    uri = address
    if scheme == "gs" and "retry_limit_seconds=" not in address:  # pyarrow's own default is 15 minutes
        uri += ("&" if "?" in address else "?") + f"retry_limit_seconds={retry_s}"
    store = Store(address, None, "")
    with _explained(store.label):
        try:
            store.filesystem, root = fs.FileSystem.from_uri(uri)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{store.label}: {error}; after '?' an address may set {_QUERIES[scheme]}, joined by '&'"
            ) from error
    store.root = root.rstrip("/")
    return store


@contextlib.contextmanager
def _explained(label: str) -> Iterator[None]:
    """Turn what the operating system or the object store says of an address into an `InputError`."""
    try:
        yield
    except OSError as error:
        said = " ".join(str(error.strerror or error).split())
        said = said if len(said) < 400 else f"{said[:400]} ..."
        cure = "give --out a folder that you may write to"
        if "://" in label:
            cure = "check the bucket's name, the endpoint, the region and the credentials in the environment"
        raise InputError(f"{label}: cannot be used as a store: {said}; {cure}") from error


# --- publishing beside the training -----------------------------------------------------------------


class BackgroundPublisher:
    """Publishes artifacts in a thread of its own, at most one behind, so that training goes on meanwhile.

    Use it as a context manager. What went wrong in the background is raised by the next `submit`, `flush`
    or `close`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._pending: Future[None] | None = None

    def submit(self, folder: str, files: Mapping[str, bytes], *, prune: bool = False, **facts: Fact) -> None:
        """Publish `files` in `folder`; wait first if the previous publication is still going on.

        With `prune`, `folder` is named by `step_name`, and once it is published the earlier steps beside
        it are deleted.
        """
        self.flush()
        copies = {name: bytes(data) for name, data in files.items()}
        self._pending = self._pool.submit(self._publish, folder, copies, prune, facts)

    def _publish(self, folder: str, files: dict[str, bytes], prune: bool, facts: dict[str, Fact]) -> None:
        self.store.publish(folder, files, **facts)
        if prune:
            parent, _, name = folder.rpartition("/")
            step = step_of(name)
            if step is None:
                raise ValueError(f"only folders named by step_name can be pruned; got {folder!r}")
            try:
                self.store.prune(parent, keep=step)
            except FileNotFoundError:
                if (self.store.newest(parent) or 0) < step:
                    raise
                # another attempt at the same work is further, and has deleted this step already

    @property
    def idle(self) -> bool:
        """Is nothing being written (or has writing failed, which `flush` raises)?"""
        return self._pending is None or self._pending.done()

    def flush(self) -> None:
        """Wait until all is published; raise what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait until all is published and end the thread; raise what went wrong."""
        try:
            self.flush()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> BackgroundPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"Publishing in the background failed too: {failure}")
