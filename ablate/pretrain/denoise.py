"""A denoising autoencoder: the whole network predicts noise of one level, without a timestep.

Brempong et al. 2022, "Decoder denoising pretraining for semantic segmentation", from where the default level is, 0.22;
they predict the noise too. DDPM's 500 timesteps have levels from 0.015 to 12.5, 9 % of them below 0.22 and half of them
below 1.6. It is what is left of DDPM without diffusion: image and noise are scaled as DDPM scales them at the timestep
of the same noise-to-signal ratio. Deviation: the encoder is trained as well, and from random weights, as DDPM's is.
Shapes: B images, H and W of the square image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ablate.pretrain.whole import WholeNetworkTraining
from ablate.space import DenoiseSpec, Pretraining


class Denoise(WholeNetworkTraining[DenoiseSpec]):
    """Prediction of the noise in images with noise of one level."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        self.signal = 1 / math.sqrt(1 + self.spec.noise**2)

    def prepare(self, images_B1HW: Tensor, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """Return scaled images and noise, both (B, 1, H, W)."""
        images_B1HW = self.augmented(images_B1HW, generator)
        noise = torch.randn(images_B1HW.shape, generator=generator, device=images_B1HW.device)
        return self.network.scale(images_B1HW), noise

    def noised(self, scaled_B1HW: Tensor, noise_B1HW: Tensor) -> Tensor:
        """Return images with `spec.noise` times the noise, both times what keeps the variance of white images at 1."""
        return self.signal * (scaled_B1HW + self.spec.noise * noise_B1HW)

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the distance between the noise and its prediction, a mean over images and pixels."""
        scaled, noise = prepared
        return self.distance(self.restored(self.noised(scaled, noise)), noise)


IMPLEMENTATION = Denoise
