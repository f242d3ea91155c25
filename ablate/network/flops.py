"""The operations of a forward pass, counted by torch."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from ablate.network.building import check_network, outline
from ablate.space import NetworkSpec

NUM_OUTPUTS = 19
"""Landmarks of cephalo; the output layer makes a hundredth of the operations at most."""


def count_flops(network: NetworkSpec, image_size: int) -> tuple[int, int]:
    """Return the operations, two for each multiply-add, of `features` and of `forward` on one image.

    Convolutions, matrix products and attention count; norms, activations and resizing do not. Nothing is computed,
    unless the network cannot be built on the meta device.

    Args:
        network: which network.
        image_size: side of the square image in pixels.

    Raises:
        InputError: the network cannot be built, see `check_network`.
    """
    check_network(network, image_size)
    built, device = outline(network, image_size, num_outputs=NUM_OUTPUTS)
    built.eval()  # a single image leaves some batch norms nothing to normalise
    image = torch.empty(1, 1, image_size, image_size, device=device)
    counts = []
    for function in (built.features, built):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(image)
        counts.append(int(counter.get_total_flops()))
    encoder, whole = counts
    return encoder, whole
