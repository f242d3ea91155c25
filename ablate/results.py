"""What came out of a run: the schemas of its tables, and how rows are written, read and compared.

Every table is a folder of Parquet part files under `tables/`, read as one data set. A part is named by
what its rows are about (a trial, a pre-training, an attempt), so writing it again replaces it and no row
is ever there twice. A trial's row in `trials` is written last: it says that the trial's other rows are
there.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ablate.space import METHODS, Spec, TrialSpec, flatten, nearest
from ablate.store import CorruptArtifact, Store, is_from_store

if typing.TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
"""Raised when a column is added or changes; parts of older versions read with nulls in what they lack."""

Row: TypeAlias = Mapping[str, object]
Filters: TypeAlias = Any  # pyarrow.compute.Expression, or a list of (column, operator, value)


# --- schemas ----------------------------------------------------------------------------------------


def _column(name: str, kind: Any, description: str, *, nullable: bool = True) -> Any:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


def _arrow_type(annotation: Any) -> Any:
    """Return the Arrow type of a spec field's annotation."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _arrow_type(args[0])
    if origin in (typing.Union, types.UnionType):
        kinds = {_arrow_type(arg) for arg in args if arg is not type(None)}
        if len(kinds) == 1:
            return kinds.pop()
    elif origin is Literal and all(isinstance(arg, str) for arg in args):
        return pa.string()
    elif origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        inner = _arrow_type(args[0])
        return pa.list_(pa.int32() if inner == pa.int64() else inner)
    elif annotation in (bool, int, float, str):
        return {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}[annotation]
    raise TypeError(f"a spec field of type {annotation!r} has no column type; add one to results._arrow_type")


def _spec_fields(specs: Sequence[type[Spec]], prefix: str) -> list[Any]:
    """Return one column for each field that any of `specs` has, nested ones flattened."""
    columns: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for spec in specs:
        for name, info in spec.model_fields.items():
            full = prefix + name
            if name == "pretrain" and spec is TrialSpec:
                method = _column("pretrain_method", pa.string(), "initialisation, a key of METHODS")
                nested = [method, *_spec_fields([row.spec for row in METHODS.values()], "pretrain_")]
            elif isinstance(info.annotation, type) and issubclass(info.annotation, Spec):
                nested = _spec_fields([info.annotation], f"{full}_")
            elif name == "method":
                continue
            elif name == "shots":
                nested = [
                    _column("shots", pa.int32(), "annotated training images; null: all of them"),
                    _column("shots_label", pa.string(), "annotated training images as text, or all"),
                ]
            else:
                nested = [_column(full, _arrow_type(info.annotation), info.description or "")]
            for column in nested:
                known = columns.setdefault(column.name, column)
                if known.type != column.type:
                    raise TypeError(f"{column.name} is {known.type} in one spec and {column.type} in another")
                text = column.metadata[b"description"].decode()
                if text not in texts.setdefault(column.name, []):
                    texts[column.name].append(text)
    return [column.with_metadata({"description": "; ".join(texts[name])}) for name, column in columns.items()]


_SPEC_COLUMNS = _spec_fields([TrialSpec], "")
_SDR = pa.list_(pa.struct([pa.field("threshold", pa.float64()), pa.field("rate", pa.float64())]))
_TIME = pa.timestamp("us", tz="UTC")


def _schema(table: str, columns: Iterable[Any]) -> Any:
    return pa.schema(list(columns), metadata={"ablate_table": table, "ablate_schema_version": str(SCHEMA_VERSION)})


TABLES: dict[str, Any] = {
    "trials": _schema(
        "trials",
        [
            _column("trial_id", pa.string(), "12 hex digits that name the trial", nullable=False),
            _column(
                "pretrain_key", pa.string(), "12 hex digits that name the pre-training; null for scratch and imagenet"
            ),
            *_SPEC_COLUMNS,
            _column("status", pa.string(), "finished or failed", nullable=False),
            _column("error", pa.string(), "what failed, in one line; null if finished"),
            _column("unit", pa.string(), "unit of mre and of the SDR thresholds: mm or px"),
            _column("mre", pa.float64(), "mean radial error over all annotated landmarks of all test images"),
            _column("mre_median", pa.float64(), "median of the radial errors"),
            _column("mre_std", pa.float64(), "standard deviation of the radial errors"),
            _column("sdr", _SDR, "success detection rates: share (0 to 1) of errors of at most the threshold"),
            _column("paper_mre", pa.float64(), "mre by the paper's protocol; null for a user's own data"),
            _column("paper_sdr", _SDR, "sdr by the paper's protocol; null for a user's own data"),
            _column("val_loss", pa.float64(), "validation loss of the evaluated weights"),
            _column("val_mre", pa.float64(), "mean radial error of these weights on the validation images, in unit"),
            _column("best_epoch", pa.int64(), "epoch of the evaluated weights, from 1"),
            _column("epochs", pa.int64(), "epochs that were run"),
            _column("pretrain_seconds", pa.float64(), "wall time of the pre-training up to the snapshot used"),
            _column("pretrain_shared", pa.bool_(), "was the snapshot made for, or by, another trial as well"),
            _column("finetune_seconds", pa.float64(), "wall time of fine-tuning"),
            _column("evaluate_seconds", pa.float64(), "wall time of the evaluation on the test images"),
            _column("parameters", pa.int64(), "trainable parameters of the fine-tuned network"),
            _column("peak_memory_bytes", pa.int64(), "most memory held: of the GPU, or of the process on a CPU"),
            _column("device", pa.string(), "what computed: cpu, or the GPU's name"),
            _column("node", pa.string(), "host name of the machine"),
            _column("started_at", _TIME, "start of the trial, UTC"),
            _column("finished_at", _TIME, "end of the trial, UTC"),
            _column("ablate_version", pa.string(), "version of ablate"),
            _column("torch_version", pa.string(), "version of PyTorch"),
            _column("git_revision", pa.string(), "git revision of the checkout; null outside one"),
        ],
    ),
    "errors": _schema(
        "errors",
        [
            _column("trial_id", pa.string(), "the trial", nullable=False),
            _column("image", pa.string(), "file name of the test image", nullable=False),
            _column("landmark", pa.int16(), "number of the landmark, from 0", nullable=False),
            _column("x_true", pa.float64(), "annotated x in pixels of the original file"),
            _column("y_true", pa.float64(), "annotated y in pixels of the original file"),
            _column("x_pred", pa.float64(), "predicted x in pixels of the original file"),
            _column("y_pred", pa.float64(), "predicted y in pixels of the original file"),
            _column("error", pa.float64(), "radial error in the trial's unit"),
            _column("error_paper", pa.float64(), "radial error by the paper's protocol; null for a user's own data"),
        ],
    ),
    "curves": _schema(
        "curves",
        [
            _column("trial_id", pa.string(), "the trial that was fine-tuned, or null"),
            _column("pretrain_key", pa.string(), "the pre-training, or null"),
            _column("phase", pa.string(), "pretrain or finetune", nullable=False),
            _column("step", pa.int64(), "optimizer steps done", nullable=False),
            _column("epoch", pa.int64(), "epochs done; null where there are none"),
            _column("metric", pa.string(), "what was measured: loss, val_loss, lr, ...", nullable=False),
            _column("value", pa.float64(), "the metric's value"),
            _column("seconds", pa.float64(), "wall time spent in the phase so far"),
        ],
    ),
    "stages": _schema(
        "stages",
        [
            _column("kind", pa.string(), "pretrain, finetune or trial (a whole trial in one process)", nullable=False),
            _column("pretrain_key", pa.string(), "the pre-training that was made, or started from"),
            _column("trial_id", pa.string(), "the trial; null for a pre-training"),
            _column("from_step", pa.int64(), "step at which the attempt began"),
            _column("to_step", pa.int64(), "step that the attempt reached"),
            _column("seconds", pa.float64(), "wall time of the attempt"),
            _column("gpus", pa.float64(), "GPUs held by the attempt; fractions are shares of one"),
            _column("images_per_second", pa.float64(), "training images processed in a second"),
            _column("peak_memory_bytes", pa.int64(), "most memory held: of the GPU, or of the process on a CPU"),
            _column("node", pa.string(), "host name of the machine"),
            _column("device", pa.string(), "what computed: cpu, or the GPU's name"),
            _column("outcome", pa.string(), "how the attempt ended", nullable=False),
        ],
    ),
}
"""The schema of every table; each column's metadata holds its `description`."""

KEYS: dict[str, tuple[str, ...]] = {
    "trials": ("trial_id",),
    "errors": ("trial_id", "image", "landmark"),
    "curves": ("trial_id", "pretrain_key", "phase", "step", "epoch", "metric"),
    "stages": ("kind", "pretrain_key", "trial_id", "from_step", "to_step", "outcome"),
}
"""The columns that tell a table's rows apart (stages: as far as two runs can be compared)."""

VOLATILE = frozenset(
    {
        "pretrain_seconds",
        "finetune_seconds",
        "evaluate_seconds",
        "seconds",
        "images_per_second",
        "started_at",
        "finished_at",
        "node",
        "peak_memory_bytes",
        "pretrain_shared",
    }
)
"""Columns in which two runs of one spec may differ: times, rates, node, memory, who shared a pre-training."""


def blank(table: str) -> dict[str, object]:
    """Return a row of `table` in which every column is null, to be filled in."""
    return dict.fromkeys(TABLES[table].names)


def spec_columns(trial: TrialSpec) -> dict[str, object]:
    """Return the columns of `trials` that describe the trial: identity, and every spec field.

    Fields of other methods than the trial's are null.
    """
    values: dict[str, object] = dict.fromkeys(column.name for column in _SPEC_COLUMNS)
    for name, value in flatten(trial).items():
        values[name] = list(value) if isinstance(value, tuple) else value
    values["shots"] = None if trial.shots == "all" else trial.shots
    values["shots_label"] = trial.shots_label
    return {"trial_id": trial.trial_id, "pretrain_key": trial.pretrain_key, **values}


# --- writing ----------------------------------------------------------------------------------------


def stage_part(kind: str, name: str, attempt: str) -> str:
    """Return the part of `stages` for one attempt: `name` is a pretrain_key or trial_id, `attempt` a token."""
    return f"{kind}-{name}-{attempt}"


def part_path(table: str, part: str) -> str:
    """Return the path of a part file in the store."""
    if table not in TABLES or not re.fullmatch(r"[\w-]+", part):
        raise ValueError(f"no part {part!r} of a table {table!r}: tables are {', '.join(TABLES)}, parts [A-Za-z0-9_-]")
    return f"tables/{table}/{part}.parquet"


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
        if column.type == _TIME and any(isinstance(value, datetime) and value.tzinfo is None for value in values):
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


# --- reading ----------------------------------------------------------------------------------------


def _parts(store: Store, table: str) -> list[str]:
    """Return the paths of the table's part files in the store, sorted."""
    folder = f"tables/{table}"
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
    import pandas as pd

    table = read_table(store, name, columns, filters)
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


def finished_trials(store: Store) -> dict[str, str]:
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


def unreadable_parts(store: Store, tables: Iterable[str] = tuple(TABLES)) -> dict[str, str]:
    """Return the part files that are truncated or altered, by path, each with what is wrong with it.

    Every page is read and its checksum verified. Deleting the parts of a trial makes it run again.
    """
    found: dict[str, str] = {}
    for table in tables:
        parts = _parts(store, table)
        try:
            _read_parts(store, table, parts)  # all at once is much faster, and mostly all is well
        except (OSError, pa.ArrowInvalid):
            reasons = {part: _unreadable(store, table, part) for part in parts}
            found |= {part: reason for part, reason in reasons.items() if reason is not None}
    return found


# --- comparing --------------------------------------------------------------------------------------


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
