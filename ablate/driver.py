"""What does the driver of one run do, from a search space to committed tables?"""

from __future__ import annotations

import errno
import os
import platform
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from rich.console import Console

from ablate import __version__, results
from ablate.costs import costs_for
from ablate.datasets import Dataset, load_dataset, require_dataset
from ablate.display import Display, LineReporter, trial_words
from ablate.lock import RunLock, clear_stop, request_stop
from ablate.policy import Costs, Policy, Stage
from ablate.space import (
    Grid,
    InputError,
    Pretrain,
    Source,
    TrialSpec,
    find_grid,
    load_grid,
    load_trial,
    nearest,
    plan_of,
)
from ablate.store import MANIFEST, Store, StoreFull, step_of

RUN_FILE = "run.yaml"
WARNINGS_SHOWN = 5  # of a data set, before a run
_LIBRARIES = (
    "torch",
    "torchvision",
    "ray",
    "diffusers",
    "segmentation-models-pytorch",
    "lightly",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
)


@dataclass(frozen=True)
class Options:
    """How a search space is run; nothing here changes what a trial computes on a CPU but `cpus_per_stage`."""

    out: str
    data_dir: Path | None = None
    address: str | None = None
    gpus_per_pretrain: float | None = None  # None: 1 where there is a GPU, else 0
    gpus_per_finetune: float | None = None  # None: 0.25 where there is a GPU, else 0
    cpus_per_stage: int = 1
    max_concurrent: int | None = None
    max_failures: int = 3
    checkpoint_minutes: float = 5.0
    share: bool = True
    keep_weights: bool = False
    retry_failed: bool = False
    log: tuple[str, ...] = ()  # trackers: tensorboard, mlflow, wandb


@dataclass(frozen=True)
class RunResult:
    """What came out of a run."""

    exit_code: int  # 0 done, 1 some trials failed, 130 or 143 interrupted
    finished: int
    failed: int
    missing: int


# --- before any compute -----------------------------------------------------------------------------


def check_trials(
    trials: Sequence[TrialSpec], data_dir: Path | None, warn: Callable[[str], None] = lambda text: None
) -> None:
    """Refuse, before any compute, trials that could not run: data, shots, networks, weights.

    `warn` is told what the data sets' readers found odd.

    Raises:
        InputError: the first thing that is wrong, with its cure.
    """
    names = dict.fromkeys(name for trial in trials for name in _datasets_of(trial))
    infos = {name: require_dataset(name, data_dir) for name in names}
    for name, info in infos.items():
        for warning in info.warnings[:WARNINGS_SHOWN]:
            warn(f"warning: {warning}")
        if len(info.warnings) > WARNINGS_SHOWN:
            warn(f"warning: {len(info.warnings) - WARNINGS_SHOWN} more; ablate data check {name} lists them")
    from ablate.finetune import check_finetune
    from ablate.models import check_imagenet, check_network, check_weights

    for network, size in dict.fromkeys((trial.network, trial.image_size) for trial in trials):
        check_network(network, size)
    for trial in trials:
        check_finetune(trial, infos[trial.dataset].train)
    for trial in trials:
        if trial.pretraining is not None:
            check_weights(trial.pretraining)
    for network, weights in dict.fromkeys(
        (trial.network, getattr(trial.pretrain, "weights", None)) for trial in trials if trial.method == "imagenet"
    ):
        check_imagenet(network, weights)


def _datasets_of(trial: TrialSpec) -> Iterator[str]:
    yield trial.dataset
    if isinstance(trial.pretrain, Pretrain):
        yield trial.pretrain.dataset


def prepare(trials: Sequence[TrialSpec], data_dir: Path | None) -> dict[str, Dataset]:
    """Decode and cache every data set at every size that some trial uses; return one of each name."""
    loaded: dict[str, Dataset] = {}
    for name, size in dict.fromkeys((name, trial.image_size) for trial in trials for name in _datasets_of(trial)):
        loaded[name] = load_dataset(name, data_dir, size)
    return loaded


# --- what there is already --------------------------------------------------------------------------


def published_snapshots(
    store: Store, keys: Sequence[str], damaged: Callable[[str], None] = lambda path: None
) -> set[tuple[str, int]]:
    """Return (key, step) of every snapshot that exists whole, of the pre-trainings `keys`.

    `damaged` is told the path of each that was whole once: it has a manifest which its files do not fit.
    """
    found = set()
    present = set(store.list("pretrained"))
    for key in keys:
        if key not in present:
            continue
        for name in store.list(f"pretrained/{key}"):
            step, path = step_of(name), f"pretrained/{key}/{name}"
            if step is not None and store.manifest(path) is not None:
                found.add((key, step))
            elif step is not None and store.exists(f"{path}/{MANIFEST}"):
                damaged(path)
    return found


def open_run(address: str | Path) -> Store:
    """Return the store of a run, to be read.

    Raises:
        InputError: there is no run.
    """
    store = Store.open(address, writable=False)
    if not store.exists(RUN_FILE):
        raise InputError(f"{store.label}: there is no run here (no {RUN_FILE}); give the folder that --out named")
    return store


def read_run_file(store: Store) -> dict[str, Any]:
    """Return the content of `run.yaml`; empty if the run is new."""
    try:
        content = yaml.load(store.read(RUN_FILE), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def _check_same_data(before: dict[str, Any], loaded: dict[str, Dataset], store: Store) -> None:
    for name, facts in before.get("data", {}).items():
        if name in loaded and loaded[name].fingerprint != facts["fingerprint"]:
            raise InputError(
                f"{store.label}: this run was started with another version of data set {name} (fingerprint "
                f"{facts['fingerprint']}, now {loaded[name].fingerprint}); give its own data, or another --out"
            )


def _run_file(
    before: dict[str, Any], grid: Grid, loaded: dict[str, Dataset], options: Options, resources: dict[str, float]
) -> dict[str, Any]:
    """Return the content of `run.yaml`: what is run, on which data, by which versions."""
    from ablate.attempt import git_revision

    trials = {row["trial_id"]: row for row in before.get("trials", [])}
    trials |= {
        trial.trial_id: {
            "trial_id": trial.trial_id,
            "pretrain_key": trial.pretrain_key,
            **trial.model_dump(mode="json"),
        }
        for trial in grid.trials
    }
    data = dict(before.get("data", {}))
    for name, dataset in loaded.items():
        splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
        data[name] = {
            "fingerprint": dataset.fingerprint,
            "unit": dataset.unit,
            "num_landmarks": dataset.num_landmarks,
            "sdr_thresholds": list(dataset.sdr_thresholds),
            "counts": {split: len(part.names) for split, part in splits.items()},
            "duplicates": [n for n, twice in zip(dataset.test.names, dataset.test.duplicates_N, strict=True) if twice],
        }
    session = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["ablate", *sys.argv[1:]]),
        "ablate": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
        "resources": {name: resources[name] for name in ("CPU", "GPU") if name in resources},
        "share": options.share,
    }
    return {
        "name": grid.name,
        "description": grid.description,
        "search_space": grid.resolved,
        "data": data,
        "sessions": [*before.get("sessions", []), session],
        "trials": list(trials.values()),
    }


# --- the run ----------------------------------------------------------------------------------------


def _yaml(content: dict[str, Any]) -> bytes:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C where there is one: 10 000 trials are megabytes
    text: str = yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


@dataclass
class _Stop:
    """Whether the run has to stop, and why: by which signal, or because the store is full."""

    signal: int | None = None
    full: str | None = None
    requested: threading.Event = field(default_factory=threading.Event)
    asking: threading.Thread | None = None

    def __call__(self) -> bool:
        return self.requested.is_set()

    def everywhere(self, store: Store, token: str, reason: str) -> None:
        """Start nothing more, and ask every running stage to save its state and return."""
        self.requested.set()
        with suppress(StoreFull):  # then no running stage gets far
            request_stop(store, token, reason)

    def forget(self, store: Store, token: str) -> None:
        """Take the request back once nobody is left to read it."""
        if self.asking is not None:
            self.asking.join()
        if self.requested.is_set():
            clear_stop(store, token)


@contextmanager
def _signals(stop: _Stop, store: Store, token: str, console: Console) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the run with every state saved; a second one leaves at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested.is_set():
            os._exit(128 + number)
        stop.signal = number
        stop.requested.set()
        stop.asking = threading.Thread(target=stop.everywhere, args=(store, token, signal.Signals(number).name))
        stop.asking.start()
        console.print(f"{signal.Signals(number).name}: saving the running stages' states; once more to leave at once")

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals: a caller in another one stops the run its own way
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stop_when_lost(lock: RunLock, stop: _Stop, store: Store) -> Iterator[None]:
    """Stop the run when another driver has taken its lock."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if lock.lost:
                stop.everywhere(store, lock.token, "lock lost")
                return

    thread = threading.Thread(target=watch, name="lock-lost", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _experiment(tracker: str, grid: Grid, store: Store) -> str:
    """Return the name under which a tracker files the run: the grid's; of tensorboard the folder of its events."""
    if tracker != "tensorboard":
        return f"ablate-{grid.name}"
    if not store.is_local:
        raise InputError(f"--log tensorboard writes to a folder beside the tables; --out {store.label} is none")
    return f"{store.root}/tensorboard"


def _decide_resources(options: Options, present: dict[str, float]) -> tuple[float, float]:
    """Return GPUs per pre-training and per fine-tuning; refuse more than one machine could ever give."""
    has_gpu = present.get("GPU", 0) > 0
    pretrain = options.gpus_per_pretrain if options.gpus_per_pretrain is not None else float(has_gpu)
    finetune = options.gpus_per_finetune if options.gpus_per_finetune is not None else 0.25 * has_gpu
    where = f"the cluster at {options.address}" if options.address else "this machine"
    for flag, gpus in (("--gpus-per-pretrain", pretrain), ("--gpus-per-finetune", finetune)):
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise InputError(f"{flag} must be a share of a GPU between 0 and 1 or a whole number; got {gpus:g}")
        if gpus > present.get("GPU", 0) and not (options.address and gpus <= 8):
            raise InputError(
                f"{flag} must be at most {present.get('GPU', 0):g}, the GPUs of {where}; got {gpus:g}; "
                "leave it out to compute on the CPU where there is no GPU"
            )
    if options.cpus_per_stage > present.get("CPU", 0) and not options.address:
        raise InputError(
            f"--cpus-per-stage must be at most {present.get('CPU', 0):g}, the CPUs of {where}; "
            f"got {options.cpus_per_stage}"
        )
    return pretrain, finetune


def run_grid(grid: Grid, options: Options, console: Console) -> RunResult:
    """Run every trial of `grid` that is not finished in the store yet.

    Raises:
        InputError: before any compute, for anything that could not run; or another driver has taken the run over.
        StoreFull: there was no room in the store; what is there is whole, and the run can go on once there is.
    """
    store = Store.open(options.out)
    stop, lock = _Stop(), RunLock(store)
    # From the start: a KeyboardInterrupt may be raised where a library swallows it, a flag cannot be lost.
    with _signals(stop, store, lock.token, console):
        try:
            if options.log:
                from ablate.tuner import check_trackers

                check_trackers(options.log)
            check_trials(grid.trials, options.data_dir, lambda text: console.print(text, soft_wrap=True))
            with lock:
                _run_locked(grid, options, console, store, lock, stop)
        finally:
            stop.forget(store, lock.token)
    status = results.finished_trials(store)
    states = [status.get(trial.trial_id) for trial in grid.trials]
    failed, missing = states.count("failed"), states.count(None)
    code = 128 + stop.signal if stop.signal is not None and missing else int(failed > 0 or missing > 0)
    return RunResult(code, states.count("finished"), failed, missing)


def _run_locked(grid: Grid, options: Options, console: Console, store: Store, lock: RunLock, stop: _Stop) -> None:
    from ablate.pictures import write_thumbnails

    loaded = prepare(grid.trials, options.data_dir)
    if stop():
        return
    before = read_run_file(store)
    _check_same_data(before, loaded, store)
    plan = plan_of(grid.trials)
    status = results.finished_trials(store)
    done = {n for n, state in status.items() if state == "finished" or not options.retry_failed}
    todo = [trial for trial in plan.trials if trial.trial_id not in done]

    def damaged(path: str) -> None:
        console.print(
            f"warning: {store.label}/{path} is damaged (a file is missing, or not of the size its manifest says); "
            "it is made anew if a trial needs it",
            soft_wrap=True,
        )

    if todo:
        published = published_snapshots(store, list(plan.pretrainings), damaged) if options.share else set()
        store.clean_temporaries()
        for name in dict.fromkeys(trial.dataset for trial in todo):
            write_thumbnails(store, loaded[name], options.data_dir)

        def make_policy(costs: Costs) -> Policy:
            return Policy(plan, costs, done=done, published=published, share=options.share)

        if not stop():
            _run_todo(grid, options, console, store, lock, make_policy, loaded, before, stop)


def _run_todo(
    grid: Grid,
    options: Options,
    console: Console,
    store: Store,
    lock: RunLock,
    make_policy: Callable[[Costs], Policy],
    loaded: dict[str, Dataset],
    before: dict[str, Any],
    stop: _Stop,
) -> None:
    from ablate import tuner
    from ablate.attempt import Settings
    from ablate.rows import write_failed_trial

    trials = {trial.trial_id: trial for trial in grid.trials}
    users: dict[str | None, int] = {}
    for trial in grid.trials:
        users[trial.pretrain_key] = users.get(trial.pretrain_key, 0) + 1

    def also(stage: Stage, outcome: str, error: str | None) -> None:
        """Record failures that no worker could record itself; stop when the store is full."""
        try:
            if outcome == "failed" and stage.kind != "pretrain":
                write_failed_trial(trials[stage.name], store, error or "failed")
        except StoreFull as full:
            outcome, error = "interrupted", full.strerror
        if outcome == "interrupted" and error is not None and stop.full is None:
            stop.full = error
            stop.everywhere(store, lock.token, "the store is full")

    with tuner.connected(options.address) as present:
        gpus_pretrain, gpus_finetune = _decide_resources(options, dict(present))
        policy = make_policy(costs_for(store, gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune))
        content = _run_file(before, grid, loaded, options, dict(present))
        store.write(RUN_FILE, _yaml(content))
        settings = Settings(
            threads=options.cpus_per_stage,
            checkpoint_minutes=options.checkpoint_minutes,
            keep_weights=options.keep_weights,
            shared_keys=frozenset(key for key, count in users.items() if key is not None and count > 1),
            fingerprints={name: dataset.fingerprint for name, dataset in loaded.items()},
        )
        data_dir = str(options.data_dir.resolve()) if options.data_dir is not None else None
        already = len(grid.trials) - policy.num_trials
        with (
            _signals(stop, store, lock.token, console),  # again: starting Ray replaces the handler of SIGTERM
            _stop_when_lost(lock, stop, store),
            Display(console, policy, already=already, also=also) as shown,
        ):
            tuner.run_stages(
                policy,
                tuner.Job(store.address, data_dir, lock.token, settings),
                tuner.Resources(options.cpus_per_stage, gpus_pretrain, gpus_finetune),
                shown,
                stopped=stop,
                max_concurrent=options.max_concurrent,
                max_failures=options.max_failures,
                may_grow=options.address is not None,
                trackers={name: _experiment(name, grid, store) for name in options.log},
            )
    if stop.full is not None:
        raise StoreFull(errno.ENOSPC, stop.full)
    if lock.lost:
        raise InputError(f"{store.label}: another driver has taken this run over; this one stops")


# --- one trial, and the words at the end ------------------------------------------------------------


def find_trial(text: str, grid: str | None, overrides: Sequence[str], out: str) -> TrialSpec:
    """Return the trial of a YAML file, or the one with this id in a search space or in the run at `out`.

    Raises:
        InputError: there is no such file or trial.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return load_trial(Source.parse(path.read_text(encoding="utf-8"), str(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: a trial must be a readable YAML file; {error}") from error
    if grid is not None:
        trials = {trial.trial_id: trial for trial in load_grid(find_grid(grid), overrides).trials}
        where = f"search space {grid}"
    else:
        rows = read_run_file(Store.open(out, writable=False)).get("trials", []) if Path(out).exists() else []
        trials = {row["trial_id"]: _trial_of_row(row) for row in rows}
        where = f"the run {out}"
    if text not in trials:
        raise InputError(
            f"TRIAL must be a YAML file or the id of a trial in {where}; got '{text}'{nearest(text, trials)}; "
            "ablate plan --trials lists a search space's ids"
        )
    return trials[text]


def _trial_of_row(row: dict[str, Any]) -> TrialSpec:
    fields = {name: value for name, value in row.items() if name not in ("trial_id", "pretrain_key")}
    return load_trial(Source(RUN_FILE, fields, None))


def run_single(trial: TrialSpec, out: str, data_dir: Path, threads: int, keep_weights: bool, console: Console) -> int:
    """Run one trial in this process, printing its progress; return the exit code."""
    from ablate.attempt import Settings
    from ablate.pictures import write_thumbnails
    from ablate.trial import TrialFailed, data_in, run_trial

    store = Store.open(out)
    check_trials([trial], data_dir, lambda text: console.print(text, soft_wrap=True))
    reporter = LineReporter(console)
    console.print(f"trial {trial.trial_id}: {trial_words(trial)}", soft_wrap=True)
    with RunLock(store):
        loaded = prepare([trial], data_dir)
        before = read_run_file(store)
        _check_same_data(before, loaded, store)
        grid = Grid("trial", "", (trial,), {})
        store.write(RUN_FILE, _yaml(_run_file(before, grid, loaded, Options(out=out), {})))
        write_thumbnails(store, loaded[trial.dataset], data_dir)
        try:
            settings = Settings(keep_weights=keep_weights)
            row = run_trial(trial, store, data_in(data_dir), reporter, threads, settings=settings)
        except TrialFailed as error:
            console.print(f"{error}; the traceback is in {store.label}/trials/{trial.trial_id}/log.txt", soft_wrap=True)
            return 1
    unit = row["unit"]
    console.print(f"MRE {row['mre']:.3f} {unit}, median {row['mre_median']:.3f} {unit}, best epoch {row['best_epoch']}")
    return 0


def closing_lines(store: Store, result: RunResult) -> list[str]:
    """Return what is left to say after a run: failures, how to go on, and where everything lies."""
    lines = [f"{result.finished} trials finished, {result.failed} failed, {result.missing} open"]
    if result.failed:
        errors = results.read_table(store, "trials", ["trial_id", "error"], [("status", "==", "failed")]).to_pylist()
        lines += [f"  failed {row['trial_id']}: {row['error']}" for row in errors]
        lines.append(f"  logs: {store.label}/trials/ID/log.txt; run the same command with --retry-failed to try again")
    if result.missing:
        lines.append("interrupted, every state is saved; to go on run the same command again")
    lines.append(f"tables {store.label}/tables, run file {store.label}/{RUN_FILE}")
    lines.append(f"next   ablate results {store.label}   ablate report {store.label}")
    return lines
