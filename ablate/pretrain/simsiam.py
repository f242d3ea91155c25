"""SimSiam: one view's projection is predicted from the other's, whose gradient is stopped; no momentum, no negatives.

Chen and He 2021, "Exploring simple Siamese representation learning". Deviations: AdamW in place of SGD, whose rate is
constant for the encoder too, and not for the predictor alone; views are augmented as in the other methods.
"""

from __future__ import annotations

from torch import Tensor

from ablate.pretrain.base import SelfSupervision
from ablate.pretrain.heads import negative_cosine, simsiam_predictor, simsiam_projector
from ablate.space import Pretraining, SimsiamSpec


class Simsiam(SelfSupervision[SimsiamSpec]):
    """Symmetric prediction of projections whose gradient is stopped."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        num_inputs = self.network.feature_dim
        self.projector = simsiam_projector(num_inputs, spec.hidden_dim or num_inputs, spec.projection_dim)
        self.predictor = simsiam_predictor(spec.projection_dim, spec.predictor_dim)
        self.negative_cosine = negative_cosine()

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the mean of both directions' negative cosine, of two views, each (B, 1, H, W)."""
        first, second = (self.projector(self.network.features(view)) for view in prepared)
        first_predicted, second_predicted = self.predictor(first), self.predictor(second)
        return (
            self.negative_cosine(first_predicted, second.detach())
            + self.negative_cosine(second_predicted, first.detach())
        ) / 2


IMPLEMENTATION = Simsiam
