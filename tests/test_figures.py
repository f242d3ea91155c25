"""Figures: what they show, that they are the same each time, and that names in them are text."""

import io
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_run import Shape, specs, write_fake_run
from PIL import Image

from ablate.report.analysis import Analysis, analyse
from ablate.report.charts import FIGURES, Line, LineChart, RankChart, rank_charts, shot_charts, step_charts
from ablate.report.figures import FORMATS, draw, drawable, files_of
from ablate.report.interactive import chart_json
from ablate.report.metrics import MEAN_SHAPE
from ablate.report.run_data import read_run
from ablate.report.style import LOOKS, WIDTH_IN, look_of
from ablate.space import METHODS


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    trials = [
        *specs(methods=["ddpm", "mocov3", "scratch"], shots=[5, 10, "all"], seeds=[0, 1]),
        *(s for n in (1000, 2000) for s in specs(methods=["ddpm"], shots=[10], seeds=[0, 1], pretrain={"steps": n})),
        *(s for t in (100, 250) for s in specs(methods=["ddpm"], shots=[10], seeds=[0, 1], pretrain={"timesteps": t})),
    ]
    store = write_fake_run(tmp_path_factory.mktemp("run"), trials, pictures=False)
    return analyse(read_run(store), num_resamples=200)


def test_every_kind_of_figure_can_be_drawn_in_every_format(analysis: Analysis) -> None:
    for kind, (build, _) in FIGURES.items():
        charts = list(build(analysis))
        assert charts, kind
        files = files_of(draw(charts[0]))
        assert tuple(files) == FORMATS
        with Image.open(io.BytesIO(files["png"])) as picture:
            assert picture.width == pytest.approx(WIDTH_IN * 200, abs=1), kind
        assert files["pdf"].startswith(b"%PDF")
        ElementTree.fromstring(files["svg"])
        json.dumps(chart_json(charts[0]), allow_nan=False)


def test_the_same_chart_gives_the_same_files_in_every_format(analysis: Analysis) -> None:
    chart = next(iter(shot_charts(analysis)))
    assert files_of(draw(chart)) == files_of(draw(chart))


def test_all_shots_stand_at_the_number_of_training_images(analysis: Analysis) -> None:
    chart = next(iter(shot_charts(analysis)))
    assert isinstance(chart, LineChart)
    assert chart.x_ticks == ((5.0, "5"), (10.0, "10"), (50.0, "all"))  # the run's file says 50 training images


def test_points_are_the_means_over_seeds_of_the_trials_table(analysis: Analysis) -> None:
    chart = next(iter(shot_charts(analysis)))
    assert isinstance(chart, LineChart)
    trials = analysis.run.trials
    scratch = trials[(trials["pretrain_method"] == "scratch") & (trials["shots"] == 5)]
    line = next(line for line in chart.lines if line.label == "scratch")
    assert line.y[0] == pytest.approx(scratch["mre"].mean(), rel=1e-12)
    assert line.lower[0] < line.y[0] < line.upper[0]


def test_steps_are_an_axis_only_where_nothing_else_differs(analysis: Analysis) -> None:
    charts = list(step_charts(analysis))
    assert len(charts) == 1
    assert isinstance(charts[0], LineChart)
    assert [line.x for line in charts[0].lines] == [(1000.0, 2000.0, 8000.0)]


def test_a_method_is_ranked_by_the_setting_that_was_run_at_the_most_shots(analysis: Analysis) -> None:
    chart = next(iter(rank_charts(analysis)))
    assert isinstance(chart, RankChart)
    assert chart.names == ("DDPM", "MoCo v3", "scratch")
    assert chart.methods == ("ddpm", "mocov3", "scratch")


def test_every_fixed_look_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(LOOKS) <= {*METHODS, MEAN_SHAPE}
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)
    assert look_of("of the future") == look_of("of the future")


def test_a_band_is_one_polygon_for_each_stretch_that_has_limits() -> None:
    nan = math.nan
    line = Line("x", "ddpm", 0, (1.0, 2.0, 3.0, 4.0), (5.0,) * 4, (4.0, nan, 4.0, 3.0), (6.0, nan, 6.0, 7.0))
    band = chart_json(LineChart("x", "", "", "", (line,), dense=True))["data"][0]
    assert band["x"] == [1.0, 1.0, None, 3.0, 4.0, 4.0, 3.0, None]
    assert band["y"] == [6.0, 4.0, None, 6.0, 7.0, 3.0, 4.0, None]


HOSTILE = "<script>alert(1)</script>--> a/../../b $x_{ 中 \n\x00&amp;"


def test_a_hostile_name_is_text_in_svg_and_on_the_page() -> None:
    line = Line(HOSTILE, HOSTILE, 0, (1.0, 2.0), (2.0, math.nan), (1.0, math.nan), (3.0, math.nan), (HOSTILE, HOSTILE))
    chart = LineChart("x", HOSTILE, HOSTILE, HOSTILE, (line,), x_log=True, note=HOSTILE)
    svg = files_of(draw(chart))["svg"]
    root = ElementTree.fromstring(svg)
    assert not [element for element in root.iter() if str(element.tag).endswith("script")]
    texts = str(chart_json(chart)["data"]) + str(chart_json(chart)["layout"])
    assert "<script" not in texts


def test_letters_that_the_font_lacks_become_boxes_and_long_names_are_cut() -> None:
    assert drawable("中 é") == "□ é"
    assert drawable("x" * 50, 10) == "x" * 9 + "…"


def test_a_run_of_one_seed_says_that_its_intervals_are_over_images_only(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(shots=[5, 10], seeds=[0]), pictures=False)
    chart = next(iter(shot_charts(analyse(read_run(store), num_resamples=100))))
    assert "over test images (one seed)" in chart.note


def test_a_run_of_one_seed_and_one_image_has_no_interval_and_says_why(tmp_path: Path) -> None:
    shapes = {"cephalo": Shape(num_images=1, duplicates=0)}
    store = write_fake_run(tmp_path, specs(shots=[5, 10], seeds=[0]), shapes=shapes, pictures=False)
    chart = next(iter(shot_charts(analyse(read_run(store), num_resamples=100))))
    assert isinstance(chart, LineChart)
    assert all(np.isnan(line.lower).all() for line in chart.lines)
    assert "one seed and one test image" in chart.note
