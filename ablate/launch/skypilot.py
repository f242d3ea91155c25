"""Runs on SkyPilot: the command that starts them, for SkyPilot itself launches, recovers and takes down."""

from __future__ import annotations

import shlex

from ablate.errors import InputError
from ablate.launch.backend import LaunchRequest
from ablate.space.files import shipped_grids
from ablate.store.addresses import is_remote


def command(request: LaunchRequest) -> str:
    """Return the command line that starts a run as a managed job.

    A search space of the user's travels as its text; the request knows its text, not its path.
    """
    shipped = shipped_grids().get(request.grid.name)
    known = shipped is not None and shipped.read_text(encoding="utf-8") == request.grid_text
    words = [
        *("sky", "jobs", "launch", "-n", shlex.quote(request.file.name)),
        *("--env", shlex.quote(f"ABLATE_OUT={request.out}")),
        *("--env", f"ABLATE_GRID={request.grid.name}" if known else 'ABLATE_GRID="$(cat GRID.yaml)"'),
    ]
    if request.arguments:
        words += ["--env", shlex.quote(f"ABLATE_OPTIONS={shlex.join(request.arguments)}")]
    return " ".join([*words, shlex.quote(str(request.file.path))])


def explain(request: LaunchRequest) -> str:
    """Return in one line why `ablate launch` does not start a SkyPilot task, and what does.

    Raises:
        InputError: marks in the file are still to be edited, or the store is a folder.
    """
    request.file.require_edited()
    if not is_remote(request.out):
        raise InputError(
            "--out must be an s3:// or gs:// address, which outlives the spot machine and is reached from here; "
            f"got the folder {request.out}"
        )
    return (
        f"{request.file.path}: FILE must be a cluster that ablate brings up itself; got a task of SkyPilot, which does "
        f"that itself; type: {command(request)}; then: ablate status --watch {shlex.quote(request.out)}"
    )
