"""A cluster file for AWS: its check against botocore's model of EC2, and the access that it needs, through boto3.

Ray's provider opens ssh to the world if the security group that it finds has no rules, or if there is none. It gives
the head a role with all of EC2 and S3 if the file names none, and workers no role at all.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablate.errors import InputError, nearest
from ablate.launch.backend import Say
from ablate.launch.cloud_checks import (
    check_shape,
    client_library,
    known_machine,
    own_machines,
    refuse_set_by_ray,
    refuse_unknown,
    require_text,
    ssh_ranges,
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

OURS = {"Key": "ablate", "Value": "closed"}
"""The tag of a security group that a launch made, and may therefore change."""


# --- the check, offline ---


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


# --- the access, online ---


def prepare_aws(file: ClusterFile, document: dict[str, Any], say: Say) -> None:
    """Make the security group, read the image's id, and check credentials and roles; see `prepare_access`."""
    session = _session(document)
    with _answers(file):
        account = session.client("sts").get_caller_identity()["Account"]
        say(f"AWS account {account}, region {session.region_name}")
        _require_profiles(file, document, session, account, say)
        group = _ensure_group(file, document, session.client("ec2"), say)
        images: dict[str, str] = {}
        for node_type in document["available_node_types"].values():
            config = node_type["node_config"]
            config["SecurityGroupIds"] = [group]  # Ray then makes no group and no rule of its own
            name = config["ImageId"].removeprefix("resolve:ssm:")
            if name != config["ImageId"]:
                if name not in images:
                    images[name] = session.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
                    say(f"the image {name} is {images[name]} now")
                config["ImageId"] = images[name]


def verify_aws(file: ClusterFile, document: Mapping[str, Any]) -> list[str]:
    """Return what the machines that are up let in, beside ssh from the user's ranges; see `verify_access`."""
    with _answers(file):
        client = _session(document).client("ec2")
        groups = {
            group["GroupId"]
            for instance in _instances(client, document["cluster_name"])
            for interface in instance.get("NetworkInterfaces", [])
            for group in interface["Groups"]
        }
        if not groups:
            return []
        found = client.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
        return [
            f"{group['GroupId']} lets in {_words(rule, source)}"
            for group in found
            for rule, source in _open_ways(group, ssh_ranges(file), friends=groups)
        ]


def left_aws(file: ClusterFile, document: Mapping[str, Any]) -> list[str]:
    """Return the machines of this cluster that are not ended; see `verify_down`."""
    with _answers(file):
        instances = list(_instances(_session(document).client("ec2"), document["cluster_name"]))
    return [f"{one['InstanceId']} ({one['InstanceType']}, {one['State']['Name']})" for one in instances]


def steps_aws(document: Mapping[str, Any]) -> list[str]:
    """Return what `prepare_aws` does, a line each."""
    group, ranges = document["provider"]["security_group"]["GroupName"], _ranges(document)
    profiles = ", ".join(sorted({_profile(node_type) for node_type in document["available_node_types"].values()}))
    return [
        f"check the credentials for AWS, and that the instance profiles {profiles} exist",
        f"make or check the security group {group}: ssh from {ranges}, all else within the group only",
        "read the image's id from its parameter, the same for all machines",
    ]


def account_aws(document: Mapping[str, Any]) -> list[str]:
    """Return the commands that set the account up, once; each may fail where its object is there."""
    bucket = (document.get("metadata") or {}).get("bucket", "BUCKET")
    head = document["head_node_type"]
    types = document["available_node_types"]
    workers = sorted({_profile(node_type) for name, node_type in types.items() if name != head})
    policies = {name: worker_policy(bucket) for name in workers}
    policies[_profile(types[head])] = head_policy(bucket, document["cluster_name"], workers)
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
        ],
    }
    commands = ["aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"]
    for role, policy in policies.items():
        commands += [
            f"aws iam create-role --role-name {role} --assume-role-policy-document {_quoted(trust)}",
            f"aws iam put-role-policy --role-name {role} --policy-name ablate --policy-document {_quoted(policy)}",
            f"aws iam create-instance-profile --instance-profile-name {role}",
            f"aws iam add-role-to-instance-profile --instance-profile-name {role} --role-name {role}",
        ]
    return commands


def worker_policy(bucket: str) -> dict[str, Any]:
    """Return the policy of a worker's role: it reads and writes one bucket."""
    return {"Version": "2012-10-17", "Statement": _bucket_statements(bucket)}


def head_policy(bucket: str, cluster: str, worker_roles: Sequence[str]) -> dict[str, Any]:
    """Return the policy of the head's role: the bucket, and the machines that bear this cluster's tag."""
    mine = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": cluster}}
    instances = "arn:aws:ec2:*:*:instance/*"
    allow: list[dict[str, Any]] = [
        {"Action": "ec2:Describe*", "Resource": "*"},
        {"Action": "ec2:RunInstances", "NotResource": instances},
        {
            "Action": "ec2:RunInstances",
            "Resource": instances,
            "Condition": {"StringEquals": {"aws:RequestTag/ray-cluster-name": cluster}},
        },
        {
            "Action": "ec2:CreateTags",
            "Resource": instances,
            "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
        },
        {"Action": ["ec2:CreateTags", "ec2:TerminateInstances"], "Resource": instances, "Condition": mine},
        {"Action": "iam:PassRole", "Resource": [f"arn:aws:iam::*:role/{role}" for role in worker_roles]},
    ]
    statements = [*_bucket_statements(bucket), *({"Effect": "Allow", **statement} for statement in allow)]
    return {"Version": "2012-10-17", "Statement": statements}


def _bucket_statements(bucket: str) -> list[dict[str, Any]]:
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return [
        {
            "Effect": "Allow",
            "Action": ["s3:ListBucket", "s3:GetBucketLocation"],
            "Resource": f"arn:aws:s3:::{bucket}",
        },
        {"Effect": "Allow", "Action": objects, "Resource": f"arn:aws:s3:::{bucket}/*"},
    ]


def _session(document: Mapping[str, Any]) -> Any:
    return client_library("boto3", "aws").session.Session(region_name=document["provider"]["region"])


@contextlib.contextmanager
def _answers(file: ClusterFile) -> Iterator[None]:
    """Turn what boto3 raises into one line."""
    errors = client_library("botocore.exceptions", "aws")
    try:
        yield
    except (errors.NoCredentialsError, errors.PartialCredentialsError) as error:
        raise InputError(
            f"{file.path}: AWS needs credentials; got none in the environment or in ~/.aws; run aws configure, or set "
            "AWS_PROFILE"
        ) from error
    except errors.ClientError as error:
        code, message = error.response["Error"].get("Code"), error.response["Error"].get("Message", "")
        raise InputError(
            f"{file.path}: AWS must allow {error.operation_name} to you; got {code}: {' '.join(message.split())}"
        ) from error
    except errors.BotoCoreError as error:
        raise InputError(f"{file.path}: AWS must answer; got {' '.join(str(error).split())}") from error


def _instances(client: Any, cluster: str) -> Iterator[dict[str, Any]]:
    """Yield the machines of a cluster that are not ended, also those that are stopped."""
    pages = client.get_paginator("describe_instances").paginate(
        Filters=[
            {"Name": "tag:ray-cluster-name", "Values": [cluster]},
            {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
        ]
    )
    for page in pages:
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def _profile(node_type: Mapping[str, Any]) -> str:
    profile = node_type["node_config"]["IamInstanceProfile"]
    return str(profile.get("Name") or profile["Arn"].rpartition("/")[2])


def _require_profiles(file: ClusterFile, document: Mapping[str, Any], session: Any, account: str, say: Say) -> None:
    """Refuse an instance profile that does not exist or has no role."""
    errors = client_library("botocore.exceptions", "aws")
    client = session.client("iam")
    for name, node_type in document["available_node_types"].items():
        profile = _profile(node_type)
        try:
            roles = client.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        except errors.ClientError as error:
            if error.response["Error"]["Code"] in ("AccessDenied", "AccessDeniedException"):
                say(f"you may not look at instance profiles: whether {profile} exists is not known")
                continue
            if error.response["Error"]["Code"] != "NoSuchEntity":
                raise
            roles = []
        if not roles:
            file.refuse(
                ("available_node_types", name, "node_config", "IamInstanceProfile"),
                f"must exist and have a role; got '{profile}', which the account {account} has not; "
                f"type: {' ; '.join(account_aws(document))}",
            )


def _ensure_group(file: ClusterFile, document: Mapping[str, Any], client: Any, say: Say) -> str:
    """Return the id of the security group, made or completed; refuse one that lets others in."""
    name, ranges = document["provider"]["security_group"]["GroupName"], ssh_ranges(file)
    vpc = _vpc(file, document, client)
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    found = client.describe_security_groups(Filters=filters)["SecurityGroups"]
    if found:
        group = found[0]
    else:
        tags = [{"Key": "ray-cluster-name", "Value": document["cluster_name"]}, OURS]
        made = client.create_security_group(
            GroupName=name,
            Description="ssh from one range, all else within the group",
            VpcId=vpc,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
        )
        group = {"GroupId": made["GroupId"], "IpPermissions": [], "Tags": tags}
        say(f"made the security group {name} ({group['GroupId']}) in {vpc}")
    identity = str(group["GroupId"])
    for rule, source in _open_ways(group, ranges, friends={identity}):
        revoke = {key: rule[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in rule} | source
        stale = OURS in group.get("Tags", []) and rule.get("FromPort") == rule.get("ToPort") == 22
        if not stale or "0.0.0.0/0" in str(source) or "::/0" in str(source):
            file.refuse(
                ("provider", "security_group", "GroupName"),
                f"must be a group that lets in ssh from {', '.join(ranges)} only; got {name}, which lets in "
                f"{_words(rule, source)}; type: aws ec2 revoke-security-group-ingress --region "
                f"{document['provider']['region']} --group-id {identity} --ip-permissions {_quoted([revoke])}",
            )
        client.revoke_security_group_ingress(GroupId=identity, IpPermissions=[revoke])  # you came from there before
        say(f"closed {name} to {_words(rule, source)}")
    missing = [rule for rule in _wanted_rules(identity, ranges) if not _has(group["IpPermissions"], rule)]
    if missing:
        client.authorize_security_group_ingress(GroupId=identity, IpPermissions=missing)
        say(f"{name} lets in ssh from {', '.join(ranges)}, and all else within the group only")
    return identity


def _vpc(file: ClusterFile, document: Mapping[str, Any], client: Any) -> str:
    """Return the network of the machines: that of the subnets in the file, else the region's default."""
    types = document["available_node_types"]
    subnets = sorted({subnet for kind in types.values() for subnet in kind["node_config"].get("SubnetIds", [])})
    if subnets:
        networks = {subnet["VpcId"] for subnet in client.describe_subnets(SubnetIds=subnets)["Subnets"]}
    else:
        found = client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        networks = {network["VpcId"] for network in found}
    if len(networks) != 1:
        file.refuse(
            ("available_node_types", document["head_node_type"], "node_config", "SubnetIds"),
            f"must name public subnets of one network, in every node_config; got {len(networks)} networks, "
            "as the region has no default one"
            if not networks
            else f"got the networks {', '.join(sorted(networks))}",
        )
    return str(networks.pop())


def _wanted_rules(group: str, ranges: Sequence[str]) -> list[dict[str, Any]]:
    within = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    return [within, *({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **_source(source)} for source in ranges)]


def _source(source: str) -> dict[str, Any]:
    return {"Ipv6Ranges": [{"CidrIpv6": source}]} if ":" in source else {"IpRanges": [{"CidrIp": source}]}


def _has(rules: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> bool:
    """Whether rules as EC2 tells them contain a wanted one; EC2 merges the sources of equal ports."""
    (kind,) = (key for key in ("UserIdGroupPairs", "IpRanges", "Ipv6Ranges") if key in wanted)
    (item,) = wanted[kind]
    return any(
        rule["IpProtocol"] == wanted["IpProtocol"]
        and rule.get("FromPort", -1) == wanted.get("FromPort", -1)
        and rule.get("ToPort", -1) == wanted.get("ToPort", -1)
        and any(item.items() <= source.items() for source in rule.get(kind, []))
        for rule in rules
    )


def _open_ways(
    group: Mapping[str, Any], ranges: Sequence[str], *, friends: set[str]
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Yield each rule with a source that lets in more than ssh from `ranges` and the groups `friends`."""
    for rule in group["IpPermissions"]:
        is_ssh = rule["IpProtocol"] == "tcp" and rule.get("FromPort") == rule.get("ToPort") == 22
        for kind, key in (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6")):
            for source in rule.get(kind, []):
                if not (is_ssh and source[key] in ranges):
                    yield rule, {kind: [{key: source[key]}]}
        for source in rule.get("UserIdGroupPairs", []):
            if source["GroupId"] not in friends:
                yield rule, {"UserIdGroupPairs": [{"GroupId": source["GroupId"]}]}
        for source in rule.get("PrefixListIds", []):
            yield rule, {"PrefixListIds": [{"PrefixListId": source["PrefixListId"]}]}


def _words(rule: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    ((items,),) = (source.values(),)
    (value,) = items[0].values()
    ports = f"{rule.get('FromPort')}" + (f"-{rule['ToPort']}" if rule.get("ToPort") != rule.get("FromPort") else "")
    return f"{'all ports' if rule['IpProtocol'] == '-1' else f'port {ports}'} from {value}"


def _ranges(document: Mapping[str, Any]) -> str:
    given = (document.get("metadata") or {}).get("ssh_from")
    return ", ".join(map(str, given)) if isinstance(given, list) else str(given)


def _quoted(content: Any) -> str:
    return shlex.quote(json.dumps(content))
