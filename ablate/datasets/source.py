"""The place that `--data` names: a folder of this machine, or an address in an object store."""

from __future__ import annotations

import os
from pathlib import Path

from ablate.datasets.places import Folder, Place
from ablate.datasets.remote import Remote
from ablate.store.addresses import absolute, is_remote, locate


def data_folder(data_dir: Path | str | None) -> Path | str:
    """Return where the data sets are: as given, else `ABLATE_DATA`, else `./data`; a path, or an address as text.

    Everything that takes a data folder asks this function. An empty text counts as not given, in the argument and in
    the environment, and `~` is the home folder in both.

    Raises:
        InputError: it looks like an address and is none.
    """
    given = str(data_dir or os.environ.get("ABLATE_DATA") or "data")
    if given.startswith("file://"):
        return Path(locate(given, option="--data").root)
    if is_remote(given):
        return given
    if given.startswith(("s3:", "gs:")):  # an address that went through a path and lost a slash
        locate(given, option="--data")
    return Path(given).expanduser()


def absolute_data_folder(data_dir: Path | str | None) -> str:
    """Return what `data_folder` does as text that means the same on every node and in every working folder.

    Raises:
        InputError: it looks like an address and is none.
    """
    return absolute(data_folder(data_dir))


def place_of(data_dir: Path | str | None) -> Place:
    """Return the place that `data_folder` names, without touching it; raise `InputError` as that does."""
    where = data_folder(data_dir)
    if isinstance(where, Path):
        return Folder(where)
    return Remote(where)
