"""The access that a cluster on Azure needs: a login, a closed virtual network, one image.

Ray deploys a template that opens ssh to the world at every machine's network card, and again at each launch. But it
keeps the properties of a subnet that it finds, also its group of rules; and Azure lets in only what the groups of the
subnet and of the card both let in. So a launch makes the virtual network first, with a closed group at the subnet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ablate.errors import InputError
from ablate.launch.backend import Say
from ablate.launch.clouds.common import client_library, ssh_from, ssh_ranges
from ablate.launch.cluster_file import ClusterFile
from ablate.words import one_line

COSTLY = (
    "microsoft.compute/virtualmachines",
    "microsoft.compute/disks",
    "microsoft.network/publicipaddresses",
    "microsoft.network/networkinterfaces",
)
"""What a machine consists of; only networks and groups of rules cost nothing."""


@dataclass(frozen=True)
class Azure:
    """The clients of Azure's interfaces."""

    compute: Any
    network: Any
    resource: Any


def azure(file: ClusterFile) -> Azure:
    """Return the clients, with the login of the Azure CLI, as Ray takes it; raise `InputError` where there is none."""
    subscription = file.document["provider"]["subscription_id"]
    credential = client_library("azure.identity", "azure").AzureCliCredential()
    try:
        credential.get_token("https://management.azure.com/.default")
    except client_library("azure.core.exceptions", "azure").AzureError as error:
        raise InputError(
            f"{file.path}: Azure needs the Azure CLI, logged in; got {one_line(error)}; run az login"
        ) from error
    return Azure(
        client_library("azure.mgmt.compute", "azure").ComputeManagementClient(credential, subscription),
        client_library("azure.mgmt.network", "azure").NetworkManagementClient(credential, subscription),
        client_library("azure.mgmt.resource", "azure").ResourceManagementClient(credential, subscription),
    )


def prepare_azure(file: ClusterFile, document: dict[str, Any], say: Say, *, clients: Azure | None = None) -> None:
    """Make the closed network, and read the image's version; see `prepare_access`."""
    clients = clients or azure(file)
    provider = document["provider"]
    group, location = provider["resource_group"], provider["location"]
    with _answers(file):
        say(f"Azure subscription {provider['subscription_id']}, {location}")
        there = _found(clients.resource.resource_groups.get, group)
        if there is not None and there.location != location:
            file.refuse(
                ("provider", "location"), f"must be that of the group {group}, {there.location}; got {location}"
            )
        clients.resource.resource_groups.create_or_update(group, {"location": location})
        if provider.get("msi_name"):
            _require_identity(file, document, clients.resource)
        _ensure_network(file, document, clients.network, say)
        versions: dict[tuple[str, ...], str] = {}
        for kind in document["available_node_types"].values():
            machine = kind["node_config"]["azure_arm_parameters"]
            if machine.get("imageVersion") == "latest" and not machine.get("imageId"):
                image = (machine["imagePublisher"], machine["imageOffer"], machine["imageSku"])
                if image not in versions:
                    found = clients.compute.virtual_machine_images.list(location, *image)
                    versions[image] = max((one.name for one in found), key=_version)
                    say(f"the latest version of the image {':'.join(image)} is {versions[image]}")
                machine["imageVersion"] = versions[image]


def verify_azure(file: ClusterFile, document: Mapping[str, Any], *, clients: Azure | None = None) -> list[str]:
    """Return what the subnet of the machines lets in, beside ssh from the user's ranges; see `verify_access`."""
    clients = clients or azure(file)
    names, group = _names(document), document["provider"]["resource_group"]
    with _answers(file):
        subnet = _found(clients.network.subnets.get, group, names["vnet"], names["subnet"])
        if subnet is None:
            return []
        if not _is_named(subnet.network_security_group, names["rules"]):
            return [f"the subnet {names['subnet']} lets in ssh from everywhere: it lost its rules {names['rules']}"]
        rules = clients.network.network_security_groups.get(group, names["rules"]).security_rules or []
        return [
            f"{names['rules']}: the rule {rule.name} lets in {source}"
            for rule in rules
            if rule.direction == "Inbound" and rule.access == "Allow"
            for source in [*(rule.source_address_prefixes or []), rule.source_address_prefix]
            if source is not None and not (source in ssh_ranges(file) and rule.destination_port_range == "22")
        ]


def left_azure(file: ClusterFile, document: Mapping[str, Any], *, clients: Azure | None = None) -> list[str]:
    """Return the machines of this cluster that still exist, and disks, cards and addresses; see `verify_down`."""
    clients = clients or azure(file)
    with _answers(file):
        found = _found(
            lambda group: list(clients.resource.resources.list_by_resource_group(group)),
            document["provider"]["resource_group"],
        )
    cluster = document["cluster_name"]
    return [
        f"{one.name} ({one.type.rpartition('/')[2]})"
        for one in found or []
        if one.type.lower() in COSTLY
        and ((one.tags or {}).get("ray-cluster-name") == cluster or one.name.startswith(_machine_names(cluster)))
    ]


def steps_azure(document: Mapping[str, Any]) -> list[str]:
    """Return what `prepare_azure` does, a line each."""
    names = _names(document)
    return [
        "check the login of the Azure CLI",
        f"make or check the resource group {document['provider']['resource_group']} and in it the virtual network "
        f"{names['vnet']}",
        f"make or set the rules {names['rules']} of its subnet: ssh from {ssh_from(document)}, all else within the "
        "network only",
        "read the latest version of the image, the same for all machines",
    ]


def account_azure(document: Mapping[str, Any]) -> list[str]:
    """Return the commands that set the subscription up, once."""
    provider = document["provider"]
    commands = [
        f"az provider register --namespace Microsoft.{name} --subscription {provider['subscription_id']}"
        for name in ("Compute", "Network", "ManagedIdentity")
    ]
    if provider.get("msi_name"):
        commands.append(
            f"az identity create --name {provider['msi_name']} --resource-group {provider.get('msi_resource_group')} "
            f"--location {provider['location']} --subscription {provider['subscription_id']}"
        )
    return commands


@contextlib.contextmanager
def _answers(file: ClusterFile) -> Iterator[None]:
    """Turn what Azure's clients raise into one line."""
    errors = client_library("azure.core.exceptions", "azure")
    try:
        yield
    except errors.ClientAuthenticationError as error:
        raise InputError(f"{file.path}: Azure must know you; got {one_line(error, 300)}; run az login") from error
    except errors.HttpResponseError as error:
        raise InputError(
            f"{file.path}: Azure must allow this to you in the resource group; got {error.status_code}: "
            f"{one_line(error.message, 300)}"
        ) from error
    except errors.AzureError as error:
        raise InputError(f"{file.path}: Azure must answer; got {one_line(error, 300)}") from error


def _found(function: Any, *arguments: Any) -> Any:
    """Return what a call gives, or None if what it asks for is not there."""
    try:
        return function(*arguments)
    except client_library("azure.core.exceptions", "azure").ResourceNotFoundError:
        return None


def _names(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the cluster's network, the first two as Ray's template makes them."""
    cluster = f"{document['cluster_name']}-{document['provider']['unique_id']}"
    return {"vnet": f"ray-{cluster}-vnet", "subnet": f"ray-{cluster}-subnet", "rules": f"ablate-{cluster}-rules"}


def _machine_names(cluster: str) -> tuple[str, str]:
    """Return how the names of a cluster's machines begin, as Ray gives them."""
    return f"ray-{cluster}-head-", f"ray-{cluster}-worker-"


def _is_named(resource: Any, name: str) -> bool:
    return resource is not None and str(resource.id).lower().endswith(f"/{name.lower()}")


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in name.split("."))


def _require_identity(file: ClusterFile, document: Mapping[str, Any], resource: Any) -> None:
    provider = document["provider"]
    path = (
        f"/subscriptions/{provider['subscription_id']}/resourceGroups/{provider.get('msi_resource_group')}"
        f"/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{provider['msi_name']}"
    )
    if _found(resource.resources.get_by_id, path, "2023-01-31") is None:
        file.refuse(
            ("provider", "msi_name"),
            f"must be an identity that exists in msi_resource_group; got {provider['msi_name']}; "
            f"type: {account_azure(document)[-1]}",
        )


def _ensure_network(file: ClusterFile, document: Mapping[str, Any], network: Any, say: Say) -> None:
    """Make the rules, the virtual network and its one subnet, or set the subnet's rules."""
    provider, names, ranges = document["provider"], _names(document), ssh_ranges(file)
    group, location = provider["resource_group"], provider["location"]
    nets = _found(lambda: list(network.virtual_networks.list(group))) or []
    others = [one.name for one in nets if provider["unique_id"] in one.name and one.name != names["vnet"]]
    if others:
        file.refuse(
            ("provider", "unique_id"),
            f"must be part of the names of this cluster only, else Ray takes the other's network; got "
            f"'{provider['unique_id']}', which {', '.join(others)} has too",
        )
    rule = {
        "name": "ssh",
        "priority": 100,
        "protocol": "Tcp",
        "access": "Allow",
        "direction": "Inbound",
        "source_address_prefixes": ranges,
        "source_port_range": "*",
        "destination_address_prefix": "*",
        "destination_port_range": "22",
    }
    rules = network.network_security_groups.begin_create_or_update(
        group, names["rules"], {"location": location, "security_rules": [rule]}
    ).result()
    say(f"the rules {names['rules']} let in ssh from {', '.join(ranges)}, and all else within the network only")
    there = next((one for one in nets if one.name == names["vnet"]), None)
    subnet = {
        "name": names["subnet"],
        "address_prefix": provider["subnet_mask"],
        "network_security_group": {"id": rules.id},
    }
    if there is None:
        body = {
            "location": location,
            "address_space": {"address_prefixes": [provider["subnet_mask"]]},
            "subnets": [subnet],
        }
        network.virtual_networks.begin_create_or_update(group, names["vnet"], body).result()
        say(f"made the virtual network {names['vnet']}")
    elif [one.name for one in there.subnets or []] != [names["subnet"]]:
        file.refuse(
            ("provider", "unique_id"),
            f"must name a virtual network with the one subnet {names['subnet']}; got {names['vnet']} with "
            f"{', '.join(one.name for one in there.subnets or []) or 'none'}",
        )
    elif not _is_named(there.subnets[0].network_security_group, names["rules"]):
        network.subnets.begin_create_or_update(group, names["vnet"], names["subnet"], subnet).result()
        say(f"set these rules at the subnet {names['subnet']}")
