"""The images that a fine-tuning trains on or is validated by, and its validation.

Shapes: N images, B those of one forward pass, K landmarks, H and W of the square network input, 2 = (x, y).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ablate.datasets import Split
from ablate.finetune.objectives import Objective
from ablate.network.base import Network
from ablate.network.evaluation import inference_batch_size, logits_in_batches, read_points
from ablate.network.heatmaps import to_file, to_network
from ablate.network.metrics import physical_errors
from ablate.space import TrialSpec


@dataclass(frozen=True)
class Images:
    """Images on the device, and their landmarks in network pixels."""

    images_NHW: Tensor  # uint8
    points_NK2: Tensor  # float32, NaN = not annotated

    @classmethod
    def of(cls, split: Split, image_size: int, device: torch.device) -> Images:
        """Put the images of `split` on `device`."""
        points_NK2 = to_network(split.points_NK2, split.sizes_N2, image_size)
        return cls(torch.from_numpy(split.images_NHW).to(device), torch.from_numpy(points_NK2).float().to(device))


def _logits(spec: TrialSpec, network: Network, images: Images, groups: int) -> Iterator[tuple[slice, Tensor]]:
    batch_size = inference_batch_size(spec, groups)
    return logits_in_batches(network, images.images_NHW, spec, device=images.images_NHW.device, batch_size=batch_size)


def validate(spec: TrialSpec, network: Network, objective: Objective, images: Images, *, groups: int = 1) -> float:
    """Return the mean over images of what the objective judges by; `groups` as in `inference_batch_size`."""
    loss_N = torch.zeros(len(images.images_NHW), device=images.images_NHW.device)
    for part, logits_BKHW in _logits(spec, network, images, groups):
        with torch.no_grad():
            loss_N[part] = objective.judged(logits_BKHW, images.points_NK2[part])
    return float(loss_N.mean())


def validation_error(spec: TrialSpec, network: Network, images: Images, split: Split, *, groups: int = 1) -> float:
    """Return the MRE of the images of `split` in the data set's unit (protocol physical); NaN if none is annotated.

    `groups` as in `inference_batch_size`.
    """
    points_NK2 = torch.zeros_like(images.points_NK2)
    for part, logits_BKHW in _logits(spec, network, images, groups):
        points_NK2[part] = read_points(logits_BKHW, spec, spec.evaluate.decode)
    predicted_NK2 = to_file(points_NK2.cpu().double().numpy(), split.sizes_N2, spec.image_size)
    errors_NK = physical_errors(predicted_NK2, split.points_NK2, split.unit_per_pixel_N2)
    known = errors_NK[~np.isnan(errors_NK)]
    return float(known.mean()) if known.size else math.nan
