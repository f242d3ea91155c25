"""What the shell offers when it completes a word: search spaces, data sets, metrics, runs and trials' ids.

Nothing here reaches a network or imports torch, Ray or the readers of tables: the user waits for the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

METRICS = (
    *("mre", "mre_median", "mre_std", "paper_mre", "val_mre", "val_loss", "parameters", "peak_memory_bytes"),
    *("pretrain_seconds", "finetune_seconds", "evaluate_seconds", "best_epoch", "epochs", "labels"),
)
"""Metrics that every run has; the rates, `sdr@2.5` and `paper_sdr@2.5`, are those of the run's thresholds."""

RATES = ("sdr", "paper_sdr")


def choices(*values: str) -> Callable[[str], list[str]]:
    """Return a completion of fixed words."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def grids(incomplete: str) -> list[str]:
    """Return the shipped search spaces, and YAML files and folders where the word leads to some."""
    from ablate.space import shipped_grids

    return [*(name for name in shipped_grids() if name.startswith(incomplete)), *_files(incomplete, (".yaml", ".yml"))]


def datasets(context: typer.Context, incomplete: str) -> list[str]:
    """Return the built-in data sets, and the folders with a `dataset.yaml` in the local data folder."""
    from ablate.space import BUILT_IN_DATASETS

    folder = Path(context.params.get("data") or os.environ.get("ABLATE_DATA") or "data").expanduser()
    own = sorted(file.parent.name for file in folder.glob("*/dataset.yaml"))
    return [name for name in dict.fromkeys((*BUILT_IN_DATASETS, *own)) if name.startswith(incomplete)]


def metrics(context: typer.Context, incomplete: str) -> list[str]:
    """Return the metrics, with the rates of the run that is named."""
    # the option without its value, which is being typed, keeps the argument before it from being parsed
    run = context.params.get("run_") or next(iter(context.args), None)
    data = _described(run).get("data", {}).values()
    thresholds = sorted({float(threshold) for facts in data for threshold in facts.get("sdr_thresholds", ())})
    rates = [f"{rate}@{threshold:g}" for rate in RATES for threshold in thresholds]
    return [name for name in (*METRICS, *rates) if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Return the folders that hold a run, here and in `runs/`, and where the word leads."""
    start = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    found = [file.parent for place in dict.fromkeys((start, Path("runs"))) for file in _sorted(place, "*/run.yaml")]
    return [str(folder) for folder in found if str(folder).startswith(incomplete)]


def trial_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the ids of trials, each with its name: of the run or the search space that is named."""
    from ablate.running.naming import Names

    grid = context.params.get("grid")
    if grid is not None:
        from ablate.errors import InputError
        from ablate.space import find_grid, load_grid

        try:
            specs = load_grid(find_grid(grid), context.params.get("set_") or []).trials
        except InputError:
            return []
        names = Names(specs)
        rows = [(spec.trial_id, names.trial(spec)) for spec in specs if spec.trial_id.startswith(incomplete)]
    else:
        planned = _described(context.params.get("run_") or context.params.get("out")).get("trials", [])
        names = Names(planned)
        rows = [(row["trial_id"], names.trial(row)) for row in planned if row["trial_id"].startswith(incomplete)]
    return rows


def kept_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the ids of the trials of a run whose weights were kept, each with its name."""
    from ablate.store.layout import MODEL, trial_folder

    run = Path(str(context.params.get("run_")))
    return [row for row in trial_ids(context, incomplete) if (run / trial_folder(row[0]) / MODEL).is_file()]


def references(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the published results that the run that is named keeps, where it is a local folder."""
    from ablate.store.layout import reference_file

    found = _sorted(Path(str(context.params.get("run_"))), reference_file("*"))
    return [file.stem for file in found if file.stem.startswith(incomplete)]


def _described(run: object) -> dict[str, Any]:
    """Return the `run.yaml` of a run in a local folder; empty where there is none."""
    import yaml

    try:
        text = (Path(str(run)) / "run.yaml").read_text(encoding="utf-8")
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _files(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    start = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    for path in _sorted(start, "*"):
        if not path.name.startswith(".") and str(path).startswith(incomplete):
            if path.is_dir():
                yield f"{path}/"
            elif path.suffix in suffixes:
                yield str(path)


def _sorted(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
