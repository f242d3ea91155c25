"""The fields of methods that train the whole network: DDPM, and what tells whether it is diffusion that helps."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ablate.space.noise import MATCHED_TIMESTEPS, BetaSchedule
from ablate.space.pretrain import Pretrain
from ablate.space.spec import Fraction, Positive, PositiveNumber, Spec


class ShiftRotateSpec(Spec):
    """Random shift and rotation of pre-training images, the border replicated; none by default."""

    shift: float = Field(0.0, ge=0, lt=1, description="largest shift, as a share of the image's side")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation in degrees")
    probability: float = Field(0.5, ge=0, le=1, description="share of images that are shifted and rotated")


class WholeNetwork(Pretrain):
    """Fields of methods that train the whole network to predict something at every pixel."""

    steps: Positive = Field(8_000, description="optimizer steps; the snapshot at this step is fine-tuned")
    loss: Literal["l1", "l2", "huber"] = Field("l2", description="loss between what is true and what is predicted")
    ema: Fraction = Field(0.995, description="decay of the exponential moving average of the weights")
    ema_ramp: bool = Field(
        True, description="whether that decay rises from 0 over the first steps; else it holds from the first step on"
    )
    clip: PositiveNumber = Field(1.0, description="gradient values are clipped to +- this")
    clip_on: Literal["mean", "sum"] = Field(
        "mean", description="what is clipped: the mean gradient of a step, or the sum over its groups"
    )
    epoch_end: Literal["full", "short"] = Field(
        "full",
        description="the last step of a pass over the images: full goes on with the next pass, short takes the whole "
        "groups that are left and drops what is left of them",
    )
    augment: ShiftRotateSpec = ShiftRotateSpec()
    transfer: Literal["network", "encoder"] = Field(
        "network",
        description="what fine-tuning starts from: the whole network but its output, or what self-supervision trains "
        "too; the rest is random then",
    )

    def as_trained(self) -> Self:
        """Return the fields with the default of what is transferred."""
        return self.model_copy(update={"transfer": "network"})


class DdpmSpec(WholeNetwork):
    """Denoising diffusion (Ho et al. 2020), as in the paper."""

    method: Literal["ddpm"] = "ddpm"
    timesteps: int = Field(500, ge=2, description="T, the number of diffusion timesteps")
    beta_schedule: BetaSchedule = Field("linear", description="noise schedule; linear runs from 1e-4 to 0.02")
    betas: Literal["fixed", "matched"] = Field(
        "fixed",
        description="betas of timesteps other than 500: those of the schedule, so that fewer timesteps end with less "
        "noise, or matched to the course and the final noise of 500 timesteps",
    )

    def as_trained(self) -> Self:
        """Return the fields with fixed betas, too, where matched ones are the same."""
        spec = super().as_trained()
        return spec.model_copy(update={"betas": "fixed"}) if self.timesteps == MATCHED_TIMESTEPS else spec


class DenoiseSpec(WholeNetwork):
    """A denoising autoencoder (Brempong et al. 2022): noise of one level is predicted, and no timestep is told."""

    method: Literal["denoise"] = "denoise"
    noise: PositiveNumber = Field(
        0.22, description="standard deviation of the noise before both are scaled, in units of the network's input"
    )


class MaskSpec(WholeNetwork):
    """Masked image modelling (Xie et al. 2022, He et al. 2022): hidden square patches are predicted from the others."""

    method: Literal["mask"] = "mask"
    patches: int = Field(8, ge=2, description="patches along a side of the image, which must be divisible by it")
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="share of the patches that are hidden")

    @property
    def num_hidden(self) -> int:
        """Patches of each image that are hidden."""
        return round(self.mask_ratio * self.patches**2)

    @model_validator(mode="after")
    def _hides_some(self) -> Self:
        number = self.patches**2
        if not 0 < self.num_hidden < number:
            raise ValueError(
                f"pretrain.mask_ratio must hide at least one of the {number} patches and leave one; got "
                f"{self.mask_ratio:g}, which hides {self.num_hidden}; choose one from {1 / number:.2g} to "
                f"{1 - 1 / number:.2g}"
            )
        return self

    def misfit(self, image_size: int) -> str | None:
        """Return why an image of this size is not made of whole patches; None if it is."""
        if image_size % self.patches == 0:
            return None
        fitting = [number for number in range(2, image_size + 1) if image_size % number == 0]
        nearest = min(fitting, key=lambda number: abs(number - self.patches))
        return (
            f"pretrain.patches must divide image_size {image_size}, so that patches are of whole pixels; got "
            f"{self.patches}; the nearest is {nearest}"
        )
