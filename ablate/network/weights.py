"""Weights from files: read, checked against a network, loaded into one."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ablate.errors import InputError
from ablate.network.base import Head, Network
from ablate.network.building import outline
from ablate.space import Pretraining


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pth or .pt file by name; code in a file is never run.

    Raises:
        InputError: the file is missing, damaged, or holds something else than tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(file).expanduser()
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise InputError(f"pretrain.weights must be a .safetensors, .pth or .pt file; got '{file}'")
    try:
        content: object = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except FileNotFoundError as error:
        raise InputError(f"pretrain.weights must be a readable file; '{file}' does not exist") from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"pretrain.weights '{file}' cannot be read: {reason}; give a file of tensors only") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors: dict[str, Tensor] = dict(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(item, Tensor) for item in tensors.values()):
        raise InputError(f"pretrain.weights '{file}' must hold tensors by name (a state_dict); it holds something else")
    return tensors


def check_weights(pretraining: Pretraining) -> None:
    """Refuse `weights` that a pre-training cannot start from; does nothing where there are none.

    Raises:
        InputError: see `read_weights`; or the tensors do not fit the network, see `Network.load_initial`.
    """
    weights = pretraining.fields.weights
    if weights is None:
        return
    head: Head = "noise" if pretraining.fields.method == "ddpm" else "landmarks"
    network, device = outline(pretraining.network, pretraining.image_size, head)
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
