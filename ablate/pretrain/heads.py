"""The projection heads and losses that come from lightly, with types."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, SwaVLoss
from lightly.models.modules import heads
from torch import Tensor, nn

PairLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of two views' vectors, each (B, projection)."""

CropsLoss: TypeAlias = Callable[[list[Tensor], list[Tensor], list[Tensor] | None], Tensor]
"""Mean loss of global crops, local crops and queues."""


def moco_head(
    num_inputs: int, hidden_dim: int, projection_dim: int, *, num_layers: int = 2, batch_norm: bool
) -> nn.Module:
    """Return MoCo's head; batch norm after each layer for v3, none for v2."""
    head: nn.Module = heads.MoCoProjectionHead(num_inputs, hidden_dim, projection_dim, num_layers, batch_norm)
    return head


def simclr_head(
    num_inputs: int, hidden_dim: int, projection_dim: int, *, num_layers: int, batch_norm: bool
) -> nn.Module:
    """Return SimCLR's head, of two layers in its first version and three in its second."""
    head: nn.Module = heads.SimCLRProjectionHead(num_inputs, hidden_dim, projection_dim, num_layers, batch_norm)
    return head


def byol_projector(num_inputs: int, hidden_dim: int, projection_dim: int) -> nn.Module:
    """Return BYOL's projection head."""
    head: nn.Module = heads.BYOLProjectionHead(num_inputs, hidden_dim, projection_dim)
    return head


def byol_predictor(projection_dim: int, hidden_dim: int) -> nn.Module:
    """Return BYOL's prediction head, from projections to projections."""
    head: nn.Module = heads.BYOLPredictionHead(projection_dim, hidden_dim, projection_dim)
    return head


def simsiam_projector(num_inputs: int, hidden_dim: int, projection_dim: int) -> nn.Module:
    """Return SimSiam's projection head of three layers, each with batch norm."""
    head: nn.Module = heads.SimSiamProjectionHead(num_inputs, hidden_dim, projection_dim)
    return head


def simsiam_predictor(projection_dim: int, predictor_dim: int) -> nn.Module:
    """Return SimSiam's prediction head, a bottleneck from projections to projections."""
    head: nn.Module = heads.SimSiamPredictionHead(projection_dim, predictor_dim, projection_dim)
    return head


def swav_head(num_inputs: int, hidden_dim: int, projection_dim: int) -> nn.Module:
    """Return SwAV's two-layer projection head."""
    head: nn.Module = heads.SwaVProjectionHead(num_inputs, hidden_dim, projection_dim)
    return head


def barlow_twins_head(num_inputs: int, hidden_dim: int, projection_dim: int) -> nn.Module:
    """Return the three-layer head of Barlow Twins."""
    head: nn.Module = heads.BarlowTwinsProjectionHead(num_inputs, hidden_dim, projection_dim)
    return head


def dino_head(num_inputs: int, hidden_dim: int, bottleneck_dim: int, prototypes: int, *, batch_norm: bool) -> nn.Module:
    """Return DINO's head with a weight-normalised last layer; batch norm is for convolutional encoders."""
    with warnings.catch_warnings():  # lightly still uses the older weight_norm of torch
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm.*")
        head: nn.Module = heads.DINOProjectionHead(num_inputs, hidden_dim, bottleneck_dim, prototypes, batch_norm)
    return head


def negative_cosine() -> PairLoss:
    """Return minus the cosine similarity."""
    loss: PairLoss = NegativeCosineSimilarity()
    return loss


def barlow_twins_loss(redundancy: float) -> PairLoss:
    """Return the loss of Barlow Twins with `redundancy` as lambda."""
    loss: PairLoss = BarlowTwinsLoss(lambda_param=redundancy)
    return loss


def dino_loss(prototypes: int, student_temperature: float, teacher_temperature: float) -> nn.Module:
    """Return DINO's loss, called with the lists of the teacher's and the student's outputs per crop.

    Its buffer `center` (1, 1, prototypes) stays as it is in `forward`: lightly would move it in every forward
    pass, and so several times in an optimizer step of several forward passes.
    """
    loss: nn.Module = DINOLoss(
        output_dim=prototypes,
        warmup_teacher_temp=teacher_temperature,
        teacher_temp=teacher_temperature,
        warmup_teacher_temp_epochs=1,
        student_temp=student_temperature,
        center_momentum=1.0,
    )
    return loss


def swav_loss(temperature: float, iterations: int, epsilon: float) -> CropsLoss:
    """Return SwAV's loss of the similarities to all prototypes.

    It is called with the global crops' (B, prototypes), the local crops', and those of each global crop's queue, or
    None; codes are of a crop's B images and its queue together. It returns (1,).
    """
    loss: CropsLoss = SwaVLoss(temperature, iterations, epsilon)
    return loss
