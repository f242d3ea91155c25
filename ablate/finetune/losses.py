"""Losses between predicted heatmaps and their targets.

Every loss is the mean over images of a loss per image, so the losses of parts of a batch, weighted by their images,
add up to the loss of the whole, and so do the gradients. A landmark that is not annotated does not contribute to its
image's loss: its map receives no gradient there.

Shapes: B images, K landmarks, H and W of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ablate.network.heatmaps import Loss

LossFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits (B, K, H, W), targets (B, K, H, W) and the mask (B, K) of annotated landmarks; returns (B,)."""

_VISIBLE = 1e-4  # a target map that sums to less lies outside its image


def channel_cross_entropy(logits_BKHW: Tensor, targets_BKHW: Tensor, annotated_BK: Tensor) -> Tensor:
    """Cross-entropy across the landmark channels at each pixel, with the targets as soft labels (paper).

    The sum over pixels is divided by H * W, as torch's `CrossEntropyLoss` does; pixels in no disk add
    nothing. A landmark that is not annotated is no class in its image.
    """
    unknown_BK11 = ~annotated_BK[..., None, None]
    logits_BKHW = logits_BKHW.masked_fill(unknown_BK11, torch.finfo(logits_BKHW.dtype).min)
    log_BKHW = logits_BKHW.log_softmax(dim=1).masked_fill(unknown_BK11, 0)
    return -(targets_BKHW * log_BKHW).sum(dim=1).mean(dim=(1, 2))


def spatial_cross_entropy(logits_BKHW: Tensor, targets_BKHW: Tensor, annotated_BK: Tensor) -> Tensor:
    """Cross-entropy across the pixels of each landmark's map, with the target normalised to sum 1.

    Mean over the image's landmarks that are annotated and whose target reaches into the image.
    """
    total_BK = targets_BKHW.sum(dim=(2, 3))
    counts_BK = annotated_BK & (total_BK > _VISIBLE)
    log_BKP = logits_BKHW.flatten(2).log_softmax(dim=2)
    loss_BK = -(targets_BKHW.flatten(2) * log_BKP).sum(dim=2) / total_BK.clamp(min=_VISIBLE)
    return mean_over(loss_BK, counts_BK)


def mean_squared_error(logits_BKHW: Tensor, targets_BKHW: Tensor, annotated_BK: Tensor) -> Tensor:
    """Squared difference from the target, mean over pixels and the image's annotated landmarks."""
    return mean_over((logits_BKHW - targets_BKHW).square().mean(dim=(2, 3)), annotated_BK)


def wing(distance: Tensor, *, width: float, curvature: float) -> Tensor:
    """Return the wing loss of distances, element by element (Feng et al. 2018, equation 5).

    `width * log(1 + distance / curvature)` below `width`, steeper the smaller a distance is, and beyond it the distance
    less the constant that joins the two.
    """
    constant = width - width * math.log1p(width / curvature)
    small, large = width * torch.log1p(distance / curvature), distance - constant
    return torch.where(distance < width, small, large)


def mean_over(loss_BK: Tensor, counts_BK: Tensor) -> Tensor:
    """Mean over the landmarks that count; 0 for an image that has none."""
    return torch.where(counts_BK, loss_BK, 0).sum(dim=1) / counts_BK.sum(dim=1).clamp(min=1)


LOSSES: dict[Loss, LossFunction] = {
    "ce": channel_cross_entropy,
    "spatial_ce": spatial_cross_entropy,
    "mse": mean_squared_error,
}
"""The losses against target maps, per image, by their names in a trial's `finetune.loss`; others: `objectives`."""
