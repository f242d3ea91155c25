"""Barlow Twins: the cross-correlation of two views' projections is driven to the identity.

Zbontar et al. 2021, "Barlow Twins: self-supervised learning via redundancy reduction". Deviations: AdamW in place of
LARS; a projector of 2048 instead of 8192 by default; the correlation is that of one group (`batch_size`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ablate.pretrain.base import SelfSupervision
from ablate.pretrain.heads import barlow_twins_head, barlow_twins_loss
from ablate.space import BarlowTwinsSpec, Pretraining


class BarlowTwins(SelfSupervision[BarlowTwinsSpec]):
    """Redundancy reduction between two views."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        num_inputs = self.network.feature_dim
        self.projector = barlow_twins_head(num_inputs, spec.hidden_dim or num_inputs, spec.projection_dim)
        self.barlow_twins = barlow_twins_loss(spec.redundancy)

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the loss of two views, each (B, 1, H, W)."""
        views = (self.projector(self.network.features(view)).chunk(groups) for view in prepared)
        return torch.stack([self.barlow_twins(first, second) for first, second in zip(*views, strict=True)]).mean()


IMPLEMENTATION = BarlowTwins
