"""How many groups of images fit one forward pass on a GPU: measured at two sizes, and a line through both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

USABLE = 0.85
"""Of a stage's share of a GPU, what passes are planned to take at most: memory falls into pieces, and sizes vary."""


class Card(Protocol):
    """What holds a stage's tensors, and how much of it the stage may take."""

    @property
    def name(self) -> str:
        """Return the model; cards of one name need equally much memory for the same pass."""

    @property
    def limit_bytes(self) -> int:
        """Return the most that this stage may hold."""

    def held_bytes(self) -> int:
        """Return what this process holds now."""

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Return the most that this process holds while `run` is called, what it held before included."""

    def release(self) -> None:
        """Give back what is kept for later allocations."""


class Gpu:
    """A share of a CUDA device, see `Card`."""

    def __init__(self, device: torch.device, share: float = 1.0) -> None:
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self.name: str = properties.name
        self.limit_bytes = int(properties.total_memory * share)

    def held_bytes(self) -> int:
        """Return the bytes of live tensors."""
        return int(torch.cuda.memory_allocated(self._device))

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Return the most bytes of live tensors while `run` is called; earlier peaks are forgotten."""
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        return int(torch.cuda.max_memory_allocated(self._device))

    def release(self) -> None:
        """Empty the allocator's cache."""
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Need:
    """What a step takes beside what its training holds between two steps."""

    one_bytes: int  # with one group in a pass
    two_bytes: int | None  # with two; None: that was too much


def fitting_groups(need: Need, *, room_bytes: float, most: int) -> int:
    """Return how many groups go through the network in one pass.

    Args:
        need: as measured.
        room_bytes: that a pass may take.
        most: groups of an optimizer step.

    Returns:
        As many as make the fewest passes, none of which takes more than there is room for, by a line through both
        sizes measured, and of these numbers the least; 1 where two are too much.
    """
    if need.two_bytes is None or need.two_bytes > room_bytes:
        return 1
    each = need.two_bytes - need.one_bytes
    fit = most if each <= 0 else min(most, 1 + int((room_bytes - need.one_bytes) // each))
    return math.ceil(most / math.ceil(most / fit))
