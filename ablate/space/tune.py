"""The section `tune` of a search space: what is tuned for each arm, where, with which budget, and over which fields.

An arm is what gets a budget of its own, such as an initialisation; a place is where its settings are chosen
separately, such as a data set and a number of shots. Every trial of the grid belongs to one arm and one place, and
trials of one arm and place are replicates of each other.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

from pydantic import Field, ValidationError, model_validator

from ablate.errors import nearest
from ablate.space.explain import explain
from ablate.space.fields import FieldPath, fields_beside, flatten, nest, trial_fields
from ablate.space.files import Place, Source
from ablate.space.methods import METHODS
from ablate.space.spec import Positive, Spec
from ablate.space.trial import TrialSpec

REPLICATES = ("seed", "draw", "fold", "pretrain.seed")
"""Fields that tell replicates of one setting apart."""

_SEARCHABLE = ("finetune", "pretrain", "network", "evaluate")
_FIXED = (
    *("pretrain.method", "pretrain.dataset", "pretrain.name", "pretrain.images", "pretrain.transfer"),
    "network.kind",
)
"""Fields below `_SEARCHABLE` that say what an arm is, or what it sees, and are not settings of it."""

_LENGTH = {"finetune.epochs", "finetune.steps"}
"""The two fields that say how long fine-tuning is; a trial has one of them."""

Refuse: TypeAlias = Callable[[Place, str], NoReturn]

Settings: TypeAlias = Mapping[str, Any]
"""The values of the searched fields, by their dotted names: `{"finetune.lr": 0.001}`."""


class SearchSpec(Spec):
    """The values that one field may take: choices, or a range whose bounds are included."""

    choices: tuple[Any, ...] | None = Field(None, description="values")
    uniform: tuple[float, float] | None = Field(None, description="lowest and highest, drawn evenly")
    log: tuple[float, float] | None = Field(None, description="lowest and highest, drawn evenly on a logarithmic scale")
    whole: tuple[int, int] | None = Field(
        None, alias="int", description="lowest and highest whole number, drawn evenly"
    )
    only: tuple[str, ...] | None = Field(None, description="initialisations that have the field")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        """Read a plain list as choices, and lists as tuples."""
        if isinstance(value, list):
            return {"choices": tuple(value)}
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a list of choices, or one of choices, uniform, log, int; got {value!r}")
        return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}

    @model_validator(mode="after")
    def _one_kind(self) -> SearchSpec:
        kinds = {"choices": self.choices, "uniform": self.uniform, "log": self.log, "int": self.whole}
        given = [name for name, found in kinds.items() if found is not None]
        if len(given) != 1:
            raise ValueError(f"must have one of choices, uniform, log, int; got {' and '.join(given) or 'none'}")
        if self.choices is not None:
            if not self.choices or len({json.dumps(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError(f"choices must be one or more different values; got {list(self.choices)}")
            return self
        low, high = self.bounds
        if self.log is not None and low <= 0:
            raise ValueError(f"log must have bounds above 0; got {low:g}; take uniform where 0 is a value")
        if low >= high:
            raise ValueError(f"{given[0]} must have a lower bound below its upper bound; got {low:g} and {high:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a range."""
        found = self.uniform or self.log or self.whole
        assert found is not None
        return found

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all: the choices, or both bounds."""
        return self.bounds if self.choices is None else self.choices

    @property
    def words(self) -> str:
        """The values in a few words: `1e-06 to 0.01 (log)`."""
        if self.choices is not None:
            return ", ".join(map(str, self.choices))
        low, high = self.bounds
        kind = " (log)" if self.log is not None else ""
        return f"{low:g} to {high:g}{kind}"

    def holds(self, value: object) -> bool:
        """Whether a value is one of them."""
        if self.choices is not None:
            return any(
                choice == value and isinstance(choice, bool) == isinstance(value, bool) for choice in self.choices
            )
        if isinstance(value, bool) or not isinstance(value, int if self.whole is not None else (int, float)):
            return False
        low, high = self.bounds
        return low <= value <= high

    def nth(self, share: float) -> Any:
        """Return the value at a share (0 to 1, exclusive) of the way from the first to the last."""
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        low, high = self.bounds
        if self.whole is not None:
            return int(low) + int(share * (high - low + 1))
        if self.log is not None:
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return low + share * (high - low)


class TuneSpec(Spec):
    """How settings are chosen: an equal number of configurations for each arm and place."""

    budget: Positive = Field(description="configurations for each arm and place; number 0 is the arm's default")
    round: Positive = Field(description="configurations that are asked for at once")
    arm: tuple[str, ...] = Field(("pretrain.method",), description="fields whose values get a budget of their own")
    per: tuple[str, ...] = Field((), description="fields for whose values settings are chosen separately")
    seeds: tuple[int, ...] = Field(description="seeds of tuning trials; none of the grid's")
    search: dict[str, SearchSpec] = Field(description="the searched fields and their values")
    sampler: Literal["tpe", "qmc", "random"] = Field("tpe", description="how configurations are chosen (Optuna)")
    halve: tuple[float, ...] = Field(
        (), description="shares of the optimizer steps after which the worse half of a round stops"
    )
    repeats: Positive = Field(1, description="independent tunings, each with a sampler seed of its own")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        lists = ("arm", "per", "seeds", "halve")
        return {k: tuple(v) if k in lists and isinstance(v, list) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> TuneSpec:
        if self.budget % self.round:
            nearby = max(1, round(self.budget / self.round)) * self.round
            raise ValueError(
                f"budget must be a multiple of round, {self.round}; got {self.budget}; the nearest is {nearby}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be one or more different numbers of at least 0; got {list(self.seeds)}")
        if not self.arm:
            raise ValueError("arm must name at least one field, such as pretrain.method; got none")
        if not self.search:
            raise ValueError("search must name at least one field, such as finetune.lr; got none")
        if any(not 0 < share < 1 for share in self.halve) or list(self.halve) != sorted(set(self.halve)):
            raise ValueError(f"halve must be ascending shares between 0 and 1, exclusive; got {list(self.halve)}")
        return self

    @property
    def num_rounds(self) -> int:
        """Rounds of the budget."""
        return self.budget // self.round


@dataclass(frozen=True, eq=False)
class Study:
    """One tuning: of an arm, at a place, with the sampler seed of one repeat."""

    spec: TuneSpec
    arm: str  # such as pretrain_method=ddpm
    place: str  # such as dataset=cephalo,shots=5; empty where settings are chosen once
    repeat: int
    trials: tuple[TrialSpec, ...]  # of the grid: replicates of the default

    @property
    def default(self) -> TrialSpec:
        """The first of the replicates, which tuning trials take all but their seed from."""
        return self.trials[0]

    @functools.cached_property
    def search(self) -> Mapping[str, SearchSpec]:
        """The searched fields that the arm has."""
        return {
            name: found
            for name, found in self.spec.search.items()
            if found.only is None or self.default.method in found.only
        }

    @functools.cached_property
    def defaults(self) -> Settings:
        """The default's values of the searched fields."""
        return {name: value_at(self.default, name) for name in self.search}

    @functools.cached_property
    def key(self) -> str:
        """12 hex digits over all that the outcome depends on but the budget."""
        told = self.spec.model_dump(mode="json", exclude={"budget", "repeats", "arm", "per", "search"})
        search = {name: found.model_dump(mode="json") for name, found in self.search.items()}
        content = [told, search, self.arm, self.place, self.repeat, self.tuning_trial({}, self.spec.seeds[0]).trial_id]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def configured(self, trial: TrialSpec, settings: Settings) -> TrialSpec:
        """Return a replicate of the default with other settings."""
        values = {tuple(name.split(".")): value for name, value in settings.items()}
        if len(length := _LENGTH & settings.keys()) == 1:  # one of the two gives way to the other
            (other,) = _LENGTH - length
            values[tuple(other.split("."))] = None
        return _with(trial, values)

    def tuning_trial(self, settings: Settings, seed: int) -> TrialSpec:
        """Return a trial that judges a configuration: of a tuning seed, on the shots of the place's own draw."""
        values: dict[FieldPath, Any] = {("seed",): seed}
        if self.default.selection.draw is not None:
            values[("draw",)] = self.default.selection.draw
        if self.default.validation == "none":  # something has to judge
            values[("validation",)] = "inside_shots"
        return _with(self.configured(self.default, settings), values)


def value_at(trial: TrialSpec, name: str) -> Any:
    """Return the value of a trial's field by its dotted name, `finetune.lr`."""
    value: Any = trial
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _with(trial: TrialSpec, values: Mapping[FieldPath, Any]) -> TrialSpec:
    """Return a trial with other values of some fields."""
    given = [(field.path, value_at(trial, ".".join(field.path))) for field in trial_fields(trial.method)]
    return TrialSpec.model_validate(nest([*given, *values.items()]))


def labelled(trial: TrialSpec, names: Sequence[str]) -> str:
    """Return the values of some fields as text: `dataset=cephalo,shots=5`; without those that the trial lacks."""
    row, columns = flatten(trial), [name.replace(".", "_") for name in names]
    return ",".join(f"{column}={row[column]}" for column in columns if column in row)


def load_tuning(source: Source, trials: Sequence[TrialSpec]) -> tuple[Study, ...]:
    """Return the tunings that the section `tune` of a search space asks for; none if it has no such section.

    Args:
        source: the search space.
        trials: of the grid.

    Raises:
        InputError: with file, line, place, rule, value and cure.
    """
    if "tune" not in source.value:
        return ()

    def refuse(place: Place, problem: str) -> NoReturn:
        source.refuse(("tune", *place), problem)

    spec = _load_spec(source.value["tune"], refuse)
    _check_names(spec, refuse)
    shared = set(spec.seeds) & {trial.seed for trial in trials}
    if shared:
        refuse(
            ("seeds",),
            f"seeds must be none of the grid's, so that no trial is judged by the seed that it was chosen with; got "
            f"{', '.join(map(str, sorted(shared)))}",
        )
    groups: dict[tuple[str, str], list[TrialSpec]] = {}
    for trial in trials:
        groups.setdefault((labelled(trial, spec.arm), labelled(trial, spec.per)), []).append(trial)
    for group in groups.values():
        _check_replicates(group, spec, refuse)
    studies = tuple(
        Study(spec, arm, place, repeat, tuple(group))
        for (arm, place), group in groups.items()
        for repeat in range(spec.repeats)
    )
    for study in studies:
        _check_search(study, refuse)
    return studies


def _load_spec(value: object, refuse: Refuse) -> TuneSpec:
    try:
        return TuneSpec.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inner = first["loc"][:1] == ("search",) and len(first["loc"]) > 1
        fields = SearchSpec.model_fields if inner else TuneSpec.model_fields
        place, message = explain(first, {info.alias or name: info.annotation for name, info in fields.items()})
        shown = tuple(part for part in place if not isinstance(part, int))
        refuse(shown or ("search",) * inner, f"{'.'.join(map(str, shown))}: {message}" if inner else message)


def _check_names(spec: TuneSpec, refuse: Refuse) -> None:
    """Refuse names that are no fields, and fields that cannot stand where they stand."""
    known = list(dict.fromkeys(".".join(field.path) for field in trial_fields()))
    for key in ("arm", "per"):
        for name in getattr(spec, key):
            if name not in known:
                refuse((key,), f"{key} must name fields of a trial; got {name!r}{nearest(name, known)}")
            if name in REPLICATES and (key == "arm" or name == "seed"):
                refuse((key,), f"{key} must not name {name}, which tells replicates apart")
    for name, found in spec.search.items():
        place = ("search", name)
        if name not in known:
            refuse(place, f"search must name fields of a trial; got {name!r}{nearest(name, known)}")
        if name in REPLICATES or name in _FIXED or name.split(".")[0] not in _SEARCHABLE or "sha256" in name:
            refuse(place, f"{name} must not be searched: it says what is compared, and is no setting of an arm")
        if name in (*spec.arm, *spec.per):
            refuse(place, f"{name} must not be searched and stand in arm or per at once; remove one")
        if found.only is None:
            continue
        for method in found.only:
            if method not in METHODS:
                refuse(place, f"only must name initialisations; got {method!r}{nearest(method, METHODS)}")
        if name.startswith("finetune."):
            refuse(place, f"only must be left out for {name}: every arm searches the same fields of fine-tuning")


def _check_replicates(group: Sequence[TrialSpec], spec: TuneSpec, refuse: Refuse) -> None:
    """Refuse trials of one arm and place that differ in more than what tells replicates apart."""
    apart = {name.replace(".", "_") for name in REPLICATES} - {name.replace(".", "_") for name in spec.per}
    rows = [{name: value for name, value in flatten(trial).items() if name not in apart} for trial in group]
    for row in rows[1:]:
        for name, value in row.items():
            if value != rows[0].get(name):
                path = next(".".join(field.path) for field in trial_fields() if field.column == name)
                searched = "; it is searched, so leave it out of the grid" if path in spec.search else ""
                refuse(
                    ("per",),
                    f"every axis of the grid must stand in arm or per, or be one of {', '.join(REPLICATES)}; {path} "
                    f"does not, and is both {rows[0].get(name)!r} and {value!r}{searched or '; add it to arm or per'}",
                )


def _check_search(study: Study, refuse: Refuse) -> None:
    """Refuse searched fields that the arm does not have, values that a trial cannot take, a default outside."""
    method = study.default.method
    own = [field.path for field in trial_fields(method)]
    for name in study.search:
        place, path = ("search", name), tuple(name.split("."))
        if path not in own:
            having = [key for key in METHODS if path in [field.path for field in trial_fields(key)]]
            refuse(
                place,
                f"{name} must be a field of every arm; {method} has none; name the arms that have it, such as "
                f"only: [{', '.join(having[:3])}]",
            )
    for name, found in study.search.items():
        place = ("search", name)
        for value in found.ends:
            _check_value(study, name, value, refuse)
        default = study.defaults[name]
        if not found.holds(default):
            where = f" at {study.place}" if study.place else ""
            refuse(
                place,
                f"{name} must include the default of every arm, with which tuning begins; {study.arm}{where} has "
                f"{default!r}, and {found.words} does not include it; widen the search or set the field in base",
            )


def _check_value(study: Study, name: str, value: object, refuse: Refuse) -> None:
    try:
        study.configured(study.default, {name: value})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        _, message = explain(first, fields_beside(tuple(name.split(".")), study.default.method))
        refuse(("search", name), f"{message} ({study.arm})")
