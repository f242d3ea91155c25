"""Networks: diffusers' U-Net and segmentation_models_pytorch's U-Net on an encoder, built and checked.

Shapes: B batch, K outputs (landmarks, or 1 for noise), C feature channels, H and W of the square image.
Images are float (B, 1, H, W) in [0, 1]; each network normalises them inside `forward` and `features`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ablate.errors import InputError, nearest
from ablate.space import NetworkSpec
from ablate.training import seed_of

Head: TypeAlias = Literal["landmarks", "noise"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1], as all encoders with ImageNet weights expect them
IMAGENET_STD = (0.229, 0.224, 0.225)

_LISTED = 4  # names given in a message before it says how many more there are


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


class Network(nn.Module, ABC):
    """A network that turns an image into K maps, and whose encoder can be trained by itself."""

    feature_dim: int
    """Channels C of `features`."""

    stride: int
    """Pixels of the image per position of the encoder's last feature map; images must be a multiple."""

    _prefix = "net."  # of every tensor of the library's own model in `state_dict`
    _output: tuple[str, ...]  # prefixes of the output layer in `state_dict`
    _encoder: tuple[str, ...]  # prefixes of what self-supervision trains in `state_dict`

    def __init__(self, spec: NetworkSpec, head: Head) -> None:
        super().__init__()
        self.spec, self.head = spec, head

    @abstractmethod
    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return logits (B, K, H, W) of images in [0, 1]; `timesteps_B` (int64, default 0) matter to `unet` only."""

    @abstractmethod
    def features(self, images_B1HW: Tensor) -> Tensor:
        """Return the encoder's last feature map, averaged over its positions: (B, C)."""

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the tensors that self-supervision trains, named as in `state_dict()`."""
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(self._encoder)}

    @abstractmethod
    def keep_encoder_only(self) -> None:
        """Drop what `features` does not use; afterwards `state_dict()` is `encoder_state()` and `forward` fails."""

    def load_initial(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Start from pre-trained weights: the whole network but its output layer, or exactly its encoder.

        Names are those of `state_dict()`, or of the library's own model, that is without `net.`. An output
        layer in `tensors` is left aside, but that of a noise network is loaded into a noise network.

        Returns:
            The names of this network's tensors that keep their new initial values.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape; the message names it.
        """
        own = self.state_dict()
        given = dict(tensors)
        if not any(name.startswith(self._prefix) for name in given):
            given = {self._prefix + name: tensor for name, tensor in given.items()}
        output = {name for name in own if name.startswith(self._output)}
        keep_output = self.head == "noise" and all(
            name in given and given[name].shape == own[name].shape for name in output
        )
        if not keep_output:
            given = {name: tensor for name, tensor in given.items() if not name.startswith(self._output)}
        body = own.keys() - (set() if keep_output else output)
        encoder = {name for name in own if name.startswith(self._encoder)}
        wanted = encoder if given.keys() <= encoder else body
        problems = []
        if missing := [name for name in own if name in wanted and name not in given]:
            problems.append(f"missing {_some(missing)}")
        if unknown := [name for name in given if name not in own]:
            problems.append(f"unknown {_some(unknown)}")
        shapes = [
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ]
        if shapes:
            problems.append(f"other shapes: {_some(shapes)}")
        if problems:
            raise ValueError(f"weights do not fit this network: {'; '.join(problems)}")
        self.load_state_dict(given, strict=False)
        return [name for name in own if name not in given]


class UNet(Network):
    """diffusers' UNet2DModel with one grey input channel; images are mapped to [-1, 1].

    The landmarks head is a 1x1 convolution with K outputs in place of `conv_out` (paper, fine-tuning); the
    noise head is diffusers' own. Deviations from the paper's U-Net: GroupNorm groups are the greatest common
    divisor of 8 and all channels, there is attention in the middle only or nowhere, plain convolutions, and
    no self-conditioning channel.
    """

    _output = ("net.conv_out.",)
    _encoder = ("net.conv_in.", "net.time_embedding.", "net.down_blocks.", "net.mid_block.")

    def __init__(self, spec: NetworkSpec, image_size: int, head: Head) -> None:
        super().__init__(spec, head)
        self.net = _unet2d(spec, image_size)
        self.feature_dim = spec.channels[-1]
        self.stride = 2 ** (len(spec.channels) - 1)

    @staticmethod
    def scale(images_B1HW: Tensor) -> Tensor:
        """Map images in [0, 1] to the range [-1, 1] that `denoise` works in."""
        return images_B1HW * 2 - 1

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return logits (B, K, H, W): `denoise` of the scaled images."""
        return self.denoise(self.scale(images_B1HW), timesteps_B)

    def denoise(self, scaled_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Run the U-Net on what is already scaled, such as noised images: (B, K, H, W)."""
        output: Tensor = self.net(scaled_B1HW, self._timesteps(scaled_B1HW, timesteps_B), return_dict=False)[0]
        return output

    def features(self, images_B1HW: Tensor) -> Tensor:
        """Return (B, C): conv_in, down_blocks and mid_block at timestep 0, averaged over positions."""
        net: Any = self.net  # diffusers is untyped
        hidden = self.scale(images_B1HW)
        embedding = net.time_embedding(net.time_proj(self._timesteps(hidden, None)).to(hidden.dtype))
        hidden = net.conv_in(hidden)
        for block in net.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=embedding)
        pooled: Tensor = net.mid_block(hidden, embedding).mean((2, 3))
        return pooled

    def keep_encoder_only(self) -> None:
        """Drop the up blocks and the output."""
        net: Any = self.net
        net.up_blocks, net.conv_norm_out, net.conv_out = nn.ModuleList(), nn.Identity(), nn.Identity()

    @staticmethod
    def _timesteps(images_B1HW: Tensor, timesteps_B: Tensor | None) -> Tensor:
        if timesteps_B is None:
            return torch.zeros(images_B1HW.shape[0], dtype=torch.long, device=images_B1HW.device)
        return timesteps_B


class EncoderUNet(Network):
    """segmentation_models_pytorch's U-Net on a named encoder, grey repeated to RGB.

    RGB is normalised with ImageNet's mean and standard deviation whatever the initialisation, so that
    initialisations are compared on the same input.
    """

    _output = ("net.segmentation_head.",)
    _encoder = ("net.encoder.",)

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, spec: NetworkSpec, head: Head) -> None:
        super().__init__(spec, head)
        self.net = _encoder_unet(spec.encoder)
        self.encoder = spec.encoder
        encoder: Any = self.net.encoder  # segmentation_models_pytorch is untyped
        self.feature_dim, self.stride = int(encoder.out_channels[-1]), int(encoder.output_stride)
        self.register_buffer("mean_3", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std_3", torch.tensor(IMAGENET_STD), persistent=False)

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return logits (B, K, H, W); this network has no timestep, `timesteps_B` is ignored."""
        logits: Tensor = self.net(self._rgb(images_B1HW))
        return logits

    def features(self, images_B1HW: Tensor) -> Tensor:
        """Return (B, C): the encoder's deepest feature map, averaged over positions."""
        encoder: Any = self.net.encoder
        pooled: Tensor = encoder(self._rgb(images_B1HW))[-1].mean((2, 3))
        return pooled

    def keep_encoder_only(self) -> None:
        """Drop the decoder and the output."""
        net: Any = self.net
        net.decoder, net.segmentation_head = nn.Identity(), nn.Identity()

    def _rgb(self, images_B1HW: Tensor) -> Tensor:
        return (images_B1HW - self.mean_3[:, None, None]) / self.std_3[:, None, None]


def build_network(
    network: NetworkSpec, *, num_outputs: int, image_size: int, seed: int, head: Head = "landmarks"
) -> Network:
    """Build a network on the CPU, or on the device of an enclosing `with torch.device(...)`.

    Initial weights depend on `seed` alone, and all but the output layer's are the same whatever
    `num_outputs` and `head` are. The global random state is left as it was.

    Args:
        network: which network, see `check_network`.
        num_outputs: K; must be 1 for the noise head.
        image_size: side of the square images in pixels.
        seed: of the initial weights.
        head: `landmarks` for K heatmaps, `noise` for the prediction of a noised image's noise (`unet` only).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "network"))
        built = UNet(network, image_size, head) if network.kind == "unet" else EncoderUNet(network, head)
        torch.default_generator.manual_seed(seed_of(seed, "output layer"))
        _replace_output(built, num_outputs)
    return built


def _replace_output(network: Network, num_outputs: int) -> None:
    net: Any = network.net
    if isinstance(network, UNet):
        kernel = 1 if network.head == "landmarks" else 3
        net.conv_out = nn.Conv2d(network.spec.channels[0], num_outputs, kernel, padding=kernel // 2)
    else:
        from segmentation_models_pytorch.base import SegmentationHead, initialization

        head = SegmentationHead(net.segmentation_head[0].in_channels, num_outputs, kernel_size=3)
        initialization.initialize_head(head)
        net.segmentation_head = head


def _unet2d(spec: NetworkSpec, image_size: int) -> nn.Module:
    from diffusers import UNet2DModel

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
    return net


def _encoder_unet(encoder: str) -> nn.Module:
    import segmentation_models_pytorch

    net: nn.Module = segmentation_models_pytorch.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)
    return net


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@functools.lru_cache(maxsize=64)
def check_network(network: NetworkSpec, image_size: int) -> None:
    """Refuse a network that cannot be built or cannot take images of this size; needs no memory for weights.

    Raises:
        InputError: with the rule, the value and the cure.
    """
    if network.kind == "encoder":
        check_encoder_name(network.encoder)
    elif network.channels[0] % 2:
        raise InputError(
            f"network.channels must start with an even number, for the time embedding; got {network.channels[0]}"
        )
    try:
        built = outline(network, image_size)
        images = torch.empty(2, 1, image_size, image_size, device=next(built.parameters()).device)
        with torch.no_grad():
            output_hw, features = built(images).shape[2:], built.features(images)
    except Exception as error:  # whatever a library raises, it means that this network cannot be had
        raise InputError(_unsuitable(network, image_size, f"{type(error).__name__}: {error}")) from error
    if tuple(output_hw) != (image_size, image_size) or features.shape != (2, built.feature_dim):
        raise InputError(_unsuitable(network, image_size, f"its output is {tuple(output_hw)}"))


def outline(network: NetworkSpec, image_size: int, head: Head = "landmarks") -> Network:
    """Build a network without memory for its weights, or with, where its library cannot do without."""
    build = functools.partial(build_network, network, num_outputs=1, image_size=image_size, seed=0, head=head)
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):  # a constructor that looks at values of its tensors
        return build()


def _unsuitable(network: NetworkSpec, image_size: int, reason: str) -> str:
    if network.kind == "unet":
        return f"network.channels {list(network.channels)} cannot be built for image_size {image_size}: {reason}"
    return (
        f"network.encoder '{network.encoder}' cannot be the encoder of a U-Net on {image_size} x {image_size} "
        f"images: {reason}; choose another encoder, such as densenet161 or resnet18"
    )


def check_encoder_name(encoder: str) -> None:
    """Refuse a name that no library has; raises `InputError`."""
    import segmentation_models_pytorch.encoders as encoders
    import timm

    names: list[str] = encoders.get_encoder_names()
    if encoder in names:
        return
    if encoder.startswith("tu-"):
        names = [f"tu-{name}" for name in timm.list_models()]
        if encoder.partition(".")[0] in names:  # a timm name may carry its weights: tu-resnet18.a1_in1k
            return
    raise InputError(
        "network.encoder must be an encoder of segmentation_models_pytorch, such as densenet161, resnet18 or "
        f"vgg19, or tu-NAME for a model of timm; got '{encoder}'{nearest(encoder, names)}"
    )
