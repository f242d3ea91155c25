"""The loop of a run: Ray Tune starts stages as the searcher offers them."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler

from ablate.running.display import Wait
from ablate.running.events import Watcher
from ablate.running.ray_tune.demand import Nodes, node_words, place_words
from ablate.running.ray_tune.nodes import present_nodes
from ablate.running.ray_tune.searcher import StageSearcher
from ablate.running.ray_tune.trackers import TRACKERS
from ablate.running.ray_tune.worker import Job, Perform, perform_config, stage_trainable
from ablate.running.resources import Resources
from ablate.schedule.fitting import Growable
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Stage

IDLE_S = 5.0
"""A worker that has had nothing to do for so long is ended: until then it is there for the next stage at once."""

LOOK_S = 2.0
"""The cluster is asked for its nodes at most this often."""


class Stock:
    """The nodes of the connected cluster, looked at now and then.

    Args:
        growable: the types of node that may come; none where nothing grows the cluster, None if that is unknown.
    """

    def __init__(self, growable: Growable = ()) -> None:
        self._growable, self._next_s = growable, 0.0
        self.nodes = Nodes.of((), growable)
        """As they were when last looked at."""

    def look(self) -> Nodes:
        """Return the nodes, as old as `LOOK_S` at most."""
        if time.monotonic() >= self._next_s:
            self.nodes = Nodes.of(present_nodes(), self._growable)
            self._next_s = time.monotonic() + LOOK_S
        return self.nodes

    def wait(self, resources: Resources, stage: Stage) -> Wait:
        """Return what a stage waits for that asks for these resources."""
        request = resources.request(stage.kind)
        node = node_words(request, self.nodes)
        return Wait(place_words(request), its_turn=True) if node is None else Wait(node, its_turn=False)


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """Starts stages in the order in which they were offered, and looks at them in every round of Tune's loop.

    It tells which stages have got their place. Once the run stops, it withdraws those that wait, or a cluster would
    still grow for them. And it ends a worker that Tune keeps for the next stage when none comes: such a worker holds
    its GPU, and so its node, which no autoscaler takes away then.
    """

    def __init__(self, searcher: StageSearcher, watcher: Watcher, stopped: Callable[[], bool]) -> None:
        super().__init__()
        self._searcher, self._watcher, self._stopped = searcher, watcher, stopped
        self._idle_since: float | None = None

    def choose_trial_to_run(self, tune_controller: Any) -> Any:  # asked once in every round, before anything starts
        controller = tune_controller._tune_controller  # what is looked at below has no public interface
        self._watcher.tick()
        for trial in list(controller.get_live_trials()):
            worker = controller._trial_to_actor.get(trial)
            if worker is not None and controller._actor_manager.is_actor_started(worker):
                self._searcher.placed(trial.trial_id)
            elif self._stopped() and trial.status == trial.PENDING:
                controller.stop_trial(trial)
        self._end_idle(controller)
        return None if self._stopped() else super().choose_trial_to_run(tune_controller)

    def _end_idle(self, controller: Any) -> None:
        if not controller._actor_cache.num_cached_objects:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > IDLE_S:
            controller._cleanup_cached_actors(force_all=True)

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing, as `StageSearcher` does."""
        return {}


class _Abandon(tune.Stopper):  # type: ignore[misc]
    """Ends every stage at once, without waiting for it."""

    def __init__(self, abandoned: Callable[[], bool]) -> None:
        self._abandoned = abandoned

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._abandoned()

    def __getstate__(self) -> dict[str, object]:
        """Pickle to a stopper that never stops: Tune writes it to its own files, which no run is restored from."""
        return {"_abandoned": bool}


class _Silent(TrialProgressCallback):  # type: ignore[misc]
    """Stands where Tune would add the like, which prints a line for each stage that is withdrawn before its start."""

    def _print(self, msg: str) -> None:
        """Print nothing: the watcher tells what happens."""


def run_stages(
    policy: Policy,
    job: Job,
    resources: Resources,
    watcher: Watcher,
    *,
    stopped: Callable[[], bool],
    abandoned: Callable[[], bool] = lambda: False,
    max_concurrent: int | None = None,
    max_failures: int = 3,
    stock: Stock | None = None,
    trackers: Mapping[str, str] | None = None,
    perform: Perform = perform_config,
) -> None:
    """Run the policy's stages on the connected cluster until nothing is left or `stopped` says so.

    Args:
        policy: decides what starts next; holds the outcome afterwards.
        job: what the workers must know.
        resources: the request of each kind of stage.
        watcher: is told what happens.
        stopped: asked before every start; once true nothing more starts.
        abandoned: asked all the time; once true the running stages are ended without a word to them.
        max_concurrent: most stages at a time; None for as many as fit.
        max_failures: how often in a row a stage whose worker or node was lost is tried again without progress.
        stock: the cluster's nodes, and what may come; None for those that are there alone.
        trackers: trackers to log to, by name, each with the name of its experiment; see `TRACKERS`.
        perform: what a worker does with a stage; another than the default is for measuring what scheduling costs.
    """
    if policy.is_over:
        return
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(sys.maxsize)  # how many wait is decided by `demand.verdict`
    for name in ("ray.tune", "ray.train"):  # losses are told by the watcher; Tune would print a traceback for each
        logging.getLogger(name).setLevel(logging.CRITICAL)
    searcher = StageSearcher(
        policy,
        watcher,
        stopped,
        request=lambda stage: resources.request(stage.kind),
        nodes=(stock or Stock()).look,
        machine=lambda nodes: resources.machine(nodes.present, max_concurrent),
        max_concurrent=max_concurrent,
        max_failures=max_failures,
    )
    with tempfile.TemporaryDirectory(prefix="ablate-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            stage_trainable(job, resources, perform),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Scheduler(searcher, watcher, stopped),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher offers a lost stage again
                stop=_Abandon(abandoned),
                verbose=0,
                callbacks=[_Silent(), *(TRACKERS[name](experiment) for name, experiment in (trackers or {}).items())],
            ),
        )
        tuner.fit()
