"""InfoNCE, against the other images of a batch or against a queue. Shapes: B images, D projection, Q queue."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(queries_BD: Tensor, keys_BD: Tensor, temperature: float) -> Tensor:
    """Return MoCo v3's contrastive loss: of all keys, each query's own is to be found, times 2 temperatures.

    Chen, Xie, He 2021, algorithm 1. Vectors are normalised here.
    """
    logits_BB = F.normalize(queries_BD) @ F.normalize(keys_BD).T / temperature
    labels_B = torch.arange(len(queries_BD), device=queries_BD.device)
    return F.cross_entropy(logits_BB, labels_B) * (2 * temperature)


def info_nce_with_queue(queries_BD: Tensor, keys_BD: Tensor, queue_QD: Tensor, temperature: float) -> Tensor:
    """Return MoCo's contrastive loss: each query's own key against the keys in the queue.

    He et al. 2020, algorithm 1. Vectors but the queue's, which are of unit length already, are normalised here.
    """
    queries_BD, keys_BD = F.normalize(queries_BD), F.normalize(keys_BD)
    positive_B1 = (queries_BD * keys_BD).sum(1, keepdim=True)
    logits = torch.cat((positive_B1, queries_BD @ queue_QD.T), 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
