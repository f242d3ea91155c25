"""MoCo v2: InfoNCE between queries and a momentum encoder's keys, against a queue of earlier keys.

Chen et al. 2020, "Improved baselines with momentum contrastive learning". Deviations: AdamW in place of SGD; no
shuffling of images between devices for batch norm, there is one device; the keys of an optimizer step enter the
queue after it, so that its forward passes see one queue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.pretrain.base import MomentumBranch, SelfSupervision
from ablate.pretrain.contrastive import info_nce_with_queue
from ablate.pretrain.heads import moco_head
from ablate.space import MocoV2Spec, Pretraining


class MocoV2(SelfSupervision[MocoV2Spec]):
    """Queries of the first view, keys of the second, negatives from the queue.

    The queue is part of the state (lightly's memory bank leaves it out). It starts with random unit vectors.
    """

    queue: Tensor  # (Q keys, D channels of the projection), unit vectors
    next_slot: Tensor  # index of the oldest key, which the next one replaces

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        self.projector = moco_head(self.network.feature_dim, spec.hidden_dim, spec.projection_dim, batch_norm=False)
        self.keys = MomentumBranch(self.network, self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(spec.queue, spec.projection_dim)))
        self.register_buffer("next_slot", torch.zeros((), dtype=torch.long))
        self._new_keys: list[Tensor] = []  # of the forward passes since the last step

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return InfoNCE of two views, each (B, 1, H, W)."""
        first, second = prepared
        keys_BD = self.keys(second)
        self._new_keys.append(F.normalize(keys_BD))
        queries_BD = self.projector(self.network.features(first))
        return info_nce_with_queue(queries_BD, keys_BD, self.queue, self.spec.temperature)

    def forget_passes(self) -> None:
        """Forget the keys since the last step."""
        self._new_keys.clear()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Put the step's keys in place of the oldest ones; move the momentum branch."""
        size = len(self.queue)
        keys = torch.cat(self._new_keys)[-size:]
        slots = (self.next_slot + torch.arange(len(keys), device=keys.device)) % size
        self.queue[slots] = keys
        self.next_slot.copy_((self.next_slot + len(keys)) % size)
        self._new_keys.clear()
        self.keys.follow(self.network, self.projector, self.spec.momentum)


IMPLEMENTATION = MocoV2
