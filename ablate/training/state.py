"""Training states as bytes: nested tensors and plain values, saved and read back to the last bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

State: TypeAlias = dict[str, Any]
"""Nested dicts and lists of tensors, numbers, texts and None: all that a loop needs to resume."""

_TENSORS, _TREE = "state.safetensors", "state.json"


def copied(state: State) -> State:
    """Return a state whose tensors are copies on the CPU, so that training may go on while it is packed."""

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)
        if isinstance(value, Mapping):
            return {key: copy(item) for key, item in value.items()}
        return [copy(item) for item in value] if isinstance(value, list | tuple) else value

    found: State = copy(state)
    return found


def pack(state: State) -> dict[str, bytes]:
    """Turn a training state into two files: its tensors as safetensors, the rest as JSON.

    Floats keep every bit. Nothing is pickled.

    Raises:
        TypeError: a value is neither a tensor nor a plain one.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"t{len(tensors)}"
            tensors[name] = value.detach().contiguous()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[key, encode(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [encode(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise TypeError(f"a training state cannot hold {type(value).__name__}")

    tree = encode(state)
    return {_TENSORS: save_tensors(tensors), _TREE: json.dumps(tree).encode()}


def unpack(files: Mapping[str, bytes]) -> State:
    """Return the training state that `pack` turned into files; tuples come back as lists."""
    tensors = load_tensors(files[_TENSORS])

    def decode(node: dict[str, Any]) -> Any:
        ((kind, value),) = node.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "dict":
            return {key: decode(item) for key, item in value}
        return [decode(item) for item in value] if kind == "list" else value

    state: State = decode(json.loads(files[_TREE]))
    return state
