"""How far a run is, and what it stores, as lines of text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ablate import tables
from ablate.running.naming import Names
from ablate.store import MANIFEST, Store, step_of
from ablate.store.layout import (
    LOG,
    MODEL,
    PICTURES,
    PRETRAINED,
    REFERENCES,
    REPORT,
    SPEC,
    STARTS,
    STATE,
    TABLES,
    TRIALS,
    TUNING,
    log_file,
    pretrained_folder,
    state_folder,
    step_folder,
    trial_folder,
    tuning_folder,
)
from ablate.store.lock import RunLock
from ablate.store.run_file import planned_trials, read_run_file
from ablate.words import counted

KINDS = {
    "states": "training states, needed to go on or to pre-train for longer",
    "snapshots": "pre-trained weights, needed to run more trials from them",
    "weights": "fine-tuned weights, needed by predict",
    "tables": "results",
    "tuning": "results of tuning trials, needed to go on",
    "pictures": "thumbnails and strips for the report",
    "report": "tables, figures and the page",
    "references": "published results beside the run's own",
    "starts": "starting points of one's own, needed to go on where their files are not",
    "logs": "logs of the stages",
    "other": "run.yaml and control files",
}
"""What a run stores. Only states, snapshots and weights can be made anew, and be deleted by `clean`."""

TRIALS_SHOWN = 40
"""Trials of a run that are listed without being asked for; the others are counted."""


def mre_text(mre: float, unit: str) -> str:
    """Return a trial's error: `MRE 2.31 mm`."""
    return f"MRE {mre:.2f} {unit}"


def stage_line(outcome: str, key: str, what: str, words: str) -> str:
    """Return how a stage ended or a trial stands, in columns that are the same everywhere."""
    return f"{outcome:<11} {key}  {what:<12}  {words}"


def status_lines(store: Store, *, every_trial: bool = False) -> list[str]:
    """Return who is at work on a run, its data sets, and the state of its trials and pre-trainings, as lines of text.

    Of more than `TRIALS_SHOWN` trials only so many are listed, unless `every_trial`.
    """
    planned, described = planned_trials(store), read_run_file(store)
    status = tables.trial_status(store)
    states = Counter(status.get(trial["trial_id"], "open") for trial in planned)
    lock = RunLock(store)
    owner = lock.owner()
    if owner is None:
        driver = "no driver is at work"
    elif lock.is_gone(owner):
        driver = f"the driver on {owner.host} (pid {owner.pid}, started {owner.started_at}) is gone"
    else:
        driver = f"a driver is at work on {owner.host}, pid {owner.pid}, since {owner.started_at}"
    lines = [
        f"{store.label}: {driver}",
        *_data_lines(described.get("data", {})),
        f"trials         {len(planned)}: {states['finished']} finished, {states['failed']} failed, "
        f"{states['open']} open",
        *_trial_lines(store, planned, status, None if every_trial else TRIALS_SHOWN),
        *_tuning_lines(store, described),
    ]
    needed: dict[str, set[int]] = defaultdict(set)
    for trial in planned:
        if trial.get("pretrain_key"):
            needed[trial["pretrain_key"]].add(trial["pretrain"]["steps"])
    lines.append(f"pre-trainings  {len(needed)}")
    labels = {trial["pretrain_key"]: trial["pretrain"]["method"] for trial in planned if trial.get("pretrain_key")}
    for key, steps in needed.items():
        folder = pretrained_folder(key)
        made = sorted(step for step in steps if store.manifest(step_folder(folder, step)) is not None)
        state = store.newest(state_folder(folder))
        done = f"snapshots {', '.join(map(str, made))}" if made else "no snapshot yet"
        lines.append(
            f"  {key}  {labels[key]:<13} {done} of {', '.join(map(str, sorted(steps)))}; state at {state or 0}"
        )
    attempts = tables.read_table(store, "stages", ["kind", "outcome"]).to_pylist()
    counts = Counter((row["kind"], row["outcome"]) for row in attempts)
    lines.append("attempts")
    lines += [f"  {kind:<9} {outcome:<12} {count}" for (kind, outcome), count in sorted(counts.items())]
    failed = tables.read_table(store, "trials", ["trial_id", "error"], [("status", "==", "failed")]).to_pylist()
    if failed:
        lines.append(f"failed trials (their logs: {log_file(trial_folder('ID'))})")
        lines += [f"  {row['trial_id']}  {row['error']}" for row in failed]
    return lines


def _data_lines(data: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each data set of a run."""
    for number, (name, facts) in enumerate(data.items()):
        counts = facts["counts"]
        images = f"{counts['train']} training, {counts['val']} validation, {counts['test']} test images"
        if counts.get("unlabelled"):
            images += f", {counts['unlabelled']} unlabelled"
        if "folds" in facts:
            images += f" in the first of {facts['folds']} folds"
        landmarks = f"{counted(facts['num_landmarks'], 'landmark')}, errors in {facts['unit']}"
        yield f"{'' if number else 'data sets':<15}{name}: {images}, {landmarks}"


def _trial_lines(
    store: Store, planned: Sequence[Mapping[str, Any]], status: Mapping[str, str], most: int | None
) -> Iterator[str]:
    """Yield a line for each trial, with its id, and how many are left out."""
    found = tables.read_table(store, "trials", ["trial_id", "mre", "unit"], [("status", "==", "finished")]).to_pylist()
    errors = {row["trial_id"]: mre_text(row["mre"], row["unit"]) for row in found}
    names = Names(planned)
    for trial in planned[:most]:
        key = trial["trial_id"]
        yield f"  {stage_line(status.get(key, 'open'), key, errors.get(key, ''), names.trial(trial))}"
    if most is not None and len(planned) > most:
        yield f"  and {counted(len(planned) - most, 'trial')} more: --trials lists them"


def _tuning_lines(store: Store, described: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each tuning of a run: its round, how its configurations ended, and the best so far."""
    spec = (described.get("search_space") or {}).get("tune")
    if not spec:
        return
    columns = ["arm", "place", "repeat", "round", "number", "state", "val_mre", "fields"]
    rows = tables.read_table(store, "tuning", columns).to_pylist()
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["number"] < spec["budget"]:
            found[row["arm"], row["place"], row["repeat"]].append(row)
    rounds = spec["budget"] // spec["round"]
    yield f"tuning         {len(found)} begun, {spec['budget']} configurations each, in {counted(rounds, 'round')}"
    for (arm, place, repeat), own in found.items():
        states = Counter(row["state"] or "open" for row in own)
        counts = ", ".join(
            f"{states[state]} {state}" for state in ("finished", "stopped", "failed", "open") if states[state]
        )
        name = ", ".join(filter(None, [arm, place, f"repeat {repeat}" if spec.get("repeats", 1) > 1 else ""]))
        finished = [row for row in own if row["state"] == "finished"]
        best = min(finished, key=lambda row: (row["val_mre"], row["number"]), default=None)
        words = f"; best {best['val_mre']:.2f} on validation: {best['fields']}" if best else ""
        yield f"  {name}: round {max(row['round'] for row in own) + 1} of {rounds}, {counts}{words}"


def kind_of(path: str) -> str:
    """Return the kind of a stored file, a key of `KINDS`, by its path in the store."""
    parts = path.split("/")
    if parts[0] in (TABLES, PICTURES, REPORT, REFERENCES, STARTS):
        return parts[0]
    if parts[-1] == LOG:
        return "logs"
    if STATE in parts[:-1]:
        return "states"
    if parts[0] == TUNING:
        return "tuning"
    if parts[0] == PRETRAINED or PRETRAINED in parts[2:3]:
        return "snapshots"
    return "weights" if parts[0] == TRIALS else "other"


def size_text(num_bytes: float) -> str:
    """Return a size in the largest unit that keeps it above one: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def storage_lines(store: Store) -> list[str]:
    """Return what a run stores, by kind and size, as lines of text."""
    planned_trials(store)  # refuses a folder that is no run
    sizes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path, size in store.sizes().items():
        sizes[kind_of(path)] += size
        files[kind_of(path)] += 1
    lines = [
        f"{kind:<10}{size_text(sizes[kind]):>9} in {files[kind]:>5} files  {meaning}"
        for kind, meaning in KINDS.items()
        if files[kind]
    ]
    return [*lines, f"{'total':<10}{size_text(sizes.total()):>9} in {files.total():>5} files"]


def _folders(store: Store, kinds: Sequence[str]) -> Iterable[str]:
    """Yield the artifacts of some kinds, so that each is deleted as a whole."""
    for key in store.list(PRETRAINED):
        folder = pretrained_folder(key)
        for name in store.list(folder):
            if name == STATE and "states" in kinds:
                yield state_folder(folder)
            elif step_of(name) is not None and "snapshots" in kinds:
                yield f"{folder}/{name}"
    if "states" in kinds:
        yield from (state_folder(tuning_folder(trial_id)) for trial_id in store.list(TUNING))
    for trial_id in store.list(TRIALS):
        folder = trial_folder(trial_id)
        names = store.list(folder)
        if "states" in kinds and STATE in names:
            yield state_folder(folder)
        if "snapshots" in kinds and PRETRAINED in names:
            yield f"{folder}/{PRETRAINED}"
        if "weights" in kinds:
            yield from (f"{folder}/{name}" for name in (MANIFEST, MODEL, SPEC) if name in names)


def clean_run(store: Store, kinds: Sequence[str]) -> list[str]:
    """Delete the `states`, `snapshots` or `weights` of a run that nobody is at work on; return what was freed.

    Raises:
        InputError: a driver is at work on the run.
    """
    with RunLock(store):
        before = sum(store.sizes().values())
        for folder in _folders(store, kinds):
            store.delete(folder)
        after = sum(store.sizes().values())
    return [f"deleted {' and '.join(kinds)}: {size_text(max(0, before - after))} freed"]
