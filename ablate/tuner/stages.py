"""The loop of a run: Ray Tune starts stages as the searcher offers them."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Mapping

from ray import tune

from ablate.policy import Policy
from ablate.tuner.searcher import StageSearcher, Watcher
from ablate.tuner.trackers import TRACKERS
from ablate.tuner.worker import Job, Resources, Work, perform_stage, stage_trainable

PENDING_ON_CLUSTER = 8
"""Stages that wait for resources on a cluster that may grow; Tune's own limit of 1 would hide the demand."""


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
    may_grow: bool = False,
    trackers: Mapping[str, str] | None = None,
    work: Work = perform_stage,
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
        may_grow: whether stages beyond the present resources should be requested, for an autoscaler to see.
        trackers: trackers to log to, by name, each with the name of its experiment; see `TRACKERS`.
        work: what a worker does with a stage; another than the default is for measuring what scheduling costs.
    """
    if policy.is_over:
        return
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(PENDING_ON_CLUSTER if may_grow else 1)
    for name in ("ray.tune", "ray.train"):  # losses are told by the watcher; Tune would print a traceback for each
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="ablate-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            stage_trainable(job, resources, work),
            tune_config=tune.TuneConfig(
                search_alg=StageSearcher(policy, watcher, stopped, max_concurrent, max_failures),
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
                callbacks=[TRACKERS[name](experiment) for name, experiment in (trackers or {}).items()],
            ),
        )
        tuner.fit()
