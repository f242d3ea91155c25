"""A starting point of one's own: the weights in a file, found behind prefixes, checked and loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ablate.errors import InputError
from ablate.network.base import Network
from ablate.network.building import outline
from ablate.network.encoder import timm_names
from ablate.network.hub import fetch
from ablate.network.matching import Match, Target, match
from ablate.network.weights import WeightsFile, read_file
from ablate.space import NetworkSpec, WeightsSpec, missing_field, sha256_of


class Start(NamedTuple):
    """The tensors that a starting point of one's own is."""

    found: WeightsFile
    source: str  # the file, or where on the hub it is from

    @classmethod
    def read(cls, start: WeightsSpec) -> Start:
        """Read the file of a starting point, from the hub where it is there.

        Raises:
            InputError: it cannot be read, cannot be downloaded, or is another one than `weights_sha256` says.
        """
        if missing := missing_field(start):
            raise InputError(missing[1])
        if start.hf is None:
            return cls(read_file(str(start.file), "file"), str(start.file))
        path, source = fetch(start.hf)
        if start.weights_sha256 is not None and (sha := sha256_of(path)) != start.weights_sha256:
            raise InputError(f"pretrain.hf '{source}' has changed: SHA-256 {sha}, expected {start.weights_sha256}")
        return cls(read_file(path, "hf"), source)


def load_start(network: Network, spec: WeightsSpec, start: Start) -> str:
    """Load a starting point into a network: all but its output layer, or its encoder, whichever it is.

    Args:
        network: whose weights are replaced.
        spec: names the starting point.
        start: what was read of it.

    Returns:
        What was loaded and what was not, by name and count.

    Raises:
        InputError: it does not fit; see `ablate.network.matching.match`.
    """
    matched = match_file(network, start.found, start.source, field=_field(spec))
    put(network, matched)
    return f"{spec.name}: {told(matched, start.found, start.source)}"


def check_start(network: NetworkSpec, image_size: int, spec: WeightsSpec, start: Start) -> None:
    """Refuse, before anything is trained, a starting point that `load_start` could not load.

    Raises:
        InputError: see `load_start`.
    """
    built, _ = outline(network, image_size)
    match_file(built, start.found, start.source, field=_field(spec))


def _field(spec: WeightsSpec) -> str:
    return "file" if spec.hf is None else "hf"


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
