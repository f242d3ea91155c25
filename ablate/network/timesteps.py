"""Diffusion timesteps as waves, for networks that are told how noised an image is.

Shapes: B batch, E length of the embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimestepEmbedding(nn.Module):
    """Sines, then cosines, of timesteps at wavelengths from 2 pi to 10 000 times that."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.num_waves = length // 2

    def forward(self, timesteps_B: Tensor) -> Tensor:
        """Return (B, E)."""
        steps = torch.arange(self.num_waves, device=timesteps_B.device)
        frequencies = torch.exp(steps * (-math.log(10_000) / (self.num_waves - 1)))
        angles = timesteps_B[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), 1)
