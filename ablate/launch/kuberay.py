"""What a launch applies for KubeRay, and what KubeRay's words about a job and its pods mean."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ablate.launch.backend import DriverState, LaunchRequest
from ablate.launch.rayjob import LAUNCH_FOLDER, LAUNCH_VOLUME
from ablate.words import one_line

CLUSTER = "ablate/cluster"
"""The label of everything of a cluster, with its name."""

OUT = "ablate/out"
"""The annotation of a job with the store of its run."""

NEVER_STARTS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
}
"""Why containers wait for ever."""

NOT_AGAIN = (0, 1, 2, 4, 5)
"""Exit codes after which a driver that is started again changes nothing, or would undo what somebody asked for."""

SCRIPT = """\
#!/bin/bash
# The driver of the run, as KubeRay starts it on the head.
trap : TERM INT  # the driver gets them too, and saves: its exit code is still to be told
{command}
code=$?
echo "driver ended with exit code $code"
case $code in
  {codes}) exit 0 ;;  # KubeRay starts a job that fails again, on a new cluster: these must not be
esac
exit $code
"""

ENDED = re.compile(r"driver ended with exit code (\d+)")
"""What the script says at last."""

FAILED = re.compile(r"failed with exit code (-?\d+)")
"""What Ray says of a job whose command fails; negative for a signal."""

# --- what is applied ----------------------------------------------------------------------------------


def run_script(request: LaunchRequest) -> str:
    """Return the command of the run, as the head runs it: told are its exit code and whether to start it again."""
    words = ["ablate", *request.run_words(grid=f"{LAUNCH_FOLDER}/grid.yaml")]
    return SCRIPT.format(command=shlex.join(words), codes="|".join(map(str, NOT_AGAIN)))


def manifests(request: LaunchRequest) -> list[dict[str, Any]]:
    """Return what is applied, in this order: the search space and the command, who is let in, the job."""
    name = request.file.name
    job = copy.deepcopy(request.file.document)
    about = {"namespace": job["metadata"]["namespace"], "labels": {CLUSTER: name}}
    files = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-launch", **copy.deepcopy(about)},
        "data": {"grid.yaml": request.grid_text, "run.sh": run_script(request)},
    }
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{name}-closed", **copy.deepcopy(about)},
        "spec": {
            "podSelector": {"matchLabels": {CLUSTER: name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {CLUSTER: name}}}]},
                {
                    "from": [
                        {"podSelector": {"matchLabels": {"batch.kubernetes.io/job-name": name}}},  # the submitter
                        {"podSelector": {"matchLabels": {"job-name": name}}},  # the same, before Kubernetes 1.27
                        {
                            "namespaceSelector": {},
                            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
                        },
                    ],
                    "ports": [{"protocol": "TCP", "port": 8265}],
                },
            ],
        },
    }
    metadata = job["metadata"]
    metadata["labels"] = {**metadata.get("labels", {}), CLUSTER: name}
    metadata["annotations"] = {**metadata.get("annotations", {}), OUT: request.out}
    job["spec"]["entrypoint"] = f"bash {LAUNCH_FOLDER}/run.sh"
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        about_pods = group["template"].setdefault("metadata", {})
        about_pods["labels"] = {**about_pods.get("labels", {}), CLUSTER: name}
    pod = cluster["headGroupSpec"]["template"]["spec"]
    pod["volumes"] = [*pod.get("volumes", []), {"name": LAUNCH_VOLUME, "configMap": {"name": f"{name}-launch"}}]
    container = pod["containers"][0]
    mount = {"name": LAUNCH_VOLUME, "mountPath": LAUNCH_FOLDER, "readOnly": True}
    container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
    return [files, policy, job]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def manifest_text(request: LaunchRequest) -> str:
    """Return what is applied as YAML, which `kubectl apply -f -` takes."""
    return yaml.dump_all(manifests(request), Dumper=_Dumper, sort_keys=False, width=120)


# --- how a job is -------------------------------------------------------------------------------------

WAITING = {
    "": "KubeRay has not taken the job yet",
    "Initializing": "the head is coming up",
    "Waiting": "the head is coming up",
    "Retrying": "the driver was lost: KubeRay starts it again, on a new cluster",
    "Suspending": "the job is suspended",
    "Suspended": "the job is suspended",
}
"""What a job waits for, by KubeRay's word for how far it is."""

OVER = ("Complete", "Failed", "ValidationFailed")


def driver_state(status: Mapping[str, Any], code_in_log: Callable[[], int | None]) -> DriverState:
    """Return how the driver is by a RayJob's status.

    KubeRay knows no exit codes: it is in Ray's message about a job that failed, and in the last line of the driver's
    log, of which a job that was not to be started again is told as succeeded.

    Args:
        status: of the job, as KubeRay writes it.
        code_in_log: reads the exit code from the driver's log; None if it does not tell.
    """
    deployment, ray = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    message = one_line(status.get("message") or "")
    if deployment in WAITING:
        return DriverState("waiting", WAITING[deployment])
    if deployment not in OVER:
        running = ray not in ("", "PENDING")
        return DriverState("running" if running else "waiting", "" if running else "the driver is being started")
    found = FAILED.search(message)
    if found is not None:
        code: int | None = int(found[1])
        code = code if code is None or code >= 0 else 128 - code  # as a shell tells a signal
    else:
        code = code_in_log() if deployment != "ValidationFailed" else None
    reason = status.get("reason") or ""
    if code is not None and reason != "DeadlineExceeded":
        return DriverState("ended", f"KubeRay: {ray or deployment}", code)
    detail = {
        "DeadlineExceeded": "activeDeadlineSeconds is over; the same command goes on",
        "ValidationFailed": f"KubeRay refuses the job: {message[:300]}",
    }.get(reason if deployment == "Failed" else deployment)
    lost = f"KubeRay: {' '.join(filter(None, (ray, deployment, reason)))}; the driver's exit code is not known"
    return DriverState("ended", detail or f"{lost}{': ' if message else ''}{message[:300]}", code)


def pod_line(pod: Mapping[str, Any]) -> str:
    """Return a pod in one line: its name, what it is, how it is, and why it waits."""
    labels, status = pod["metadata"].get("labels", {}), pod.get("status", {})
    group = labels.get("ray.io/group") or labels.get("ray.io/node-type") or "submitter"
    node = pod.get("spec", {}).get("nodeName", "no node yet")
    why = why_waiting(pod)
    return f"{pod['metadata']['name']}  {group}  {status.get('phase', '?')}  {node}" + (f"  {why}" if why else "")


def why_waiting(pod: Mapping[str, Any]) -> str:
    """Return why a pod does not start, as `REASON: MESSAGE`; empty if nothing is wrong."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        waits = container.get("state", {}).get("waiting", {})
        if waits.get("reason") and waits["reason"] != "ContainerCreating":
            return f"{waits['reason']}: {one_line(waits.get('message', ''))[:200]}"
    for condition in pod.get("status", {}).get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason', 'Unschedulable')}: {one_line(condition.get('message', ''))[:200]}"
    return ""
