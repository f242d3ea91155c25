"""Stateless randomness: every draw of a loop comes from `seeded(device, seed, purpose, step)`.

A training state therefore holds weights, optimizer and counters but no generator, training resumes from it exactly, and
taking a snapshot consumes no random numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part: `seed_of(spec.seed, "order", epoch)`."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """Return a generator on `device` for exactly this purpose; equal parts give equal draws."""
    return torch.Generator(device).manual_seed(seed_of(*parts))


@contextlib.contextmanager
def global_seed(device: torch.device | str, *parts: int | str) -> Iterator[None]:
    """Seed torch's global generators for the length of a `with` block; afterwards they are as they were.

    Initial weights, dropout and stochastic depth draw from them. Those of the CPU and of `device` are seeded.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed_of(*parts))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed_of(*parts))
        yield


def draws_globally(device: torch.device, run: Callable[[], object]) -> bool:
    """Call `run`, and return whether it drew from the global generators of the CPU or of `device`.

    They are left as they were.
    """

    def states() -> list[torch.Tensor]:
        on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        before = states()
        run()
        return not all(map(torch.equal, before, states()))


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
