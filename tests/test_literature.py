"""Rows of the literature: where they stand, that they are marked as not run here, and which files are refused."""

import re
from pathlib import Path

import pytest
from fake_run import Shape, specs, write_fake_run

from ablate.errors import InputError
from ablate.report.analysis import analyse
from ablate.report.chart_kinds import LineChart
from ablate.report.charts import rate_charts, shot_charts
from ablate.report.comparison_tables import interval_tables
from ablate.report.figures import draw
from ablate.report.interactive import chart_json
from ablate.report.kept import references_of
from ablate.report.pivot import pivot, render
from ablate.report.run_data import read_run
from ablate.report.write import write_report
from ablate.store import Store

HEADER = "dataset,initialisation,shots,mre,std,sdr_2.5,unit,source\n"
GOOD = HEADER + (
    'cephalo,DDPM,10,2.5,0.1,61.5,mm,"Di Via et al., WACV 2025"\n'
    'cephalo,DDPM,all,1.4,,,mm,"Di Via et al., WACV 2025"\n'
    "cephalo,Payer et al.,50,1.2,,73.33,mm,Media 2019\n"
)
DI_VIA = "not run here: Di Via et al., WACV 2025; no protocol was given"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    trials = specs(methods=["ddpm", "scratch"], shots=[5, 10, "all"], seeds=[0, 1])
    return write_fake_run(tmp_path / "run", trials, shapes={"cephalo": Shape(6, 3)}, pictures=False)


def written(folder: Path, text: str) -> Path:
    file = folder / "literature.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_published_rows_stand_in_tables_with_their_source(store: Store, tmp_path: Path) -> None:
    run = read_run(store)
    references = references_of(run, written(tmp_path, GOOD))
    made = render(pivot(run.trials, references=references), "plain")
    rows = [line.split("  ") for line in made.splitlines() if "§" in line and "not run" not in line]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows[:1]] == [["DDPM §1", "2.50 ± 0.10", "1.40"]]
    assert f"§1 {DI_VIA}." in made
    assert "Payer et al. §2 also at 50 shots, which this run has not." in made
    assert "2.50 ± 0.10" not in render(pivot(run.trials, columns="seed", references=references), "plain")
    rates = render(pivot(run.trials, metric="sdr@2.5", references=references), "csv")
    (line,) = (line for line in rates.splitlines() if "Di Via" in line)
    assert line.startswith('sdr@2.5,,DDPM,10,0.615,,,,,"Di Via et al., WACV 2025",,')
    (table,) = interval_tables(analyse(run, num_resamples=50, references=references))
    assert [row[0].text for row in table.rows] == ["DDPM ¶", "scratch", "DDPM §1"]
    assert f"§1 {DI_VIA}." in table.notes
    assert r"DDPM \S{}1" in render(pivot(run.trials, references=references), "latex")


def test_published_points_stand_in_figures_with_their_source(store: Store, tmp_path: Path) -> None:
    run = read_run(store)
    references = references_of(run, written(tmp_path, GOOD))
    analysis = analyse(run, num_resamples=50, references=references)
    chart = next(iter(shot_charts(analysis)))
    assert isinstance(chart, LineChart)
    first, second = chart.lines[-2:]
    assert (first.label, first.mark, first.x, first.y) == ("DDPM §1", "points", (10.0, 50.0), (2.5, 1.4))
    assert (second.label, second.x, second.y) == ("Payer et al. §2", (50.0,), (1.2,))
    assert chart.marks == (f"§1 {DI_VIA}", "§2 not run here: Media 2019; no protocol was given")
    figure = draw(chart)
    assert "not run here: Di Via" in figure.legends[0].get_title().get_text()
    assert "DDPM §1" in [text.get_text() for text in figure.legends[0].get_texts()]
    page = chart_json(chart)
    assert page["data"][-2]["mode"] == "markers"
    assert "not run here: Di Via" in page["data"][-2]["text"][0]
    assert "§2 not run here: Media 2019; no protocol was given." in page["note"]
    rates = [chart for chart in rate_charts(analysis) if isinstance(chart, LineChart)]
    shown = [line for chart in rates for line in chart.lines if line.mark == "points"]
    assert shown == []  # at 5 and at all shots, where nothing was published
    ten = GOOD.replace("DDPM,10", "DDPM,5")
    analysis = analyse(run, num_resamples=50, references=references_of(run, written(tmp_path, ten)))
    line = next(line for chart in rate_charts(analysis) for line in chart.lines if line.mark == "points")
    assert (line.label, line.x, line.y) == ("DDPM §1", (2.5,), (61.5,))


def test_protocols_of_one_source_are_told_apart_in_tables_and_figures(store: Store, tmp_path: Path) -> None:
    lines = [
        "dataset,initialisation,shots,mre,source,protocol",
        'cephalo,DDPM,10,2.5,Di Via 2025,"authors\' evaluation, 256 x 256"',
        "cephalo,DDPM,5,3.5,Di Via 2025,",
        'cephalo,SimCLR,10,4.5,Di Via 2025,"authors\' evaluation, 256 x 256"',
    ]
    run = read_run(store)
    references = references_of(run, written(tmp_path, "\n".join(lines)))
    assert [one.label for one in references] == ["DDPM §1", "DDPM §2", "SimCLR §1"]
    notes = (
        "§1 not run here: Di Via 2025; protocol: authors' evaluation, 256 x 256",
        "§2 not run here: Di Via 2025; no protocol was given",
    )
    made = render(pivot(run.trials, references=references), "plain")
    assert [f"{note}." in made for note in notes] == [True, True]
    chart = next(iter(shot_charts(analyse(run, num_resamples=50, references=references))))
    assert chart.marks == notes
    lines = draw(chart).legends[0].get_title().get_text().splitlines()
    assert (" ".join(lines), len(lines)) == (" ".join(notes), 3)
    assert max(map(len, lines)) <= 64  # what fits a column of 3.4 inches


def test_a_rate_below_one_percent_is_read_beside_a_larger_one(store: Store, tmp_path: Path) -> None:
    text = "dataset,initialisation,shots,sdr_2,sdr_4,source\ncephalo,scratch,10,0.4,12.5,A\n"
    (one,) = references_of(read_run(store), written(tmp_path, text))
    assert one.values == pytest.approx({"sdr@2": 0.004, "sdr@4": 0.125})


def test_a_report_with_literature_says_so_in_every_file_that_shows_it(store: Store, tmp_path: Path) -> None:
    write_report(store, reference=written(tmp_path, GOOD))
    for name in ("tables/mre.md", "tables/mre-intervals-cephalo.md", "tables/all.tex", "index.html"):
        assert DI_VIA in store.read(f"report/{name}").decode(), name
    assert "DDPM §1" not in store.read("report/tables/pairs-cephalo.md").decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: needs the column dataset"),
        ("dataset,initialisation,shots,mre\n", "line 1: needs the column source; it has dataset, initialisation"),
        ("dataset,initialisation,shots,source\n", "line 1: needs the column one of mre, mre_median, paper_mre, sdr@2,"),
        (HEADER.replace("std", "sdt"), "line 1, column 'sdt': must be one of dataset, initialisation"),
        (HEADER.replace("std", "mre"), "line 1: column 'mre' is there twice"),
        (HEADER.replace("sdr_2.5", "sdr_7"), "line 1, column 'sdr_7': must be one of"),
        (HEADER, "holds no row under its header"),
        (GOOD + "cephalo,x,10\n", "line 5: must have 8 values, as the header has"),
        (GOOD + "cephalo,x,10,1,,,mm,a,b\n", "line 5: must have 8 values, as the header has"),
        (GOOD + "cephal,x,10,1,,,mm,a\n", "line 5, column 'dataset': must be one of the run's, cephalo; got 'cephal'"),
        (GOOD + "cephalo,,10,1,,,mm,a\n", "line 5, column 'initialisation': must not be empty: name of the row"),
        (GOOD + "cephalo,x,ten,1,,,mm,a\n", "line 5, column 'shots': must be a whole number from 1, or all; got 'ten'"),
        (GOOD + "cephalo,x,10,\"1,5\",,,mm,a\n", "line 5, column 'mre': must be a number from 0, with a point for"),
        (GOOD + "cephalo,x,10,1,,0.7,mm,a\n", "line 5, column 'sdr_2.5': is a percentage: 70 for a share of 0.7"),
        (GOOD + "cephalo,x,10,1,,101,mm,a\n", "line 5, column 'sdr_2.5': must be a percentage from 0 to 100"),
        (GOOD + "cephalo,x,10,1,,,px,a\n", "line 5, column 'unit': the run's cephalo is in mm; got 'px': convert"),
        (GOOD + "cephalo,x,10,,,,mm,a\n", "line 5: needs a number in one of the columns mre, sdr_2.5"),
        (GOOD + GOOD.splitlines()[1] + "\n", "line 5: DDPM on cephalo at these shots of this source stands in line 2"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_line_column_and_cure(
    store: Store, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        write_report(store, reference=written(tmp_path, text))
    assert not store.exists("report/index.html")


def test_a_file_that_is_not_there_or_no_text_is_refused(store: Store, tmp_path: Path) -> None:
    run = read_run(store)
    with pytest.raises(InputError, match="must be a CSV file in UTF-8"):
        references_of(run, tmp_path / "nothing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="must be a CSV file in UTF-8"):
        references_of(run, tmp_path / "binary.csv")
