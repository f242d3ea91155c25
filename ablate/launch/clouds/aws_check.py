"""A cluster file for AWS, checked against botocore's model of EC2."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ablate.errors import nearest
from ablate.launch.clouds.common import (
    check_shape,
    client_library,
    known_machine,
    own_machines,
    refuse_set_by_ray,
    refuse_unknown,
    require_text,
)
from ablate.launch.cluster_file import ClusterFile
from ablate.space.files import Place

SET_BY_RAY = {
    **dict.fromkeys(("MinCount", "MaxCount", "SubnetId"), "Ray sets it for every machine; name SubnetIds"),
    **dict.fromkeys(
        ("SecurityGroupIds", "SecurityGroups", "NetworkInterfaces", "LaunchTemplate"),
        "all machines are in the group provider.security_group.GroupName, that the launch keeps closed",
    ),
}
"""Fields of a machine that a file must leave out, and why."""


def check_aws(file: ClusterFile, document: Mapping[str, Any]) -> None:
    """Refuse what EC2 does not take, and what opens a machine or costs on; see `offline_check`."""
    client_library("boto3", "aws")
    provider = document["provider"]
    regions, shape = _ec2()
    region = provider.get("region")
    if region not in regions:
        file.refuse(("provider", "region"), f"must be a region of AWS; got '{region}'{nearest(region, regions)}")
    require_text(
        file,
        ("provider", "availability_zone"),
        provider.get("availability_zone"),
        rf"{region}[a-z](, *{region}[a-z])*",
        f"zones of the region, such as {region}a,{region}b",
    )
    group = ("provider", "security_group")
    content = provider.get("security_group") or {}
    require_text(
        file, (*group, "GroupName"), content.get("GroupName"), r"(?!sg-)[\w .-]{1,255}", "the name of a group of yours"
    )
    if "IpPermissions" in content:
        file.refuse((*group, "IpPermissions"), "must be left out: the launch writes the rules; got some")
    validate = client_library("botocore.validate", "aws").ParamValidator().validate
    for name, node_type in document["available_node_types"].items():
        place = ("available_node_types", name, "node_config")
        config = dict(node_type["node_config"])
        refuse_set_by_ray(file, place, config, SET_BY_RAY)
        subnets = config.pop("SubnetIds", [])
        if not isinstance(subnets, list):
            file.refuse((*place, "SubnetIds"), f"must be a list of subnets; got {subnets!r}")
        _walk_botocore(file, place, config, shape, own=own_machines(file))
        report = validate(config | {"MinCount": 1, "MaxCount": 1}, shape)
        if report.has_errors():
            file.refuse(place, f"is not what EC2 takes: {' '.join(report.generate_report().split())}")
        _check_aws_machine(file, place, config)
        check_shape(file, name, known_machine(file, (*place, "InstanceType"), config["InstanceType"]))


@functools.cache
def _ec2() -> tuple[list[str], Any]:
    """Return the regions of EC2, and the shape of what RunInstances takes, as botocore carries them."""
    session = client_library("botocore.session", "aws").get_session()
    partitions = session.get_available_partitions()
    regions = [region for name in partitions for region in session.get_available_regions("ec2", partition_name=name)]
    return regions, session.get_service_model("ec2").operation_model("RunInstances").input_shape


def _walk_botocore(file: ClusterFile, place: Place, value: Any, shape: Any, *, own: Mapping[str, Any]) -> None:
    """Compare a value with a shape of botocore's: its fields, types and closed sets of words."""
    kinds: dict[str, tuple[type, ...]] = {
        "structure": (dict,),
        "map": (dict,),
        "list": (list,),
        "string": (str,),
        "integer": (int,),
        "long": (int,),
        "boolean": (bool,),
    }
    wanted = kinds.get(shape.type_name)
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
        file.refuse(place, f"must be of type {shape.type_name}; got {value!r:.60}")
    if shape.type_name == "structure":
        refuse_unknown(file, place, value, shape.members, what=f"{shape.name} of EC2")
        for key, content in value.items():
            _walk_botocore(file, (*place, key), content, shape.members[key], own=own)
    elif shape.type_name == "list":
        for number, content in enumerate(value):
            _walk_botocore(file, (*place, number), content, shape.member, own=own)
    elif shape.type_name == "string" and shape.enum and value not in shape.enum and value not in own:
        words = f"one of {', '.join(shape.enum)}" if len(shape.enum) < 20 else f"a word of EC2's {shape.name}"
        file.refuse(place, f"must be {words}; got '{value}'{nearest(value, shape.enum)}")


def _check_aws_machine(file: ClusterFile, place: Place, config: Mapping[str, Any]) -> None:
    for key, why in (
        ("InstanceType", "Ray has no default for it"),
        ("ImageId", "Ray's own choice is an Ubuntu of 2018"),
        ("IamInstanceProfile", "without it a worker reaches no bucket, and Ray gives the head all of EC2 and S3"),
        ("MetadataOptions", "HttpTokens: required keeps the role's credentials from stray requests"),
    ):
        if key not in config:
            file.refuse((*place, key), f"must be given: {why}; got none")
    require_text(
        file,
        (*place, "ImageId"),
        config["ImageId"],
        r"ami-[0-9a-f]{8,17}|resolve:ssm:/\S+",
        "ami-... or resolve:ssm:/...",
    )
    tokens = config["MetadataOptions"].get("HttpTokens")
    if tokens != "required":
        file.refuse((*place, "MetadataOptions", "HttpTokens"), f"must be required; got {tokens}")
    for number, disk in enumerate(config.get("BlockDeviceMappings", [])):
        if disk.get("Ebs", {}).get("DeleteOnTermination") is False:
            file.refuse(
                (*place, "BlockDeviceMappings", number, "Ebs", "DeleteOnTermination"),
                "must be true: else the disk costs on after the cluster is down; got False",
            )
    behaviour = (
        config.get("InstanceMarketOptions", {}).get("SpotOptions", {}).get("InstanceInterruptionBehavior", "terminate")
    )
    if behaviour != "terminate":
        file.refuse(
            (*place, "InstanceMarketOptions", "SpotOptions", "InstanceInterruptionBehavior"),
            f"must be terminate: a stopped machine costs on; got {behaviour}",
        )
