"""The layout of trials in tables: which trials are averaged in one cell, and which are kept apart.

A cell holds the trials that agree in everything but their seeds. Whatever else differs is either one of the two
axes, or follows from them (a learning rate that depends on the method), or splits: a pre-training's own
field becomes part of the initialisation's name ("DDPM (steps 2000)"), any other field gives a table for each of
its values. Nothing is mixed silently.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from ablate.errors import InputError, nearest
from ablate.report.roles import ROLE, by_role, searched_fields
from ablate.space import FILES_OF_WEIGHTS, METHODS, method_label
from ablate.space.words import spoken
from ablate.tables import TABLES, shots_of_number

Value: TypeAlias = str | int | float | bool | tuple[object, ...] | None

INITIALISATION = "pretrain_method"
"""The field that most tables and figures have a row or a line for."""

SEED_FIELDS = ("seed", "pretrain_seed", "draw")
"""Fields that are averaged over: another value is another draw of the same thing."""

ALWAYS_SPLIT = ("dataset",)
"""Fields that never share a table unless they are an axis: their units and images have nothing in common."""

_NAMES = TABLES["trials"].names
FIELDS: tuple[str, ...] = tuple(
    name
    for name in _NAMES[_NAMES.index("pretrain_key") + 1 : _NAMES.index("status")]
    # the same as shots, and as the weights' SHA-256
    if name not in ("shots_label", *(f"pretrain_{field}" for field in FILES_OF_WEIGHTS))
)
"""The fields of a trial that two trials can differ in, as columns of the table `trials`."""

LABELS = "labels"
"""The annotated images that a trial has seen: an axis in place of the shots, from which it follows."""

TRANSFER = "pretrain_transfer"
"""The field that says what of a pre-trained network is fine-tuned, whose values speak for themselves."""

_NAME = "pretrain_name"
"""The field that names a starting point of one's own; tables have it as a part of the initialisation."""

MISSING = "missing"
"""Status of a trial that is planned and has no row in `trials` yet."""


@dataclass(frozen=True)
class Key:
    """One row or column: the axis' value and, for an initialisation, the fields in which its method varies."""

    value: Value
    variant: tuple[tuple[str, Value], ...] = ()

    def label(self, field: str) -> str:
        """Return the key as a reader knows it: `DDPM (steps 2000)`, `10`, `all`."""
        text = value_label(field, self.value)
        inner = ", ".join(_variant_label(name, value) for name, value in self.variant)
        return f"{text} ({inner})" if inner else text


@dataclass(frozen=True)
class Group:
    """The trials of one table: positions in the frame of `Grouping`, by row and column."""

    fixed: tuple[tuple[str, Value], ...]  # the values that distinguish this table from the others
    rows: tuple[Key, ...]
    columns: tuple[Key, ...]
    cells: Mapping[tuple[Key, Key], tuple[int, ...]]
    notes: tuple[str, ...]  # what else differs along the axes

    @property
    def title(self) -> str:
        """The values that all trials of this table share and those of other tables do not."""
        return ", ".join(f"{field_label(name)} {value_label(name, value)}" for name, value in self.fixed)


@dataclass(frozen=True)
class Grouping:
    """Trials laid out along two axes, in as many tables as it takes."""

    trials: pd.DataFrame
    rows: str
    columns: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()  # what a reader must know about all of them


# --- values and their names -------------------------------------------------------------------------


def plain(value: object) -> Value:
    """Return a table's value as plain Python: None for a null, a tuple for a list."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(plain(item) for item in value)
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


def initialisations(trials: pd.DataFrame) -> pd.Series:
    """Return each trial's initialisation as tables have it: its method, or `weights:NAME` for a starting point."""
    pairs = zip(map(plain, trials[INITIALISATION]), map(plain, trials[_NAME]), strict=True)
    found = [f"{method}:{name}" if name else method for method, name in pairs]
    return pd.Series(found, index=trials.index, dtype=object)


def value_label(field: str, value: Value) -> str:
    """Return a field's value as text for a reader."""
    if field == "shots":
        return str(shots_of_number(value if isinstance(value, int) else None))
    if value is None:
        return "–"
    if field == INITIALISATION:
        method, _, name = str(value).partition(":")
        return method_label(method, name) if method in METHODS else str(value)
    if (words := spoken(field, value)) != value:
        return str(words)
    if field == "pretrain_weights_sha256":
        return str(value)[:8]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "-".join(value_label("", plain(item)) for item in value)
    return str(value)


def record_value(field: str, value: Value) -> Value:
    """Return a field's value for a program: as in the table `trials`, but `all` for all shots."""
    return shots_of_number(value) if field == "shots" and (value is None or isinstance(value, int)) else value


_FIELD_LABELS = {
    INITIALISATION: "initialisation",
    "pretrain_dataset": "pre-trained on",
    "pretrain_steps": "pre-training steps",
    "pretrain_timesteps": "timesteps",
    "pretrain_weights_sha256": "weights",
    _NAME: "starting point",
    "dataset": "data set",
    "network_kind": "network",
}


def field_label(field: str) -> str:
    """Return a field's name for a reader."""
    return _FIELD_LABELS.get(field, field.replace("_", " "))


def _variant_label(field: str, value: Value) -> str:
    text = value_label(field, value)
    return text if field in (ROLE, TRANSFER) else f"{_short(field)} {text}"


def _short(field: str) -> str:
    return {"pretrain_dataset": "from", "pretrain_weights_sha256": "weights"}.get(
        field, field.removeprefix("pretrain_").replace("_", " ")
    )


def order_of(field: str, value: Value) -> tuple[object, ...]:
    """Return a key that sorts a field's values: numbers by size, methods as in METHODS, `all` shots last."""
    if field == "shots":
        return (0, value) if isinstance(value, int) else (1, 0)
    if field == INITIALISATION:
        names = list(METHODS)
        method, _, name = str(value).partition(":")
        return (names.index(method), name) if method in METHODS else (len(names), str(value))
    if value is None:
        return (2, 0.0, "")
    if isinstance(value, (bool, int, float)):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def _key_order(field: str, key: Key) -> tuple[object, ...]:
    return (order_of(field, key.value), tuple(order_of(name, value) for name, value in key.variant))


# --- axes and filters -------------------------------------------------------------------------------


def check_axis(option: str, name: str) -> str:
    """Return the column that `name` (dots or underscores) stands for; raise `InputError` if there is none."""
    column = name.strip().replace(".", "_")
    column = {"shots_label": "shots", "method": INITIALISATION}.get(column, column)
    if column not in (*FIELDS, LABELS, ROLE):
        raise InputError(
            f"{option} must be a field of a trial: {', '.join(FIELDS)}; got {name!r}{nearest(column, FIELDS)}"
        )
    return column


def filter_trials(trials: pd.DataFrame, filters: Sequence[str]) -> pd.DataFrame:
    """Return the trials that meet every `FIELD=VALUE`; `FIELD=A,B` takes either.

    Values are written as in the tables or as in a search space (`DDPM` and `ddpm`, `all`, `1e-4`, `none`).
    Raises `InputError` for an unknown field, and for a value that no trial has.
    """
    seen: set[str] = set()
    for text in filters:
        name, equals, wanted = text.partition("=")
        if name.strip() in seen:
            raise InputError(
                f"--filter {text}: {name.strip()} is given twice; for either of two values write {name.strip()}=A,B"
            )
        seen.add(name.strip())
        if not equals or not name.strip() or not wanted.strip():
            raise InputError(f"--filter {text}: must be FIELD=VALUE, for example --filter dataset=cephalo")
        if name.strip() in ("status", "trial_id", "pretrain_key", "unit"):
            column = name.strip()
        else:
            column = check_axis(f"--filter {text}: the field", name)
        values = [plain(value) for value in (initialisations(trials) if column == INITIALISATION else trials[column])]
        texts = {value: _spellings(column, value) for value in set(values)}
        chosen: set[Value] = set()
        for part in [wanted] if any(wanted.strip() in found for found in texts.values()) else wanted.split(","):
            matching = {value for value, found in texts.items() if _matches(part.strip(), value, found)}
            if not matching:
                known = [value_label(column, value) for value in sorted(texts, key=lambda v: order_of(column, v))]
                raise InputError(
                    f"--filter {text}: no trial has {column} {part.strip()!r}{nearest(part.strip(), known)}; "
                    f"the run has {', '.join(known) or 'no trials'}"
                )
            chosen |= matching
        trials = trials[[value in chosen for value in values]]
    return trials.reset_index(drop=True)


def _spellings(column: str, value: Value) -> set[str]:
    found = {value_label(column, value), str(value)}
    if value is None and column != "shots":
        found.add("none")
    if isinstance(value, bool):
        found.add(str(value).lower())
    if column == INITIALISATION:
        found.add(str(value).partition(":")[0])
    return found


def _matches(text: str, value: Value, spellings: set[str]) -> bool:
    if text in spellings:
        return True
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return False


# --- grouping ---------------------------------------------------------------------------------------

_Record: TypeAlias = Mapping[str, Value]


def _varies_within(records: Sequence[_Record], field: str, given: Iterable[str]) -> bool:
    names = tuple(given)
    seen: dict[tuple[Value, ...], Value] = {}
    return any(
        seen.setdefault(tuple(record[name] for name in names), record[field]) != record[field] for record in records
    )


def group_trials(
    trials: pd.DataFrame,
    *,
    rows: str = INITIALISATION,
    columns: str = "shots",
    filters: Sequence[str] = (),
    settled: Sequence[str] = (),
) -> Grouping:
    """Lay trials out along two fields, in one table for each combination of what else differs but the seeds.

    Args:
        trials: the table `trials` (rows of planned trials may be added with status `missing`).
        rows: field down the side.
        columns: field across.
        filters: `FIELD=VALUE` texts, see `filter_trials`.
        settled: fields of which each cell has one value by a choice, so that they split nothing.

    Raises:
        InputError: an unknown field, twice the same field, or a filter that nothing meets.
    """
    rows, columns = check_axis("--rows", rows), check_axis("--columns", columns)
    if rows == columns:
        raise InputError(f"--rows and --columns must be two fields; got {rows!r} for both")
    frame = filter_trials(by_role(trials), filters)
    if ROLE in (rows, columns) and ROLE not in frame:
        raise InputError(f"--rows and --columns must not be {ROLE} where nothing was tuned")
    fields = (*FIELDS, ROLE) if ROLE in frame else FIELDS
    columns_of = {name: [plain(value) for value in frame[name]] for name in (*fields, LABELS)}
    columns_of[INITIALISATION] = list(initialisations(frame))
    records: list[_Record] = [
        dict(zip(columns_of, values, strict=True)) for values in zip(*columns_of.values(), strict=True)
    ]
    axes = (rows, columns)
    varying = [name for name in fields if len({record[name] for record in records}) > 1]
    aside = (*axes, *SEED_FIELDS, *settled, *searched_fields(frame), _NAME)
    varying = [name for name in varying if name not in aside]
    splits: list[str] = []
    variants: list[str] = []
    for name in sorted(varying, key=lambda name: name.startswith("pretrain_")):  # what is not the method's first
        if LABELS in axes and name == "shots":
            continue
        if name in ALWAYS_SPLIT or _varies_within(records, name, (*axes, *splits, *variants)):
            named = INITIALISATION in axes and (name.startswith("pretrain_") or name == ROLE)
            (variants if named else splits).append(name)
    members: dict[tuple[Value, ...], list[int]] = {}
    for position, record in enumerate(records):
        members.setdefault(tuple(record[name] for name in splits), []).append(position)
    groups = [
        _group(records, positions, axes, tuple(zip(splits, values, strict=True)), variants, varying)
        for values, positions in sorted(
            members.items(), key=lambda item: [order_of(n, v) for n, v in zip(splits, item[0], strict=True)]
        )
    ]
    return Grouping(frame, rows, columns, tuple(groups), tuple(_fold_notes(frame)))


def _fold_notes(trials: pd.DataFrame) -> Iterator[str]:
    """Yield what a reader must know of results that are pooled over the folds of a data set."""
    if "folds" in trials:
        counts = trials.dropna(subset=["folds"]).groupby("dataset")["folds"].max()
        for dataset, number in counts.items():
            yield (
                f"Each result on {dataset} pools {number} trials, one of each fold: every image is in the test split "
                "of one of them. What lacks a fold counts as missing."
            )


def _group(
    records: Sequence[_Record],
    positions: Sequence[int],
    axes: tuple[str, str],
    fixed: tuple[tuple[str, Value], ...],
    variants: Sequence[str],
    varying: Sequence[str],
) -> Group:
    shown = [name for name in variants if len({records[position][name] for position in positions}) > 1]

    def key(axis: str, record: _Record) -> Key:
        if axis != INITIALISATION:
            return Key(record[axis])
        same = [records[p] for p in positions if records[p][axis] == record[axis]]
        own = [name for name in shown if len({other[name] for other in same}) > 1]
        return Key(record[axis], tuple((name, record[name]) for name in own))

    keys: dict[tuple[Value, ...], tuple[Key, Key]] = {}
    cells: dict[tuple[Key, Key], list[int]] = {}
    for position in positions:
        record = records[position]
        names = tuple(record[name] for name in (*axes, *shown))
        if names not in keys:
            keys[names] = (key(axes[0], record), key(axes[1], record))
        cells.setdefault(keys[names], []).append(position)
    rows = sorted({row for row, _ in cells}, key=lambda k: _key_order(axes[0], k))
    columns = sorted({column for _, column in cells}, key=lambda k: _key_order(axes[1], k))
    told = {name for name, _ in fixed} | set(variants)
    notes = [
        note for name in varying if name not in told and (note := _differs([records[p] for p in positions], name, axes))
    ]
    return Group(fixed, tuple(rows), tuple(columns), {k: tuple(v) for k, v in cells.items()}, tuple(notes))


def _differs(records: Sequence[_Record], name: str, axes: tuple[str, str]) -> str:
    """Return a note on how a field depends on the axes; empty where it is constant or a field of the pre-training."""
    values = sorted({record[name] for record in records}, key=lambda value: order_of(name, value))
    if len(values) < 2 or name.startswith("pretrain_"):
        return ""
    for axis in axes:
        if not _varies_within(records, name, (axis,)):
            parts = []
            for value in values:
                with_value = {record[axis] for record in records if record[name] == value}
                labels = [value_label(axis, v) for v in sorted(with_value, key=lambda v: order_of(axis, v))]
                parts.append(f"{value_label(name, value)} for {', '.join(labels)}")
            return f"{field_label(name)} goes with the {field_label(axis)}: {'; '.join(parts)}"
    return f"{field_label(name)} differs between cells: {', '.join(value_label(name, value) for value in values)}"
