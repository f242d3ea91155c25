"""Addresses of folders and object stores, and the clients that reach what they name.

An address is a folder, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`. Object stores take their credentials from the
usual places (environment, profile, instance role). Other S3 servers are reached by
`s3://bucket/prefix?endpoint_override=http://host:port` (also `scheme`, `region`), or by the environment variables
`AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL`. For Google Cloud Storage `?` may set `endpoint_override`, `scheme` and
`retry_limit_seconds` (default 120).

pyarrow reads and writes data. obstore does what pyarrow cannot: it writes under a condition, and tells checksums.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from ablate.errors import InputError
from ablate.store.errors import reason_of

_QUERIES = {"s3": "endpoint_override, scheme, region", "gs": "endpoint_override, scheme, retry_limit_seconds"}


@dataclass(frozen=True)
class Location:
    """Where an address leads."""

    address: str
    filesystem: Any  # pyarrow.fs.FileSystem
    root: str  # path within `filesystem`

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return not is_remote(self.address)

    @property
    def label(self) -> str:
        """The address as it is printed: without credentials and query."""
        return label_of(self.address)


def is_remote(address: str | Path) -> bool:
    """Whether an address names an object store."""
    return "://" in str(address)


def label_of(address: str) -> str:
    """Return an address as it is printed: without credentials and query."""
    if not is_remote(address):
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def word_of(address: str) -> str:
    """Return an address as a word of a command line, to be copied: without credentials, with its query."""
    _, _, query = address.partition("?")
    return shlex.quote(f"{label_of(address)}?{query}" if query and is_remote(address) else label_of(address))


def locate(address: str, *, option: str = "--out", retry_s: int = 120) -> Location:
    """Return where `address` leads, without touching it.

    Args:
        address: a folder (also `file://`), `s3://` or `gs://` address.
        option: which option of the command line gave it, for messages.
        retry_s: how long the client of Google Cloud Storage itself tries again.

    Raises:
        InputError: `address` is of no known kind.
    """
    if address.startswith("file://"):
        address = urlsplit(address).path
    require_address(address, option)
    if not is_remote(address):
        folder = absolute(address)
        return Location(folder, fs.LocalFileSystem(), folder)
    scheme, uri = address.partition("://")[0], address
    if scheme == "gs" and "retry_limit_seconds=" not in address:  # pyarrow's own default is 15 minutes
        uri += ("&" if "?" in address else "?") + f"retry_limit_seconds={retry_s}"
    label = label_of(address)
    with explained(label, option=option):
        try:
            filesystem, root = fs.FileSystem.from_uri(uri)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{label}: {error}; after '?' an address may set {_QUERIES[scheme]}, joined by '&'"
            ) from error
    return Location(address, filesystem, root.rstrip("/"))


def require_address(address: str, option: str = "--out") -> None:
    """Refuse, without touching anything, what is neither a folder nor the address of an object store."""
    scheme, separator, rest = address.partition("://")
    is_folder = not separator and address.strip() and not re.match(r"(s3|gs|gcs):", address)
    if not is_folder and (scheme not in _QUERIES or not rest.partition("?")[0].strip("/")):
        raise InputError(f"{option} must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; got '{address}'")
    if re.match(r"[^/]*://([^/]*@)?BUCKET(/|\?|$)", address):
        raise InputError(f"{option} must name a bucket of yours in the place of BUCKET; got '{address}'")


def absolute(address: str | Path) -> str:
    """Return an address that means the same whatever the working folder is."""
    if is_remote(address):
        return str(address)
    return os.path.abspath(Path(address).expanduser())  # noqa: PTH100 (resolve() would follow links)


@contextlib.contextmanager
def explained(label: str, *, option: str = "--out") -> Iterator[None]:
    """Turn what the operating system or the object store says of an address into an `InputError`."""
    try:
        yield
    except OSError as error:
        use = "a store" if option == "--out" else "a folder of data"
        cure = f"give {option} a folder that you may {'write to' if option == '--out' else 'read'}"
        if is_remote(label):
            cure = "check the bucket's name, the endpoint, the region and the credentials in the environment"
        raise InputError(f"{label}: cannot be used as {use}: {reason_of(error)}; {cure}") from error


def object_client(address: str, *, timeout_s: int = 20) -> Any:
    """Return obstore's client of an `s3://` or `gs://` address, its paths relative to the address's prefix.

    It tries nothing again by itself. Credentials come from the environment or the instance's role, and from
    everywhere that boto3 looks where boto3 is installed.
    """
    from obstore.store import GCSStore, S3Store

    parts = urlsplit(address)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    user, _, bucket = parts.netloc.rpartition("@")
    endpoint = query.get("endpoint_override")
    if endpoint is not None and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    common: dict[str, Any] = {
        "prefix": parts.path.strip("/"),
        "client_options": {"allow_http": True, "timeout": f"{timeout_s}s", "connect_timeout": "5s"},
        "retry_config": {"max_retries": 0},
    }
    if parts.scheme == "gs":
        config: Any = {}
        if endpoint is not None:
            config["base_url"] = endpoint
        if user == "anonymous":
            config["skip_signature"] = True
        return GCSStore(bucket, config=config, **common)
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    given: dict[str, Any] = {}
    if endpoint is not None:
        given["endpoint"] = endpoint
    if "region" in query:
        given["region"] = query["region"]
    key, _, secret = user.partition(":")
    if secret:
        given |= {"access_key_id": key, "secret_access_key": secret}
    elif "AWS_ACCESS_KEY_ID" not in os.environ and importlib.util.find_spec("boto3") is not None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        given["credential_provider"] = Boto3CredentialProvider()
    return S3Store(bucket, **given, **common)
