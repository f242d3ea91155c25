"""The backend of each kind of cluster file."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ablate.errors import InputError
from ablate.launch.backend import Backend, LaunchRequest
from ablate.launch.cluster_file import Kind
from ablate.launch.memory import Memory

BACKENDS: dict[Kind, tuple[str, str]] = {
    "ssh": ("ssh", "SshBackend"),
    "aws": ("clouds", "CloudBackend"),
    "gcp": ("clouds", "CloudBackend"),
    "azure": ("clouds", "CloudBackend"),
    "slurm": ("slurm", "SlurmBackend"),
    "kubernetes": ("kubernetes", "KubernetesBackend"),
}
"""The package in this room, and the class in its module `backend`, which is imported when a file asks for it."""


def backend_of(request: LaunchRequest, memory: Memory) -> Backend:
    """Return the backend for a request; raise `InputError` for a kind of file that other tools launch."""
    kind = request.file.kind
    if kind == "skypilot":
        from ablate.launch.skypilot import explain

        raise InputError(explain(request))
    package, name = BACKENDS[kind]
    made = getattr(import_module(f"ablate.launch.{package}.backend"), name)(request, memory)
    return cast(Backend, made)
