"""What a notebook shows of a run: results, tables and figures with a text that can be read."""

import re
from pathlib import Path

import pytest
from fake_run import Shape, specs, write_fake_run
from PIL import Image

import ablate
from ablate.api import Results
from ablate.report.analysis import analyse
from ablate.report.comparison_tables import interval_tables
from ablate.report.run_data import read_run
from ablate.store import Store


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("run")
    trials = specs(methods=["ddpm", "scratch"], shots=[5, "all"], seeds=[0, 1])
    write_fake_run(folder, trials, shapes={"cephalo": Shape(6, 3)}, pictures=False, failed=[0])
    return ablate.read_results(folder)


def test_results_tell_what_they_hold_in_a_few_lines(found: Results) -> None:
    text = repr(found)
    assert len(text.splitlines()) == 4
    assert "trials: 7 finished, 1 failed" in text
    assert "rows: trials 8, errors 126" in text


def test_a_table_reads_as_text_as_html_and_as_a_frame(found: Results) -> None:
    table = found.table("sdr@2.5")
    assert repr(table).startswith("SDR within 2.5 mm (%) by initialisation and shots")
    assert [line.split()[0] for line in repr(table).splitlines() if "±" in line and "Mean" not in line] == [
        "DDPM", "scratch"
    ]  # fmt: skip
    html = table._repr_html_()
    assert html.count("<tr>") == 3
    assert "<th>initialisation</th>" in html
    assert r"\toprule" in table.render("latex")
    frame = table.frame
    finished = found.trials[found.trials["status"] == "finished"]
    scratch = finished[(finished["pretrain_method"] == "scratch") & (finished["shots"] == 5)]
    rates = [{rate["threshold"]: rate["rate"] for rate in rates}[2.5] for rates in scratch["sdr"]]
    row = frame[(frame["pretrain_method"] == "scratch") & (frame["shots"] == 5)].iloc[0]
    assert row["mean"] == pytest.approx(sum(rates) / 2)
    assert list(frame["failed"]) == [1, 0, 0, 0]


def test_a_figure_reads_as_its_numbers_with_the_intervals_of_the_report(found: Results, tmp_path: Path) -> None:
    figure = found.plot("mre", "shots", column_width="86mm")
    text = repr(figure)
    assert text.splitlines()[0] == "cephalo: MRE (mm) against annotated training images"
    (table,) = interval_tables(analyse(read_run(found.store)))
    record = next(r for r in table.records if (r["initialisation"], r["shots"]) == ("scratch", "all"))
    assert f"all: {record['value']:.4g} [{record['lower']:.4g}, {record['upper']:.4g}]" in text
    html = figure._repr_html_()
    assert html.count("<svg") == html.count("<figcaption>") == 1
    assert "<?xml" not in html
    (png,) = figure.save(tmp_path / "mre.png")
    with Image.open(png) as picture:
        assert picture.width == pytest.approx(86 / 25.4 * 200, abs=1)
    assert figure.save(tmp_path / "mre.pdf")[0].read_bytes().startswith(b"%PDF")


def test_several_charts_are_saved_under_names_of_their_own(tmp_path: Path) -> None:
    trials = specs(datasets=["cephalo", "chest"], methods=["scratch"], shots=[5, 10], seeds=[0, 1])
    store = write_fake_run(tmp_path / "run", trials, pictures=False)
    figure = ablate.read_results(Store.open(tmp_path / "run").label).plot()
    assert [path.name for path in figure.save(tmp_path / "mre.svg")] == [
        "mre-mre-shots-cephalo.svg", "mre-mre-shots-chest.svg"
    ]  # fmt: skip
    assert store.exists("run.yaml")


def test_what_cannot_be_shown_is_refused(found: Results, tmp_path: Path) -> None:
    with pytest.raises(ablate.InputError, match="--metric must be one of"):
        found.table("mrr")
    with pytest.raises(ablate.InputError, match="needs two different numbers"):
        found.plot("mre", "pretrain.timesteps")
    with pytest.raises(ablate.InputError, match="--best-by must be val_mre or val_loss; got 'mre'"):
        found.table(best_by="mre")
    with pytest.raises(ablate.InputError, match=re.escape("a figure is saved as one of png, svg, pdf")):
        found.plot().save(tmp_path / "mre.jpg")
