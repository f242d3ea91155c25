"""The access that a cluster on Google Cloud needs: service accounts, a closed network, one image.

Ray's provider takes any network of the project if the file names none; Google's `default` lets ssh in from everywhere.
It gives workers no service account.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ablate.errors import InputError
from ablate.launch.backend import Say
from ablate.launch.clouds.common import WIDEST_PREFIX, client_library, ssh_from, ssh_ranges
from ablate.launch.clouds.gcp_check import subnetwork_of
from ablate.launch.cluster_file import ClusterFile
from ablate.words import one_line

INSIDE = "10.77.0.0/20"
"""The addresses of a subnetwork that a launch makes."""

OPERATION_S = 180
"""Time for Google to make a network or a rule."""


@dataclass(frozen=True)
class Google:
    """The clients of Google's interfaces."""

    compute: Any
    iam: Any


def google(file: ClusterFile) -> Google:
    """Return the clients, with the user's own credentials; raise `InputError` where there are none."""
    auth, discovery = client_library("google.auth", "gcp"), client_library("googleapiclient.discovery", "gcp")
    try:
        credentials, _ = auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    except client_library("google.auth.exceptions", "gcp").DefaultCredentialsError as error:
        raise InputError(
            f"{file.path}: Google Cloud needs credentials; got none; run gcloud auth application-default login"
        ) from error
    build = {"credentials": credentials, "cache_discovery": False}
    return Google(discovery.build("compute", "v1", **build), discovery.build("iam", "v1", **build))


def prepare_gcp(file: ClusterFile, document: dict[str, Any], say: Say, *, clients: Google | None = None) -> None:
    """Make the network and its rules, read the image's name, and check project and accounts; see `prepare_access`."""
    clients = clients or google(file)
    project = document["provider"]["project_id"]
    with _answers(file):
        clients.compute.projects().get(project=project).execute()  # Ray would try to create one that is not there
        say(f"Google Cloud project {project}, zone {document['provider']['availability_zone']}")
        _require_accounts(file, document, clients.iam, say)
        types = document["available_node_types"]
        names = {
            subnetwork_of(file, ("available_node_types", name, "node_config"), kind["node_config"])
            for name, kind in types.items()
        }
        for name in sorted(names):
            _ensure_network(file, document, clients.compute, name, say)
        images: dict[str, str] = {}
        for disk in (disk for kind in types.values() for disk in kind["node_config"]["disks"]):
            parameters = disk.get("initializeParams", {})
            family = re.fullmatch(r"projects/([^/]+)/global/images/family/([^/]+)", parameters.get("sourceImage", ""))
            if family:
                if family[0] not in images:
                    found = clients.compute.images().getFromFamily(project=family[1], family=family[2]).execute()
                    images[family[0]] = f"projects/{family[1]}/global/images/{found['name']}"
                    say(f"the image of the family {family[2]} is {found['name']} now")
                parameters["sourceImage"] = images[family[0]]


def verify_gcp(file: ClusterFile, document: Mapping[str, Any], *, clients: Google | None = None) -> list[str]:
    """Return what the networks of the machines that are up let in; see `verify_access`."""
    clients = clients or google(file)
    with _answers(file):
        networks = {
            interface["network"].rpartition("/")[2]
            for instance in _instances(clients.compute, document)
            for interface in instance.get("networkInterfaces", [])
        }
        return [
            f"network {network}: the firewall rule {rule['name']} lets in {source}"
            for network in sorted(networks)
            for rule, source in _open_ways(clients.compute, document, network, ssh_ranges(file))
        ]


def left_gcp(file: ClusterFile, document: Mapping[str, Any], *, clients: Google | None = None) -> list[str]:
    """Return the machines of this cluster that still exist, also stopped ones; see `verify_down`."""
    clients = clients or google(file)
    with _answers(file):
        return [
            f"{one['name']} ({one['machineType'].rpartition('/')[2]}, {one['status']})"
            for one in _instances(clients.compute, document)
        ]


def steps_gcp(document: Mapping[str, Any]) -> list[str]:
    """Return what `prepare_gcp` does, a line each."""
    names = {
        interface["subnetwork"].rpartition("/")[2]
        for kind in document["available_node_types"].values()
        for interface in kind["node_config"]["networkInterfaces"]
    }
    accounts = ", ".join(sorted({_account(kind) for kind in document["available_node_types"].values()}))
    return [
        f"check the credentials for Google Cloud, and that the service accounts {accounts} exist",
        f"make or check the network {', '.join(sorted(names))}: ssh from {ssh_from(document)}, all else within the "
        "network only",
        "read which image the family has now, the same for all machines",
    ]


def account_gcp(document: Mapping[str, Any]) -> list[str]:
    """Return the commands that set the project up, once; each may fail where its object is there."""
    project = document["provider"]["project_id"]
    bucket = (document.get("metadata") or {}).get("bucket", "BUCKET")
    types = document["available_node_types"]
    head = _account(types[document["head_node_type"]])
    workers = sorted({_account(kind) for name, kind in types.items() if name != document["head_node_type"]} - {head})
    commands = []
    for email in (*workers, head):
        commands += [
            f"gcloud iam service-accounts create {email.partition('@')[0]} --project {project}",
            f"gcloud storage buckets add-iam-policy-binding gs://{bucket} --member serviceAccount:{email} "
            "--role roles/storage.objectAdmin",
        ]
    commands.append(
        f"gcloud projects add-iam-policy-binding {project} --member serviceAccount:{head} "
        "--role roles/compute.instanceAdmin.v1 --condition None"
    )
    return commands + [
        f"gcloud iam service-accounts add-iam-policy-binding {email} --project {project} "
        f"--member serviceAccount:{head} --role roles/iam.serviceAccountUser"
        for email in workers
    ]


@contextlib.contextmanager
def _answers(file: ClusterFile) -> Iterator[None]:
    """Turn what Google's client raises into one line."""
    http = client_library("googleapiclient.errors", "gcp").HttpError
    auth = client_library("google.auth.exceptions", "gcp").GoogleAuthError
    try:
        yield
    except http as error:
        raise InputError(
            f"{file.path}: Google Cloud must allow this to you in the project of the file, with its interface enabled; "
            f"got {error.status_code}: {one_line(error.reason)}"
        ) from error
    except (auth, OSError) as error:
        raise InputError(
            f"{file.path}: Google Cloud must answer and know you; got {one_line(error)}; run gcloud auth "
            "application-default login"
        ) from error


def _found(request: Any) -> Any:
    """Return the answer to a request, or None if what it asks for is not there."""
    try:
        return request.execute()
    except client_library("googleapiclient.errors", "gcp").HttpError as error:
        if error.status_code != 404:
            raise
        return None


def _account(node_type: Mapping[str, Any]) -> str:
    return str(node_type["node_config"]["serviceAccounts"][0].get("email", "default"))


def _require_accounts(file: ClusterFile, document: Mapping[str, Any], iam: Any, say: Say) -> None:
    """Refuse a service account that does not exist."""
    error_type = client_library("googleapiclient.errors", "gcp").HttpError
    for name, kind in document["available_node_types"].items():
        email = _account(kind)
        try:
            found = _found(iam.projects().serviceAccounts().get(name=f"projects/-/serviceAccounts/{email}"))
        except error_type as error:
            if error.status_code != 403:
                raise
            say(f"you may not look at service accounts: whether {email} exists is not known")
            continue
        if found is None:
            file.refuse(
                ("available_node_types", name, "node_config", "serviceAccounts"),
                f"must exist; got '{email}', which the project has not; type: {' ; '.join(account_gcp(document))}",
            )


def _ensure_network(file: ClusterFile, document: Mapping[str, Any], compute: Any, name: str, say: Say) -> None:
    """Make or complete the subnetwork `name`, its network and its two rules; refuse a network that lets others in."""
    project, region = document["provider"]["project_id"], document["provider"]["region"]
    subnetworks = compute.subnetworks()
    subnetwork = _found(subnetworks.get(project=project, region=region, subnetwork=name))
    if subnetwork is None:
        if _found(compute.networks().get(project=project, network=name)) is None:
            body = {"name": name, "autoCreateSubnetworks": False}
            _wait(compute, project, compute.networks().insert(project=project, body=body).execute())
        body = {
            "name": name,
            "network": f"projects/{project}/global/networks/{name}",
            "ipCidrRange": INSIDE,
            "privateIpGoogleAccess": True,
        }
        _wait(compute, project, subnetworks.insert(project=project, region=region, body=body).execute())
        subnetwork = subnetworks.get(project=project, region=region, subnetwork=name).execute()
        say(f"made the network {name}, with a subnetwork in {region}")
    network = subnetwork["network"].rpartition("/")[2]
    ranges = ssh_ranges(file)
    for rule, source in _open_ways(compute, document, network, ranges, own=(f"{network}-ssh", f"{network}-inside")):
        file.refuse(
            ("available_node_types", document["head_node_type"], "node_config", "networkInterfaces"),
            f"must be in a network that lets in ssh from {', '.join(ranges)} only; got {network}, whose firewall rule "
            f"{rule['name']} lets in {source}; type: gcloud compute firewall-rules delete {rule['name']} "
            f"--project {project}",
        )
    for suffix, allowed, sources in (
        ("inside", [{"IPProtocol": "all"}], [subnetwork["ipCidrRange"]]),
        ("ssh", [{"IPProtocol": "tcp", "ports": ["22"]}], ranges),
    ):
        body = {
            "name": f"{network}-{suffix}",
            "network": f"projects/{project}/global/networks/{network}",
            "direction": "INGRESS",
            "allowed": allowed,
            "sourceRanges": sources,
        }
        there = _found(compute.firewalls().get(project=project, firewall=body["name"]))
        if there is None:
            _wait(compute, project, compute.firewalls().insert(project=project, body=body).execute())
        elif any(there.get(key) != body[key] for key in ("direction", "allowed", "sourceRanges")):
            request = compute.firewalls().update(project=project, firewall=body["name"], body=body)
            _wait(compute, project, request.execute())
        else:
            continue
        say(f"the network {network} lets in {'ssh' if suffix == 'ssh' else 'everything'} from {', '.join(sources)}")


def _open_ways(
    compute: Any, document: Mapping[str, Any], network: str, ranges: list[str], *, own: tuple[str, ...] = ()
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each firewall rule of a network, but for those of the names `own`, with a source that is too wide."""
    requests = compute.firewalls()
    request = requests.list(project=document["provider"]["project_id"])
    while request is not None:
        answer = request.execute()
        for rule in answer.get("items", []):
            is_there = rule["network"].rpartition("/")[2] == network and rule["name"] not in own
            lets_in = rule.get("direction") == "INGRESS" and rule.get("allowed") and not rule.get("disabled")
            if is_there and lets_in:
                tagged = rule.get("sourceTags") or rule.get("sourceServiceAccounts")
                for source in rule.get("sourceRanges") or ([] if tagged else ["0.0.0.0/0"]):
                    if _is_wide(source) and source not in ranges:
                        yield rule, source
        request = requests.list_next(request, answer)


def _is_wide(source: str) -> bool:
    """Return whether a range has addresses of the internet, or is as wide as no user's own."""
    network = ipaddress.ip_network(source)
    return not network.is_private or network.prefixlen < WIDEST_PREFIX[network.version]


def _instances(compute: Any, document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the machines of a cluster, in whatever zone and state."""
    requests = compute.instances()
    request = requests.aggregatedList(
        project=document["provider"]["project_id"], filter=f"labels.ray-cluster-name={document['cluster_name']}"
    )
    while request is not None:
        answer = request.execute()
        for zone in answer.get("items", {}).values():
            yield from zone.get("instances", [])
        request = requests.aggregatedList_next(request, answer)


def _wait(compute: Any, project: str, operation: dict[str, Any]) -> None:
    """Wait until Google has done what it accepted."""
    end = time.monotonic() + OPERATION_S
    while operation["status"] != "DONE":
        if time.monotonic() > end:
            raise InputError(
                f"Google Cloud must end {operation['name']} within {OPERATION_S} s; it is still {operation['status']}"
            )
        where = {"project": project, "operation": operation["name"]}
        if "region" in operation:
            region = operation["region"].rpartition("/")[2]
            operation = compute.regionOperations().wait(region=region, **where).execute()
        else:
            operation = compute.globalOperations().wait(**where).execute()
    if "error" in operation:
        problems = "; ".join(error.get("message", "") for error in operation["error"]["errors"])
        raise InputError(f"Google Cloud must do {operation['name']}; got {problems}")
