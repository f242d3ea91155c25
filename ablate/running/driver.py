"""The driver of one run, from a search space to committed tables."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from ablate import tables
from ablate.datasets import Dataset
from ablate.errors import InputError
from ablate.running.checks import check_trials, prepare
from ablate.running.display import Display
from ablate.running.sessions import check_same_data, run_file
from ablate.running.spot import Notice
from ablate.running.supervision import Stop, away_words, shown_in_store, signals, supervised
from ablate.schedule.costs import costs_for
from ablate.schedule.fitting import Request, decide_gpus, doubt_lines, shapes_of, sharing_lines
from ablate.schedule.policy import Costs, Policy, Stage
from ablate.space import Grid, TrialSpec, plan_of
from ablate.store import TROUBLES, Store, StoreTrouble
from ablate.store.fence import Fence
from ablate.store.lock import RunLock
from ablate.store.run_file import RUN_FILE, published_snapshots, read_run_file, yaml_bytes

if TYPE_CHECKING:
    from ablate.running import ray_tune


@dataclass(frozen=True)
class Options:
    """How a search space is run; nothing here changes what a trial computes on a CPU but `cpus_per_stage`."""

    out: str
    data_dir: str | None = None  # folder or address
    address: str | None = None
    gpus_per_pretrain: float | None = None  # None: 1 where there is a GPU, else 0
    gpus_per_finetune: float | None = None  # None: 0.25 where there is a GPU, else 0
    cpus_per_stage: int = 1
    accelerator_type: str | None = None  # as Ray names it, such as H100
    max_concurrent: int | None = None
    max_failures: int = 3
    checkpoint_minutes: float = 5.0
    store_patience: float = 15.0  # minutes
    share: bool = True
    keep_weights: bool = False
    retry_failed: bool = False
    log: tuple[str, ...] = ()  # trackers: tensorboard, mlflow, wandb


@dataclass(frozen=True)
class RunResult:
    """What came out of a run."""

    exit_code: int  # 0 done, 1 some trials failed, 5 asked to stop, 130 or 143 interrupted
    finished: int
    failed: int
    missing: int


def run_grid(grid: Grid, options: Options, console: Console) -> RunResult:
    """Run every trial of `grid` that is not finished in the store yet.

    Raises:
        InputError: before any compute, for anything that could not run.
        StoreTrouble: the store is full, refuses or stays away, or another driver has taken the run over; what is
            there is whole, and the same command goes on later.
    """
    return _Run(grid, options, console).run()


class _Run:
    """One session of a run, and what its parts share."""

    def __init__(self, grid: Grid, options: Options, console: Console) -> None:
        self.grid, self.options, self.console = grid, options, console
        self.trials = {trial.trial_id: trial for trial in grid.trials}
        self.store = Store.open(options.out, patience_s=options.store_patience * 60)
        self.lock = RunLock(self.store)
        self.stop = Stop(self.store, self.lock.token)

    def say(self, text: str) -> None:
        """Print a line, whole."""
        self.console.print(text, soft_wrap=True)

    def run(self) -> RunResult:
        """Do what is to be done; see `run_grid`."""
        # From the start: a KeyboardInterrupt may be raised where a library swallows it, a flag cannot be lost.
        with signals(self.stop, self.console):
            if self.options.log:
                from ablate.running.ray_tune import check_trackers

                check_trackers(self.options.log)
            check_trials(self.grid.trials, self.options.data_dir, self.say)
            try:
                with self.lock:
                    self._locked()
            finally:
                self.store.fence = None
                self.stop.forget()
        if self.stop.trouble is not None:
            raise self.stop.trouble
        status = tables.finished_trials(self.store)
        states = [status.get(trial.trial_id) for trial in self.grid.trials]
        failed, missing = states.count("failed"), states.count(None)
        stopped = self.stop.exit_code if missing else None
        code = int(failed > 0 or missing > 0) if stopped is None else stopped
        return RunResult(code, states.count("finished"), failed, missing)

    def _locked(self) -> None:
        if self.lock.weakness is not None:
            self.say(
                f"warning: {self.store.label}: {self.lock.weakness}; the lock that keeps a second driver off this run "
                "is best effort there: do not start two at once"
            )
        self.store.fence = Fence(self.store, self.lock.token)
        with supervised(self.stop, self.store, self.lock, self.say):
            loaded = prepare(self.grid.trials, self.options.data_dir)
            if self.stop():
                return
            before = read_run_file(self.store)
            check_same_data(before, loaded, self.store)
            plan = plan_of(self.grid.trials)
            status = tables.finished_trials(self.store)
            done = {n for n, state in status.items() if state == "finished" or not self.options.retry_failed}
            todo = [trial for trial in plan.trials if trial.trial_id not in done]
            if not todo:
                return
            keys = list(plan.pretrainings) if self.options.share else []
            published = published_snapshots(self.store, keys, self._damaged)
            self.store.clean_temporaries()

            def make_policy(costs: Costs) -> Policy:
                return Policy(plan, costs, done=done, published=published, share=self.options.share)

            if not self.stop():
                self._on_ray(make_policy, todo, loaded, before)

    def _damaged(self, path: str) -> None:
        self.say(
            f"warning: {self.store.label}/{path} is damaged (a file is missing, or not of the size its manifest "
            "says); it is made anew if a trial needs it"
        )

    def _on_ray(
        self,
        make_policy: Callable[[Costs], Policy],
        todo: Sequence[TrialSpec],
        loaded: dict[str, Dataset],
        before: dict[str, object],
    ) -> None:
        from ablate.running import ray_tune
        from ablate.stage.pictures import write_thumbnails
        from ablate.stage.settings import Settings

        options, store = self.options, self.store
        recorded: list[Future[None]] = []
        with ray_tune.connected(options.address) as present, ThreadPoolExecutor(1) as recorder:
            resources, stock = self._resources()
            gpus_pretrain, gpus_finetune = resources.gpus_pretrain, resources.gpus_finetune
            for name in dict.fromkeys(trial.dataset for trial in todo):
                write_thumbnails(store, loaded[name], options.data_dir)
            policy = make_policy(costs_for(store, gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune))
            store.write(RUN_FILE, yaml_bytes(run_file(before, self.grid, loaded, dict(present), share=options.share)))
            settings = Settings(
                threads=options.cpus_per_stage,
                checkpoint_minutes=options.checkpoint_minutes,
                keep_weights=options.keep_weights,
                shared_keys=_shared_keys(self.grid),
                fingerprints={name: dataset.fingerprint for name, dataset in loaded.items()},
            )
            display = Display(
                self.console,
                policy,
                already=len(self.grid.trials) - policy.num_trials,
                also=lambda *ended: recorded.append(recorder.submit(self._record, *ended)),
                warning=lambda: away_words(store),
                wait=lambda stage: stock.wait(resources, stage),
            )
            with (
                signals(self.stop, self.console),  # again: starting Ray replaces the handler of SIGTERM
                ray_tune.SpotWatch(self._taken_back, self.say),
                display,
                shown_in_store(store, display.picture),
            ):
                ray_tune.run_stages(
                    policy,
                    ray_tune.Job(
                        store.address, options.data_dir, self.lock.token, settings, options.store_patience * 60
                    ),
                    resources,
                    display,
                    stopped=self.stop,
                    abandoned=lambda: self.stop.abandoned,
                    max_concurrent=options.max_concurrent,
                    max_failures=options.max_failures,
                    stock=stock,
                    trackers={name: _experiment(name, self.grid, store) for name in options.log},
                )
            for record in recorded:
                record.result()

    def _resources(self) -> tuple[ray_tune.Resources, ray_tune.Stock]:
        """Return what stages ask for, so that it fits the connected cluster, and the cluster's nodes."""
        from ablate.running import ray_tune
        from ablate.running.ray_tune.nodes import growable_nodes, present_nodes

        options = self.options
        present, growable = present_nodes(), growable_nodes() if options.address else ()
        gpus_pretrain, gpus_finetune = decide_gpus(
            present=present,
            growable=growable,
            where=f"the cluster at {options.address}" if options.address else "this machine",
            gpus_per_pretrain=options.gpus_per_pretrain,
            gpus_per_finetune=options.gpus_per_finetune,
            cpus_per_stage=options.cpus_per_stage,
            accelerator_type=options.accelerator_type,
        )
        kinds = {"pre-training": gpus_pretrain, "fine-tuning": gpus_finetune}
        requests = {
            words: Request(options.cpus_per_stage, gpus, options.accelerator_type) for words, gpus in kinds.items()
        }
        sharing = sharing_lines(
            shapes_of(present, growable),
            gpus_pretrain=gpus_pretrain,
            gpus_finetune=gpus_finetune,
            cpus_per_stage=options.cpus_per_stage,
            accelerator_type=options.accelerator_type,
        )
        for line in [*doubt_lines(requests.items(), present=present, growable=growable), *sharing]:
            self.say(f"note: {line}")
        resources = ray_tune.Resources(options.cpus_per_stage, gpus_pretrain, gpus_finetune, options.accelerator_type)
        return resources, ray_tune.Stock(growable)

    def _taken_back(self, notice: Notice) -> None:
        """Stop the run, as SIGTERM does, when the cloud takes back the machine that it ends with."""
        if self.stop.request("spot notice", 128 + signal.SIGTERM):
            self.say(
                f"{notice.cloud} takes back the machine of this run at {notice.deadline:%H:%M:%S} UTC "
                f"({notice.action}): saving the running stages' states"
            )

    def _record(self, stage: Stage, outcome: str, error: str | None, trouble: str | None) -> None:
        """Record a failure that no worker could record itself; stop for a store that takes nothing.

        Runs beside the loop of stages, which must not wait for the store.
        """
        from ablate.stage.rows import write_failed_trial

        try:
            if outcome == "failed" and stage.kind != "pretrain":
                write_failed_trial(self.trials[stage.name], self.store, error or "failed")
        except StoreTrouble as raised:
            self.stop.because_of(raised)
        if trouble is not None:
            self.stop.because_of(TROUBLES[trouble](error))


def _shared_keys(grid: Grid) -> frozenset[str]:
    """Return the pre-trainings that several trials use."""
    counts = Counter(trial.pretrain_key for trial in grid.trials if trial.pretrain_key is not None)
    return frozenset(key for key, count in counts.items() if count > 1)


def _experiment(tracker: str, grid: Grid, store: Store) -> str:
    """Return the name under which a tracker files the run: the grid's; of tensorboard the folder of its events."""
    if tracker != "tensorboard":
        return f"ablate-{grid.name}"
    if not store.is_local:
        raise InputError(f"--log tensorboard writes to a folder beside the tables; --out {store.label} is none")
    return f"{store.root}/tensorboard"


def closing_lines(store: Store, result: RunResult) -> list[str]:
    """Return what is left to say after a run: failures, how to go on, and where everything lies."""
    lines = [f"{result.finished} trials finished, {result.failed} failed, {result.missing} open"]
    if result.failed:
        errors = tables.read_table(store, "trials", ["trial_id", "error"], [("status", "==", "failed")]).to_pylist()
        lines += [f"  failed {row['trial_id']}: {row['error']}" for row in errors]
        lines.append(f"  logs: {store.label}/trials/ID/log.txt; run the same command with --retry-failed to try again")
    if result.missing:
        lines.append("interrupted, every state is saved; to go on run the same command again")
    lines.append(f"tables {store.label}/tables, run file {store.label}/{RUN_FILE}")
    lines.append(f"next   ablate results {store.word}   ablate report {store.word}")
    return lines
