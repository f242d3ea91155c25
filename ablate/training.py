"""What do the two training loops, pre-training and fine-tuning, have in common?

Randomness is stateless: every draw of a loop comes from `seeded(device, seed, purpose, step)`. A training
state therefore holds weights, optimizer and counters but no generator, going on from it is exact, and
taking a snapshot draws nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

State: TypeAlias = dict[str, Any]
"""Nested dicts and lists of tensors, numbers, texts and None: all that a loop needs to go on."""


@dataclass(frozen=True)
class Progress:
    """Where a running stage is."""

    phase: str  # pretrain, finetune or evaluate
    step: int  # steps done: optimizer steps in pre-training, epochs in fine-tuning, images in evaluation
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    published: int | None = None  # step of a snapshot that has just become available
    saved: int | None = None  # optimizer steps in the newest training state that the store holds


Report: TypeAlias = Callable[[Progress], bool]
"""Called often; returns True to ask the loop to save its state and stop."""


def silent(progress: Progress) -> bool:
    """Report to nobody and never ask to stop."""
    return False


class Checkpoint(Protocol):
    """Where a loop keeps its state, and how often."""

    def due(self) -> bool:
        """Return whether it is time to save; asked after every step, or every epoch of fine-tuning."""

    def save(self, step: int, state: State) -> None:
        """Save the state after `step`. Tensors in it are the loop's own: whoever goes on later copies them first."""


class Interrupted(Exception):  # noqa: N818
    """The loop was asked to stop and has saved its state."""


class Diverged(Exception):  # noqa: N818
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class CurvePoint:
    """One value of a learning curve."""

    step: int
    epoch: int | None
    metric: str
    value: float
    seconds: float  # of training so far, all attempts together


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part: `seed_of(spec.seed, "order", epoch)`."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """Return a generator on `device` for exactly this purpose; equal parts give equal draws."""
    return torch.Generator(device).manual_seed(seed_of(*parts))


@contextlib.contextmanager
def global_seed(device: torch.device | str, *parts: int | str) -> Iterator[None]:
    """Seed torch's global generators, which initial weights, dropout and stochastic depth draw from, for a while.

    Seeds those of the CPU and of `device`; afterwards they are as they were.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed_of(*parts))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed_of(*parts))
        yield


def stream_order(num_images: int, seed: int, start: int, count: int) -> np.ndarray:
    """Return `count` image indices from position `start` of an endless stream of shuffled passes.

    Every pass holds each image once, and the order of a pass depends on `seed` and its number alone.
    """
    positions = np.arange(start, start + count)
    passes, offsets = np.divmod(positions, num_images)
    indices = np.empty(count, dtype=np.int64)
    for number in np.unique(passes):
        order = np.random.default_rng(seed_of(seed, "order", int(number))).permutation(num_images)
        here = passes == number
        indices[here] = order[offsets[here]]
    return indices


def micro_batches(num_images: int, batch_size: int) -> Iterator[tuple[slice, float]]:
    """Split one optimizer step's images into forward passes, each with its share of the step's images.

    A loss that is a mean over images, times the share, summed over the passes, is the mean over the step's
    images, also when the last pass is smaller.
    """
    for start in range(0, num_images, batch_size):
        part = slice(start, min(start + batch_size, num_images))
        yield part, (part.stop - part.start) / num_images


# --- training states as bytes -----------------------------------------------------------------------

_TENSORS, _TREE = "state.safetensors", "state.json"


def pack(state: State) -> dict[str, bytes]:
    """Turn a training state into two files: its tensors as safetensors, the rest as JSON.

    Tensors are copied to the CPU at once, so training may go on while the bytes are written. Floats keep
    every bit. Nothing is pickled.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"t{len(tensors)}"
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
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


def curve_state(curve: Sequence[CurvePoint]) -> list[list[Any]]:
    """Return a learning curve as plain values for a training state."""
    return [[point.step, point.epoch, point.metric, point.value, point.seconds] for point in curve]


def curve_of(rows: Sequence[Sequence[Any]]) -> list[CurvePoint]:
    """Return the learning curve that `curve_state` turned into plain values."""
    return [CurvePoint(*row) for row in rows]


class Stopwatch:
    """Seconds of training over all attempts: goes on from the seconds a saved state has."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._start = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far, those before this attempt included."""
        return self._before + time.monotonic() - self._start
