"""Trials and pre-trainings: their fields, the rules between fields, and the digests by which equal ones are one."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ablate.space.finetuning import FIELDS_OF_LOSSES, SMALLEST_SIGMA, EvaluateSpec, FinetuneSpec
from ablate.space.methods import METHODS, AnyPretrain, ScratchSpec, SelfSupervised
from ablate.space.networks import NETWORKS, NetworkSpec, Precision
from ablate.space.pretrain import AFTER_TRAINING, FILES_OF_WEIGHTS, Pretrain
from ablate.space.spec import Spec
from ablate.space.whole import DdpmSpec

SPEC_VERSION = 1
"""Raised when a default changes its meaning, so that old identities are never mistaken for new ones."""

PAPER_SIZE = 256
"""Image size of the paper, the reference for sizes given in pixels (paper, section 4)."""

BUILT_IN_DATASETS = ("chest", "cephalo", "hand", "synthetic")


def _shots(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"shots must be a whole number of at least 1, or all; got {value!r}")


class Selection(Spec):
    """Which annotated training images are a trial's shots."""

    shots: int | Literal["all"]
    draw: int | None = None  # seed of the random draw; None: the first by file name


class TrialSpec(Spec):
    """One trial: pre-training, fine-tuning and evaluation on the whole test set."""

    dataset: str = Field(description="chest, cephalo, hand, synthetic or a folder with dataset.yaml")
    image_size: int = Field(PAPER_SIZE, ge=16, description="side of the square network input in pixels")
    shots: Annotated[int | Literal["all"], BeforeValidator(_shots)] = Field(
        "all", description="annotated training images, or all"
    )
    few_shot: Literal["first", "random"] = Field(
        "first", description="which training images: the first by file name (paper), or drawn at random"
    )
    draw: int | None = Field(
        None, ge=0, description="seed of the random draw of the shots (few_shot: random); default: `seed`"
    )
    fold: int | None = Field(
        None, ge=0, description="which fold is the test split, from 0, where the data set is divided into folds"
    )
    validation: Literal["full", "inside_shots", "none"] = Field(
        "full",
        description="what chooses epoch, learning-rate drops and weights: the validation images (paper), a share of "
        "the shots, or nothing",
    )
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="share of the shots that validates (validation: inside_shots), at least one image"
    )
    seed: int = Field(0, ge=0, description="seed of fine-tuning: new weights, data order, augmentation")
    precision: Precision = Field(
        "fp32",
        description="what the network computes in: fp32 (on a GPU with TF32 convolutions) or bf16 (autocast); losses, "
        "heads and weights stay fp32",
    )
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
        if issubclass(method.spec, Pretrain):
            if not pretrain.get("dataset"):
                pretrain["dataset"] = data.get("dataset", "")
            if pretrain.get("seed") == "trial":
                pretrain["seed"] = data.get("seed", 0)
        network, finetune = _plain(data.get("network", {})), _plain(data.get("finetune", {}))
        if isinstance(network, dict):
            network.setdefault("kind", method.network)
            data["network"] = network
        if isinstance(finetune, dict):
            size = data.get("image_size", PAPER_SIZE)
            finetune.setdefault("lr", 1e-4 if pretrain["method"] == "scratch" else 1e-5)
            if isinstance(size, int) and size > 0:
                finetune.setdefault("sigma", 5 * size / PAPER_SIZE)
                finetune.setdefault("heat_scale", 1600 * (size / PAPER_SIZE) ** 2)
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
            *some, last = method.networks
            kinds = f"{', '.join(some)} or {last}" if some else last
            raise ValueError(
                f"network.kind must be {kinds} for pretrain.method {self.method}; "
                f"got {self.network.kind!r}; leave it out to take the method's own"
            )
        multiple = self.network.multiple
        if self.image_size % multiple:
            raise ValueError(
                f"image_size must be divisible by {multiple} for this network; got {self.image_size}; "
                f"the nearest is {max(1, round(self.image_size / multiple)) * multiple}"
            )
        if self.draw is not None and (self.few_shot == "first" or self.shots == "all"):
            raise ValueError(
                f"draw must be left out where no shots are drawn (few_shot {self.few_shot}, shots {self.shots}); got "
                f"{self.draw}; set few_shot: random and a number of shots, or remove draw"
            )
        length = self.finetune
        if length.steps is not None and length.epochs is not None:
            raise ValueError(
                f"finetune.steps must be left out where finetune.epochs is given; got steps {length.steps} and epochs "
                f"{length.epochs}; keep one of them, or set epochs: null"
            )
        if length.steps is None and length.epochs is None:
            raise ValueError("finetune.epochs must be a whole number where finetune.steps is none; got null for both")
        if length.loss == "adaptive" and length.sigma <= SMALLEST_SIGMA:
            raise ValueError(
                f"finetune.sigma must be above {SMALLEST_SIGMA} px with finetune.loss adaptive, which learns it from "
                f"there and lets it fall no lower than that; got {length.sigma:g}"
            )
        if self.validation == "inside_shots" and self.shots == 1:
            raise ValueError(
                "shots must be at least 2 where a share of them validates (validation: inside_shots); got 1; set "
                "validation: none, or more shots"
            )
        if self.validation == "none" and self.finetune.schedule == "plateau":
            raise ValueError(
                "finetune.schedule must be linear or constant where nothing is validated (validation: none); got "
                "'plateau', which waits for a validation loss"
            )
        pretrain = self.pretrain
        if isinstance(pretrain, Pretrain) and pretrain.images == "shots" and pretrain.dataset != self.dataset:
            raise ValueError(
                f"pretrain.images must not be shots where pretrain.dataset is another data set; got pretrain.dataset "
                f"{pretrain.dataset!r} for dataset {self.dataset!r}; choose all or train"
            )
        if isinstance(pretrain, Pretrain) and (misfit := pretrain.misfit(self.image_size)):
            raise ValueError(misfit)
        if isinstance(self.pretrain, SelfSupervised) and self.pretrain.batch_size < 2:
            raise ValueError(
                f"pretrain.batch_size must be at least 2 for {self.method}, whose loss or batch statistics compare "
                f"images; got {self.pretrain.batch_size}"
            )
        told = self.finetune.timestep
        if isinstance(pretrain, DdpmSpec) and told is not None and told >= pretrain.timesteps:
            raise ValueError(f"finetune.timestep must be below pretrain.timesteps {pretrain.timesteps}; got {told}")
        return self

    @property
    def method(self) -> str:
        """Name of the initialisation, a key of `METHODS`."""
        return str(getattr(self.pretrain, "method"))  # noqa: B009

    @property
    def shots_label(self) -> str:
        """The shots as text: `10`, `all`."""
        return str(self.shots)

    @property
    def selection(self) -> Selection:
        """Which training images are the shots."""
        drawn = self.few_shot == "random" and self.shots != "all"
        draw = self.seed if self.draw is None else self.draw
        return Selection(shots=self.shots, draw=draw if drawn else None)

    @functools.cached_property
    def trial_id(self) -> str:
        """12 hex digits that name this trial in every run and on every machine."""
        return _digest(canonical(self))

    @functools.cached_property
    def pretraining(self) -> Pretraining | None:
        """The pre-training this trial starts from; None for scratch, imagenet and weights."""
        return Pretraining.of(self) if isinstance(self.pretrain, Pretrain) else None

    @property
    def pretrain_key(self) -> str | None:
        """12 hex digits that name the pre-training; None where there is none."""
        return self.pretraining.key if self.pretraining else None


def _plain(value: object) -> Any:
    """A spec as the fields that were set; a mapping as a dict; anything else as it is."""
    if isinstance(value, Spec):
        given = value.model_dump(exclude_unset=True)
        return {**given, "method": value.method} if hasattr(value, "method") else given
    return {**value} if isinstance(value, Mapping) else value


def _full(spec: Spec) -> dict[str, Any]:
    """A trial as nested JSON values, without what cannot change its result."""
    data: dict[str, Any] = spec.model_dump(mode="json")
    kind = data["network"]["kind"]
    used = NETWORKS[kind]
    data["network"] = {name: value for name, value in data["network"].items() if name in ("kind", *used.fields)}
    if data["network"].get("input_range") == used.input_range:  # a default that depends on the kind
        data["network"].pop("input_range", None)
    if not used.has_decoder:
        data["pretrain"].pop("transfer", None)
    if not used.has_timesteps:
        data["finetune"].pop("timestep")
    if data["finetune"]["epochs"] is None:  # there are steps
        data["finetune"].pop("epochs")
    if data["validation"] != "inside_shots":
        data.pop("validation_share")
    for name, losses in FIELDS_OF_LOSSES.items():
        if data["finetune"]["loss"] not in losses:
            data["finetune"].pop(name)
    for name in FILES_OF_WEIGHTS:  # identified by the SHA-256
        data["pretrain"].pop(name, None)
    if data["pretrain"].get("weights_sha256"):
        data["pretrain"].pop("hf", None)
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
    base = _defaults(spec.dataset, spec.image_size, spec.method, spec.network.kind, spec.network.channels)
    return {**_differences(_full(spec), base), **key, "spec_version": SPEC_VERSION}


@functools.lru_cache(maxsize=1024)
def _defaults(dataset: str, image_size: int, method: str, kind: str, channels: tuple[int, ...]) -> Mapping[str, Any]:
    """The fields of a trial of which only these are given, as `_full` returns them; not to be changed."""
    default = TrialSpec.model_validate(
        {
            "dataset": dataset,
            "image_size": image_size,
            "pretrain": {"method": method},
            "network": {"kind": kind, "channels": channels},
        }
    )
    network = {**NetworkSpec().model_dump(mode="json", exclude={"input_range"}), "kind": METHODS[method].network}
    return {**_full(default), "network": network}


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Pretraining(Spec):
    """A pre-training apart from the trials that use it: all it depends on, and its number of steps.

    What of it is fine-tuned is the trials' own, see `Pretrain.as_trained`.
    """

    spec: AnyPretrain
    network: NetworkSpec
    image_size: int
    selection: Selection | None = None  # the shots, where they are all it sees
    fold: int | None = None  # whose images it sees, where its data set is divided into folds
    precision: Precision = "fp32"

    @classmethod
    def of(cls, trial: TrialSpec) -> Pretraining:
        """Return the pre-training of `trial`, to the trial's number of steps."""
        selection = trial.selection if getattr(trial.pretrain, "images", None) == "shots" else None
        own = isinstance(trial.pretrain, Pretrain) and trial.pretrain.dataset == trial.dataset
        return cls(
            spec=trial.pretrain.as_trained() if isinstance(trial.pretrain, Pretrain) else trial.pretrain,
            network=trial.network,
            image_size=trial.image_size,
            selection=selection,
            fold=trial.fold if own else None,
            precision=trial.precision,
        )

    @property
    def fields(self) -> Pretrain:
        """The spec, typed as one that has a training run."""
        assert isinstance(self.spec, Pretrain)
        return self.spec

    @property
    def trained_network(self) -> NetworkSpec:
        """The network that is pre-trained: the trial's, but for what it takes images as."""
        given = getattr(self.spec, "input", "network")
        return self.network if given == "network" else self.network.model_copy(update={"input": given})

    @functools.cached_property
    def key(self) -> str:
        """12 hex digits over everything the pre-training depends on except what of it is fine-tuned."""
        return _pretrain_key(self.fields, self.network, self.image_size, self.precision, self.selection, self.fold)


@functools.lru_cache(maxsize=4096)  # the trials of a search space have few pre-trainings
def _pretrain_key(
    pretrain: Pretrain,
    network: NetworkSpec,
    image_size: int,
    precision: Precision,
    selection: Selection | None,
    fold: int | None,
) -> str:
    own = {"dataset": pretrain.dataset, "image_size": image_size, "precision": precision}
    identity = canonical(TrialSpec.model_validate({**own, "pretrain": pretrain, "network": network}))
    different = {name: value for name, value in identity.pop("pretrain", {}).items() if name not in AFTER_TRAINING}
    if different:
        identity["pretrain"] = different
    if selection is not None:
        identity["selection"] = selection.model_dump(mode="json")
    if fold is not None:
        identity["fold"] = fold
    return _digest({**identity, "kind": "pretraining"})
