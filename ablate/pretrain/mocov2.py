"""MoCo v2: MoCo with SimCLR's projection head.

Chen et al. 2020, "Improved baselines with momentum contrastive learning". Deviations: those of `ablate.pretrain.moco`.
"""

from __future__ import annotations

from torch import nn

from ablate.pretrain.heads import moco_head
from ablate.pretrain.moco import Moco
from ablate.space import MocoV2Spec


class MocoV2(Moco[MocoV2Spec]):
    """Momentum contrast of two-layer projections."""

    def head_of(self, spec: MocoV2Spec) -> nn.Module:
        """Return a head of two layers without batch norm."""
        num_inputs = self.network.feature_dim
        return moco_head(num_inputs, spec.hidden_dim or num_inputs, spec.projection_dim, batch_norm=False)


IMPLEMENTATION = MocoV2
