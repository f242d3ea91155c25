"""The state of the driver and of pods, read from KubeRay's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ablate.launch.backend import DriverState
from ablate.words import one_line

NEVER_STARTS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
}
"""Reasons for which a container waits for ever."""

ENDED = re.compile(r"driver ended with exit code (\d+)")
"""The last line of the driver's script."""

FAILED = re.compile(r"failed with exit code (-?\d+)")
"""Ray's words of a job whose command fails; the code is negative for a signal."""

WAITING = {
    "": "KubeRay has not taken the job yet",
    "Initializing": "the head is coming up",
    "Waiting": "the head is coming up",
    "Retrying": "the driver was lost: KubeRay starts it again, on a new cluster",
    "Suspending": "the job is suspended",
    "Suspended": "the job is suspended",
}
"""Reasons for which a job waits, by KubeRay's word for its state."""

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
        said = int(found[1])
        code: int | None = said if said >= 0 else 128 - said  # as a shell tells a signal
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
