"""What is a trial, and which trials does a search space hold?

A search space is a YAML file; a trial is one frozen `TrialSpec`. This module turns one into the other,
gives every trial and every pre-training an identity, and refuses what cannot be run with one message.
It imports neither torch nor any other module of the package.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

SPEC_VERSION = 1
"""Raised when a default changes its meaning, so that old identities are never mistaken for new ones."""

PAPER_SIZE = 256
"""Image size of the paper, the reference for sizes given in pixels (paper, section 4)."""

BUILT_IN_DATASETS = ("chest", "cephalo", "hand", "synthetic")

NetworkKind: TypeAlias = Literal["unet", "encoder"]


class InputError(Exception):
    """Something the user gave cannot be used: the message says where, the rule, the value and the cure."""


def nearest(value: object, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.55)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Spec(BaseModel):
    """Base of all specs: frozen, typed strictly, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


# --- pre-training -----------------------------------------------------------------------------------


class Pretrain(Spec):
    """Fields every pre-training has; the base of the specs that have a training run."""

    method: str
    dataset: str = Field("", description="data set whose train and val images are used; default: the trial's own")
    steps: Positive = Field(10_000, description="optimizer steps; the snapshot at this step is fine-tuned")
    seed: int = Field(0, ge=0, description="seed of initial weights, data order, noise and views")
    lr: Rate = Field(1e-4, description="AdamW learning rate, constant after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    warmup: int = Field(0, ge=0, description="optimizer steps of linear learning-rate warm-up")
    batch_size: Positive = Field(4, description="images in one forward pass")
    accumulate: Positive = Field(8, description="forward passes in one optimizer step")
    weights: str | None = Field(None, description="file (.safetensors, .pth, .pt) with the weights to start from")
    weights_sha256: str | None = Field(None, description="SHA-256 of `weights`; filled in, checked when given")

    @model_validator(mode="after")
    def _hash_weights(self) -> Pretrain:
        if self.weights is None:
            return self
        path = Path(self.weights).expanduser().resolve()
        try:
            with path.open("rb") as file:
                sha = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if self.weights_sha256:  # identity is known; whoever loads the file reports that it is gone
                return self
            raise ValueError(
                f"weights must be a readable file; got '{self.weights}' ({error.strerror}); "
                "give the path from the current folder"
            ) from error
        if self.weights_sha256 not in (None, sha):
            raise ValueError(f"weights '{self.weights}' has changed: SHA-256 {sha}, expected {self.weights_sha256}")
        object.__setattr__(self, "weights", str(path))
        object.__setattr__(self, "weights_sha256", sha)
        return self


class DdpmSpec(Pretrain):
    """Denoising diffusion (Ho et al. 2020), as in the paper."""

    method: Literal["ddpm"] = "ddpm"
    steps: Positive = Field(8_000, description="optimizer steps; the snapshot at this step is fine-tuned")
    timesteps: int = Field(500, ge=2, description="T, the number of diffusion timesteps")
    beta_schedule: Literal["linear", "cosine", "quadratic", "sigmoid"] = Field(
        "linear", description="noise schedule; linear runs from 1e-4 to 0.02"
    )
    loss: Literal["l1", "l2", "huber"] = Field("l2", description="loss between true and predicted noise")
    ema: Fraction = Field(0.995, description="decay of the exponential moving average of the weights")
    clip: Rate = Field(1.0, description="gradient values are clipped to +- this")


class SelfSupervised(Pretrain):
    """Fields of methods that compare two augmented views of an image."""

    min_crop: float = Field(0.2, gt=0, le=1, description="smallest share of the image's area that a view shows")


class MocoV3Spec(SelfSupervised):
    """MoCo v3 (Chen, Xie, He 2021): symmetric InfoNCE against a momentum encoder, no queue."""

    method: Literal["mocov3"] = "mocov3"
    projection_dim: Positive = Field(256, description="width of the projection head's output")
    hidden_dim: Positive = Field(2048, description="width of the hidden layers of projection head and predictor")
    temperature: Rate = Field(0.5, description="softmax temperature of the contrastive loss")
    momentum: Fraction = Field(0.999, description="momentum of the momentum encoder")


class MocoV2Spec(SelfSupervised):
    """MoCo v2 (Chen et al. 2020): InfoNCE against a queue of keys from a momentum encoder."""

    method: Literal["mocov2"] = "mocov2"
    projection_dim: Positive = Field(128, description="width of the projection head's output")
    hidden_dim: Positive = Field(2048, description="width of the projection head's hidden layer")
    temperature: Rate = Field(0.2, description="softmax temperature of the contrastive loss")
    momentum: Fraction = Field(0.999, description="momentum of the momentum encoder")
    queue: Positive = Field(4096, description="keys held as negatives")


class SimclrSpec(SelfSupervised):
    """SimCLR (Chen et al. 2020): NT-Xent over the views in a batch, two-layer projection head."""

    method: Literal["simclr"] = "simclr"
    projection_dim: Positive = Field(128, description="width of the projection head's output")
    hidden_dim: Positive = Field(2048, description="width of the projection head's hidden layer")
    temperature: Rate = Field(0.5, description="softmax temperature of the contrastive loss")


class SimclrV2Spec(SimclrSpec):
    """SimCLR v2 (Chen et al. 2020b): as SimCLR with a three-layer projection head."""

    method: Literal["simclrv2"] = "simclrv2"  # type: ignore[assignment]


class DinoSpec(SelfSupervised):
    """DINO (Caron et al. 2021): self-distillation from a momentum teacher over global and local crops."""

    method: Literal["dino"] = "dino"
    prototypes: Positive = Field(65_536, description="width of the projection head's output")
    hidden_dim: Positive = Field(2048, description="width of the projection head's hidden layers")
    bottleneck_dim: Positive = Field(256, description="width of the projection head's bottleneck")
    student_temperature: Rate = Field(0.1, description="softmax temperature of the student")
    teacher_temperature: Rate = Field(0.04, description="softmax temperature of the teacher")
    momentum: Fraction = Field(0.996, description="momentum of the teacher")
    center_momentum: Fraction = Field(0.9, description="momentum of the teacher output's centre")
    local_crops: int = Field(6, ge=0, description="number of local crops beside the two global ones")


class ByolSpec(SelfSupervised):
    """BYOL (Grill et al. 2020): regression of a momentum encoder's projection, no negatives."""

    method: Literal["byol"] = "byol"
    projection_dim: Positive = Field(256, description="width of the projection head's output")
    hidden_dim: Positive = Field(4096, description="width of the hidden layers of projection head and predictor")
    momentum: Fraction = Field(0.996, description="momentum of the momentum encoder")


class BarlowTwinsSpec(SelfSupervised):
    """Barlow Twins (Zbontar et al. 2021): the views' cross-correlation is driven to the identity."""

    method: Literal["barlow_twins"] = "barlow_twins"
    projection_dim: Positive = Field(2048, description="width of the projection head's output")
    hidden_dim: Positive = Field(2048, description="width of the projection head's hidden layers")
    redundancy: Rate = Field(5e-3, description="weight of the off-diagonal terms (lambda)")


class ImagenetSpec(Spec):
    """Weights trained on ImageNet, from segmentation-models-pytorch or from a file."""

    method: Literal["imagenet"] = "imagenet"
    weights: str | None = Field(None, description="file (.safetensors, .pth, .pt) with the encoder's weights")
    weights_sha256: str | None = Field(None, description="SHA-256 of `weights`; filled in, checked when given")

    _hash_weights = Pretrain._hash_weights


class ScratchSpec(Spec):
    """Random initial weights."""

    method: Literal["scratch"] = "scratch"


@dataclass(frozen=True)
class Method:
    """One way to initialise a network."""

    spec: type[Spec]
    networks: tuple[NetworkKind, ...]  # allowed kinds, the default first
    code: str | None  # module of the implementation; None: there is nothing to train
    label: str  # as printed in tables


METHODS: dict[str, Method] = {
    "ddpm": Method(DdpmSpec, ("unet",), "ablate.pretrain.ddpm", "DDPM"),
    "mocov3": Method(MocoV3Spec, ("encoder", "unet"), "ablate.pretrain.mocov3", "MoCo v3"),
    "mocov2": Method(MocoV2Spec, ("encoder", "unet"), "ablate.pretrain.mocov2", "MoCo v2"),
    "simclr": Method(SimclrSpec, ("encoder", "unet"), "ablate.pretrain.simclr", "SimCLR"),
    "simclrv2": Method(SimclrV2Spec, ("encoder", "unet"), "ablate.pretrain.simclr", "SimCLR v2"),
    "dino": Method(DinoSpec, ("encoder", "unet"), "ablate.pretrain.dino", "DINO"),
    "byol": Method(ByolSpec, ("encoder", "unet"), "ablate.pretrain.byol", "BYOL"),
    "barlow_twins": Method(BarlowTwinsSpec, ("encoder", "unet"), "ablate.pretrain.barlow_twins", "Barlow Twins"),
    "imagenet": Method(ImagenetSpec, ("encoder",), None, "ImageNet"),
    "scratch": Method(ScratchSpec, ("unet", "encoder"), None, "scratch"),
}
"""Every initialisation. A new method is one file under `ablate/pretrain/` and one row here."""


def _pretrain_of(value: object) -> object:
    """Choose the spec class by `method`, so that an error speaks of that method's fields alone."""
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


AnyPretrain: TypeAlias = Annotated[Spec, BeforeValidator(_pretrain_of)]


# --- the other parts of a trial ---------------------------------------------------------------------


class NetworkSpec(Spec):
    """The network that is pre-trained and fine-tuned."""

    kind: NetworkKind = Field("unet", description="unet: diffusers' UNet2DModel; encoder: U-Net on a named encoder")
    channels: Annotated[tuple[Positive, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = Field(
        (64, 128, 256, 512), description="channels of the U-Net's levels (unet)"
    )
    layers_per_block: Positive = Field(2, description="residual layers of each level (unet)")
    attention: Literal["none", "middle"] = Field("middle", description="where the U-Net attends (unet)")
    encoder: str = Field("densenet161", description="encoder of segmentation_models_pytorch (encoder)")


class AugmentSpec(Spec):
    """Random shift, scale and rotation of fine-tuning images, the border replicated."""

    shift: float = Field(0.02, ge=0, lt=1, description="largest shift, as a share of the image's side")
    scale: float = Field(0.02, ge=0, lt=1, description="largest relative change of scale; default 0 on chest")
    rotate: float = Field(2.0, ge=0, le=180, description="largest rotation in degrees")
    probability: float = Field(0.5, ge=0, le=1, description="share of images that are augmented")


class FinetuneSpec(Spec):
    """Fine-tuning on the annotated images; defaults are the paper's."""

    lr: Rate = Field(1e-5, description="AdamW learning rate; default 1e-4 from scratch")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    batch_size: Positive = Field(2, description="images in one forward pass")
    accumulate: Positive = Field(8, description="forward passes in one optimizer step")
    epochs: Positive = Field(200, description="most passes over the training images")
    schedule: Literal["plateau", "linear", "constant"] = Field("plateau", description="learning-rate schedule")
    plateau_patience: Positive = Field(13, description="epochs without improvement before the rate drops")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="factor by which the rate drops on a plateau")
    patience: Positive = Field(27, description="epochs without improvement before fine-tuning stops")
    loss: Literal["ce", "spatial_ce", "mse"] = Field("ce", description="loss between heatmaps and target")
    target: Literal["disk", "gaussian"] = Field("disk", description="shape of a landmark's target heatmap")
    sigma: Rate = Field(5.0, description="the target's sigma in pixels; default 5 * image_size / 256")
    timestep: int = Field(0, ge=0, description="diffusion timestep the U-Net is run with (unet)")
    augment: AugmentSpec = AugmentSpec()


class EvaluateSpec(Spec):
    """How heatmaps become coordinates."""

    decode: Literal["centroid", "local_mean", "argmax"] = Field("centroid", description="decoder of the heatmaps")


def _shots(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"shots must be a whole number of at least 1, or all; got {value!r}")


class TrialSpec(Spec):
    """One trial: pre-training, fine-tuning and evaluation on the whole test set."""

    dataset: str = Field(description="chest, cephalo, hand, synthetic or a folder with dataset.yaml")
    image_size: int = Field(PAPER_SIZE, ge=16, description="side of the square network input in pixels")
    shots: Annotated[int | Literal["all"], BeforeValidator(_shots)] = Field(
        "all", description="annotated training images, or all"
    )
    few_shot: Literal["first", "random"] = Field(
        "first", description="which training images: the first by file name (paper), or drawn by `seed`"
    )
    seed: int = Field(0, ge=0, description="seed of fine-tuning: new weights, data order, augmentation")
    exclude_duplicates: bool = Field(
        False, description="leave out test images that also occur in train or val; the paper keeps them"
    )
    pretrain: AnyPretrain = ScratchSpec()
    network: NetworkSpec = NetworkSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: object) -> object:
        """Fill in the defaults that depend on other fields."""
        if not isinstance(value, Mapping):
            return value
        data = {**value}
        pretrain = data.get("pretrain", ScratchSpec())
        data["pretrain"] = pretrain = _plain(pretrain)
        method = METHODS.get(str(pretrain.get("method"))) if isinstance(pretrain, dict) else None
        if method is None:
            return data  # the field's own validator says what is wrong
        if issubclass(method.spec, Pretrain) and not pretrain.get("dataset"):
            pretrain["dataset"] = data.get("dataset", "")
        network, finetune = _plain(data.get("network", {})), _plain(data.get("finetune", {}))
        if isinstance(network, dict):
            network.setdefault("kind", method.networks[0])
            data["network"] = network
        if isinstance(finetune, dict):
            size = data.get("image_size", PAPER_SIZE)
            finetune.setdefault("lr", 1e-4 if pretrain["method"] == "scratch" else 1e-5)
            if isinstance(size, int) and size > 0:
                finetune.setdefault("sigma", 5 * size / PAPER_SIZE)
            augment = _plain(finetune.get("augment", {}))
            if isinstance(augment, dict):
                augment.setdefault("scale", 0.0 if data.get("dataset") == "chest" else 0.02)
                finetune["augment"] = augment
            data["finetune"] = finetune
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> TrialSpec:
        method = METHODS[self.method]
        if not self.dataset or self.dataset.startswith(".") or re.search(r"[/\\\x00]", self.dataset):
            raise ValueError(f"dataset must be the name of a folder in the data folder; got {self.dataset!r}")
        if self.network.kind not in method.networks:
            raise ValueError(
                f"pretrain.method {self.method} needs network.kind {' or '.join(method.networks)}; "
                f"got {self.network.kind!r}; leave network.kind out to take the method's own"
            )
        multiple = 32 if self.network.kind == "encoder" else 2 ** (len(self.network.channels) - 1)
        if self.image_size % multiple:
            raise ValueError(
                f"image_size must be divisible by {multiple} for this network; got {self.image_size}; "
                f"the nearest is {max(1, round(self.image_size / multiple)) * multiple}"
            )
        if isinstance(self.pretrain, Pretrain) and self.pretrain.batch_size < 2:
            if self.method in ("simclr", "simclrv2", "mocov3", "barlow_twins"):
                raise ValueError(f"pretrain.batch_size must be at least 2 for {self.method}: it compares images")
        if isinstance(self.pretrain, DdpmSpec) and self.finetune.timestep >= self.pretrain.timesteps:
            raise ValueError(
                f"finetune.timestep must be below pretrain.timesteps {self.pretrain.timesteps}; "
                f"got {self.finetune.timestep}"
            )
        return self

    @property
    def method(self) -> str:
        """Name of the initialisation, a key of `METHODS`."""
        return str(getattr(self.pretrain, "method"))  # noqa: B009

    @property
    def shots_label(self) -> str:
        """The shots as text: `10`, `all`."""
        return str(self.shots)

    @functools.cached_property
    def trial_id(self) -> str:
        """12 hex digits that name this trial in every run and on every machine."""
        return _digest(canonical(self))

    @functools.cached_property
    def pretraining(self) -> Pretraining | None:
        """The pre-training this trial starts from; None for scratch and imagenet."""
        return Pretraining.of(self) if isinstance(self.pretrain, Pretrain) else None

    @property
    def pretrain_key(self) -> str | None:
        """12 hex digits that name the pre-training; None where there is none."""
        return self.pretraining.key if self.pretraining else None


# --- identity ---------------------------------------------------------------------------------------

_UNUSED: dict[NetworkKind, tuple[str, ...]] = {
    "unet": ("encoder",),
    "encoder": ("channels", "layers_per_block", "attention"),
}


def _plain(value: object) -> Any:
    """A spec as the fields that were set; a mapping as a dict; anything else as it is."""
    if isinstance(value, Spec):
        return value.model_dump(exclude_unset=True)
    return {**value} if isinstance(value, Mapping) else value


def _full(spec: Spec) -> dict[str, Any]:
    """A trial as nested JSON values, without what cannot change its result."""
    data: dict[str, Any] = spec.model_dump(mode="json")
    network = data["network"]
    for name in _UNUSED[network["kind"]]:
        network.pop(name)
    if network["kind"] == "encoder":
        data["finetune"].pop("timestep")
    data["pretrain"].pop("weights", None)  # identified by its SHA-256
    return data


def _differences(value: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `value` that differ from `default`, nested."""
    changed: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            inner = _differences(item, default.get(name) or {})
            if inner:
                changed[name] = inner
        elif item != default.get(name):
            changed[name] = item
    return changed


def canonical(spec: TrialSpec) -> dict[str, Any]:
    """Return the fields of `spec` that differ from their defaults, and the spec version.

    Defaults that depend on other fields (learning rate, network kind, sigma, ...) are taken for this
    trial's data set, image size and method, so a value given in full and the same value left out agree.
    """
    key = {"dataset": spec.dataset, "image_size": spec.image_size, "method": spec.method}
    default = TrialSpec.model_validate(
        {
            "dataset": spec.dataset,
            "image_size": spec.image_size,
            "pretrain": {"method": spec.method},
            "network": {"kind": spec.network.kind, "channels": spec.network.channels},
        }
    )
    base = _full(default)
    base["network"] = {**NetworkSpec().model_dump(mode="json"), "kind": METHODS[spec.method].networks[0]}
    return {**_differences(_full(spec), base), **key, "spec_version": SPEC_VERSION}


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Pretraining(Spec):
    """A pre-training apart from the trials that use it: all it depends on, and its number of steps."""

    spec: AnyPretrain
    network: NetworkSpec
    image_size: int

    @classmethod
    def of(cls, trial: TrialSpec) -> Pretraining:
        """Return the pre-training of `trial`, to the trial's number of steps."""
        return cls(spec=trial.pretrain, network=trial.network, image_size=trial.image_size)

    @property
    def fields(self) -> Pretrain:
        """The spec, typed as one that has a training run."""
        assert isinstance(self.spec, Pretrain)
        return self.spec

    @functools.cached_property
    def key(self) -> str:
        """12 hex digits over everything the pre-training depends on except its number of steps."""
        pretrain = self.fields
        trial = TrialSpec.model_validate(
            {
                "dataset": pretrain.dataset,
                "image_size": self.image_size,
                "pretrain": self.spec,
                "network": self.network,
            }
        )
        identity = canonical(trial)
        identity.get("pretrain", {}).pop("steps", None)
        identity.get("pretrain", {}).pop("dataset", None)
        return _digest({**identity, "kind": "pretraining"})


# --- the search space -------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-3` is a number and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key_node.value}' twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(rows) for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)

Place: TypeAlias = tuple[str | int, ...]


def place_text(place: Place) -> str:
    """Write a place in a file: `blocks[0].grid.pretrain[1].steps`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.lstrip(".")


@dataclass(frozen=True)
class Source:
    """A parsed YAML text that can name the line of a place in it."""

    name: str
    value: Any
    root: yaml.Node | None = field(compare=False)

    @classmethod
    def parse(cls, text: str, name: str) -> Source:
        """Parse YAML text; raise `InputError` with its line if it is none."""
        try:
            loader = _Loader(text)
            try:
                root = loader.get_single_node()
                value = loader.construct_document(root) if root is not None else None
            finally:
                loader.dispose()
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{name}:{mark.line + 1}" if mark else name
            raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
        return cls(name, value, root)

    def where(self, place: Place) -> str:
        """Return `file:line: place` for the longest part of `place` that stands in the file."""
        node, line = self.root, None
        for part in place:
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if pair[0].value == part), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line
            else:
                break
        return f"{self.name}{'' if line is None else f':{line + 1}'}: {place_text(place)}"

    def refuse(self, place: Place, problem: str) -> NoReturn:
        """Raise `InputError` for a place in this file."""
        raise InputError(f"{self.where(place)}: {problem}")


@dataclass(frozen=True)
class Grid:
    """A search space, expanded."""

    name: str
    description: str
    trials: tuple[TrialSpec, ...]
    resolved: dict[str, Any]  # the file's content with overrides applied, as JSON values


def _value_type(model: type[BaseModel], name: str) -> Any:
    info = model.model_fields.get(name)
    return info.annotation if info else None


def _is_list_field(path: Sequence[str]) -> bool:
    """Whether the trial field at `path` is a list itself, so that a list of it does not expand."""
    models: list[type[BaseModel]] = [TrialSpec]
    for name in path[:-1]:
        annotation = _value_type(models[0], name)
        if name == "pretrain":
            models = [method.spec for method in METHODS.values()]
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            models = [annotation]
        else:
            return False
    kinds = (_value_type(model, path[-1]) for model in models)
    return any(typing.get_origin(kind) is tuple for kind in kinds)


Leaf: TypeAlias = tuple[tuple[str, ...], Any, Place]  # path in the trial, value, place in the file


def _expand(value: Any, path: tuple[str, ...], place: Place, source: Source) -> list[list[Leaf]]:
    """Expand a grid's value into its alternatives, each a list of leaves."""
    if isinstance(value, dict):
        parts = [_expand(item, (*path, str(name)), (*place, str(name)), source) for name, item in value.items()]
        return [list(itertools.chain(*choice)) for choice in itertools.product(*parts)]
    if isinstance(value, list):
        if path and _is_list_field(path) and not any(isinstance(item, list) for item in value):
            return [[(path, value, place)]]
        if not value:
            source.refuse(place, "a list of alternatives must not be empty")
        if path and _is_list_field(path):
            return [[(path, item, (*place, index))] for index, item in enumerate(value)]
        return list(itertools.chain(*(_expand(v, path, (*place, i), source) for i, v in enumerate(value))))
    return [[(path, value, place)]]


def _leaves(value: Any, path: tuple[str, ...], place: Place) -> Iterator[Leaf]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, str(name)), (*place, str(name)))
    else:
        yield path, value, place


def _nest(leaves: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in leaves:
        node = tree
        for name in path[:-1]:
            inner = node.get(name)
            node[name] = node = {} if not isinstance(inner, dict) else inner
        node[path[-1]] = value
    return tree


def _known_fields(path: Sequence[str]) -> list[str]:
    """Names of the fields beside the last name of `path`."""
    annotation: Any = TrialSpec
    for name in path[:-1]:
        if name == "pretrain":
            names = itertools.chain(*(method.spec.model_fields for method in METHODS.values()))
            return sorted(set(names) - {"weights_sha256"})
        annotation = _value_type(annotation, name)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
    return sorted(annotation.model_fields)


def _explain(error: Mapping[str, Any], method: str | None) -> str:
    """Turn one of pydantic's errors into rule, value and cure."""
    path = [str(part) for part in error["loc"]]
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _known_fields(path)
        if len(path) == 2 and path[0] == "pretrain" and method in METHODS:
            known = sorted(set(METHODS[method].spec.model_fields) - {"weights_sha256"})
            return f"method {method} has no field {path[-1]!r}; it has {', '.join(known)}{nearest(path[-1], known)}"
        return f"unknown key {path[-1]!r}; known: {', '.join(known)}{nearest(path[-1], known)}"
    if kind == "missing":
        return f"{'.'.join(path)} is required"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    rule = str(error["msg"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
        return f"{path[-1]} must be one of {', '.join(choices)}; got {value!r}{nearest(value, choices)}"
    rule = rule.removeprefix("Input should be ").removeprefix("a valid ").removeprefix("Value should be ")
    article = "" if rule[:1] in "g<l" or " " in rule.split(",")[0] else ("an " if rule[0] in "aeiou" else "a ")
    return f"{path[-1] if path else 'value'} must be {article}{rule}; got {value!r}"


def _validate(data: dict[str, Any], refuse: Callable[[tuple[str, ...], str], NoReturn]) -> TrialSpec:
    """Validate one trial; hand the first problem's path and message to `refuse`."""
    try:
        return TrialSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = tuple(str(part) for part in first["loc"])
        pretrain = data.get("pretrain")
        method = str(pretrain.get("method")) if isinstance(pretrain, dict) else None
        message = _explain(first, method)
        named = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)*) (?:must|needs)", message)
        if not path and named:  # a rule over several fields names the one at fault
            path = tuple(named[1].split("."))
        refuse(path, message)


def load_trial(source: Source) -> TrialSpec:
    """Return the trial that a YAML mapping describes; raise `InputError` with place and cure."""
    if not isinstance(source.value, dict):
        raise InputError(f"{source.name}: a trial must be a mapping of its fields; got {source.value!r}")
    return _validate(source.value, lambda path, problem: source.refuse(path, problem))


def _read_overrides(texts: Sequence[str]) -> list[Leaf]:
    """Parse `--set finetune.epochs=20` into leaves, each with the text as its place."""
    leaves: list[Leaf] = []
    for text in texts:
        name, equals, value = text.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise InputError(f"--set {text}: must be FIELD=VALUE, for example --set finetune.epochs=20")
        known = _known_fields(path)
        if path[-1] not in known:
            raise InputError(f"--set {text}: unknown key {path[-1]!r}; known: {', '.join(known)}"
                             f"{nearest(path[-1], known)}")
        leaves.append((path, Source.parse(value, f"--set {text}").value, (f"--set {text}",)))
    return leaves


def load_grid(source: Source, overrides: Sequence[str] = ()) -> Grid:
    """Expand a search space into its distinct trials, in the file's order.

    `overrides` are `FIELD=VALUE` texts that take the place of fields of `base`; one that no trial could
    take, because every block sets the field itself, is refused. Raises `InputError` naming file, line,
    place, rule, value and nearest valid name.
    """
    data = source.value
    if not isinstance(data, dict):
        raise InputError(f"{source.name}: a search space must be a mapping with name and blocks")
    known = ("name", "description", "base", "blocks")
    for name in data:
        if name not in known:
            source.refuse((str(name),), f"unknown key {name!r}; known: {', '.join(known)}{nearest(name, known)}")
    for name, kind in (("name", str), ("description", str), ("base", dict), ("blocks", list)):
        if name in data and not isinstance(data[name], kind):
            source.refuse((name,), f"must be {'text' if kind is str else 'a ' + kind.__name__}; got {data[name]!r}")
    if not data.get("name") or not data.get("blocks"):
        raise InputError(f"{source.name}: a search space needs a name and at least one block")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", data["name"]):
        source.refuse(("name",), f"must be letters, digits, '.', '_' or '-'; got {data['name']!r}")
    changes = _read_overrides(overrides)
    overridden = {path for path, _, _ in changes}
    base = [leaf for leaf in _leaves(data.get("base", {}), (), ("base",)) if leaf[0] not in overridden] + changes
    for path, value, place in base:
        if isinstance(value, list) and not _is_list_field(path):
            _refuse_at(source, place, f"base never expands; put the list in a block's grid; got {value!r}")
    trials: dict[str, TrialSpec] = {}
    used: set[tuple[str, ...]] = set()
    for index, block in enumerate(data["blocks"]):
        place: Place = ("blocks", index)
        if not isinstance(block, dict) or set(block) != {"grid"} or not isinstance(block["grid"], dict):
            source.refuse(place, "a block must be a mapping with the one key grid")
        for choice in _expand(block["grid"], (), (*place, "grid"), source):
            spec = _trial_of(base, choice, (*place, "grid"), source, used)
            trials.setdefault(spec.trial_id, spec)
    for path, _, place in base:
        if path not in used:
            if path in overridden:
                raise InputError(f"{place[0]}: has no effect: every block's grid sets {'.'.join(path)} itself, or no "
                                 "method in this search space has it; edit the search space instead")
            if path[0] == "pretrain":
                source.refuse(place, f"no method in this search space has a field {path[-1]!r}"
                                     f"{nearest(path[-1], _known_fields(path))}, or every block sets it")
    resolved = {**data, "base": _nest((path, value) for path, value, _ in base)}
    return Grid(data["name"], data.get("description", ""), tuple(trials.values()), resolved)


def _refuse_at(source: Source, place: Place, problem: str) -> NoReturn:
    if place and str(place[0]).startswith("--set "):
        raise InputError(f"{place[0]}: {problem}")
    source.refuse(place, problem)


def _trial_of(
    base: list[Leaf], choice: list[Leaf], block: Place, source: Source, used: set[tuple[str, ...]]
) -> TrialSpec:
    """Build one trial from the base and one choice of a block's grid."""
    chosen = {path for path, _, _ in choice}
    method = next((value for path, value, _ in choice if path == ("pretrain", "method")), None)
    method = method or next((value for path, value, _ in base if path == ("pretrain", "method")), "scratch")
    fields = METHODS[method].spec.model_fields if isinstance(method, str) and method in METHODS else None
    leaves = []
    for path, value, place in base:
        if fields is not None and path[0] == "pretrain" and len(path) > 1 and path[1] not in fields:
            continue  # base.pretrain speaks to the methods that have the field
        if path not in chosen:
            leaves.append((path, value, place))
            used.add(path)
    leaves += choice
    places = {path: place for path, _, place in leaves}

    def refuse(path: tuple[str, ...], problem: str) -> NoReturn:
        for length in range(len(path), 0, -1):
            for leaf_path, place in places.items():
                if leaf_path[:length] == path[:length]:
                    full = place if length == len(path) else place
                    _refuse_at(source, full, problem)
        source.refuse(block, problem)

    return _validate(_nest((path, value) for path, value, _ in leaves), refuse)


# --- finding search spaces --------------------------------------------------------------------------


def shipped_folder(name: str) -> Path:
    """Return the folder `search_spaces` or `clusters`: inside the installed package, else the checkout."""
    package = Path(__file__).parent
    return next((folder for folder in (package / name, package.parent / name) if folder.is_dir()), package / name)


def shipped_grids() -> dict[str, Path]:
    """Return the shipped search spaces by name."""
    return {path.stem: path for path in sorted(shipped_folder("search_spaces").glob("*.yaml"))}


def find_grid(name: str) -> Source:
    """Return the search space called `name` among the shipped ones, or read the file `name`."""
    shipped = shipped_grids()
    path = shipped.get(name, Path(name).expanduser())
    if not path.is_file():
        raise InputError(
            f"--grid must be one of {', '.join(shipped)} or the path of a search-space file; "
            f"got '{name}'{nearest(name, shipped)}"
        )
    try:
        return Source.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a search space must be readable UTF-8 text; {error}") from error


# --- what there is to do ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The work of a search space: its trials, and the pre-trainings they share."""

    trials: tuple[TrialSpec, ...]
    pretrainings: dict[str, Pretraining]  # by key, each to the largest number of steps asked for
    snapshots: dict[str, tuple[int, ...]]  # by key, the steps some trial starts from, ascending


def plan_of(trials: Iterable[TrialSpec]) -> Plan:
    """Gather trials into a plan in which equal pre-trainings are one."""
    trials = tuple(trials)
    pretrainings: dict[str, Pretraining] = {}
    steps: dict[str, set[int]] = {}
    for trial in trials:
        pretraining = trial.pretraining
        if pretraining is None:
            continue
        key = pretraining.key
        steps.setdefault(key, set()).add(pretraining.fields.steps)
        if key not in pretrainings or pretrainings[key].fields.steps < pretraining.fields.steps:
            pretrainings[key] = pretraining
    return Plan(trials, pretrainings, {key: tuple(sorted(values)) for key, values in steps.items()})


def axes_of(trials: Sequence[TrialSpec]) -> dict[str, list[Any]]:
    """Return the fields that differ between trials, by flattened name, with their distinct values in order."""
    rows = [flatten(trial) for trial in trials]
    names = dict.fromkeys(itertools.chain(*rows))
    values = {name: list(dict.fromkeys(row[name] for row in rows if name in row)) for name in names}
    return {name: found for name, found in values.items() if len(found) > 1}


def flatten(spec: Spec, prefix: str = "") -> dict[str, Any]:
    """Return every field under its path with dots replaced by `_`: `pretrain_steps`, `finetune_lr`, ..."""
    row: dict[str, Any] = {}
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, Spec):
            row |= flatten(value, f"{prefix}{name}_")
        else:
            row[f"{prefix}{name}"] = value
    return row


