"""Fine-tuning and reading landmarks: the fields of a trial's last two parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from ablate.space.spec import Positive, PositiveNumber, Spec

SMALLEST_SIGMA = 0.5
"""The bound below which no learnt sigma falls, in network pixels: a narrower Gaussian can lie between all pixels."""


class AugmentSpec(Spec):
    """Random changes of fine-tuning images: an affine map, the border replicated, and then of their grey values."""

    shift: float = Field(0.02, ge=0, lt=1, description="largest shift, as a share of the image's side")
    scale: float = Field(0.02, ge=0, lt=1, description="largest relative change of scale; default 0 on chest")
    rotate: float = Field(2.0, ge=0, le=180, description="largest rotation in degrees")
    shear: float = Field(0.0, ge=0, lt=1, description="largest shear on either axis, as a share of the other")
    gamma: float = Field(
        0.0, ge=0, description="grey values are raised to powers between 1 / (1 + gamma) and 1 + gamma"
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest standard deviation of added noise, as a share of the grey values' range",
    )
    probability: float = Field(0.5, ge=0, le=1, description="share of images that are augmented")
    normalize: Literal["before", "after"] = Field(
        "before", description="grey values are stretched to [0, 1] before augmentation, or after it once more"
    )


FIELDS_OF_LOSSES = {
    "target": ("ce", "spatial_ce", "mse"),
    "sigma_penalty": ("adaptive",),
    "heat_scale": ("adaptive",),
}
"""The fields of `finetune` that only some losses use, and which."""


class FinetuneSpec(Spec):
    """Fine-tuning on the annotated images; defaults are the paper's."""

    lr: PositiveNumber = Field(1e-5, description="AdamW learning rate; default 1e-4 from scratch")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    batch_size: Positive = Field(2, description="images of one group: batch statistics are taken within it")
    accumulate: Positive = Field(8, description="groups in one optimizer step")
    epochs: Positive | None = Field(200, description="most passes over the training images; null where steps are given")
    steps: Positive | None = Field(
        None, description="most optimizer steps, in place of epochs; with them there are at most 200 validations"
    )
    schedule: Literal["plateau", "linear", "constant"] = Field("plateau", description="learning-rate schedule")
    warmup: int = Field(0, ge=0, description="optimizer steps of linear learning-rate warm-up")
    validate_every: Positive = Field(
        1, description="epochs from one validation to the next; with steps, of the up to 200 spans between validations"
    )
    plateau_patience: Positive = Field(13, description="epochs without improvement before the rate drops")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="factor by which the rate drops on a plateau")
    patience: Positive = Field(27, description="epochs without improvement before it stops; with steps, spans")
    loss: Literal["ce", "spatial_ce", "mse", "adaptive", "wing"] = Field(
        "ce",
        description="loss between heatmaps and target; adaptive learns each landmark's sigma, wing compares points",
    )
    target: Literal["disk", "pixel_disk", "gaussian"] = Field(
        "disk",
        description="shape of a landmark's target heatmap; pixel_disk: around the nearest whole pixel (ce, spatial_ce, "
        "mse)",
    )
    sigma: PositiveNumber = Field(
        5.0, description="the target's sigma in pixels, with loss adaptive the first; default 5 * image_size / 256"
    )
    sigma_penalty: PositiveNumber = Field(100.0, description="weight of the squared sigmas in the loss (adaptive)")
    heat_scale: PositiveNumber = Field(
        1600.0,
        description="sum of a target heatmap over all pixels (adaptive); default 1600 * (image_size / 256) squared",
    )
    timestep: int | None = Field(
        0, ge=0, description="diffusion timestep the U-Net is run with; null: it is told none (unet)"
    )
    augment: AugmentSpec = AugmentSpec()

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, value: object) -> object:
        """Let `steps` take the place of the default `epochs`."""
        has_steps = isinstance(value, Mapping) and value.get("steps") is not None
        return {"epochs": None, **value} if isinstance(value, Mapping) and has_steps else value


class EvaluateSpec(Spec):
    """How heatmaps become coordinates."""

    decode: Literal["centroid", "local_mean", "dark", "soft_argmax", "argmax"] = Field(
        "centroid", description="decoder of the heatmaps"
    )
