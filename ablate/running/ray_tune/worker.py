"""What a worker of the cluster does: it performs one stage after the other."""

from __future__ import annotations

import functools
import math
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import ray
from ray import tune
from ray.tune.trainable.function_trainable import wrap_function

from ablate import tables
from ablate.running.resources import Resources
from ablate.space import TrialSpec
from ablate.stage.attempt import cause_of
from ablate.stage.rows import clear_leftovers, is_finished
from ablate.stage.settings import Settings, StageResult
from ablate.stage.task import Task, data_in, stage_of
from ablate.stage.trial import perform
from ablate.store import LockLost, Store, StoreTrouble
from ablate.store.fence import Fence
from ablate.store.stopping import StopWatch, stop_reason
from ablate.training import Progress

REPORT_SECONDS = 1.0
"""A stage tells the driver of its progress at most this often."""

NODE_SECONDS = 1.0
"""How often a worker looks whether its node goes away."""


@dataclass(frozen=True)
class Job:
    """What every worker of a run must know; travels to the workers."""

    address: str  # of the store
    data_dir: str | None
    run_token: str
    settings: Settings
    store_patience_s: float = 900.0


Perform: TypeAlias = Callable[[dict[str, Any], Job], None]
"""Performs a stage in a worker, given the config that the searcher suggested; reports through `tune.report`."""


# --- why a worker should stop ------------------------------------------------------------------------

_terminated = threading.Event()  # this process got SIGTERM; it is never taken back


class NodeLeaves(Exception):  # noqa: N818
    """This worker's node goes away: the worker takes no further stage."""


def _note_sigterm() -> None:
    """Let SIGTERM, which a queue or a shutdown sends before it kills, save the stage's state."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: _terminated.set())


def _sigterm() -> str | None:
    return "the worker got SIGTERM" if _terminated.is_set() else None


def _draining(node_id: str) -> str | None:
    """Return how Ray announces that a node is taken away; None if it does not."""
    deadline_ms = ray._private.state.state.get_draining_nodes().get(node_id)
    if deadline_ms is None:
        return None
    if not deadline_ms:
        return "its node is drained"
    return f"its node is drained and goes away in {max(0.0, deadline_ms / 1000 - time.time()):.0f} s"


def _asked_to_stop(store: Store, run_token: str) -> str | None:
    """Return why the run was asked to stop, or that its driver has lost the lock."""
    reason = stop_reason(store, run_token)
    if reason is None and store.fence is not None:
        try:
            store.fence()
        except LockLost as error:
            return str(error)
    return reason


# --- one stage --------------------------------------------------------------------------------------


class Reports:
    """Tells the driver of a stage's progress from a thread of its own: a report waits until the driver has taken it.

    A snapshot that was published is always told, in order; other progress at most every `REPORT_SECONDS`, and not while
    the driver has not taken what it was told before. Use it as a context manager; what is told last has then arrived.
    What a report raises is raised by the next `tell`, or at the end.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report, self._pool = report, ThreadPoolExecutor(1, thread_name_prefix="report")
        self._told: deque[Future[None]] = deque()
        self._last = -math.inf

    def tell(self, progress: Progress) -> None:
        """Tell of progress, or pass it over."""
        while self._told and self._told[0].done():
            self._told.popleft().result()
        now = time.monotonic()
        if progress.published is None and (self._told or now - self._last < REPORT_SECONDS):
            return
        self._last = now
        words = {
            "phase": progress.phase,
            "step": progress.step,
            "total": progress.total,
            "metrics": dict(progress.metrics),
            "rate": progress.images_per_second,
            "published": progress.published,
            "saved": progress.saved,
        }
        self._told.append(self._pool.submit(self._report, words))

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for told in self._told:
                told.result()


_worker_data = functools.lru_cache(maxsize=1)(data_in)
"""The data sets of this worker, kept for the stages that it performs one after the other."""


def perform_config(config: dict[str, Any], job: Job) -> None:
    """Perform the stage of a config in this worker, and report its progress and outcome to Tune.

    The stage stops with its state saved when the run is asked to stop, and when this worker's node goes away.

    Raises:
        NodeLeaves: after the outcome was reported, so that Ray gives this worker no further stage.
    """
    store = Store.connect(job.address, patience_s=job.store_patience_s)
    store.fence = Fence(store, job.run_token)
    node_id = ray.get_runtime_context().get_node_id()
    metrics: dict[str, float] = {}

    with (
        Reports(tune.report) as reports,
        StopWatch(
            functools.partial(_asked_to_stop, store, job.run_token), every_s=1.0 if store.is_local else 3.0
        ) as run_stops,
        StopWatch(_sigterm, functools.partial(_draining, node_id), every_s=NODE_SECONDS) as node_leaves,
    ):

        def report(progress: Progress) -> bool:
            nonlocal metrics
            metrics = dict(progress.metrics) or metrics
            reports.tell(progress)
            return run_stops() or node_leaves()

        task = Task.of(config, store=store, data=_worker_data(job.data_dir), report=report, settings=job.settings)
        if isinstance(task.spec, TrialSpec) and is_finished(task.spec, store):  # by a worker lost before it said so
            clear_leftovers(task.spec, store)
            result = StageResult("finished")
            (row,) = tables.read_part(store, "trials", task.spec.trial_id)
            metrics = {"mre": float(str(row["mre"]))}
        else:
            result = perform(task)
    leaving = node_leaves.reason if result.outcome == "interrupted" and not run_stops() else None
    tune.report(
        {
            "outcome": result.outcome,
            "error": result.error or leaving,
            "trouble": result.trouble,
            "again": leaving is not None,
            "snapshots": task.snapshots,
            "published": None,
            "metrics": metrics,
        }
    )
    if node_leaves():
        raise NodeLeaves(node_leaves.reason)


def _perform_guarded(config: dict[str, Any], job: Job, resources: Resources, perform: Perform) -> None:
    """Perform a stage with the settings of its kind; an exception is reported, and not tried again by Ray."""
    gpus = resources.gpus(stage_of(config).kind)
    settings = replace(job.settings, gpus=gpus, device="auto" if gpus else "cpu")
    try:
        perform(config, replace(job, settings=settings))
    except NodeLeaves:
        raise
    except StoreTrouble as error:
        trouble = type(error).__name__
        tune.report({"outcome": "interrupted", "error": cause_of(error), "trouble": trouble, "published": None})
    except Exception as error:
        traceback.print_exc()
        tune.report({"outcome": "failed", "error": cause_of(error), "published": None})


def stage_trainable(job: Job, resources: Resources, perform: Perform) -> Any:
    """Return the class of Tune's trainable that performs stages, for `Tuner`."""

    def stage(config: dict[str, Any]) -> None:
        _perform_guarded(config, job, resources, perform)

    class StageTrainable(wrap_function(stage)):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:  # in the worker's main thread, the only one that may
            _note_sigterm()
            super().setup(config)

    return tune.with_resources(
        StageTrainable, lambda config: tune.PlacementGroupFactory([resources.bundle(stage_of(config).kind)])
    )
