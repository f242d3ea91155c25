"""The access to a cluster on a cloud: closed ports, roles and one image before it is up, and nothing left after it.

Each cloud is a row of `CLOUDS`. All functions but `access_steps` and `account_commands` need credentials and a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ablate.launch.backend import Say
from ablate.launch.clouds.aws_access import account_aws, left_aws, prepare_aws, steps_aws, verify_aws
from ablate.launch.clouds.azure_access import account_azure, left_azure, prepare_azure, steps_azure, verify_azure
from ablate.launch.clouds.gcp_access import account_gcp, left_gcp, prepare_gcp, steps_gcp, verify_gcp
from ablate.launch.cluster_file import PROVIDERS, ClusterFile

Look: TypeAlias = Callable[[ClusterFile, Mapping[str, Any]], list[str]]
Tell: TypeAlias = Callable[[Mapping[str, Any]], list[str]]


@dataclass(frozen=True)
class Access:
    """What one cloud does for the access to its machines."""

    prepare: Callable[[ClusterFile, dict[str, Any], Say], None]
    verify: Look
    left: Look
    steps: Tell
    account: Tell


CLOUDS: Mapping[str, Access] = {
    "aws": Access(prepare_aws, verify_aws, left_aws, steps_aws, account_aws),
    "gcp": Access(prepare_gcp, verify_gcp, left_gcp, steps_gcp, account_gcp),
    "azure": Access(prepare_azure, verify_azure, left_azure, steps_azure, account_azure),
}


def prepare_access(file: ClusterFile, document: dict[str, Any], say: Say) -> None:
    """Close the ports before there is a machine, and complete `document` with what only the cloud knows.

    Everything is made if it is missing and left if it is right, so that a second call changes nothing. Into `document`
    go the image that its name stands for now and, on AWS, the id of the security group: the completed document must be
    kept for all that follows, as Ray makes a new head when it changes. Nothing is paid for yet.

    Args:
        file: as the user wrote it.
        document: the file as it will be used; changed in place.
        say: prints what was made or changed.

    Raises:
        InputError: no credentials, no permission, a role that is not there, or a network that lets others in.
    """
    CLOUDS[file.kind].prepare(file, document, say)


def verify_access(file: ClusterFile, document: Mapping[str, Any]) -> list[str]:
    """Return what the machines let in beside ssh from the user's ranges, a line each; nothing if all is well.

    Raises:
        InputError: the cloud does not answer.
    """
    return CLOUDS[file.kind].verify(file, document)


def verify_down(file: ClusterFile, document: Mapping[str, Any]) -> list[str]:
    """Return the names of what is left of this cluster and may cost, by Ray's tags and names; nothing if all is gone.

    Raises:
        InputError: the cloud does not answer.
    """
    return CLOUDS[file.kind].left(file, document)


def access_steps(document: Mapping[str, Any]) -> list[str]:
    """Return what `prepare_access` does, a line each."""
    return CLOUDS[PROVIDERS[document["provider"]["type"]]].steps(document)


def account_commands(document: Mapping[str, Any]) -> list[str]:
    """Return the commands that set the account up once, with the names of the file in them, as a shell reads them."""
    return CLOUDS[PROVIDERS[document["provider"]["type"]]].account(document)
