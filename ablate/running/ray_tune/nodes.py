"""The nodes of the connected cluster: what they have, what may come, and work that is done on every one of them.

What runs on a node is shipped by value, so that it also runs where Python finds another ablate, or none.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablate.schedule.fitting import Growable, Node, NodeType, Shape

CLOCK_READINGS = 3
"""Of a node's clock; the one with the shortest round trip counts."""

Door: TypeAlias = Literal["open", "token", "shut"]
"""What a stranger without a token finds at a cluster's address: let in, asked for a token, or anything else."""


@dataclass(frozen=True)
class Member:
    """A node of the cluster, and where it listens."""

    node_id: str
    name: str  # distinct within the cluster
    host: str
    resources: Mapping[str, float]
    ports: Mapping[str, int]  # by what listens there
    is_head: bool

    @property
    def node(self) -> Node:
        """The node as `ablate.schedule.fitting` sees it."""
        return Node(self.name, self.host, Shape.of(self.resources))


@dataclass(frozen=True)
class Visit:
    """What became of work on a node."""

    result: Any = None
    error: str | None = None  # why there is no result
    skew_s: float | None = None  # by how much the node's clock is ahead of the driver's
    round_trip_s: float = 0.0  # of the reading of the clock
    asks_token: bool | None = None  # whether Ray asks for a token there
    wide: tuple[int, ...] = ()  # ports on which the node listens beyond itself


# --- what is there, and what may come ---------------------------------------------------------------


def members() -> list[Member]:
    """Return the nodes that are alive, the head first."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = [node["NodeName"] or node["NodeManagerAddress"] for node in alive]
    found = [
        Member(
            node["NodeID"],
            name if names.count(name) == 1 else f"{name} ({node['NodeID'][:6]})",
            node["NodeManagerAddress"],
            dict(node["Resources"]),
            {"raylet": node["NodeManagerPort"], "object manager": node["ObjectManagerPort"]},
            "node:__internal_head__" in node["Resources"],
        )
        for node, name in zip(alive, names, strict=True)
    ]
    return sorted(found, key=lambda member: (not member.is_head, member.name))


def present_nodes() -> list[Node]:
    """Return the nodes that are alive."""
    return [member.node for member in members()]


def gcs_address() -> tuple[str, int]:
    """Return host and port of the cluster's control service, to which every node talks."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def growable_nodes() -> Growable:
    """Return the types of node that the cluster may grow: none where nothing grows it, None where that is unknown.

    An autoscaler may have told the cluster. Ray's own does not, neither its first nor its second version: its process
    on the head node names the file that it follows. KubeRay's runs in a container of its own, and follows a resource
    of Kubernetes; there, and where a type's resources are not written down, what may come stays unknown.
    """
    told = ray._private.state.state.get_cluster_config()
    if told is not None and told.node_group_configs:
        most = sys.maxsize  # -1: without limit
        return [
            NodeType(group.name, Shape.of(dict(group.resources)), most if group.max_count < 0 else group.max_count)
            for group in told.node_group_configs
        ]
    head = next((member for member in members() if member.is_head), None)
    if head is None:
        return None
    port = gcs_address()[1]
    if ray.get_runtime_context().get_node_id() == head.node_id:
        return _types_of(_autoscaler_config(port))
    visit = visit_nodes(_autoscaler_config, {head.node_id: (port,)}, answer_s=30, work_s=30)[head.node_id]
    return _types_of(visit.result)


def _autoscaler_config(gcs_port: int) -> dict[str, Any] | None:
    """Return what the cluster's autoscaler on this node follows; {} if it may start nothing, None if unknown."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended in the meantime
            continue
        script = any(word.endswith(("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")) for word in words)
        options = dict(word.partition("=")[::2] for word in words)
        if not script or options.get("--gcs-address", "").rpartition(":")[2] != str(gcs_port):
            continue
        file = options.get("--autoscaling-config")
        if not file:
            return {}
        import yaml

        try:
            content = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None
        return content if isinstance(content, dict) else None
    return None


def _types_of(config: dict[str, Any] | None) -> Growable:
    """Return the types of node in the autoscaler's configuration."""
    if not config:
        return None if config is None else ()
    total = int(config.get("max_workers", 2))
    head, found = config.get("head_node_type"), []
    for name, kind in config.get("available_node_types", {}).items():
        most = min(total, int(kind.get("max_workers", 0 if name == head else total)))
        if most > 0 and not kind.get("resources"):
            return None  # the provider would look them up
        found.append(NodeType(name, Shape.of(kind.get("resources") or {}), most))
    return found


# --- work on every node -----------------------------------------------------------------------------


def visit_nodes(
    work: Callable[..., Any], arguments: Mapping[str, Sequence[Any]], *, answer_s: float, work_s: float
) -> dict[str, Visit]:
    """Call `work` on nodes, at the same time on all, and read their clocks; what goes wrong on one is in its visit.

    Args:
        work: a function of a module; it and the functions of its module that it calls are shipped by value. It takes
            and returns plain values.
        arguments: what it is called with, by the node's id.
        answer_s: a node that has not started to answer by then is given up.
        work_s: work that has not ended by then is given up.
    """
    visits: dict[str, Visit] = {}
    with _by_value(work, visit_nodes):
        workers = {node_id: _worker_on(node_id) for node_id in arguments}
        try:
            started = {worker.doors.remote(): node_id for node_id, worker in workers.items()}
            silent = f"it did not answer within {answer_s:g} s"
            for node_id, answer in _collect(started, answer_s, silent).items():
                try:
                    visits[node_id] = answer if answer.error else _greet(workers[node_id], answer.result, answer_s)
                except RayError as error:
                    visits[node_id] = Visit(error=_words(error))
            begun = {
                workers[node_id].work.remote(work, *arguments[node_id]): node_id
                for node_id, visit in visits.items()
                if visit.error is None
            }
            late = f"it did not end its examination within {work_s:g} s; a network folder that hangs is the usual cause"
            for node_id, done in _collect(begun, work_s, late).items():
                visits[node_id] = replace(visits[node_id], result=done.result, error=done.error)
        finally:
            for worker in workers.values():
                ray.kill(worker)
    return visits


def _worker_on(node_id: str) -> Any:
    class Visitor:  # a class inside a function travels by value
        def clock(self) -> float:
            return time.time()

        def doors(self) -> tuple[bool, tuple[int, ...]]:
            return _asks_token(), _wide_ports()

        def work(self, function: Callable[..., Any], *arguments: Any) -> Any:
            return function(*arguments)

    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(Visitor).options(num_cpus=0, max_restarts=0, scheduling_strategy=strategy).remote()


def _asks_token() -> bool:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def _wide_ports() -> tuple[int, ...]:
    """Return the ports on which somebody listens on more than this machine's loopback (Linux; elsewhere none)."""
    wide = set()
    for file, kind in (("/proc/net/tcp", "=I"), ("/proc/net/tcp6", "=4I")):
        with suppress(OSError):
            for line in Path(file).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                digits, port = local.split(":")
                words = struct.pack(kind, *(int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)))
                host = ipaddress.ip_address(words)
                host = getattr(host, "ipv4_mapped", None) or host
                if state == "0A" and not host.is_loopback:  # it listens
                    wide.add(int(port, 16))
    return tuple(sorted(wide))


def _collect(references: Mapping[Any, str], seconds: float, late: str) -> dict[str, Visit]:
    """Return what remote calls gave, by node; `late` is the error of those that took too long."""
    ready, _ = ray.wait(list(references), num_returns=len(references), timeout=seconds) if references else ([], [])
    visits = {}
    for reference, node_id in references.items():
        if reference not in ready:
            visits[node_id] = Visit(error=late)
            continue
        try:
            visits[node_id] = Visit(ray.get(reference))
        except RayError as error:
            visits[node_id] = Visit(error=_words(error))
    return visits


def _greet(worker: Any, doors: tuple[bool, tuple[int, ...]], seconds: float) -> Visit:
    """Compare a node's clock with this machine's, half a round trip after asking, and note its doors."""
    readings = []
    for _ in range(CLOCK_READINGS):
        wall, begin = time.time(), time.monotonic()
        there = ray.get(worker.clock.remote(), timeout=seconds)
        round_trip_s = time.monotonic() - begin
        readings.append((round_trip_s, there - (wall + round_trip_s / 2)))
    round_trip_s, skew_s = min(readings)
    asks_token, wide = doors
    return Visit(skew_s=skew_s, round_trip_s=round_trip_s, asks_token=asks_token, wide=wide)


@contextmanager
def _by_value(*functions: Callable[..., Any]) -> Iterator[None]:
    """Ship what is in the modules of some functions by value instead of by name."""
    modules = {function.__module__: sys.modules[function.__module__] for function in functions}
    for module in modules.values():
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules.values():
            cloudpickle.unregister_pickle_by_value(module)


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__


# --- who is let in ----------------------------------------------------------------------------------

_KNOCK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_exists(b"session_name", b"session", 10)
except AuthenticationError:
    sys.exit(10)
"""


def knock(address: str, *, timeout_s: float = 30.0) -> Door:
    """Return what somebody without a token finds at a cluster's `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError, ValueError):
        return "shut"
    try:
        code = subprocess.run(
            [sys.executable, "-c", _KNOCK, address],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            timeout=timeout_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return "shut"
    return "open" if code == 0 else "token" if code == 10 else "shut"
