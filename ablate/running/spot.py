"""The notices of AWS, Google Cloud and Azure that they are about to take a spot machine back.

Each cloud announces this at a metadata service that only the machine itself can ask. A machine is placed in
a cloud by what its firmware says (DMI) or by the environment variable that moves the service elsewhere;
nothing is probed over the network, so a machine in no cloud makes no request at all.
"""

from __future__ import annotations

import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.request import HTTPHandler, OpenerDirector, Request, UnknownHandler

from pydantic import BaseModel, Field

logger = logging.getLogger("ablate")

DMI = Path("/sys/class/dmi/id")
"""What the firmware says of the machine, on Linux."""

TIMEOUT_S = 3.0
"""A metadata service answers in milliseconds; Azure's first answer may take two minutes: the next round asks again."""

POLL_S = 2.0
"""A machine asks its cloud this often: the shortest notice is 30 seconds."""


@dataclass(frozen=True)
class Notice:
    """A cloud is about to take the machine back."""

    cloud: str  # aws, gcp or azure
    action: str  # terminate, stop, hibernate or preempt
    deadline: datetime  # with its zone; the machine may be gone from then on


class _Answer(NamedTuple):
    status: int
    text: str

    def body(self) -> str:
        """Return the text; raise `OSError` unless the request succeeded."""
        if self.status != 200:
            raise OSError(f"HTTP status {self.status}")
        return self.text


def _direct() -> OpenerDirector:
    """Return an opener that knows neither proxies nor redirections and takes every status as an answer."""
    opener = OpenerDirector()
    opener.add_handler(HTTPHandler())
    opener.add_handler(UnknownHandler())
    return opener


_DIRECT = _direct()


class Cloud(ABC):
    """One cloud, as seen from a machine in it; a subclass states the facts and reads the notice."""

    name: ClassVar[str]
    dmi: ClassVar[Mapping[str, str]]  # file below DMI -> what it holds, as a regular expression; one is enough
    endpoint: ClassVar[str]
    variable: ClassVar[str]  # of the environment: where the metadata service is instead
    switch: ClassVar[str | None] = None  # of the environment: `true` means that it must not be asked

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._told = False

    def look(self) -> Notice | None:
        """Ask once whether the machine is taken back.

        A service that does not answer, or not as documented, counts as no notice; the first time is logged.
        """
        try:
            return self._read()
        except (OSError, HTTPException, ValueError) as error:
            if not self._told:
                reason = " ".join(str(error).split()) or type(error).__name__
                logger.warning(
                    "%s: the spot notice of %s cannot be read (%s); it is asked for again at every round",
                    self._endpoint,
                    self.name,
                    reason,
                )
            self._told = True
            return None

    @abstractmethod
    def _read(self) -> Notice | None:
        """Return the notice or None; raise `OSError`, `HTTPException` or `ValueError` for a failure."""

    def _ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> _Answer:
        request = Request(self._endpoint + path, headers=dict(headers), method=method)
        with _DIRECT.open(request, timeout=TIMEOUT_S) as answer:
            return _Answer(answer.status, answer.read().decode())


class _InstanceAction(BaseModel):
    action: str
    time: datetime


class Aws(Cloud):
    """Amazon EC2: `spot/instance-action` appears two minutes before the end, behind a session token (IMDSv2).

    The rebalance recommendation, which comes earlier and may come to nothing, is not a notice.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    name = "aws"
    dmi: ClassVar = {"sys_vendor": r"Amazon EC2", "bios_version": r"\.amazon$"}  # the second on Xen, such as p3
    endpoint = "http://169.254.169.254"
    variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
    switch = "AWS_EC2_METADATA_DISABLED"

    _token: str | None = None

    def _read(self) -> Notice | None:
        answer = self._action()
        if answer.status == 401:  # the token has expired
            self._token = None
            answer = self._action()
        if answer.status == 404:
            return None
        action = _InstanceAction.model_validate_json(answer.body())
        return Notice(self.name, action.action, _in_utc(action.time))

    def _action(self) -> _Answer:
        if self._token is None:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}  # the longest there is
            self._token = self._ask("/latest/api/token", lifetime, "PUT").body()
        return self._ask("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})


class Gcp(Cloud):
    """Google Compute Engine: `preempted` turns TRUE, and the machine ends 30 seconds later.

    https://cloud.google.com/compute/docs/instances/create-use-preemptible#detecting_if_a_vm_was_preempted
    """

    name = "gcp"
    dmi: ClassVar = {"product_name": r"Google Compute Engine"}
    endpoint = "http://metadata.google.internal"
    variable = "GCE_METADATA_HOST"  # HOST or HOST:PORT

    def _read(self) -> Notice | None:
        answer = self._ask("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        state = answer.body().strip()
        if state not in ("TRUE", "FALSE"):
            raise ValueError(f"expected TRUE or FALSE; got '{state[:40]}'")
        return Notice(self.name, "preempt", datetime.now(UTC) + timedelta(seconds=30)) if state == "TRUE" else None


class _Event(BaseModel):
    event_type: str = Field(alias="EventType")
    resources: list[str] = Field(alias="Resources")
    not_before: str = Field(alias="NotBefore")  # blank once the event has started


class _Events(BaseModel):
    events: list[_Event] = Field(alias="Events")


class Azure(Cloud):
    """Azure: a scheduled event of type Preempt (spot) or Terminate names the machine, 30 seconds ahead at least.

    The events of a whole scale set are seen by each of its machines.

    https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
    """

    name = "azure"
    dmi: ClassVar = {"chassis_asset_tag": r"^7783-7084-3265-9085-8269-3286-77$"}
    endpoint = "http://169.254.169.254"
    variable = "AZURE_POD_IDENTITY_AUTHORITY_HOST"

    _machine: str | None = None

    def _read(self) -> Notice | None:
        answer = self._ask("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
        events = [event for event in _Events.model_validate_json(answer.body()).events if self._ends_this(event)]
        if not events:
            return None
        deadline, action = min((_start_of(event), event.event_type.lower()) for event in events)
        return Notice(self.name, action, deadline)

    def _ends_this(self, event: _Event) -> bool:
        if event.event_type not in ("Preempt", "Terminate"):
            return False
        if self._machine is None:
            path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
            self._machine = self._ask(path, {"Metadata": "true"}).body().strip().casefold()
        return self._machine in (name.casefold() for name in event.resources)


def _start_of(event: _Event) -> datetime:
    return _in_utc(parsedate_to_datetime(event.not_before)) if event.not_before else datetime.now(UTC)


def _in_utc(moment: datetime) -> datetime:
    """Return a time in UTC, in which all clouds mean a time without a zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


CLOUDS: tuple[type[Cloud], ...] = (Aws, Gcp, Azure)


def cloud_of_this_machine(dmi: Path = DMI, environment: Mapping[str, str] = os.environ) -> Cloud | None:
    """Return the cloud that this machine is in, None for none; nothing is asked over the network.

    Args:
        dmi: folder with one file for each fact of the firmware.
        environment: a cloud whose variable is set wins over the firmware.
    """
    allowed = [cloud for cloud in CLOUDS if environment.get(cloud.switch or "", "").lower() != "true"]
    for cloud in allowed:
        if address := environment.get(cloud.variable):
            return cloud(address if "://" in address else f"http://{address}")
    for cloud in allowed:
        if any(re.search(pattern, _fact(dmi / name)) for name, pattern in cloud.dmi.items()):
            return cloud(cloud.endpoint)
    return None


def wait_for_notice() -> Notice | None:
    """Wait until the cloud takes this machine back; return None at once on a machine in no cloud."""
    cloud = cloud_of_this_machine()
    while cloud is not None:
        notice = cloud.look()
        if notice is not None:
            return notice
        time.sleep(POLL_S)
    return None


def _fact(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not on Linux, not in this container, or for root only
        return ""
