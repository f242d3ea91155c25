"""A RayJob file: its head, its groups of workers, and the machines that they ask for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ablate.launch.backend import Fleet, MachineType
from ablate.launch.cluster_file import ClusterFile
from ablate.schedule.fitting import ACCELERATOR, Shape
from ablate.space.files import Place

PRICE, CURRENCY = "ablate/price-per-hour", "ablate/currency"
INTERRUPTIONS, QUEUE = "ablate/interruptions-per-hour", "ablate/queue-minutes"

SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""The labels of the clouds' spot nodes."""


@dataclass(frozen=True)
class Pods:
    """The pods of the head, or of a group of workers."""

    place: Place
    group: dict[str, Any]

    @property
    def template(self) -> Place:
        """Where their template stands."""
        return (*self.place, "template")

    @property
    def spec(self) -> dict[str, Any]:
        """The specification of each of them."""
        return dict(mapping(mapping(self.group.get("template")).get("spec")))

    @property
    def container(self) -> dict[str, Any]:
        """The container that Ray runs in: the first."""
        containers = self.spec.get("containers")
        return dict(mapping(containers[0])) if isinstance(containers, list) and containers else {}

    @property
    def container_place(self) -> Place:
        """Where that stands."""
        return (*self.template, "spec", "containers", 0)

    @property
    def limits(self) -> dict[str, Any]:
        """What the container may use."""
        return dict(mapping(mapping(self.container.get("resources")).get("limits")))

    @property
    def start(self) -> dict[str, Any]:
        """The options of `ray start`."""
        return dict(mapping(self.group.get("rayStartParams")))

    @property
    def annotations(self) -> dict[str, Any]:
        """The annotations of each."""
        return annotations_of(self.group.get("template"))


def mapping(value: object) -> Mapping[str, Any]:
    """Return a value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def annotations_of(value: object) -> dict[str, Any]:
    """Return the annotations of an object of Kubernetes, or of a pod template."""
    return dict(mapping(mapping(mapping(value).get("metadata")).get("annotations")))


RAY: Place = ("spec", "rayClusterSpec")


def ray_cluster(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the Ray cluster in a RayJob."""
    return dict(mapping(mapping(document.get("spec")).get("rayClusterSpec")))


def head_of(document: Mapping[str, Any]) -> Pods:
    """Return the head."""
    return Pods((*RAY, "headGroupSpec"), dict(mapping(ray_cluster(document).get("headGroupSpec"))))


def workers_of(document: Mapping[str, Any]) -> list[Pods]:
    """Return the groups of workers."""
    groups = ray_cluster(document).get("workerGroupSpecs")
    found = enumerate(groups if isinstance(groups, list) else [])
    return [Pods((*RAY, "workerGroupSpecs", number), dict(mapping(group))) for number, group in found]


_SUFFIXES = {"m": Decimal("0.001"), "k": Decimal(1000), "M": Decimal(10**6), "G": Decimal(10**9)} | {
    f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGT", start=1)
}


def quantity(value: object) -> float | None:
    """Return an amount as Kubernetes writes it: `8`, `500m`, `32Gi`; None if it is none."""
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(value))
    if found is None or isinstance(value, bool) or (found[2] and found[2] not in _SUFFIXES):
        return None
    try:
        return float(Decimal(found[1]) * _SUFFIXES.get(found[2], Decimal(1)))
    except InvalidOperation:
        return None


def gpu_limits(pods: Pods) -> dict[str, float]:
    """Return how many GPUs a pod gets, by the name that the cluster has for them: `nvidia.com/gpu`."""
    return {name: quantity(value) or 0.0 for name, value in pods.limits.items() if name.rpartition("/")[2] == "gpu"}


def fleet_of(file: ClusterFile) -> Fleet:
    """Return the machines that a RayJob file asks for.

    Raises:
        InputError: a price, or another number for the estimate, is not one.
    """
    job = file.document
    currency = annotations_of(job).get(CURRENCY, "USD")
    if not isinstance(currency, str) or not currency:
        file.refuse(("metadata", "annotations", CURRENCY), f"must be the name of a currency; got {currency!r}")
    head = head_of(job)
    return Fleet(
        workers=tuple(_machines(file, job)),
        head=MachineType("head", _shape(head), 1, _amount(file, head, PRICE), spot=_is_spot(head)),
        currency=currency,
        interruptions_per_hour=_job_amount(file, INTERRUPTIONS) or 0.0,
        queue_minutes=_job_amount(file, QUEUE) or 0.0,
    )


def _machines(file: ClusterFile, job: Mapping[str, Any]) -> Iterator[MachineType]:
    for pods in workers_of(job):
        least, most = (
            int(pods.group.get(field, 0)) * int(pods.group.get("numOfHosts", 1))
            for field in ("minReplicas", "maxReplicas")
        )
        yield MachineType(
            str(pods.group.get("groupName")),
            _shape(pods),
            max_count=most,
            price_per_hour=_amount(file, pods, PRICE),
            spot=_is_spot(pods),
            min_count=least,
        )


def _shape(pods: Pods) -> Shape:
    """Return what Ray knows of such a pod: the limits of its container, unless the options of `ray start` say other."""
    cpus = quantity(pods.start.get("num-cpus", pods.limits.get("cpu"))) or 0.0
    gpus = quantity(pods.start.get("num-gpus", sum(gpu_limits(pods).values()))) or 0.0
    try:
        resources = json.loads(str(pods.start.get("resources", "{}")).strip("'\"").replace('\\"', '"'))
    except ValueError:
        resources = {}
    kinds = frozenset(
        name.removeprefix(ACCELERATOR) for name in mapping(resources) if str(name).startswith(ACCELERATOR)
    )
    return Shape(float(math.ceil(cpus)), gpus, kinds)


def _is_spot(pods: Pods) -> bool:
    selector = mapping(pods.spec.get("nodeSelector"))
    return any(str(selector.get(label)) == value for label, value in SPOT_LABELS.items())


def _amount(file: ClusterFile, pods: Pods, key: str) -> float | None:
    return _number(file, pods.annotations.get(key), (*pods.template, "metadata", "annotations", key))


def _job_amount(file: ClusterFile, key: str) -> float | None:
    return _number(file, annotations_of(file.document).get(key), ("metadata", "annotations", key))


def _number(file: ClusterFile, value: object, place: Place) -> float | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        file.refuse(place, f'must be a number in quotes, such as "0.86"; got {value!r}')
    return float(value)
