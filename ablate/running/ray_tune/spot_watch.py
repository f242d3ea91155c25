"""The watch over a cluster's spot machines: one that its cloud takes back is drained, so that Ray moves its work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablate.running.spot import POLL_S, Notice, cloud_of_this_machine, wait_for_notice
from ablate.words import one_line

NODES_S = 10.0
"""The cluster is searched for nodes that need a watch this often."""


class SpotWatch:
    """Drains every node of the connected cluster that its cloud takes back, for the time of the context.

    The driver's own machine and the head of the cluster cannot be drained usefully, for the run ends with
    them: their notice goes to `on_own_notice`, once, in the thread of the watch. On every other node a task
    without resources waits for the notice while the node has work; a node without work has nothing to save,
    and a watch on it would look like work to the autoscaler and keep the machine for ever.

    Nothing that goes wrong in here reaches the run; the first failure is told.
    """

    def __init__(
        self, on_own_notice: Callable[[Notice], None], tell: Callable[[str], None], *, nodes_s: float = NODES_S
    ) -> None:
        self._on_own_notice, self._tell, self._nodes_s = on_own_notice, tell, nodes_s
        self._cloud = cloud_of_this_machine()
        self._nodes: dict[str, dict[str, Any]] = {}  # alive, by id, without the driver's own
        self._watches: dict[str, Any] = {}  # node -> the reference to its notice
        self._settled: set[str] = set()  # nodes that are in no cloud, or whose notice has been seen
        self._at_work: set[str] = set()
        self._next_search = 0.0
        self._stopping = self._told = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spot-watch", daemon=True)

    def __enter__(self) -> SpotWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        for node in list(self._watches):
            self._end(node)

    def _run(self) -> None:
        while not self._over.is_set():
            for step in (self._look_here, self._collect, self._search):
                try:
                    step()
                except Exception as error:  # the run must not end because its watch does
                    if not self._told:
                        self._tell(f"warning: spot notices may be missed: {one_line(error)}")
                    self._told = True
            self._over.wait(POLL_S)

    def _look_here(self) -> None:
        """Ask for a notice to the driver's own machine."""
        if self._cloud is not None and not self._stopping and (notice := self._cloud.look()) is not None:
            self._stop(notice)

    def _collect(self) -> None:
        """Act on the notices that have come."""
        for node, watch in list(self._watches.items()):
            if not ray.wait([watch], timeout=0)[0]:
                continue
            del self._watches[node]
            try:
                notice = ray.get(watch)
            except RayTaskError:
                raise
            except RayError:
                continue  # lost with its worker or node; if that is still there, it gets another
            self._settled.add(node)
            if notice is not None and self._is_head(node):
                self._stop(notice)
            elif notice is not None:
                self._drain(node, notice)

    def _search(self) -> None:
        """Give a watch to every node that has work and none yet, and take it from those without work."""
        if time.monotonic() < self._next_search:
            return
        self._next_search = time.monotonic() + self._nodes_s
        own = ray.get_runtime_context().get_node_id()
        self._nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own}
        free = available_resources_per_node()
        before, self._at_work = (
            self._at_work,
            {node for node in self._nodes if self._has_work(node, free.get(node, {}))},
        )
        heads = {node for node in self._nodes if self._is_head(node)}
        # Also those at work one search ago: a pause between two stages is not the end of the work.
        wanted = (self._at_work | before | heads) & self._nodes.keys()
        self._settled &= self._nodes.keys()
        for node in self._watches.keys() - wanted:
            self._end(node)
        for node in wanted - self._settled - self._watches.keys():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(wait_for_notice)
            self._watches[node] = task.remote()

    def _has_work(self, node: str, free: dict[str, float]) -> bool:
        total = self._nodes[node]["Resources"]
        return bool(free) and any(free.get(name, 0) < total.get(name, 0) for name in ("CPU", "GPU"))

    def _is_head(self, node: str) -> bool:
        return node in self._nodes and "node:__internal_head__" in self._nodes[node]["Resources"]

    def _stop(self, notice: Notice) -> None:
        if not self._stopping:
            self._stopping = True
            self._on_own_notice(notice)

    def _drain(self, node: str, notice: Notice) -> None:
        """Tell Ray that the node goes, and when, as `ray drain-node` does: nothing more is started on it."""
        message = f"{notice.cloud} takes the machine back ({notice.action})"
        deadline_ms = int(notice.deadline.timestamp() * 1000)
        client = ray._private.worker.global_worker.gcs_client
        accepted, reason = client.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, message, deadline_ms)
        address = self._nodes.get(node, {}).get("NodeManagerAddress", node)
        self._tell(
            f"node {address}: {message} at {notice.deadline:%H:%M:%S} UTC; "
            + ("nothing more starts there" if accepted else f"Ray did not accept to drain it: {reason}")
        )

    def _end(self, node: str) -> None:
        with suppress(Exception):  # it ends with the driver at the latest
            ray.cancel(self._watches.pop(node), force=True)
