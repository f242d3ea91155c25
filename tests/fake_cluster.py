"""A Ray cluster on this machine that starts with a head alone and grows by Ray's autoscaler; run it to watch one."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def free_ports(count):
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def configuration(gcs_address, *, max_nodes, cpus, gpus, idle_s, store_bytes):
    """Return what the autoscaler follows: nodes that are processes on this machine, with GPUs that do not exist."""
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": max_nodes,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": gcs_address,
            "use_node_id_as_ip": True,
            "launch_multiple": True,  # one node a round else, and the others never
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},  # the provider's name
            "worker": {
                "resources": {"CPU": cpus, "GPU": gpus, "object_store_memory": store_bytes},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{f"{name}_commands": [] for name in lists},
    }


@dataclass(frozen=True)
class Sample:
    """What the autoscaler knows at one moment."""

    at: float  # seconds since 1970
    nodes: int  # workers that are alive
    groups: tuple[float, ...]  # GPUs of each placement group that waits
    tasks: int  # tasks and actors that wait for a node, beside those
    busy: int  # workers with a GPU of which something is taken


class FakeCluster:
    """A head without resources, and up to `max_nodes` workers that the autoscaler starts; for a `with` statement.

    With `sold_out` none of them ever comes, as where a cloud has no machine left.
    """

    def __init__(self, *, max_nodes, cpus=8, gpus=1, idle_s=15, sold_out=False):
        port, client, agent = free_ports(3)
        host = subprocess.run(
            [sys.executable, "-c", "import ray; print(ray.util.get_node_ip_address())"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        self.address = f"{host}:{port}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.samples = []
        self._processes = []
        self._folder = tempfile.TemporaryDirectory(prefix="fake-", ignore_cleanup_errors=True)  # short: sockets below
        file = Path(self._folder.name, "cluster.yaml")
        store_bytes = 1 if sold_out else 80_000_000  # no node starts with so little
        content = configuration(
            self.address, max_nodes=max_nodes, cpus=cpus, gpus=gpus, idle_s=idle_s, store_bytes=store_bytes
        )
        file.write_text(yaml.safe_dump(content))
        self._command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", host, "--port", port, "--ray-client-server-port", client),
            *("--dashboard-agent-listen-port", agent, "--include-dashboard", "false", "--num-cpus", 0, "--num-gpus", 0),
            *("--temp-dir", self._folder.name, "--autoscaling-config", file, "--object-store-memory", 80_000_000),
            "--disable-usage-stats",
        ]

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        from runs import wait_until  # here, for it loads much that the process which watches does without

        environment = {**os.environ, **self.environment, "RAY_FAKE_CLUSTER": "1", "PYTHONWARNINGS": "ignore"}
        self._log = Path(self._folder.name, "head.log").open("wb")  # noqa: SIM115
        head = subprocess.Popen(
            [str(word) for word in self._command], stdout=self._log, stderr=subprocess.STDOUT, env=environment
        )
        self._processes.append(head)
        wait_until(lambda: b"--block" in Path(self._log.name).read_bytes() or head.poll() is not None, 60)
        assert head.poll() is None, Path(self._log.name).read_text()
        eyes = subprocess.Popen(
            [sys.executable, __file__, self.address], stdout=subprocess.PIPE, text=True, env=environment
        )
        self._processes.append(eyes)
        threading.Thread(target=self._watch, args=(eyes.stdout,), daemon=True).start()
        wait_until(lambda: self.samples, 60)

    def _watch(self, lines):
        with lines:
            for line in lines:
                fields = json.loads(line)
                self.samples.append(Sample(**{**fields, "groups": tuple(fields["groups"])}))

    def __exit__(self, *exception):
        from runs import descendants

        for process in reversed(self._processes):
            for pid in [process.pid, *descendants(process.pid)]:  # the whole tree, before a part of it is orphaned
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        self._log.close()
        self._folder.cleanup()


def watch(address, every_s=0.25):
    """Print a sample as JSON again and again, until the reader is gone."""
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    def has_place(request):
        """Whether it only waits for its worker, in a placement group that has its node."""
        return any(name.startswith("bundle_group_") for name in request.resources_bundle)

    client = GcsClient(address)
    while True:
        state = get_cluster_resource_state(client)
        gangs = [
            gang.requests or gang.bundle_selectors[0].resource_requests for gang in state.pending_gang_resource_requests
        ]
        groups = [request.resources_bundle.get("GPU", 0.0) for requests in gangs for request in requests]
        alive = [node for node in state.node_states if node.status != NodeStatus.DEAD]
        workers = [node for node in alive if node.total_resources.get("GPU", 0) > 0]
        sample = {
            "at": time.time(),
            "nodes": len(workers),
            "groups": groups,
            "tasks": sum(one.count for one in state.pending_resource_requests if not has_place(one.request)),
            "busy": sum(node.available_resources.get("GPU", 0) < node.total_resources["GPU"] for node in workers),
        }
        print(json.dumps(sample), flush=True)
        time.sleep(every_s)


if __name__ == "__main__":
    watch(sys.argv[1])
