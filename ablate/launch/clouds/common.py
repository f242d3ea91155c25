"""Common parts of the clouds' checks: client libraries, unknown keys, a machine's CPUs and GPUs, who may ssh."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablate.errors import InputError, nearest
from ablate.launch.clouds.machine_types import GPU_MACHINES, Machine, machine_of
from ablate.launch.cluster_file import ClusterFile
from ablate.space.files import Place

FAMILY = {"aws": (r"\..*", ".*"), "gcp": (r"-\d+g?$", "-*"), "azure": (r"(?<=_N[CD])\d+", "*")}
"""What makes the family of a machine type out of its name: a pattern, and what takes its place."""

WIDEST_PREFIX = {4: 8, 6: 32}
"""The widest range that may ssh to the machines, by IP version."""


def client_library(name: str, kind: str) -> Any:
    """Return a module of the client library of a cloud; raise `InputError` with the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"a cluster on {kind} needs its client library; got no module '{error.name or name}'; "
            f'install it: pip install "ablate[{kind}]"'
        ) from error


def ssh_ranges(file: ClusterFile) -> list[str]:
    """Return the ranges of addresses that may ssh to the machines: `metadata.ssh_from`, one or a list.

    Raises:
        InputError: none is given, or one is wider than a user's own.
    """
    place = ("metadata", "ssh_from")
    given = (file.document.get("metadata") or {}).get("ssh_from")
    values = given if isinstance(given, list) else [given]
    ranges = []
    for value in values:
        try:
            network = ipaddress.ip_network(value if isinstance(value, str) else "")
        except ValueError:
            file.refuse(
                place, f"must be the range of addresses that you come from, such as 203.0.113.7/32; got {value}"
            )
        if network.prefixlen < WIDEST_PREFIX[network.version]:
            file.refuse(
                place,
                f"must be at least /{WIDEST_PREFIX[network.version]}: the port of ssh is never opened to the world; "
                f"got {value}; give your own address: curl https://checkip.amazonaws.com",
            )
        if network.version == 6 and file.kind != "aws":
            file.refuse(place, f"must be a range of IPv4: the machines have no other address; got {value}")
        ranges.append(str(network))
    if not ranges:
        file.refuse(place, "must name at least one range of addresses, such as 203.0.113.7/32; got none")
    return ranges


def ssh_from(document: Mapping[str, Any]) -> str:
    """Return `metadata.ssh_from` in words, as the user wrote it."""
    given = (document.get("metadata") or {}).get("ssh_from")
    return ", ".join(map(str, given)) if isinstance(given, list) else str(given)


def worker_types(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node types but for the head's."""
    head = document.get("head_node_type")
    return {name: node_type for name, node_type in document["available_node_types"].items() if name != head}


def ray_data(*parts: str) -> Path:
    """Return the path of a data file of Ray's, without importing Ray."""
    spec = importlib.util.find_spec("ray")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("a cluster on a cloud needs Ray; got no module 'ray'; install it: pip install ablate")
    return Path(spec.submodule_search_locations[0], *parts)


def refuse_unknown(
    file: ClusterFile, place: Place, content: Mapping[str, Any], known: Iterable[str], *, what: str
) -> None:
    """Refuse the first key of a mapping that is not known."""
    known = list(known)
    for key in content:
        if key not in known:
            file.refuse((*place, key), f"is no key of {what}; got '{key}'{nearest(key, known)}")


def check_shape(file: ClusterFile, name: str, machine: Machine) -> None:
    """Compare what a node type says that its machine has with what it has."""
    place = ("available_node_types", name, "resources")
    resources = file.document["available_node_types"][name]["resources"]
    if name == file.document["head_node_type"]:
        return
    for key, has in (("CPU", machine.cpus), ("GPU", machine.gpus)):
        if resources.get(key, 0) != has:
            file.refuse((*place, key), f"must be {has}: the machine has {machine}; got {resources.get(key, 0)}")
    wanted = f"accelerator_type:{machine.accelerator}" if machine.gpus else None
    given = [key for key in resources if key.startswith("accelerator_type:")]
    if given != ([wanted] if wanted else []) or (wanted and resources[wanted] != 1):
        rule = f'have "{wanted}": 1, the only accelerator' if wanted else "name no accelerator: the machine has no GPU"
        file.refuse(place, f"must {rule}; got {', '.join(given) or 'none'}; else --accelerator-type waits for ever")


def known_machine(file: ClusterFile, place: Place, name: Any) -> Machine:
    """Return what a machine type has, as the file's `metadata.machine_types` or the table of this cloud says."""
    own = own_machines(file)
    if name in own:
        return _own_machine(file, str(name), own[name])
    machine = machine_of(file.kind, str(name))
    if machine is None:
        known = GPU_MACHINES[file.kind]
        listed = dict.fromkeys(re.sub(*FAMILY[file.kind], type_name) for type_name in known)
        file.refuse(
            place,
            f"must be a type that is known here, a general one or of {', '.join(listed)}; got '{name}'"
            f"{nearest(name, known)}; another is described by metadata.machine_types: "
            f"{{{name}: {{cpus: 8, gpus: 1, accelerator: L4}}}}",
        )
    return machine


def own_machines(file: ClusterFile) -> dict[str, Any]:
    """Return `metadata.machine_types`: what the user says that machine types have."""
    own = (file.document.get("metadata") or {}).get("machine_types") or {}
    if not isinstance(own, dict):
        file.refuse(("metadata", "machine_types"), f"must be a mapping from types of machine; got {own!r:.60}")
    return own


def _own_machine(file: ClusterFile, name: str, content: Any) -> Machine:
    place = ("metadata", "machine_types", name)
    if not isinstance(content, dict):
        file.refuse(place, f"must be a mapping such as {{cpus: 8, gpus: 1, accelerator: L4}}; got {content!r:.60}")
    refuse_unknown(file, place, content, ("cpus", "gpus", "accelerator"), what="a machine type")
    cpus, gpus, accelerator = content.get("cpus"), content.get("gpus", 0), content.get("accelerator")
    for key, value, least in (("cpus", cpus, 1), ("gpus", gpus, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            file.refuse((*place, key), f"must be a whole number from {least}; got {value!r}")
    if bool(gpus) != isinstance(accelerator, str):
        file.refuse((*place, "accelerator"), f"must be given for GPUs, and only for them; got {accelerator!r}")
    return Machine(int(content["cpus"]), int(gpus), accelerator)


def refuse_set_by_ray(file: ClusterFile, place: Place, content: Mapping[str, Any], fields: Mapping[str, str]) -> None:
    """Refuse fields of a machine that a file must leave out; `fields` says why."""
    for key, why in fields.items():
        if key in content:
            file.refuse((*place, key), f"must be left out: {why}; got {content[key]!r:.60}")


def require_text(file: ClusterFile, place: Place, value: Any, pattern: str, rule: str) -> str:
    """Return a value that matches a pattern; refuse another, with the rule in words."""
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        file.refuse(place, f"must be {rule}; got {value!r}")
    return value
