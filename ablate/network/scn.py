"""The spatial-configuration network: where a landmark may be by its looks, times where it may be by the others.

Payer, Stern, Bischof, Urschler 2019, "Integrating spatial configuration into heatmap regression based CNNs for landmark
localization", Medical Image Analysis 54. Shapes: B batch, C channels, H and W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.errors import InputError
from ablate.network.base import Denoiser, Head
from ablate.network.timesteps import TimestepEmbedding
from ablate.space import NetworkSpec

SLOPE = 0.1  # of every leaky ReLU below zero
GROUP = 8  # channels of each group of the spatial configuration's norms, or fewer where that does not divide them
WAVES, EMBEDDING = 64, 128  # lengths of a timestep as waves, and of the hidden layer behind them


class Scn(Denoiser):
    """Local appearance times spatial configuration; images are mapped to [-1, 1], or stay in [0, 1].

    Local appearance makes one map of each landmark from a pyramid of levels, each of half the resolution of the one
    above it: two convolutions with dropout between them on the way down, linear upsampling, addition and a convolution
    on the way up. Spatial configuration takes these maps, averaged over `spatial_scale` x `spatial_scale` pixels,
    through four wide convolutions without seeing the image; its tanh, upsampled bicubically, is multiplied with them.

    Self-supervision trains the levels; its features are what every level ends with, so that each of them is trained,
    averaged over each quarter of the image, because the mean of a whole map is what instance norm takes away. With the
    noise head local appearance predicts one map by itself, and fine-tuning then starts from its levels: the convolution
    to the maps and the spatial configuration, whose widths depend on the number of landmarks, are the output layer. A
    denoiser's levels are shifted by the timestep, by nothing at timestep 0; fine-tuning and self-supervision run
    without a timestep, which is the same.

    Deviations from the paper, which has no normalisation: instance norm behind the convolutions of the levels and group
    norm in the spatial configuration, with which AdamW learns in a few hundred steps; a convolution after the addition
    instead of before it; levels of different widths if asked for; a spatial configuration that starts from a bias of 1,
    so that local appearance alone decides at first.
    """

    _output = ("net.maps.", "net.spatial.")
    _encoder = ("net.levels.",)

    net: Layers

    def __init__(self, spec: NetworkSpec, image_size: int, head: Head) -> None:
        super().__init__(spec, image_size, head)
        self.net = Layers(spec)
        self.feature_dim = 4 * sum(spec.channels)
        self.stride = 2 ** (len(spec.channels) - 1)

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return maps (B, K, H, W), without a timestep: `timesteps_B` is ignored."""
        return self.denoise(self.scale(images_B1HW))

    def denoise(self, scaled_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Run the network on what is already scaled: (B, K, H, W); without timesteps as at timestep 0."""
        return self._computed(lambda: self.net(scaled_B1HW, timesteps_B), scaled_B1HW)

    def feature_map(self, images_B1HW: Tensor) -> Tensor:
        """Return what every level ends with, the finest first, averaged over each quarter of the image: (B, C, 1, 1).

        The quarters of a channel stand one after the other, row by row, so that C is four times the levels' channels.
        """
        levels = self.net.levels(self.scale(images_B1HW))
        return torch.cat([F.adaptive_avg_pool2d(level, 2).flatten(1) for level in levels], 1)[:, :, None, None]

    def keep_encoder_only(self) -> None:
        """Drop the maps, the spatial configuration, and what embeds the timestep."""
        self.net.time = self.net.maps = self.net.spatial = nn.Identity()

    def replace_output(self, num_outputs: int) -> None:
        """Put a new convolution to the maps, and under the landmarks head a new spatial configuration, into place."""
        self.net.maps = nn.Conv2d(self.spec.channels[0], num_outputs, 3, padding=1)
        self.net.spatial = SpatialConfiguration(self.spec, num_outputs) if self.head == "landmarks" else nn.Identity()

    @classmethod
    def check(cls, spec: NetworkSpec) -> None:
        """Refuse a kernel without a middle."""
        if spec.spatial_kernel % 2 == 0:
            raise InputError(
                f"network.spatial_kernel must be odd, so that a kernel has a middle; got {spec.spatial_kernel}; the "
                f"nearest are {spec.spatial_kernel - 1} and {spec.spatial_kernel + 1}"
            )


class Layers(nn.Module):
    """The layers of `Scn`."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.levels = Levels(spec.channels, spec.dropout)
        self.time: nn.Module = TimestepShifts(spec.channels)
        self.maps: nn.Module = nn.Identity()
        self.spatial: nn.Module = nn.Identity()

    def forward(self, scaled_B1HW: Tensor, timesteps_B: Tensor | None) -> Tensor:
        """Return maps (B, K, H, W)."""
        shifts = None if timesteps_B is None else self.time(timesteps_B)
        maps_BKHW: Tensor = self.maps(self.levels(scaled_B1HW, shifts)[0])
        if not isinstance(self.spatial, SpatialConfiguration):
            return maps_BKHW
        factors_BKHW: Tensor = self.spatial(maps_BKHW)
        return maps_BKHW.float() * factors_BKHW.float()  # a peak is read to parts of a pixel


class Levels(nn.Module):
    """Local appearance but for its maps: a pyramid of levels, down and up again."""

    def __init__(self, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        above, below = [1, *channels[:-1]], channels[1:]
        self.enter = nn.ModuleList(Layer(inner, outer) for inner, outer in zip(above, channels, strict=True))
        self.dropout = nn.Dropout(dropout)
        self.down = nn.ModuleList(Layer(width, width) for width in channels)
        self.lift = nn.ModuleList(  # narrows what is added to the level above
            nn.Conv2d(inner, outer, 1, bias=False) for outer, inner in zip(channels, below, strict=False)
        )
        self.up = nn.ModuleList(Layer(width, width) for width in channels[:-1])

    def forward(self, scaled_B1HW: Tensor, shifts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return what each level ends with, the finest first.

        Args:
            scaled_B1HW: images in [-1, 1], noised or not.
            shifts: of each level, (B, C, 1, 1), if any.
        """
        kept: list[Tensor] = []
        hidden = scaled_B1HW
        for level, (enter, down) in enumerate(zip(self.enter, self.down, strict=True)):
            hidden = F.avg_pool2d(hidden, 2) if level else hidden
            hidden = enter(hidden) if shifts is None else enter(hidden) + shifts[level]
            hidden = down(self.dropout(hidden))
            kept.append(hidden)
        for level in range(len(self.up) - 1, -1, -1):
            narrowed = self.lift[level](kept[level + 1])
            raised = F.interpolate(narrowed, scale_factor=2.0, mode="bilinear", align_corners=False)
            kept[level] = self.up[level](kept[level] + raised)
        return kept


class Layer(nn.Sequential):
    """A 3x3 convolution, instance norm and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(out_channels, out_channels),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class TimestepShifts(nn.Module):
    """What timesteps add to each level: a small network without biases of a timestep's waves less those of timestep 0.

    Timestep 0, an image without noise, therefore adds nothing.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.waves = TimestepEmbedding(WAVES)
        self.layers = nn.Sequential(
            nn.Linear(WAVES, EMBEDDING, bias=False), nn.SiLU(), nn.Linear(EMBEDDING, sum(channels), bias=False)
        )

    def forward(self, timesteps_B: Tensor) -> Sequence[Tensor]:
        """Return the shift of each level, (B, C, 1, 1)."""
        waves = self.waves(timesteps_B) - self.waves(torch.zeros_like(timesteps_B))
        return torch.split(self.layers(waves)[:, :, None, None], self.channels, 1)


class SpatialConfiguration(nn.Module):
    """Where each landmark may be, judged by the maps of all: (B, K, H, W) to factors from -1 to 1 of the same shape."""

    def __init__(self, spec: NetworkSpec, num_landmarks: int) -> None:
        super().__init__()
        self.scale = spec.spatial_scale
        self.layers = nn.Sequential()
        in_channels, groups = num_landmarks, spec.spatial_channels // math.gcd(GROUP, spec.spatial_channels)
        for _ in range(3):
            layer = nn.Conv2d(in_channels, spec.spatial_channels, spec.spatial_kernel, padding="same")
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            in_channels = spec.spatial_channels
            self.layers.extend((layer, nn.GroupNorm(groups, in_channels, affine=False), nn.LeakyReLU(SLOPE)))
        last = nn.Conv2d(in_channels, num_landmarks, spec.spatial_kernel, padding="same", bias=False)
        nn.init.normal_(last.weight, std=1e-3)
        self.layers.append(last)
        self.bias_K = nn.Parameter(torch.ones(num_landmarks))

    def forward(self, maps_BKHW: Tensor) -> Tensor:
        """Return the factors of the maps."""
        coarse = self.layers(F.avg_pool2d(maps_BKHW, self.scale)) + self.bias_K[:, None, None]
        return F.interpolate(coarse, size=maps_BKHW.shape[2:], mode="bicubic", align_corners=False).tanh()


NETWORK = Scn
