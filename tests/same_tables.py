"""Whole tables of two runs compared bit by bit, and parts that cannot be read; for tests of interrupted runs."""

import pyarrow as pa
import pyarrow.compute as pc

from ablate import tables
from ablate.store import CorruptArtifact

KEYS = {
    "trials": ("trial_id",),
    "errors": ("trial_id", "image", "landmark"),
    "curves": ("trial_id", "pretrain_key", "phase", "step", "epoch", "metric"),
    "stages": ("kind", "pretrain_key", "trial_id", "from_step", "to_step", "outcome"),
}
"""The columns that tell a table's rows apart (stages: as far as two runs can be compared)."""


def compare(left, right, names=("trials", "errors", "curves"), *, most=20):
    """Return in what two runs' tables differ, but for the volatile columns; [] if they are equal.

    Rows are matched by `KEYS`; numbers must agree in every bit, and NaN equals NaN. At most `most` differences of a
    table are named one by one.
    """
    differences = []
    for name in names:
        columns = [column for column in tables.TABLES[name].names if column not in tables.VOLATILE]
        one, other = (tables.read_table(store, name, columns) for store in (left, right))
        if _bits(one, name) != _bits(other, name):
            found = _row_differences(name, _by_key(one, name), _by_key(other, name), columns)
            differences += found[:most]
            if len(found) > most:
                differences.append(f"{name}: {len(found) - most} more differences")
    return differences


def unreadable_parts(store):
    """Return the part files that are truncated or altered, each with what the package says of it."""
    found = {}
    for table in tables.TABLES:
        for file in store.list(f"tables/{table}"):
            if file.endswith(".parquet"):
                try:
                    tables.read_part(store, table, file.removesuffix(".parquet"))
                except CorruptArtifact as error:
                    found[f"tables/{table}/{file}"] = str(error)
    return found


def _bits(table, name):
    """Return the sorted table as bytes; equal bytes mean equal content (not always the reverse)."""
    table = table.sort_by([(key, "ascending") for key in KEYS[name]])
    columns = {}
    for column in table.column_names:
        values = table[column].combine_chunks()
        if values.type == pa.float64():  # every NaN counts as the same
            values = pc.if_else(pc.is_nan(values), float("nan"), values)
        columns[column] = values
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    return sink.getvalue().to_pybytes()


def _by_key(table, name):
    rows = {}
    for row in table.to_pylist():
        rows.setdefault(tuple(row[key] for key in KEYS[name]), []).append(row)
    return rows


def _row_differences(name, left, right, columns):
    found = []
    for key in sorted(left.keys() | right.keys(), key=repr):
        where = f"{name} " + " ".join(f"{part}" for part in key if part is not None)
        ones, others = left.get(key, []), right.get(key, [])
        if len(ones) != len(others):
            found.append(f"{where}: {len(ones)} rows on the left, {len(others)} on the right")
            continue
        for one, other in zip(ones, others, strict=True):
            found += [
                f"{where}: {column} is {one[column]!r} on the left, {other[column]!r} on the right"
                for column in tables.unequal(one, other, columns)
            ]
    return found
