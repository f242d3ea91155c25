"""Runs on Kubernetes: a RayJob of KubeRay, driven by `kubectl`."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ablate.errors import InputError
from ablate.launch.backend import CameUpWrongError, DriverState, Fleet, LaunchRequest, LeftOverError, Say
from ablate.launch.kubernetes.job_status import (
    ENDED,
    NEVER_STARTS,
    OVER,
    WAITING,
    driver_state,
    pod_line,
    why_waiting,
)
from ablate.launch.kubernetes.kubectl import Kubectl, KubectlError, run
from ablate.launch.kubernetes.manifests import CLUSTER, OUT, manifest_text
from ablate.launch.kubernetes.rayjob import annotations_of, fleet_of
from ablate.launch.kubernetes.rayjob_check import check_rayjob
from ablate.launch.memory import Memory

POLL_S = 5.0

OPERATOR_S = 90.0
"""Time for KubeRay, where it is installed, to take a new job."""

HEAD_S = 20 * 60.0
"""Time for a new node to come and to pull a large image."""

DOWN_S = 6 * 60.0
"""Time for the head to save, two minutes at most, and for its objects to be collected."""


class KubernetesBackend:
    """A RayJob of KubeRay on an existing Kubernetes cluster."""

    several_machines = True

    def __init__(self, request: LaunchRequest, memory: Memory) -> None:
        self.request, self.memory = request, memory
        self.name = request.file.name

    @property
    def _kubectl(self) -> Kubectl:
        """`kubectl` for the cluster of the launch, whichever the current context is by now."""
        context = self.memory.state().get("context") or run(["kubectl", "config", "current-context"]).strip()
        return Kubectl(context, str(self.request.file.document["metadata"]["namespace"]))

    def check(self) -> None:
        """Refuse with `InputError` what is wrong in the file or the request."""
        check_rayjob(self.request)

    def fleet(self) -> Fleet:
        """Return the machines that the groups of the file may grow to."""
        return fleet_of(self.request.file)

    def resolved(self) -> str:
        """Return what is applied: `kubectl apply -f -` takes it as it is."""
        return manifest_text(self.request)

    def steps(self) -> list[str]:
        """Return what a launch does."""
        namespace = self.request.file.document["metadata"]["namespace"]
        return [
            "check that kubectl's current context has KubeRay, grants the rights, and would accept what follows",
            f"apply ConfigMap {self.name}-launch in namespace {namespace}: the search space and the command",
            f"apply NetworkPolicy {self.name}-closed: only the cluster's pods, its submitter and KubeRay's operator "
            "get in",
            f"apply RayJob {self.name}: KubeRay makes a token and the head and submits the driver; its autoscaler adds "
            "and removes workers",
            "wait for the driver",
            "show the run until it ends, write the report here",
            "delete all three, and verify that no pod is left",
        ]

    def account_commands(self) -> list[str]:
        """Return nothing: namespace and rights are the administrator's."""
        return []

    # --- before anything is paid for

    def check_online(self, say: Say) -> None:
        """Refuse what cannot work with this kubectl, this cluster and these rights."""
        if shutil.which("kubectl") is None:
            raise InputError("kubectl must be on PATH to launch on Kubernetes; got none; install it")
        try:
            kubectl = self._kubectl
        except KubectlError as error:
            raise InputError(
                f"kubectl must have a current context: {error}; choose one by 'kubectl config use-context NAME'"
            ) from error
        where = f"context {kubectl.context}"
        try:
            known = json.loads(kubectl("get", "--raw", "/apis/ray.io/v1", "--request-timeout=20s"))
        except KubectlError as error:
            if "NotFound" in str(error) or "could not find the requested resource" in str(error):
                raise InputError(
                    f"{where}: must have KubeRay 1.6 or later; there is no ray.io/v1; install its operator by "
                    "'helm install kuberay-operator kuberay/kuberay-operator'"
                ) from error
            raise InputError(f"{where}: must answer; {error}; check 'kubectl cluster-info'") from error
        if "rayjobs" not in {resource.get("name") for resource in known.get("resources", [])}:
            raise InputError(f"{where}: must have KubeRay's RayJob; its ray.io/v1 has none; install KubeRay's operator")
        self._check_rights(kubectl)
        job = self._job(kubectl)
        if job is not None:
            self._check_ours(job)
            if not _is_over(job):
                return  # it is gone on with
        try:
            kubectl(*_APPLY, "--dry-run=server", given=self.resolved())
        except KubectlError as error:
            raise InputError(f"{where}: must accept the job in namespace {kubectl.namespace}; {error}") from error

    def _check_rights(self, kubectl: Kubectl) -> None:
        for verb, what in (
            *((verb, "rayjobs.ray.io") for verb in ("create", "get", "delete")),
            *((verb, "configmaps") for verb in ("create", "delete")),
            *((verb, "networkpolicies.networking.k8s.io") for verb in ("create", "delete")),
            ("list", "pods"),
            ("get", "pods/log"),
        ):
            resource, _, part = what.partition("/")
            words = ["auth", "can-i", verb, resource, *([f"--subresource={part}"] if part else [])]
            try:
                kubectl(*words)
            except KubectlError as error:
                raise InputError(
                    f"context {kubectl.context}: must let you {verb} {what} in namespace {kubectl.namespace}; "
                    f"got '{error}'; ask its administrator"
                ) from error

    def _check_ours(self, job: Mapping[str, Any]) -> None:
        out = annotations_of(job).get(OUT)
        if out is None:
            raise InputError(
                f"{self.request.file.path}: metadata.name must be free: there is a RayJob {self.name} that no launch "
                "made; give another name"
            )
        if out != self.request.out and not _is_over(job):
            raise InputError(
                f"--out must be {out}, of the run that RayJob {self.name} is at; got {self.request.out}; end that one "
                f"by 'ablate cluster down {self.request.file.path}', or give another metadata.name"
            )

    # --- up

    def start(self, say: Say) -> None:
        """Apply the job and wait for its driver, or go on with the one that is there.

        Raises:
            CameUpWrongError: the job was not accepted, or its head cannot start.
        """
        try:
            kubectl = self._kubectl
            self.memory.remember(context=kubectl.context)
            job = self._job(kubectl)
            if job is not None and not _is_over(job):
                say(f"RayJob {self.name} is there and goes on")
            else:
                if job is not None:
                    say(f"RayJob {self.name} has ended before: it is deleted, and made anew")
                    self._delete(kubectl, "rayjob.ray.io", self.name)
                    self._wait_until_gone(kubectl)
                kubectl(*_APPLY, given=self.resolved())
                say(f"RayJob {self.name} is applied in namespace {kubectl.namespace} of {kubectl.context}")
        except (KubectlError, LeftOverError) as error:
            raise CameUpWrongError(f"RayJob {self.name}: {error}") from error
        self._wait_up(kubectl, say)

    def _wait_up(self, kubectl: Kubectl, say: Say) -> None:
        began, told = time.monotonic(), ""
        while True:
            waited = time.monotonic() - began
            state = self.driver()
            try:
                pods = self._pods(kubectl)
            except KubectlError:  # it may answer again
                pods = []
            if state.phase in ("running", "ended"):
                if state.detail.startswith("KubeRay refuses"):
                    raise CameUpWrongError(f"RayJob {self.name}: {state.detail}")
                return
            for pod in pods:
                if why_waiting(pod).partition(":")[0] in NEVER_STARTS:
                    raise CameUpWrongError(f"pod {pod_line(pod)}; check its image, and what its node may pull")
            if state.detail == WAITING[""] and waited > OPERATOR_S:
                raise CameUpWrongError(
                    f"RayJob {self.name}: KubeRay's operator has not taken it within {OPERATOR_S:g} s; it must run "
                    f"and watch namespace {kubectl.namespace}: 'kubectl get pods -A -l app.kubernetes.io/component="
                    "kuberay-operator'"
                )
            if waited > HEAD_S:
                lines = "; ".join(map(pod_line, pods)) or "no pods"
                raise CameUpWrongError(
                    f"RayJob {self.name}: no driver within {HEAD_S / 60:g} minutes ({state.detail}): {lines}"
                )
            line = "; ".join([state.detail, *filter(None, map(why_waiting, pods))])
            if line != told:
                say(line)
            told = line
            time.sleep(POLL_S)

    # --- meanwhile

    def driver(self) -> DriverState:
        """Return how the driver is, by KubeRay's status of the job."""
        try:
            kubectl = self._kubectl
            job = self._job(kubectl)
        except KubectlError as error:
            return DriverState("unknown", f"kubectl: {error}")
        if job is None:
            return DriverState("ended", f"there is no RayJob {self.name}: it was deleted, or never made")
        return driver_state(job.get("status", {}), lambda: self._code_in_log(kubectl))

    def tend(self, say: Say) -> None:
        """Do nothing: KubeRay mends the cluster itself."""

    def status(self) -> list[str]:
        """Return the job and its pods, a line each."""
        lines = [f"RayJob {self.name}  {self.driver()}"]
        try:
            lines += map(pod_line, self._pods(self._kubectl))
        except KubectlError as error:
            lines.append(f"pods     unknown  kubectl: {error}")
        return lines

    def logs(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines of the driver as KubeRay's submitter follows them; it keeps them until the job is deleted.

        Raises:
            InputError: the cluster does not answer; with `follow`, it is asked again.
        """
        last = ""
        while True:
            state = self.driver()
            try:
                kubectl = self._kubectl
                pod = self._submitter(kubectl)
            except KubectlError as error:
                if not follow:
                    raise InputError(f"kubectl must reach the cluster of {self.name}; {error}") from error
                pod = None
            if pod is not None:
                for moment, text in self._log_lines(kubectl, pod, since=last, follow=follow):
                    last = moment
                    if not ENDED.fullmatch(text):
                        yield text
            if state.phase == "ended" or not follow:
                return
            time.sleep(POLL_S)

    def _log_lines(self, kubectl: Kubectl, pod: str, *, since: str, follow: bool) -> Iterator[tuple[str, str]]:
        """Yield the lines that a pod printed after `since`, each with its time; empty for all."""
        later = [f"--since-time={since[:19]}Z"] if since else []  # of whole seconds: what is there already is left out
        words = kubectl.words("logs", pod, "--timestamps", *later, *(["--follow"] if follow else []))
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    moment, _, text = line.rstrip("\n").partition(" ")
                    moment = _sortable(moment)
                    if moment > since:
                        yield moment, text
            finally:
                process.terminate()

    # --- down

    def down(self, say: Say) -> None:
        """Delete the job, which ends the driver with its states saved, and all else; verify that no pod is left.

        Raises:
            LeftOverError: something is left, or the cluster does not answer.
        """
        namespace = self.request.file.document["metadata"]["namespace"]
        by_hand = (
            f"kubectl --namespace={namespace} delete rayjob/{self.name} configmap/{self.name}-launch "
            f"networkpolicy/{self.name}-closed"
        )
        try:
            kubectl = self._kubectl
            say(f"deleting RayJob {self.name}")
            self._delete(kubectl, "rayjob.ray.io", self.name)
            self._wait_until_gone(kubectl)
            self._delete(kubectl, "networkpolicy.networking.k8s.io", f"{self.name}-closed")
            self._delete(kubectl, "configmap", f"{self.name}-launch")
        except KubectlError as error:
            raise LeftOverError(f"RayJob {self.name} could not be taken down: {error}; do it by: {by_hand}") from error
        say("no pod of it is left")

    def _delete(self, kubectl: Kubectl, kind: str, name: str) -> None:
        words = ("delete", kind, name, "--ignore-not-found", "--wait=true", f"--timeout={DOWN_S:.0f}s")
        kubectl(*words, timeout_s=DOWN_S + 30)

    def _wait_until_gone(self, kubectl: Kubectl) -> None:
        deadline = time.monotonic() + DOWN_S
        while True:
            made = f"ray.io/originated-from-cr-name={self.name},ray.io/originated-from-crd=RayJob"
            left = [
                *(f"raycluster {item['metadata']['name']}" for item in kubectl.items("rayclusters.ray.io", "-l", made)),
                *(f"pod {pod['metadata']['name']}" for pod in self._pods(kubectl)),
            ]
            if not left:
                return
            if time.monotonic() > deadline:
                raise LeftOverError(
                    f"{', '.join(left)} in namespace {kubectl.namespace} of {kubectl.context} still there "
                    f"{DOWN_S:.0f} s after the job was deleted; end them by 'kubectl --context={kubectl.context} "
                    f"--namespace={kubectl.namespace} delete {left[0].replace(' ', '/')}'"
                )
            time.sleep(POLL_S)

    # --- looking

    def _job(self, kubectl: Kubectl) -> dict[str, Any] | None:
        text = kubectl("get", "rayjob.ray.io", self.name, "-o", "json", "--ignore-not-found", "--request-timeout=20s")
        return dict(json.loads(text)) if text.strip() else None

    def _pods(self, kubectl: Kubectl) -> list[dict[str, Any]]:
        """Return the pods of the cluster, and the job's submitters."""
        return [*kubectl.items("pods", "-l", f"{CLUSTER}={self.name}"), *self._submitters(kubectl)]

    def _submitters(self, kubectl: Kubectl) -> list[dict[str, Any]]:
        return kubectl.items("pods", "-l", f"job-name={self.name}")

    def _submitter(self, kubectl: Kubectl) -> str | None:
        """Return the newest submitter that has a log."""
        started = [pod for pod in self._submitters(kubectl) if pod.get("status", {}).get("phase") != "Pending"]
        newest = max(started, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
        return None if newest is None else str(newest["metadata"]["name"])

    def _code_in_log(self, kubectl: Kubectl) -> int | None:
        try:
            pod = self._submitter(kubectl)
            text = kubectl("logs", pod, "--tail=100") if pod is not None else ""
        except KubectlError:
            return None
        found = ENDED.findall(text)
        return int(found[-1]) if found else None


_APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=ablate", "--filename=-")


def _is_over(job: Mapping[str, Any]) -> bool:
    return job.get("status", {}).get("jobDeploymentStatus") in OVER


def _sortable(moment: str) -> str:
    """Return a time that kubectl printed so that later ones are greater: with nine digits after the second."""
    seconds, _, rest = moment.rstrip("Z").partition(".")
    return f"{seconds}.{rest:0<9}"
