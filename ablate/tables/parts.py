"""Rows written to and read from the Parquet part files of a table.

Every table is a folder of part files under `tables/`, read as one data set. A part is named by what its rows are about
(a trial, a pre-training, an attempt), so writing it again replaces it and no row is ever there twice. A trial's row in
`trials` is written last: it says that the trial's other rows are there.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ablate.errors import nearest
from ablate.store import CorruptArtifact, Store, is_from_store
from ablate.store.layout import part_file, table_folder
from ablate.tables.schemas import TABLES, TIME

if typing.TYPE_CHECKING:
    import pandas as pd

Row: TypeAlias = Mapping[str, object]
Filters: TypeAlias = Any  # pyarrow.compute.Expression, or a list of (column, operator, value)


def stage_part(kind: str, name: str, attempt: str) -> str:
    """Return the part of `stages` for one attempt: `name` is a pretrain_key or trial_id, `attempt` a token."""
    return f"{kind}-{name}-{attempt}"


def part_path(table: str, part: str) -> str:
    """Return the path of a part file in the store."""
    if table not in TABLES or not re.fullmatch(r"[\w-]+", part):
        raise ValueError(f"no part {part!r} of a table {table!r}: tables are {', '.join(TABLES)}, parts [A-Za-z0-9_-]")
    return part_file(table, part)


def _table_of(table: str, rows: Sequence[Row]) -> Any:
    """Return `rows` as an Arrow table; raise `TypeError` for a column that does not fit."""
    schema = TABLES[table]
    names = set(schema.names)
    for row in rows:
        if row.keys() != names:
            unknown = [f"{name!r}{nearest(name, schema.names)}" for name in row if name not in schema.names]
            missing = [repr(name) for name in schema.names if name not in row]
            raise TypeError(
                f"a row of {table} must have exactly its columns (None where there is no value): "
                f"unknown {', '.join(unknown) or 'none'}; missing {', '.join(missing) or 'none'}"
            )
    arrays = []
    for column in schema:
        values = [row[column.name] for row in rows]
        if column.type == TIME and any(isinstance(value, datetime) and value.tzinfo is None for value in values):
            raise TypeError(f"{table}.{column.name} must be a time with a zone")
        if pa.types.is_integer(column.type) and any(isinstance(value, float | bool) for value in values):
            raise TypeError(f"{table}.{column.name} must be {column.type}, and Arrow would cut a fraction off")
        try:
            array = pa.array(values, type=column.type, from_pandas=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
            raise TypeError(f"{table}.{column.name} must be {column.type}: {error}") from error
        if array.null_count and not column.nullable:
            raise TypeError(f"{table}.{column.name} must not be null")
        arrays.append(array)
    return pa.table(arrays, schema=schema)


def write_rows(store: Store, table: str, part: str, rows: Sequence[Row]) -> None:
    """Write the part `part` of `table`, complete or not at all; what the part held before is replaced.

    Raises `TypeError` unless every row has exactly the table's columns (see `blank`), of fitting types.
    """
    path = part_path(table, part)
    many = len(rows) > 100  # dictionaries and statistics of a few rows only make the file larger and slower
    sink = pa.BufferOutputStream()
    pq.write_table(
        _table_of(table, rows),
        sink,
        compression="zstd",
        use_dictionary=many,
        write_statistics=many,
        write_page_checksum=True,
    )
    store.write(path, sink.getvalue().to_pybytes())


def commit_trial(store: Store, trial_row: Row, error_rows: Sequence[Row], curve_rows: Sequence[Row]) -> None:
    """Write all rows of one trial: errors, curves, then the row of `trials`, which makes the others count.

    A trial that failed has no error rows: what an earlier attempt left is taken away.
    """
    part = str(trial_row["trial_id"])
    for table, rows in (("errors", error_rows), ("curves", curve_rows)):
        if any(row["trial_id"] != part for row in rows):
            raise TypeError(f"every row of {table} must be of trial {part}")
        if rows:
            write_rows(store, table, part, rows)
        else:
            store.delete(part_path(table, part))
    store.confirm_lock()
    write_rows(store, "trials", part, [trial_row])


def _parts(store: Store, table: str) -> list[str]:
    """Return the paths of the table's part files in the store, sorted."""
    folder = table_folder(table)
    return [f"{folder}/{name}" for name in store.list(folder) if name.endswith(".parquet")]


def _read_parts(
    store: Store, table: str, parts: Sequence[str], columns: Sequence[str] | None = None, filters: Filters = None
) -> Any:
    options = ds.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
    fragments = [file_format.make_fragment(store.path(part), store.filesystem) for part in parts]
    dataset = ds.FileSystemDataset(fragments, TABLES[table], file_format, store.filesystem)
    expression = filters if filters is None or isinstance(filters, pc.Expression) else pq.filters_to_expression(filters)

    def read() -> Any:
        try:
            return dataset.to_table(
                columns=None if columns is None else list(columns), filter=expression, fragment_readahead=32
            )
        except OSError as error:
            if is_from_store(error):
                raise
            raise pa.ArrowInvalid(str(error)) from error  # the file is at fault

    return store.patience(read)


def _check_columns(table: str, columns: Sequence[str] | None) -> None:
    if table not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}; got {table!r}{nearest(table, TABLES)}")
    names = TABLES[table].names
    for name in columns or ():
        if name not in names:
            raise ValueError(f"{table} has no column {name!r}{nearest(name, names)}; it has {', '.join(names)}")


def read_table(store: Store, name: str, columns: Sequence[str] | None = None, filters: Filters = None) -> Any:
    """Return the table `name` of a run as a `pyarrow.Table`, parts in the order of their names.

    `columns` and `filters` (an expression, or `[("shots", "==", 10), ...]`) limit what is read. A table
    without parts is empty. A column that a part lacks, because an older version wrote it, is null there.
    Raises `ValueError` for an unknown table or column, `CorruptArtifact` for a part that cannot be read.
    """
    _check_columns(name, columns)
    parts = _parts(store, name)
    try:
        return _read_parts(store, name, parts, columns, filters)
    except (OSError, pa.ArrowInvalid) as error:
        for part in parts:
            reason = _unreadable(store, name, part)
            if reason is not None:
                raise _damaged(store, part, reason) from error
        raise


def read_frame(store: Store, name: str, columns: Sequence[str] | None = None, filters: Filters = None) -> pd.DataFrame:
    """Return the table `name` as a data frame; see `read_table`.

    Columns of whole numbers and of booleans that may be null are pandas' nullable types, so that 500 stays 500.
    """
    return _frame(read_table(store, name, columns, filters))


def frame_of(table: str, rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows of a table as the data frame that `read_frame` would return; raise `TypeError` as `write_rows`."""
    return _frame(_table_of(table, rows))


def _frame(table: Any) -> pd.DataFrame:
    import pandas as pd

    kinds = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
    return frame


def read_part(store: Store, table: str, part: str) -> list[dict[str, object]]:
    """Return the rows of one part; [] if there is no such part. Raises `CorruptArtifact` if it cannot be read."""
    path = part_path(table, part)
    if not store.exists(path):
        return []
    try:
        rows: list[dict[str, object]] = _read_parts(store, table, [path]).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(store, path, " ".join(str(error).split())) from error
    return rows


def trial_status(store: Store) -> dict[str, str]:
    """Return the status (`finished` or `failed`) of every trial that has its row in `trials`."""
    table = read_table(store, "trials", ["trial_id", "status"])
    return dict(zip(table["trial_id"].to_pylist(), table["status"].to_pylist(), strict=True))


def _damaged(store: Store, path: str, reason: str) -> CorruptArtifact:
    return CorruptArtifact(f"{store.label}/{path}: not a whole Parquet file ({reason}); delete it and run again")


def _unreadable(store: Store, table: str, part: str) -> str | None:
    try:
        _read_parts(store, table, [part])
    except (OSError, pa.ArrowInvalid) as error:
        return " ".join(str(error).split())
    return None
