"""DINO: a student's output on every crop is drawn to a momentum teacher's on the global crops.

Caron et al. 2021, "Emerging properties in self-supervised vision transformers". Deviations: temperatures and momentum
are constant, for their schedules would depend on the number of steps or epochs, and for the same reason the last
layer is never frozen; the centre moves once per optimizer step, by the mean over all its forward passes; crops are
augmented as in the other methods. Shapes: B images, P prototypes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ablate.network.base import Network
from ablate.pretrain.base import MomentumBranch, WithMomentum
from ablate.pretrain.crops import NUM_GLOBAL, MultiCropping
from ablate.pretrain.heads import dino_head, dino_loss
from ablate.space import DinoSpec, Pretraining
from ablate.training import by_view, join_views


class Dino(MultiCropping[DinoSpec], WithMomentum[DinoSpec]):
    """Two global and `local_crops` local crops; the snapshot is the teacher's encoder, or the student's.

    By default local crops show from 1/8 of `min_crop` to `min_crop` of the image's area; with `min_crop` 0.4 these are
    DINO's own.
    """

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        num_inputs = self.network.feature_dim
        dims = (num_inputs, spec.hidden_dim or num_inputs, spec.bottleneck_dim, spec.prototypes)
        new_head = functools.partial(dino_head, *dims, batch_norm=spec.head_norm)
        self.projector = new_head()
        self.teacher = MomentumBranch(self.network, self.projector, new_head())
        self.cross_entropy = dino_loss(spec.prototypes, spec.student_temperature, spec.teacher_temperature)

    @property
    def branch(self) -> MomentumBranch:
        """The teacher."""
        return self.teacher

    @property
    def center(self) -> Tensor:
        """Moving average of the teacher's output, (1, 1, P)."""
        return self.cross_entropy.get_buffer("center")

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the mean cross-entropy over all pairs of a teacher's and another student's crop."""
        teacher_output = self.teacher(join_views(prepared[:NUM_GLOBAL], groups))
        self.leave(teacher_output.sum(0), teacher_output.new_full((1,), len(teacher_output)))
        student_output = self.projector(self.features_of(prepared, groups))
        loss: Tensor = self.cross_entropy(
            by_view(teacher_output, NUM_GLOBAL, groups), by_view(student_output, len(prepared), groups)
        )
        return loss

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the centre by the teacher's outputs of this step, then the teacher."""
        left = self.take_left()
        (total_P, count_1), *others = zip(left[::2], left[1::2], strict=True)
        for sum_P, number_1 in others:
            total_P, count_1 = sum_P + total_P, number_1 + count_1
        self.center.lerp_(total_P / count_1, 1 - self.spec.center_momentum)
        super().after_step(step)

    def snapshot(self) -> dict[str, Tensor]:
        """Return the teacher's encoder, or the student's."""
        network: Network = self.teacher.network if self.spec.snapshot == "teacher" else self.network
        return network.encoder_state()


IMPLEMENTATION = Dino
