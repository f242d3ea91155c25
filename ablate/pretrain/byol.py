"""BYOL: one view's projection is predicted from the other's, against a momentum encoder, without negatives.

Grill et al. 2020, "Bootstrap your own latent". Deviations: AdamW in place of LARS; the momentum is constant, for a
schedule would depend on the number of steps; the loss is minus the mean cosine, where the paper's is 4 + 4 times that
and that of Di Via et al. (arXiv 2407.18125) twice that: gradients have one direction, which is what AdamW goes by.
"""

from __future__ import annotations

from torch import Tensor

from ablate.pretrain.base import MomentumBranch, WithMomentum
from ablate.pretrain.heads import byol_predictor, byol_projector, negative_cosine
from ablate.space import ByolSpec, Pretraining


class Byol(WithMomentum[ByolSpec]):
    """Symmetric regression of the momentum branch's projections."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        hidden_dim = spec.hidden_dim or self.network.feature_dim
        self.projector = byol_projector(self.network.feature_dim, hidden_dim, spec.projection_dim)
        self.predictor = byol_predictor(spec.projection_dim, hidden_dim)
        self.target = MomentumBranch(self.network, self.projector)
        self.negative_cosine = negative_cosine()

    @property
    def branch(self) -> MomentumBranch:
        """The target network and its projector."""
        return self.target

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the mean of both directions' negative cosine, of two views, each (B, 1, H, W)."""
        first, second = (self.predictor(self.projector(self.network.features(view))) for view in prepared)
        first_target, second_target = (self.target(view) for view in prepared)
        return (self.negative_cosine(first, second_target) + self.negative_cosine(second, first_target)) / 2


IMPLEMENTATION = Byol
