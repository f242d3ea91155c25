"""Masked image modelling: the whole network predicts hidden square patches from those that it sees.

Xie et al. 2022, "SimMIM": random patches are replaced by a constant, and their raw pixels are predicted at all places
by one network; He et al. 2022, "Masked autoencoders": the loss is that of hidden pixels alone. Patches of an eighth of
the side lie between theirs (32 of 192 and 16 of 224 pixels), and 60 % of them are hidden, as in SimMIM and in SparK
(Tian et al. 2023), which is made for convolutions. Deviations: the constant is the middle grey and is not learnt, MAE's
normalisation patch by patch is left out, and convolutions see the constant, where SparK's skip it. Shapes: B images, P
patches along a side, H and W of the square image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ablate.pretrain.whole import WholeNetworkTraining
from ablate.space import MaskSpec

GREY = 0.5
"""What hidden pixels of images in [0, 1] show."""


def hidden_patches(num_images: int, patches: int, num_hidden: int, generator: torch.Generator) -> Tensor:
    """Return which patches are hidden, (B, P, P) bool, `num_hidden` of each image, on the generator's device."""
    draws_BN = torch.rand(num_images, patches**2, generator=generator, device=generator.device)
    places_BN = draws_BN.argsort(1)  # a random permutation
    return (places_BN < num_hidden).reshape(num_images, patches, patches)


class Mask(WholeNetworkTraining[MaskSpec]):
    """Prediction of hidden pixels."""

    def prepare(self, images_B1HW: Tensor, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """Return images in [0, 1] and which of their pixels are hidden, both (B, 1, H, W)."""
        images_B1HW = self.augmented(images_B1HW, generator)
        spec, side = self.spec, images_B1HW.shape[2] // self.spec.patches
        hidden_BPP = hidden_patches(len(images_B1HW), spec.patches, spec.num_hidden, generator)
        return images_B1HW, hidden_BPP.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the distance between hidden pixels and their prediction, a mean over images and hidden pixels."""
        images, hidden = prepared
        predicted = self.restored(self.network.scale(images.masked_fill(hidden, GREY)))
        true = self.network.scale(images)
        among_all = self.distance(torch.where(hidden, predicted, true), true)  # pixels that are seen add nothing
        return among_all * (self.spec.patches**2 / self.spec.num_hidden)


IMPLEMENTATION = Mask
