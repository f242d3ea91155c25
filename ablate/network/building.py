"""Networks built from their specs, and checked without memory for their weights."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from ablate.errors import InputError
from ablate.network.base import Denoiser, Head, Network, without_memory
from ablate.space import NETWORKS, NetworkSpec, Precision
from ablate.training import seed_of

if TYPE_CHECKING:
    from typing import Protocol

    class NetworkModule(Protocol):
        """A module of `NETWORKS[kind].code`."""

        NETWORK: type[Network]


def build_network(
    network: NetworkSpec,
    *,
    num_outputs: int,
    image_size: int,
    seed: int,
    head: Head = "landmarks",
    precision: Precision = "fp32",
) -> Network:
    """Build a network on the CPU, or on the device of an enclosing `with torch.device(...)`.

    Initial weights depend on `seed` alone, and all but the output layer's are the same whatever
    `num_outputs` and `head` are. The global random state is left as it was.

    Args:
        network: which network, see `check_network`.
        num_outputs: K; must be 1 for the noise head.
        image_size: side of the square images in pixels.
        seed: of the initial weights.
        head: `landmarks` for K heatmaps, `noise` for the prediction of a noised image's noise (by a `Denoiser`).
        precision: what it computes in; its weights are fp32 either way.

    Raises:
        ValueError: the noise head is asked for on a network that is no `Denoiser`.
    """
    network_class = _class_of(network)
    if head == "noise" and not issubclass(network_class, Denoiser):
        raise ValueError(f"the noise head needs a network.kind that denoises, such as unet; got {network.kind}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "network"))
        built = network_class(network, image_size, head)
        torch.default_generator.manual_seed(seed_of(seed, "output layer"))
        built.replace_output(num_outputs)
    built.precision = precision
    return built


def _class_of(network: NetworkSpec) -> type[Network]:
    module: NetworkModule = importlib.import_module(NETWORKS[network.kind].code)
    return module.NETWORK


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@functools.lru_cache(maxsize=64)
def check_network(network: NetworkSpec, image_size: int) -> None:
    """Refuse a network that cannot be built or cannot take images of this size; allocates no weights.

    Args:
        network: which network.
        image_size: side of the square images in pixels.

    Raises:
        InputError: with the rule, the value and the cure.
    """
    network_class = _class_of(network)
    network_class.check(network)
    try:
        built, device = outline(network, image_size)
        images = torch.empty(2, 1, image_size, image_size, device=device)
        with torch.no_grad():
            output_hw, features = built(images).shape[2:], built.features(images)
    except Exception as error:  # whatever a library raises, it means that this network cannot be built
        raise InputError(network_class.unsuitable(network, image_size, f"{type(error).__name__}: {error}")) from error
    if tuple(output_hw) != (image_size, image_size) or features.shape != (2, built.feature_dim):
        raise InputError(network_class.unsuitable(network, image_size, f"its output is {tuple(output_hw)}"))


def outline(
    network: NetworkSpec, image_size: int, head: Head = "landmarks", *, num_outputs: int = 1
) -> tuple[Network, torch.device]:
    """Build a network without memory for its weights; return it and the device it is on, see `without_memory`.

    Args:
        network: which network, see `check_network`.
        image_size: side of the square images in pixels.
        head: see `build_network`.
        num_outputs: K; must be 1 for the noise head.
    """
    return without_memory(
        lambda: build_network(network, num_outputs=num_outputs, image_size=image_size, seed=0, head=head)
    )
