"""The examination before a run, on real clusters of real nodes: green where all is well, and each red line made real.

A node is a child of ours with an environment, and where it needs one a mount namespace, of its own. All of them listen
on this machine's own address.
"""

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from proxy import Proxy, without_conditions
from runs import descendants, wait_until

import ablate
from ablate.doctor import Finding, Report

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes and ports in /proc"),
    pytest.mark.timeout(300),
]

needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="a node with mounts of its own needs root")

EXAMINE = """
import json, sys
from ablate.doctor import examine
report = examine(**json.loads(sys.argv[1]))
print("\\n".join(line.plain for line in report.lines()))
found = [[place, finding.check, finding.level, finding.text, finding.cure] for place, finding in report.found]
print(json.dumps([report.exit_code, found]))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Outcome:
    """What an examination said."""

    def __init__(self, output):
        *lines, last = output.splitlines()
        self.text = "\n".join(lines)
        self.exit_code, found = json.loads(last)
        self.found = [(place, Finding(*fields)) for place, *fields in found]

    def red(self):
        """Return the red findings as (place, check, text)."""
        return [(place, finding.check, finding.text) for place, finding in self.found if finding.level == "red"]

    def the_red(self):
        """Return the only red finding, which must have a cure and a line."""
        assert len(self.red()) == 1, self.text
        ((place, finding),) = [(place, finding) for place, finding in self.found if finding.level == "red"]
        assert self.exit_code == 1
        assert finding.cure
        (line,) = [line for line in self.text.splitlines() if line.startswith("  red")]
        assert finding.text in line
        assert finding.cure in line
        return place, finding.check, finding.text


class Machines:
    """A cluster whose nodes are children of this process, and a driver's view of it."""

    def __init__(self, package, folder, *, mode="token", wrap=(), host=None, head=(), **environment):
        self.folder = folder
        self.temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie below
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(package),
            "RAY_AUTH_MODE": mode,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "60000",  # a node that is held up stays a member
            "ABLATE_CACHE": str(folder / "cache"),
            **environment,
        }
        self.address, self.processes = None, {}
        port = free_port()
        self._start(
            "head",
            wrap,
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            f"--temp-dir={self.temp}",
            "--num-cpus=1",
            *((f"--node-ip-address={host}",) if host else ()),
            *head,
        )
        self.wrap, self.address = wrap, f"{host or own_address()}:{port}"

    def add(self, name, *options, wrap=(), **environment):
        """Start a node; `wrap` is what its command line is put behind."""
        cpus = () if any("--num-cpus" in option for option in options) else ("--num-cpus=1",)
        self._start(name, wrap, f"--address={self.address}", *cpus, *options, **environment)

    def _start(self, name, wrap, *options, **environment):
        log = self.folder / f"{name}.log"
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--block", f"--node-name={name}", "--object-store-memory=80000000", *options]
        with log.open("wb") as output:
            self.processes[name] = subprocess.Popen(
                [*wrap, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**self.environment, **environment},
            )
        wait_until(lambda: self._is_up(name, log), 90)

    def _is_up(self, name, log):
        text = log.read_text(errors="replace")
        assert self.processes[name].poll() is None, text
        return "Ray runtime started" in text

    def remove(self, name):
        """End a node and all of its processes."""
        process = self.processes.pop(name)
        below = {process.pid, *descendants(process.pid)}
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def shutdown(self):
        for name in reversed(list(self.processes)):
            self.remove(name)
        shutil.rmtree(self.temp, ignore_errors=True)

    def pids(self, name, word):
        """Return the processes of a node whose command line contains a word."""
        return [pid for pid, command in descendants(self.processes[name].pid).items() if word in command]

    def examine(self, **arguments):
        """Examine the cluster in a process of its own."""
        return examine({"address": self.address, **arguments}, self.environment, self.folder, self.wrap)


def examine(arguments, environment, folder, wrap=()):
    done = subprocess.run(
        [*wrap, sys.executable, "-c", EXAMINE, json.dumps(arguments)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(done.stdout)


@functools.cache
def own_address():
    """Return the address that Ray gives this machine."""
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def copy_of_package(folder, version=None):
    """Copy the package, with another version if given; return what PYTHONPATH must hold."""
    source = Path(ablate.__file__).parent
    shutil.copytree(source, folder / "ablate", ignore=shutil.ignore_patterns("__pycache__"))
    if version is not None:
        file = folder / "ablate" / "__init__.py"
        file.write_text(file.read_text().replace(f'__version__ = "{ablate.__version__}"', f'__version__ = "{version}"'))
    return folder


def write_dataset(folder, *, seed=0):
    (folder / "images").mkdir(parents=True)
    rows = ["image,x0,y0"]
    for number in range(4):
        grey = np.random.default_rng([seed, number]).integers(0, 255, (20, 16), dtype=np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,3,4")
    (folder / "landmarks.csv").write_text("\n".join(rows) + "\n")
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"unit": "px", "splits": {"train": 1, "val": 1, "test": 2}}))


def behind(mounts):
    """Return the words that put a command behind mounts in a namespace of its own."""
    return ("unshare", "--mount", "bash", "-c", f'set -e; {mounts}; exec "$@"', "bash")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return copy_of_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def machines(package, tmp_path_factory):
    """A cluster that asks for a token, of a head and a worker, with data and a store that both see."""
    folder = tmp_path_factory.mktemp("cluster")
    write_dataset(folder / "data" / "mine")
    found = Machines(package, folder)
    try:
        found.add("worker")
        yield found
    finally:
        found.shutdown()


@contextlib.contextmanager
def another(machines, name, *options, **keywords):
    """Add a node for a while."""
    try:
        machines.add(name, *options, **keywords)
        yield
    finally:
        machines.remove(name)


def everything(machines):
    return {"out": str(machines.folder / "runs" / "new"), "data": str(machines.folder / "data"), "timeout_s": 40}


# --- the lines


def test_lines_merge_nodes_that_say_the_same_and_read_without_colour():
    ok, red = Finding("clock", "ok", "within 5 s"), Finding("clock", "red", "9 s behind", "set it")
    report = Report("three nodes", ("a", "b", "c"), (("a", ok), ("b", red), ("c", ok), ("", Finding("x", "note", "y"))))
    assert [line.plain for line in report.lines()] == [
        "three nodes",
        "  ok    clock          a, c: within 5 s",
        "  red   clock          b: 9 s behind; set it",
        "  note  x              y",
        "1 to put right",
    ]
    assert [span.style for line in report.lines()[1:4] for span in line.spans] == ["green", "bold red", "yellow"]
    assert report.exit_code == 1
    assert Report("", ("a",), (("a", ok),)).exit_code == 0


# --- where all is well


def test_all_is_green_on_a_cluster_where_all_is_well_and_nothing_is_left(machines):
    outcome = machines.examine(**everything(machines))
    assert outcome.red() == []
    assert outcome.exit_code == 0
    for words in (
        "2 nodes",
        "all 2 nodes: python",
        "mine (",
        "the cluster asks for a token",
        "reaches every other node",
    ):
        assert words in outcome.text
    assert not (machines.folder / "runs").exists()


# --- each red line, on a node where it is so


def test_a_node_with_another_version_is_red_and_answers_nevertheless(machines, tmp_path):
    other = copy_of_package(tmp_path, version="9.9.9")
    with another(machines, "older", PYTHONPATH=str(other)):
        outcome = machines.examine(**everything(machines))
    place, check, text = outcome.the_red()
    assert (place, check) == ("older", "versions")
    assert text == f"ablate 9.9.9, the driver's is {ablate.__version__}"


@pytest.mark.slow
def test_a_node_where_the_same_version_is_other_code_is_red(machines, tmp_path):
    other = copy_of_package(tmp_path)
    file = other / "ablate" / "words.py"
    file.write_text(file.read_text() + "\n# changed\n")
    with another(machines, "patched", PYTHONPATH=str(other)):
        outcome = machines.examine(**everything(machines))
    place, check, text = outcome.the_red()
    assert (place, check) == ("patched", "versions")
    assert "its code differs from the driver's" in text


@pytest.mark.slow
def test_a_node_that_cannot_import_ablate_says_so(machines, tmp_path):
    (tmp_path / "ablate").mkdir()
    (tmp_path / "ablate" / "__init__.py").write_text('raise ImportError("half a package")')
    with another(machines, "broken", PYTHONPATH=str(tmp_path)):
        outcome = machines.examine(**everything(machines))
    place, check, text = outcome.the_red()
    assert (place, check) == ("broken", "versions")
    assert "ablate not importable (half a package)" in text


@needs_mounts
def test_a_node_that_cannot_write_the_store_is_red(machines, tmp_path):
    with another(machines, "reader", wrap=behind(f"mount -t tmpfs -o ro tmpfs {tmp_path}")):
        outcome = machines.examine(**{**everything(machines), "out": str(tmp_path / "run")})
    place, check, text = outcome.the_red()
    assert (place, check) == ("reader", "store")
    assert "Read-only file system" in text


@pytest.mark.slow
@needs_mounts
def test_a_node_that_writes_the_store_to_a_disk_of_its_own_is_red(machines, tmp_path):
    with another(machines, "alone", wrap=behind(f"mount -t tmpfs tmpfs {tmp_path}")):
        outcome = machines.examine(**{**everything(machines), "out": str(tmp_path / "run")})
    place, check, text = outcome.the_red()
    assert (place, check) == ("alone", "store")
    assert "not the driver's" in text


@needs_mounts
def test_a_node_with_other_data_is_red(machines, tmp_path):
    write_dataset(tmp_path / "mine", seed=1)
    with another(machines, "stranger", wrap=behind(f"mount --bind {tmp_path} {machines.folder / 'data'}")):
        outcome = machines.examine(**everything(machines))
    place, check, text = outcome.the_red()
    assert (place, check) == ("stranger", "data")
    assert text.startswith("mine is not the driver's")


@pytest.mark.slow
@needs_mounts
def test_a_node_without_the_data_is_red(machines, tmp_path):
    with another(machines, "bare", wrap=behind(f"mount --bind {tmp_path} {machines.folder / 'data'}")):
        outcome = machines.examine(**everything(machines))
    assert outcome.the_red()[:2] == ("bare", "data")


@pytest.mark.slow
@needs_mounts
def test_a_node_whose_data_hang_is_red_and_nobody_waits_for_it(machines, tmp_path):
    write_dataset(tmp_path / "mine")
    (tmp_path / "mine" / "landmarks.csv").unlink()
    os.mkfifo(tmp_path / "mine" / "landmarks.csv")  # opening it waits for a writer, as a dead network folder does
    with another(machines, "hung", wrap=behind(f"mount --bind {tmp_path} {machines.folder / 'data'}")):
        outcome = machines.examine(**everything(machines), look_s=10)
    place, check, text = outcome.the_red()
    assert (place, check) == ("hung", "answer")
    assert "did not end its examination within 10 s" in text


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_red_and_nobody_waits_for_it(machines):
    with another(machines, "stopped"):
        for pid in machines.pids("stopped", "raylet/raylet"):
            os.kill(pid, signal.SIGSTOP)
        outcome = machines.examine(**{**everything(machines), "timeout_s": 10})
    place, check, text = outcome.the_red()
    assert (place, check) == ("stopped", "answer")
    assert "did not answer within 10 s" in text


@pytest.mark.slow
def test_a_node_whose_clock_is_ahead_is_red(machines, package, tmp_path):
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime, from Debian's package faketime")
    # with it Python's own sleep fails, with EINVAL
    (tmp_path / "sitecustomize.py").write_text(
        "import select, time; time.sleep = lambda seconds: select.select([], [], [], seconds)"
    )
    fake = {
        "LD_PRELOAD": str(library),
        "FAKETIME": "+90s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": f"{tmp_path}:{package}",
    }
    with another(machines, "early", **fake):
        outcome = machines.examine(**everything(machines))
    place, check, text = outcome.the_red()
    assert (place, check) == ("early", "clock")
    seconds, words = text.split(" s ", 1)
    assert words == "ahead of the driver's; locks and leases compare clocks"
    assert float(seconds) == pytest.approx(90, abs=2)


@pytest.mark.slow
@needs_mounts
def test_a_node_whose_disk_is_full_is_red(machines, tmp_path):
    wrap = behind(f"mount -t tmpfs -o size=50m tmpfs {tmp_path}")
    with another(machines, "full", wrap=wrap, ABLATE_CACHE=str(tmp_path / "cache")):
        outcome = machines.examine(**everything(machines))
    place, check, text = outcome.the_red()
    assert (place, check) == ("full", "disk")
    assert text == f"cache in {tmp_path / 'cache'} has 0.05 GB free, less than 2"


@pytest.mark.slow
@needs_mounts
def test_a_node_with_the_shared_memory_of_a_container_is_red(machines):
    with another(machines, "container", wrap=behind("mount -t tmpfs -o size=64m tmpfs /dev/shm")):
        outcome = machines.examine(**everything(machines))
    assert outcome.the_red() == ("container", "shared memory", "/dev/shm has 67 MB, less than 512")


@pytest.mark.slow
@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU here")
def test_a_node_that_promises_a_gpu_that_torch_does_not_see_is_red(machines):
    with another(machines, "boaster", "--num-gpus=1", "--num-cpus=2"):
        outcome = machines.examine(**everything(machines), cpus_per_stage=1)
    place, check, text = outcome.the_red()
    assert (place, check) == ("boaster", "GPUs")
    assert text.startswith("Ray counts 1, torch ")
    assert text.endswith("sees 0")
    assert "its CPUs only 2 with --cpus-per-stage 1" in outcome.text


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_red(package, tmp_path):
    found = Machines(package, tmp_path, mode="disabled")
    try:
        outcome = found.examine(timeout_s=40)
    finally:
        found.shutdown()
    place, check, text = outcome.the_red()
    assert (place, check) == ("head", "tokens")
    assert "no token is asked for" in text
    assert "raylet, object manager, GCS" in text


class Networks:
    """Network namespaces: one for the head, and one for each of two nodes that it does not forward between."""

    def __init__(self):
        self.holders = [subprocess.Popen(["unshare", "--net", "sleep", "600"]) for _ in range(3)]
        own = Path("/proc/self/ns/net").readlink()
        for holder in self.holders:
            wait_until(lambda pid=holder.pid: Path(f"/proc/{pid}/ns/net").readlink() != own, 10)
        self.run(0, "ip link set lo up")
        self.run(0, "ip addr add 10.78.0.1/32 dev lo")
        for number in (1, 2):
            pid = self.holders[number].pid
            self.run(0, f"ip link add v{number} type veth peer name eth0 netns {pid}")
            self.run(0, f"ip addr add 10.78.{number}.1/24 dev v{number}")
            self.run(0, f"ip link set v{number} up")
            self.run(number, "ip link set lo up")
            self.run(number, f"ip addr add 10.78.{number}.2/24 dev eth0")
            self.run(number, "ip link set eth0 up")
            self.run(number, f"ip route add default via 10.78.{number}.1")

    def within(self, number):
        return ("nsenter", f"--net=/proc/{self.holders[number].pid}/ns/net")

    def run(self, number, command):
        subprocess.run([*self.within(number), *command.split()], check=True)

    def close(self):
        for holder in self.holders:
            holder.kill()
            holder.wait()


@pytest.mark.slow
@needs_mounts
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_nodes_that_do_not_reach_each_other_are_red(package, tmp_path):
    networks = Networks()
    try:
        found = Machines(package, tmp_path, wrap=networks.within(0), host="10.78.0.1")
        try:
            for number in (1, 2):
                found.add(f"w{number}", f"--node-ip-address=10.78.{number}.2", wrap=networks.within(number))
            outcome = found.examine(timeout_s=40)
            elsewhere = growable(found, wrap=networks.within(1))  # a driver that must ask the head
        finally:
            found.shutdown()
    finally:
        networks.close()
    assert elsewhere[1] == "[]"
    red = outcome.red()
    assert {check for _, check, _ in red} == {"ports"}
    assert len(red) == 4
    for here, there in ((1, 2), (2, 1)):
        said = [text for place, _, text in red if place == f"w{here}"]
        for what, text in zip(("raylet", "object manager"), said, strict=True):
            assert f"the {what} of w{there} at 10.78.{there}.2:" in text
        assert all("timed out" in text or "No route to host" in text for text in said)


# --- what a cluster may grow

GROWABLE = """
import sys
from ablate.running.ray_tune import connected
from ablate.running.ray_tune.nodes import growable_nodes, present_nodes

def tell(*groups):
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
    config = ClusterConfig(node_group_configs=[NodeGroupConfig(**group) for group in groups])
    global_worker.gcs_client.report_cluster_config(config.SerializeToString())

with connected(sys.argv[1]):
    if len(sys.argv) > 2:
        tell({"name": "told", "resources": {"CPU": 16, "GPU": 2, "accelerator_type:L4": 1}, "max_count": 5})
    types = growable_nodes()
    if len(sys.argv) > 2:
        tell()
    print([(node.name, str(node.shape)) for node in present_nodes()])
    print(types if types is None else [(kind.name, str(kind.shape), kind.max_count) for kind in types])
"""


def growable(machines, *arguments, wrap=()):
    """Return what a driver is told of the nodes that are there, and of the types that may come."""
    done = subprocess.run(
        [*wrap, sys.executable, "-c", GROWABLE, machines.address, *arguments],
        env=machines.environment,
        cwd=machines.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def autoscaling_config(path, provider):
    """Write a cluster whose provider makes processes of this machine into nodes."""
    lists = "initialization_commands setup_commands head_setup_commands worker_setup_commands head_start_ray_commands"
    empty = [*lists.split(), "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"]
    common = {"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True}
    content = {
        "cluster_name": "fake",
        "max_workers": 4,
        "provider": {**provider, **common, "launch_multiple": True},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu-worker": {
                "resources": {"CPU": 8, "GPU": 1, "accelerator_type:H100": 1, "object_store_memory": 80000000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 8,
            },
        },
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in empty},
        "file_mounts_sync_continuously": False,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_cluster_that_nothing_grows_says_so_and_one_that_is_told_names_its_types(machines):
    assert growable(machines) == ["[('head', '(1 CPU)'), ('worker', '(1 CPU)')]", "[]"]
    assert growable(machines, "told")[1] == "[('told', '(16 CPU, 2 GPU L4)', 5)]"


FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "provider"),
    [("0", {"type": "fake_multinode"}), ("1", {"type": "external", "module": FAKE})],
    ids=["v1", "v2"],
)
def test_the_types_of_an_autoscaler_are_those_of_its_file(package, tmp_path, version, provider):
    file = autoscaling_config(tmp_path / "cluster.yaml", provider)
    environment = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": version}
    found = Machines(package, tmp_path, head=(f"--autoscaling-config={file}",), **environment)
    try:
        types = growable(found)[1]
    finally:
        found.shutdown()
    assert types == "[('ray.head.default', '(1 CPU)', 0), ('gpu-worker', '(8 CPU, 1 GPU H100)', 4)]"


@pytest.mark.slow
def test_what_an_autoscaler_outside_the_head_may_grow_is_not_guessed(package, tmp_path):
    found = Machines(package, tmp_path, head=("--no-monitor",))  # as KubeRay starts it
    try:
        assert growable(found)[1] == "None"
        outcome = found.examine(timeout_s=40)
    finally:
        found.shutdown()
    assert "what it may grow cannot be known from here" in outcome.text
    assert outcome.exit_code == 0


# --- this machine alone, and what is refused


def test_this_machine_is_examined_without_ray(package, tmp_path):
    write_dataset(tmp_path / "data" / "mine")
    environment = {**os.environ, "PYTHONPATH": str(package), "ABLATE_CACHE": str(tmp_path / "cache")}
    arguments = {"out": str(tmp_path / "run"), "data": str(tmp_path / "data")}
    outcome = examine(arguments, environment, tmp_path)
    assert outcome.red() == []
    assert "without Ray" in outcome.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    (tmp_path / "data" / "mine" / "images" / "0.png").unlink()
    (tmp_path / "run").write_text("a file")
    outcome = examine(arguments, environment, tmp_path)
    assert [check for _, check, _ in outcome.red()] == ["store", "data", "store"]


def test_an_address_at_which_nothing_answers_is_refused(package, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(package)}
    with pytest.raises(AssertionError, match=r"InputError: --address 127.0.0.1:\d+: no Ray cluster answers there"):
        examine({"address": f"127.0.0.1:{free_port()}"}, environment, tmp_path)


def test_a_driver_without_the_token_is_told(machines):
    environment = {**machines.environment, "RAY_AUTH_MODE": "disabled"}
    with pytest.raises(AssertionError, match=r"InputError: .* the cluster asks for a token, and this process has none"):
        examine({"address": machines.address}, environment, machines.folder)


def test_a_store_that_ignores_conditions_is_red_and_one_that_honours_them_is_not(package, s3_address, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(package)}
    outcome = examine({"out": s3_address}, environment, tmp_path)
    assert outcome.red() == []
    assert "conditional writes keep a second driver off a run" in outcome.text
    server = s3_address.partition("endpoint_override=http://")[2]
    host, _, port = server.rpartition(":")
    proxy = Proxy((host, int(port)), without_conditions)
    outcome = examine({"out": s3_address.replace(server, f"127.0.0.1:{proxy.port}")}, environment, tmp_path)
    proxy.down()
    place, check, text = outcome.the_red()
    assert (place, check) == ("", "locks")
    assert "the server ignores the condition" in text
