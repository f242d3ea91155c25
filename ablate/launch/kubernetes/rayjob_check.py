"""The check of a RayJob file and of the request to launch it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import PurePosixPath

from ablate.errors import InputError
from ablate.launch.backend import LaunchRequest
from ablate.launch.cluster_file import ClusterFile
from ablate.launch.kubernetes.manifests import LAUNCH_FOLDER
from ablate.launch.kubernetes.rayjob import (
    RAY,
    Pods,
    fleet_of,
    gpu_limits,
    head_of,
    mapping,
    quantity,
    ray_cluster,
    workers_of,
)
from ablate.launch.kubernetes.rayjob_fields import FIELDS, unknown_field
from ablate.store.addresses import is_remote

MOST_GRID_BYTES = 900_000
"""Largest size of a search-space file: a ConfigMap holds 1 MiB."""

MOVING_TAGS = {"latest", "nightly", "main", "master", "stable", "edge", "dev"}
"""Tags under which an image changes."""

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)


def check_rayjob(request: LaunchRequest) -> None:
    """Refuse a file, or a request, that cannot work on Kubernetes.

    Raises:
        InputError: the first thing that is wrong, with its line.
    """
    file = request.file
    file.require_edited()
    unknown = unknown_field(file.document, FIELDS)
    if unknown is not None:
        place, guess = unknown
        file.refuse(place, f"must be a field of a RayJob (ray.io/v1); there is no '{place[-1]}'{guess}")
    _check_job(file)
    _check_cluster(file)
    head, workers = head_of(file.document), workers_of(file.document)
    _check_head(file, head)
    if not workers:
        file.refuse((*RAY, "workerGroupSpecs"), "must have a group of workers: stages run on them; got none")
    for pods in workers:
        _check_pods(file, pods)
        _check_group(file, pods, image=head.container.get("image"))
    names = [str(pods.group.get("groupName")) for pods in workers]
    if len(set(names)) < len(names):
        file.refuse((*RAY, "workerGroupSpecs"), f"must have groups of different groupName; got {', '.join(names)}")
    _check_gpus(request, workers)
    fleet_of(file)  # refuses prices that are none
    _check_request(request, workers)


def _check_job(file: ClusterFile) -> None:
    job, spec = file.document, mapping(file.document.get("spec"))
    if job.get("apiVersion") != "ray.io/v1":
        file.refuse(("apiVersion",), f"must be ray.io/v1; got '{job.get('apiVersion')}'")
    metadata = mapping(job.get("metadata"))
    name = metadata.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 40:
        file.refuse(
            ("metadata", "name"),
            f"must be at most 40 lower-case letters, digits and hyphens, a letter first; got '{name}'",
        )
    if not isinstance(metadata.get("namespace"), str):
        file.refuse(("metadata", "namespace"), f"must name the namespace; got {metadata.get('namespace')!r}")
    for field, cure in (
        ("entrypoint", "a launch puts the command of the run there"),
        ("jobId", "KubeRay makes one for each attempt"),
        ("clusterSelector", "a launch makes its own cluster, and takes it down"),
        ("suspend", "a launch starts at once"),
    ):
        if field in spec:
            file.refuse(("spec", field), f"must be left out: {cure}; got {spec[field]!r:.60}")
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        file.refuse(
            ("spec", "submissionMode"),
            "must be K8sJobMode, which keeps the driver's log when its cluster is gone; "
            f"got '{spec['submissionMode']}'",
        )
    if spec.get("shutdownAfterJobFinishes") is not True:
        file.refuse(
            ("spec", "shutdownAfterJobFinishes"),
            f"must be true, so that nothing is paid for once the run has ended; "
            f"got {spec.get('shutdownAfterJobFinishes')!r}",
        )
    deadline = spec.get("activeDeadlineSeconds")
    if type(deadline) is not int or deadline <= 0:
        file.refuse(
            ("spec", "activeDeadlineSeconds"),
            f"must be a number of seconds, which bounds the cost, such as 172800; got {deadline!r}",
        )


def _check_cluster(file: ClusterFile) -> None:
    ray, installed = ray_cluster(file.document), version("ray")
    if ray.get("rayVersion") != installed:
        file.refuse(
            (*RAY, "rayVersion"),
            f'must be "{installed}", the Ray of this machine and of the image; got {ray.get("rayVersion")!r}; '
            "change it, and build the image with that Ray",
        )
    mode = mapping(ray.get("authOptions")).get("mode")
    if mode != "token":
        file.refuse(
            (*RAY, "authOptions", "mode"), f"must be token: without one, whoever reaches Ray runs code; got {mode!r}"
        )
    if ray.get("enableInTreeAutoscaling") is not True:
        file.refuse(
            (*RAY, "enableInTreeAutoscaling"),
            f"must be true, so that workers come and go with the work; got {ray.get('enableInTreeAutoscaling')!r}",
        )
    autoscaler = mapping(ray.get("autoscalerOptions")).get("version")
    if autoscaler != "v2":
        file.refuse((*RAY, "autoscalerOptions", "version"), f"must be v2; got {autoscaler!r}")


def _check_head(file: ClusterFile, head: Pods) -> None:
    _check_pods(file, head)
    if head.start.get("num-cpus") != "0":
        file.refuse(
            (*head.place, "rayStartParams", "num-cpus"),
            f'must be "0", so that no stage runs beside the driver; got {head.start.get("num-cpus")!r}',
        )
    host = head.start.get("dashboard-host", "0.0.0.0")
    if host != "0.0.0.0":
        file.refuse(
            (*head.place, "rayStartParams", "dashboard-host"),
            "must be left out: KubeRay's submitter and operator reach it from other pods; the token and the launch's "
            f"NetworkPolicy keep others out; got '{host}'",
        )
    if head.group.get("enableIngress"):
        file.refuse((*head.place, "enableIngress"), "must be left out: Ray must not be reached from outside; got true")
    service = head.group.get("serviceType", "ClusterIP")
    if service != "ClusterIP":
        file.refuse(
            (*head.place, "serviceType"), f"must be ClusterIP: Ray must not be reached from outside; got '{service}'"
        )
    mounts = head.container.get("volumeMounts") or []
    for number, mount in enumerate(mounts):
        if str(mapping(mount).get("mountPath")).rstrip("/") == LAUNCH_FOLDER:
            file.refuse(
                (*head.container_place, "volumeMounts", number, "mountPath"),
                f"must be another folder: a launch mounts the search space at {LAUNCH_FOLDER}; got '{LAUNCH_FOLDER}'",
            )


def _check_pods(file: ClusterFile, pods: Pods) -> None:
    image_place = (*pods.container_place, "image")
    image = pods.container.get("image")
    if not isinstance(image, str) or not is_pinned(image):
        file.refuse(
            image_place,
            f"must be REGISTRY/NAME:TAG with the tag of one version, as clusters/Dockerfile says; got {image!r}",
        )
    for name in ("cpu", "memory"):
        limit = pods.limits.get(name)
        if quantity(limit) is None:
            file.refuse(
                (*pods.container_place, "resources", "limits", name),
                f"must be an amount such as {'8' if name == 'cpu' else '32Gi'}, from which Ray knows what the pod has; "
                f"got {limit!r}",
            )
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pods.spec.get(name):
            file.refuse(
                (*pods.template, "spec", name), "must be left out: Ray must not be reached past the pod; got true"
            )
    for number, variable in enumerate(pods.container.get("env") or []):
        name = str(mapping(variable).get("name"))
        if SECRET_NAME.search(name) and "value" in mapping(variable):
            file.refuse(
                (*pods.container_place, "env", number, "value"),
                f"must not stand in a file: take {name} by valueFrom from a Secret, or let serviceAccountName give "
                "access to the bucket",
            )


def is_pinned(image: str) -> bool:
    """Return whether an image's name says one version: by its digest, or by a tag that does not move."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return True
    _, colon, tag = image.rpartition("/")[2].partition(":")
    return bool(colon) and bool(re.fullmatch(r"\w[\w.-]*", tag)) and tag not in MOVING_TAGS


def _check_group(file: ClusterFile, pods: Pods, *, image: object) -> None:
    group = pods.group
    if not isinstance(group.get("groupName"), str):
        file.refuse((*pods.place, "groupName"), f"must be the group's name; got {group.get('groupName')!r}")
    counts = {field: group.get(field, 0) for field in ("minReplicas", "replicas", "maxReplicas")}
    for field, count in counts.items():
        if type(count) is not int or count < 0:
            file.refuse((*pods.place, field), f"must be a whole number of workers; got {count!r}")
    least, at_first, most = counts.values()
    if not (least <= at_first <= most and most > 0):
        file.refuse(
            (*pods.place, "maxReplicas"),
            f"must be at least 1, and minReplicas <= replicas <= maxReplicas; got {least}, {at_first} and {most}",
        )
    if pods.container["image"] != image:
        file.refuse((*pods.container_place, "image"), f"must be the head's, '{image}'; got '{pods.container['image']}'")


def _check_gpus(request: LaunchRequest, workers: list[Pods]) -> None:
    file = request.file
    for pods in workers:
        limits = gpu_limits(pods)
        requests = mapping(mapping(pods.container.get("resources")).get("requests"))
        asked = {name: value for name, value in requests.items() if name.rpartition("/")[2] == "gpu"}
        for name, value in asked.items():
            if quantity(value) != limits.get(name):
                file.refuse(
                    (*pods.container_place, "resources", "limits", name),
                    f"must equal requests, as Kubernetes shares no GPU; got {limits.get(name, 0):g} and {value}",
                )
    without = all(request.options.get(f"gpus_per_{kind}") == 0 for kind in ("pretrain", "finetune"))
    if not without and not any(sum(gpu_limits(pods).values()) for pods in workers):
        file.refuse(
            (*workers[0].container_place, "resources", "limits"),
            'must have nvidia.com/gpu: "1" or more in one group of workers; got no GPU; to run on CPUs, give '
            "--gpus-per-pretrain 0 and --gpus-per-finetune 0",
        )


def _check_request(request: LaunchRequest, workers: list[Pods]) -> None:
    if request.data is not None and not is_remote(request.data):
        for pods in [head_of(request.file.document), *workers]:
            mounts = [str(mapping(mount).get("mountPath")) for mount in pods.container.get("volumeMounts") or []]
            if not any(PurePosixPath(request.data).is_relative_to(mount) for mount in mounts):
                raise InputError(
                    f"--data must be an address, or a folder in a volume that the head and every worker mount; got "
                    f"'{request.data}', which {pods.group.get('groupName', 'the head')} does not mount: "
                    f"it has {', '.join(mounts) or 'no volume'}"
                )
    size = len(request.grid_text.encode())
    if size > MOST_GRID_BYTES:
        raise InputError(f"--grid must be a file of at most {MOST_GRID_BYTES} bytes, as a ConfigMap holds; got {size}")
