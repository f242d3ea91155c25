"""Data sets at an address, each of which every node fetches once.

The folder `fetched/NAME-KEY` of the cache holds a data set as it lay at its address, under its own name, and a
manifest of its files. The key follows from the listing of the address, so that a data set that changed there is
fetched anew. While it is fetched it is called `fetched/NAME-KEY.partial`; files that arrived stay when the process
is killed, and the next process goes on with the rest.

Every file is held against the listing and its checksum as it arrives, see `ablate.datasets.checksums`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from obstore.exceptions import BaseError
from pyarrow import fs

from ablate.datasets.cache import FETCHED, MANIFEST, PARTIAL, Cache, open_cache, touch, unwritable
from ablate.datasets.checksums import (
    Expected,
    Found,
    examine,
    hashes,
    read_manifest,
    size_of,
    write_manifest,
    wrong_files,
)
from ablate.datasets.places import Copy, Place
from ablate.datasets.types import DESCRIPTION
from ablate.errors import InputError
from ablate.store.addresses import Location, explained, label_of, locate, object_client
from ablate.store.errors import StoreAway, reason_of, trouble_of

PATIENCE_S = 900.0
"""How long a request is tried again while the store does not answer; as long as a run waits for its own store."""

ATTEMPTS = 4
"""How often a file is fetched that arrives damaged."""

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
NUM_COPIES = 8  # files that are fetched at once
_REQUEST_BYTES = 16 * 2**20  # a file up to this size is fetched by one request

_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d")  # all but a time-out and too many requests
_COPYING = ".copying"

T = TypeVar("T")
logger = logging.getLogger("ablate")


class _DamagedError(Exception):
    """Files did not arrive as they must be."""


class Remote(Place):
    """An `s3://` or `gs://` address."""

    folder = None

    def __init__(self, address: str) -> None:
        self.address = address
        self.label = label_of(address).rstrip("/")
        self._listings: dict[str, tuple[Expected, ...]] = {}
        self._is_s3 = address.startswith("s3://")
        self._said_away = False

    def folders(self) -> list[str]:
        """Return the names of the folders at the address, sorted; raise `InputError` if it cannot be read."""
        paths = [(info.path.removeprefix(self._root), info.type == fs.FileType.Directory) for info in self._top]
        names = {path.partition("/")[0] for path, is_folder in paths if is_folder or "/" in path}
        return sorted(name for name in names if not name.startswith("."))

    def has_folder(self, name: str) -> bool:
        """Whether anything lies in the folder `name`; raises `InputError` if the address cannot be read."""
        return bool(self.listing(name))

    def has_file(self, path: str) -> bool:
        """Whether a file lies at `path`; raises `InputError` if the address cannot be read."""
        name, _, inner = path.partition("/")
        if inner:
            return any(file.path == inner for file in self.listing(name))
        return any(info.path == self._root + name and info.type == fs.FileType.File for info in self._top)

    def described(self) -> list[str]:
        """Return the folders with `dataset.yaml`; raise `InputError` if the address cannot be read."""
        names = self.folders()

        def ask() -> list[Any]:
            infos: list[Any] = self._location.filesystem.get_file_info(
                [f"{self._root}{n}/{DESCRIPTION}" for n in names]
            )
            return infos

        found = self._patiently(ask) if names else []
        return [name for name, info in zip(names, found, strict=True) if info.type == fs.FileType.File]

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Copy]:
        """Return the files of the data set `name`, fetched where they are not yet.

        They are not deleted from the cache until the block ends.

        Raises:
            InputError: the data set cannot be fetched, or the cache not be written.
        """
        cache, files = open_cache(None), self.listing(name)
        content = [f"{self.label}/{name}", [(file.path, file.size, file.tag) for file in files]]
        entry = f"{name}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}"
        root = cache.folder / FETCHED / entry
        with contextlib.ExitStack() as use:
            with cache.locked(entry):
                known = self._provide(name, files, root, cache)
                use.enter_context(cache.marked(entry))
            touch(root / MANIFEST)

            def restore() -> bool:
                with cache.locked(entry):
                    return self._restore(name, known, root, cache)

            digests = {file.path: file.sha256 for file in known if file.sha256 is not None}
            yield Copy(root, self.label, digests, restore)

    # --- listing ------------------------------------------------------------------------------------

    def listing(self, name: str) -> tuple[Expected, ...]:
        """Return the files in the folder `name` by path; none if there is no such folder.

        Raises:
            InputError: the address cannot be read.
        """
        if name not in self._listings:
            self._listings[name] = self._list(name)
        return self._listings[name]

    @functools.cached_property
    def _location(self) -> Location:
        return self._patiently(lambda: locate(self.address, option="--data"))

    @functools.cached_property
    def _root(self) -> str:
        return f"{self._location.root}/"

    @functools.cached_property
    def _top(self) -> list[Any]:
        # of Google Cloud Storage pyarrow tells only folders that have a marker, not those that files imply
        return self._infos("", recursive=not self._is_s3)

    def _list(self, name: str) -> tuple[Expected, ...]:
        # pyarrow tells files from the markers of folders, and without credentials it is refused at once, while
        # obstore would ask the machine's metadata service for some
        infos = [info for info in self._infos(name, recursive=True) if info.type == fs.FileType.File]
        if not infos:
            return ()
        # an ETag of Google's tells no checksum; the time of the change, which pyarrow tells, serves as well
        tags = self._patiently(lambda: self._tags(name)) if self._is_s3 else {}
        files = []
        for info in infos:
            path = info.path.removeprefix(f"{self._root}{name}/")
            if any(part in ("", ".", "..") for part in path.split("/")):
                raise InputError(f"{self.label}/{name}/{path}: must be the name of a file; rename the object")
            tag = tags.get(f"{name}/{path}") or str(info.mtime_ns)
            files.append(Expected(path, info.size, tag))
        return tuple(sorted(files, key=lambda file: file.path))

    def _infos(self, name: str, *, recursive: bool) -> list[Any]:
        """Return what pyarrow tells of a folder; nothing if it is not there."""
        filesystem, folder = self._location.filesystem, (self._root + name).rstrip("/")
        bucket = folder.partition("/")[0]
        # of S3, only an error tells a bucket that is not there from an empty folder; of Google's it tells the reverse
        selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=not self._is_s3)

        def ask() -> list[Any]:
            try:
                infos: list[Any] = filesystem.get_file_info(selector)
            except FileNotFoundError:
                return []
            if not infos and not self._is_s3 and filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
                raise FileNotFoundError(errno.ENOENT, f"there is no bucket '{bucket}'")
            return infos

        return self._patiently(ask)

    def _tags(self, name: str) -> dict[str, str]:
        """Return the ETags of a folder's objects by path."""
        try:
            client = object_client(self.address)
        except Exception as error:  # what boto3 says of configuration and credentials has no common root
            raise PermissionError(errno.EACCES, f"no credentials ({reason_of(error)})") from error
        try:
            objects = [found for batch in client.list(prefix=name) for found in batch]
        except BaseError as error:
            text = str(error).partition("\n\nDebug source")[0]
            refused = type(error).__name__ != "GenericError" or _REFUSED.search(text)
            raise (PermissionError(errno.EACCES, text) if refused else OSError(text)) from error
        return {found["path"]: (found["e_tag"] or "").removeprefix("W/").strip('"') for found in objects}

    # --- fetching -----------------------------------------------------------------------------------

    def _provide(self, name: str, files: Sequence[Expected], root: Path, cache: Cache) -> tuple[Expected, ...]:
        """Make the data set whole in `root`, whose lock is held, and return its files with their checksums."""
        known = read_manifest(root / MANIFEST)
        if known is not None:
            damaged = [file for file in known if size_of(root / name / file.path) != file.size]
            self._mend(name, damaged, {}, root, cache)
            return known
        work = root if root.is_dir() else root.with_name(root.name + PARTIAL)  # a manifest may be lost by itself
        with cache.writable():
            work.mkdir(parents=True, exist_ok=True)
        arrived = [file for file in files if size_of(work / name / file.path) == file.size]
        cache.make_room(root.name, sum(file.size for file in files) - sum(file.size for file in arrived))
        found = self._mend(name, files, examine(work / name, arrived), work, cache)
        known = tuple(Expected(file.path, file.size, sha256=found[file.path].sha256) for file in files)
        with cache.writable():
            write_manifest(work / MANIFEST, f"{self.label}/{name}", known)
            if work != root:
                work.rename(root)
        return known

    def _restore(self, name: str, known: Sequence[Expected], root: Path, cache: Cache) -> bool:
        """Compare checksums, mend what is damaged, and return whether anything was; the lock is held."""
        damaged = wrong_files(known, examine(root / name, known))
        self._mend(name, damaged, {}, root, cache)
        return bool(damaged)

    def _mend(
        self, name: str, files: Sequence[Expected], found: Mapping[str, Found], work: Path, cache: Cache
    ) -> dict[str, Found]:
        """Fetch those of `files` that are not in `work` as they must be, until all are; return what all hold."""
        now = dict(found)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_DamagedError),
            wait=_pauses(),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            reraise=True,
        )

        def fetch() -> None:
            now.update(self._fetch(name, wrong_files(files, now), work, cache))
            if wrong_files(files, now):
                raise _DamagedError

        try:
            retrying(fetch)
        except _DamagedError as error:
            wrong = wrong_files(files, now)
            first, got = wrong[0], now[wrong[0].path]
            checksum = f"MD5 {first.md5}" if first.md5 else f"SHA-256 {first.sha256}"
            other = f"; so did {len(wrong) - 1} other files" if len(wrong) > 1 else ""
            raise InputError(
                f"{self.label}/{name}/{first.path}: must arrive as it is stored, {first.size} bytes"
                f"{f' with {checksum}' if first.md5 or first.sha256 else ''}; {ATTEMPTS} times it arrived with "
                f"{got.size} bytes, MD5 {got.md5}, SHA-256 {got.sha256}{other}; "
                "upload it again, and check what lies between this machine and the store"
            ) from error
        return now

    def _fetch(self, name: str, files: Sequence[Expected], work: Path, cache: Cache) -> dict[str, Found]:
        """Copy files into the folder `work`/`name`, each in one step, and return what they hold."""
        if not files:
            return {}
        copying = work / _COPYING
        with cache.writable():
            shutil.rmtree(copying, ignore_errors=True)  # of a process that was killed
            copying.mkdir()

        def fetch(number: int, file: Expected) -> Found:
            temporary, target = copying / str(number), work / name / file.path
            self._patiently(lambda: self._copy(f"{name}/{file.path}", temporary, cache))
            with cache.writable():
                found = hashes(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(target)
            return found

        pool = ThreadPoolExecutor(NUM_COPIES)
        try:
            found = list(pool.map(fetch, range(len(files)), files))
        finally:
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(copying, ignore_errors=True)
        return {file.path: holds for file, holds in zip(files, found, strict=True)}

    def _copy(self, path: str, target: Path, cache: Cache) -> None:
        try:
            fs.copy_files(
                f"{self._root}{path}",
                str(target),
                source_filesystem=self._location.filesystem,
                destination_filesystem=fs.LocalFileSystem(),
                chunk_size=_REQUEST_BYTES,
                use_threads=False,
            )
        except FileNotFoundError as error:
            raise InputError(
                f"{self.label}/{path}: was listed and is not there; a data set must not change while it is fetched; "
                "start again when it is complete"
            ) from error
        except OSError as error:
            if error.errno is not None:  # of this machine; what pyarrow says of a store has no number
                raise unwritable(cache.folder, error) from error
            raise

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Return what `operation` returns; it is tried again while the store does not answer."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_heal),
            wait=_pauses(),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            before_sleep=self._say_away,
            reraise=True,
        )
        with explained(self.label, option="--data"):
            try:
                return retrying(operation)
            except (OSError, InputError) as error:
                if not _may_heal(error):
                    raise
                raise StoreAway(
                    f"{self.label}: the data have not answered for {PATIENCE_S / 60:g} minutes "
                    f"({reason_of(error.__cause__ or error)}); run the same command again to go on"
                ) from error

    def _say_away(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None and not self._said_away:
            self._said_away = True
            minutes = PATIENCE_S / 60
            logger.warning("%s does not answer, trying for %g minutes: %s", self.label, minutes, reason_of(error))


def _pauses() -> tenacity.wait.wait_base:
    growing = tenacity.wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
    return growing + tenacity.wait_random(0, FIRST_PAUSE_S)  # so that processes do not ask in step


def _may_heal(error: BaseException) -> bool:
    if isinstance(error, InputError) and error.__cause__ is not None:  # an explained error of the store
        error = error.__cause__
    return isinstance(error, OSError) and trouble_of(error, is_local=False) is StoreAway
