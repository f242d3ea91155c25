"""The time and the memory of one training step of the authors' U-Net on this CPU. Run it as a script.

One image, noise prediction, AdamW. Weights, gradients and the optimizer's two moments are 16 bytes a parameter, 8.9 GB
at width 256; the average of the weights that `ddpm` keeps beside them is not made here and would add 2.2 GB.
Usage: python tests/benchmarks/reference_step.py [WIDTH [SIDE]]
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F

from ablate.network.building import build_network, count_parameters
from ablate.space import NetworkSpec


def peak_gb() -> float:
    """Return the most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(width: int = 256, size: int = 64) -> int:
    """Print what building and two steps took; the first also makes the optimizer's moments."""
    started = time.perf_counter()
    spec = NetworkSpec(kind="reference", width=width)
    network = build_network(spec, num_outputs=1, image_size=size, seed=0, head="noise")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    print(f"{count_parameters(network):,} parameters, {size} px, {torch.get_num_threads()} threads")
    print(f"built in {time.perf_counter() - started:.1f} s, {peak_gb():.1f} GB")
    generator = torch.Generator().manual_seed(0)
    noised, noise = torch.randn(2, 1, 1, size, size, generator=generator)
    for step in (1, 2):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = F.mse_loss(network.denoise(noised, torch.tensor([250])), noise)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        optimizer.step()
        ended = time.perf_counter()
        parts = f"forward {forward - started:.1f}, backward {backward - forward:.1f}, AdamW {ended - backward:.1f}"
        print(f"step {step}: loss {loss.item():.4f}, {ended - started:.1f} s ({parts}), at most {peak_gb():.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
