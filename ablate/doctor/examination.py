"""The examination before a run, of every node of a cluster or of this machine alone."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.doctor.judging import judge, judge_clock, judge_doors, judge_own_data
from ablate.doctor.looking import look
from ablate.doctor.report import Finding, Level, Report
from ablate.errors import InputError
from ablate.schedule.fitting import FINETUNE_GPUS, PRETRAIN_GPUS, Shape, shapes_of, sharing_lines, stock
from ablate.store import Store, StoreTrouble
from ablate.store.lock_file import condition_problem
from ablate.words import counted

if TYPE_CHECKING:
    from ablate.running.ray_tune.nodes import Member

REACH_S = 5.0
"""A port that has not answered by then is not reached."""


def examine(
    address: str | None = None,
    out: str | None = None,
    data: str | None = None,
    *,
    cpus_per_stage: float = 1,
    timeout_s: float = 60.0,
    look_s: float = 600.0,
    conditions: Callable[[Store], str | None] = condition_problem,
) -> Report:
    """Examine every node of the cluster at `address`, or this machine alone.

    Args:
        address: of a running Ray cluster; None for this machine, without Ray.
        out: of a run's store, which every node must be able to write; None to leave it out.
        data: the folder or address of the data sets; None for `ABLATE_DATA`, else `./data`, where there is one.
        cpus_per_stage: what a run will be given, to tell whether CPUs keep stages from sharing GPUs.
        timeout_s: a node that has not answered by then is red.
        look_s: a node whose examination has not ended by then is red.
        conditions: says why a store cannot keep two drivers apart; None if it can.

    Raises:
        InputError: nothing answers at `address`, or an argument cannot be used.
    """
    found: list[tuple[str, Finding]] = []
    data, names, about_data = _data_sets(data)
    found += [("", finding) for finding in about_data]
    with _marked(out, conditions) as (store_address, marker, about_store):
        question: dict[str, Any] = {
            "out": store_address,
            "marker": marker,
            "data": data,
            "names": names,
            "gpus": None,
            "targets": [],
            "reach_s": REACH_S,
        }
        if address is None:
            facts = look(question)
            title = f"this machine ({socket.gethostname()}), without Ray"
            places: tuple[str, ...] = ("this machine",)
            found += [(places[0], finding) for finding in (*judge(facts, facts, None), *judge_own_data(facts["data"]))]
        else:
            title, places, nodes_found = _examine_cluster(
                address, question, timeout_s=timeout_s, look_s=look_s, cpus_per_stage=cpus_per_stage
            )
            found += nodes_found
        found += [("", finding) for finding in about_store]
    return Report(title, places, tuple(found))


def _examine_cluster(
    address: str, question: dict[str, Any], *, timeout_s: float, look_s: float, cpus_per_stage: float
) -> tuple[str, tuple[str, ...], list[tuple[str, Finding]]]:
    from ablate.running.ray_tune import connected
    from ablate.running.ray_tune.nodes import gcs_address, growable_nodes, knock, members, visit_nodes

    if ":" in address and os.environ.get("RAY_AUTH_MODE") != "token" and knock(address) == "token":
        raise InputError(
            f"--address {address}: the cluster asks for a token, and this process has none; set RAY_AUTH_MODE=token "
            "and put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    # beside the nodes: looking at the driver's data may take long
    with connected(address), ThreadPoolExecutor(1) as pool:
        ours = pool.submit(look, question)
        nodes = members()
        head, port = gcs_address()
        visits = visit_nodes(
            look,
            {node.node_id: ({**question, **_about(node, nodes, head, port)},) for node in nodes},
            answer_s=timeout_s,
            work_s=look_s,
        )
        growable = growable_nodes()
        is_open = knock(f"{head}:{port}") == "open"
        driver = ours.result()
    present = [node.node for node in nodes]
    found: list[tuple[str, Finding]] = []
    doors: dict[str, tuple[bool, list[str]]] = {}
    for node in nodes:
        visit = visits[node.node_id]
        if visit.error is not None:
            cure = "look at its raylet, or take it out of the cluster"
            found.append((node.name, Finding("answer", "red", visit.error, cure)))
        if visit.skew_s is not None:
            found.append((node.name, judge_clock(visit.skew_s, visit.round_trip_s)))
        if visit.result is not None:
            found += [(node.name, finding) for finding in judge(visit.result, driver, node.node.shape)]
        if visit.asks_token is not None:
            ports = {**node.ports, "GCS": port} if node.is_head else node.ports
            doors[node.name] = (visit.asks_token, [what for what, number in ports.items() if number in visit.wide])
    found += [("", finding) for finding in judge_own_data(driver["data"])]
    found += judge_doors(doors, is_open=is_open)
    found += [("", finding) for finding in _sharing(shapes_of(present, growable), cpus_per_stage)]
    title = f"the cluster at {address}: {counted(len(nodes), 'node')}, {stock(present, growable)}"
    return title, tuple(node.name for node in nodes), found


def _about(node: Member, nodes: Sequence[Member], head: str, gcs_port: int) -> dict[str, Any]:
    """Return what is asked of one node alone: how many GPUs it should see, and what it should reach."""
    others = [
        (f"{what} of {other.name}", other.host, port)
        for other in nodes
        if other.node_id != node.node_id
        for what, port in other.ports.items()
    ]
    return {"gpus": node.node.shape.gpus, "targets": [*others, ("GCS", head, gcs_port)]}


def _sharing(shapes: Iterable[Shape], cpus_per_stage: float) -> Iterator[Finding]:
    shapes = [shape for shape in shapes if shape.gpus]
    lines = sharing_lines(
        shapes, gpus_pretrain=PRETRAIN_GPUS, gpus_finetune=FINETUNE_GPUS, cpus_per_stage=cpus_per_stage
    )
    for line in lines:
        yield Finding("sharing", "note", line)
    if shapes and not lines:
        yield Finding("sharing", "ok", f"{1 / FINETUNE_GPUS:g} fine-tunings share each GPU")


def _data_sets(data: str | None) -> tuple[str | None, list[str], list[Finding]]:
    """Return where the data are, as every node is asked for them, and the data sets that are there."""
    from ablate.datasets import data_folder, dataset_names
    from ablate.datasets.source import place_of
    from ablate.store.addresses import absolute

    level: Level
    where = data_folder(data)
    if isinstance(where, Path) and not where.is_dir():
        level = "note" if data is None else "red"
        cure = "--data names another" if data is None else "give --data the folder that holds the data sets"
        return None, [], [Finding("data", level, f"{where}: folder not found; only synthetic is there", cure)]
    place = place_of(where)
    names = [name for name in dataset_names(where) if name != "synthetic" and place.has_folder(name)]
    if names:
        return absolute(where), names, []
    level, cure = ("note", "") if data is None else ("red", "give --data the folder above the data sets' own folders")
    return (
        absolute(where),
        [],
        [Finding("data", level, f"no data sets in {place.label}; only synthetic is there", cure)],
    )


@contextmanager
def _marked(
    out: str | None, conditions: Callable[[Store], str | None]
) -> Iterator[tuple[str | None, str, list[Finding]]]:
    """Open the store and leave a file there for the nodes to see; nothing is left afterwards that was not there before.

    Yields the store's address, the file's name, and what the driver itself finds, also of conditional writes.
    """
    marker = f".doctor.{uuid.uuid4().hex}.tmp"
    if out is None:
        yield None, marker, [Finding("store", "note", "not examined; --out names it")]
        return
    place = Store.connect(out)
    folder = Path(place.root)
    missing = [part for part in (folder, *folder.parents) if not part.exists()] if place.is_local else []
    found: list[Finding] = []
    store = None
    try:
        store = Store.open(out, patience_s=10.0)
        store.put(marker, b"", durable=False)
    except (InputError, StoreTrouble) as error:
        found.append(Finding("store", "red", f"the driver: {error}"))
    try:
        if store is not None:
            problem = None if store.is_local else conditions(store)
            if problem is not None:
                cure = "be sure to start no second driver on a run, or use a server with conditional writes"
                found.append(Finding("locks", "red", f"two drivers cannot be kept apart: {problem}", cure))
            else:
                how = "file locks" if store.is_local else "conditional writes"
                found.append(Finding("locks", "ok", f"{how} keep a second driver off a run"))
        yield place.address, marker, found
    finally:
        if store is not None:
            with suppress(OSError, StoreTrouble):
                store.delete(marker)
        for part in missing:
            with suppress(OSError):
                part.rmdir()
