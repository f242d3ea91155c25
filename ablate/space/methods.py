"""The initialisations: the fields of each, and the table that names its networks, its code and its label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from ablate.errors import nearest
from ablate.space.networks import NETWORKS
from ablate.space.pretrain import Pretrain, StartingWeights, identify
from ablate.space.spec import Fraction, Positive, PositiveNumber, Spec
from ablate.space.whole import DdpmSpec, DenoiseSpec, MaskSpec


def _hidden_dim(value: object) -> object:
    if isinstance(value, str):
        if value != "features":
            raise ValueError(
                f"pretrain.hidden_dim must be a whole number, or features for the width of the encoder's features; got "
                f"{value!r}"
            )
        return 0
    return value


HiddenDim: TypeAlias = Annotated[int, BeforeValidator(_hidden_dim), Field(ge=0)]
"""A width of hidden layers; 0, which is given as `features`, is that of the encoder's features."""

_FEATURES = "given as features (0): the width of the encoder's features"


class SelfSupervised(Pretrain):
    """Fields of methods that compare augmented views of an image."""

    min_crop: float = Field(0.2, gt=0, le=1, description="smallest share of the image's area that a view shows")
    jitter: float = Field(
        0.4, ge=0, le=1, description="largest relative change of a view's brightness and contrast, and of log gamma"
    )
    solarize: float = Field(
        0.0, ge=0, le=1, description="probability that the second (of DINO and SwAV: second global) view is solarised"
    )
    views: Literal["image", "pass"] = Field(
        "image", description="views are drawn for each image, or once for a group of batch_size images"
    )
    input: Literal["network", "imagenet", "half", "grey"] = Field(
        "network", description="what an encoder takes views as: network.input, or another of its values"
    )
    rectify: bool = Field(False, description="the last feature map passes a ReLU before it is averaged")


class Momentum(SelfSupervised):
    """Fields of methods with a momentum encoder."""

    momentum: Fraction = Field(0.999, description="momentum of the momentum encoder")
    momentum_update: Literal["step", "pass"] = Field(
        "step", description="the momentum encoder moves after each optimizer step, or before each group of images"
    )


class Contrasted(SelfSupervised):
    """Fields of methods whose negatives are other images of the batch."""

    negatives: Literal["pass", "step"] = Field(
        "pass", description="an image's negatives: its group of batch_size images, or all images of an optimizer step"
    )


class MultiCrop(SelfSupervised):
    """Fields of methods that compare local crops with global ones."""

    local_share: ClassVar[float]
    """The smallest local crop's area to the smallest global crop's, where it is not given."""

    local_crops: int = Field(6, ge=0, description="number of local crops beside the two global ones")
    local_min_crop: float | None = Field(
        None, gt=0, le=1, description="smallest share of the area that a local crop shows; default: a part of min_crop"
    )
    local_max_crop: float | None = Field(
        None, gt=0, le=1, description="largest share of the area that a local crop shows; default: min_crop"
    )

    @property
    def local_areas(self) -> tuple[float, float]:
        """Smallest and largest share of the image's area that a local crop shows."""
        low = self.min_crop * self.local_share if self.local_min_crop is None else self.local_min_crop
        return low, self.min_crop if self.local_max_crop is None else self.local_max_crop

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.local_areas
        if low > high:
            raise ValueError(
                f"pretrain.local_min_crop must be at most pretrain.local_max_crop; got {low:g} and {high:g}; give "
                f"both, or neither for {self.local_share:.3g} * min_crop and min_crop"
            )
        return self


class MocoV3Spec(Contrasted, Momentum):
    """MoCo v3 (Chen, Xie, He 2021): symmetric InfoNCE against a momentum encoder, no queue."""

    method: Literal["mocov3"] = "mocov3"
    projection_dim: Positive = Field(256, description="width of the projection head's output")
    hidden_dim: HiddenDim = Field(
        2048, description=f"width of the hidden layers of projection head and predictor; {_FEATURES}"
    )
    projector_layers: int = Field(2, ge=2, description="layers of the projection head, each with batch norm")
    predictor_norm: bool = Field(True, description="batch norm after the predictor's last layer too")
    temperature: PositiveNumber = Field(0.5, description="softmax temperature of the contrastive loss")


class MocoV1Spec(Momentum):
    """MoCo (He et al. 2020): InfoNCE against a queue of keys from a momentum encoder."""

    method: Literal["mocov1"] = "mocov1"
    projection_dim: Positive = Field(128, description="width of the projection head's output")
    temperature: PositiveNumber = Field(0.07, description="softmax temperature of the contrastive loss")
    queue: Positive = Field(4096, description="keys held as negatives")


class MocoV2Spec(MocoV1Spec):
    """MoCo v2 (Chen et al. 2020): as MoCo with a two-layer projection head and a higher temperature."""

    method: Literal["mocov2"] = "mocov2"  # type: ignore[assignment]
    hidden_dim: HiddenDim = Field(2048, description=f"width of the projection head's hidden layer; {_FEATURES}")
    temperature: PositiveNumber = Field(0.2, description="softmax temperature of the contrastive loss")


class SimclrSpec(Contrasted):
    """SimCLR (Chen et al. 2020): NT-Xent over the views in a batch, two-layer projection head."""

    method: Literal["simclr"] = "simclr"
    projection_dim: Positive = Field(128, description="width of the projection head's output")
    hidden_dim: HiddenDim = Field(2048, description=f"width of the projection head's hidden layer; {_FEATURES}")
    head_norm: bool = Field(True, description="batch norm in the projection head")
    temperature: PositiveNumber = Field(0.5, description="softmax temperature of the contrastive loss")


class SimclrV2Spec(SimclrSpec):
    """SimCLR v2 (Chen et al. 2020b): as SimCLR with a three-layer projection head."""

    method: Literal["simclrv2"] = "simclrv2"  # type: ignore[assignment]


class DinoSpec(MultiCrop, Momentum):
    """DINO (Caron et al. 2021): self-distillation from a momentum teacher over global and local crops."""

    local_share = 0.05 / 0.4  # as in DINO

    method: Literal["dino"] = "dino"
    prototypes: Positive = Field(65_536, description="width of the projection head's output")
    hidden_dim: HiddenDim = Field(2048, description=f"width of the projection head's hidden layers; {_FEATURES}")
    bottleneck_dim: Positive = Field(256, description="width of the projection head's bottleneck")
    head_norm: bool = Field(True, description="batch norm in the projection head")
    student_temperature: PositiveNumber = Field(0.1, description="softmax temperature of the student")
    teacher_temperature: PositiveNumber = Field(0.04, description="softmax temperature of the teacher")
    momentum: Fraction = Field(0.996, description="momentum of the teacher")
    center_momentum: Fraction = Field(0.9, description="momentum of the teacher output's centre")
    snapshot: Literal["teacher", "student"] = Field("teacher", description="whose encoder is fine-tuned")


class SwavSpec(MultiCrop):
    """SwAV (Caron et al. 2020): a crop's assignment to prototypes is predicted from the image's other crops."""

    local_share = 0.05 / 0.14  # as in SwAV

    method: Literal["swav"] = "swav"
    prototypes: Positive = Field(300, description="number of prototypes that images are assigned to")
    hidden_dim: HiddenDim = Field(2048, description=f"width of the projection head's hidden layer; {_FEATURES}")
    projection_dim: Positive = Field(128, description="width of the projection head's output")
    temperature: PositiveNumber = Field(0.1, description="softmax temperature of the predicted assignments")
    epsilon: PositiveNumber = Field(0.05, description="weight of the assignments' entropy: less is harder")
    sinkhorn_iterations: Positive = Field(3, description="iterations of the Sinkhorn algorithm")
    queue: int = Field(384, ge=0, description="earlier projections that are assigned with a group's; 0: none")


class ByolSpec(Momentum):
    """BYOL (Grill et al. 2020): regression of a momentum encoder's projection, no negatives."""

    method: Literal["byol"] = "byol"
    projection_dim: Positive = Field(256, description="width of the projection head's output")
    hidden_dim: HiddenDim = Field(
        4096, description=f"width of the hidden layers of projection head and predictor; {_FEATURES}"
    )
    momentum: Fraction = Field(0.996, description="momentum of the momentum encoder")


class SimsiamSpec(SelfSupervised):
    """SimSiam (Chen and He 2021): one view's projection is predicted from the other's, without a momentum encoder."""

    method: Literal["simsiam"] = "simsiam"
    projection_dim: Positive = Field(2048, description="width of the projection head's output")
    hidden_dim: HiddenDim = Field(2048, description=f"width of the projection head's hidden layers; {_FEATURES}")
    predictor_dim: Positive = Field(512, description="width of the predictor's hidden layer")


class BarlowTwinsSpec(SelfSupervised):
    """Barlow Twins (Zbontar et al. 2021): the views' cross-correlation is driven to the identity."""

    method: Literal["barlow_twins"] = "barlow_twins"
    projection_dim: Positive = Field(2048, description="width of the projection head's output")
    hidden_dim: HiddenDim = Field(2048, description=f"width of the projection head's hidden layers; {_FEATURES}")
    redundancy: PositiveNumber = Field(5e-3, description="weight of the off-diagonal terms (lambda)")


class ImagenetSpec(StartingWeights):
    """Weights trained on ImageNet, from segmentation-models-pytorch or from the file `weights`."""

    method: Literal["imagenet"] = "imagenet"


HUB_ADDRESS = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^@\s]+)(@(?P<revision>[\w./-]+))?")
"""A file on the Hugging Face Hub, as `pretrain.hf` gives it."""


class WeightsSpec(Spec):
    """A starting point of one's own: the weights in a file, under a name of their own in every table."""

    method: Literal["weights"] = "weights"
    name: str = Field(
        "",
        max_length=40,
        pattern=r"^([\w.+/-]+( [\w.+/-]+)*)?$",
        description="what tables call it, such as RadImageNet",
    )
    file: str | None = Field(None, description="file (.safetensors, .pth, .pt) with the weights of the encoder")
    hf: str | None = Field(
        None,
        description="in its place a file on the Hugging Face Hub, OWNER/REPOSITORY/FILE[@REVISION]; FILE may hold *",
    )
    weights_sha256: str | None = Field(
        None, description="SHA-256 of the file; filled in for `file`, checked when given"
    )

    @model_validator(mode="after")
    def _hash_file(self) -> Self:
        if self.hf is not None and not HUB_ADDRESS.fullmatch(self.hf):
            raise ValueError(
                f"hf must be OWNER/REPOSITORY/FILE, or with @REVISION behind it; got '{self.hf}'; give all three parts"
            )
        if self.file is not None and self.hf is not None:
            raise ValueError(f"file must be left out where hf is given; got '{self.file}' and '{self.hf}'; keep one")
        identify(self, "file", self.file, self.weights_sha256)
        return self

    @property
    def content(self) -> str:
        """What its weights are: the SHA-256 of their file or, where that is not known, their place on the hub."""
        return self.weights_sha256 or self.hf or ""


class ScratchSpec(Spec):
    """Random initial weights."""

    method: Literal["scratch"] = "scratch"


@dataclass(frozen=True)
class MethodRow:
    """One way to initialise a network, a row of `METHODS`."""

    spec: type[Spec]
    network: str  # the kind it runs on where none is named, a key of `NETWORKS`
    code: str | None  # module of the implementation; None: there is nothing to train
    label: str  # as printed in tables
    only: tuple[str, ...] = ()  # the kinds that it runs on, its own first; empty: all of `NETWORKS`
    needs: tuple[str, ...] = ()  # fields of the spec that a user has to give; of `A or B` one

    @property
    def networks(self) -> tuple[str, ...]:
        """The kinds of network that it runs on, its own first."""
        return self.only or (self.network, *(kind for kind in NETWORKS if kind != self.network))


DENOISERS = ("unet", "reference", "scn")
"""The kinds of network that predict an image, see `ablate.network.base.Denoiser`."""

METHODS: dict[str, MethodRow] = {
    "ddpm": MethodRow(DdpmSpec, "unet", "ablate.pretrain.ddpm", "DDPM", only=DENOISERS),
    "denoise": MethodRow(DenoiseSpec, "unet", "ablate.pretrain.denoise", "denoising", only=DENOISERS),
    "mask": MethodRow(MaskSpec, "unet", "ablate.pretrain.mask", "masking", only=DENOISERS),
    "mocov3": MethodRow(MocoV3Spec, "encoder", "ablate.pretrain.mocov3", "MoCo v3"),
    "mocov2": MethodRow(MocoV2Spec, "encoder", "ablate.pretrain.mocov2", "MoCo v2"),
    "mocov1": MethodRow(MocoV1Spec, "encoder", "ablate.pretrain.mocov1", "MoCo v1"),
    "simclr": MethodRow(SimclrSpec, "encoder", "ablate.pretrain.simclr", "SimCLR"),
    "simclrv2": MethodRow(SimclrV2Spec, "encoder", "ablate.pretrain.simclr", "SimCLR v2"),
    "dino": MethodRow(DinoSpec, "encoder", "ablate.pretrain.dino", "DINO"),
    "swav": MethodRow(SwavSpec, "encoder", "ablate.pretrain.swav", "SwAV"),
    "byol": MethodRow(ByolSpec, "encoder", "ablate.pretrain.byol", "BYOL"),
    "simsiam": MethodRow(SimsiamSpec, "encoder", "ablate.pretrain.simsiam", "SimSiam"),
    "barlow_twins": MethodRow(BarlowTwinsSpec, "encoder", "ablate.pretrain.barlow_twins", "Barlow Twins"),
    "imagenet": MethodRow(ImagenetSpec, "encoder", None, "ImageNet", only=("encoder",)),
    "weights": MethodRow(WeightsSpec, "encoder", None, "own weights", needs=("name", "file or hf")),
    "scratch": MethodRow(ScratchSpec, "unet", None, "scratch"),
}
"""Every initialisation. A new method is one file under `ablate/pretrain/` and one row here."""


def method_label(method: str, name: str = "") -> str:
    """Return what a reader calls an initialisation: the label of its method, or the name of a starting point.

    A starting point that is named like a method is told apart from it: `ImageNet (own weights)`.
    """
    own = METHODS[method].label
    if not name:
        return own
    labels = {text.casefold() for key, row in METHODS.items() for text in (key, row.label)}
    return f"{name} ({own})" if name.casefold() in labels else name


def missing_field(spec: Spec) -> tuple[str, str] | None:
    """Return the first field that an initialisation needs and was not given, and the message that refuses that."""
    method = str(getattr(spec, "method"))  # noqa: B009
    for needed in METHODS[method].needs:
        field, *others = needed.split(" or ")
        if not any(getattr(spec, name) for name in (field, *others)):
            rules = " or ".join(
                f"pretrain.{name}: {type(spec).model_fields[name].description}" for name in (field, *others)
            )
            return field, f"pretrain.method {method} needs {rules}; it is not given"
    return None


def _pretrain_of(value: object) -> object:
    """Choose the spec class by `method`, so that an error names that method's fields alone."""
    if isinstance(value, Spec):
        return value
    if not isinstance(value, Mapping) or "method" not in value:
        raise ValueError(f"pretrain needs a method: one of {', '.join(METHODS)}")
    method = METHODS.get(str(value["method"]))
    if method is None:
        raise ValueError(
            f"pretrain.method must be one of {', '.join(METHODS)}; "
            f"got {value['method']!r}{nearest(value['method'], METHODS)}"
        )
    return method.spec.model_validate(value)


AnyPretrain: TypeAlias = Annotated[SerializeAsAny[Spec], BeforeValidator(_pretrain_of)]
