"""Runs on Kubernetes: the file, what is applied, and the backend.

None of this ran on a real cluster. The file is validated against KubeRay's own definition of a RayJob where that is at
hand (ABLATE_KUBERAY_CRD). The backend's tests named `..._on_a_stand_in` run a real kubectl against `kube_api`, which
holds objects and nothing else; the status that they write is KubeRay's as documented. The script of the head, and what
a pod does before its end, run for real.
"""

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import kube_api
import pytest
import yaml

from ablate import __version__
from ablate.errors import InputError
from ablate.launch import pod
from ablate.launch.backend import CameUpWrongError, LaunchRequest, LeftOverError
from ablate.launch.cluster_file import parse_cluster, shipped_clusters
from ablate.launch.kubernetes import backend as kubernetes
from ablate.launch.kubernetes import manifests as kuberay
from ablate.launch.kubernetes.backend import KubernetesBackend
from ablate.launch.kubernetes.job_status import driver_state
from ablate.launch.kubernetes.rayjob_fields import FIELDS
from ablate.launch.memory import Memory
from ablate.schedule.fitting import Shape
from ablate.space import find_grid, load_grid, shipped_grids

CLUSTERS = shipped_clusters()["kuberay.yaml"].parent
SHIPPED = shipped_clusters()["kuberay.yaml"].read_text(encoding="utf-8")
EDITED = (
    SHIPPED.replace("EDIT-NAMESPACE", "work")
    .replace("EDIT-SERVICE-ACCOUNT", "ablate")
    .replace("EDIT-REGISTRY", "registry.example.com:5000/team")
    .replace("EDIT-LABEL-OF-SPOT-NODES: EDIT-VALUE", 'cloud.google.com/gke-spot: "true"')
)
GRID = load_grid(find_grid("demo"))
GRID_TEXT = shipped_grids()["demo"].read_text(encoding="utf-8")


def request(text=EDITED, *, out="s3://bucket/run", data=None, arguments=(), options=None, grid_text=GRID_TEXT):
    file = parse_cluster(Path("mine.yaml"), text)
    return LaunchRequest(file, GRID, grid_text, out, data, tuple(arguments), options or {})


def backend(*args, **more):
    asked = request(*args, **more)
    return KubernetesBackend(asked, Memory(asked.file.name))


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


# --- the file -----------------------------------------------------------------------------------------


def closed(schema):
    """Let a definition refuse the fields that an API server would drop, and take quantities as it does."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("anyOf", None)
            schema.pop("pattern", None)
            schema["type"] = ["integer", "string"]
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        closed(part)
    return schema


@pytest.fixture(scope="module")
def rayjob_schema():
    """KubeRay's definition of the spec of a RayJob, from version 1.7.0."""
    default = Path(__file__).resolve().parents[2] / "shared" / "cluster" / "rayjobs_crd_v1.7.0.yaml.gz"
    path = Path(os.environ.get("ABLATE_KUBERAY_CRD", default))
    if not path.is_file():
        pytest.skip(f"needs KubeRay's rayjobs CRD: set ABLATE_KUBERAY_CRD to the file (looked for {path})")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    crd = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schema = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    return closed(schema["properties"]["spec"])


def errors_of(schema, spec):
    validator = pytest.importorskip("jsonschema", reason="comes with moto, from the test extra").Draft7Validator
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator(schema).iter_errors(spec)]


def test_kuberays_definition_takes_the_file_and_what_is_applied(rayjob_schema):
    assert errors_of(rayjob_schema, yaml.safe_load(EDITED)["spec"]) == []
    assert errors_of(rayjob_schema, kuberay.manifests(request())[2]["spec"]) == []


@pytest.mark.parametrize("field", ["maxReplicas", "terminationGracePeriodSeconds", "authOptions", "volumeMounts"])
def test_a_misspelt_field_is_refused_by_kuberays_definition_and_by_us(rayjob_schema, field):
    text = EDITED.replace(f"{field}:", f"{field}x:", 1)
    assert any(
        f"'{field}x' was unexpected" in error for error in errors_of(rayjob_schema, yaml.safe_load(text)["spec"])
    )
    with pytest.raises(InputError, match=rf"mine.yaml:\d+: .*there is no '{field}x' \(did you mean '{field}'"):
        backend(text).check()


def test_our_table_of_fields_is_that_of_kuberay(rayjob_schema):
    compared = []

    def compare(known, schema, place):
        schema = schema.get("items", schema)
        assert set(known) == set(schema["properties"]), place
        compared.append(place)
        for name, inner in known.items():
            if inner is not None:
                compare(inner, schema["properties"][name], f"{place}.{name}")

    compare(FIELDS["spec"], rayjob_schema, "spec")
    assert len(compared) > 40


def test_the_shipped_file_passes_once_its_marked_lines_are_edited():
    backend().check()
    lines = {line for line in SHIPPED.splitlines() if re.search(r"EDIT-[A-Z]", line.partition("#")[0])}
    assert len(lines) == 4
    with pytest.raises(InputError, match=r"EDIT-NAMESPACE must be replaced"):
        backend(SHIPPED).check()


REFUSED = {
    "entrypoint": ("  backoffLimit: 3", "  entrypoint: ablate run\n  backoffLimit: 3", "spec.entrypoint: must be left"),
    "mode": ("submissionMode: K8sJobMode", "submissionMode: HTTPMode", "spec.submissionMode: must be K8sJobMode"),
    "deadline": (
        "activeDeadlineSeconds: 172800",
        "activeDeadlineSeconds: two days",
        "activeDeadlineSeconds: must be a",
    ),
    "shutdown": ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "must be true, so that nothing"),
    "ray": ('rayVersion: "2.60.0"', 'rayVersion: "2.9.0"', 'rayVersion: must be "' + version("ray")),
    "token": ("authOptions: {mode: token}", "authOptions: {mode: disabled}", "authOptions.mode: must be token"),
    "no token": ("authOptions: {mode: token}", "suspend: false", "authOptions.mode: must be token"),
    "autoscaling": ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "enableInTreeAutoscaling: must"),
    "autoscaler": ("version: v2,", "version: v1,", "autoscalerOptions.version: must be v2; got 'v1'"),
    "head's CPUs": ('{num-cpus: "0"}', "{}", 'rayStartParams.num-cpus: must be "0"'),
    "dashboard": ('num-cpus: "0"', 'num-cpus: "0", dashboard-host: 127.0.0.1', "dashboard-host: must be left out"),
    "ingress": (
        "    headGroupSpec:",
        "    headGroupSpec:\n      enableIngress: true",
        "enableIngress: must be left out",
    ),
    "service": (
        "    headGroupSpec:",
        "    headGroupSpec:\n      serviceType: LoadBalancer",
        "serviceType: must be Clus",
    ),
    "host network": ("          affinity:", "          hostNetwork: true\n          affinity:", "hostNetwork: must be"),
    "counts": ("minReplicas: 0", "minReplicas: 9", r"minReplicas <= replicas <= maxReplicas; got 9, 0 and 8"),
    "no machines": ("maxReplicas: 8", "maxReplicas: 0", "maxReplicas: must be at least 1"),
    "no GPU": (', nvidia.com/gpu: "1"}', "}", 'must have nvidia.com/gpu: "1" or more'),
    "GPU of requests only": (
        'limits: {cpu: "8", memory: 32Gi, nvidia.com/gpu: "1"}',
        'limits: {cpu: "8", memory: 32Gi}',
        "limits.nvidia.com/gpu: must equal requests",
    ),
    "CPUs": ('limits: {cpu: "2", memory: 8Gi}', "limits: {memory: 8Gi}", "limits.cpu: must be an amount"),
    "no tag": ("ablate:0.1.0-ray2.60.0", "ablate", "image: must be REGISTRY/NAME:TAG"),
    "latest": ("ablate:0.1.0-ray2.60.0", "ablate:latest", "image: must be REGISTRY/NAME:TAG"),
    "two images": ("image: *image", "image: a/b:1", "image: must be the head's"),
    "secret": (
        'value: "100"}',
        'value: "100"}\n                - {name: AWS_SECRET_ACCESS_KEY, value: x}',
        "valueFrom",
    ),
    "name": ("  name: ablate\n", "  name: Ablate_1\n", "metadata.name: must be at most 40 lower-case letters"),
    "namespace": ("  namespace: work\n", "", "metadata.namespace: must name the namespace"),
    "mount": ("mountPath: /dev/shm", "mountPath: /etc/ablate", "mountPath: must be another folder"),
    "price": (
        '# ablate/price-per-hour: "0.86"',
        "ablate/price-per-hour: cheap",
        "price-per-hour: must be a number in q",
    ),
    "price as number": ('# ablate/price-per-hour: "0.86"', "ablate/price-per-hour: 0.86", "must be a number in quotes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_with_its_line(case):
    old, new, message = REFUSED[case]
    assert old in EDITED
    with pytest.raises(InputError, match=re.escape(message) if "<" not in message else message) as caught:
        backend(EDITED.replace(old, new)).check()
    assert re.match(r"mine\.yaml:\d+: \S+: must ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_workers_without_gpus_are_for_runs_without_gpus():
    text = EDITED.replace(', nvidia.com/gpu: "1"}', "}")
    backend(text, options={"gpus_per_pretrain": 0.0, "gpus_per_finetune": 0.0}).check()


def test_data_are_at_an_address_or_in_a_volume_of_every_pod():
    backend(data="s3://bucket/data").check()
    with pytest.raises(
        InputError, match=r"--data must be an address, or a folder in a volume.*the head does not mount"
    ):
        backend(data="/data/xrays").check()
    mounted = EDITED.replace("{name: shm, mountPath: /dev/shm}", "{name: shm, mountPath: /data}")
    backend(mounted, data="/data/xrays").check()


def test_a_search_space_larger_than_a_config_map_is_refused():
    with pytest.raises(InputError, match="--grid must be a file of at most 900000 bytes"):
        backend(grid_text="#" * 900_001).check()


def test_the_machines_are_those_of_the_file():
    text = (
        EDITED.replace("# annotations: {ablate/currency: EUR", "annotations: {ablate/currency: EUR")
        .replace('# ablate/price-per-hour: "0.86"', 'ablate/price-per-hour: "0.86"')
        .replace('# ablate/price-per-hour: "0.19"', 'ablate/price-per-hour: "0.19"')
        .replace('cpu: "8", memory', "cpu: 7500m, memory")
    )
    fleet = backend(text).fleet()
    (gpu,) = fleet.workers
    assert (gpu.name, gpu.shape, gpu.max_count, gpu.price_per_hour, gpu.spot) == ("gpu", Shape(8, 1), 8, 0.86, True)
    assert fleet.head is not None
    assert (fleet.head.shape, fleet.head.price_per_hour, fleet.head.spot) == (Shape(0, 0), 0.19, False)
    assert (fleet.currency, fleet.interruptions_per_hour, fleet.queue_minutes) == ("EUR", 0.05, 5.0)
    plain = backend(EDITED.replace('cloud.google.com/gke-spot: "true"\n', "kind: gpu\n")).fleet()
    assert (plain.workers[0].spot, plain.workers[0].price_per_hour, plain.currency) == (False, None, "USD")


def test_the_image_is_built_from_one_version_of_everything_and_runs_as_no_root():
    text = (CLUSTERS / "Dockerfile").read_text(encoding="utf-8")
    assert dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE)) == {"RAY": version("ray"), "ABLATE": __version__}
    assert re.search(r"^FROM rayproject/ray:\$\{RAY\}-py312-cu\d+$", text, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "1000:100"
    assert f"/ablate:{__version__}-ray{version('ray')}" in SHIPPED
    assert f"/ablate:{__version__}-ray{version('ray')}" in text


# --- what is applied ----------------------------------------------------------------------------------


def test_the_steps_of_a_launch_name_every_object_and_what_becomes_of_it():
    assert backend().steps() == [
        "check that kubectl's current context has KubeRay, grants the rights, and would accept what follows",
        "apply ConfigMap ablate-launch in namespace work: the search space and the command",
        "apply NetworkPolicy ablate-closed: only the cluster's pods, its submitter and KubeRay's operator get in",
        "apply RayJob ablate: KubeRay makes a token and the head and submits the driver; its autoscaler adds and "
        "removes workers",
        "wait for the driver",
        "show the run until it ends, write the report here",
        "delete all three, and verify that no pod is left",
    ]
    assert backend().account_commands() == []


def test_the_search_space_travels_whole_and_the_head_alone_mounts_it():
    files, _, job = yaml.safe_load_all(backend().resolved())
    assert files["data"]["grid.yaml"] == GRID_TEXT
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][-1] == {"name": "ablate-launch", "configMap": {"name": files["metadata"]["name"]}}
    assert head["containers"][0]["volumeMounts"][-1]["mountPath"] == "/etc/ablate"
    assert job["spec"]["entrypoint"] == "bash /etc/ablate/run.sh"
    assert "ablate-launch" not in str(cluster["workerGroupSpecs"])
    assert job["metadata"]["annotations"]["ablate/out"] == "s3://bucket/run"


def test_nobody_gets_in_but_the_clusters_pods_its_submitter_and_the_operator():
    _, policy, job = kuberay.manifests(request())
    ours = {"ablate/cluster": "ablate"}
    assert policy["spec"]["podSelector"]["matchLabels"] == ours
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    inside, dashboard = policy["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": ours}}]}
    assert dashboard["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert all("podSelector" in peer for peer in dashboard["from"])
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == ours


def test_what_is_applied_leaves_the_users_file_as_it_is():
    asked = request()
    kuberay.manifests(asked)
    assert asked.file.document == yaml.safe_load(EDITED)


def run_script(tmp_path, body, arguments=()):
    """Start the head's script with a stand-in for `ablate`."""
    ablate = tmp_path / "bin" / "ablate"
    ablate.parent.mkdir(exist_ok=True)
    ablate.write_text(f"#!/bin/bash\n{body}\n")
    ablate.chmod(0o755)
    return subprocess.Popen(
        ["bash", "-c", kuberay.run_script(request(arguments=arguments))],
        env={"PATH": f"{ablate.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_heads_script_hands_every_word_on(tmp_path):
    words = ["--set", "description=it's $HOME, $(id) {x}", "--data", "s3://b/d ata"]
    process = run_script(tmp_path, 'printf "%s\\n" "$@"', words)
    assert process.communicate()[0].splitlines()[:-1] == [
        *("run", "--grid", "/etc/ablate/grid.yaml", "--out", "s3://bucket/run", "--address", "auto"),
        *words,
    ]


@pytest.mark.parametrize(
    ("code", "told"), [(0, 0), (1, 0), (2, 0), (3, 3), (4, 0), (5, 0), (130, 130), (137, 137), (143, 143)]
)
def test_kuberay_is_told_to_start_again_only_what_goes_on(tmp_path, code, told):
    process = run_script(tmp_path, f"exit {code}")
    printed, _ = process.communicate()
    assert process.returncode == told
    assert printed == f"driver ended with exit code {code}\n"


def test_the_heads_script_outlives_sigterm_and_tells_the_drivers_exit_code(tmp_path):
    """`ray job stop` sends SIGTERM to the script and to the driver."""
    process = run_script(tmp_path, "trap 'sleep 0.5; echo saved; exit 143' TERM; echo up; while :; do sleep 0.1; done")
    assert process.stdout.readline() == "up\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGTERM)
    printed, _ = process.communicate()
    assert printed == "saved\ndriver ended with exit code 143\n"
    assert process.returncode == 143


# --- how a job is -------------------------------------------------------------------------------------

RAY_SAYS = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n..."
STATES = {
    "just made": ({}, ("waiting", None, "has not taken")),
    "coming up": ({"jobDeploymentStatus": "Initializing"}, ("waiting", None, "head is coming up")),
    "submitting": ({"jobDeploymentStatus": "Running", "jobStatus": ""}, ("waiting", None, "being started")),
    "pending": ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, ("waiting", None, "being started")),
    "running": ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, ("running", None, "")),
    "again": ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, ("waiting", None, "on a new cluster")),
    "done": (
        {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "message": "Job finished successfully."},
        ("ended", 5, ""),  # what the log tells
    ),
    "store away": (
        {
            "jobDeploymentStatus": "Failed",
            "jobStatus": "FAILED",
            "reason": "AppFailed",
            "message": RAY_SAYS.format(3),
        },
        ("ended", 3, ""),
    ),
    "killed": (
        {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": RAY_SAYS.format(-9)},
        ("ended", 137, ""),
    ),
    "deadline": (
        {
            "jobDeploymentStatus": "Failed",
            "jobStatus": "RUNNING",
            "reason": "DeadlineExceeded",
            "message": "The RayJob has passed the activeDeadlineSeconds.",
        },
        ("ended", 5, "activeDeadlineSeconds is over"),
    ),
    "refused": (
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "bad\nspec"},
        ("ended", None, "KubeRay refuses the job: bad spec"),
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_a_drivers_state_is_read_from_the_status_that_kuberay_documents(case):
    status, (phase, code, detail) = STATES[case]
    state = driver_state(status, lambda: 5)
    assert (state.phase, state.exit_code) == (phase, code)
    assert detail in state.detail
    assert "\n" not in state.detail


def test_an_exit_code_that_nobody_tells_is_not_made_up():
    lost = {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "RUNNING",
        "reason": "SubmissionFailed",
        "message": "Job submission has failed. Reason: BackoffLimitExceeded.",
    }
    state = driver_state(lost, lambda: None)
    assert (state.phase, state.exit_code) == ("ended", None)
    assert "the driver's exit code is not known: Job submission has failed" in state.detail


# --- the backend, with a real kubectl and a stand-in for the cluster ----------------------------------


@pytest.fixture
def api(tmp_path, monkeypatch):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl (Debian: kubernetes-client)")
    api = kube_api.KubeApi()
    config = tmp_path / "kubeconfig"
    config.write_text(api.config())
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.setattr(kubernetes, "POLL_S", 0.05)
    yield api
    api.close()


def take(api, *, deployment="Running", job="RUNNING", name="ablate", **more):
    """Do what KubeRay's operator does: set the job's status."""
    api.objects["rayjobs", name]["status"] = {"jobDeploymentStatus": deployment, "jobStatus": job, **more}


def add_pod(api, name, *, phase="Running", labels=None, created="2026-01-01T00:00:00Z", **status):
    api.objects["pods", name] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "work", "labels": labels or {}, "creationTimestamp": created},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main"}]},
        "status": {"phase": phase, **status},
    }


def started(api, one=None, **status):
    """Start, with an operator that sets the job's status at once: that it runs, or the one given."""
    one = one or backend()

    def operator():
        while "status" in api.objects.get(("rayjobs", "ablate"), {"status": "of none"}):
            time.sleep(0.02)
        take(api, **status)

    thread = threading.Thread(target=operator)
    thread.start()
    said = []
    try:
        one.start(said.append)
    finally:
        thread.join()
    return one, said


def test_a_launch_applies_three_objects_after_it_was_checked_on_a_stand_in(api):
    one = backend()
    one.check_online(print)
    assert api.objects == {}
    assert sum("dryRun=All" in path for _, path in api.asked) == 3
    started(api, one)
    assert list(api.objects) == [
        ("configmaps", "ablate-launch"),
        ("networkpolicies", "ablate-closed"),
        ("rayjobs", "ablate"),
    ]
    assert one.driver().phase == "running"


def test_the_definition_of_kuberay_takes_what_kubectl_sends_on_a_stand_in(api, rayjob_schema):
    api.wrong = lambda content: content["kind"] == "RayJob" and "; ".join(errors_of(rayjob_schema, content["spec"]))
    backend().check_online(print)


def test_a_launch_keeps_to_its_cluster_when_the_current_context_changes_on_a_stand_in(api, monkeypatch):
    one, _ = started(api)
    config = yaml.safe_load(api.config())
    config["current-context"] = "elsewhere"
    Path(os.environ["KUBECONFIG"]).write_text(yaml.safe_dump(config))
    assert one.driver().phase == "running"


def test_launching_again_goes_on_with_the_job_that_is_there_on_a_stand_in(api):
    started(api)
    before = len(api.asked)
    again = backend()
    again.check_online(print)
    said = []
    again.start(said.append)
    assert said == ["RayJob ablate is there and goes on"]
    assert not any(method in ("PATCH", "DELETE") for method, _ in api.asked[before:])


def test_launching_again_after_the_end_makes_the_job_anew_on_a_stand_in(api):
    started(api)
    take(api, deployment="Complete", job="SUCCEEDED")
    _, said = started(api)
    assert said[0] == "RayJob ablate has ended before: it is deleted, and made anew"
    assert api.objects["rayjobs", "ablate"]["status"]["jobDeploymentStatus"] == "Running"


def test_a_job_of_another_run_is_left_alone_on_a_stand_in(api):
    started(api)
    with pytest.raises(InputError, match=r"--out must be s3://bucket/run, of the run that RayJob ablate is at"):
        backend(out="s3://bucket/other").check_online(print)
    del api.objects["rayjobs", "ablate"]["metadata"]["annotations"]
    with pytest.raises(InputError, match="there is a RayJob ablate that no launch made"):
        backend().check_online(print)


def test_what_the_cluster_lacks_is_told_in_one_line_before_anything_starts_on_a_stand_in(api, monkeypatch):
    def refused(message):
        with pytest.raises(InputError, match=message) as caught:
            backend().check_online(print)
        assert "\n" not in str(caught.value)

    api.forbidden = {("get", "pods/log")}
    refused("context here: must let you get pods/log in namespace work; got 'no'")
    api.forbidden = {("create", "networkpolicies")}
    refused("must let you create networkpolicies.networking.k8s.io")
    api.forbidden = set()
    api.refuse = "exceeded quota: gpus"
    refused("must accept the job in namespace work; .*exceeded quota: gpus")
    api.refuse, api.namespaces = None, set()
    refused('namespaces "work" not found')
    api.namespaces, api.has_ray = {"work"}, False
    refused(r"must have KubeRay 1.6 or later; there is no ray.io/v1")
    assert api.objects == {}


def test_a_cluster_that_does_not_answer_and_a_kubectl_that_is_not_there_are_told(api, monkeypatch, tmp_path):
    config = yaml.safe_load(api.config())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    Path(os.environ["KUBECONFIG"]).write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"context here: must answer; .*refused"):
        backend().check_online(print)
    assert backend().driver().phase == "unknown"
    del config["current-context"]
    Path(os.environ["KUBECONFIG"]).write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="kubectl must have a current context"):
        backend().check_online(print)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="kubectl must be on PATH"):
        backend().check_online(print)


def test_a_job_that_no_operator_takes_came_up_wrong_on_a_stand_in(api, monkeypatch):
    monkeypatch.setattr(kubernetes, "OPERATOR_S", 0.3)
    with pytest.raises(CameUpWrongError, match=r"operator has not taken it within 0.3 s"):
        backend().start(lambda line: None)


def test_an_image_that_cannot_be_pulled_came_up_wrong_on_a_stand_in(api):
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling\nimage"}}
    statuses = [{"name": "ray-head", "state": waiting}]
    add_pod(api, "ablate-head", phase="Pending", labels={"ablate/cluster": "ablate"}, containerStatuses=statuses)
    with pytest.raises(
        CameUpWrongError, match=r"ablate-head.*ImagePullBackOff: Back-off pulling image; check its image"
    ):
        backend().start(lambda line: None)


def test_a_job_that_kuberay_refuses_came_up_wrong_on_a_stand_in(api):
    refusal = {"deployment": "ValidationFailed", "job": "", "message": "The RayJob spec is invalid"}
    with pytest.raises(CameUpWrongError, match="KubeRay refuses the job: The RayJob spec is invalid"):
        started(api, **refusal)


def test_a_head_without_a_node_is_told_and_given_up_on_a_stand_in(api, monkeypatch):
    monkeypatch.setattr(kubernetes, "HEAD_S", 1.0)
    conditions = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    ]
    add_pod(api, "ablate-head", phase="Pending", labels={"ablate/cluster": "ablate"}, conditions=conditions)
    said = []
    with pytest.raises(CameUpWrongError, match=r"no driver within .*Unschedulable: 0/3 nodes"):
        backend().start(said.append)
    assert any("Unschedulable: 0/3 nodes are available" in line for line in said)


SUBMITTER = {"job-name": "ablate"}


def test_status_names_the_driver_and_every_pod_on_a_stand_in(api):
    one, _ = started(api)
    add_pod(api, "ablate-head-x", labels={"ablate/cluster": "ablate", "ray.io/group": "headgroup"})
    add_pod(api, "ablate-gpu-y", labels={"ablate/cluster": "ablate", "ray.io/group": "gpu"})
    add_pod(api, "ablate-z", labels=SUBMITTER)
    add_pod(api, "someone-elses")
    assert one.status() == [
        "RayJob ablate  running",
        "ablate-head-x  headgroup  Running  node-1",
        "ablate-gpu-y  gpu  Running  node-1",
        "ablate-z  submitter  Running  node-1",
    ]
    message = RAY_SAYS.format(3)
    take(api, deployment="Failed", job="FAILED", reason="AppFailed", message=message)
    assert one.status()[0] == "RayJob ablate  ended with exit code 3: KubeRay: FAILED"


def test_the_exit_code_of_a_stopped_driver_is_in_the_submitters_log_on_a_stand_in(api):
    one, _ = started(api)
    add_pod(api, "ablate-old", labels=SUBMITTER, phase="Failed")
    add_pod(api, "ablate-new", labels=SUBMITTER, phase="Succeeded", created="2026-01-01T00:05:00Z")
    api.logs["ablate-old"] = ["2026-01-01T00:00:01Z driver ended with exit code 0"]
    api.logs["ablate-new"] = ["2026-01-01T00:05:01Z saving", "2026-01-01T00:05:02Z driver ended with exit code 5"]
    take(api, deployment="Complete", job="SUCCEEDED")
    assert one.driver().exit_code == 5
    assert list(one.logs(follow=False)) == ["saving"]
    api.logs["ablate-new"] = []
    assert one.driver().exit_code is None


def test_a_log_that_is_cut_is_taken_up_without_a_line_twice_or_lost_on_a_stand_in(api):
    """The connection ends after every answer, as it does now and then; the server knows whole seconds only."""
    one, _ = started(api)
    add_pod(api, "ablate-z", labels=SUBMITTER)
    every = [f"2026-01-01T00:00:{n // 4:02d}.{n % 4 * 25:02d}Z line {n}" for n in range(20)]
    api.logs["ablate-z"] = every[:7]

    def grow():
        for count in (8, 13, 20):
            time.sleep(0.4)
            api.logs["ablate-z"] = every[:count]
        time.sleep(0.4)
        take(api, deployment="Complete", job="SUCCEEDED")

    thread = threading.Thread(target=grow)
    thread.start()
    assert list(one.logs(follow=True)) == [f"line {n}" for n in range(20)]
    thread.join()


def test_everything_is_deleted_the_way_in_last_on_a_stand_in(api):
    one, _ = started(api)
    add_pod(api, "ablate-head", labels={"ablate/cluster": "ablate"})
    threading.Timer(0.5, api.objects.pop, [("pods", "ablate-head")]).start()
    one.down(lambda line: None)
    assert api.objects == {}
    deleted = [path.rsplit("/", 2)[1] for method, path in api.asked if method == "DELETE"]
    assert deleted == ["rayjobs", "networkpolicies", "configmaps"]
    one.down(lambda line: None)  # nothing is there: as good as done


def test_a_pod_that_stays_is_told_with_the_way_to_end_it_on_a_stand_in(api, monkeypatch):
    one, _ = started(api)
    monkeypatch.setattr(kubernetes, "DOWN_S", 1.0)
    add_pod(api, "ablate-gpu-y", labels={"ablate/cluster": "ablate"})
    with pytest.raises(LeftOverError, match=r"pod ablate-gpu-y in namespace work .*delete pod/ablate-gpu-y"):
        one.down(lambda line: None)
    assert ("networkpolicies", "ablate-closed") in api.objects  # what is left stays closed


def test_a_cluster_that_is_away_leaves_word_how_to_delete_by_hand(api):
    one, _ = started(api)
    config = yaml.safe_load(api.config())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    Path(os.environ["KUBECONFIG"]).write_text(yaml.safe_dump(config))
    with pytest.raises(
        LeftOverError, match=r"could not be taken down: .*kubectl --namespace=work delete rayjob/ablate"
    ):
        one.down(lambda line: None)


# --- before the end of a pod --------------------------------------------------------------------------


def seen(tmp_path, *numbers):
    """A /proc with these processes only, as a pod sees its own."""
    folder = tmp_path / "proc"
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / str(number)).symlink_to(f"/proc/{number}")
    return folder


def test_a_pod_with_a_driver_ends_it_and_waits_until_it_has_saved(tmp_path):
    ablate = tmp_path / "ablate"
    ablate.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (time.sleep(1), open(sys.argv[2], 'w').close(), sys.exit(143)))\n"
        "print('up', flush=True)\nwhile True: time.sleep(0.1)\n"
    )
    driver = subprocess.Popen([sys.executable, ablate, "run", tmp_path / "saved"], stdout=subprocess.PIPE)
    threading.Thread(target=driver.wait).start()  # a zombie is gone, too
    assert driver.stdout.readline() == b"up\n"
    assert pod.leave(20, seen(tmp_path, driver.pid)) == "the driver has saved and ended"
    assert (tmp_path / "saved").exists()
    driver.stdout.close()


def test_a_driver_that_does_not_end_is_told(tmp_path):
    ablate = tmp_path / "ablate"
    ablate.write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, ablate, "run"], stdout=subprocess.PIPE) as driver:
        assert driver.stdout.readline() == b"up\n"
        assert pod.leave(1, seen(tmp_path, driver.pid)) == "the driver still runs after 1 s"
        driver.kill()


def test_a_driver_is_ablate_run_and_not_a_shell_that_names_it():
    assert pod.is_driver(["/usr/bin/python3.12", "/usr/local/bin/ablate", "run", "--grid", "x", ""])
    assert not pod.is_driver(["/usr/bin/python3", "/usr/local/bin/ablate", "status", "run"])
    assert not pod.is_driver(["bash", "-c", "ablate run"])
    assert not pod.is_driver(["ray::IDLE"])


def test_a_worker_tells_ray_that_it_goes_and_ends_with_its_last_work(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.undo()  # in another home Ray's processes would not find the token that this process may know already
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "wait": False})
    worker = cluster.add_node(num_cpus=1, wait=False)
    cluster.wait_for_nodes(timeout=120)  # its own 30 s for each are short on a busy machine
    ray.init(address=cluster.address)
    try:

        @ray.remote(num_cpus=1)
        class Stage:
            def work(self):
                while not ray._private.state.state.get_draining_nodes():
                    time.sleep(0.2)
                return "saved"

        stage = Stage.remote()
        result = stage.work.remote()
        number = next(n for n, words in pod.processes() if pod.raylet_node(words) == worker.node_id)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        told = []
        hook = threading.Thread(target=lambda: told.append(pod.leave(200, seen(tmp_path, number))))
        hook.start()
        assert ray.get(result, timeout=200) == "saved"
        del stage
        hook.join(timeout=240)
        assert told == ["the node is drained and has ended"]
    finally:
        ray.shutdown()
        cluster.shutdown()
