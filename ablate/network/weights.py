"""Weights from files: read, checked against a network, loaded into one."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ablate.errors import InputError
from ablate.network.base import Head, Network
from ablate.network.building import outline
from ablate.space import Pretraining, WholeNetwork

CONTAINERS = (
    "teacher",  # DINO evaluates its teacher
    "ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "module",
    "student",
)
"""Keys under which training code puts a network's tensors beside other things, the one to prefer first."""


class WeightsFile(NamedTuple):
    """The tensors of a file."""

    tensors: dict[str, Tensor]  # in the file's order
    container: str = ""  # the keys they were under, such as `teacher`
    beside: tuple[str, ...] = ()  # further containers, which are not used
    is_ordered: bool = False  # the order is the network's own


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, see `read_file`."""
    return read_file(file).tensors


def read_file(file: str | Path, field: str = "weights") -> WeightsFile:
    """Read the tensors of a .safetensors, .pth or .pt file, out of one of `CONTAINERS` where they are in one.

    Code in a file is never run.

    Args:
        file: its path.
        field: the field of `pretrain` that names it, for messages.

    Raises:
        InputError: the file is missing, damaged, or holds something else than tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(file).expanduser()
    is_ordered = path.suffix in (".pth", ".pt")
    if path.suffix != ".safetensors" and not is_ordered:
        raise InputError(f"pretrain.{field} must be a .safetensors, .pth or .pt file; got '{file}'")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # many training scripts keep their options
            content: object = _load(path) if is_ordered else load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"pretrain.{field} must be a readable file; '{file}' does not exist") from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"pretrain.{field} '{file}' cannot be read: {reason}; give a file of tensors only") from error
    opened: list[str] = []
    beside: list[str] = []
    while isinstance(content, Mapping):
        inner = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        opened.append(inner[0])
        beside += inner[1:]
        content = content[inner[0]]
    tensors: dict[str, Tensor] = dict(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(item, Tensor) for item in tensors.values()):
        raise InputError(
            f"pretrain.{field} '{file}' must hold tensors by name (a state_dict), by themselves or in one of "
            f"{', '.join(CONTAINERS)}; it holds something else"
        )
    return WeightsFile(tensors, ".".join(opened), tuple(beside), is_ordered)


def _load(path: Path) -> object:
    """Load a file of torch's; what is not used, such as an optimizer's state, never comes into memory."""
    return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def check_weights(pretraining: Pretraining) -> None:
    """Refuse `weights` that a pre-training cannot start from; does nothing where there are none.

    Raises:
        InputError: see `read_weights`; or the tensors do not fit the network, see `Network.load_initial`.
    """
    weights = pretraining.fields.weights
    if weights is None:
        return
    head: Head = "noise" if isinstance(pretraining.fields, WholeNetwork) else "landmarks"
    network, device = outline(pretraining.trained_network, pretraining.image_size, head)
    tensors = {name: tensor.to(device) for name, tensor in read_weights(weights).items()}
    load_weights(network, tensors, weights)


def load_weights(network: Network, tensors: Mapping[str, Tensor], file: str) -> None:
    """Load the tensors of `file` into `network` as its initial weights, see `Network.load_initial`.

    Args:
        network: whose weights are replaced.
        tensors: by name, on the network's device.
        file: where they come from, for messages.

    Raises:
        InputError: they do not fit the network.
    """
    try:
        network.load_initial(tensors)
    except ValueError as error:
        raise InputError(
            f"pretrain.weights '{file}': {error}; give a snapshot of a network with the same `network` fields"
        ) from error
