"""The driver of one run, from a search space to committed tables."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ablate import tables
from ablate.datasets import Dataset
from ablate.errors import InputError
from ablate.running.checks import check_trials, prepare
from ablate.running.display import Display
from ablate.running.events import Watchers
from ablate.running.joining import CURE, joining_words
from ablate.running.naming import Names
from ablate.running.options import Options as Options
from ablate.running.recorder import Recorder
from ablate.running.remaining import TimeLeft
from ablate.running.resources import Resources
from ablate.running.sessions import check_same_data, check_same_tuning, keeps_weights, listed_trials, run_file
from ablate.running.spot import Notice
from ablate.running.supervision import Stop, away_words, shown_in_store, signals, supervised
from ablate.running.tuner import TunedNames, Tuner, Tuning, probes
from ablate.schedule.costs import costs_for
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Costs
from ablate.space import Grid, TrialSpec, plan_of
from ablate.store import Store
from ablate.store.addresses import is_remote
from ablate.store.fence import Fence
from ablate.store.layout import PRETRAINED, RUN_FILE, TABLES, TENSORBOARD, log_file, trial_folder
from ablate.store.lock import RunLock
from ablate.store.run_file import published_snapshots, read_run_file, yaml_bytes
from ablate.words import counted

if TYPE_CHECKING:
    from ablate.running import ray_tune


@dataclass(frozen=True)
class RunResult:
    """What came out of a run."""

    exit_code: int  # 0 done, 1 some trials failed, 5 asked to stop, 130 or 143 interrupted
    finished: int
    failed: int
    missing: int


LATER = "later"
"""The address of a cluster that is yet to come: such a run can be checked, but not started."""


def run_grid(grid: Grid, options: Options, console: Console) -> RunResult:
    """Run every trial of `grid` that is not finished in the store yet.

    Raises:
        InputError: before any compute, for anything that could not run.
        StoreTrouble: the store is full, refuses or stays away, or another driver has taken the run over; what is
            there is whole, and the same command goes on later.
    """
    if options.address == LATER:
        raise InputError(f"--address {LATER} must go with --dry-run; give the address of a running Ray cluster")
    return _Run(grid, options, console).run()


def check_run(grid: Grid, options: Options, console: Console) -> None:
    """Check all that `run_grid` checks before it starts a stage; leave nothing behind but prepared images.

    At the address `LATER` that is all but what only the moment can tell: the cluster, and whether a driver is at work.

    Raises:
        InputError: anything that could not run.
    """
    with _leaving_no_folder(options.out):
        _Run(grid, options, console).check()


@contextmanager
def _leaving_no_folder(out: str) -> Iterator[None]:
    """Delete the folders that opening a store has made, once they are not needed."""
    folder = Path(out).absolute()
    missing = [] if is_remote(out) else [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    finally:
        for place in missing:
            with suppress(OSError):  # it was never made, or somebody has put something there meanwhile
                place.rmdir()


class _Run:
    """One session of a run, and what its parts share."""

    def __init__(self, grid: Grid, options: Options, console: Console) -> None:
        self.grid, self.options, self.console = grid, options, console
        self.trials = {trial.trial_id: trial for trial in grid.trials}  # and those that tuning has chosen
        if grid.studies and not options.share:
            raise InputError("--no-share must be left out for a search space with tune: tuning shares pre-trainings")
        self.tuning: Tuning | None = None
        self.names = Names(grid.trials)
        self.store = Store.open(options.out, patience_s=options.store_patience * 60)
        self.lock = RunLock(self.store)
        self.stop = Stop(self.store, self.lock.token)

    def say(self, text: str) -> None:
        """Print a line, whole."""
        self.console.print(text, soft_wrap=True, markup=False)

    def run(self) -> RunResult:
        """Do what is to be done; see `run_grid`."""
        self._join(ask=True)
        # From the start: a KeyboardInterrupt may be raised where a library swallows it, a flag cannot be lost.
        with signals(self.stop, self.console):
            self._check_trials()
            try:
                with self.lock:
                    self._locked()
            finally:
                self.store.fence = None
                self.stop.forget()
        if self.stop.trouble is not None:
            raise self.stop.trouble
        status = tables.trial_status(self.store)
        states = [status.get(trial_id) for trial_id in self.trials]
        failed, missing = states.count("failed"), states.count(None) + (self.tuning.num_unknown if self.tuning else 0)
        stopped = self.stop.exit_code if missing else None
        code = int(failed > 0 or missing > 0) if stopped is None else stopped
        return RunResult(code, states.count("finished"), failed, missing)

    def check(self) -> None:
        """Check what is to be done; see `check_run`."""
        self._join(ask=False)
        self._check_trials()
        now = self.options.address != LATER
        if now:
            self.lock.require_free()
        _, before = self._load()
        plan = plan_of(self.grid.trials)
        done = self._done(before)
        if now and len(done) < len(plan.trials):
            from ablate.running import ray_tune

            with ray_tune.connected(self.options.address, self.say):
                self._resources()
        left = counted(len(plan.trials) - len(done), "trial")
        self.say(f"checked: {left} to run, {len(done)} done before; nothing was started")

    def _join(self, *, ask: bool) -> None:
        """Ask, or refuse, before a run is joined by a grid that is not its own."""
        words = joining_words(read_run_file(self.store), self.grid, self.store)
        if words is None:
            return
        if self.options.extend:
            self.say(f"note: {words}")
            return
        if not (ask and self.console.is_terminal and sys.stdin.isatty()):
            raise InputError(f"{words}; {CURE}")
        self.say(words)
        if self.console.input("Add them? [y/N] ", markup=False).strip().lower() not in ("y", "yes"):
            raise InputError("nothing was started; give another --out")

    def _check_trials(self) -> None:
        if self.options.log:
            from ablate.running.ray_tune import check_trackers

            check_trackers(self.options.log)
            for name in self.options.log:
                _experiment(name, self.grid, self.store)
        check_trials([*self.grid.trials, *probes(self.grid.studies)], self.options.data_dir, self.say)

    def _load(self) -> tuple[dict[str, tuple[Dataset, ...]], dict[str, Any]]:
        """Return the data sets, and what `run.yaml` said before; refuse other data than the run was started with."""
        loaded = prepare(self.grid.trials, self.options.data_dir, self.say)
        before = read_run_file(self.store)
        check_same_data(before, loaded, self.store)
        check_same_tuning(before, self.grid, self.store)
        if self.grid.studies:
            self.tuning = Tuning.load(self.store, self.grid.studies)
            self.trials |= {key: final.trial for key, final in self.tuning.choices.trials.items()}
        return loaded, before

    def _done(self, before: dict[str, Any]) -> set[str]:
        """Return the trials of the grid that need nothing more; warn of weights that the others will not keep."""
        status = tables.trial_status(self.store)
        over = {n for n, state in status.items() if state == "finished" or not self.options.retry_failed}
        done = over & self.trials.keys()
        left = len(self.trials) - len(done)
        if left and keeps_weights(before) and not self.options.keep_weights:
            self.say(
                f"warning: this run was started with --keep-weights, and goes on without: "
                f"{counted(left, 'trial')} will have no weights for ablate predict; stop it and give --keep-weights to "
                "keep them"
            )
        return done

    def _locked(self) -> None:
        if self.lock.weakness is not None:
            self.say(
                f"warning: {self.store.label}: {self.lock.weakness}; the lock that keeps a second driver off this run "
                "is best effort there: do not start two at once"
            )
        self.store.fence = Fence(self.store, self.lock.token)
        with supervised(self.stop, self.store, self.lock, self.say):
            loaded, before = self._load()
            if self.stop():
                return
            tuning = self.tuning
            plan = plan_of(self.trials.values())
            done = self._done(before)
            todo = [trial for trial in plan.trials if trial.trial_id not in done]
            if not todo and (tuning is None or tuning.is_over):
                return
            keys = list(plan.pretrainings) if tuning is None else self.store.list(PRETRAINED)
            keys = keys if self.options.share else []
            published = published_snapshots(self.store, keys, self._damaged)
            self.store.clean_temporaries()

            def make_policy(costs: Costs) -> Policy:
                work = plan if tuning is None else plan_of(())  # the tuner adds what is to be done
                return Policy(work, costs, done=done, published=published, share=self.options.share)

            if not self.stop():
                self._on_ray(make_policy, todo, loaded, before, done)

    def _damaged(self, path: str) -> None:
        self.say(
            f"warning: {self.store.label}/{path} is damaged (a file is missing, or not of the size its manifest "
            "says); it is made anew if a trial needs it"
        )

    def _on_ray(
        self,
        make_policy: Callable[[Costs], Policy],
        todo: Sequence[TrialSpec],
        loaded: Mapping[str, Sequence[Dataset]],
        before: dict[str, object],
        done: Collection[str],
    ) -> None:
        from ablate.running import ray_tune
        from ablate.stage.pictures import write_thumbnails
        from ablate.stage.settings import Settings
        from ablate.stage.starts import publish_starts

        options, store = self.options, self.store
        with (
            ray_tune.connected(options.address, self.say) as present,
            Recorder(store, self.trials, self.stop.because_of) as recorder,
        ):
            resources, stock = self._resources()
            ahead = todo if self.tuning is None else self.grid.trials
            for name in dict.fromkeys(trial.dataset for trial in ahead):
                write_thumbnails(store, loaded[name], options.data_dir)
            publish_starts(store, ahead)
            costs = costs_for(store, gpus_pretrain=resources.gpus_pretrain, gpus_finetune=resources.gpus_finetune)
            policy = make_policy(costs)
            kept = {"share": options.share, "keep_weights": options.keep_weights}
            finals = None if self.tuning is None else self.tuning.choices.trials
            content = run_file(before, self.grid, loaded, dict(present), **kept, finals=finals)
            store.write(RUN_FILE, yaml_bytes(content))
            tuner = None if self.tuning is None else self._tuner(self.tuning, policy, costs, content, done, recorder)
            settings = Settings(
                threads=options.cpus_per_stage,
                deterministic=options.deterministic,
                cuda_graphs=options.cuda_graphs,
                compiled=options.compiled,
                checkpoint_minutes=options.checkpoint_minutes,
                keep_weights=options.keep_weights,
                shared_keys=self.grid.shared_keys,
                fingerprints={name: folds[0].fingerprint for name, folds in loaded.items()},
            )
            time_left = TimeLeft(
                policy, costs, lambda: resources.machine(stock.nodes.present, options.max_concurrent), tuner
            )
            display = Display(
                self.console,
                policy,
                names=self.names if tuner is None else TunedNames(self.grid.trials, tuner),
                already=len(done),
                wait=lambda stage: stock.wait(resources, stage),
                units={name: folds[0].unit for name, folds in loaded.items()},
                warning=lambda: away_words(store),
                left_s=time_left,
                tuner=tuner,
            )
            with (
                tuner or nullcontext(),
                signals(self.stop, self.console),  # again: starting Ray replaces the handler of SIGTERM
                ray_tune.SpotWatch(self._taken_back, self.say),
                display,
                shown_in_store(store, display.picture),
            ):
                if tuner is not None:
                    tuner.begin()
                ray_tune.run_stages(
                    policy,
                    ray_tune.Job(
                        store.address, options.data_dir, self.lock.token, settings, options.store_patience * 60
                    ),
                    resources,
                    Watchers(time_left, display, recorder, *([] if tuner is None else [tuner])),
                    stopped=self.stop,
                    abandoned=lambda: self.stop.abandoned,
                    max_concurrent=options.max_concurrent,
                    max_failures=options.max_failures,
                    stock=stock,
                    trackers={name: _experiment(name, self.grid, store) for name in options.log},
                )

    def _tuner(
        self,
        tuning: Tuning,
        policy: Policy,
        costs: Costs,
        content: dict[str, Any],
        done: Collection[str],
        recorder: Recorder,
    ) -> Tuner:
        """Return what takes the run's tunings to their end; `content` is that of `run.yaml`."""

        def changed() -> None:
            finals = tuning.choices.trials
            self.trials |= {key: final.trial for key, final in finals.items()}  # in place: the recorder has it too
            for key in self.trials.keys() - finals.keys() - {trial.trial_id for trial in self.grid.trials}:
                del self.trials[key]  # of an earlier choice
            content["trials"] = listed_trials(content, self.grid, finals)
            self.store.write(RUN_FILE, yaml_bytes(content))

        return Tuner(
            self.store,
            policy,
            costs,
            tuning,
            changed=changed,
            done=done,
            stop=self.stop.because_of,
            failed=recorder.released,
        )

    def _resources(self) -> tuple[Resources, ray_tune.Stock]:
        """Return what stages ask for, so that it fits the connected cluster, and the cluster's nodes."""
        from ablate.running import ray_tune
        from ablate.running.ray_tune.nodes import growable_nodes, present_nodes

        options = self.options
        present, growable = present_nodes(), growable_nodes() if options.address else ()
        resources = Resources.decide(
            present=present,
            growable=growable,
            address=options.address,
            gpus_per_pretrain=options.gpus_per_pretrain,
            gpus_per_finetune=options.gpus_per_finetune,
            cpus_per_stage=options.cpus_per_stage,
            accelerator_type=options.accelerator_type,
        )
        for line in resources.notes(present=present, growable=growable):
            self.say(f"note: {line}")
        return resources, ray_tune.Stock(growable)

    def _taken_back(self, notice: Notice) -> None:
        """Stop the run, as SIGTERM does, when the cloud takes back the machine that it ends with."""
        if self.stop.request("spot notice", 128 + signal.SIGTERM):
            self.say(
                f"{notice.cloud} takes back the machine of this run at {notice.deadline:%H:%M:%S} UTC "
                f"({notice.action}): saving the running stages' states"
            )


def _experiment(tracker: str, grid: Grid, store: Store) -> str:
    """Return the name under which a tracker files the run: the grid's; of tensorboard the folder of its events."""
    if tracker != "tensorboard":
        return f"ablate-{grid.name}"
    if not store.is_local:
        raise InputError(f"--log tensorboard writes to a folder beside the tables; --out {store.label} is none")
    return f"{store.root}/{TENSORBOARD}"


def closing_lines(store: Store, result: RunResult) -> list[str]:
    """Return what is left to say after a run: failures, how to go on, and where everything lies."""
    if not store.exists(RUN_FILE):
        return ["interrupted before anything was started; to start run the same command again"]
    lines = [f"{result.finished} trials finished, {result.failed} failed, {result.missing} open"]
    if result.failed:
        errors = tables.read_table(store, "trials", ["trial_id", "error"], [("status", "==", "failed")]).to_pylist()
        lines += [f"  failed {row['trial_id']}: {row['error']}" for row in errors]
        logs = f"{store.label}/{log_file(trial_folder('ID'))}"
        lines.append(f"  logs: {logs}; run the same command with --retry-failed to try again")
    if result.missing:
        lines.append("interrupted, every state is saved; to go on run the same command again")
    lines.append(f"tables {store.label}/{TABLES}, run file {store.label}/{RUN_FILE}")
    if result.finished:
        lines.append(f"next   ablate results {store.word}   ablate report {store.word}")
    return lines
