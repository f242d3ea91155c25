"""Search spaces: the trials that they expand to, and the pre-trainings that these trials share."""

from __future__ import annotations

import itertools
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from pydantic import ValidationError

from ablate.errors import InputError, nearest
from ablate.space.equal import KEY as EQUAL
from ablate.space.equal import Equal, StepSeconds, equalised
from ablate.space.explain import explain
from ablate.space.fields import METHOD_FIELD, fields_beside, flatten, nest, trial_fields
from ablate.space.files import Place, Source
from ablate.space.methods import METHODS, missing_field
from ablate.space.trial import Pretraining, TrialSpec
from ablate.space.tune import Study, load_tuning


@dataclass(frozen=True)
class Grid:
    """A search space, expanded."""

    name: str
    description: str
    trials: tuple[TrialSpec, ...]
    resolved: dict[str, Any]  # the file's content with overrides applied, as JSON values
    studies: tuple[Study, ...] = ()  # what is tuned; the trials are those of the arms' defaults then

    @property
    def shared_keys(self) -> frozenset[str]:
        """Keys of the pre-trainings that several trials use."""
        counts = Counter(trial.pretrain_key for trial in self.trials if trial.pretrain_key is not None)
        return frozenset(key for key, count in counts.items() if count > 1)


_KINDS = {str: "text", dict: "a mapping", list: "a list"}
"""Types of the keys of a search space, as messages name them."""

_FIELDS = {field.path for field in trial_fields()}
"""All fields of a trial."""

_LIST_FIELDS = {field.path for field in trial_fields() if typing.get_origin(field.annotation) is tuple}
"""Fields that are lists themselves, so that a list of values does not expand, and a list of lists does."""

Leaf: TypeAlias = tuple[tuple[str, ...], Any, Place]  # path in the trial, value, place in the file


def _expand(value: Any, path: tuple[str, ...], place: Place, source: Source) -> list[list[Leaf]]:
    """Expand a grid's value into its alternatives, each a list of leaves."""
    if isinstance(value, dict):
        parts = [_expand(item, (*path, str(name)), (*place, str(name)), source) for name, item in value.items()]
        return [list(itertools.chain(*choice)) for choice in itertools.product(*parts)]
    if isinstance(value, list):
        if path in _LIST_FIELDS and not any(isinstance(item, list) for item in value):
            return [[(path, value, place)]]
        if not value:
            source.refuse(place, "a list of alternatives must not be empty")
        if path in _LIST_FIELDS:
            return [[(path, item, (*place, index))] for index, item in enumerate(value)]
        return list(itertools.chain(*(_expand(v, path, (*place, i), source) for i, v in enumerate(value))))
    return [[(path, value, place)]]


def _leaves(value: Any, path: tuple[str, ...], place: Place) -> Iterator[Leaf]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, str(name)), (*place, str(name)))
    else:
        yield path, value, place


def _validate(data: dict[str, Any], refuse: Callable[[tuple[str, ...], str], NoReturn]) -> TrialSpec:
    """Validate one trial; hand the first problem's path and message to `refuse`."""
    try:
        trial = TrialSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        pretrain = data.get("pretrain")
        method = str(pretrain.get("method")) if isinstance(pretrain, dict) else None
        path = tuple(str(part) for part in first["loc"])
        of_method = method if path[:1] == METHOD_FIELD[:1] and method in METHODS else None
        place, message = explain(first, fields_beside(path, of_method), of_method and f"method {of_method}")
        refuse(tuple(str(part) for part in place), message)
    if missing := missing_field(trial.pretrain):
        refuse(("pretrain", missing[0]), missing[1])
    return trial


def load_trial(source: Source) -> TrialSpec:
    """Return the trial that a YAML mapping describes; raise `InputError` with place and cure."""
    if not isinstance(source.value, dict):
        raise InputError(f"{source.name}: a trial must be a mapping of its fields; got {source.value!r}")
    return _validate(source.value, lambda path, problem: source.refuse(path, problem))


def _read_overrides(texts: Sequence[str]) -> list[Leaf]:
    """Parse `--set finetune.epochs=20` into leaves, each with the text as its place."""
    leaves: list[Leaf] = []
    for text in texts:
        name, equals, value = text.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise InputError(f"--set {text}: must be FIELD=VALUE, for example --set finetune.epochs=20")
        known = sorted(fields_beside(path))
        if not known:
            raise InputError(f"--set {text}: {'.'.join(path[:-1])} is no mapping of fields; leave out what follows it")
        if path[-1] not in known:
            raise InputError(
                f"--set {text}: unknown key {path[-1]!r}; known: {', '.join(known)}{nearest(path[-1], known)}"
            )
        leaves.append((path, Source.parse(value, f"--set {text}").value, (f"--set {text}",)))
    return leaves


def load_grid(source: Source, overrides: Sequence[str] = (), measured: StepSeconds | None = None) -> Grid:
    """Expand a search space into its distinct trials, in the file's order; or return the one that a run has recorded.

    `overrides` are `FIELD=VALUE` texts that take the place of fields of `base`; one that no trial could
    take, because every block sets the field itself, is refused. `measured` are the seconds of optimizer steps, for a
    search space that says `equal: seconds`; they are recorded there. Raises `InputError` naming file, line,
    place, rule, value and nearest valid name.
    """
    if isinstance(source.value, dict) and source.value.keys() >= _RECORDED:
        return _recorded(source, overrides, measured)
    return _load_space(source, overrides, measured)


def _load_space(
    source: Source, overrides: Sequence[str], measured: StepSeconds | None, *, is_recorded: bool = False
) -> Grid:
    """Expand a search space; one that a run has recorded may say more of networks than they use."""
    data = source.value
    if not isinstance(data, dict):
        raise InputError(f"{source.name}: a search space must be a mapping with name and blocks")
    known = ("name", "description", EQUAL, "base", "blocks", "tune")
    for name in data:
        if name not in known:
            source.refuse((str(name),), f"unknown key {name!r}; known: {', '.join(known)}{nearest(name, known)}")
    for name, kind in (("name", str), ("description", str), ("base", dict), ("blocks", list), ("tune", dict)):
        if name in data and not isinstance(data[name], kind):
            source.refuse((name,), f"must be {_KINDS[kind]}; got {data[name]!r}")
    if not data.get("name") or not data.get("blocks"):
        raise InputError(f"{source.name}: a search space needs a name and at least one block")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", data["name"]):
        source.refuse(("name",), f"must be letters, digits, '.', '_' or '-'; got {data['name']!r}")
    equal = Equal.of(data, source)
    changes = _read_overrides(overrides)
    overridden = {path for path, _, _ in changes}
    base = [leaf for leaf in _leaves(data.get("base", {}), (), ("base",)) if leaf[0] not in overridden] + changes
    for path, value, place in base:
        if isinstance(value, list) and path in _FIELDS and path not in _LIST_FIELDS:
            _refuse_at(source, place, f"base never expands; put the list in a block's grid; got {value!r}")
    trials: dict[str, TrialSpec] = {}
    used: set[tuple[str, ...]] = set()
    for index, block in enumerate(data["blocks"]):
        here: Place = ("blocks", index)
        if not isinstance(block, dict) or set(block) != {"grid"} or not isinstance(block["grid"], dict):
            source.refuse(here, "a block must be a mapping with the one key grid")
        choices = list(_expand(block["grid"], (), (*here, "grid"), source))
        specs = [_trial_of(base, choice, (*here, "grid"), source, used) for choice in choices]
        for spec in specs:
            trials.setdefault(spec.trial_id, spec)
        if not is_recorded:
            _refuse_unused(itertools.chain(*choices), specs, source)
    if not is_recorded:
        is_kind_new = ("network", "kind") in overridden  # then the file may speak to the kind that it had
        _refuse_unused(changes if is_kind_new else base, tuple(trials.values()), source)
    for path, _, place in base:
        if path not in used:
            if path in overridden:
                raise InputError(
                    f"{place[0]}: has no effect: every block's grid sets {'.'.join(path)} itself, or no "
                    "method in this search space has it; edit the search space instead"
                )
            if path[0] == "pretrain":
                source.refuse(
                    place,
                    f"no method in this search space has a field {path[-1]!r}"
                    f"{nearest(path[-1], fields_beside(path))}, or every block sets it",
                )
    try:
        equals, said = equalised(tuple(trials.values()), equal, measured)
    except InputError as error:
        source.refuse((EQUAL,), str(error))
    resolved = {**data, **({EQUAL: said} if said else {}), "base": nest((path, value) for path, value, _ in base)}
    distinct = tuple({trial.trial_id: trial for trial in equals}.values())
    return Grid(data["name"], data.get("description", ""), distinct, resolved, load_tuning(source, distinct))


BESIDE_FIELDS = ("trial_id", "pretrain_key", "role", "repeats")
"""What `run.yaml` says of a trial beside its fields: its ids, and where settings were tuned, its role."""

_RECORDED = {"search_space", "sessions", "trials"}
"""Keys that tell a run's `run.yaml` from a search space."""


def _recorded(source: Source, overrides: Sequence[str], measured: StepSeconds | None) -> Grid:
    """Return the search space of a run, from its `run.yaml`, with every trial of the run.

    Trials that are not in the recorded search space, because another one joined the run, come last.
    """
    data, space = source.value, Source(source.name, source.value["search_space"], None)
    grid = _load_space(space, (), measured, is_recorded=True) if space.value else None
    trials = grid.trials if grid else ()
    own = {trial.trial_id for trial in trials}
    joined = [row for row in data["trials"] if row["trial_id"] not in own and row.get("role") != "tuned"]
    if joined and overrides:
        raise InputError(
            f"--set must be left out for {source.name}: {len(joined)} of its {len(data['trials'])} trials are not of "
            "its search space, but joined the run; give the file of the search space instead"
        )
    if overrides:
        grid = _load_space(space, overrides, measured, is_recorded=True)
        trials = grid.trials
    merged = {trial.trial_id: trial for trial in (*trials, *(recorded_trial(row, source.name) for row in joined))}
    resolved, studies = (grid.resolved, grid.studies) if grid else (space.value, ())
    return Grid(data["name"], data.get("description", ""), tuple(merged.values()), resolved, studies)


def recorded_trial(row: Mapping[str, Any], name: str) -> TrialSpec:
    """Return a trial as `run.yaml`, called `name`, lists it; raise `InputError` if this version cannot read it."""
    fields = {key: value for key, value in row.items() if key not in BESIDE_FIELDS}
    return load_trial(Source(name, fields, None))


def _refuse_at(source: Source, place: Place, problem: str) -> NoReturn:
    if place and str(place[0]).startswith("--set "):
        raise InputError(f"{place[0]}: {problem}")
    source.refuse(place, problem)


def _refuse_unused(leaves: Iterable[Leaf], trials: Sequence[TrialSpec], source: Source) -> None:
    """Refuse a field of `network` that no network of these trials has."""
    kinds = dict.fromkeys(trial.network.kind for trial in trials)
    fields = {"kind", *(name for trial in trials for name in trial.network.fields)}
    for path, _, place in leaves:
        if path[0] == "network" and len(path) > 1 and path[1] not in fields:
            _refuse_at(
                source,
                place,
                f"has no effect: a network of kind {' or '.join(kinds)} has no field {path[1]!r}, but "
                f"{', '.join(sorted(fields - {'kind'}))}; leave it out, or set network.kind",
            )


def _trial_of(
    base: list[Leaf], choice: list[Leaf], block: Place, source: Source, used: set[tuple[str, ...]]
) -> TrialSpec:
    """Build one trial from the base and one choice of a block's grid."""
    chosen = {path for path, _, _ in choice}
    method = next((value for path, value, _ in choice if path == ("pretrain", "method")), None)
    method = method or next((value for path, value, _ in base if path == ("pretrain", "method")), "scratch")
    fields = METHODS[method].spec.model_fields if isinstance(method, str) and method in METHODS else None
    leaves = []
    for path, value, place in base:
        if fields is not None and path[0] == "pretrain" and len(path) > 1 and path[1] not in fields:
            continue  # base.pretrain speaks to the methods that have the field
        if path not in chosen:
            leaves.append((path, value, place))
            used.add(path)
    leaves += choice
    places = {path: place for path, _, place in leaves}

    def refuse(path: tuple[str, ...], problem: str) -> NoReturn:
        for length in range(len(path), 0, -1):
            for leaf_path, place in places.items():
                if leaf_path[:length] == path[:length]:
                    _refuse_at(source, place, problem)
        source.refuse(block, problem)

    return _validate(nest((path, value) for path, value, _ in leaves), refuse)


@dataclass(frozen=True)
class Plan:
    """The work of a search space: its trials, and the pre-trainings they share."""

    trials: tuple[TrialSpec, ...]
    pretrainings: dict[str, Pretraining]  # by key, each to the largest number of steps asked for
    snapshots: dict[str, tuple[int, ...]]  # by key, the steps some trial starts from, ascending
    studies: tuple[Study, ...] = ()  # what is tuned before the trials run


def plan_of(trials: Iterable[TrialSpec], studies: tuple[Study, ...] = ()) -> Plan:
    """Gather trials into a plan in which equal pre-trainings are one; those of tuning trials are not in it."""
    trials = tuple(trials)
    pretrainings: dict[str, Pretraining] = {}
    steps: dict[str, set[int]] = {}
    for trial in trials:
        pretraining = trial.pretraining
        if pretraining is None:
            continue
        key = pretraining.key
        steps.setdefault(key, set()).add(pretraining.fields.steps)
        if key not in pretrainings or pretrainings[key].fields.steps < pretraining.fields.steps:
            pretrainings[key] = pretraining
    return Plan(trials, pretrainings, {key: tuple(sorted(values)) for key, values in steps.items()}, studies)


def axes_of(trials: Sequence[TrialSpec]) -> dict[str, list[Any]]:
    """Return the fields that differ between trials, by flattened name, with their distinct values in order.

    Fields of a network that its kind does not use are left out.
    """
    rows = [_used(trial) for trial in trials]
    names = dict.fromkeys(itertools.chain(*rows))
    values = {name: list(dict.fromkeys(row[name] for row in rows if name in row)) for name in names}
    return {name: found for name, found in values.items() if len(found) > 1}


def _used(trial: TrialSpec) -> dict[str, Any]:
    used = {"network_kind", *(f"network_{name}" for name in trial.network.fields)}
    return {name: value for name, value in flatten(trial).items() if not name.startswith("network_") or name in used}
