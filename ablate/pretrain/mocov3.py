"""MoCo v3: symmetric InfoNCE between a predictor's queries and a momentum encoder's keys, no queue.

Chen, Xie, He 2021, "An empirical study of training self-supervised vision transformers", in its variant for
convolutional encoders: a two-layer projector and a two-layer predictor, both with batch norm; `projector_layers: 3` is
that for vision transformers. Deviations: the momentum is constant, for a schedule would depend on the number of steps;
the last batch norms have an affine part (lightly's head); by default negatives are the images of one group
(`batch_size`), not of the whole optimizer step.
"""

from __future__ import annotations

from torch import Tensor

from ablate.pretrain.base import MomentumBranch, WithMomentum
from ablate.pretrain.contrastive import info_nce
from ablate.pretrain.heads import byol_predictor, moco_head
from ablate.pretrain.negatives import Contrastive
from ablate.space import MocoV3Spec, Pretraining


class MocoV3(Contrastive[MocoV3Spec], WithMomentum[MocoV3Spec]):
    """Each view's queries against the other view's keys."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        hidden_dim = spec.hidden_dim or self.network.feature_dim
        self.projector = moco_head(
            self.network.feature_dim, hidden_dim, spec.projection_dim, num_layers=spec.projector_layers, batch_norm=True
        )
        self.predictor = (
            moco_head(spec.projection_dim, hidden_dim, spec.projection_dim, batch_norm=True)
            if spec.predictor_norm
            else byol_predictor(spec.projection_dim, hidden_dim)
        )
        self.keys = MomentumBranch(self.network, self.projector)

    @property
    def branch(self) -> MomentumBranch:
        """The momentum encoder and its projector."""
        return self.keys

    def embed(self, *views_B1HW: Tensor) -> tuple[Tensor, ...]:
        """Return the predictor's queries."""
        return tuple(self.predictor(self.projector(self.network.features(view))) for view in views_B1HW)

    def targets(self, *views_B1HW: Tensor) -> tuple[Tensor, ...]:
        """Return the momentum branch's keys."""
        return tuple(self.keys(view) for view in views_B1HW)

    def compare(self, *vectors_BD: Tensor) -> Tensor:
        """Return the sum of both directions' InfoNCE."""
        first, second, first_key, second_key = vectors_BD
        temperature = self.spec.temperature
        return info_nce(first, second_key, temperature) + info_nce(second, first_key, temperature)


IMPLEMENTATION = MocoV3
