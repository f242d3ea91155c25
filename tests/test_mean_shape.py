"""The mean shape of the shots: worked by hand, written once for each draw, and held against every initialisation."""

from pathlib import Path

import numpy as np
import pytest
from fake_run import Shape, specs, write_fake_run
from runs import DATA, undisturbed
from tiny import tiny_trial

from ablate import tables
from ablate.datasets import Dataset, Pool, Split
from ablate.finetune import mean_shape, mean_shape_errors
from ablate.report.analysis import analyse
from ablate.report.chart_kinds import HeatChart, LineChart
from ablate.report.charts import FIGURES
from ablate.report.comparison_tables import interval_tables
from ablate.report.pivot import pivot, render
from ablate.report.run_data import read_run, read_trials
from ablate.store import Store

NAN = float("nan")


def split(points: list[list[tuple[float, float]]], sizes: list[tuple[int, int]]) -> Split:
    count = len(points)
    return Split(
        tuple(f"{index}.png" for index in range(count)),
        np.zeros((count, 16, 16), np.uint8),
        np.array(points, np.float64),
        np.array(sizes),
        np.tile([0.5, 0.25], (count, 1)),
        np.zeros(count, np.bool_),
    )


TRAIN = split([[(9.5, 4.5), (NAN, NAN)], [(79.5, 79.5), (NAN, NAN)], [(0, 0), (1, 1)]], [(40, 10), (100, 200), (9, 9)])
TEST = split([[(29.5, 13.5), (19.5, 9.5)], [(NAN, NAN), (49.5, 4.5)]], [(60, 20), (100, 10)])
MINE = Dataset("mine", "mm", 16, 2, (1.0, 2.0), None, TRAIN, TEST, TEST, Pool((), np.zeros((0, 16, 16), np.uint8)), "0")


def test_a_landmark_lies_at_its_mean_share_of_width_and_height_or_in_the_middle() -> None:
    shape_K2 = mean_shape(TRAIN.points_NK2[:2], TRAIN.sizes_N2[:2])
    # (10 / 40 + 80 / 100) / 2 = 0.525, (5 / 10 + 80 / 200) / 2 = 0.45; nobody has landmark 1
    np.testing.assert_allclose(shape_K2, [[0.525, 0.45], [0.5, 0.5]])


def test_its_errors_on_the_test_images_are_those_of_a_hand_computation() -> None:
    found = mean_shape_errors(tiny_trial(dataset="mine", shots=2), MINE)
    # image 0: (31, 8.5) and (29.5, 9.5); image 1: landmark 1 at (49.5, 4.5); 0.5 and 0.25 mm for a pixel
    errors = [np.hypot(1.5 * 0.5, 5 * 0.25), np.hypot(10 * 0.5, 0), 0.0]
    np.testing.assert_allclose(found, [[errors[0], errors[1]], [np.nan, errors[2]]])


def test_every_draw_of_shots_leaves_one_row_that_agrees_with_numpy(tmp_path: Path) -> None:
    random = {"few_shot": "random", "shots": 2}
    trials = [
        tiny_trial(shots=3, seed=0),
        tiny_trial(shots=3, seed=1),  # the same shots
        tiny_trial("simclr", shots=3),
        tiny_trial(**random, seed=4),
        tiny_trial(**random, seed=5),
        tiny_trial(**random, seed=6, draw=5),
    ]
    store = undisturbed(tmp_path / "run", trials)
    frame = tables.read_frame(store, "baselines")
    assert sorted(zip(frame["shots"], frame["draw"].fillna(-1), strict=True)) == [(2, 4), (2, 5), (3, -1)]
    data = DATA("synthetic", 16)
    shares = (data.train.points_NK2[:3] + 0.5) / data.train.sizes_N2[:3, None]
    places = shares.mean(axis=0) * data.test.sizes_N2[:, None] - 0.5
    errors = np.linalg.norm((places - data.test.points_NK2) * data.test.unit_per_pixel_N2[:, None], axis=-1)
    (mre,) = frame.loc[frame["shots"] == 3, "mre"]
    assert mre == pytest.approx(errors.mean(), abs=1e-12)
    (landmarks,) = frame.loc[frame["shots"] == 3, "landmarks"]
    np.testing.assert_allclose(landmarks, errors.mean(axis=0), atol=1e-12)
    assert len(tables.read_frame(store, "trials")) == len(trials)
    shown = render(pivot(read_trials(store)), "plain")
    assert "mean shape" in shown


def fake(folder: Path, mre: float) -> Store:
    """Write a generated run in which the mean shape of any shots has this error."""
    trials = specs(methods=["ddpm", "scratch"], shots=[5, 10], seeds=[0, 1])
    store = write_fake_run(folder, trials, shapes={"cephalo": Shape(num_images=6, num_landmarks=3)})
    for spec in trials:
        columns = tables.baseline_columns(tables.field_columns(spec))
        sdr = [{"threshold": rate, "rate": 0.25} for rate in (2.0, 2.5, 3.0, 4.0)]
        measured = {"mre": mre, "mre_median": mre, "sdr": sdr, "landmarks": [mre - 1, mre, mre + 1]}
        row = columns | {"unit": "mm", **measured}
        tables.write_rows(store, "baselines", tables.baseline_part(columns), [row])
    return store


@pytest.mark.parametrize(("mre", "is_marked"), [(0.01, True), (1000.0, False)])
def test_what_is_no_better_is_marked_in_every_table_with_its_meaning(
    tmp_path: Path, mre: float, is_marked: bool
) -> None:
    store = fake(tmp_path, mre)
    made = render(pivot(read_trials(store)), "plain")
    lines = [line for line in made.splitlines() if line.startswith(("DDPM", "scratch", "mean shape"))]
    assert [line.count("‡") for line in lines] == [2 * is_marked, 2 * is_marked, 0]
    assert lines[2].split() == ["mean", "shape", f"{mre:.2f}", f"{mre:.2f}"]
    assert ("‡ no better than the mean shape" in made) == is_marked
    (table,) = interval_tables(analyse(read_run(store)))
    assert [record["value"] for record in table.records if record["initialisation"] == "mean shape"] == [mre, mre]
    assert [row[0].text for row in table.rows] == ["DDPM ¶", "scratch", "mean shape"]
    assert ["‡" in cell.text for row in table.rows[:2] for cell in row[1:]] == [is_marked] * 4
    assert any("no better than the mean shape" in note for note in table.notes) == is_marked


def test_a_rate_is_no_better_when_it_is_not_higher(tmp_path: Path) -> None:
    made = render(pivot(read_trials(fake(tmp_path, 5.0)), metric="sdr@2"), "csv")
    rows = [line.split(",") for line in made.splitlines()]
    assert [row[:2] for row in rows if "mean_shape" in row] != []
    assert "25.0" in render(pivot(read_trials(fake(tmp_path / "other", 5.0)), metric="sdr@2"), "plain")


def test_every_figure_of_errors_against_shots_and_of_rates_has_its_line(tmp_path: Path) -> None:
    analysis = analyse(read_run(fake(tmp_path, 4.0)))
    for kind in ("MRE against shots", "SDR curves"):
        charts = [chart for chart in FIGURES[kind][0](analysis) if isinstance(chart, LineChart)]
        assert charts
        for chart in charts:
            assert chart.lines[-1].label == "mean shape"
    (chart,) = FIGURES["MRE against cost"][0](analysis)
    assert isinstance(chart, LineChart)
    across = chart.lines[-1]
    assert (across.label, across.mark, set(across.y[:2])) == ("mean shape", "rule", {4.0})
    measured = [x for line in chart.lines[:-1] for x in line.x]
    assert across.x[0] < min(measured) <= max(measured) < across.x[1]
    (chart,) = FIGURES["MRE of each landmark"][0](analysis)
    assert isinstance(chart, HeatChart)
    assert (chart.rows[-1], chart.values[-1]) == ("mean shape", (3.0, 4.0, 5.0))
    assert chart.note == "Mean over seeds."
    (chart,) = FIGURES["MRE against shots"][0](analysis)
    assert isinstance(chart, LineChart)
    assert chart.lines[-1].y == (4.0, 4.0)


def test_a_run_of_an_earlier_version_has_tables_without_it(tmp_path: Path) -> None:
    trials = specs(methods=["ddpm", "scratch"], shots=[5], seeds=[0, 1])
    store = write_fake_run(tmp_path, trials, shapes={"cephalo": Shape(num_images=6, num_landmarks=3)})
    assert "mean shape" not in render(pivot(read_trials(store)), "plain")
