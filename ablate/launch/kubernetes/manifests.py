"""The objects that a launch applies for KubeRay: the search space and its command, a network policy, and the job."""

from __future__ import annotations

import copy
import shlex
from typing import Any

import yaml

from ablate.launch.backend import LaunchRequest

LAUNCH_FOLDER = "/etc/ablate"
"""The folder in which the head finds the search space and its command."""

LAUNCH_VOLUME = "ablate-launch"

CLUSTER = "ablate/cluster"
"""The label of everything of a cluster, with its name."""

OUT = "ablate/out"
"""The annotation of a job with the store of its run."""

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


def run_script(request: LaunchRequest) -> str:
    """Return the head's script: the command of the run; codes of `NOT_AGAIN` are told in its last line only."""
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
