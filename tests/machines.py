"""A Ray cluster of several nodes on this machine, whose workers and nodes can be taken away."""

import contextlib
import os
import signal
import subprocess
import sys
import time

from runs import descendants, workers_at_work


class Machines:
    """A Ray cluster of processes on this machine: a head without CPUs, and two nodes with one each."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "_system_config": quick, "include_dashboard": False},
        )
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.address = self.cluster.address

    def workers(self):
        """Return the pids of workers that run a stage, or are about to."""
        return workers_at_work(os.getpid())

    def kill_node(self, number):
        """Kill every process of a node, and add a new one in its place."""
        node = self.nodes.pop(number)
        raylets = [info.process.pid for info in node.all_processes["raylet"]]
        below = [pid for raylet in raylets for pid in descendants(raylet)]
        for pid in [*raylets, *below]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def drain_node(self, number, seconds):
        """Announce that a node goes away, wait until nothing runs on it or the time is up, and kill it."""
        node = self.nodes[number]
        command = ["drain-node", "--address", self.address, "--node-id", node.node_id]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                *command,
                *reason,
                "--deadline-remaining-seconds",
                f"{seconds}",
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.workers_of(number):
            time.sleep(0.2)
        self.kill_node(number)

    def workers_of(self, number):
        """Return the pids of a node's workers that run a stage, or are about to."""
        raylets = [info.process.pid for info in self.nodes[number].all_processes["raylet"]]
        return [pid for raylet in raylets for pid in workers_at_work(raylet)]

    def terminate_worker(self, number):
        """Send SIGTERM to a node's worker, as a queue does before it kills; return whether there was one."""
        for pid in self.workers_of(number):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                return True
        return False

    def shutdown(self):
        self.cluster.shutdown()
