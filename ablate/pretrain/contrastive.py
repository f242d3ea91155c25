"""InfoNCE against the other images of a forward pass or against a queue.

Shapes: B images, D channels of the projection, Q keys in the queue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(queries_BD: Tensor, keys_BD: Tensor, temperature: float) -> Tensor:
    """Return MoCo v3's contrastive loss of each query's own key against the other images' keys, times 2 temperatures.

    Chen, Xie, He 2021, algorithm 1. Vectors (B, D) are normalised here; the loss is a mean over the images.
    """
    logits_BB = F.normalize(queries_BD) @ F.normalize(keys_BD).T / temperature
    labels_B = torch.arange(len(queries_BD), device=queries_BD.device)
    return F.cross_entropy(logits_BB, labels_B) * (2 * temperature)


def info_nce_with_queue(queries_BD: Tensor, keys_BD: Tensor, queue_QD: Tensor, temperature: float) -> Tensor:
    """Return MoCo's contrastive loss of each query's own key against the keys in the queue.

    He et al. 2020, algorithm 1. Queries and keys (B, D) are normalised here, the queue (Q, D) holds unit vectors
    already; the loss is a mean over the images.
    """
    queries_BD, keys_BD = F.normalize(queries_BD), F.normalize(keys_BD)
    positive_B1 = (queries_BD * keys_BD).sum(1, keepdim=True)
    logits = torch.cat((positive_B1, queries_BD @ queue_QD.T), 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
