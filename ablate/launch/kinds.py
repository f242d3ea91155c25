"""Which backend launches which kind of cluster file."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ablate.errors import InputError
from ablate.launch.backend import Backend, LaunchRequest
from ablate.launch.cluster_file import Kind
from ablate.launch.memory import Memory

BACKENDS: dict[Kind, tuple[str, str]] = {
    "ssh": ("machines", "Machines"),
    "aws": ("cloud", "Cloud"),
    "gcp": ("cloud", "Cloud"),
    "azure": ("cloud", "Cloud"),
    "slurm": ("slurm", "SlurmBackend"),
    "kubernetes": ("kubernetes", "KubernetesBackend"),
}
"""The module in this room and the class, by the kind of file; a module is imported when a file asks for it."""


def backend_of(request: LaunchRequest, memory: Memory) -> Backend:
    """Return the backend for a request; raise `InputError` for a kind of file that other tools launch."""
    kind = request.file.kind
    if kind == "skypilot":
        from ablate.launch.skypilot import explain

        raise InputError(explain(request))
    module, name = BACKENDS[kind]
    made = getattr(import_module(f"ablate.launch.{module}"), name)(request, memory)
    return cast(Backend, made)
