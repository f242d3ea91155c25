"""SimCLR and SimCLR v2: two views of an image attract, views of different images repel.

Chen et al. 2020, "A simple framework for contrastive learning of visual representations"; Chen et al. 2020b, "Big
self-supervised models are strong semi-supervised learners", of which the three-layer projection head is taken.
Deviations: AdamW in place of LARS; by default negatives are the images of one group (`batch_size`), not of the whole
optimizer step.
"""

from __future__ import annotations

from torch import Tensor

from ablate.pretrain.contrastive import nt_xent
from ablate.pretrain.heads import simclr_head
from ablate.pretrain.negatives import Contrastive
from ablate.space import Pretraining, SimclrSpec, SimclrV2Spec


class Simclr(Contrastive[SimclrSpec]):
    """NT-Xent over the views of several images."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        self.projector = simclr_head(
            self.network.feature_dim,
            spec.hidden_dim or self.network.feature_dim,
            spec.projection_dim,
            num_layers=3 if isinstance(spec, SimclrV2Spec) else 2,
            batch_norm=spec.head_norm,
        )

    def embed(self, *views_B1HW: Tensor) -> tuple[Tensor, ...]:
        """Return both views' projections."""
        return tuple(self.projector(self.network.features(view)) for view in views_B1HW)

    def compare(self, *vectors_BD: Tensor) -> Tensor:
        """Return NT-Xent."""
        first, second = vectors_BD
        return nt_xent(first, second, self.spec.temperature)


IMPLEMENTATION = Simclr
