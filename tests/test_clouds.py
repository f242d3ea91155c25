"""The cluster files of three clouds, against Ray, the clouds' packaged models and servers that speak as they do."""

import contextlib
import copy
import gzip
import http.server
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import wait_until

from ablate.errors import InputError
from ablate.launch.clouds.access import (
    access_steps,
    account_commands,
    prepare_access,
    verify_access,
    verify_down,
)
from ablate.launch.clouds.check import offline_check
from ablate.launch.clouds.common import ssh_ranges
from ablate.launch.clouds.machine_types import GOOGLE_CARDS, GPU_MACHINES, machine_of
from ablate.launch.cluster_file import find_cluster, parse_cluster, shipped_clusters
from ablate.launch.prices import fleet_of
from ablate.schedule.fitting import Shape

CLOUDS = ("aws", "gcp", "azure")

CLIENTS = {"aws": "boto3", "gcp": "googleapiclient.discovery", "azure": "azure.mgmt.compute"}
"""The client library of each cloud."""

EDITS = {
    "EDIT-YOUR-IP": "203.0.113.7",
    "EDIT-BUCKET": "my-bucket",
    "EDIT-PRICE-SOURCE, EDIT-DATE": "price list, 25 November 2026",
    "EDIT-PRICE": "0.5",
    "EDIT-PROJECT": "my-project-1",
    "EDIT-SUBSCRIPTION-ID": "01234567-89ab-cdef-0123-456789abcdef",
}
"""What a user writes for the marks in the shipped files."""


def edited(cloud, *changes):
    """Return the shipped file of a cloud with its marks replaced, and each (old, new) of `changes` once."""
    pytest.importorskip(CLIENTS[cloud], reason=f"needs the extra {cloud}")
    text = shipped_clusters()[f"{cloud}.yaml"].read_text()
    for mark, value in EDITS.items():
        text = text.replace(mark, value)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return parse_cluster(Path(f"{cloud}.yaml"), text)


def line_of(file, part):
    """Return the number of the first line of a file that has `part` in it; comments do not count."""
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in file.text.splitlines()]
    return next(number for number, line in enumerate(lines, 1) if part in line)


def gone(module, monkeypatch):
    """Make `import module` fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, module, None)


# --- the shipped files ---


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_shipped_file_passes_the_check_of_its_cloud_once_it_is_edited(cloud):
    offline_check(edited(cloud))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_shipped_file_passes_the_check_of_ray_once_it_is_edited(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(edited(cloud).document))
    validate_config(config)
    # what Ray's defaults would add is written in the file, so that no nightly Ray is installed
    assert "ray" not in " ".join([*config["setup_commands"], *config["head_setup_commands"]])
    assert config["worker_setup_commands"] == config["setup_commands"]
    assert not config["docker"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_shipped_file_is_refused_until_its_marks_are_edited(cloud):
    with pytest.raises(InputError, match=rf"{cloud}.yaml:\d+: EDIT-\S+ must be replaced"):
        offline_check(find_cluster(f"clusters/{cloud}.yaml"))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_shipped_file_has_a_head_on_demand_and_spot_workers_of_several_cards(cloud):
    fleet = fleet_of(edited(cloud))
    document = edited(cloud).document
    assert fleet.head.shape == Shape(0)
    assert not fleet.head.spot
    assert all(worker.spot for worker in fleet.workers)
    assert len({worker.shape.accelerator_types for worker in fleet.workers}) == len(fleet.workers) >= 3
    assert all(kind["min_workers"] == 0 for name, kind in document["available_node_types"].items() if name != "head")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_comments_name_every_kind_of_command_that_sets_an_account_up(cloud):
    file = edited(cloud)
    for command in account_commands(file.document):
        verb = " ".join(word for word in command.split()[:4] if not word.startswith(("-", "gs:")))
        assert verb.split(" ablate")[0].split(" my-project")[0] in file.text


STEPS = {
    "aws": [
        "check the credentials for AWS, and that the instance profiles ablate-head, ablate-worker exist",
        "make or check the security group ablate-aws: ssh from {}, all else within the group only",
        "read the image's id from its parameter, the same for all machines",
    ],
    "gcp": [
        "check the credentials for Google Cloud, and that the service accounts "
        "ablate-head@my-project-1.iam.gserviceaccount.com, ablate-worker@my-project-1.iam.gserviceaccount.com exist",
        "make or check the network ablate: ssh from {}, all else within the network only",
        "read which image the family has now, the same for all machines",
    ],
    "azure": [
        "check the login of the Azure CLI",
        "make or check the resource group ablate and in it the virtual network ray-ablate-azure-ablate1-vnet",
        "make or set the rules ablate-ablate-azure-ablate1-rules of its subnet: ssh from {}, all else within the "
        "network only",
        "read the latest version of the image, the same for all machines",
    ],
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_steps_tell_who_may_ssh(cloud):
    for given, told in (
        ("203.0.113.7/32", "203.0.113.7/32"),
        ("[203.0.113.7/32, 198.51.100.0/24]", "203.0.113.7/32, 198.51.100.0/24"),
    ):
        document = edited(cloud, ("ssh_from: 203.0.113.7/32", f"ssh_from: {given}")).document
        assert access_steps(document) == [step.format(told) for step in STEPS[cloud]]


# --- what is refused, with its line ---

WRONG = [
    # the frame, for all clouds alike
    (
        "aws",
        "idle_timeout_minutes: 5",
        "idle_timeout_minute: 5",
        "idle_timeout_minute",
        "did you mean 'idle_timeout_minutes'",
    ),
    ("aws", "idle_timeout_minutes: 5", "", "", "idle_timeout_minutes: must be the minutes"),
    ("aws", "cache_stopped_nodes: false", "cache_stopped_nodes: true", "cache_stopped", "must be false: machines"),
    ("gcp", "cache_stopped_nodes: false", "use_internal_ips: false", "", "must be false: machines ... got None"),
    ("aws", "max_workers: 8 ", "max_workers: 33 ", "max_workers", "at most 32, what the node types allow together"),
    ("aws", "head_node_type: head", "head_node_type: haed", "head_node_type", "did you mean 'head'"),
    ("aws", "resources: {CPU: 0}", "resources: {CPU: 2}", "resources: {CPU: 2}", "must be {CPU: 0} for the head"),
    ("aws", "resources: {CPU: 0}", "resources: {CPU: 0.5}", "resources: {CPU: 0.5}", "must be of type integer"),
    ("aws", "min_workers: 0", "min_worker: 0", "min_worker:", "did you mean 'min_workers'"),
    ("aws", "min_workers: 0", "min_workers: 9", "min_workers: 9", "must be from 0 to max_workers of this type, 8"),
    ("aws", "head_node_type: head", "head_node_type: head\ndocker: {image: x}", "docker", "must be left out"),
    (
        "aws",
        "head_node_type: head",
        "head_node_type: head\nhead_start_ray_commands: [ray stop]",
        "head_start_ray_commands",
        "must be left out",
    ),
    (
        "azure",
        "location: westus2",
        "locatoin: westus2",
        "locatoin",
        "provider azure; got 'locatoin' (did you mean 'location'",
    ),
    (
        "aws",
        "  region: us-east-1",
        "  region: us-east-1\n  aws_credentials: {}",
        "aws_credentials",
        "copied to the head",
    ),
    ("gcp", "  ssh_user: ubuntu", "  ssh_usr: ubuntu", "ssh_usr", "did you mean 'ssh_user'"),
    ("aws", "interruptions_per_hour", "interruption_per_hour", "", None),  # a comment: no error
    ("aws", "queue_minutes: 8", "queue_minute: 8", "queue_minute", "did you mean 'queue_minutes'"),
    # AWS
    (
        "aws",
        "InstanceMarketOptions:",
        "InstanceMarketOption:",
        "InstanceMarketOption:",
        "did you mean 'InstanceMarketOptions'",
    ),
    ("aws", "MarketType: spot", "MarketType: spto", "MarketType: spto", "must be one of spot, ... did you mean 'spot'"),
    ("aws", "g4dn.2xlarge", "g4dn.2xlrge", "g4dn.2xlrge", "InstanceType: must be ... did you mean 'g4dn.2xlarge'"),
    ("aws", "InstanceType: m7i.large", "InstanceType: inf2.xlarge", "inf2.xlarge", "known here, ... machine_types"),
    (
        "aws",
        "g4dn.2xlarge",
        "g4dn.xlarge",
        "resources: {CPU: 8",
        "CPU: must be 4: the machine has 4 CPUs and 1 GPU of type T4",
    ),
    ("aws", '8, GPU: 1, "accelerator_type:T4": 1', '8, GPU: 2, "accelerator_type:T4": 1', "GPU: 2", "GPU: must be 1"),
    (
        "aws",
        '"accelerator_type:T4": 1',
        '"accelerator_type:L4": 1',
        "accelerator_type:L4",
        'must have "accelerator_type:T4": 1',
    ),
    ("aws", ', "accelerator_type:T4": 1', "", "resources: {CPU: 8, GPU: 1}", "got none; else --accelerator-type waits"),
    ("aws", "VolumeSize: 150", "VolumeSize: '150'", "VolumeSize", "must be of type integer"),
    ("aws", "VolumeType: gp3", "VolumeType: gp33", "gp33", "did you mean 'gp3'"),
    ("aws", "HttpTokens: required", "HttpTokens: optional", "optional", "HttpTokens: must be required"),
    ("aws", "DeleteOnTermination: true", "DeleteOnTermination: false", "DeleteOnTermination", "costs on"),
    ("aws", "{Name: ablate-worker}", "{Nmae: ablate-worker}", "Nmae", "did you mean 'Name'"),
    (
        "aws",
        "      IamInstanceProfile: {Name: ablate-worker}\n",
        "",
        "",
        "IamInstanceProfile: must be given: ... no bucket",
    ),
    ("aws", "region: us-east-1", "region: us-east-11", "us-east-11", "did you mean 'us-east-1'"),
    ("aws", "us-east-1a,", "us-west-2a,", "us-west-2a", "must be zones of the region"),
    ("aws", "{GroupName: ablate-aws}", "{GroupNmae: ablate-aws}", "GroupNmae", "did you mean 'GroupName'"),
    (
        "aws",
        "{GroupName: ablate-aws}",
        "{GroupName: x, IpPermissions: []}",
        "IpPermissions",
        "the launch writes the rules",
    ),
    (
        "aws",
        "InstanceType: m7i.large",
        "InstanceType: m7i.large\n      SecurityGroupIds: [sg-1]",
        "sg-1",
        "must be left out",
    ),
    ("aws", "&image resolve:ssm:", "&image resolve-ssm:", "resolve-ssm", "must be ami-... or resolve:ssm"),
    (
        "aws",
        "MarketType: spot}",
        "MarketType: spot, SpotOptions: {InstanceInterruptionBehavior: stop}}",
        "stop}}",
        "must be terminate",
    ),
    # Google Cloud
    (
        "gcp",
        "provisioningModel: SPOT",
        "provisoningModel: SPOT",
        "provisoningModel",
        "did you mean 'provisioningModel'",
    ),
    ("gcp", "provisioningModel: SPOT", "provisioningModel: SPOTT", "SPOTT", "must be one of ... did you mean 'SPOT'"),
    ("gcp", "instanceTerminationAction: DELETE", "instanceTerminationAction: STOP", "STOP", "must be DELETE for spot"),
    ("gcp", "automaticRestart: false", "automaticRestart: true", "automaticRestart", "must be false for spot"),
    ("gcp", "onHostMaintenance: TERMINATE", "onHostMaintenance: MIGRATE", "MIGRATE", "must be TERMINATE"),
    ("gcp", "machineType: g2-standard-8", "machineType: g2-standard-9", "g2-standard-9", "did you mean 'g2-standard-"),
    ("gcp", "machineType: e2-standard-4", "machinetype: e2-standard-4", "machinetype", "did you mean 'machineType'"),
    (
        "gcp",
        "nvidia-l4, acceleratorCount: 1",
        "nvidia-l4, acceleratorCount: 2",
        "acceleratorCount: 2",
        "must be what is built in",
    ),
    ("gcp", "acceleratorType: nvidia-l4", "acceleratorType: nvidia-l5", "nvidia-l5", "did you mean 'nvidia-l4'"),
    ("gcp", "acceleratorCount: 1", "acceleratorCount: one", "acceleratorCount: one", "must be of type integer"),
    ("gcp", "machineType: n1-standard-8", "machineType: e2-standard-8", "nvidia-tesla-t4", "attached to machines n1-"),
    ("gcp", "autoDelete: true", "autoDelete: false", "autoDelete", "costs on"),
    (
        "gcp",
        "availability_zone: us-central1-a",
        "availability_zone: us-central1-b",
        "diskType:",
        "zones/us-central1-b/diskTypes",
    ),
    (
        "gcp",
        "availability_zone: us-central1-a",
        "availability_zone: us-east1-a",
        "availability_zone",
        "one zone of the region",
    ),
    ("gcp", "subnetworks/ablate", "subnetworks/default", "networkInterfaces", "a subnetwork of your own"),
    (
        "gcp",
        "project_id: my-project-1",
        "project_id: other-project",
        "networkInterfaces",
        "projects/other-project/regions",
    ),
    (
        "gcp",
        "serviceAccounts:\n        - {email: ablate-head",
        "labels: {}\n      tags: {items: []}\n      scheduling: {}\n#",
        "",
        "serviceAccounts: must be given",
    ),
    # Azure
    ("azure", "vmSize: Standard_NC8as_T4_v3", "vmSiez: Standard_NC8as_T4_v3", "vmSiez", "did you mean 'vmSize'"),
    ("azure", "Standard_NC8as_T4_v3", "Standard_NC8as_T4_v4", "Standard_NC8as_T4_v4", "did you mean 'Standard_NC"),
    (
        "azure",
        "priority: Spot",
        "priority: Spt",
        "priority",
        "must be one of Regular, Low, Spot; got 'Spt' (did you mean 'Spot'",
    ),
    ("azure", "evictionPolicy: Delete", "evictionPolicy: Deallocate", "evictionPolicy", "must be Delete: the disk"),
    ("azure", "{maxPrice: -1}", "{maxprize: -1}", "maxprize", "did you mean 'maxPrice'"),
    ("azure", "osDiskSize: 150", "osDiskSize: big", "osDiskSize", "must be of type int"),
    ("azure", "        imageOffer: ubuntu-hpc\n", "", "", "imageOffer: must be given"),
    ("azure", "unique_id: ablate1", "unique_id: a", "unique_id", "4 to 12 letters and digits"),
    ("azure", "subnet_mask: 10.77.0.0/16", "subnet_mask: 8.8.0.0/16", "subnet_mask", "must be a private range"),
    ("azure", "subscription_id: 0123", "subscription_id: 123", "subscription_id", "the id of your subscription"),
    ("azure", "availability_zone: none", "availability_zone: '4'", "availability_zone", "none, auto or zones"),
    ("azure", "osDiskSize: 150", "osDiskSize: 150\n        nsg: x", "nsg: x", "must be left out: Ray sets it"),
    ("azure", "node_config:", "node_config:\n      vmSize: x", "vmSize: x", "no key of a machine on Azure"),
]
"""(cloud, text in the shipped file, what is written instead, how the refused line is found, the message's parts)."""


@pytest.mark.parametrize(
    ("cloud", "old", "new", "part", "problem"), WRONG, ids=[f"{row[0]}-{row[2][:30]}" for row in WRONG]
)
def test_what_is_wrong_is_refused_in_one_line_with_its_place(cloud, old, new, part, problem):
    file = edited(cloud, (old, new))
    if problem is None:
        offline_check(file)
        return
    with pytest.raises(InputError) as caught:
        offline_check(file)
    message = str(caught.value)
    assert all(words in message for words in problem.split(" ... ")), message
    assert "\n" not in message
    assert message.startswith(f"{cloud}.yaml:")
    if part:
        assert message.startswith(f"{cloud}.yaml:{line_of(file, part)}: "), message


def test_a_spot_head_is_refused():
    file = edited(
        "aws", ("InstanceType: m7i.large", "InstanceType: m7i.large\n      InstanceMarketOptions: {MarketType: spot}")
    )
    with pytest.raises(InputError, match="must be on demand for the head"):
        offline_check(file)


@pytest.mark.parametrize(
    "given", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "2000::/3", "[203.0.113.7/32, 0.0.0.0/0]", "home", "null", "[]", "7"]
)
def test_a_range_that_is_not_the_users_own_may_not_ssh(given):
    file = edited("aws", ("ssh_from: 203.0.113.7/32", f"ssh_from: {given}"))
    with pytest.raises(InputError, match=rf"aws.yaml:{line_of(file, 'ssh_from')}: metadata.ssh_from: must"):
        offline_check(file)


def test_several_ranges_may_ssh():
    file = edited("aws", ("ssh_from: 203.0.113.7/32", "ssh_from: [203.0.113.7, 198.51.100.0/24]"))
    offline_check(file)
    assert ssh_ranges(file) == ["203.0.113.7/32", "198.51.100.0/24"]


@pytest.mark.parametrize(
    ("cloud", "module"),
    [
        ("aws", "boto3"),
        ("gcp", "googleapiclient.discovery_cache"),
        ("azure", "azure.mgmt.compute.models"),
        ("azure", "azure.identity"),
    ],
)
def test_a_missing_client_library_is_named_with_its_extra(cloud, module, monkeypatch):
    file = edited(cloud)
    gone(module, monkeypatch)
    with pytest.raises(InputError, match=rf'pip install "ablate\[{cloud}\]"'):
        offline_check(file)


def test_a_machine_type_of_ones_own_is_described_in_the_file():
    change = ("InstanceType: g4dn.2xlarge", "InstanceType: g99.2xlarge")
    own = ("metadata:\n", "metadata:\n  machine_types: {g99.2xlarge: {cpus: 8, gpus: 1, accelerator: T4}}\n")
    with pytest.raises(InputError, match="g99"):
        offline_check(edited("aws", change))
    offline_check(edited("aws", change, own))
    with pytest.raises(InputError, match=r"machine_types.g99.2xlarge.accelerator: must be given for GPUs"):
        offline_check(edited("aws", change, (own[0], own[1].replace(", accelerator: T4", ""))))


# --- the tables of machines ---


def test_what_machines_of_aws_have_is_what_ec2_tells():
    packed = resources.files("moto").joinpath("ec2/resources/instance_types.json.gz").read_bytes()
    told = json.loads(gzip.decompress(packed))
    assert len(told) > 1000
    for name, machine in GPU_MACHINES["aws"].items():
        cards = told[name]["GpuInfo"]["Gpus"][0]
        assert (machine.cpus, machine.gpus) == (told[name]["VCpuInfo"]["DefaultVCpus"], cards["Count"])
        assert machine.accelerator.split("-")[0] == cards["Name"].split()[0]
        assert told[name]["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]
        assert "spot" in told[name]["SupportedUsageClasses"]
    general = {
        name: machine for name in told if name not in GPU_MACHINES["aws"] and (machine := machine_of("aws", name))
    }
    assert len(general) > 300
    for name, machine in general.items():
        assert machine.cpus == told[name]["VCpuInfo"]["DefaultVCpus"], name
        assert "GpuInfo" not in told[name]
        assert "x86_64" in told[name]["ProcessorInfo"]["SupportedArchitectures"]


@pytest.mark.parametrize(
    ("cloud", "name", "cpus", "gpus", "accelerator"),
    [
        ("gcp", "g2-standard-24", 24, 2, "L4"),
        ("gcp", "g2-standard-32", 32, 1, "L4"),
        ("gcp", "a2-highgpu-1g", 12, 1, "A100"),
        ("gcp", "a2-megagpu-16g", 96, 16, "A100"),
        ("gcp", "a3-highgpu-8g", 208, 8, "H100"),
        ("gcp", "e2-standard-4", 4, 0, None),
        ("azure", "Standard_NC64as_T4_v3", 64, 4, "T4"),
        ("azure", "Standard_NC48ads_A100_v4", 48, 2, "A100"),
        ("azure", "Standard_D4s_v5", 4, 0, None),
    ],
)
def test_what_machines_have_is_what_the_vendors_pages_tell(cloud, name, cpus, gpus, accelerator):
    machine = machine_of(cloud, name)
    assert (machine.cpus, machine.gpus, machine.accelerator) == (cpus, gpus, accelerator)


def test_the_fields_of_azures_billing_profile_are_those_of_its_model():
    pytest.importorskip(CLIENTS["azure"], reason="needs the extra azure")
    from azure.mgmt.compute.models import BillingProfile

    from ablate.launch.clouds.azure_check import BILLING

    assert {field["key"] for field in BillingProfile._attribute_map.values()} == set(BILLING)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla P100-PCIE-16GB", "P100"),
    ],
)
def test_accelerators_have_the_names_that_ray_gives_on_the_machine(device, name):
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    used = {machine.accelerator for table in GPU_MACHINES.values() for machine in table.values()}
    assert name in used | set(GOOGLE_CARDS.values())
    assert NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(device) == name


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("version", [1, 2])
def test_rays_autoscaler_starts_the_type_that_has_the_accelerator_asked_for(cloud, version):
    document = edited(cloud).document
    for worker in fleet_of(edited(cloud)).workers:
        (card,) = worker.shape.accelerator_types
        stage = {"CPU": 1, "GPU": 0.25, f"accelerator_type:{card}": 0.001}  # as a stage asks with --accelerator-type
        assert launched(document, [stage] * 4, version) == {worker.name: 1}
    assert launched(document, [{"CPU": 1, "GPU": 0.25, "accelerator_type:B300": 0.001}], version) == {}
    assert launched(document, [{"CPU": 1}], version) != {"head": 1}


def launched(document, stages, version):
    """Return how many machines of each type an autoscaler of Ray asks for, with these stages waiting for a place."""
    types = {
        name: {"min_workers": 0, "max_workers": 0 if name == "head" else 8, **kind}
        for name, kind in document["available_node_types"].items()
    }
    if version == 1:
        from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
        from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

        def score(node, demands, node_type):
            return _default_utilization_scorer(
                node, demands, node_type, node_availability_summary=NodeAvailabilitySummary(node_availabilities={})
            )

        return dict(get_nodes_for(types, {"head": 1}, "head", 8, stages, score)[0])
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    configs = {
        name: NodeTypeConfig(name, kind["min_workers"], kind["max_workers"], resources=kind["resources"])
        for name, kind in types.items()
        if name != "head"
    }
    demand = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(stage) for stage in stages])
    request = SchedulingRequest(
        disable_launch_config_check=True, node_type_configs=configs, max_num_nodes=8, resource_requests=demand
    )
    reply = ResourceDemandScheduler(SimpleNamespace(log_cluster_scheduling_update=None)).schedule(request)
    return {one.instance_type: one.count for one in reply.to_launch}


# --- prices ---


def test_prices_and_limits_of_a_file_become_a_fleet():
    file = edited(
        "aws", ("# interruptions_per_hour: 0.05", "interruptions_per_hour: 0.2"), ("max_workers: 8 ", "max_workers: 3 ")
    )
    fleet = fleet_of(file)
    assert (fleet.head.name, fleet.head.price_per_hour, fleet.head.max_count) == ("head", 0.1008, 1)
    assert {worker.name: worker.price_per_hour for worker in fleet.workers} == {
        "t4-spot": 0.5, "l4-spot": 0.5, "a10g-spot": 0.5, "l40s-spot": 0.86,
    }  # fmt: skip
    assert {(worker.min_count, worker.max_count) for worker in fleet.workers} == {(0, 3)}
    kept = fleet_of(edited("aws", ("min_workers: 0", "min_workers: 2")))
    assert [worker.min_count for worker in kept.workers] == [2, 0, 0, 0]
    assert fleet.workers[3].shape == Shape(8, 1, frozenset({"L40S"}))
    assert (fleet.currency, fleet.interruptions_per_hour, fleet.queue_minutes) == ("USD", 0.2, 8.0)
    assert not fleet.is_guess


@pytest.mark.parametrize(
    ("cloud", "change", "spot"),
    [
        ("aws", ("      InstanceMarketOptions: {MarketType: spot}\n", ""), False),
        ("gcp", ("provisioningModel: SPOT", "provisioningModel: STANDARD"), False),
        ("gcp", ("provisioningModel: SPOT", "preemptible: true"), True),
        ("azure", ("priority: Spot", "priority: Regular"), False),
    ],
)
def test_which_type_is_spot_stands_in_its_machine(cloud, change, spot):
    assert {worker.spot for worker in fleet_of(edited(cloud, change)).workers} == {spot}


@pytest.mark.parametrize(
    ("old", "new", "part", "problem"),
    [
        (
            "    t4-spot: 0.5\n",
            "",
            "price_per_hour",
            "price_per_hour.t4-spot: must be given: every node type needs a price",
        ),
        ("t4-spot: 0.5", "t4-spot: -0.5", "t4-spot: -0.5", "a number from 0; got -0.5"),
        ("t4-spot: 0.5", "t4-spot: .nan", "t4-spot: .nan", "a number from 0; got nan"),
        ("t4-spot: 0.5", "t4-spot: .inf", "t4-spot: .inf", "a number from 0; got inf"),
        ("t4-spot: 0.5", "t4-spot: true", "t4-spot: true", "a number from 0; got True"),
        ("t4-spot: 0.5", "t4-spot: 'cheap'", "t4-spot: 'cheap'", "a number from 0; got 'cheap'"),
        ("t4-spot: 0.5", "t4-sopt: 0.5", "t4-sopt", "did you mean 't4-spot'"),
        ("  prices_from: price list, 25 November 2026", "  other: 1", "metadata:", "prices_from: must say where"),
        ("queue_minutes: 8", "queue_minutes: -1", "queue_minutes", "must be a number from 0; got -1"),
        ("currency: USD", "currency: 5", "currency", "must be the name of a currency"),
    ],
)
def test_a_price_that_is_none_is_refused_with_its_line(old, new, part, problem):
    file = edited("aws", (old, new))
    with pytest.raises(InputError, match=problem) as caught:
        fleet_of(file)
    assert str(caught.value).startswith(f"aws.yaml:{line_of(file, part)}: metadata")


def test_machines_that_are_there_already_need_no_price_and_may_say_what_they_have():
    text = "cluster_name: lab\nprovider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}\n"
    fleet = fleet_of(parse_cluster(Path("lab.yaml"), text))
    assert (fleet.is_guess, fleet.head) == (True, None)
    (machine,) = fleet.workers
    assert (machine.min_count, machine.max_count, machine.price_per_hour, machine.spot) == (3, 3, None, False)
    told = text + "metadata: {machine: {cpus: 16, gpus: 2, accelerator_type: A100}}\n"
    fleet = fleet_of(parse_cluster(Path("lab.yaml"), told))
    assert (fleet.is_guess, fleet.workers[0].shape) == (False, Shape(16, 2, frozenset({"A100"})))
    with pytest.raises(InputError, match=r"lab.yaml:3: metadata.machine.cpu: must be one of .* .did you mean 'cpus'"):
        fleet_of(parse_cluster(Path("lab.yaml"), told.replace("cpus", "cpu")))


# --- AWS: a server that speaks its protocol ---


@pytest.fixture(scope="module")
def ec2_server():
    """Return the address of moto's server on loopback, in a process of its own: its state is not shared."""
    pytest.importorskip("moto.server", reason="needs moto[server], from the test extra")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/moto-api/", timeout=5).read()

    wait_until(answers, 60, every=0.2)
    yield address
    process.terminate()
    process.wait(30)


@pytest.fixture
def aws(ec2_server, tmp_path, monkeypatch):
    """Return boto3, on an account of its own: a default network, no role, no machine."""
    for name, value in {
        "AWS_ENDPOINT_URL": ec2_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "HOME": str(tmp_path),  # Ray writes its ssh key there
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{ec2_server}/moto-api/reset", method="POST"), timeout=30).read()
    import boto3

    return boto3


def run_commands(boto3, commands):
    """Do what commands of the AWS CLI do, through boto3."""
    client = boto3.client("iam")
    for command in commands:
        program, service, verb, *options = shlex.split(command)
        assert (program, service) == ("aws", "iam")
        names = ["".join(part.title() for part in option.removeprefix("--").split("-")) for option in options[::2]]
        given = dict(zip((name.replace("Aws", "AWS") for name in names), options[1::2], strict=True))
        getattr(client, verb.replace("-", "_"))(**given)


def aws_file(boto3, *changes):
    """Return the edited file, with an image's parameter that exists in the account."""
    image = re.search(r"ImageId: &image (\S+)", edited("aws").text).group(1)
    ami = boto3.client("ec2").describe_images(Owners=["amazon"], MaxResults=5)["Images"][0]["ImageId"]
    boto3.client("ssm").put_parameter(Name="/images/gpu", Value=ami, Type="String", Overwrite=True)
    return edited("aws", (f"ImageId: &image {image}", "ImageId: &image resolve:ssm:/images/gpu"), *changes), ami


def ingress(boto3, group):
    """Return what a security group lets in, as a set of (protocol, ports, source)."""
    (found,) = boto3.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"), next(iter(source.values())))
        for rule in found["IpPermissions"]
        for kind, key in (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"), ("UserIdGroupPairs", "GroupId"))
        for source in ({key: item[key]} for item in rule.get(kind, []))
    }


def test_rays_bootstrap_on_aws_makes_closed_spot_machines_with_gpu_and_profile(aws):
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider

    file, ami = aws_file(aws)
    document, said = copy.deepcopy(file.document), []
    run_commands(aws, account_commands(document))
    prepare_access(file, document, said.append)
    assert "made the security group ablate-aws" in " ".join(said)
    completed, said = copy.deepcopy(document), []
    prepare_access(file, document, said.append)  # a second launch changes nothing
    assert document == completed
    assert said == ["AWS account 123456789012, region us-east-1"]

    config = commands._bootstrap_config(copy.deepcopy(document), no_config_cache=True)
    groups = {
        group for kind in config["available_node_types"].values() for group in kind["node_config"]["SecurityGroupIds"]
    }
    assert len(groups) == 1
    (group,) = groups
    assert ingress(aws, group) == {("-1", None, None, group), ("tcp", 22, 22, "203.0.113.7/32")} or ingress(
        aws, group
    ) == {("-1", -1, -1, group), ("tcp", 22, 22, "203.0.113.7/32")}
    names = [one["GroupName"] for one in aws.client("ec2").describe_security_groups()["SecurityGroups"]]
    assert not [name for name in names if name.startswith("ray-autoscaler")]
    roles = [one["RoleName"] for one in aws.client("iam").list_roles()["Roles"]]
    assert sorted(role for role in roles if not role.startswith("AWSService")) == ["ablate-head", "ablate-worker"]
    for worker in fleet_of(file).workers:
        found = config["available_node_types"][worker.name]["resources"]
        assert Shape.of(found) == worker.shape
        assert found["memory"] > 10e9

    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        tags = {
            "ray-node-type": "head" if name == "head" else "worker",
            "ray-node-name": name,
            "ray-user-node-type": name,
            "ray-launch-config": "x",
            "ray-node-status": "uninitialized",
        }
        provider.create_node(
            {**config.get("head_node", {}), **kind["node_config"]} if name == "head" else kind["node_config"], tags, 1
        )
    machines = {
        next(tag["Value"] for tag in one["Tags"] if tag["Key"] == "ray-user-node-type"): one
        for reservation in aws.client("ec2").describe_instances()["Reservations"]
        for one in reservation["Instances"]
    }
    assert {name: one["InstanceType"] for name, one in machines.items()} == {
        "head": "m7i.large",
        "t4-spot": "g4dn.2xlarge",
        "l4-spot": "g6.2xlarge",
        "a10g-spot": "g5.2xlarge",
        "l40s-spot": "g6e.2xlarge",
    }
    for name, one in machines.items():
        assert one.get("InstanceLifecycle") == (None if name == "head" else "spot")
        profile = "ablate-head" if name == "head" else "ablate-worker"
        assert one["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{profile}")
        assert one["MetadataOptions"]["HttpTokens"] == "required"
        assert one["ImageId"] == ami
        assert [of["GroupId"] for of in one["SecurityGroups"]] == [group]
    assert verify_access(file, document) == []
    left = verify_down(file, document)
    assert sorted(line.split()[0] for line in left) == sorted(one["InstanceId"] for one in machines.values())
    assert any("(g6e.2xlarge, running)" in line for line in left)
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    assert verify_down(file, document) == []


def test_the_gpus_in_the_file_stand_where_ray_cannot_look_machines_up(aws, monkeypatch):
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.aws import node_provider

    def fails(*_args, **_kwargs):
        raise RuntimeError("throttled")

    file, _ = aws_file(aws)
    document = copy.deepcopy(file.document)
    run_commands(aws, account_commands(document))
    prepare_access(file, document, print)
    monkeypatch.setattr(node_provider, "list_ec2_instances", fails)
    config = commands._bootstrap_config(document, no_config_cache=True)
    for worker in fleet_of(file).workers:
        assert Shape.of(config["available_node_types"][worker.name]["resources"]) == worker.shape


def test_without_the_launchs_own_group_ray_opens_ssh_to_the_world_and_it_is_seen(aws):
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider

    file, ami = aws_file(aws)
    run_commands(aws, account_commands(file.document))
    config = commands._bootstrap_config(copy.deepcopy(file.document), no_config_cache=True)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    node = {**config["available_node_types"]["t4-spot"]["node_config"], "ImageId": ami}
    tags = {"ray-node-type": "worker", "ray-node-name": "w", "ray-user-node-type": "t4-spot", "ray-launch-config": "x"}
    provider.create_node(node, tags, 1)
    (line,) = verify_access(file, file.document)
    assert line.endswith("lets in port 22 from 0.0.0.0/0")


def test_a_profile_that_is_not_there_is_refused_with_the_commands_that_make_it(aws):
    file, _ = aws_file(aws)
    with pytest.raises(InputError, match=r"IamInstanceProfile: must exist and have a role") as caught:
        prepare_access(file, copy.deepcopy(file.document), print)
    message = str(caught.value)
    run_commands(aws, message.partition("; type: ")[2].split(" ; "))
    prepare_access(file, copy.deepcopy(file.document), print)
    policy = aws.client("iam").get_role_policy(RoleName="ablate-head", PolicyName="ablate")["PolicyDocument"]
    passed = [one["Resource"] for one in policy["Statement"] if one["Action"] == "iam:PassRole"]
    assert passed == [["arn:aws:iam::*:role/ablate-worker"]]
    worker = aws.client("iam").get_role_policy(RoleName="ablate-worker", PolicyName="ablate")["PolicyDocument"]
    assert all("my-bucket" in str(one["Resource"]) for one in worker["Statement"])


OPEN_RULES = [
    {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
    {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
    {"IpProtocol": "tcp", "FromPort": 8265, "ToPort": 8265, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]},
    {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]},
]


def test_a_group_that_lets_others_in_is_refused_with_the_command_that_closes_it(aws):
    file, _ = aws_file(aws)
    run_commands(aws, account_commands(file.document))
    client = aws.client("ec2")
    vpc = client.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = client.create_security_group(GroupName="ablate-aws", Description="mine", VpcId=vpc)["GroupId"]
    for rule in OPEN_RULES:
        client.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        with pytest.raises(InputError, match=r"must be a group that lets in ssh from 203.0.113.7/32 only") as caught:
            prepare_access(file, copy.deepcopy(file.document), print)
        words = shlex.split(str(caught.value).partition("type: ")[2])
        assert words[:3] == ["aws", "ec2", "revoke-security-group-ingress"]
        client.revoke_security_group_ingress(GroupId=words[6], IpPermissions=json.loads(words[8]))
        prepare_access(file, copy.deepcopy(file.document), print)
        assert {source for *_, source in ingress(aws, group)} == {group, "203.0.113.7/32"}


def test_a_new_address_of_the_user_takes_the_place_of_the_old_one(aws):
    old, _ = aws_file(aws)
    run_commands(aws, account_commands(old.document))
    document = copy.deepcopy(old.document)
    prepare_access(old, document, print)
    group = document["available_node_types"]["head"]["node_config"]["SecurityGroupIds"][0]
    new, _ = aws_file(aws, ("203.0.113.7/32", "198.51.100.9/32"))
    said = []
    prepare_access(new, copy.deepcopy(new.document), said.append)
    assert "closed ablate-aws to port 22 from 203.0.113.7/32" in said
    assert {source for *_, source in ingress(aws, group)} == {group, "198.51.100.9/32"}


def test_without_credentials_for_aws_nothing_is_begun(aws, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = edited("aws")
    with pytest.raises(InputError, match=r"aws.yaml: AWS needs credentials; .*aws configure"):
        prepare_access(file, copy.deepcopy(file.document), print)


def test_a_server_of_aws_that_does_not_answer_is_told_in_one_line(aws, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    file = edited("aws")
    for ask in (
        lambda: prepare_access(file, copy.deepcopy(file.document), print),
        lambda: verify_down(file, file.document),
    ):
        with pytest.raises(InputError, match=r"aws.yaml: AWS must answer; got .*127.0.0.1:9"):
            ask()


# --- Google Cloud and Azure: servers that keep what they are sent ---


class Keeper(http.server.ThreadingHTTPServer):
    """A server on loopback that keeps resources by their paths, as the interfaces of both clouds do."""

    daemon_threads = True

    def __init__(self, answer):
        self.kept, self.log = {}, []
        keeper = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_one(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                url = urllib.parse.urlsplit(self.path)
                keeper.log.append((self.command, url.path))
                query = dict(urllib.parse.parse_qsl(url.query))
                status, content = answer(keeper, self.command, url.path, query, body)
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def log_message(self, *_args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self):
        self.shutdown()
        self.server_close()


def google_answer(keeper, method, path, query, body):
    """Answer as Compute Engine and IAM do, about networks, rules, images, accounts and machines."""
    missing = 404, {"error": {"code": 404, "message": f"{path} was not found"}}
    if path.endswith("/wait"):
        return 200, {"name": path.split("/")[-2], "status": "DONE"}
    if method == "POST":
        known = google_fields(
            {"networks": "Network", "subnetworks": "Subnetwork", "firewalls": "Firewall"}[path.split("/")[-1]]
        )
        assert set(body) <= known, set(body) - known
        keeper.kept[f"{path}/{body['name']}"] = body
        region = {"region": path.rpartition("/")[0]} if "/regions/" in path else {}
        return 200, {"name": "operation-1", "status": "RUNNING", **region}
    if method == "PUT":
        keeper.kept[path] = body
        return 200, {"name": "operation-2", "status": "DONE"}
    if "/images/family/" in path:
        return 200, {"name": f"{path.rpartition('/')[2]}-v20261101"}
    if path.endswith("/aggregated/instances"):
        assert query["filter"].startswith("labels.ray-cluster-name=")
        wanted = query["filter"].partition("=")[2]
        found = [one for one in keeper.kept.get("instances", []) if one["labels"]["ray-cluster-name"] == wanted]
        return 200, {"items": {"zones/us-central1-a": {"instances": found}, "zones/us-central1-b": {"warning": {}}}}
    if path.endswith("/firewalls"):
        return 200, {"items": [one for name, one in keeper.kept.items() if name.startswith(path + "/")]}
    return (200, keeper.kept[path]) if path in keeper.kept else missing


def google_fields(name):
    """Return the fields of a schema in Google's packaged model."""
    document = resources.files("googleapiclient.discovery_cache").joinpath("documents/compute.v1.json").read_text()
    return set(json.loads(document)["schemas"][name]["properties"])


@pytest.fixture
def google_clients():
    """Return the server and Google's own clients, that talk to it."""
    pytest.importorskip(CLIENTS["gcp"], reason="needs the extra gcp")
    from google.auth.credentials import AnonymousCredentials
    from googleapiclient.discovery import build

    from ablate.launch.clouds.gcp_access import Google

    server = Keeper(google_answer)
    given = {"credentials": AnonymousCredentials(), "cache_discovery": False}
    clients = Google(
        build("compute", "v1", client_options={"api_endpoint": f"{server.address}/compute/v1/"}, **given),
        build("iam", "v1", client_options={"api_endpoint": f"{server.address}/"}, **given),
    )
    server.kept["/compute/v1/projects/my-project-1"] = {"name": "my-project-1"}
    for name in ("head", "worker"):
        email = f"ablate-{name}@my-project-1.iam.gserviceaccount.com"
        server.kept[f"/v1/projects/-/serviceAccounts/{email}"] = {"email": email}
    yield server, clients
    server.stop()
    clients.compute.close()
    clients.iam.close()


GLOBAL = "/compute/v1/projects/my-project-1/global"


def test_google_gets_a_network_of_its_own_with_two_rules_and_one_image(google_clients):
    from ablate.launch.clouds.gcp_access import prepare_gcp, verify_gcp

    server, clients = google_clients
    file = edited("gcp")
    document = copy.deepcopy(file.document)
    prepare_gcp(file, document, print, clients=clients)
    assert server.kept[f"{GLOBAL}/networks/ablate"]["autoCreateSubnetworks"] is False
    rules = {name.rpartition("/")[2]: rule for name, rule in server.kept.items() if "/firewalls/" in name}
    assert {name: (rule["allowed"], rule["sourceRanges"]) for name, rule in rules.items()} == {
        "ablate-ssh": ([{"IPProtocol": "tcp", "ports": ["22"]}], ["203.0.113.7/32"]),
        "ablate-inside": ([{"IPProtocol": "all"}], ["10.77.0.0/20"]),
    }
    image = "projects/deeplearning-platform-release/global/images/common-cu129-ubuntu-2404-nvidia-580-v20261101"
    for kind in document["available_node_types"].values():
        assert kind["node_config"]["disks"][0]["initializeParams"]["sourceImage"] == image
    offline_check(file)
    server.log.clear()
    prepare_gcp(file, copy.deepcopy(document), print, clients=clients)  # a second launch changes nothing
    assert {method for method, _ in server.log} == {"GET"}
    server.kept["instances"] = [google_machine("ablate-gcp", "network/ablate")]
    assert verify_gcp(file, document, clients=clients) == []
    moved = edited("gcp", ("203.0.113.7/32", "198.51.100.9/32"))
    prepare_gcp(moved, copy.deepcopy(document), print, clients=clients)
    assert server.kept[f"{GLOBAL}/firewalls/ablate-ssh"]["sourceRanges"] == ["198.51.100.9/32"]


def google_machine(cluster, network):
    """Return a machine as Compute Engine lists it."""
    return {
        "name": f"ray-{cluster}-head-1-compute",
        "machineType": "zones/us-central1-a/machineTypes/e2-standard-4",
        "status": "RUNNING",
        "labels": {"ray-cluster-name": cluster},
        "networkInterfaces": [{"network": network}],
    }


def test_a_network_of_google_that_lets_others_in_is_refused_and_seen(google_clients):
    from ablate.launch.clouds.gcp_access import prepare_gcp, verify_gcp

    server, clients = google_clients
    file = edited("gcp")
    prepare_gcp(file, copy.deepcopy(file.document), print, clients=clients)
    rule = {
        "name": "anybody",
        "network": "global/networks/ablate",
        "direction": "INGRESS",
        "allowed": [{"IPProtocol": "tcp"}],
    }
    for sources in (
        {"sourceRanges": ["0.0.0.0/0"]},
        {},
        {"sourceRanges": ["::/0"]},
        {"sourceRanges": ["192.0.2.1/32", "8.8.8.0/24"]},
    ):
        server.kept[f"{GLOBAL}/firewalls/anybody"] = rule | sources
        with pytest.raises(InputError, match="gcloud compute firewall-rules delete anybody --project my-project-1"):
            prepare_gcp(file, copy.deepcopy(file.document), print, clients=clients)
        server.kept["instances"] = [google_machine("ablate-gcp", "global/networks/ablate")]
        assert "the firewall rule anybody lets in" in verify_gcp(file, file.document, clients=clients)[0]
    for harmless in (
        {"disabled": True},
        {"network": "global/networks/default"},
        {"sourceTags": ["x"]},
        {"direction": "EGRESS"},
    ):
        server.kept[f"{GLOBAL}/firewalls/anybody"] = rule | harmless
        prepare_gcp(file, copy.deepcopy(file.document), print, clients=clients)


def test_google_names_what_is_left_of_this_cluster_only(google_clients):
    from ablate.launch.clouds.gcp_access import left_gcp

    server, clients = google_clients
    file = edited("gcp")
    assert left_gcp(file, file.document, clients=clients) == []
    server.kept["instances"] = [google_machine("ablate-gcp", "x"), google_machine("other", "x")]
    assert left_gcp(file, file.document, clients=clients) == ["ray-ablate-gcp-head-1-compute (e2-standard-4, RUNNING)"]


def test_a_service_account_that_is_not_there_is_refused_with_the_commands(google_clients):
    from ablate.launch.clouds.gcp_access import prepare_gcp

    server, clients = google_clients
    del server.kept["/v1/projects/-/serviceAccounts/ablate-worker@my-project-1.iam.gserviceaccount.com"]
    file = edited("gcp")
    with pytest.raises(
        InputError, match=r"serviceAccounts: must exist; .*gcloud iam service-accounts create ablate-worker"
    ):
        prepare_gcp(file, copy.deepcopy(file.document), print, clients=clients)
    assert not [path for method, path in server.log if method != "GET"]


def test_a_project_of_google_that_is_not_there_is_not_created(google_clients):
    from ablate.launch.clouds.gcp_access import prepare_gcp

    server, clients = google_clients
    del server.kept["/compute/v1/projects/my-project-1"]
    file = edited("gcp")
    with pytest.raises(InputError, match=r"gcp.yaml: Google Cloud must allow this .* got 404"):
        prepare_gcp(file, copy.deepcopy(file.document), print, clients=clients)


def test_without_credentials_for_google_nothing_is_begun(tmp_path, monkeypatch):
    for name, value in {
        "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true", "PATH": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    file = edited("gcp")
    for ask in (
        lambda: prepare_access(file, copy.deepcopy(file.document), print),
        lambda: verify_down(file, file.document),
    ):
        with pytest.raises(InputError, match="gcloud auth application-default login"):
            ask()


GROUP = "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/ablate"
NETWORK = f"{GROUP}/providers/Microsoft.Network"
RULES = f"{NETWORK}/networkSecurityGroups/ablate-ablate-azure-ablate1-rules"
VNET = f"{NETWORK}/virtualNetworks/ray-ablate-azure-ablate1-vnet"


def azure_answer(keeper, method, path, query, body):
    """Answer as Azure Resource Manager does, about whatever is put there."""
    path = path.replace("resourcegroups", "resourceGroups")
    if method == "PUT":
        kept = {"id": path, "name": path.rpartition("/")[2], "type": "/".join(path.split("/")[-3:-1]), **body}
        if "/deployments/" in path:
            kept["properties"] = {
                **body["properties"],
                "outputs": {name: {"value": f"{GROUP}/{name}"} for name in ("msi", "nsg", "subnet")},
            }
        if "/subnets/" in path:
            keeper.kept[path.rpartition("/subnets/")[0]]["properties"]["subnets"] = [kept]
        keeper.kept[path] = kept
        return 200, kept
    if path.endswith("/versions"):
        return 200, [
            {"name": name, "location": "westus2"}
            for name in ("24.04.2025999999", "24.04.2026052601", "22.04.2026052601")
        ]
    if path.endswith("/providers/Microsoft.Network"):
        kind = {"resourceType": "virtualNetworks", "apiVersions": ["2024-10-01", "2025-01-01-preview"]}
        return 200, {"namespace": "Microsoft.Network", "resourceTypes": [kind]}
    if path.endswith("/resources"):
        there = [one for one in keeper.kept.values() if one["id"].startswith(f"{GROUP}/providers/")]
        if "$filter" in query:
            part, kind = re.fullmatch(
                r"substringof\('(\w+)', name\) and resourceType eq '([\w./]+)'", query["$filter"]
            ).groups()
            there = [one for one in there if part in one["name"] and one["type"].endswith(kind.rpartition("/")[2])]
        return 200, {"value": there}
    if path.endswith("/virtualNetworks"):
        return 200, {"value": [one for name, one in keeper.kept.items() if name.rpartition("/")[0] == path]}
    if path in keeper.kept:
        return 200, keeper.kept[path]
    if "/subnets/" in path:
        net, _, name = path.rpartition("/subnets/")
        subnets = keeper.kept.get(net, {}).get("properties", {}).get("subnets", [])
        found = [one for one in subnets if one["name"] == name]
        if found:
            return 200, found[0]
    return 404, {"error": {"code": "ResourceNotFound", "message": f"{path} was not found"}}


@pytest.fixture
def azure_clients():
    """Return the server and Azure's own clients, that talk to it."""
    pytest.importorskip(CLIENTS["azure"], reason="needs the extra azure")
    from azure.core.pipeline.policies import SansIOHTTPPolicy
    from azure.mgmt.compute import ComputeManagementClient
    from azure.mgmt.network import NetworkManagementClient
    from azure.mgmt.resource import ResourceManagementClient

    from ablate.launch.clouds.azure_access import Azure

    server = Keeper(azure_answer)
    given = {"base_url": server.address, "authentication_policy": SansIOHTTPPolicy(), "retry_total": 0}
    clients = Azure(
        *(
            client(SimpleNamespace(get_token=None), EDITS["EDIT-SUBSCRIPTION-ID"], **given)
            for client in (ComputeManagementClient, NetworkManagementClient, ResourceManagementClient)
        )
    )
    yield server, clients
    server.stop()
    for client in (clients.compute, clients.network, clients.resource):
        client.close()


def ray_configures(document, clients, monkeypatch):
    """Let Ray's own provider deploy its network; return the subnet in the template that it sends."""
    from ray.autoscaler._private._azure import config as ray_azure

    monkeypatch.setattr(ray_azure, "AzureCliCredential", lambda: None)
    monkeypatch.setattr(ray_azure, "ResourceManagementClient", lambda *_: clients.resource)
    return ray_azure._configure_resource_group(copy.deepcopy(document))


def deployed_subnet(server):
    """Return the properties of the subnet in the template that Ray deployed."""
    (deployment,) = (one for name, one in server.kept.items() if "/deployments/" in name)
    (net,) = (
        one for one in deployment["properties"]["template"]["resources"] if one["type"].endswith("virtualNetworks")
    )
    (subnet,) = net["properties"]["subnets"]
    return subnet["properties"]


def test_azures_subnet_gets_closed_rules_that_rays_own_deployment_keeps(azure_clients, monkeypatch):
    from ablate.launch.clouds.azure_access import prepare_azure, verify_azure

    server, clients = azure_clients
    file = edited("azure")
    document = copy.deepcopy(file.document)
    prepare_azure(file, document, print, clients=clients)
    (rule,) = server.kept[RULES]["properties"]["securityRules"]
    assert rule["properties"]["access"] == "Allow"
    assert rule["properties"]["sourceAddressPrefixes"] == ["203.0.113.7/32"]
    assert rule["properties"]["destinationPortRange"] == "22"
    (subnet,) = server.kept[VNET]["properties"]["subnets"]
    assert (subnet["name"], subnet["properties"]["addressPrefix"]) == (
        "ray-ablate-azure-ablate1-subnet",
        "10.77.0.0/16",
    )
    assert subnet["properties"]["networkSecurityGroup"]["id"] == RULES
    for kind in document["available_node_types"].values():
        assert kind["node_config"]["azure_arm_parameters"]["imageVersion"] == "24.04.2026052601"
    ray_configures(document, clients, monkeypatch)
    assert deployed_subnet(server)["networkSecurityGroup"]["id"] == RULES
    assert deployed_subnet(server)["addressPrefix"] == "10.77.0.0/16"
    assert verify_azure(file, document, clients=clients) == []
    before = copy.deepcopy(server.kept)
    prepare_azure(file, document, print, clients=clients)  # a second launch changes nothing
    assert server.kept == before


def test_without_the_launchs_own_rules_ray_opens_azures_ssh_to_the_world_and_it_is_closed_again(
    azure_clients, monkeypatch
):
    from ablate.launch.clouds.azure_access import prepare_azure, verify_azure

    server, clients = azure_clients
    file = edited("azure")
    ray_configures(file.document, clients, monkeypatch)
    assert deployed_subnet(server)["networkSecurityGroup"]["id"] == "[variables('nsg')]"  # 22 from *
    subnet = {
        "name": "ray-ablate-azure-ablate1-subnet",
        "properties": {"networkSecurityGroup": {"id": f"{NETWORK}/networkSecurityGroups/ray-nsg"}},
    }
    server.kept[VNET] = {
        "id": VNET,
        "name": VNET.rpartition("/")[2],
        "type": "x/virtualNetworks",
        "properties": {"subnets": [subnet]},
    }
    (line,) = verify_azure(file, file.document, clients=clients)
    assert "lets in ssh from everywhere" in line
    prepare_azure(file, copy.deepcopy(file.document), print, clients=clients)
    assert verify_azure(file, file.document, clients=clients) == []


def test_two_clusters_of_azure_may_not_share_a_unique_id(azure_clients):
    from ablate.launch.clouds.azure_access import prepare_azure

    server, clients = azure_clients
    other = f"{NETWORK}/virtualNetworks/ray-other-ablate1-vnet"
    server.kept[other] = {"id": other, "name": "ray-other-ablate1-vnet", "type": "x/virtualNetworks", "properties": {}}
    file = edited("azure")
    with pytest.raises(InputError, match=r"provider.unique_id: must be part of .* ray-other-ablate1-vnet has too"):
        prepare_azure(file, copy.deepcopy(file.document), print, clients=clients)


def test_azure_names_machines_disks_cards_and_addresses_that_are_left(azure_clients):
    from ablate.launch.clouds.azure_access import left_azure

    server, clients = azure_clients
    file = edited("azure")
    assert left_azure(file, file.document, clients=clients) == []
    for kind, name, tags in (
        ("Microsoft.Compute/virtualMachines", "any", {"ray-cluster-name": "ablate-azure"}),
        ("Microsoft.Compute/disks", "ray-ablate-azure-worker-ablate1-1f2e0_OsDisk_1", None),
        ("Microsoft.Network/publicIPAddresses", "ray-ablate-azure-worker-ablate1-1f2e-ip0", None),
        ("Microsoft.Network/virtualNetworks", "ray-ablate-azure-ablate1-vnet", None),
        ("Microsoft.Compute/disks", "ray-ablate-azure2-worker-x", None),
    ):
        path = f"{GROUP}/providers/{kind}/{name}"
        server.kept[path] = {"id": path, "name": name, "type": kind, "tags": tags}
    assert left_azure(file, file.document, clients=clients) == [
        "any (virtualMachines)",
        "ray-ablate-azure-worker-ablate1-1f2e0_OsDisk_1 (disks)",
        "ray-ablate-azure-worker-ablate1-1f2e-ip0 (publicIPAddresses)",
    ]


def test_without_a_login_for_azure_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Azure CLI
    file = edited("azure")
    for ask in (
        lambda: prepare_access(file, copy.deepcopy(file.document), print),
        lambda: verify_down(file, file.document),
    ):
        with pytest.raises(InputError, match=r"azure.yaml: Azure needs the Azure CLI, logged in; .*run az login"):
            ask()
