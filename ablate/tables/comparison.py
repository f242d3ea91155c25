"""The columns in which two rows of a table differ in any bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ablate.tables.schemas import PROVENANCE, TABLES, VOLATILE

_NAMES = TABLES["trials"].names

RESULTS: tuple[str, ...] = tuple(
    name for name in _NAMES[_NAMES.index("unit") :] if name not in VOLATILE and name not in PROVENANCE
)
"""The columns of `trials` that hold what a trial found; equal for equal trials on equal machines."""


def unequal(left: Mapping[str, object], right: Mapping[str, object], columns: Iterable[str]) -> list[str]:
    """Return the columns in which two rows differ: numbers must agree in every bit, NaN equals NaN, null only null."""
    return [name for name in columns if _exact(left[name]) != _exact(right[name])]


def _exact(value: object) -> object:
    """Return a value that equals another's only if they agree in every bit, NaN like NaN."""
    if isinstance(value, float):
        return "nan" if value != value else value.hex()
    if isinstance(value, dict):
        return {name: _exact(item) for name, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, list | tuple) else value
