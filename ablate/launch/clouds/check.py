"""The check of a cloud's cluster file, offline, against the models that Ray and the cloud's client library carry.

Ray itself checks the frame of a file only: a misspelt field of a machine, or a machine type that does not exist, would
come to light when the head is up and paid for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ablate.errors import nearest
from ablate.launch.clouds.aws_check import check_aws
from ablate.launch.clouds.azure_check import check_azure
from ablate.launch.clouds.common import client_library, ray_data, refuse_unknown, ssh_ranges, worker_types
from ablate.launch.clouds.gcp_check import check_gcp
from ablate.launch.cluster_file import ClusterFile
from ablate.launch.prices import fleet_of, is_spot
from ablate.launch.ray_files import refuse_written_by_launch
from ablate.space.files import Place

Check: TypeAlias = Callable[[ClusterFile, Mapping[str, Any]], None]

MACHINES: Mapping[str, Check] = {"aws": check_aws, "gcp": check_gcp, "azure": check_azure}
"""What checks the machines and the provider's settings, by cloud."""

PROVIDER_KEYS: Mapping[str, tuple[str, ...]] = {
    "aws": (
        "type",
        "region",
        "availability_zone",
        "cache_stopped_nodes",
        "security_group",
        "key_pair",
        "use_internal_ips",
    ),
    "gcp": ("type", "region", "availability_zone", "project_id", "cache_stopped_nodes", "use_internal_ips"),
    "azure": (
        "type",
        "location",
        "resource_group",
        "subscription_id",
        "unique_id",
        "subnet_mask",
        "availability_zone",
        "cache_stopped_nodes",
        "use_internal_ips",
        "use_external_head_ip",
        "msi_name",
        "msi_resource_group",
        "tags",
    ),
}
"""What Ray's providers read under `provider`, and a launch lets stand."""


def offline_check(file: ClusterFile) -> None:
    """Refuse a cluster file of a cloud that cannot work, that costs on when it is down, or that opens a machine.

    Needs neither credentials nor a network, only the cloud's client library.

    Raises:
        InputError: with file, line and key.
    """
    file.require_edited()
    document = file.document
    _check_schema(file, document)
    _check_frame(file, document)
    ssh_ranges(file)
    MACHINES[file.kind](file, document)
    fleet_of(file)


def _check_schema(file: ClusterFile, document: Mapping[str, Any]) -> None:
    """Check the file's frame against Ray's own schema, with all errors at the line that they are about."""
    schema = json.loads(ray_data("autoscaler", "ray-schema.json").read_text(encoding="utf-8"))
    validator = client_library("jsonschema", file.kind).Draft7Validator(schema)
    errors = sorted(validator.iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path])
    for error in errors:
        place: Place = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            refuse_unknown(file, place, error.instance, known, what="a Ray cluster file")
        if error.validator == "required":
            missing = next(name for name in error.validator_value if name not in error.instance)
            file.refuse((*place, missing), f"must be given in {'.'.join(map(str, place)) or 'the file'}; got none")
        if error.validator == "type":
            file.refuse(place, f"must be of type {error.validator_value}; got {error.instance!r:.60}")
        file.refuse(place, f"is not what Ray takes: {error.message:.200}")


def _check_frame(file: ClusterFile, document: Mapping[str, Any]) -> None:
    """Check what a launch needs beyond Ray's schema."""
    refuse_written_by_launch(file)
    if document.get("docker"):
        file.refuse(("docker",), "must be left out: a launch installs into an environment, not a container; got one")
    provider = document["provider"]
    for key in ("aws_credentials", "gcp_credentials"):
        if key in provider:
            file.refuse(
                ("provider", key),
                "must be left out: the file is copied to the head; got credentials; log in with the cloud's own client",
            )
    refuse_unknown(file, ("provider",), provider, PROVIDER_KEYS[file.kind], what=f"provider {file.kind}")
    if provider.get("cache_stopped_nodes") is not False:
        file.refuse(
            ("provider", "cache_stopped_nodes"),
            "must be false: machines that are only stopped cost on after the cluster is down; "
            f"got {provider.get('cache_stopped_nodes')}",
        )
    if not document.get("idle_timeout_minutes"):
        file.refuse(
            ("idle_timeout_minutes",),
            "must be the minutes after which an idle machine goes, 5 is usual; "
            f"got {document.get('idle_timeout_minutes')}",
        )
    if not document.get("auth", {}).get("ssh_user"):
        file.refuse(("auth", "ssh_user"), "must be the user of the image, such as ubuntu; got none")
    types = document.get("available_node_types")
    if not types:
        file.refuse(("available_node_types",), "must describe the head and at least one type of worker; got none")
    head = document.get("head_node_type")
    if head not in types:
        file.refuse(
            ("head_node_type",),
            f"must be one of available_node_types, {', '.join(types)}; got '{head}'{nearest(head, types)}",
        )
    _check_head(file, types[head], ("available_node_types", str(head)))
    _check_workers(file, document)


def _check_head(file: ClusterFile, node_type: Mapping[str, Any], place: Place) -> None:
    busy = {name: value for name, value in node_type["resources"].items() if value and name in ("CPU", "GPU")}
    if node_type["resources"].get("CPU") != 0 or busy:
        file.refuse(
            (*place, "resources"),
            f"must be {{CPU: 0}} for the head: a stage there would die with nothing to go on; "
            f"got {node_type['resources']}",
        )
    if is_spot(file.kind, node_type["node_config"]):
        file.refuse((*place, "node_config"), "must be on demand for the head: the run ends with it; got a spot machine")
    for key in ("min_workers", "max_workers"):
        if node_type.get(key):
            file.refuse((*place, key), f"must be left out for the head: there is one; got {node_type[key]}")


def _check_workers(file: ClusterFile, document: Mapping[str, Any]) -> None:
    workers = worker_types(document)
    if not workers:
        file.refuse(("available_node_types",), "must have a type of worker beside the head; got none")
    limit = document.get("max_workers")
    if not limit:
        file.refuse(("max_workers",), f"must be the number of workers at a time, at least 1; got {limit}")
    for name, node_type in workers.items():
        place = ("available_node_types", name)
        if node_type.get("docker"):
            file.refuse((*place, "docker"), "must be left out: a launch uses no containers; got one")
        least, most = node_type.get("min_workers", 0), node_type.get("max_workers", limit)
        if not 0 <= least <= most:
            file.refuse(
                (*place, "min_workers"), f"must be from 0 to max_workers of this type, {most}; got {least}; 0 is usual"
            )
        if node_type["resources"].get("CPU", 0) < 1:
            file.refuse(
                (*place, "resources"), f"must say what the machine has: CPU at least 1; got {node_type['resources']}"
            )
    total = sum(node_type.get("max_workers", limit) for node_type in workers.values())
    if limit > total:
        file.refuse(("max_workers",), f"must be at most {total}, what the node types allow together; got {limit}")
