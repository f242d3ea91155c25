"""The one way in which a local file is written: under a temporary name beside it, then renamed.

The file holds its old content or the new one at every moment, also when the process is killed, or, if it is
`durable`, when the machine loses its power.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TEMPORARY_PATTERN = r"\.(.+)\.[0-9a-f]{32}\.tmp"
"""Names of temporary files; group 1 is the first 200 bytes of the name of the file to be written."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yield a new file that takes the name `path` when the block ends, and is deleted if the block raises.

    Args:
        path: its folder must exist.
        durable: whether the content is on the disk before the file takes its name, and the name before this returns.
        mode: permissions of the file, less the process's umask.

    Raises:
        OSError: what the operating system says.
    """
    name = os.fsencode(path.name)[:200].decode(errors="ignore")  # a file's name has 255 bytes at most
    temporary = path.parent / f".{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        with contextlib.suppress(FileNotFoundError):  # another process has deleted the folder
            _sync_folder(path.parent)


def write_local(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write a file of which `data` is the whole content; see `replacing`."""
    with replacing(path, durable=durable, mode=mode) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
