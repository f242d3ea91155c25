"""What fine-tuning minimises: a loss of each image, between a network's maps and its annotated landmarks.

An objective may have parameters of its own, which are trained beside the network's and belong to the state of a
fine-tuning, not to the network. Shapes: B images, K landmarks, H and W of the square maps, 2 = (x, y).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.finetune.losses import LOSSES, mean_over, wing
from ablate.network.evaluation import read_points
from ablate.network.heatmaps import SCORES, gaussians, mean_position, targets
from ablate.space import PAPER_SIZE, SMALLEST_SIGMA, TrialSpec

SHARPNESS = 10.0
"""Of the softplus that bounds learnt sigmas, in 1 / px."""


class Objective(nn.Module, ABC):
    """A loss of each image; the loss of a batch is its mean, as in `ablate.finetune.losses`."""

    def __init__(self, spec: TrialSpec, num_landmarks: int) -> None:
        super().__init__()
        self.spec, self.num_landmarks = spec, num_landmarks

    @abstractmethod
    def forward(self, logits_BKHW: Tensor, points_BK2: Tensor) -> Tensor:
        """Return the loss (B,) of a network's output, given landmarks in network pixels; NaN = not annotated."""

    def judged(self, logits_BKHW: Tensor, points_BK2: Tensor) -> Tensor:
        """Return what chooses among the weights of different epochs, (B,), the less the better: the loss."""
        loss_B: Tensor = self(logits_BKHW, points_BK2)
        return loss_B

    def told(self) -> Mapping[str, float]:
        """Return what a learning curve holds of the objective's own parameters, by name."""
        return {}


class MapObjective(Objective):
    """One of `LOSSES`, against the trial's target maps."""

    def forward(self, logits_BKHW: Tensor, points_BK2: Tensor) -> Tensor:
        """Return the loss (B,)."""
        loss_B: Tensor = LOSSES[self.spec.finetune.loss](logits_BKHW, *draw_targets(self.spec, points_BK2))
        return loss_B


class AdaptiveObjective(Objective):
    """Squared distance from Gaussians whose sigma is learnt for each landmark (Payer et al. 2019, equations 1 to 3).

    The target of a landmark is `heat_scale / (2 pi sigma^2) exp(-d^2 / (2 sigma^2))`, and its loss the sum over pixels
    of the squared difference, plus `sigma_penalty * sigma^2`. A narrow target has a high peak, which costs much where
    the network misses it, and a wide one pays the penalty: sigma settles by how certain a landmark is.

    sigma is `SMALLEST_SIGMA` plus a softplus, all but linear from a quarter of a pixel above it, and therefore bounded
    below, where the published loss takes any number and so can fall without end. It starts from `finetune.sigma` and is
    not subject to weight decay. A landmark that is not annotated adds nothing, no penalty either. Losses of different
    epochs are about different targets and rise as sigmas fall, so that weights are judged by their error instead.
    Deviations: the mean over landmarks in place of their sum, so that the loss does not depend on how many there are;
    AdamW in place of Nesterov's momentum.
    """

    def __init__(self, spec: TrialSpec, num_landmarks: int) -> None:
        super().__init__(spec, num_landmarks)
        above = spec.finetune.sigma - SMALLEST_SIGMA
        raw = above + math.log(-math.expm1(-SHARPNESS * above)) / SHARPNESS  # whose softplus is `above`
        self.raw_K = nn.Parameter(torch.full((num_landmarks,), raw))

    def sigmas(self) -> Tensor:
        """Return the sigma (K,) of each landmark's target, in network pixels."""
        return SMALLEST_SIGMA + F.softplus(self.raw_K, beta=SHARPNESS)

    def forward(self, logits_BKHW: Tensor, points_BK2: Tensor) -> Tensor:
        """Return the loss (B,)."""
        fine, sigmas_K = self.spec.finetune, self.sigmas()
        maps_BKHW, annotated_BK = gaussians(points_BK2, logits_BKHW.shape[3], sigmas_K)
        peak_K11 = (fine.heat_scale / (2 * math.pi * sigmas_K.square()))[:, None, None]
        distance_BK = (logits_BKHW - peak_K11 * maps_BKHW).square().sum(dim=(2, 3))
        return mean_over(distance_BK + fine.sigma_penalty * sigmas_K.square(), annotated_BK)

    def judged(self, logits_BKHW: Tensor, points_BK2: Tensor) -> Tensor:
        """Return the mean distance (B,), in network pixels, of landmarks from what `evaluate.decode` reads."""
        found_BK2 = read_points(logits_BKHW, self.spec, self.spec.evaluate.decode)
        annotated_BK = points_BK2.isfinite().all(dim=2)
        return mean_over((found_BK2 - points_BK2).norm(dim=2), annotated_BK)

    def told(self) -> Mapping[str, float]:
        """Return the mean of the sigmas."""
        return {"sigma": float(self.sigmas().detach().mean())}


class WingObjective(Objective):
    """Wing loss between landmarks and the mean positions of their maps (Feng et al. 2018).

    A map's mean position is that of the softmax over its pixels, which `evaluate.decode: soft_argmax` reads too. The
    loss of a landmark is the sum over x and y. Landmarks outside the image, where no mean position can be, do not
    count. Deviations: coordinates come from maps in place of a fully connected layer; the paper's width of 10 px and
    curvature of 2 px are those of a 256 px image and scale with its side.
    """

    WIDTH, CURVATURE = 10 / PAPER_SIZE, 2 / PAPER_SIZE  # shares of the image's side

    def forward(self, logits_BKHW: Tensor, points_BK2: Tensor) -> Tensor:
        """Return the loss (B,)."""
        side = logits_BKHW.shape[3]
        found_BK2 = mean_position(SCORES["wing"](logits_BKHW))
        counts_BK = ((points_BK2 >= -0.5) & (points_BK2 <= side - 0.5)).all(dim=2)  # of NaN neither is true
        distance_BK2 = (found_BK2 - torch.where(counts_BK[..., None], points_BK2, 0)).abs()
        loss_BK2 = wing(distance_BK2, width=self.WIDTH * side, curvature=self.CURVATURE * side)
        return mean_over(loss_BK2.sum(dim=2), counts_BK)


def build_objective(spec: TrialSpec, num_landmarks: int) -> Objective:
    """Return the objective of a trial, as it is before fine-tuning; nothing about it is random."""
    objectives: dict[str, type[Objective]] = {"adaptive": AdaptiveObjective, "wing": WingObjective}
    return objectives.get(spec.finetune.loss, MapObjective)(spec, num_landmarks)


def draw_targets(spec: TrialSpec, points_BK2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the trial's target maps (B, K, H, W) of points in network pixels, and the mask of annotated ones."""
    return targets(points_BK2, spec.image_size, sigma=spec.finetune.sigma, shape=spec.finetune.target)
