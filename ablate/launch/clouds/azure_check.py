"""A cluster file for Azure, checked against Ray's own template and azure-mgmt-compute."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from ablate.errors import nearest
from ablate.launch.clouds.common import (
    check_shape,
    client_library,
    known_machine,
    ray_data,
    refuse_set_by_ray,
    refuse_unknown,
    require_text,
)
from ablate.launch.cluster_file import ClusterFile
from ablate.space.files import Place

SET_BY_RAY = dict.fromkeys(
    (
        "vmName",
        "vmTags",
        "vmCount",
        "msi",
        "nsg",
        "subnet",
        "zones",
        "provisionPublicIp",
        "adminUsername",
        "publicKey",
    ),
    "Ray sets it for every machine",
)
"""Fields of a machine that a file must leave out, and why."""

BILLING = ("maxPrice",)
"""The fields of BillingProfile in azure-mgmt-compute 35."""


def check_azure(file: ClusterFile, document: Mapping[str, Any]) -> None:
    """Refuse what Azure and Ray's template do not take, and what costs on; see `offline_check`."""
    models = client_library("azure.mgmt.compute.models", "azure")
    for name in ("azure.common.credentials", "azure.identity", "azure.mgmt.network", "azure.mgmt.resource"):
        client_library(name, "azure")
    provider = document["provider"]
    for key, pattern, rule in (
        ("location", r"[a-z]+\d*", "a location, such as westus2"),
        ("resource_group", r"[\w.()-]{1,89}[\w()-]", "the name of a resource group"),
        ("subscription_id", r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", "the id of your subscription"),
        ("unique_id", r"[a-z0-9]{4,12}", "4 to 12 letters and digits that no other cluster of the group has"),
        ("availability_zone", r"none|auto|[123](,[123]){0,2}", "none, auto or zones such as '1,2'"),
    ):
        require_text(file, ("provider", key), provider.get(key), pattern, rule)
    _check_mask(file, provider.get("subnet_mask"))
    template = json.loads(
        ray_data("autoscaler", "_private", "_azure", "azure-vm-template.json").read_text(encoding="utf-8")
    )
    parameters = {**template["parameters"], "availability_zone": {"type": "string"}}
    words = {
        "priority": [word.value for word in models.VirtualMachinePriorityTypes],
        "evictionPolicy": [word.value for word in models.VirtualMachineEvictionPolicyTypes],
    }
    for name, node_type in document["available_node_types"].items():
        place: Place = ("available_node_types", name, "node_config")
        refuse_unknown(
            file, place, node_type["node_config"], ("azure_arm_parameters", "tags"), what="a machine on Azure"
        )
        config = node_type["node_config"].get("azure_arm_parameters")
        place = (*place, "azure_arm_parameters")
        if not isinstance(config, dict):
            file.refuse(place, f"must be a mapping with vmSize and the image; got {config!r:.60}")
        refuse_set_by_ray(file, place, config, SET_BY_RAY)
        refuse_unknown(file, place, config, parameters, what="Ray's template of a machine")
        for key, value in config.items():
            _check_parameter(file, (*place, key), value, parameters[key]["type"])
            if key in words and value not in words[key]:
                file.refuse(
                    (*place, key), f"must be one of {', '.join(words[key])}; got '{value}'{nearest(value, words[key])}"
                )
        _check_azure_machine(file, place, config)
        check_shape(file, name, known_machine(file, (*place, "vmSize"), config.get("vmSize")))


def _check_mask(file: ClusterFile, mask: Any) -> None:
    try:
        network = ipaddress.ip_network(mask if isinstance(mask, str) else "")
    except ValueError:
        network = None
    if network is None or network.version != 4 or not network.is_private or not 16 <= network.prefixlen <= 28:
        file.refuse(
            ("provider", "subnet_mask"), f"must be a private range of /16 to /28, such as 10.77.0.0/16; got {mask!r}"
        )


def _check_parameter(file: ClusterFile, place: Place, value: Any, kind: str) -> None:
    kinds: dict[str, type] = {
        "string": str,
        "securestring": str,
        "int": int,
        "bool": bool,
        "object": dict,
        "array": list,
    }
    if not isinstance(value, kinds[kind]) or (kind == "int" and isinstance(value, bool)):
        file.refuse(place, f"must be of type {kind}; got {value!r:.60}")


def _check_azure_machine(file: ClusterFile, place: Place, config: Mapping[str, Any]) -> None:
    image = [key for key in ("imagePublisher", "imageOffer", "imageSku", "imageVersion") if not config.get(key)]
    if image and not config.get("imageId"):
        file.refuse((*place, image[0]), "must be given, with the other three of an image, or imageId; got none")
    if config.get("evictionPolicy", "Delete") != "Delete":
        file.refuse(
            (*place, "evictionPolicy"),
            "must be Delete: the disk of a machine that is only stopped costs on; got Deallocate",
        )
    refuse_unknown(file, (*place, "billingProfile"), config.get("billingProfile", {}), BILLING, what="BillingProfile")
