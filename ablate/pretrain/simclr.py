"""SimCLR and SimCLR v2: two views of an image attract, views of different images repel.

Chen et al. 2020, "A simple framework for contrastive learning of visual representations"; Chen et al. 2020b, "Big
self-supervised models are strong semi-supervised learners", of which the three-layer projection head is taken.
Deviations: AdamW in place of LARS; negatives are the images of one forward pass (`batch_size`), not of the whole
optimizer step.
"""

from __future__ import annotations

from torch import Tensor

from ablate.pretrain.base import SelfSupervision
from ablate.pretrain.heads import nt_xent, simclr_head
from ablate.space import Pretraining, SimclrSpec, SimclrV2Spec


class Simclr(SelfSupervision[SimclrSpec]):
    """NT-Xent over the views of a forward pass."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        self.projector = simclr_head(
            self.network.feature_dim,
            spec.hidden_dim,
            spec.projection_dim,
            num_layers=3 if isinstance(spec, SimclrV2Spec) else 2,
        )
        self.nt_xent = nt_xent(spec.temperature)

    def loss(self, *prepared: Tensor) -> Tensor:
        """Return NT-Xent of two views, each (B, 1, H, W)."""
        first, second = (self.projector(self.network.features(view)) for view in prepared)
        return self.nt_xent(first, second)


IMPLEMENTATION = Simclr
