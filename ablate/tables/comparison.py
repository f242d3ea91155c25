"""In what the tables of two runs differ."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from ablate.store import Store

if typing.TYPE_CHECKING:
    pass
from ablate.tables.parts import read_table
from ablate.tables.schemas import KEYS, TABLES, VOLATILE


def compare(
    left: Store, right: Store, tables: Iterable[str] = ("trials", "errors", "curves"), *, most: int = 20
) -> list[str]:
    """Return in what two runs' tables differ, but for `VOLATILE` columns; [] if they are equal.

    Rows are matched by `KEYS`; numbers must agree in every bit, and NaN equals NaN. At most `most`
    differences of a table are told one by one.
    """
    differences: list[str] = []
    for name in tables:
        columns = [column for column in TABLES[name].names if column not in VOLATILE]
        one, other = (read_table(store, name, columns) for store in (left, right))
        if _bits(_sorted(one, name)) != _bits(_sorted(other, name)):
            found = _row_differences(name, _by_key(one, name), _by_key(other, name))
            differences += found[:most]
            if len(found) > most:
                differences.append(f"{name}: {len(found) - most} more differences")
    return differences


def _sorted(table: Any, name: str) -> Any:
    return table.sort_by([(key, "ascending") for key in KEYS[name] if key in table.column_names]).combine_chunks()


def _bits(table: Any) -> bytes:
    """Return the table's content as bytes; equal bytes mean equal content (not always the reverse)."""
    sink = pa.BufferOutputStream()
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if column.type == pa.float64():  # every NaN counts as the same
            column = pc.if_else(pc.is_nan(column), float("nan"), column)
        columns[name] = column
    with pa.ipc.new_stream(sink, pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _by_key(table: Any, name: str) -> dict[tuple[object, ...], list[dict[str, object]]]:
    rows: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in table.to_pylist():
        rows.setdefault(tuple(row[key] for key in KEYS[name] if key in row), []).append(row)
    return rows


def _canonical(value: object) -> object:
    """Return a value that equals another's exactly if they agree in every bit, NaN like NaN."""
    if isinstance(value, float):
        return "nan" if value != value else value.hex()
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items()}
    return [_canonical(item) for item in value] if isinstance(value, list) else value


_Rows: TypeAlias = Mapping[tuple[object, ...], list[dict[str, object]]]


def _row_differences(name: str, left: _Rows, right: _Rows) -> list[str]:
    found: list[str] = []
    for key in sorted(left.keys() | right.keys(), key=repr):
        where = f"{name} " + " ".join(f"{part}" for part in key if part is not None)
        ones, others = left.get(key, []), right.get(key, [])
        if len(ones) != len(others):
            found.append(f"{where}: {len(ones)} rows on the left, {len(others)} on the right")
            continue
        for one, other in zip(ones, others, strict=True):
            found += [
                f"{where}: {column} is {one[column]!r} on the left, {other[column]!r} on the right"
                for column in one
                if _canonical(one[column]) != _canonical(other[column])
            ]
    return found
