"""A cluster file for Google Cloud, checked against Compute Engine's packaged model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.errors import nearest
from ablate.launch.clouds.common import (
    check_shape,
    client_library,
    known_machine,
    refuse_set_by_ray,
    refuse_unknown,
    require_text,
)
from ablate.launch.clouds.machine_types import GOOGLE_CARDS, Machine, with_cards
from ablate.launch.cluster_file import ClusterFile
from ablate.launch.prices import is_spot
from ablate.space.files import Place

SET_BY_RAY = {"name": "Ray names the machines"}
"""Fields of a machine that a file must leave out, and why."""


def check_gcp(file: ClusterFile, document: Mapping[str, Any]) -> None:
    """Refuse what Compute Engine does not take, and what opens a machine or costs on; see `offline_check`."""
    cache = client_library("googleapiclient.discovery_cache", "gcp")
    for name in ("google.auth", "google_auth_httplib2", "cryptography"):
        client_library(name, "gcp")
    content = (Path(cache.__file__).parent / "documents" / "compute.v1.json").read_text(encoding="utf-8")
    schemas = json.loads(content)["schemas"]
    provider = document["provider"]
    require_text(
        file,
        ("provider", "project_id"),
        provider.get("project_id"),
        r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]",
        "the id of your project",
    )
    region = require_text(
        file, ("provider", "region"), provider.get("region"), r"[a-z]+-[a-z]+\d+", "a region, such as us-central1"
    )
    zone = require_text(
        file,
        ("provider", "availability_zone"),
        provider.get("availability_zone"),
        rf"{region}-[a-z]",
        f"one zone of the region, such as {region}-a",
    )
    for name, node_type in document["available_node_types"].items():
        place = ("available_node_types", name, "node_config")
        config = node_type["node_config"]
        refuse_set_by_ray(file, place, config, SET_BY_RAY)
        _walk_google(file, place, config, {"$ref": "Instance"}, schemas)
        _check_gcp_machine(file, place, config, zone)
        known = known_machine(file, (*place, "machineType"), config.get("machineType"))
        machine = _with_cards(file, place, config, known)
        if machine.gpus and config.get("scheduling", {}).get("onHostMaintenance") != "TERMINATE":
            file.refuse(
                (*place, "scheduling", "onHostMaintenance"), "must be TERMINATE for machines with GPUs; got none"
            )
        check_shape(file, name, machine)


def _walk_google(file: ClusterFile, place: Place, value: Any, schema: Any, schemas: Mapping[str, Any]) -> None:
    """Compare a value with a schema of a discovery document: its fields, types and closed sets of words."""
    name = schema.get("$ref", "the field")
    schema = schemas[name] if "$ref" in schema else schema
    wanted: dict[str, tuple[type, ...]] = {
        "object": (dict,),
        "array": (list,),
        "boolean": (bool,),
        "integer": (int,),
        "number": (int, float),
        "string": (str, int) if schema.get("format") in ("int64", "uint64") else (str,),
    }
    kinds = wanted[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        file.refuse(place, f"must be of type {schema['type']}; got {value!r:.60}")
    if isinstance(value, list):
        for number, content in enumerate(value):
            _walk_google(file, (*place, number), content, schema["items"], schemas)
    elif isinstance(value, dict):
        fields = schema.get("properties", {})
        free = schema.get("additionalProperties")
        if free is None:
            refuse_unknown(file, place, value, fields, what=f"{name} of Compute Engine")
        for key, content in value.items():
            _walk_google(file, (*place, key), content, fields.get(key, free), schemas)
    elif "enum" in schema and value not in schema["enum"]:
        file.refuse(place, f"must be one of {', '.join(schema['enum'])}; got '{value}'{nearest(value, schema['enum'])}")


def _check_gcp_machine(file: ClusterFile, place: Place, config: Mapping[str, Any], zone: str) -> None:
    for key, why in (
        ("machineType", "Ray has no default for it"),
        ("disks", "the image stands there"),
        ("networkInterfaces", "else Ray takes a network that lets ssh in from everywhere"),
        ("serviceAccounts", "without it a worker reaches no bucket"),
    ):
        if not config.get(key):
            file.refuse((*place, key), f"must be given: {why}; got none")
    boots = [disk for disk in config["disks"] if disk.get("boot")]
    if len(boots) != 1 or not boots[0].get("initializeParams", {}).get("sourceImage"):
        file.refuse((*place, "disks"), "must have one disk with boot: true and initializeParams.sourceImage; got none")
    for number, disk in enumerate(config["disks"]):
        if disk.get("autoDelete") is not True:
            file.refuse(
                (*place, "disks", number, "autoDelete"),
                f"must be true: else the disk costs on after the cluster is down; got {disk.get('autoDelete')}",
            )
        kind = disk.get("initializeParams", {}).get("diskType", "")
        if "/" in kind and f"zones/{zone}/" not in kind:
            file.refuse(
                (*place, "disks", number, "initializeParams", "diskType"),
                f"must be in the zone of the machines, zones/{zone}/diskTypes/...; got '{kind}'",
            )
    subnetwork_of(file, place, config)
    scheduling = config.get("scheduling", {})
    if is_spot("gcp", config):
        for key, value in (("instanceTerminationAction", "DELETE"), ("automaticRestart", False)):
            if scheduling.get(key) != value:
                file.refuse(
                    (*place, "scheduling", key),
                    f"must be {str(value).lower() if isinstance(value, bool) else value} for spot machines: else the "
                    f"disk of one that is taken back costs on; got {scheduling.get(key)}",
                )


def subnetwork_of(file: ClusterFile, place: Place, config: Mapping[str, Any]) -> str:
    """Return the name of the subnetwork of a node type; refuse Google's default network, and one that is elsewhere."""
    provider = file.document["provider"]
    where = f"projects/{provider.get('project_id')}/regions/{provider.get('region')}/subnetworks/"
    interfaces = config["networkInterfaces"]
    given = str(interfaces[0].get("subnetwork", ""))
    name = given.removeprefix(where)
    if len(interfaces) != 1 or not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name) or name == "default":
        file.refuse(
            (*place, "networkInterfaces"),
            f"must be one with a subnetwork of your own, {where}NAME, that the launch makes; got '{given}'",
        )
    return name


def _with_cards(file: ClusterFile, place: Place, config: Mapping[str, Any], machine: Machine) -> Machine:
    """Return the machine with the cards that the file attaches to it, or names beside those that are built in."""
    for number, card in enumerate(config.get("guestAccelerators", [])):
        at = (*place, "guestAccelerators", number)
        kind, count = card.get("acceleratorType"), card.get("acceleratorCount", 0)
        if kind not in GOOGLE_CARDS:
            file.refuse(
                (*at, "acceleratorType"),
                f"must be one of {', '.join(GOOGLE_CARDS)}; got '{kind}'{nearest(kind, GOOGLE_CARDS)}",
            )
        attached = with_cards(machine, kind, count)
        if machine.gpus and machine != attached:
            file.refuse(at, f"must be what is built in: {machine}; got {count} of {kind}")
        if not machine.gpus and not str(config["machineType"]).startswith("n1-"):
            file.refuse(at, f"must be left out: cards are attached to machines n1-... only; got {kind}")
        machine = attached
    return machine
