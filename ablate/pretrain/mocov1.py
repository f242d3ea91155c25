"""MoCo: InfoNCE between queries and a momentum encoder's keys, against a queue of earlier keys.

He et al. 2020, "Momentum contrast for unsupervised visual representation learning". Deviations: those of
`ablate.pretrain.moco`; views are augmented as in the other methods, and so blurred as in MoCo v2.
"""

from __future__ import annotations

from torch import nn

from ablate.pretrain.moco import Moco
from ablate.space import MocoV1Spec


class MocoV1(Moco[MocoV1Spec]):
    """Momentum contrast of linear projections."""

    def head_of(self, spec: MocoV1Spec) -> nn.Module:
        """Return a linear layer."""
        return nn.Linear(self.network.feature_dim, spec.projection_dim)


IMPLEMENTATION = MocoV1
