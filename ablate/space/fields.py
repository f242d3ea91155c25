"""The fields of a trial, nested as in its specs and flat as in the columns of a table, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from ablate.space.methods import METHODS
from ablate.space.spec import Spec
from ablate.space.trial import TrialSpec

FieldPath: TypeAlias = tuple[str, ...]

METHOD_FIELD: FieldPath = ("pretrain", "method")
"""The field that says which other fields `pretrain` has."""

FILLED_IN = "weights_sha256"
"""A field that a user does not write: the identity of the file of weights."""


class TrialField(NamedTuple):
    """A field of a trial that holds a value, not further fields."""

    path: FieldPath  # ("finetune", "augment", "shift")
    annotation: Any
    description: str

    @property
    def column(self) -> str:
        """The name as a column: `finetune_augment_shift`."""
        return "_".join(self.path)


@functools.cache
def trial_fields(method: str | None = None) -> tuple[TrialField, ...]:
    """Return the fields of a trial in the order of the specs, `pretrain.method` before its other fields.

    Args:
        method: the trial's initialisation, a key of `METHODS`. None: the fields of every method in turn, so that a
            field that several methods have occurs several times.
    """
    return tuple(_walk(TrialSpec, (), [row.spec for key, row in METHODS.items() if method in (None, key)]))


def _walk(spec: type[Spec], path: FieldPath, methods: Iterable[type[Spec]]) -> Iterator[TrialField]:
    for name, info in spec.model_fields.items():
        inner, here = info.annotation, (*path, name)
        if here == METHOD_FIELD[:1]:
            yield TrialField(METHOD_FIELD, str, "initialisation, a key of METHODS")
            for method in methods:
                yield from (field for field in _walk(method, here, ()) if field.path != METHOD_FIELD)
        elif isinstance(inner, type) and issubclass(inner, Spec):
            yield from _walk(inner, here, ())
        else:
            yield TrialField(here, inner, info.description or "")


def fields_beside(path: FieldPath, method: str | None = None) -> dict[str, Any]:
    """Return the fields that can stand last in `path`, each with its annotation (None: it has fields of its own).

    Args:
        path: of a field; its last name need not exist.
        method: see `trial_fields`.
    """
    place = len(path) - 1
    found = {}
    for field in trial_fields(method):
        if len(field.path) > place and field.path[:place] == path[:place] and field.path[place] != FILLED_IN:
            found[field.path[place]] = field.annotation if len(field.path) == place + 1 else None
    return found


def flatten(trial: TrialSpec | Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a trial's fields by column: `pretrain_steps`, `finetune_lr`, ...

    Args:
        trial: a trial, or a mapping such as a trial in `run.yaml`; fields that a mapping lacks are left out, and so
            are keys that are no fields.
    """
    method = str(_at(trial, METHOD_FIELD))
    found = ((field.column, _at(trial, field.path)) for field in trial_fields(method if method in METHODS else None))
    return {column: value for column, value in found if value is not _ABSENT}


_ABSENT = object()


def _at(node: Any, path: FieldPath) -> Any:
    for name in path:
        if isinstance(node, Mapping):
            node = node.get(name, _ABSENT)
        else:
            node = getattr(node, name) if isinstance(node, Spec) and name in type(node).model_fields else _ABSENT
    return node


def nest(values: Iterable[tuple[FieldPath, Any]]) -> dict[str, Any]:
    """Return values by path as nested mappings; where a path leads through an earlier value, it takes its place."""
    tree: dict[str, Any] = {}
    for path, value in values:
        node = tree
        for name in path[:-1]:
            inner = node.get(name)
            node[name] = node = {} if not isinstance(inner, dict) else inner
        node[path[-1]] = value
    return tree
