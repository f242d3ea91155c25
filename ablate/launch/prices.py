"""The machines that a Ray cluster file describes, and their prices.

Prices stand in the file, under `metadata`, with their source; nothing is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ablate.errors import nearest
from ablate.launch.backend import Fleet, MachineType
from ablate.launch.cluster_file import ClusterFile
from ablate.schedule.fitting import Shape

METADATA = (
    "ssh_from",
    "bucket",
    "currency",
    "prices_from",
    "price_per_hour",
    "interruptions_per_hour",
    "queue_minutes",
    "machine_types",
    "machine",
    "port",
    "environment",
    "python",
    "ray_options",
)
"""The keys of `metadata` that a launch reads; others are the user's."""

MACHINE = ("cpus", "gpus", "accelerator_type")
"""The keys of `metadata.machine`: what each machine of an ssh cluster has."""

GUESS = Shape(1)
"""What a machine of a cluster has, where its file does not say."""


def fleet_of(file: ClusterFile) -> Fleet:
    """Return the machines of a Ray cluster file, with their prices.

    Clouds need `metadata.price_per_hour` for every node type, and `metadata.prices_from`. Machines that are there
    already (provider `local`) need no price; what each has may stand in `metadata.machine`.

    Raises:
        InputError: a price is missing or is not one, with its line.
    """
    document = file.document
    metadata = _metadata(file, document)
    interruptions = _number(file, metadata, "interruptions_per_hour")
    queue_minutes = _number(file, metadata, "queue_minutes")
    currency = metadata.get("currency", "USD")
    if not isinstance(currency, str) or not currency.strip():
        file.refuse(("metadata", "currency"), f"must be the name of a currency, such as USD; got {currency!r}")
    if file.kind == "ssh":
        return _local(file, document, metadata, currency, queue_minutes)
    types = _node_types(file, document)
    prices = _prices(file, metadata, types)
    head = document.get("head_node_type")
    limit = _count(file, document, ("max_workers",), default=2)  # Ray's own default
    machines = {
        name: MachineType(
            name,
            Shape.of(node_type["resources"]),
            max_count=1
            if name == head
            else min(limit, _count(file, node_type, ("available_node_types", name, "max_workers"), default=limit)),
            price_per_hour=prices[name],
            spot=is_spot(file.kind, node_type["node_config"]),
            min_count=_count(file, node_type, ("available_node_types", name, "min_workers"), default=0),
        )
        for name, node_type in types.items()
    }
    return Fleet(
        workers=tuple(machine for name, machine in machines.items() if name != head),
        head=machines.get(str(head)),
        currency=currency,
        interruptions_per_hour=interruptions,
        queue_minutes=queue_minutes,
        max_workers=limit,
        idle_minutes=float(document.get("idle_timeout_minutes", 5)),
        prices_from=str(metadata.get("prices_from", "")),
    )


def is_spot(kind: str, node_config: Mapping[str, Any]) -> bool:
    """Return whether a node type's machines may be taken back; `node_config` as the cloud's provider takes it."""
    if kind == "aws":
        return bool(_within(node_config, "InstanceMarketOptions", "MarketType") == "spot")
    if kind == "gcp":
        model = _within(node_config, "scheduling", "provisioningModel")
        return model == "SPOT" or _within(node_config, "scheduling", "preemptible") is True
    return _within(node_config, "azure_arm_parameters", "priority") in ("Spot", "Low")


def _within(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _metadata(file: ClusterFile, document: Mapping[str, Any]) -> dict[str, Any]:
    metadata = document.get("metadata") or {}
    if not isinstance(metadata, dict):
        file.refuse(("metadata",), f"must be a mapping with {', '.join(METADATA)}; got {metadata!r:.60}")
    for key in metadata:
        meant = nearest(key, METADATA) if key not in METADATA else ""
        if meant:
            file.refuse(("metadata", key), f"is no key that a launch reads; got '{key}'{meant}")
    return metadata


def _node_types(file: ClusterFile, document: Mapping[str, Any]) -> dict[str, Any]:
    types = document.get("available_node_types")
    if not isinstance(types, dict) or not types:
        file.refuse(("available_node_types",), "must describe the head and at least one type of worker; got none")
    for name, node_type in types.items():
        for key in ("resources", "node_config"):
            if not isinstance(node_type, dict) or not isinstance(node_type.get(key), dict):
                file.refuse(("available_node_types", name, key), "must be a mapping; got none")
    return types


def _prices(file: ClusterFile, metadata: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, float]:
    given = metadata.get("price_per_hour")
    if not isinstance(given, dict):
        names = ", ".join(f"{name}: 1.0" for name in types)
        file.refuse(("metadata", "price_per_hour"), f"must give a price for every node type: {{{names}}}; got {given}")
    for name in given:
        if name not in types:
            file.refuse(
                ("metadata", "price_per_hour", name),
                f"must name one of the node types {', '.join(types)}; got '{name}'{nearest(name, types)}",
            )
    prices = {}
    for name in types:
        place = ("metadata", "price_per_hour", name)
        if name not in given:
            file.refuse(place, f"must be given: every node type needs a price; got only {', '.join(given) or 'none'}")
        if not _is_number(given[name], least=0.0):
            file.refuse(place, f"must be the price of one machine for one hour, a number from 0; got {given[name]!r}")
        prices[name] = float(given[name])
    source = metadata.get("prices_from")
    if not isinstance(source, str) or not source.strip():
        file.refuse(("metadata", "prices_from"), f"must say where the prices are from, and of which day; got {source}")
    return prices


def _local(
    file: ClusterFile, document: Mapping[str, Any], metadata: Mapping[str, Any], currency: str, queue_minutes: float
) -> Fleet:
    """Return the machines that are there already, of one type, the head among them: stages run there too."""
    machine = metadata.get("machine")
    shape = GUESS
    if machine is not None:
        shape = _machine(file, machine)
    count = 1 + len(document["provider"].get("worker_ips") or ())
    return Fleet(
        workers=(MachineType("machine", shape, max_count=count, min_count=count),),
        currency=currency,
        queue_minutes=queue_minutes,
        is_guess=machine is None,
    )


def _machine(file: ClusterFile, machine: Any) -> Shape:
    place = ("metadata", "machine")
    if not isinstance(machine, dict):
        file.refuse(place, f"must be what each machine has, such as {{cpus: 16, gpus: 2}}; got {machine!r:.60}")
    for key, value in machine.items():
        if key not in MACHINE:
            file.refuse((*place, key), f"must be one of {', '.join(MACHINE)}; got '{key}'{nearest(key, MACHINE)}")
        if key == "accelerator_type" and not isinstance(value, str):
            file.refuse((*place, key), f"must be the accelerator's name in Ray, such as A100; got {value!r}")
        if key != "accelerator_type" and not _is_number(value, least=0.0):
            file.refuse((*place, key), f"must be a number from 0; got {value!r}")
    kind = machine.get("accelerator_type")
    return Shape(
        float(machine.get("cpus", GUESS.cpus)), float(machine.get("gpus", 0)), frozenset([kind] if kind else [])
    )


def _number(file: ClusterFile, metadata: Mapping[str, Any], name: str) -> float:
    value = metadata.get(name, 0.0)
    if not _is_number(value, least=0.0):
        file.refuse(("metadata", name), f"must be a number from 0; got {value!r}")
    return float(value)


def _count(file: ClusterFile, content: Mapping[str, Any], place: tuple[str, ...], *, default: int) -> int:
    value = content.get(place[-1], default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        file.refuse(place, f"must be a whole number from 0; got {value!r}")
    return value


def _is_number(value: Any, *, least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and bool(value >= least)
