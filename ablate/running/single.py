"""One trial by itself, without Ray: found by its file or id, and run in this process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ablate.errors import InputError, nearest
from ablate.running.checks import check_trials, prepare
from ablate.running.display import LineReporter
from ablate.running.naming import Names
from ablate.running.sessions import check_same_data, run_file
from ablate.running.supervision import STOPPED_EXIT_CODE
from ablate.space import Grid, Source, TrialSpec, load_grid, load_trial, recorded_trial
from ablate.store import Store
from ablate.store.addresses import is_remote, label_of
from ablate.store.fence import Fence
from ablate.store.layout import RUN_FILE, log_file, trial_folder
from ablate.store.lock import RunLock
from ablate.store.run_file import find_search_space, read_run_file, yaml_bytes
from ablate.store.stopping import StopWatch, clear_stop, stop_reason


def find_trial(text: str, grid: str | None, overrides: Sequence[str], out: str) -> TrialSpec:
    """Return the trial of a YAML file, or the one with this id in a search space or in the run at `out`.

    Raises:
        InputError: there is no such file or trial, or no run at an address `out`.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return load_trial(Source.parse(path.read_text(encoding="utf-8"), str(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: a trial must be a readable YAML file; {error}") from error
    if grid is not None:
        trials = {trial.trial_id: trial for trial in load_grid(find_search_space(grid), overrides).trials}
        where = f"search space {grid}"
    else:
        is_there = is_remote(out) or Path(out).exists()
        rows = read_run_file(Store.open(out, writable=False)).get("trials", []) if is_there else []
        trials = {row["trial_id"]: recorded_trial(row, RUN_FILE) for row in rows}
        where = f"the run {label_of(out)}"
    if text not in trials:
        raise InputError(
            f"TRIAL must be a YAML file or the id of a trial in {where}; got '{text}'{nearest(text, trials)}; "
            "ablate plan --trials lists a search space's ids"
        )
    return trials[text]


def run_single(trial: TrialSpec, out: str, data_dir: str, threads: int, keep_weights: bool, console: Console) -> int:
    """Run one trial in this process, printing its progress; return the exit code."""
    from ablate.stage.pictures import write_thumbnails
    from ablate.stage.settings import Settings
    from ablate.stage.task import data_in
    from ablate.stage.trial import TrialFailed, run_trial
    from ablate.training import Interrupted

    store = Store.open(out)
    check_trials([trial], data_dir, lambda text: console.print(text, soft_wrap=True))
    reporter = LineReporter(console)
    console.print(f"trial {trial.trial_id}: {Names([trial]).trial(trial)}", soft_wrap=True)
    with RunLock(store) as lock:
        loaded = prepare([trial], data_dir)
        before = read_run_file(store)
        check_same_data(before, loaded, store)
        known = (before.get("name", "trial"), before.get("description", ""))  # of the run that the trial is part of
        grid = Grid(*known, (trial,), before.get("search_space", {}))
        store.write(RUN_FILE, yaml_bytes(run_file(before, grid, loaded, {}, keep_weights=keep_weights)))
        write_thumbnails(store, loaded[trial.dataset], data_dir)
        store.fence = Fence(store, lock.token)
        asked = functools.partial(stop_reason, store, lock.token)
        try:
            settings = Settings(threads=threads, keep_weights=keep_weights)
            with StopWatch(asked) as stop:
                row = run_trial(
                    trial,
                    store,
                    data_in(data_dir),
                    lambda progress: reporter(progress) or stop(),
                    settings=settings,
                )
        except Interrupted:
            clear_stop(store, lock.token)
            console.print("stopped by 'ablate stop', the state is saved; to go on run the same command again")
            return STOPPED_EXIT_CODE
        except TrialFailed as error:
            log = log_file(trial_folder(trial.trial_id))
            console.print(f"{error}; the traceback is in {store.label}/{log}", soft_wrap=True)
            return 1
    unit = row["unit"]
    console.print(f"MRE {row['mre']:.3f} {unit}, median {row['mre_median']:.3f} {unit}, best epoch {row['best_epoch']}")
    return 0
