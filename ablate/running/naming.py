"""The names of a run's trials and pre-trainings on the screen: what they differ in, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.space import NETWORKS, Pretraining, TrialSpec, flatten, method_label, trial_fields
from ablate.space.words import initialisation, spoken

_START = ("pretrain_method", "pretrain_name", "pretrain_timesteps", "pretrain_steps")
_LEADING = (*_START, "dataset", "pretrain_dataset", "shots")
_TRAILING = ("seed", "draw", "pretrain_seed", "pretrain_weights_sha256")
"""An axis that those before it determine, such as a learning rate that goes with the initialisation, is not named:
the axes that a reader thinks in come first, the seeds last."""

_ALONE = (*_START, "dataset", "shots", "seed")
"""What names a trial that differs from no other."""

_WORDS: Mapping[str, Callable[[Any], str]] = {
    "pretrain_hidden_dim": lambda value: f"hidden_dim {spoken('pretrain_hidden_dim', value)}",
    "pretrain_timesteps": lambda value: f"T={value}",
    "pretrain_steps": lambda value: f"{value} steps",
    "pretrain_transfer": lambda value: str(spoken("pretrain_transfer", value)) if value != "network" else "",
    "dataset": str,
    "pretrain_dataset": lambda value: f"from {value}",
    "shots": lambda value: f"{value} shot{'' if value == 1 else 's'}",
    "network_kind": str,
    "network_encoder": str,
    "seed": lambda value: f"seed {value}",
}
"""Axes with words of their own, none for what goes without saying; another is its field's name and the value."""


class Names:
    """Names trials and pre-trainings by the axes that vary over the trials of one grid.

    Args:
        trials: all trials of the grid, or mappings of their fields as `run.yaml` lists them.
    """

    def __init__(self, trials: Iterable[TrialSpec | Mapping[str, Any]]) -> None:
        rows = [_row(trial) for trial in trials]
        self.axes = _telling(rows) or _ALONE
        """Columns of the fields that are named, in the order in which they are."""
        self._varies = self.axes is not _ALONE
        seeds = {(row.get("seed"), row["pretrain_seed"]) for row in rows if row.get("pretrain_seed") is not None}
        self._seed_follows = len(seeds) > 1 and all(seed == own for seed, own in seeds)
        self._short = _short_names(self.axes)

    def trial(self, trial: TrialSpec | Mapping[str, Any]) -> str:
        """Return a trial of the grid in a few words: `DDPM T=500, 10 shots, lr 0.001, seed 0`."""
        return self._words(_row(trial), self.axes)

    def pretraining(self, pretraining: Pretraining) -> str:
        """Return a pre-training of the grid in a few words: `DDPM T=500 on chest`."""
        fields = pretraining.fields
        if not self._varies:
            return f"{initialisation(fields)} on {fields.dataset}"
        given = {"pretrain": fields.model_dump(), "network": pretraining.network.model_dump()}
        row = _row({**given, "image_size": pretraining.image_size, "fold": pretraining.fold})
        row.pop("pretrain_transfer", None)  # trials of either may start from it
        if self._seed_follows:  # each pre-training is of one seed of the trials
            row["seed"] = fields.seed
        if pretraining.selection is not None:
            row |= {"shots": pretraining.selection.shots, "draw": pretraining.selection.draw}
        words = self._words(row, tuple(dict.fromkeys(("pretrain_method", *self.axes))), skip="pretrain_dataset")
        datasets = {"dataset", "pretrain_dataset"} & set(self.axes)
        return f"{words} on {fields.dataset}" if datasets else words

    def _words(self, row: Mapping[str, Any], axes: Sequence[str], skip: str = "") -> str:
        words = []
        if {"pretrain_method", "pretrain_name"} & set(axes):
            words.append(method_label(str(row["pretrain_method"]), str(row.get("pretrain_name") or "")))
        for axis in axes:
            value = row.get(axis)
            if value is None or axis in ("pretrain_method", "pretrain_name", skip):
                continue
            own = _WORDS.get(axis)
            word = f"{self._short[axis]} {_text(value)}" if own is None else own(value)
            if axis == "pretrain_timesteps" and words:
                words[-1] += f" {word}"
            elif word:
                words.append(word)
        return ", ".join(words)


def _row(trial: TrialSpec | Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's values by column, without fields that its kind of network does not use."""
    row = {name: tuple(value) if isinstance(value, list) else value for name, value in flatten(trial).items()}
    network = NETWORKS.get(str(row.get("network_kind")))
    used = {"network_kind", *(f"network_{name}" for name in network.fields)} if network else row.keys()
    return {name: value for name, value in row.items() if not name.startswith("network_") or name in used}


def _telling(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns that vary and that those before them do not determine."""
    names = dict.fromkeys(name for row in rows for name in row)
    middle = [name for name in names if name not in (*_LEADING, *_TRAILING)]
    kept, groups, count = [], [0] * len(rows), min(1, len(rows))
    for name in (*_LEADING, *middle, *_TRAILING):
        if len({row[name] for row in rows if row.get(name) is not None}) < 2:
            continue
        numbers: dict[tuple[int, Any], int] = {}
        finer = [
            numbers.setdefault((group, row.get(name)), len(numbers)) for group, row in zip(groups, rows, strict=True)
        ]
        if len(numbers) > count:
            kept.append(name)
            groups, count = finer, len(numbers)
    return tuple(kept)


def _short_names(axes: Sequence[str]) -> dict[str, str]:
    """Return the last part of each axis's field, `lr`, or all of it where that says too little: `pretrain.lr`."""
    paths = {field.column: field.path for field in trial_fields() if field.column in axes}
    last = Counter(path[-1] for path in paths.values())
    taken = {"seed", "shots", "dataset", "steps", "timesteps"}
    return {
        axis: ".".join(path) if last[path[-1]] > 1 or (len(path) > 1 and path[-1] in taken) else path[-1]
        for axis, path in paths.items()
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    text = str(value)
    return Path(text).name if "/" in text else text
