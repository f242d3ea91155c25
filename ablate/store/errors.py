"""Exceptions of a store: an artifact that is damaged, or a store that does not take a run's files."""

from __future__ import annotations

import errno
import re
from typing import ClassVar

from ablate.words import one_line


class CorruptArtifact(Exception):  # noqa: N818
    """A file of a published artifact is missing, truncated or altered: the artifact must be made anew."""


class StoreTrouble(Exception):  # noqa: N818
    """A run cannot go on now because of its store.

    No stage has failed for it: what is stored is whole, and the same command goes on later.
    """

    exit_code: ClassVar[int] = 1
    """Of a command that ends with it."""


class StoreFull(StoreTrouble):
    """There is no room for a file; nothing of it was published, and what was there before is whole."""


class StoreRefused(StoreTrouble):
    """The store answers and refuses: no such bucket, no permission. Waiting does not help."""


class StoreAway(StoreTrouble):
    """The store has not answered for longer than the patience."""

    exit_code = 3


class LockLost(StoreTrouble):
    """Another driver has taken the run over: nothing more may be written."""

    exit_code = 4


TROUBLES: dict[str, type[StoreTrouble]] = {
    trouble.__name__: trouble for trouble in (StoreFull, StoreRefused, StoreAway, LockLost)
}
"""Every kind of trouble by name: how a worker tells the driver which one it was."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_AWAY_NAMES = (
    *("EIO", "EROFS", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    *("ENETRESET", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ESHUTDOWN", "EAGAIN", "EBUSY", "EINTR"),
    *("ENODEV", "ENXIO", "EREMOTEIO", "ENOMEDIUM"),
)
_AWAY = {getattr(errno, name) for name in _AWAY_NAMES if hasattr(errno, name)}
"""A disk or a network file system that may come back: cut off, unplugged, or mounted read-only for a while."""

_SAID_NO = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN|UNRECOGNIZED_CLIENT"
    r"|MISSING_AUTHENTICATION_TOKEN|INVALID_CLIENT_TOKEN_ID|HTTP status 40[01345]|PERMISSION_DENIED|UNAUTHENTICATED"
)
"""What pyarrow's object stores say when they answer and refuse."""


def trouble_of(error: OSError, *, is_local: bool) -> type[StoreTrouble] | None:
    """Return which trouble an error of a file system means; None for an answer, such as that a file is missing."""
    if error.errno in _FULL:
        return StoreFull
    if is_local or error.errno is not None:
        if error.errno in _FORBIDDEN:
            return StoreRefused
        return StoreAway if error.errno in _AWAY else None
    return StoreRefused if _SAID_NO.search(str(error)) else StoreAway


def is_from_store(error: OSError) -> bool:
    """Whether an error while a file was parsed comes from its store, and not from the file's content."""
    return error.errno is not None or re.search(r"AWS Error|google::cloud|curl", str(error)) is not None


def reason_of(error: BaseException) -> str:
    """Return what an exception of a store says as one line of at most 400 characters."""
    return one_line(getattr(error, "strerror", None) or error, 400)
