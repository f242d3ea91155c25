"""How do stages become Ray Tune trials? The only module that knows Ray.

Each stage of the policy is one Tune trial with its own resource request. A `Searcher` hands out what the
policy offers and tells it what came of it. Tune keeps nothing that a run needs: what is done is found in
the store.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import socket
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ablate.attempt import Settings, StageResult, one_line
from ablate.datasets import Dataset, load_dataset
from ablate.lock import StopFlag
from ablate.policy import Policy, Stage
from ablate.rows import is_finished
from ablate.space import InputError, Pretraining, TrialSpec, nearest
from ablate.store import Store
from ablate.training import Progress
from ablate.trial import perform

# Read by Ray when it is imported: our own display, no files per trial, and our own signal handling.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a stage without a GPU is told so by `device`
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "30")

import ray
from ray import tune
from ray.tune.search import Searcher

REPORT_SECONDS = 1.0
"""A stage tells the driver of its progress at most this often: every report waits for the driver."""

PENDING_ON_CLUSTER = 8
"""Stages that wait for resources on a cluster that may grow; Tune's own limit of 1 would hide the demand."""


@dataclass(frozen=True)
class Resources:
    """What each kind of stage asks Ray for."""

    cpus: float = 1.0
    gpus_pretrain: float = 0.0
    gpus_finetune: float = 0.0

    def gpus(self, stage: Stage) -> float:
        """GPUs of a stage; a whole trial asks for what its pre-training needs."""
        return self.gpus_finetune if stage.kind == "finetune" else self.gpus_pretrain


@dataclass(frozen=True)
class Job:
    """What every worker of a run must know; travels to the workers."""

    address: str  # of the store
    data_dir: str | None
    run_token: str
    settings: Settings


Work: TypeAlias = Callable[[dict[str, Any], Job], None]
"""Does a stage's work in a worker, given the stage as the searcher suggested it; reports through `tune.report`."""


class Watcher(Protocol):
    """Is told what the stages of a run do; runs in the driver."""

    def started(self, stage: Stage) -> None:
        """A stage has been handed to Ray."""

    def progressed(self, stage: Stage, progress: Mapping[str, Any]) -> None:
        """A stage has reported `phase`, `step`, `total`, `metrics` and `rate`."""

    def ended(self, stage: Stage, outcome: str, error: str | None) -> None:
        """A stage has ended for good, in the words of `ablate.trial.Outcome`."""

    def released(self, trial_id: str, reason: str) -> None:
        """A trial fails without having started, because its pre-training did."""


class StageSearcher(Searcher):  # type: ignore[misc]
    """Offers the policy's next stage to Tune and reports back what became of it."""

    def __init__(
        self, policy: Policy, watcher: Watcher, stopped: Callable[[], bool], max_concurrent: int | None
    ) -> None:
        super().__init__()
        self._policy, self._watcher, self._stopped = policy, watcher, stopped
        self._max_concurrent = max_concurrent
        self._stages: dict[str, Stage] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next stage as a Tune configuration, None for nothing now, FINISHED at the end."""
        if self._stopped() or self._policy.is_over:
            finished: str = Searcher.FINISHED
            return finished
        if self._max_concurrent is not None and len(self._policy.running) >= self._max_concurrent:
            return None
        stage = self._policy.next()
        if stage is None:
            return None
        if stage.kind == "pretrain":
            pretraining, snapshots = self._policy.pretraining(stage)
            work = {"spec": pretraining.model_dump_json(), "snapshots": list(snapshots)}
        else:
            work = {"spec": self._policy.trial(stage).model_dump_json()}
        self._policy.started(stage)
        self._stages[trial_id] = stage
        self._watcher.started(stage)
        return {"kind": stage.kind, "name": stage.name, **work}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass progress on; a published snapshot lets the trials that need it start."""
        stage = self._stages[trial_id]
        if result.get("published") is not None:
            self._policy.publish(stage.name, int(result["published"]))
        if "outcome" not in result:
            self._watcher.progressed(stage, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the policy how a stage ended; `error` means that its worker was lost once too often."""
        stage = self._stages.pop(trial_id)
        result = result or {}
        outcome, reason = str(result.get("outcome", "failed")), result.get("error")
        if error or "outcome" not in result:
            outcome, reason = "failed", "its worker or node was lost, and the retries are used up"
        if outcome == "finished":
            for step in result.get("snapshots", ()):
                self._policy.publish(stage.name, int(step))
            self._policy.finish(stage)
        elif outcome == "lost":
            self._policy.lose(stage)
        elif outcome == "interrupted":
            self._policy.running.discard(stage)
        else:
            for name in self._policy.fail(stage, str(reason)):
                self._watcher.released(name, f"pre-training {stage.name} failed: {reason}")
        self._watcher.ended(stage, outcome, None if reason is None else str(reason))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle to nothing: Tune writes the searcher to its own files, which no run is restored from."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a run goes on from the store, not from Tune's files."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, see `save`."""


def _perform(config: dict[str, Any], job: Job) -> None:
    """Run one stage in a worker: the function that Tune calls."""
    stage = Stage(config["kind"], config["name"])
    store = Store.open(job.address)
    stop = StopFlag(store, job.run_token)
    last = 0.0
    metrics: dict[str, float] = {}

    def report(progress: Progress) -> bool:
        nonlocal last, metrics
        metrics = dict(progress.metrics) or metrics
        now = time.monotonic()
        if progress.published is not None or now - last >= REPORT_SECONDS:
            last = now
            tune.report(
                {
                    "phase": progress.phase,
                    "step": progress.step,
                    "total": progress.total,
                    "metrics": dict(progress.metrics),
                    "rate": progress.images_per_second,
                    "published": progress.published,
                }
            )
        return stop()

    spec: Pretraining | TrialSpec
    snapshots = tuple(config.get("snapshots", ()))
    if stage.kind == "pretrain":
        spec = Pretraining.model_validate_json(config["spec"])
    else:
        spec = TrialSpec.model_validate_json(config["spec"])
    if isinstance(spec, TrialSpec) and is_finished(spec, store):  # by a worker that was lost before it could say so
        result = StageResult("finished")
    else:
        result = perform(stage, spec, snapshots, store, functools.partial(_load, job.data_dir), report, job.settings)
    tune.report(
        {
            "outcome": result.outcome,
            "error": result.error,
            "snapshots": snapshots,
            "published": None,
            "metrics": metrics,
        }
    )


@functools.lru_cache(maxsize=4)
def _load(data_dir: str | None, name: str, image_size: int) -> Dataset:
    """Load a data set once for the stages that a worker runs one after the other."""
    return load_dataset(name, data_dir, image_size)


def _require_answer(address: str | None) -> None:
    """Refuse an address at which nothing listens: Ray itself would try for many minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # none, or `auto`, which Ray looks up on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({error}); start one with 'ray start --head', "
            "or leave --address out to run on this machine"
        ) from error


@contextmanager
def connected(address: str | None) -> Iterator[Mapping[str, float]]:
    """Connect to the cluster at `address`, or start Ray on this machine for the time of the context.

    Yields the cluster's resources. Raises `InputError` if the cluster does not answer.
    """
    _require_answer(address)
    logging.getLogger("ray").setLevel(logging.ERROR)  # its hints and warnings are about what we set on purpose
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--address must be the address of a running Ray cluster, such as auto or HOST:6379; got '{address}': "
            f"{' '.join(str(error).split())}"
        ) from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


# --- trackers ---------------------------------------------------------------------------------------


def _tensorboard(experiment: str) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    class Logger(TBXLoggerCallback):  # type: ignore[misc]
        """Writes each stage's events to its own folder under `experiment`, not to Ray's temporary files."""

        def log_trial_start(self, trial: Any) -> None:
            folder = Path(experiment) / f"{trial.config['kind']}-{trial.config['name']}"
            self._trial_writer[trial] = self._summary_writer_cls(str(folder), flush_secs=30)
            self._trial_result[trial] = {}

    return Logger()


def _mlflow(experiment: str) -> Any:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return MLflowLoggerCallback(experiment_name=experiment)  # the server is MLflow's own MLFLOW_TRACKING_URI


def _wandb(experiment: str) -> Any:
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=experiment)  # settings are W&B's own WANDB_... variables


TRACKERS: dict[str, Callable[[str], Any]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
"""Ray's integrations of experiment trackers; each takes an experiment's name, tensorboard a folder."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        InputError: with the choices or the cure.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--log must be one of {', '.join(TRACKERS)}; got '{name}'{nearest(name, TRACKERS)}")
        module = {"tensorboard": "tensorboardX"}.get(name, name)
        if importlib.util.find_spec(module) is None:
            raise InputError(f"--log {name} needs {module}, which is not installed; pip install 'ablate[{name}]'")


# --- the run ----------------------------------------------------------------------------------------


def run_stages(
    policy: Policy,
    job: Job,
    resources: Resources,
    watcher: Watcher,
    *,
    stopped: Callable[[], bool],
    max_concurrent: int | None = None,
    max_failures: int = 3,
    may_grow: bool = False,
    trackers: Mapping[str, str] | None = None,
    work: Work = _perform,
) -> None:
    """Run the policy's stages on the connected cluster until nothing is left or `stopped` says so.

    Args:
        policy: decides what starts next; holds the outcome afterwards.
        job: what the workers must know.
        resources: the request of each kind of stage.
        watcher: is told what happens.
        stopped: asked before every start; once true nothing more starts.
        max_concurrent: most stages at a time; None for as many as fit.
        max_failures: how often a stage is tried again after its worker or node was lost.
        may_grow: whether stages beyond the present resources should be requested, for an autoscaler to see.
        trackers: trackers to log to, by name, each with the name of its experiment; see `TRACKERS`.
        work: what a worker does with a stage; another than the default is for measuring what scheduling costs.
    """
    if policy.is_over:
        return
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(PENDING_ON_CLUSTER if may_grow else 1)

    def request(config: Mapping[str, Any]) -> Any:
        stage = Stage(config["kind"], config["name"])
        bundle = {"CPU": resources.cpus, "GPU": resources.gpus(stage)}
        return tune.PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount > 0}])

    with tempfile.TemporaryDirectory(prefix="ablate-tune-") as scratch:
        trainable = tune.with_resources(
            tune.with_parameters(_named(functools.partial(_start, resources=resources, work=work)), job=job), request
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=StageSearcher(policy, watcher, stopped, max_concurrent),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=str(Path(scratch)),
                failure_config=tune.FailureConfig(max_failures=max_failures),
                verbose=0,
                callbacks=[TRACKERS[name](experiment) for name, experiment in (trackers or {}).items()],
            ),
        )
        tuner.fit()


def _named(function: Any) -> Any:
    """Give a partial function the name that Tune prints."""
    function.__name__ = "stage"
    return function


def _start(config: dict[str, Any], job: Job, resources: Resources, work: Work) -> None:
    """Do a stage's work with the settings of its kind; an exception is reported, and not tried again by Ray."""
    gpus = resources.gpus(Stage(config["kind"], config["name"]))
    settings = replace(job.settings, gpus=gpus, device="auto" if gpus else "cpu")
    try:
        work(config, replace(job, settings=settings))
    except Exception as error:
        traceback.print_exc()
        tune.report({"outcome": "failed", "error": one_line(error), "published": None})
