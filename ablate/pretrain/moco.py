"""Momentum contrast against a queue of earlier keys: what MoCo v1 and v2 have in common.

Deviations of both: AdamW in place of SGD; no shuffling of images between devices for batch norm, there is one device;
the keys of an optimizer step enter the queue after it, so that its forward passes see one queue; a queue of 4 096
instead of 65 536 by default, in which a few hundred images would stand hundreds of times.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.pretrain.base import MomentumBranch, WithMomentum
from ablate.pretrain.contrastive import enqueue, info_nce_with_queue
from ablate.space import MocoV1Spec, Pretraining

MocoSpec = TypeVar("MocoSpec", bound=MocoV1Spec)


class Moco(WithMomentum[MocoSpec]):
    """Queries of the first view, keys of the second, negatives from the queue.

    The queue is part of the state (lightly's memory bank leaves it out). It starts with random unit vectors.
    """

    queue: Tensor  # (Q keys, D channels of the projection), unit vectors
    next_slot: Tensor  # index of the oldest key, which the next one replaces

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        self.projector = self.head_of(spec)
        self.keys = MomentumBranch(self.network, self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(spec.queue, spec.projection_dim)))
        self.register_buffer("next_slot", torch.zeros((), dtype=torch.long))

    @property
    def branch(self) -> MomentumBranch:
        """The momentum encoder and its head."""
        return self.keys

    @abstractmethod
    def head_of(self, spec: MocoSpec) -> nn.Module:
        """Return a new projection head, from the network's features to `projection_dim`."""

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return InfoNCE of two views, each (B, 1, H, W)."""
        first, second = prepared
        keys_BD = self.keys(second)
        self.leave(F.normalize(keys_BD))
        queries_BD = self.projector(self.network.features(first))
        return info_nce_with_queue(queries_BD, keys_BD, self.queue, self.spec.temperature)

    def after_step(self, step: int) -> None:
        """Put the step's keys in place of the oldest ones; move the momentum branch."""
        enqueue(self.queue, self.next_slot, torch.cat(self.take_left()))
        super().after_step(step)
