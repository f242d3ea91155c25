"""Files of weights in repositories of the Hugging Face Hub."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ablate.errors import InputError
from ablate.space import HUB_ADDRESS

HUB_TIMEOUT_S = 5.0
"""How long it is waited for the hub to say what it has."""

_LISTED = 12  # files named in a message before it says how many more there are


class HubFile(NamedTuple):
    """A file in a repository, and where a copy of it lies."""

    path: Path
    source: str  # `OWNER/REPOSITORY/FILE@COMMIT`


def fetch(address: str) -> HubFile:
    """Return a copy of a file of the hub: from the local cache of huggingface_hub, or downloaded into it.

    Args:
        address: `OWNER/REPOSITORY/FILE`, or with `@REVISION`. FILE is its path in the repository, or a pattern with
            `*` and `?`, without regard to case, that fits one file.

    Raises:
        InputError: no file fits, several do, or there is no copy and it cannot be downloaded; with the cure.
    """
    from huggingface_hub import hf_hub_download

    found = HUB_ADDRESS.fullmatch(address)
    assert found is not None  # the field of `pretrain` has this form
    repository, pattern, revision = found["repository"], found["file"], found["revision"]
    names, commit, reason = _listed(repository, revision)
    if not names:
        raise InputError(
            f"pretrain.hf '{address}': the repository is neither in the cache {_cache()} nor can it be reached "
            f"({reason}); give pretrain.file with the weights, or fill that cache on a machine with a network "
            "(HF_HUB_CACHE names another)"
        )
    fitting = [name for name in names if fnmatch.fnmatchcase(name.casefold(), pattern.casefold())]
    if len(fitting) != 1:
        shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        raise InputError(
            f"pretrain.hf '{address}' must fit one file; it fits {', '.join(fitting) or 'none'}; {repository} has "
            f"{shown}"
        )
    try:
        path = Path(hf_hub_download(repository, fitting[0], revision=commit))
    except Exception as error:  # of the network, the server, the disk: in every case there is no copy
        raise InputError(
            f"pretrain.hf '{address}' cannot be downloaded: {reason_of(error)}; give pretrain.file with the weights"
        ) from error
    return HubFile(path, f"{repository}/{fitting[0]}@{commit}")


def _listed(repository: str, revision: str | None) -> tuple[Sequence[str], str, str]:
    """Return the files of a repository and its commit: as the hub says, or the cache; and why the hub does not."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
        return sorted(item.rfilename for item in info.siblings or ()), str(info.sha), ""
    except Exception as error:  # no route, no name, refused, not found, offline mode
        reason = reason_of(error)
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # it is not in the cache
        return (), "", reason
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return names, folder.name, reason


def reason_of(error: Exception) -> str:
    """Return an error of the hub, the network or the disk in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
