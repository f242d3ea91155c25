"""The file of a run's lock, whose every change names the version that it replaces."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from ablate.store.addresses import object_client
from ablate.store.files import Store
from ablate.store.layout import GUARD, LOCK, probe_file
from ablate.store.local_write import write_local

T = TypeVar("T")

MISSING_PAUSES_S = (0.2, 1.0)
"""A lock that seems to be missing is looked for again: some servers replace an object in two steps."""


Version: TypeAlias = Any
"""What tells one content of the lock's file from another: an ETag or generation, or a hash of the content."""


class Moved(Exception):  # noqa: N818
    """The file is no longer in the version that was expected."""


class LockFile(Protocol):
    """The lock's file: every change names the version it replaces, None for no file.

    Errors of the store are `OSError`s; nothing is tried again here.
    """

    def read(self) -> tuple[bytes, Version] | None:
        """Return the content and its version; None if there is no file."""

    def replace(self, data: bytes, expected: Version) -> Version:
        """Write the file and return its new version; raise `Moved` if it is not in the expected one."""

    def remove(self, expected: Version) -> bool:
        """Delete the file; return False if that cannot be done under a condition; raise `Moved` as `replace` does."""


class _FolderFile:
    """A lock's file on a file system: looking and writing happen under a file lock."""

    def __init__(self, store: Store) -> None:
        self._path = Path(store.path(LOCK))
        self._guard = Path(store.path(GUARD))

    def read(self) -> tuple[bytes, Version] | None:
        try:
            data = self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, data: bytes, expected: Version) -> Version:
        with self._exclusive():
            self._require(expected)
            write_local(self._path, data, durable=False)  # the next heartbeat writes it again
        return hashlib.sha256(data).hexdigest()

    def remove(self, expected: Version) -> bool:
        with self._exclusive():
            self._require(expected)
            self._path.unlink()
        return True

    def _require(self, expected: Version) -> None:
        found = self.read()
        if (found and found[1]) != expected:
            raise Moved

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the file lock where there is one: some network file systems have none."""
        self._guard.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            yield
            return
        import fcntl

        with self._guard.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            yield


class _ObjectFile:
    """A lock's file on an object store that honours conditions, through obstore."""

    def __init__(self, store: Store, *, path: str = LOCK, deletes: bool = False) -> None:
        self._client = object_client(store.address)
        self._path = path
        self.deletes = deletes  # whether deletions are conditional there

    def read(self) -> tuple[bytes, Version] | None:
        import obstore

        with _as_os_errors():
            try:
                found = obstore.get(self._client, self._path)
                return bytes(found.bytes()), _version(found.meta)
            except FileNotFoundError:
                return None

    def replace(self, data: bytes, expected: Version) -> Version:
        import obstore

        with _as_os_errors():
            mode: Any = "create" if expected is None else expected
            return _version(obstore.put(self._client, self._path, data, mode=mode, use_multipart=False))

    def remove(self, expected: Version) -> bool:
        import obstore

        if not self.deletes or "e_tag" not in expected:
            return False
        with _as_os_errors():
            url = obstore.sign(self._client, "DELETE", self._path, timedelta(minutes=1))
        request = urllib.request.Request(url, method="DELETE", headers={"If-Match": expected["e_tag"]})
        try:
            urllib.request.urlopen(request, timeout=20).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 409, 412):
                raise Moved from error
            return False
        return True


def _version(meta: Any) -> Version:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn obstore's exceptions into `Moved` and `OSError`."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise Moved from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise OSError(errno.EACCES, str(error).partition("\n")[0]) from error
    except FileNotFoundError as error:  # obstore's own, which has no number
        if "NoSuchBucket" in str(error):
            raise OSError(errno.EACCES, "there is no such bucket") from error
        raise FileNotFoundError(errno.ENOENT, str(error).partition("\n")[0]) from error
    except exceptions.BaseError as error:
        raise OSError(str(error).partition("\n")[0]) from error


class _PlainFile:
    """A lock's file on an object store that ignores conditions: looking and writing may be interleaved."""

    def __init__(self, store: Store, *, settle_s: float = 0.5) -> None:
        self._store, self._settle_s = store, settle_s

    def read(self) -> tuple[bytes, Version] | None:
        data = read_once(self._store)
        return None if data is None else (data, hashlib.sha256(data).hexdigest())

    def replace(self, data: bytes, expected: Version) -> Version:
        found = self.read()
        if (found and found[1]) != expected:
            raise Moved
        stream = self._store.filesystem.open_output_stream(self._store.path(LOCK), compression=None)
        stream.write(data)
        stream.close()
        if expected is None:  # a second one that started in the same moment may have written too
            time.sleep(self._settle_s)
            found = self.read()
            if found is None or found[0] != data:
                raise Moved
        return hashlib.sha256(data).hexdigest()

    def remove(self, expected: Version) -> bool:
        found = self.read()
        if (found and found[1]) != expected:
            raise Moved
        self._store.filesystem.delete_file(self._store.path(LOCK))
        return True


def read_once(store: Store) -> bytes | None:
    """Return the content of the lock's file, without trying again; None if there is none.

    From an object store it comes in one request. pyarrow would ask for the size first, and cut off what a renewal of
    another length has put there in between.
    """
    if not store.is_local:
        found = _ObjectFile(store).read()
        return None if found is None else found[0]
    try:
        with store.filesystem.open_input_file(store.path(LOCK)) as file:
            data: bytes = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data


def looked_for(read: Callable[[], T | None]) -> T | None:
    """Return what `read` finds, also if that is missing for a moment."""
    for pause_s in MISSING_PAUSES_S:
        found = read()
        if found is not None:
            return found
        time.sleep(pause_s)
    return read()


def condition_problem(store: Store) -> str | None:
    """Return why a store's server cannot keep two drivers apart for sure; None if it can.

    An object store is tried with a small object: a second creation and an update of an old version must be refused.
    """
    return None if store.is_local else _probe(store)[1]


def open_lock_file(store: Store) -> tuple[LockFile, str | None]:
    """Return the strongest kind of file that the store can keep, and why it is best effort, if it is."""
    if store.is_local:
        return _FolderFile(store), None
    deletes, weakness = _probe(store)
    return (_PlainFile(store) if weakness else _ObjectFile(store, deletes=deletes)), weakness


def _probe(store: Store) -> tuple[bool, str | None]:
    """Return whether deletions are conditional on an object store, and what is wrong with its conditional writes."""
    import obstore

    file = _ObjectFile(store, path=probe_file(uuid.uuid4().hex), deletes=True)

    def refused(change: Callable[[], object]) -> bool:
        try:
            change()
        except Moved:
            return True
        return False

    try:
        first = file.replace(b"1", None)
        if not first:
            return False, "the server gives objects no version"
        if not refused(lambda: file.replace(b"2", None)):
            return False, "the server ignores the condition that an object must not exist yet"
        second = file.replace(b"3", first)
        if not refused(lambda: file.replace(b"4", first)):
            return False, "the server ignores the condition that an object must not have changed"
        deletes = refused(lambda: file.remove(first))
        return deletes and file.remove(second), None
    except Moved:
        return False, "the server refuses a conditional write that should succeed"
    except OSError as error:
        return False, f"the server does not take conditional writes: {error.strerror or error}"
    finally:
        with contextlib.suppress(Exception):
            obstore.delete(file._client, file._path)
