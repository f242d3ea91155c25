"""The U-Net of the authors' published code, written anew: their weights load into it unchanged.

Its tensors have the names and shapes of theirs. Shapes: B batch, N heads, C channels, D channels of a head, E length of
the time embedding, P positions, H and W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.errors import InputError
from ablate.network.base import Denoiser, Head
from ablate.network.timesteps import TimestepEmbedding
from ablate.space import NetworkSpec

LEVELS = (1, 2, 4, 8)  # channels of each level in multiples of the width; all but the last halve height and width
NORM_GROUPS = 4  # of every group norm of a residual block
NUM_HEADS, HEAD_DIM = 4, 32  # of every attention


class Reference(Denoiser):
    """The authors' U-Net: 558.5 M parameters at width 256, with linear attention on every level.

    Images stay in [0, 1], in fine-tuning and under noise, as in the authors' code, unless `input_range` says symmetric.
    Before the image stands the channel of a self-conditioning that they leave at zero. Fine-tuning gives no timestep,
    as theirs: then no block is shifted and scaled, and what embeds the timestep is not used.

    Deviations: weights are standardised in the dtype they are kept in, fp32, also where `precision: bf16` convolves in
    bfloat16. Self-supervision (none of the authors' methods trains this network) trains all that is before the up
    blocks but what embeds the timestep.
    """

    _output = ("net.final_conv.",)
    _encoder = ("net.init_conv.", "net.downs.", "net.mid_")

    def __init__(self, spec: NetworkSpec, image_size: int, head: Head) -> None:
        super().__init__(spec, image_size, head)
        self.net = ReferenceUNet(spec.width)
        self.feature_dim = LEVELS[-1] * spec.width
        self.stride = 2 ** (len(LEVELS) - 1)

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return logits (B, K, H, W), without a timestep: `timesteps_B` is ignored."""
        return self.denoise(self.scale(images_B1HW))

    def denoise(self, scaled_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Run the U-Net on images, noised or not: (B, K, H, W); without timesteps no block is told one."""
        return self._computed(lambda: self.net(scaled_B1HW, timesteps_B), scaled_B1HW)

    def feature_map(self, images_B1HW: Tensor) -> Tensor:
        """Return what leaves the middle (B, C, H / 8, W / 8), without a timestep."""
        found: Tensor = self.net.encode(self.scale(images_B1HW))
        return found

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the tensors that `features` uses, named as in `state_dict()`."""
        return {name: tensor for name, tensor in super().encoder_state().items() if ".mlp." not in name}

    def keep_encoder_only(self) -> None:
        """Drop the up blocks, the end, and what embeds the timestep."""
        net = self.net
        net.ups = nn.ModuleList()
        net.time_mlp = net.final_res_block = net.final_conv = nn.Identity()
        for block in net.modules():
            if isinstance(block, ResidualBlock):
                block.mlp = nn.Identity()

    def replace_output(self, num_outputs: int) -> None:
        """Put a new 1x1 convolution in place of the last one."""
        self.net.final_conv = nn.Conv2d(self.spec.width, num_outputs, 1)

    @classmethod
    def check(cls, spec: NetworkSpec) -> None:
        """Refuse a width that its group norms cannot divide."""
        if spec.width % NORM_GROUPS:
            raise InputError(
                f"network.width must be a multiple of {NORM_GROUPS}, the groups of its group norms; got {spec.width}; "
                f"the nearest is {max(1, round(spec.width / NORM_GROUPS)) * NORM_GROUPS}"
            )

    @classmethod
    def unsuitable(cls, spec: NetworkSpec, image_size: int, reason: str) -> str:
        """Return the message that refuses this width."""
        return f"network.width {spec.width} cannot be built for image_size {image_size}: {reason}"


class ReferenceUNet(nn.Module):
    """The layers of `Reference`, with one output; attributes are named as the authors' tensors are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        embedding = 4 * width
        channels = [width * level for level in LEVELS]
        below = [width, *channels[:-1]]  # channels in which a level is computed on its way down
        sizes = list(zip(below, channels, strict=True))
        self.init_conv = nn.Conv2d(2, width, 1)
        self.time_mlp: nn.Module = nn.Sequential(
            TimestepEmbedding(width), nn.Linear(width, embedding), nn.GELU(), nn.Linear(embedding, embedding)
        )
        self.downs = nn.ModuleList(
            nn.ModuleList(
                (
                    ResidualBlock(inner, inner, embedding),
                    ResidualBlock(inner, inner, embedding),
                    Residual(LinearAttention(inner), inner),
                    nn.Conv2d(inner, outer, 3, padding=1) if (inner, outer) == sizes[-1] else _down(inner, outer),
                )
            )
            for inner, outer in sizes
        )
        self.ups = nn.ModuleList(
            nn.ModuleList(
                (
                    ResidualBlock(outer + inner, outer, embedding),
                    ResidualBlock(outer + inner, outer, embedding),
                    Residual(LinearAttention(outer), outer),
                    nn.Conv2d(outer, inner, 3, padding=1) if (inner, outer) == sizes[0] else _up(outer, inner),
                )
            )
            for inner, outer in reversed(sizes)
        )
        self.mid_block1 = ResidualBlock(channels[-1], channels[-1], embedding)
        self.mid_attn = Residual(FullAttention(channels[-1]), channels[-1])
        self.mid_block2 = ResidualBlock(channels[-1], channels[-1], embedding)
        self.final_res_block: nn.Module = ResidualBlock(2 * width, width, embedding)
        self.final_conv: nn.Module = nn.Conv2d(width, 1, 1)

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return maps (B, K, H, W) of images, noised or not."""
        embedding_BE = None if timesteps_B is None else self.time_mlp(timesteps_B)
        kept: list[Tensor] = []
        hidden = self.encode(images_B1HW, embedding_BE, kept)
        for first, second, attend, up in _levels(self.ups):
            hidden = first(torch.cat((hidden, kept.pop()), 1), embedding_BE)
            hidden = second(torch.cat((hidden, kept.pop()), 1), embedding_BE)
            hidden = up(attend(hidden))
        hidden = self.final_res_block(torch.cat((hidden, kept.pop()), 1), embedding_BE)
        maps: Tensor = self.final_conv(hidden)
        return maps

    def encode(
        self, images_B1HW: Tensor, embedding_BE: Tensor | None = None, kept: list[Tensor] | None = None
    ) -> Tensor:
        """Return what leaves the middle, (B, C, H / 8, W / 8).

        Args:
            images_B1HW: noised or not.
            embedding_BE: of the timesteps, if any.
            kept: what the way up takes from the way down is put at its end, in order.
        """
        kept = [] if kept is None else kept
        hidden = self.init_conv(torch.cat((torch.zeros_like(images_B1HW), images_B1HW), 1))
        kept.append(hidden)
        for first, second, attend, down in _levels(self.downs):
            hidden = first(hidden, embedding_BE)
            kept.append(hidden)
            hidden = attend(second(hidden, embedding_BE))
            kept.append(hidden)
            hidden = down(hidden)
        hidden = self.mid_attn(self.mid_block1(hidden, embedding_BE))
        deepest: Tensor = self.mid_block2(hidden, embedding_BE)
        return deepest


def _levels(levels: nn.ModuleList) -> list[list[nn.Module]]:
    """Return the four parts of each level."""
    return [list(level.children()) for level in levels]


def _down(in_channels: int, out_channels: int) -> nn.Module:
    """Fold 2 x 2 pixels into channels, then change their number."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, out_channels, 1))


def _up(in_channels: int, out_channels: int) -> nn.Module:
    """Double height and width, then change the number of channels."""
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 3, padding=1))


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 in each filter (Qiao et al. 2019)."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the standardised weights."""
        eps = 1e-5 if self.weight.dtype == torch.float32 else 1e-3
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=eps)
        convolved: Tensor = self._conv_forward(input, weight, self.bias)
        return convolved


class ConvBlock(nn.Module):
    """Convolution, group norm, a shift and scale if any, SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = StandardisedConv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x_BCHW: Tensor, scale_and_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return (B, out_channels, H, W)."""
        normed = self.norm(self.proj(x_BCHW))
        if scale_and_shift is not None:
            scale, shift = scale_and_shift
            normed = normed * (scale + 1) + shift
        return F.silu(normed)


class ResidualBlock(nn.Module):
    """Two blocks and a shortcut; a timestep scales and shifts within the first."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.mlp: nn.Module = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.block1 = ConvBlock(in_channels, out_channels)
        self.block2 = ConvBlock(out_channels, out_channels)
        same = in_channels == out_channels
        self.res_conv = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor | None) -> Tensor:
        """Return (B, out_channels, H, W)."""
        scale_and_shift = None
        if embedding_BE is not None:
            scale, shift = self.mlp(embedding_BE)[:, :, None, None].chunk(2, 1)
            scale_and_shift = scale, shift
        hidden: Tensor = self.block2(self.block1(x_BCHW, scale_and_shift))
        shortcut: Tensor = self.res_conv(x_BCHW)
        return hidden + shortcut


class Residual(nn.Module):
    """An attention behind a norm, added to what goes in."""

    def __init__(self, attention: nn.Module, channels: int) -> None:
        super().__init__()
        self.fn = Normed(attention, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        attended: Tensor = self.fn(x_BCHW)
        return attended + x_BCHW


class Normed(nn.Module):
    """An attention behind a group norm of one group."""

    def __init__(self, attention: nn.Module, channels: int) -> None:
        super().__init__()
        self.fn = attention
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        attended: Tensor = self.fn(self.norm(x_BCHW))
        return attended


def _query_key_value(qkv: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of all positions, each (B, N, D, P)."""
    query, key, value = qkv(x_BCHW).reshape(len(x_BCHW), 3, NUM_HEADS, HEAD_DIM, -1).unbind(1)
    return query, key, value


class LinearAttention(nn.Module):
    """Attention whose cost grows with the number of positions, not with its square (Shen et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = NUM_HEADS * HEAD_DIM
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.GroupNorm(1, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        query, key, value = _query_key_value(self.to_qkv, x_BCHW)
        query = query.softmax(-2) * HEAD_DIM**-0.5
        context_BNDD = value @ key.softmax(-1).transpose(-1, -2)  # rows are channels of the value
        attended = (context_BNDD @ query).reshape(len(x_BCHW), -1, *x_BCHW.shape[2:])
        out: Tensor = self.to_out(attended)
        return out


class FullAttention(nn.Module):
    """Attention of every position to every other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = NUM_HEADS * HEAD_DIM
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        query, key, value = (part.transpose(-1, -2) for part in _query_key_value(self.to_qkv, x_BCHW))
        attended = F.scaled_dot_product_attention(query, key, value)  # its own scale is that of a head
        out: Tensor = self.to_out(attended.transpose(-1, -2).reshape(len(x_BCHW), -1, *x_BCHW.shape[2:]))
        return out


NETWORK = Reference
