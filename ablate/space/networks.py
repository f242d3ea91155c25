"""The kinds of network, and the fields that choose among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ablate.errors import nearest
from ablate.space.spec import Fraction, Positive, Spec, as_tuple


def _known(kind: str) -> str:
    if kind not in NETWORKS:
        raise ValueError(f"kind must be one of {', '.join(NETWORKS)}; got {kind!r}{nearest(kind, NETWORKS)}")
    return kind


Precision: TypeAlias = Literal["fp32", "bf16"]
"""What a network computes in; its weights are fp32 either way."""

EncoderInput: TypeAlias = Literal["imagenet", "half", "grey"]
"""What an encoder takes a grey image as."""

COSTLESS = ("input", "input_range")
"""Fields of a network that change the operations of a pass by next to nothing."""

InputRange: TypeAlias = Literal["symmetric", "unit"]
"""What images in [0, 1] are mapped to: [-1, 1], or [0, 1]."""

NetworkKind: TypeAlias = Annotated[str, AfterValidator(_known)]
"""A key of `NETWORKS`."""


class NetworkSpec(Spec):
    """The network that is pre-trained and fine-tuned."""

    kind: NetworkKind = Field(
        "unet",
        description="unet: diffusers' UNet2DModel; reference: the authors' U-Net; encoder: U-Net on a named encoder; "
        "scn: spatial-configuration network",
    )
    channels: Annotated[tuple[Positive, ...], BeforeValidator(as_tuple), Field(min_length=1)] = Field(
        (64, 128, 256, 512),
        description="channels of the levels (unet, scn); default 128, 128, 128, 128 for scn",
    )
    layers_per_block: Positive = Field(2, description="residual layers of each level (unet)")
    attention: Literal["none", "middle"] = Field("middle", description="where the U-Net attends (unet)")
    encoder: str = Field("densenet161", description="encoder of segmentation_models_pytorch (encoder)")
    input: EncoderInput = Field(
        "imagenet",
        description="imagenet: three equal channels with ImageNet's mean and deviation; half: with mean 0.5; grey: one "
        "channel in [0, 1], for which a first convolution of three is summed (encoder)",
    )
    width: Positive = Field(256, description="channels of the first level, a multiple of 4 (reference)")
    input_range: InputRange = Field(
        "symmetric",
        description="range that images are mapped to, also before noise is added: symmetric is [-1, 1], unit is "
        "[0, 1] and the default of reference (unet, reference, scn)",
    )
    dropout: Fraction = Field(0.5, description="share of values dropped in each level while training (scn)")
    spatial_channels: Positive = Field(128, description="channels of the spatial configuration (scn)")
    spatial_kernel: Positive = Field(11, description="side of its kernels, odd (scn)")
    spatial_scale: Positive = Field(16, description="pixels of the image per position of its maps (scn)")

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, value: object) -> object:
        """Let what a kind takes by default stand in the place of the other kinds' default."""
        row = NETWORKS.get(str(value.get("kind"))) if isinstance(value, Mapping) else None
        return value if row is None or not isinstance(value, Mapping) else {**row.defaults, **value}

    @property
    def fields(self) -> dict[str, object]:
        """The fields that this kind of network uses, by name."""
        return {name: getattr(self, name) for name in NETWORKS[self.kind].fields}

    @property
    def label(self) -> str:
        """The network in one word: its encoder, where it has one by name, else its kind."""
        return str(self.fields.get("encoder", self.kind))

    @property
    def multiple(self) -> int:
        """The side of an image must be a multiple of this, in pixels."""
        return NETWORKS[self.kind].multiple(self)


@dataclass(frozen=True)
class NetworkRow:
    """One kind of network, a row of `NETWORKS`."""

    code: str  # module of the implementation, whose `NETWORK` is the class
    fields: tuple[str, ...]  # of `NetworkSpec` that it uses; the others are left out of a trial's identity
    multiple: Callable[[NetworkSpec], int]  # see `NetworkSpec.multiple`
    has_timesteps: bool = False  # fine-tuning tells it a diffusion timestep
    has_decoder: bool = True  # a whole network's snapshot holds more than its encoder that fine-tuning starts from
    defaults: Mapping[str, object] = field(default_factory=dict)  # of its fields, where they are not the specs'

    @property
    def input_range(self) -> object:
        """The default of `network.input_range`."""
        return self.defaults.get("input_range", NetworkSpec.model_fields["input_range"].default)


NETWORKS: dict[str, NetworkRow] = {
    "unet": NetworkRow(
        "ablate.network.unet",
        ("channels", "layers_per_block", "attention", "input_range"),
        lambda spec: 2 ** (len(spec.channels) - 1),
        has_timesteps=True,
    ),
    "encoder": NetworkRow("ablate.network.encoder", ("encoder", "input"), lambda spec: 32),
    "reference": NetworkRow(
        "ablate.network.reference", ("width", "input_range"), lambda spec: 8, defaults={"input_range": "unit"}
    ),
    "scn": NetworkRow(
        "ablate.network.scn",
        ("channels", "dropout", "spatial_channels", "spatial_kernel", "spatial_scale", "input_range"),
        lambda spec: math.lcm(2 ** (len(spec.channels) - 1), spec.spatial_scale),
        has_decoder=False,
        defaults={"channels": (128, 128, 128, 128)},
    ),
}
"""Every kind of network. A new one is one file under `ablate/network/` and one row here."""
