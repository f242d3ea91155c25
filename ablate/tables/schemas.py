"""The schemas of a run's tables, with a description of every column."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa

from ablate.space import trial_fields

SCHEMA_VERSION = 6
"""Raised when a column is added or changes; parts of older versions read with nulls in what they lack."""


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
    raise TypeError(f"a spec field of type {annotation!r} has no column type; add one to _arrow_type")


def _spec_columns() -> list[Any]:
    """Return a column for each field that a trial of any method has; descriptions of one name are joined."""
    columns: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for spec_field in trial_fields():
        if spec_field.path == ("shots",):
            found = [
                _column("shots", pa.int32(), "annotated training images; null: all of them"),
                _column("shots_label", pa.string(), "annotated training images as text, or all"),
            ]
        else:
            found = [_column(spec_field.column, _arrow_type(spec_field.annotation), spec_field.description)]
        for column in found:
            known = columns.setdefault(column.name, column)
            if known.type != column.type:
                raise TypeError(f"{column.name} is {known.type} in one spec and {column.type} in another")
            text = column.metadata[b"description"].decode()
            if text not in texts.setdefault(column.name, []):
                texts[column.name].append(text)
    return [column.with_metadata({"description": "; ".join(texts[name])}) for name, column in columns.items()]


SPEC_COLUMNS = _spec_columns()
_SDR = pa.list_(pa.struct([pa.field("threshold", pa.float64()), pa.field("rate", pa.float64())]))
TIME = pa.timestamp("us", tz="UTC")


def _schema(table: str, columns: Iterable[Any]) -> Any:
    return pa.schema(list(columns), metadata={"ablate_table": table, "ablate_schema_version": str(SCHEMA_VERSION)})


TABLES: dict[str, Any] = {
    "trials": _schema(
        "trials",
        [
            _column("trial_id", pa.string(), "12 hex digits that name the trial", nullable=False),
            _column(
                "pretrain_key", pa.string(), "12 hex digits that name the pre-training; null where nothing is trained"
            ),
            *SPEC_COLUMNS,
            _column("status", pa.string(), "finished or failed", nullable=False),
            _column("error", pa.string(), "what failed, in one line; null if finished"),
            _column("unit", pa.string(), "unit of mre and of the SDR thresholds: mm or px"),
            _column("mre", pa.float64(), "mean radial error over all annotated landmarks of all test images"),
            _column("mre_median", pa.float64(), "median of the radial errors"),
            _column("mre_std", pa.float64(), "standard deviation of the radial errors"),
            _column("sdr", _SDR, "success detection rates: share (0 to 1) of errors of at most the threshold"),
            _column("paper_mre", pa.float64(), "mre by the paper's protocol; null for a user's own data"),
            _column("paper_sdr", _SDR, "sdr by the paper's protocol; null for a user's own data"),
            _column(
                "val_loss",
                pa.float64(),
                "validation loss of the weights chosen, with loss adaptive their error in network pixels; null where "
                "nothing validates",
            ),
            _column("val_mre", pa.float64(), "mean radial error of these weights on what validates, in unit"),
            _column("best_epoch", pa.int64(), "epoch of the weights chosen, from 1"),
            _column("epochs", pa.int64(), "epochs that were run, the last perhaps in part; of the first phase if two"),
            _column("labels", pa.int32(), "annotated images seen by the trial and by the tuning behind it, test apart"),
            _column("pretrain_seconds", pa.float64(), "wall time of the pre-training up to the snapshot used"),
            _column("pretrain_shared", pa.bool_(), "was the snapshot made for, or by, another trial as well"),
            _column("finetune_seconds", pa.float64(), "wall time of fine-tuning"),
            _column("evaluate_seconds", pa.float64(), "wall time of the evaluation on the test images"),
            _column("parameters", pa.int64(), "trainable parameters of the fine-tuned network"),
            _column("peak_memory_bytes", pa.int64(), "most memory held: of the GPU, or of the process on a CPU"),
            _column("device", pa.string(), "what computed: cpu, or the GPU's name"),
            _column("node", pa.string(), "host name of the machine"),
            _column("started_at", TIME, "start of the trial, UTC"),
            _column("finished_at", TIME, "end of the trial, UTC"),
            _column("ablate_version", pa.string(), "version of ablate"),
            _column("torch_version", pa.string(), "version of PyTorch"),
            _column("git_revision", pa.string(), "git revision of the checkout; null outside one"),
        ],
    ),
    "baselines": _schema(
        "baselines",
        [
            _column("dataset", pa.string(), "the data set", nullable=False),
            _column("shots", pa.int32(), "annotated training images; null: all of them"),
            _column("draw", pa.int64(), "seed of the random draw of the shots; null: the first by file name"),
            _column("fold", pa.int64(), "fold of the data set; null where it has none"),
            _column("exclude_duplicates", pa.bool_(), "are test images left out that also occur in train or val"),
            _column("unit", pa.string(), "unit of mre and of the SDR thresholds: mm or px"),
            _column("mre", pa.float64(), "mean radial error of the mean shape of the shots on the test images"),
            _column("mre_median", pa.float64(), "median of its radial errors"),
            _column("sdr", _SDR, "its success detection rates: share (0 to 1) of errors of at most the threshold"),
            _column("landmarks", pa.list_(pa.float64()), "its mean radial error at each landmark, from 0"),
        ],
    ),
    "tuning": _schema(
        "tuning",
        [
            _column(
                "study", pa.string(), "12 hex digits over all that the tuning's outcome depends on", nullable=False
            ),
            _column("arm", pa.string(), "what is tuned, such as pretrain_method=ddpm", nullable=False),
            _column("place", pa.string(), "where its settings are chosen, such as shots=5", nullable=False),
            _column("repeat", pa.int32(), "which of several independent tunings, from 0", nullable=False),
            _column("round", pa.int32(), "round in which the configuration was asked for, from 0", nullable=False),
            _column("number", pa.int32(), "number of the configuration, from 0, the arm's default", nullable=False),
            _column("fields", pa.string(), "the searched fields and their values, as JSON", nullable=False),
            _column("seeds", pa.list_(pa.int64()), "seeds of the tuning trials"),
            _column("trial_ids", pa.list_(pa.string()), "ids of the tuning trials, by seed"),
            _column(
                "val_mre",
                pa.float64(),
                "mean of val_mre_seeds, at its end or where it was stopped; null where it failed",
            ),
            _column(
                "val_mre_seeds", pa.list_(pa.float64()), "MRE on the validation images of the best weights, by seed"
            ),
            _column("state", pa.string(), "finished, stopped at a rung, or failed; null: not ended yet"),
            _column("stopped_at", pa.float64(), "share of the optimizer steps at which it was stopped"),
            _column("epochs", pa.list_(pa.int32()), "epochs that were run, by seed"),
            _column(
                "finetune_gpu_hours",
                pa.float64(),
                "hours of fine-tuning of all seeds times the GPUs held; on a CPU, hours of a slot",
            ),
            _column("chosen", pa.bool_(), "has it the least val_mre of the budget", nullable=False),
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
        "finetune_gpu_hours",
    }
)
"""Columns in which two runs of one spec may differ: times, rates, node, memory, who shared a pre-training."""

PROVENANCE = frozenset({"device", "ablate_version", "torch_version", "git_revision"})
"""Columns that say by which code and on what a trial was computed."""


def blank(table: str) -> dict[str, object]:
    """Return a row of `table` in which every column is null, to be filled in."""
    return dict.fromkeys(TABLES[table].names)
