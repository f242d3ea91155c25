"""The access that a cluster on AWS needs, through boto3: roles, a closed security group, one image.

Ray's provider opens ssh to the world if the security group that it finds has no rules, or if there is none. It gives
the head a role with all of EC2 and S3 if the file names none, and workers no role at all.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablate.errors import InputError
from ablate.launch.backend import Say
from ablate.launch.clouds.common import client_library, ssh_from, ssh_ranges
from ablate.launch.cluster_file import ClusterFile
from ablate.words import one_line

OURS = {"Key": "ablate", "Value": "closed"}
"""The tag of a security group that a launch made, and may therefore change."""


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
    group, ranges = document["provider"]["security_group"]["GroupName"], ssh_from(document)
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
            f"{file.path}: AWS must allow {error.operation_name} to you; got {code}: {one_line(message)}"
        ) from error
    except errors.BotoCoreError as error:
        raise InputError(f"{file.path}: AWS must answer; got {one_line(error)}") from error


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
    """Return whether rules as EC2 tells them contain a wanted one; EC2 merges the sources of equal ports."""
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


def _quoted(content: Any) -> str:
    return shlex.quote(json.dumps(content))
