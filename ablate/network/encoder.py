"""segmentation_models_pytorch's U-Net on a named encoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ablate.errors import InputError, nearest
from ablate.network.base import Head, Network, without_memory
from ablate.network.matching import first_convolution, fits, with_channels
from ablate.space import EncoderInput, NetworkSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1], as all encoders with ImageNet weights expect them
IMAGENET_STD = (0.229, 0.224, 0.225)

INPUTS: Mapping[EncoderInput, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), IMAGENET_STD),
    "grey": ((0.0,), (1.0,)),
}
"""Mean and standard deviation of each channel, by `network.input`; grey images are repeated in all channels."""

_STAGED = ("mit_b0", "tu-pvt_v2_b0", "tu-swin_tiny_patch4_window7_224")
"""Transformers that go down in stages, given where one that does not was asked for."""


class EncoderUNet(Network):
    """segmentation_models_pytorch's U-Net on a named encoder, its input a row of `INPUTS`.

    By default grey is repeated to RGB and normalised with ImageNet's mean and standard deviation whatever the
    initialisation, so that initialisations are compared on the same input.
    """

    _output = ("net.segmentation_head.",)
    _encoder = ("net.encoder.",)

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, spec: NetworkSpec, image_size: int, head: Head) -> None:
        super().__init__(spec, image_size, head)
        mean, std = INPUTS[spec.input]
        self.net = _encoder_unet(spec.encoder, image_size, len(mean))
        self.encoder = spec.encoder
        encoder: Any = self.net.encoder  # segmentation_models_pytorch is untyped
        self.feature_dim, self.stride = int(encoder.out_channels[-1]), int(encoder.output_stride)
        self.register_buffer("mean_3", torch.tensor(mean), persistent=False)
        self.register_buffer("std_3", torch.tensor(std), persistent=False)

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return logits (B, K, H, W); this network has no timestep, `timesteps_B` is ignored."""
        return self._computed(lambda: self.net(self._normalised(images_B1HW)), images_B1HW)

    def feature_map(self, images_B1HW: Tensor) -> Tensor:
        """Return the encoder's deepest feature map (B, C, h, w)."""
        encoder: Any = self.net.encoder
        found: Tensor = encoder(self._normalised(images_B1HW))[-1]
        return found

    def load_initial(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Start from pre-trained weights; a first convolution of three channels is summed where there is one."""
        first = first_convolution(self.encoder_state())
        own, given = self.state_dict()[first], dict(tensors)
        for name in (first, first.removeprefix(self._prefix)):
            if name in given and fits(own, given[name], is_first=True) and own.shape != given[name].shape:
                given[name], _ = with_channels(given[name], own.shape[1])
        return super().load_initial(given)

    def keep_encoder_only(self) -> None:
        """Drop the decoder and the output."""
        net: Any = self.net
        net.decoder, net.segmentation_head = nn.Identity(), nn.Identity()

    def _normalised(self, images_B1HW: Tensor) -> Tensor:
        return (images_B1HW - self.mean_3[:, None, None]) / self.std_3[:, None, None]

    @classmethod
    def check(cls, spec: NetworkSpec) -> None:
        """Refuse an encoder that no library has."""
        check_encoder_name(spec.encoder)

    @classmethod
    def unsuitable(cls, spec: NetworkSpec, image_size: int, reason: str) -> str:
        """Return the message that refuses this encoder."""
        return (
            f"network.encoder '{spec.encoder}' cannot be the encoder of a U-Net on {image_size} x {image_size} "
            f"images: {_few_resolutions(spec.encoder) or f'{reason}; choose another, such as densenet161 or resnet18'}"
        )

    def replace_output(self, num_outputs: int) -> None:
        """Put a new segmentation head in place of the one that is there."""
        from segmentation_models_pytorch.base import SegmentationHead, initialization

        net: Any = self.net
        head = SegmentationHead(net.segmentation_head[0].in_channels, num_outputs, kernel_size=3)
        initialization.initialize_head(head)
        net.segmentation_head = head


def _encoder_unet(encoder: str, image_size: int, channels: int) -> nn.Module:
    import segmentation_models_pytorch

    net: nn.Module = segmentation_models_pytorch.Unet(
        encoder, encoder_weights=None, in_channels=channels, classes=1, **encoder_options(encoder, image_size)
    )
    return net


def encoder_options(encoder: str, image_size: int) -> dict[str, Any]:
    """Return what a model of timm must be told to take images of this size: nothing, or the size (Swin, Hiera)."""
    import timm

    config = timm.get_pretrained_cfg(encoder.removeprefix("tu-")) if encoder.startswith("tu-") else None
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


@functools.lru_cache(maxsize=8)
def timm_names(encoder: str) -> frozenset[str]:
    """Return the names of all tensors of the model of timm that `tu-NAME` is the encoder of; empty for others."""
    import timm

    if not encoder.startswith("tu-"):
        return frozenset()
    model, _ = without_memory(lambda: timm.create_model(encoder.removeprefix("tu-")))
    return frozenset(model.state_dict())


def _few_resolutions(encoder: str) -> str:
    """Return why a model of timm has not the feature maps that a U-Net needs, and what to take; empty if it has."""
    import timm

    if not encoder.startswith("tu-"):
        return ""
    try:
        with torch.device("meta"):
            strides: list[int] = timm.create_model(
                encoder.removeprefix("tu-"), features_only=True
            ).feature_info.reduction()
    except Exception:  # timm gives no features of this model, or not without memory: its own reason is shown
        return ""
    if set(strides) >= {4, 8, 16, 32}:
        return ""
    return (
        f"a U-Net needs feature maps at strides 4, 8, 16 and 32, and its are at {', '.join(map(str, strides))}, as a "
        f"plain ViT's are; choose an encoder that goes down in stages, such as {', '.join(_STAGED)}"
    )


def check_encoder_name(encoder: str) -> None:
    """Refuse the name of an encoder that neither segmentation_models_pytorch nor timm has.

    Raises:
        InputError: with the nearest name.
    """
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


NETWORK = EncoderUNet
