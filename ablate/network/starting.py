"""A starting point of one's own: the weights in a file, found behind prefixes, checked and loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from ablate.errors import InputError
from ablate.network.base import Network
from ablate.network.building import outline
from ablate.network.encoder import timm_names
from ablate.network.matching import Match, Target, match
from ablate.network.weights import WeightsFile, read_file
from ablate.space import NetworkSpec, WeightsSpec, missing_field


def load_start(network: Network, start: WeightsSpec) -> str:
    """Load the weights of `start` into a network: all but its output layer, or its encoder, whichever they are.

    Returns:
        What was loaded and what was not, by name and count.

    Raises:
        InputError: the file cannot be read, or does not fit; see `ablate.network.matching.match`.
    """
    found = read_file(_file_of(start), "file")
    matched = match_file(network, found, start.file, field="file")
    put(network, matched)
    return f"{start.name}: {told(matched, found, start.file)}"


def check_start(network: NetworkSpec, image_size: int, start: WeightsSpec) -> None:
    """Refuse, before anything is trained, a starting point that `load_start` could not load.

    Raises:
        InputError: see `load_start`.
    """
    found = read_file(_file_of(start), "file")
    built, _ = outline(network, image_size)
    match_file(built, found, start.file, field="file")


def _file_of(start: WeightsSpec) -> str:
    if missing := missing_field(start):
        raise InputError(missing[1])
    return str(start.file)


def match_file(
    network: Network, found: WeightsFile, file: str | None, *, field: str, encoder_only: bool = False
) -> Match:
    """Give the tensors of a file to those of a network, which may be on the meta device.

    Raises:
        InputError: they do not fit; with what is missing, unknown or of another shape.
    """
    targets = _targets(network)
    try:
        return match(found.tensors, targets[1:] if encoder_only else targets, is_ordered=found.is_ordered)
    except ValueError as error:
        raise InputError(
            f"pretrain.{field} '{file}' must hold the tensors of {targets[-1].what}: {error}; give weights of this "
            "architecture, or the network.encoder that they are of"
        ) from error


def put(network: Network, matched: Match) -> None:
    """Load matched tensors into a network."""
    nn.Module.load_state_dict(network, dict(matched.tensors), strict=False)  # what is missing is in `matched.kept`


def told(matched: Match, found: WeightsFile, file: str | None) -> str:
    """Return what of a file was loaded and what was not, by name and count."""
    container = f" (container {found.container})" if found.container else ""
    beside = f"; containers left aside: {', '.join(found.beside)}" if found.beside else ""
    return f"{file}{container}: {matched.words}{beside}"


def _targets(network: Network) -> Sequence[Target]:
    """Return what a file may fill: the network without its output layer, or else its encoder."""
    encoder = network.encoder_state()
    body = {name: tensor for name, tensor in network.state_dict().items() if name not in network.output_names()}
    name = network.spec.label
    return (
        Target(f"the network on {name} without its output layer", body),
        Target(f"the encoder {name}", encoder, functools.partial(timm_names, name)),
    )
