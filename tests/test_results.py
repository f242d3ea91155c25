"""The tables: their columns, one row per identity, what a reader may see, and what counts as equal."""

import math
import random
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from same_tables import KEYS, compare, unreadable_parts

from ablate.space import METHODS, TrialSpec, trial_fields
from ablate.store import CorruptArtifact, Store
from ablate.tables import (
    PROVENANCE,
    RESULTS,
    TABLES,
    VOLATILE,
    blank,
    commit_trial,
    frame_of,
    part_path,
    read_frame,
    read_part,
    read_table,
    shots_number,
    shots_of_number,
    spec_columns,
    stage_part,
    trial_of_row,
    trial_status,
    write_rows,
)

TRIAL = "0123456789ab"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "run")


def trial(**fields: object) -> TrialSpec:
    return TrialSpec.model_validate({"dataset": "cephalo", **fields})


def trial_row(trial_id: str = TRIAL, **fields: object) -> dict[str, object]:
    return {**blank("trials"), "trial_id": trial_id, "status": "finished", "unit": "mm", **fields}


def error_row(image: str, landmark: int, error: float, trial_id: str = TRIAL) -> dict[str, object]:
    return {**blank("errors"), "trial_id": trial_id, "image": image, "landmark": landmark, "error": error}


def curve_row(step: int, value: float, **fields: object) -> dict[str, object]:
    row = {"trial_id": TRIAL, "phase": "finetune", "step": step, "metric": "loss", "value": value}
    return {**blank("curves"), **row, **fields}


# --- schemas ----------------------------------------------------------------------------------------

DESIGNED = {
    "trials": (
        "trial_id pretrain_key pretrain_method pretrain_timesteps pretrain_steps shots shots_label status error unit "
        "mre mre_median mre_std sdr paper_mre paper_sdr val_loss val_mre best_epoch epochs pretrain_seconds "
        "pretrain_shared finetune_seconds evaluate_seconds parameters peak_memory_bytes device node started_at "
        "finished_at ablate_version torch_version git_revision"
    ),
    "errors": "trial_id image landmark x_true y_true x_pred y_pred error error_paper",
    "curves": "trial_id pretrain_key phase step epoch metric value seconds",
    "stages": (
        "kind pretrain_key trial_id from_step to_step seconds gpus images_per_second peak_memory_bytes "
        "node device outcome"
    ),
}


@pytest.mark.parametrize("table", DESIGNED)
def test_every_designed_column_is_there_and_only_trials_has_more(table: str) -> None:
    names = DESIGNED[table].split()
    if table == "trials":
        assert set(names) <= set(TABLES[table].names)
    else:
        assert names == TABLES[table].names
    assert set(KEYS[table]) <= set(TABLES[table].names)


@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_described_and_the_table_has_a_version(table: str) -> None:
    schema = TABLES[table]
    assert all(column.metadata[b"description"] for column in schema)
    assert schema.metadata[b"ablate_schema_version"].isdigit()
    assert len(set(schema.names)) == len(schema.names)


def test_types_are_the_designed_ones() -> None:
    trials, errors = TABLES["trials"], TABLES["errors"]
    sdr = pa.list_(pa.struct([("threshold", pa.float64()), ("rate", pa.float64())]))
    for name, kind in {
        "shots": pa.int32(), "shots_label": pa.string(), "seed": pa.int64(), "exclude_duplicates": pa.bool_(),
        "network_channels": pa.list_(pa.int32()), "pretrain_lr": pa.float64(), "pretrain_steps": pa.int64(),
        "finetune_augment_rotate": pa.float64(), "finetune_schedule": pa.string(), "sdr": sdr, "paper_sdr": sdr,
        "started_at": pa.timestamp("us", tz="UTC"),
    }.items():  # fmt: skip
        assert trials.field(name).type == kind, name
    assert errors.field("landmark").type == pa.int16()


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_every_method_has_its_column(method: str) -> None:
    for field in trial_fields(method):
        assert field.column in TABLES["trials"].names


def test_volatile_columns_are_times_rates_node_memory_and_sharing() -> None:
    assert {name for schema in TABLES.values() for name in schema.names} >= VOLATILE
    assert not VOLATILE & {"mre", "error", "value", "epochs", "best_epoch", "status", "device", "torch_version"}


def test_results_are_what_a_trial_found_and_neither_its_spec_nor_where_it_ran() -> None:
    assert RESULTS == (
        "unit", "mre", "mre_median", "mre_std", "sdr", "paper_mre", "paper_sdr", "val_loss", "val_mre", "best_epoch",
        "epochs", "labels", "parameters",
    )  # fmt: skip
    assert set(TABLES["trials"].names) >= PROVENANCE


# --- rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_of_every_method_can_be_written_and_reads_back(store: Store, method: str) -> None:
    spec = trial(pretrain={"method": method}, shots=10)
    write_rows(store, "trials", spec.trial_id, [{**blank("trials"), **spec_columns(spec), "status": "finished"}])
    (row,) = read_part(store, "trials", spec.trial_id)
    assert row["trial_id"] == spec.trial_id
    assert row["pretrain_key"] == spec.pretrain_key
    assert row["pretrain_method"] == method
    assert (row["shots"], row["shots_label"]) == (10, "10")
    assert row["network_channels"] == [64, 128, 256, 512]
    assert row["finetune_sigma"] == 5.0


def test_all_shots_are_null_and_fields_of_other_methods_are_null() -> None:
    columns = spec_columns(trial(pretrain={"method": "ddpm", "timesteps": 100}))
    assert (columns["shots"], columns["shots_label"]) == (None, "all")
    assert columns["pretrain_timesteps"] == 100
    assert columns["pretrain_temperature"] is None
    assert columns["pretrain_dataset"] == "cephalo"
    assert columns["evaluate_decode"] == "centroid"
    assert list(columns) == TABLES["trials"].names[: len(columns)]


@pytest.mark.parametrize(("shots", "number"), [(10, 10), ("all", None)])
def test_shots_are_a_number_in_the_table_and_null_for_all(shots: int | str, number: int | None) -> None:
    assert shots_number(shots) == number  # type: ignore[arg-type]
    assert shots_of_number(number) == shots
    assert trial_of_row(spec_columns(trial(shots=shots))).shots == shots


def test_an_unknown_or_missing_column_is_refused_by_name(store: Store) -> None:
    with pytest.raises(TypeError, match=r"unknown 'mer' \(did you mean 'mre'\?\); missing none"):
        write_rows(store, "trials", TRIAL, [trial_row(mer=1.0)])
    row = trial_row()
    del row["val_mre"]
    with pytest.raises(TypeError, match="unknown none; missing 'val_mre'"):
        write_rows(store, "trials", TRIAL, [row])
    assert not store.exists("tables")


@pytest.mark.parametrize(
    ("column", "value"),
    [("mre", "4.07"), ("epochs", 1.5), ("status", None), ("error", 3), ("started_at", datetime(2025, 1, 1))],
)
def test_a_value_of_another_type_is_refused_by_column(store: Store, column: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"trials\.{column} must"):
        write_rows(store, "trials", TRIAL, [trial_row(**{column: value})])


def test_numbers_of_numpy_are_taken_exactly(store: Store) -> None:
    write_rows(store, "curves", TRIAL, [curve_row(np.int64(3), np.float64(0.1), epoch=np.int32(1))])  # type: ignore[arg-type]
    (row,) = read_part(store, "curves", TRIAL)
    assert (row["step"], row["value"], row["epoch"]) == (3, 0.1, 1)


def test_times_are_kept_in_utc(store: Store) -> None:
    moment = datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    write_rows(store, "trials", TRIAL, [trial_row(started_at=moment)])
    assert read_part(store, "trials", TRIAL)[0]["started_at"] == moment


@pytest.mark.parametrize(("table", "part"), [("trials", "a/b"), ("trials", ""), ("trials", ".x"), ("trails", "a")])
def test_a_part_name_that_is_no_identity_is_refused(store: Store, table: str, part: str) -> None:
    with pytest.raises(ValueError, match="no part"):
        write_rows(store, table, part, [])


def test_writing_a_part_again_replaces_its_rows(store: Store) -> None:
    write_rows(store, "errors", TRIAL, [error_row("a.jpg", 0, 1.0), error_row("a.jpg", 1, 2.0)])
    write_rows(store, "errors", TRIAL, [error_row("a.jpg", 0, 3.0)])
    assert read_table(store, "errors", ["error"])["error"].to_pylist() == [3.0]


def test_the_trials_row_is_written_last(store: Store) -> None:
    order: list[str] = []

    class Watched(Store):
        def write(self, path: str, data: bytes) -> None:
            order.append(path)
            super().write(path, data)

    watched = Watched(store.address, store.filesystem, store.root)
    commit_trial(watched, trial_row(), [error_row("a.jpg", 0, 1.0)], [curve_row(1, 0.5)])
    assert order == [f"tables/{table}/{TRIAL}.parquet" for table in ("errors", "curves", "trials")]


def test_a_trial_that_failed_after_it_had_finished_leaves_no_errors_behind(store: Store) -> None:
    commit_trial(store, trial_row(), [error_row("a.jpg", 0, 1.0)], [curve_row(1, 0.5)])
    commit_trial(store, trial_row(status="failed", error="loss is NaN"), [], [])
    assert read_table(store, "errors").num_rows == 0
    assert trial_status(store) == {TRIAL: "failed"}


def test_rows_of_another_trial_are_refused(store: Store) -> None:
    with pytest.raises(TypeError, match=f"every row of errors must be of trial {TRIAL}"):
        commit_trial(store, trial_row(), [error_row("a.jpg", 0, 1.0, trial_id="ffffffffffff")], [])


def test_attempts_of_one_stage_are_parts_of_their_own(store: Store) -> None:
    for attempt in ("a1", "a2", "a2"):
        row = {**blank("stages"), "kind": "pretrain", "pretrain_key": "k", "outcome": "published"}
        write_rows(store, "stages", stage_part("pretrain", "k", attempt), [row])
    assert read_table(store, "stages").num_rows == 2
    assert store.list("tables/stages") == ["pretrain-k-a1.parquet", "pretrain-k-a2.parquet"]


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_parts_is_empty_with_its_columns(store: Store, table: str) -> None:
    assert read_table(store, table).schema.equals(TABLES[table])
    assert read_frame(store, table).shape == (0, len(TABLES[table].names))
    assert read_part(store, table, "x") == []
    assert trial_status(store) == {}


def test_columns_and_filters_limit_what_is_read(store: Store) -> None:
    for shots in (5, 10, None):
        spec = trial(shots=shots or "all")
        row = {**trial_row(), **spec_columns(spec), "mre": float(shots or 130)}
        commit_trial(store, row, [], [])
    assert read_table(store, "trials", ["mre"], [("shots", "==", 10)])["mre"].to_pylist() == [10.0]
    assert read_table(store, "trials", ["mre"], pc.field("shots").is_null())["mre"].to_pylist() == [130.0]
    assert read_table(store, "trials", ["mre", "shots"]).column_names == ["mre", "shots"]


def test_an_unknown_table_or_column_is_refused_with_the_nearest(store: Store) -> None:
    with pytest.raises(ValueError, match=r"'trails' \(did you mean 'trials'\?\)"):
        read_table(store, "trails")
    with pytest.raises(ValueError, match=r"no column 'shot' \(did you mean 'shots'\?\)"):
        read_table(store, "trials", ["shot"])


def test_a_data_frame_keeps_whole_numbers_whole(store: Store) -> None:
    for method in ("ddpm", "scratch"):
        spec = trial(pretrain={"method": method})
        commit_trial(store, {**trial_row(), **spec_columns(spec)}, [], [])
    assert read_frame(store, "trials").equals(frame_of("trials", read_table(store, "trials").to_pylist()))
    frame = read_frame(store, "trials").set_index("pretrain_method")
    assert str(frame.loc["ddpm", "pretrain_timesteps"]) == "500"
    assert frame.loc["scratch", "pretrain_timesteps"] is pd.NA
    assert frame["shots"].isna().all()
    assert isinstance(frame["mre"].dtype, np.dtype)


def test_a_part_of_an_older_version_reads_with_nulls_in_what_it_lacks(store: Store) -> None:
    write_rows(store, "errors", "new", [error_row("a.jpg", 0, 1.0, trial_id="new")])
    old = pa.table(
        {"trial_id": ["old"], "image": ["a.jpg"], "landmark": pa.array([0], pa.int32()), "error": [2.0], "gone": [1]}
    )
    pq.write_table(old, store.path(part_path("errors", "old")))
    table = read_table(store, "errors")
    assert table.schema.names == TABLES["errors"].names
    assert table["error"].to_pylist() == [1.0, 2.0]
    assert table["error_paper"].to_pylist() == [None, None]
    assert table["landmark"].type == pa.int16()


def test_descriptions_travel_with_the_files(store: Store) -> None:
    write_rows(store, "errors", TRIAL, [error_row("a.jpg", 0, 1.0)])
    schema = pq.read_schema(store.path(part_path("errors", TRIAL)))
    assert schema.field("error").metadata[b"description"] == b"radial error in the trial's unit"
    assert schema.metadata[b"ablate_schema_version"] == b"6"


def test_files_that_are_no_parts_are_not_read(store: Store) -> None:
    write_rows(store, "curves", TRIAL, [curve_row(1, 0.5)])
    store.write(f"tables/curves/.{TRIAL}.parquet.{'0' * 32}.tmp", b"half")
    store.write("tables/curves/notes.txt", b"mine")
    assert read_table(store, "curves").num_rows == 1


@pytest.mark.parametrize("damage", ["truncated", "emptied", "altered"])
def test_a_damaged_part_is_found_and_named(store: Store, damage: str) -> None:
    for name in ("aa", "bb", "cc"):
        write_rows(store, "curves", name, [curve_row(step, math.sqrt(step)) for step in range(200)])
    path = Path(store.path(part_path("curves", "bb")))
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[len(content) // 3] ^= 0x10  # inside a page
    path.write_bytes({"truncated": content[:-20], "emptied": b"", "altered": content}[damage])
    with pytest.raises(CorruptArtifact, match=r"tables/curves/bb\.parquet: not a whole Parquet file"):
        read_table(store, "curves")
    with pytest.raises(CorruptArtifact, match="bb"):
        read_part(store, "curves", "bb")
    assert list(unreadable_parts(store)) == ["tables/curves/bb.parquet"]


_COMMIT_UNTIL_KILLED = """
import sys
from ablate.tables import blank, commit_trial
from ablate.store import Store
store, number = Store.open(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    name = f"{number % 7:012x}"  # most trials are written again and again
    errors = [{**blank("errors"), "trial_id": name, "image": f"{i}.jpg", "landmark": 0, "error": float(number)}
              for i in range(50)]
    curves = [{**blank("curves"), "trial_id": name, "phase": "finetune", "step": 1, "metric": "loss"}]
    row = {**blank("trials"), "trial_id": name, "status": "finished", "mre": float(number)}
    commit_trial(store, row, errors, curves)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_readable_tables_without_double_or_missing_rows(store: Store) -> None:
    delays, last = random.Random(1), 0
    for _ in range(4):
        code = [sys.executable, "-c", _COMMIT_UNTIL_KILLED, store.address, str(last)]
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + delays.uniform(0.05, 0.25)
            while time.monotonic() < deadline:  # readers look while it writes
                read_table(store, "trials")
            process.send_signal(signal.SIGKILL)
            last = max((int(line) for line in process.stdout.read().split()), default=last)
        assert unreadable_parts(store) == {}
        trials, errors = read_frame(store, "trials"), read_frame(store, "errors")
        assert trials["trial_id"].is_unique
        assert set(trials["trial_id"]) <= set(errors["trial_id"])  # the row in trials is the commit mark
        assert (errors.groupby("trial_id")["image"].nunique() == 50).all()
        assert (errors.groupby("trial_id").size() == 50).all()
    assert last > 0


# --- comparing --------------------------------------------------------------------------------------

NEXT_AFTER_ONE = struct.unpack("<d", struct.pack("<q", struct.unpack("<q", struct.pack("<d", 1.0))[0] + 1))[0]


def write_run(folder: Path, **fields: object) -> Store:
    store = Store.open(folder)
    sdr = [{"threshold": 2.0, "rate": 0.5}, {"threshold": 4.0, "rate": math.nan}]
    row = trial_row(**{"mre": 1.0, "val_loss": math.nan, "sdr": sdr, "node": "a", **fields})
    errors = [error_row("a.jpg", 0, 1.0), error_row("b.jpg", 0, math.nan)]
    commit_trial(store, row, errors, [curve_row(1, 0.5, seconds=1.0)])
    return store


def test_equal_runs_have_no_differences_and_nan_equals_nan(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", finetune_seconds=1.0, pretrain_shared=True)
    other = write_run(tmp_path / "two", finetune_seconds=2.0, pretrain_shared=False, node="b", peak_memory_bytes=7)
    write_rows(other, "stages", "finetune-x-a", [{**blank("stages"), "kind": "finetune", "outcome": "killed"}])
    assert compare(one, other) == []
    assert compare(one, one) == []


def test_the_order_of_rows_is_no_difference(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    write_rows(other, "errors", TRIAL, [error_row("b.jpg", 0, math.nan), error_row("a.jpg", 0, 1.0)])
    assert compare(one, other) == []


def test_one_bit_is_a_difference_and_is_told(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two", mre=NEXT_AFTER_ONE)
    assert compare(one, other) == [f"trials {TRIAL}: mre is 1.0 on the left, 1.0000000000000002 on the right"]


def test_the_sign_of_zero_and_a_rate_inside_a_list_are_differences(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", mre=0.0)
    other = write_run(tmp_path / "two", mre=-0.0, sdr=[{"threshold": 2.0, "rate": 0.25}])
    assert [line.split(" is ")[0] for line in compare(one, other)] == [f"trials {TRIAL}: mre", f"trials {TRIAL}: sdr"]


def test_missing_extra_and_double_rows_are_differences(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    rows = [error_row("a.jpg", 0, 1.0), error_row("a.jpg", 0, 1.0), error_row("c.jpg", 0, 1.0)]
    write_rows(other, "errors", TRIAL, rows)
    assert compare(one, other) == [
        f"errors {TRIAL} a.jpg 0: 1 rows on the left, 2 on the right",
        f"errors {TRIAL} b.jpg 0: 1 rows on the left, 0 on the right",
        f"errors {TRIAL} c.jpg 0: 0 rows on the left, 1 on the right",
    ]


def test_null_and_nan_differ(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two", val_loss=None)
    assert compare(one, other) == [f"trials {TRIAL}: val_loss is nan on the left, None on the right"]


def test_many_differences_are_counted_rather_than_told(tmp_path: Path) -> None:
    stores = []
    for folder, shift in (("one", 0.0), ("two", 1.0)):
        store = Store.open(tmp_path / folder)
        write_rows(store, "curves", TRIAL, [curve_row(step, step + shift) for step in range(50)])
        stores.append(store)
    found = compare(stores[0], stores[1], ["curves"], most=3)
    assert len(found) == 4
    assert found[-1] == "curves: 47 more differences"
