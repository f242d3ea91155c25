"""SimCLR and SimCLR v2: two views of an image attract, views of different images repel.

Chen et al. 2020, "A simple framework for contrastive learning of visual representations"; Chen et al. 2020b, "Big
self-supervised models are strong semi-supervised learners", of which the three-layer projection head is taken.
Deviations: AdamW in place of LARS; negatives are the images of one group (`batch_size`), not of the whole optimizer
step.
"""

from __future__ import annotations

from torch import Tensor

from ablate.pretrain.base import SelfSupervision
from ablate.pretrain.contrastive import nt_xent
from ablate.pretrain.heads import simclr_head
from ablate.space import Pretraining, SimclrSpec, SimclrV2Spec
from ablate.training import apart


class Simclr(SelfSupervision[SimclrSpec]):
    """NT-Xent over the views of a group of images."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        self.projector = simclr_head(
            self.network.feature_dim,
            spec.hidden_dim,
            spec.projection_dim,
            num_layers=3 if isinstance(spec, SimclrV2Spec) else 2,
        )

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return NT-Xent of two views, each (B, 1, H, W)."""
        first, second = (apart(self.projector(self.network.features(view)), groups) for view in prepared)
        return nt_xent(first, second, self.spec.temperature)


IMPLEMENTATION = Simclr
