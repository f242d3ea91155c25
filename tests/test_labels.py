"""Labels are counted: the annotated images that a trial has seen, as a column and as an axis."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_run import specs, write_fake_run
from tiny import tiny_trial

from ablate import tables
from ablate.finetune import annotated_images, num_labels
from ablate.report.axis_charts import axis_charts, figure_of
from ablate.report.intervals import Intervals
from ablate.report.pivot import pivot, render
from ablate.report.run_data import read_run, read_trials
from ablate.space import TrialSpec
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store

LINEAR = {"schedule": "linear"}


def spec_of(**fields: Any) -> TrialSpec:
    return TrialSpec.model_validate({"dataset": "cephalo", "finetune": LINEAR, **fields})


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"shots": 5}, 25),
        ({"shots": "all"}, 150),
        ({"shots": 5, "validation": "inside_shots"}, 5),
        ({"shots": 5, "validation": "none"}, 5),
    ],
)
def test_labels_are_the_shots_and_the_validation_images_where_they_validate(
    fields: dict[str, Any], labels: int
) -> None:
    assert num_labels([spec_of(**fields)], 130, 20) == labels


def test_labels_of_a_tuned_trial_are_the_union_with_its_tuning() -> None:
    trial = spec_of(shots=5, few_shot="random", draw=0)
    same = spec_of(shots=5, few_shot="random", draw=0, seed=100)
    assert num_labels([trial, same], 130, 20) == 25
    inside = [spec_of(shots=5, few_shot="random", draw=draw, validation="inside_shots") for draw in (0, 1)]
    union = annotated_images(inside[0], 130, 20) | annotated_images(inside[1], 130, 20)
    assert 5 < num_labels(inside, 130, 20) == len(union) <= 10
    assert num_labels([trial, inside[0]], 130, 20) == 25


@pytest.mark.parametrize(("validation", "labels"), [("full", 3 + 20), ("inside_shots", 3), ("none", 3)])
def test_the_row_of_a_trial_has_its_labels(validation: str, labels: int, tmp_path: Path) -> None:
    spec = tiny_trial(validation=validation, finetune=LINEAR)
    row = run_trial(spec, Store.open(tmp_path), data_in(None))
    assert row["labels"] == labels
    assert tables.TABLES["trials"].field("labels").type == "int32"


# --- reading ----------------------------------------------------------------------------------------


def labels_by_shots(trials: pd.DataFrame) -> dict[str, Any]:
    return dict(zip(trials["shots_label"], trials["labels"], strict=True))


def test_rows_of_older_versions_and_planned_ones_have_shots_and_validation_images(tmp_path: Path) -> None:
    trials = specs(methods=["scratch"], shots=[5, 10, "all"], seeds=[0])
    trials.append(trials[0].model_copy(update={"validation": "inside_shots", "shots": 25}))
    store = write_fake_run(tmp_path, trials, missing=[1])  # of 50 training and 10 validation images
    part = tables.part_path("trials", trials[0].trial_id)
    (row,) = tables.read_part(store, "trials", trials[0].trial_id)
    tables.write_rows(store, "trials", trials[0].trial_id, [row | {"validation": None, "validation_share": None}])
    assert store.exists(part)
    found = read_trials(store)
    assert labels_by_shots(found) == {"5": 15, "10": 20, "all": 60, "25": 25}
    assert set(found["validation"]) == {"full", "inside_shots"}
    assert found["validation_share"].notna().all()


def test_what_a_row_says_is_not_counted_again_and_what_nobody_knows_is_null(tmp_path: Path) -> None:
    trials = specs(methods=["scratch"], shots=[5, 10], seeds=[0])
    store = write_fake_run(tmp_path, trials, run_yaml=False)
    (row,) = tables.read_part(store, "trials", trials[0].trial_id)
    tables.write_rows(store, "trials", trials[0].trial_id, [row | {"labels": 33}])
    found = labels_by_shots(read_trials(store))
    assert found["5"] == 33
    assert found["10"] is pd.NA


# --- axes -------------------------------------------------------------------------------------------


def test_labels_are_an_axis_of_tables_in_place_of_the_shots(tmp_path: Path) -> None:
    trials = read_trials(write_fake_run(tmp_path, specs(methods=["ddpm", "scratch"], shots=[5, 10, "all"])))
    made = pivot(trials, columns="labels")
    (table,) = made.tables
    assert [column.value for column in table.group.columns] == [15, 20, 60]
    by_shots = pivot(trials).tables[0]
    means = [[cell.mean for cell in found.cells.values()] for found in (table, by_shots)]
    assert means[0] == means[1]
    text = render(made, "github")
    assert "by initialisation and labels" in text
    assert "shots goes with the labels: 5 for 15; 10 for 20; all for 60" in text
    assert sum(cell.num for t in pivot(trials, filters=["labels=15"]).tables for cell in t.cells.values()) == 6


def test_labels_split_no_table_and_are_no_note_where_they_are_no_axis(tmp_path: Path) -> None:
    trials = read_trials(write_fake_run(tmp_path, specs(methods=["scratch"])))
    (table,) = pivot(trials).tables
    assert not table.group.notes


def test_validation_schemes_are_not_mixed_at_equal_labels(tmp_path: Path) -> None:
    full = specs(methods=["scratch"], shots=[5], seeds=[0])
    inside = [spec.model_copy(update={"validation": "inside_shots"}) for spec in specs(methods=["scratch"], shots=[15])]
    trials = read_trials(write_fake_run(tmp_path, [*full, *inside]))
    assert set(trials["labels"]) == {15}
    titles = [table.group.title for table in pivot(trials, columns="labels").tables]
    assert titles == ["validation full", "validation inside_shots"]


def test_labels_are_an_axis_of_figures(tmp_path: Path) -> None:
    run = read_run(write_fake_run(tmp_path, specs(methods=["ddpm", "scratch"], shots=[5, 10, "all"])))
    (chart,) = axis_charts(run, Intervals(run), figure_of(run.trials, "mre:labels"))
    assert [line.x for line in chart.lines] == [(15, 20, 60)] * 2
    assert chart.x_label == "annotated images seen"
