"""SwAV: an image's crops predict one another's assignment to prototypes; a group's images share them out evenly.

Caron et al. 2020, "Unsupervised learning of visual features by contrasting cluster assignments". Deviations: AdamW in
place of LARS; prototypes are never frozen, for that would depend on the number of steps or epochs; crops are augmented
as in the other methods; a single head of prototypes.

Few images cannot be shared out over many prototypes: of 4 images and 3 000 prototypes each image has to take 750,
whatever it shows. Codes are therefore of a group and of a queue of earlier projections together, as the paper has it
for small batches (section 3.1), and there are fewer prototypes: by default a tenth of the paper's 3 000 and of its
queue of 3 840, which 12 steps of 32 images turn over. Projections enter it after an optimizer step, so that all passes
of a step see one queue; it starts with random unit vectors and is used from the first step on, where the paper waits.
`queue: 0` with groups of hundreds of images is the paper's setting for large batches; with groups of 4 images and 300
or 3 000 prototypes, and of 32 and 30, on a hundred small images, its loss was ln(prototypes) after 100 steps, that of
images which are all assigned alike.

Shapes: B images, D channels of the projection, P prototypes, Q projections in a queue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.pretrain.contrastive import enqueue
from ablate.pretrain.crops import NUM_GLOBAL, MultiCropping
from ablate.pretrain.heads import swav_head, swav_loss
from ablate.space import Pretraining, SwavSpec
from ablate.training import by_view


class Swav(MultiCropping[SwavSpec]):
    """Swapped prediction of codes over two global and `local_crops` local crops."""

    queue: Tensor  # (2 global crops, Q, D), unit vectors
    next_slot: Tensor  # index of the oldest projections, which the next ones replace

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        num_inputs = self.network.feature_dim
        self.projector = swav_head(num_inputs, spec.hidden_dim or num_inputs, spec.projection_dim)
        self.prototypes = nn.Linear(spec.projection_dim, spec.prototypes, bias=False)
        self.swapped_prediction = swav_loss(spec.temperature, spec.sinkhorn_iterations, spec.epsilon)
        queue = torch.randn(NUM_GLOBAL, spec.queue, spec.projection_dim)
        self.register_buffer("queue", F.normalize(queue, dim=-1))
        self.register_buffer("next_slot", torch.zeros((), dtype=torch.long))
        self._normalise_prototypes()

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the mean cross-entropy over all pairs of a global crop's code and another crop's prediction."""
        projections = F.normalize(self.projector(self.features_of(prepared, groups)))
        crops_VBP = [self.prototypes(view) for view in by_view(projections, len(prepared), groups)]
        self.leave(torch.stack(by_view(projections.detach(), len(prepared), groups)[:NUM_GLOBAL]))
        queues = [self.prototypes(queue_QD).detach() for queue_QD in self.queue] if self.spec.queue else None
        losses = [
            self.swapped_prediction([*crops[:NUM_GLOBAL]], [*crops[NUM_GLOBAL:]], queues)
            for crops in zip(*(crop_BP.chunk(groups) for crop_BP in crops_VBP), strict=True)
        ]
        return torch.cat(losses).mean()

    def after_step(self, step: int) -> None:
        """Normalise the prototypes; put the step's projections in place of the oldest ones."""
        self._normalise_prototypes()
        projections = torch.cat(self.take_left(), 1)
        if self.spec.queue:
            enqueue(self.queue, self.next_slot, projections)

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight))


IMPLEMENTATION = Swav
