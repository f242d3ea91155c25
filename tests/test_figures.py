"""Figures: what they show, that they are the same each time, and that names in them are text."""

import io
import itertools
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_run import Shape, specs, write_fake_run
from PIL import Image

from ablate.errors import InputError
from ablate.report.analysis import Analysis, analyse
from ablate.report.axis_charts import axis_charts, figure_of
from ablate.report.chart_kinds import HeatChart, Line, LineChart, RankChart, places_of
from ablate.report.charts import FIGURES, rank_charts, rate_charts, shot_charts, step_charts
from ablate.report.figures import FORMATS, draw, drawable, drawable_names, files_of, print_style
from ablate.report.interactive import chart_json
from ablate.report.metrics import MEAN_SHAPE
from ablate.report.run_data import read_run
from ablate.report.style import LOOKS, WIDTH_IN, look_of
from ablate.report.ticks import log_ticks, readable, time_text, time_ticks
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
    for kind, (build, lacking) in FIGURES.items():
        charts = list(build(analysis))
        if not charts and not lacking:  # of runs that were tuned alone
            continue
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
    assert set(LOOKS) <= {*METHODS, MEAN_SHAPE, "annotators"}
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


def test_long_names_lose_letters_where_they_stay_different() -> None:
    arms = ["DDPM (whole network, default)", "DDPM (whole network, tuned)", "scratch"]
    assert drawable_names(arms, 22) == ["DDPM (whole ne…efault)", "DDPM (whole ne… tuned)", "scratch"]
    late = [f"xxxxxxxxxxxx{number}yyyyyyyyy" for number in (1, 2)]
    assert drawable_names(late, 12) == ["x…1yyyyyyyyy", "x…2yyyyyyyyy"]
    assert drawable_names(["a" * 30, "a" * 30, "b"], 10) == ["aaaaaa…aaa", "aaaaaa…aaa", "b"]  # no place can


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


def test_lines_stand_side_by_side_on_the_page_as_in_print(analysis: Analysis) -> None:
    chart = next(iter(shot_charts(analysis)))
    assert isinstance(chart, LineChart)
    places = places_of(chart)
    firsts = [place[0] for place, line in zip(places, chart.lines, strict=True) if line.x[0] == 10.0]
    assert len(firsts) > 3
    assert len(set(firsts)) == len(firsts)
    assert all(7.1 < x < 14.2 for x in firsts)  # nearer to 10 than to the neighbours 5 and 50
    on_page = [trace["x"] for trace in chart_json(chart)["data"]]
    drawn = draw(chart).axes[0].get_lines()
    for place, page, line in zip(places, on_page, drawn, strict=True):
        assert page == pytest.approx(place, rel=1e-5)
        assert np.asarray(line.get_xdata()) == pytest.approx(np.array(place))
    told = chart_json(chart)["data"][0]["text"][0]
    assert f"{chart.x_label}: {chart.lines[0].x[0]:g} shots" in told  # the number of shots, not the place


def test_the_rank_chart_has_the_same_parts_on_the_page_as_in_print(analysis: Analysis) -> None:
    chart = next(iter(rank_charts(analysis)))
    assert isinstance(chart, RankChart)
    axes = draw(chart).axes[0]
    page = chart_json(chart)
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
    segments = [
        (*np.asarray(line.get_xydata())[i], *np.asarray(line.get_xydata())[i + 1])
        for line in drawn
        for i in range(len(line.get_xdata()) - 1)
    ]
    shapes = [(shape["x0"], shape["y0"], shape["x1"], shape["y1"]) for shape in page["layout"]["shapes"]]
    assert sorted(shapes) == pytest.approx(np.array(sorted(segments)))
    in_print = [(*text.get_position(), text.get_text().strip()) for text in axes.texts]
    on_page = [(one["x"], one["y"], one["text"].replace("<br>", " ")) for one in page["layout"]["annotations"]]
    assert in_print == on_page
    assert [text for _, _, text in on_page if text.startswith("critical difference")]


def test_ticks_of_durations_have_the_unit_that_fits_and_never_collide() -> None:
    assert [time_text(s) for s in (0, 0.42, 7, 38, 250, 5000, 7000)] == [
        "0", "0.4 s", "7.0 s", "38 s", "4.2 min", "83 min", "1.9 h"
    ]  # fmt: skip
    assert [label for _, label in time_ticks([0.02, 0.3])] == ["20 ms", "50 ms", "100 ms", "200 ms"]
    assert [label for _, label in time_ticks([15, 150])] == ["20 s", "30 s", "1 min", "2 min"]
    assert len(time_ticks([1, 1e6])) <= 6
    assert [label for _, label in time_ticks([40, 44])] == ["40 s"] or len(time_ticks([40, 44])) <= 2
    assert [label for _, label in log_ticks([0.5, 300])] == ["1", "3", "10", "30", "100", "300"]
    kept = readable([(x, f"{x:g}") for x in (1000, 2000, 4000, 8000, 10_000)], log=True)
    assert [label for _, label in kept] == ["1000", "2000", "4000", "10000"]


def test_the_axis_of_an_sdr_curve_ends_where_its_thresholds_can_be_read(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(shots=[5], seeds=[0, 1]), pictures=False, shift=60.0)
    chart = next(iter(rate_charts(analyse(read_run(store), num_resamples=50))))
    assert isinstance(chart, LineChart)
    assert chart.x_end == 8.0  # twice the largest threshold, whatever the errors are
    assert [label for _, label in chart.x_ticks] == ["0", "2", "2.5", "3", "4", "8"]
    assert draw(chart).axes[0].get_xlim() == (0.0, 8.0)
    assert chart_json(chart)["layout"]["xaxis"]["range"] == [0, 8.0]
    assert chart_json(chart)["layout"]["yaxis"]["range"] == [0, 10.0]  # no landmark is found, so the axis is short


def test_the_width_of_a_column_and_the_font_are_those_asked_for(analysis: Analysis) -> None:
    chart = next(iter(shot_charts(analysis)))
    style = print_style("dejavu serif", "252pt")
    assert style.font == "DejaVu Serif"
    files = files_of(draw(chart, style), style)
    with Image.open(io.BytesIO(files["png"])) as picture:
        assert picture.width == pytest.approx(252 / 72.27 * 200, abs=1)
    assert b"DejaVuSerif" in files["pdf"]
    assert b"DejaVuSans" in files_of(draw(chart))["pdf"]
    assert [print_style(None, text).width_in for text in ("86mm", "8.6cm")] == pytest.approx([86 / 25.4] * 2)


@pytest.mark.parametrize(
    ("font", "width", "message"),
    [
        ("DejaVu Sanz", None, "--font must be a font that matplotlib finds on this machine; got 'DejaVu Sanz'"),
        (None, "86", "--column-width must be a number and one of the units in, mm, cm, pt"),
        (None, "1.2.3mm", "--column-width must be a number"),
        (None, "3mm", "from 1.5in to 20in; got '3mm'"),
    ],
)
def test_what_cannot_be_printed_is_refused(font: str | None, width: str | None, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        print_style(font, width)


@pytest.mark.parametrize(
    ("text", "label", "x", "kind"),
    [
        ("sdr@2.5:pretrain.timesteps", "DDPM (steps 8000)", (100.0, 250.0, 500.0), "crossed-bootstrap"),
        ("mre:shots", "scratch", (5.0, 10.0, 50.0), "crossed-bootstrap"),
        ("val_mre:pretrain_steps", "DDPM (timesteps 500)", (1000.0, 2000.0, 8000.0), "standard deviation over seeds"),
    ],
)
def test_any_metric_is_drawn_against_any_numeric_axis(
    analysis: Analysis, text: str, label: str, x: tuple[float, ...], kind: str
) -> None:
    trials = analysis.run.trials
    figure = figure_of(trials, text)
    charts = list(axis_charts(analysis.run, analysis.intervals, figure))
    line = next(line for chart in charts for line in chart.lines if line.label == label)
    assert line.x == x
    assert all(kind in chart.note for chart in charts)
    column = figure.axis
    chosen = trials[(trials["pretrain_method"] == line.method) & (trials[column] == x[0])]
    chosen = chosen[(chosen["shots"] == 10) | (column == "shots")]
    values = [
        {rate["threshold"]: 100 * rate["rate"] for rate in row["sdr"]}[2.5]
        if "sdr" in text
        else row[figure.metric.name]
        for row in chosen.to_dict(orient="records")
    ]
    assert line.y[0] == pytest.approx(np.mean(values))
    if kind.startswith("standard"):
        assert line.upper[0] - line.y[0] == pytest.approx(np.std(values, ddof=1))
    for chart in charts:
        draw(chart)
        json.dumps(chart_json(chart), allow_nan=False)


def test_a_measured_axis_has_a_point_for_each_number_of_shots(analysis: Analysis) -> None:
    (chart,) = axis_charts(analysis.run, analysis.intervals, figure_of(analysis.run.trials, "mre:val_mre"))
    line = next(line for line in chart.lines if line.label == "scratch")
    assert len(line.x) == 3
    assert line.x == tuple(sorted(line.x))
    assert chart.x_label == "MRE on the validation images (mm)"
    assert not chart.side_by_side


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mre", "--figure must be METRIC:AXIS, for example mre:pretrain.timesteps; got 'mre'"),
        ("mre:network.kind", "the axis must be a numeric field of a trial or a measured number; got 'network.kind'"),
        ("mre:timestep", "the run has several values of shots, seed, "),
        ("mre:finetune.lr", "needs two different numbers to draw a line; the run has only"),
        ("mra:shots", "--metric must be one of"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_can(analysis: Analysis, text: str, message: str) -> None:
    if text == "mre:finetune.lr":
        trials = analysis.run.trials[analysis.run.trials["pretrain_method"] == "scratch"]
    else:
        trials = analysis.run.trials
    with pytest.raises(InputError, match=re.escape(message)):
        figure_of(trials, text)


LONG = tuple(f"DDPM (whole network, timesteps {steps}, betas {betas})" for steps in (2, 500) for betas in ("a", "b"))


def test_long_names_of_ranks_stand_whole_inside_the_figure_and_apart() -> None:
    names = (*LONG, "scratch")
    chart = RankChart("r", "t", names, ("ddpm",) * 4 + ("scratch",), (1.0, 2.0, 3.0, 4.0, 5.0), None, (names,))
    figure = draw(chart)
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert {" ".join(text.split()) for text in boxes} >= {
        f"{name} {rank:.2f}" for name, rank in zip(names, chart.ranks, strict=True)
    }
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 <= box.x1 <= frame.x1 for box in boxes.values())
    assert all(frame.y0 <= box.y0 <= box.y1 <= frame.y1 for box in boxes.values())
    assert not [pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    page = chart_json(chart)["layout"]
    lines = max(note["text"].count("<br>") + 1 for note in page["annotations"])
    bottom, top = page["yaxis"]["range"]
    per_name_px = page["meta"]["least_height"] * 0.5 * lines / (top - bottom)
    assert per_name_px >= 16 * lines


def test_long_names_of_rows_stand_whole_and_apart() -> None:
    figure = draw(HeatChart("h", "t", "landmark", "MRE", LONG, ("0", "1"), ((1.0, 2.0),) * 4))
    figure.canvas.draw()
    labels = figure.axes[0].get_yticklabels()
    assert [" ".join(label.get_text().split()) for label in labels] == list(LONG)
    boxes = [label.get_window_extent() for label in labels]
    assert all(figure.bbox.x0 <= box.x0 for box in boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
