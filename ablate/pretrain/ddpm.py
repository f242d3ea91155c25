"""DDPM: a whole U-Net learns to predict the noise in a noised image.

Ho et al. 2020, "Denoising diffusion probabilistic models", set up as the paper does: epsilon-prediction, timesteps
drawn from 1..T-1, gradient values clipped, weights averaged. Images are noised in the range of their network,
`network.input_range`: by default [-1, 1] for `unet` and the authors' [0, 1] for `reference`. Shapes: B images, N
pictures of a strip, H and W of the square image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate.network.base import Denoiser
from ablate.network.building import build_network
from ablate.pretrain.whole import WholeNetworkTraining
from ablate.space import BetaSchedule, DdpmSpec, Pretraining
from ablate.space.noise import FIRST_BETA, LAST_BETA, MATCHED_TIMESTEPS, fixed_betas, matched_betas
from ablate.training import seeded

SCHEDULES: dict[BetaSchedule, str] = {
    "linear": "linear",
    "cosine": "squaredcos_cap_v2",
    "quadratic": "scaled_linear",
    "sigmoid": "sigmoid",
}
"""Names in diffusers of the noise schedules that it has, see `ablate.space.noise`."""


class NoiseSchedule:
    """Noising by timesteps, and the way back: diffusers' DDPMScheduler with types.

    Betas of `ablate.space.noise` are given to it where they are matched to another number of timesteps, or are of a
    schedule that it lacks; its own are the same to the last bits of float32, which pre-trainings keep.
    """

    def __init__(self, spec: DdpmSpec) -> None:
        from diffusers import DDPMScheduler

        given = None
        if spec.betas == "matched" and spec.timesteps != MATCHED_TIMESTEPS:
            given = matched_betas(spec.beta_schedule, spec.timesteps)
        elif spec.beta_schedule not in SCHEDULES:
            given = fixed_betas(spec.beta_schedule, spec.timesteps)
        self.timesteps = spec.timesteps
        self._scheduler: Any = DDPMScheduler(
            num_train_timesteps=spec.timesteps,
            beta_start=FIRST_BETA,
            beta_end=LAST_BETA,
            beta_schedule=SCHEDULES.get(spec.beta_schedule, "linear"),
            trained_betas=given,
            prediction_type="epsilon",
        )

    @property
    def betas(self) -> Tensor:
        """Variance of the noise that each timestep adds."""
        betas: Tensor = self._scheduler.betas
        return betas

    def add_noise(self, scaled_B1HW: Tensor, noise_B1HW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return scaled images as they are after `timesteps_B` of noise."""
        noised: Tensor = self._scheduler.add_noise(scaled_B1HW, noise_B1HW, timesteps_B)
        return noised

    def step_back(self, noise_B1HW: Tensor, noised_B1HW: Tensor, timestep: int, generator: torch.Generator) -> Tensor:
        """Draw the images one timestep earlier, given the noise predicted in them."""
        earlier: Tensor = self._scheduler.step(noise_B1HW, timestep, noised_B1HW, generator=generator).prev_sample
        return earlier


class Ddpm(WholeNetworkTraining[DdpmSpec]):
    """Noise prediction at every timestep with the whole network."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        self.schedule = NoiseSchedule(self.spec)

    def prepare(self, images_B1HW: Tensor, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """Return scaled images, noise (both (B, 1, H, W)) and timesteps (B)."""
        images_B1HW = self.augmented(images_B1HW, generator)
        noise = torch.randn(images_B1HW.shape, generator=generator, device=images_B1HW.device)
        timesteps = torch.randint(
            1, self.schedule.timesteps, (len(images_B1HW),), generator=generator, device=images_B1HW.device
        )
        return self.network.scale(images_B1HW), noise, timesteps

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the distance between the noise and its prediction, a mean over images and pixels."""
        scaled, noise, timesteps = prepared
        predicted = self.network.denoise(self.schedule.add_noise(scaled, noise, timesteps), timesteps)
        return self.distance(predicted, noise)


IMPLEMENTATION = Ddpm


@dataclass(frozen=True)
class Strips:
    """Two rows of pictures of a DDPM: an image that is noised, and a new image drawn from noise; uint8 (N, H, W)."""

    timesteps: tuple[int, ...]  # of the pictures of `noising`, ascending; `sampling` shows them descending
    noising_NHW: np.ndarray
    sampling_NHW: np.ndarray  # the last picture is the drawn image


@torch.no_grad()
def strips(
    pretraining: Pretraining,
    tensors: Mapping[str, Tensor],
    image_HW: np.ndarray,
    *,
    num_pictures: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Strips:
    """Noise an image, and draw a new image from noise.

    Sampling ends with timestep 1, the lowest the network was trained on. It starts from pure noise; with few timesteps
    and `betas: fixed` the last one still shows some of the image, so that samples come out pale.

    Args:
        pretraining: a `ddpm` pre-training.
        tensors: one of its snapshots.
        image_HW: uint8, what is noised.
        num_pictures: N, at least 2; no more than there are timesteps are made.
        seed: of all noise.
        device: where to compute.

    Raises:
        ValueError: the pre-training is of another method, or the tensors do not fit its network.
    """
    spec = pretraining.fields
    if not isinstance(spec, DdpmSpec):
        raise ValueError(f"strips show what a ddpm pre-training does; got {spec.method}")
    schedule = NoiseSchedule(spec)
    size = pretraining.image_size
    network = build_network(
        pretraining.network,
        num_outputs=1,
        image_size=size,
        seed=spec.seed,
        head="noise",
        precision=pretraining.precision,
    )
    assert isinstance(network, Denoiser)  # or it could not be built with the noise head
    network.load_initial(tensors)
    network.to(device).eval()

    shown = np.linspace(0, spec.timesteps - 1, min(num_pictures, spec.timesteps)).round().astype(int)
    generator = seeded(device, seed, "noising strip")
    scaled = network.scale(torch.as_tensor(image_HW, device=device).float()[None, None] / 255)
    noise = torch.randn(scaled.shape, generator=generator, device=device)
    noising = [
        scaled if step == 0 else schedule.add_noise(scaled, noise, torch.tensor([step], device=device))
        for step in shown
    ]

    generator = seeded(device, seed, "sampling strip")
    sample = torch.randn(scaled.shape, generator=generator, device=device)
    sampling = [sample]
    for step in range(spec.timesteps - 1, 0, -1):
        predicted = network.denoise(sample, torch.tensor([step], device=device))
        sample = schedule.step_back(predicted, sample, step, generator)
        if step - 1 in shown:
            sampling.append(sample)
    return Strips(tuple(int(step) for step in shown), *(_pictures(network, strip) for strip in (noising, sampling)))


def _pictures(network: Denoiser, scaled: list[Tensor]) -> np.ndarray:
    stacked = network.unscale(torch.cat(scaled))[:, 0].clamp(0, 1)
    pictures: np.ndarray = (stacked * 255).round().to("cpu", torch.uint8).numpy()
    return pictures
