"""What a network keeps for its backward pass in bf16, against fp32, on a CPU. Run it as a script.

Autocast keeps group norm in fp32 on a GPU and not on a CPU: a GPU saves less than what is printed here.
"""

import torch

from ablate.network.building import build_network
from ablate.space import NetworkSpec

NETWORKS = (
    (NetworkSpec(kind="unet"), 128),
    (NetworkSpec(kind="unet", channels=(16, 32, 64), layers_per_block=1), 64),
    (NetworkSpec(kind="encoder", encoder="densenet121"), 128),
)


def kept_bytes(network: NetworkSpec, image_size: int, precision: str) -> int:
    """Return the bytes that a forward pass on two images keeps, each storage once, without the weights."""
    built = build_network(network, num_outputs=19, image_size=image_size, seed=0, precision=precision).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = built(torch.rand(2, 1, image_size, image_size))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    del output
    return sum(size for place, size in storages.items() if place not in weights)


for spec, size in NETWORKS:
    plain, half = (kept_bytes(spec, size, precision) for precision in ("fp32", "bf16"))
    fields = ", ".join(f"{name} {value}" for name, value in spec.fields.items())
    print(f"{spec.kind} ({fields}), 2 images of {size} px: {plain / 1e6:.1f} MB, {half / plain:.2f} of it in bf16")
