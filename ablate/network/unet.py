"""diffusers' U-Net, which can be trained to denoise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ablate.errors import InputError
from ablate.network.base import Denoiser, Head
from ablate.space import NetworkSpec


class UNet(Denoiser):
    """diffusers' UNet2DModel with one grey input channel; images are mapped to [-1, 1], or stay in [0, 1].

    Told no timestep, its blocks add nothing where they add what they make of the time embedding. The landmarks head is
    a 1x1 convolution with K outputs in place of `conv_out` (paper, fine-tuning); the noise head is diffusers' own.
    Deviations from the paper's U-Net: GroupNorm groups are the greatest common divisor of 8 and all channels, there is
    attention in the middle only or nowhere, plain convolutions, and no self-conditioning channel.
    """

    _output = ("net.conv_out.",)
    _encoder = ("net.conv_in.", "net.time_embedding.", "net.down_blocks.", "net.mid_block.")

    def __init__(self, spec: NetworkSpec, image_size: int, head: Head) -> None:
        super().__init__(spec, image_size, head)
        self.net = _unet2d(spec, image_size)
        self.feature_dim = spec.channels[-1]
        self.stride = 2 ** (len(spec.channels) - 1)

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return logits (B, K, H, W): `denoise` of the scaled images."""
        return self.denoise(self.scale(images_B1HW), timesteps_B)

    def denoise(self, scaled_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Run the U-Net on what is already scaled, such as noised images: (B, K, H, W)."""
        untold = contextlib.nullcontext() if timesteps_B is not None else _without_time(self.net)
        timesteps_B = _zeros(scaled_B1HW) if timesteps_B is None else timesteps_B
        with untold:
            return self._computed(lambda: self.net(scaled_B1HW, timesteps_B, return_dict=False)[0], scaled_B1HW)

    def feature_map(self, images_B1HW: Tensor) -> Tensor:
        """Return what conv_in, down_blocks and mid_block make of images at timestep 0: (B, C, h, w)."""
        net: Any = self.net  # diffusers is untyped
        hidden = self.scale(images_B1HW)
        embedding = net.time_embedding(net.time_proj(_zeros(hidden)).to(hidden.dtype))
        hidden = net.conv_in(hidden)
        for block in net.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=embedding)
        found: Tensor = net.mid_block(hidden, embedding)
        return found

    def keep_encoder_only(self) -> None:
        """Drop the up blocks and the output."""
        net: Any = self.net
        net.up_blocks, net.conv_norm_out, net.conv_out = nn.ModuleList(), nn.Identity(), nn.Identity()

    @classmethod
    def check(cls, spec: NetworkSpec) -> None:
        """Refuse an odd number of channels."""
        if spec.channels[0] % 2:
            raise InputError(
                f"network.channels must start with an even number, for the time embedding; got {spec.channels[0]}"
            )

    @classmethod
    def unsuitable(cls, spec: NetworkSpec, image_size: int, reason: str) -> str:
        """Return the message that refuses these channels."""
        return f"network.channels {list(spec.channels)} cannot be built for image_size {image_size}: {reason}"

    def replace_output(self, num_outputs: int) -> None:
        """Put a new `conv_out` in place of the one that is there."""
        net: Any = self.net
        kernel = 1 if self.head == "landmarks" else 3
        net.conv_out = nn.Conv2d(self.spec.channels[0], num_outputs, kernel, padding=kernel // 2)


def _zeros(images_B1HW: Tensor) -> Tensor:
    return torch.zeros(len(images_B1HW), dtype=torch.long, device=images_B1HW.device)


@contextlib.contextmanager
def _without_time(net: nn.Module) -> Iterator[None]:
    """Let the blocks of diffusers' U-Net add nothing where they add what they make of the time embedding."""
    handles = [
        layer.register_forward_hook(lambda layer, inputs, output: torch.zeros_like(output))
        for name, layer in net.named_modules()
        if name.endswith(".time_emb_proj")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unet2d(spec: NetworkSpec, image_size: int) -> nn.Module:
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention

    levels = len(spec.channels)
    net: nn.Module = UNet2DModel(
        sample_size=image_size,
        in_channels=1,
        out_channels=1,
        block_out_channels=spec.channels,
        layers_per_block=spec.layers_per_block,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=math.gcd(8, *spec.channels),
        attention_head_dim=min(8, spec.channels[-1]),
        add_attention=spec.attention == "middle",
    )
    for module in net.modules():
        if isinstance(module, Attention):
            module.set_processor(_Fp32OnCpu(module.processor))
    return net


class _Fp32OnCpu:
    """Attends in fp32 on a CPU, also where the layers around take bfloat16, in which torch's fused attention is slow.

    On one core of a Xeon with avx512_bf16, 16 images of 16 x 16 positions and 64 channels in 8 heads, forward and
    backward: 76 ms in bfloat16, 25 in fp32.
    """

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        self._attend = attend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return what diffusers' own processor makes of the same arguments, whose names are looked at by diffusers."""
        rest = (encoder_hidden_states, attention_mask, temb)
        if hidden_states.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self._attend(attn, hidden_states, *rest)
        with torch.autocast("cpu", enabled=False):
            return self._attend(attn, hidden_states.float(), *rest)


NETWORK = UNet
