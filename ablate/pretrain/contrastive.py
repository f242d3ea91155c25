"""InfoNCE against the other images of a group or against a queue, and the queue.

Shapes: B images of a group, D channels of the projection, Q keys in the queue; several groups are a leading dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(queries_BD: Tensor, keys_BD: Tensor, temperature: float) -> Tensor:
    """Return MoCo v3's contrastive loss of each query's own key against the other images' keys, times 2 temperatures.

    Chen, Xie, He 2021, algorithm 1. Vectors (B, D), or (G, B, D) of groups that do not see one another, are normalised
    here; the loss is a mean over the images.
    """
    logits_BB = F.normalize(queries_BD, dim=-1) @ F.normalize(keys_BD, dim=-1).mT / temperature
    labels_B = torch.arange(logits_BB.shape[-1], device=queries_BD.device)
    return _cross_entropy(logits_BB, labels_B) * (2 * temperature)


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """Return SimCLR's loss: each view's positive is the image's other view, its negatives both views of the others.

    Chen et al. 2020, equation 1. Vectors (B, D), or (G, B, D) of groups that do not see one another, are normalised
    here; the loss is a mean over all views.
    """
    first_BD, second_BD = F.normalize(first_BD, dim=-1), F.normalize(second_BD, dim=-1)
    pairs = ((first_BD, first_BD), (first_BD, second_BD), (second_BD, first_BD), (second_BD, second_BD))
    own_first, across_first, across_second, own_second = (
        torch.einsum("...nd,...md->...nm", one, other) / temperature for one, other in pairs
    )
    own_first, own_second = _off_diagonal(own_first), _off_diagonal(own_second)
    logits_first = torch.cat((across_first, own_first), -1)
    logits_second = torch.cat((across_second, own_second), -1)
    labels_B = torch.arange(first_BD.shape[-2], device=first_BD.device).repeat(2)
    return _cross_entropy(torch.cat((logits_first, logits_second), -2), labels_B)


def _off_diagonal(square_BB: Tensor) -> Tensor:
    """Return square matrices without their diagonals, (..., B, B - 1), whose size no GPU has to be asked for."""
    *groups, _, size = square_BB.shape
    after_each = square_BB.flatten(-2)[..., :-1].reshape(*groups, size - 1, size + 1)[..., 1:]
    return after_each.reshape(*groups, size, size - 1)


def _cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the mean cross-entropy over the rows of all groups, whose labels are the same."""
    num_groups = logits_BC[..., 0, 0].numel()
    return F.cross_entropy(logits_BC.flatten(0, -2), labels_B.repeat(num_groups))


def info_nce_with_queue(queries_BD: Tensor, keys_BD: Tensor, queue_QD: Tensor, temperature: float) -> Tensor:
    """Return MoCo's contrastive loss of each query's own key against the keys in the queue.

    He et al. 2020, algorithm 1. Queries and keys (B, D) are normalised here, the queue (Q, D) holds unit vectors
    already; the loss is a mean over the images.
    """
    queries_BD, keys_BD = F.normalize(queries_BD), F.normalize(keys_BD)
    positive_B1 = (queries_BD * keys_BD).sum(1, keepdim=True)
    logits = torch.cat((positive_B1, queries_BD @ queue_QD.T), 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


@torch.no_grad()
def enqueue(queue_QD: Tensor, next_slot: Tensor, vectors_BD: Tensor) -> None:
    """Put vectors in the place of a queue's oldest ones, and move `next_slot`, the index of the oldest.

    Queues that turn over together are a leading dimension. Of more vectors than a queue holds the last ones stay.
    """
    size = queue_QD.shape[-2]
    newest_BD = vectors_BD[..., -size:, :]
    num_new = newest_BD.shape[-2]
    slots = (next_slot + torch.arange(num_new, device=queue_QD.device)) % size
    queue_QD[..., slots, :] = newest_BD
    next_slot.copy_((next_slot + num_new) % size)
