"""The operations of a forward pass: tabulated for the networks of the shipped search spaces, else counted by torch.

The table `flops.json` lies beside this module; `python -m ablate.schedule.flops` writes it anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from ablate.space import COSTLESS, NetworkSpec, find_grid, load_grid, shipped_grids

TABLE = "flops.json"


class Flops(NamedTuple):
    """Operations of a forward pass on one image, two for each multiply-add."""

    encoder: int
    whole: int  # encoder, decoder and output layer


@functools.lru_cache(maxsize=256)
def forward_flops(network: NetworkSpec, image_size: int) -> Flops:
    """Return the operations of a forward pass on one image; imports torch for a network that is not tabulated.

    Args:
        network: which network.
        image_size: side of the square image in pixels.

    Raises:
        InputError: the network is not tabulated and cannot be built.
    """
    known = _table().get(table_key(network, image_size))
    return count(network, image_size) if known is None else known


def count(network: NetworkSpec, image_size: int) -> Flops:
    """Count the operations with torch, see `ablate.network.flops.count_flops`; `COSTLESS` fields are the defaults."""
    from ablate.network.flops import count_flops

    plain = network.model_copy(update={name: NetworkSpec.model_fields[name].default for name in COSTLESS})
    return Flops(*count_flops(plain, image_size))


def table_key(network: NetworkSpec, image_size: int) -> str:
    """Return a network in words, by what its operations depend on: `encoder, encoder densenet161, 256 px`."""
    fields = {name: value for name, value in network.fields.items() if name not in COSTLESS}
    words = [network.kind, *(f"{name} {value}" for name, value in fields.items()), f"{image_size} px"]
    return ", ".join(words)


def tabulate(networks: Iterable[tuple[NetworkSpec, int]]) -> dict[str, Flops]:
    """Count the operations of networks on images of these sizes anew; return them by their `table_key`."""
    distinct = {table_key(network, size): (network, size) for network, size in networks}
    return {key: count(*distinct[key]) for key in sorted(distinct)}


def shipped_networks() -> set[tuple[NetworkSpec, int]]:
    """Return the networks of all shipped search spaces, each with its image size."""
    return {
        (trial.network, trial.image_size) for name in shipped_grids() for trial in load_grid(find_grid(name)).trials
    }


@functools.cache
def _table() -> dict[str, Flops]:
    text = resources.files("ablate.schedule").joinpath(TABLE).read_text(encoding="utf-8")
    return {key: Flops(**counts) for key, counts in json.loads(text).items()}


if __name__ == "__main__":
    rows = {key: counts._asdict() for key, counts in tabulate(shipped_networks()).items()}
    Path(__file__).with_name(TABLE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
