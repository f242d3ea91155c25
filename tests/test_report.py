"""A whole report: whole runs, half runs, failures, hostile names, damaged pictures."""

import csv
import io
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_run import Shape, image_names, specs, write_errors, write_fake_run

from ablate import tables
from ablate.errors import InputError
from ablate.report import compare_runs, write, write_report
from ablate.report.analysis import analyse
from ablate.report.charts import FIGURES, LineChart
from ablate.report.comparison_tables import (
    efficiency_tables,
    interval_tables,
    leakage_tables,
    pair_tables,
    selection_tables,
)
from ablate.report.metrics import rate_metric
from ablate.report.pictures import cases, read_points, shown_trials, thumbnails
from ablate.report.pivot import pivot, render
from ablate.report.rankings import rank_tables
from ablate.report.render import latex_document, render_table, to_csv
from ablate.report.run_data import read_run, read_trials
from ablate.report.run_tables import cost_tables, landmark_tables, metric_tables, status_tables
from ablate.report.viewer import build_gallery
from ablate.stats import hit_sums
from ablate.store import Store

FEW = {"methods": ["ddpm", "scratch"], "shots": [5, "all"], "seeds": [0, 1]}
SMALL = {"cephalo": Shape(num_images=6, num_landmarks=3)}


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class Tags(HTMLParser):
    """Collects the elements of a page and the addresses they name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_rows_of_an_earlier_version_stand_beside_new_ones(tmp_path: Path) -> None:
    trials = specs(**FEW)
    store = write_fake_run(tmp_path / "run", trials, shapes=SMALL)
    (row,) = tables.read_part(store, "trials", trials[0].trial_id)
    assert (row["pretrain_method"], row["pretrain_images"]) == ("ddpm", "all")
    before = render(pivot(read_trials(store)), "plain")
    added = ("images", "transfer", "betas", "ema_ramp", "clip_on", "epoch_end", "augment_shift", "augment_probability")
    old = {**dict.fromkeys(f"pretrain_{name}" for name in added), "network_input_range": None}
    assert old.keys() <= row.keys()
    tables.write_rows(store, "trials", trials[0].trial_id, [{**row, **old}])  # as it had no such fields
    made = render(pivot(read_trials(store)), "plain")
    assert made == before
    assert [line.split()[0] for line in made.splitlines() if "±" in line and "Mean" not in line] == ["DDPM", "scratch"]


def test_trials_of_one_draw_are_one_unit_of_the_bootstrap(tmp_path: Path) -> None:
    trials = [
        spec.model_copy(update={"few_shot": "random", "draw": draw})
        for spec in specs(methods=["scratch"], shots=[5], seeds=[0, 1])
        for draw in (3, 4, 5)
    ]
    store = write_fake_run(tmp_path / "run", trials, shapes=SMALL)
    (panel,) = analyse(read_run(store)).panels
    (arm,) = panel.arms.values()
    assert arm.clusters is not None
    assert sorted(arm.clusters) == [3, 3, 4, 4, 5, 5]
    assert arm.mre.num_seeds == 3


def test_a_finished_run_gives_tables_figures_pictures_and_a_page(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL)  # type: ignore[arg-type]
    summary = write_report(store)
    assert (summary.finished, summary.failed, summary.missing) == (8, 0, 0)
    written = set(store.sizes("report"))
    assert {f"report/tables/mre.{s}" for s in ("md", "tex", "csv")} <= written
    assert {f"report/figures/mre-shots-cephalo.{s}" for s in ("png", "svg", "pdf")} <= written
    assert {"report/index.html", "report/pictures/cases-cephalo.png", "report/tables/all.tex"} <= written
    assert summary.remarks == (
        "no figure MRE against timesteps: the run has no two numbers of timesteps at otherwise equal settings",
        "no figure MRE against pre-training steps: the run has no two numbers of pre-training steps at otherwise "
        "equal settings",
    )
    page = (tmp_path / "report" / "index.html").read_text()
    assert len(page) == len(page.encode()) or summary.page_bytes == len(page.encode())
    assert summary.page_bytes < 6_000_000
    tags = Tags()
    tags.feed(page)
    addresses = [value for name, value in tags.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one kind of figure only, where the figures are not the point."""
    monkeypatch.setattr(write, "FIGURES", {"Learning curves": FIGURES["Learning curves"]})


@pytest.mark.usefixtures("few_figures")
def test_a_second_report_takes_away_what_it_does_not_write_itself(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL, pictures=False)  # type: ignore[arg-type]
    write_report(store)
    store.write("report/my-notes.txt", b"kept")
    store.delete("tables/curves")
    write_report(store)
    left = set(store.sizes("report"))
    assert not [path for path in left if "finetuning" in path]
    assert "report/my-notes.txt" in left


@pytest.mark.usefixtures("few_figures")
def test_a_report_can_be_written_elsewhere(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path / "run", specs(**FEW), shapes=SMALL, pictures=False)  # type: ignore[arg-type]
    write_report(store, str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "index.html").is_file()
    assert not store.exists("report")


@pytest.mark.usefixtures("few_figures")
def test_the_same_tables_give_the_same_report_but_for_the_time_on_the_page(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path / "run", specs(**FEW), shapes=SMALL)  # type: ignore[arg-type]
    for name in ("a", "b"):
        write_report(store, str(tmp_path / name))
    one, other = (Store.open(tmp_path / name) for name in ("a", "b"))
    assert one.sizes().keys() == other.sizes().keys()
    for path in one.sizes():
        if path != "index.html":
            assert one.read(path) == other.read(path), path


@pytest.mark.usefixtures("few_figures")
def test_a_half_finished_run_with_failures_is_reported_as_such(tmp_path: Path) -> None:
    trials = specs(methods=["ddpm", "scratch"], shots=[5, "all"], seeds=[0, 1, 2])
    store = write_fake_run(tmp_path, trials, shapes=SMALL, failed=[0], missing=[1, 9, 10, 11])
    summary = write_report(store)
    assert (summary.finished, summary.failed, summary.missing) == (7, 1, 4)
    assert "4 of 12 planned trials have no result yet" in summary.remarks
    table = (tmp_path / "report/tables/mre.md").read_text()
    assert "(n=1, 1 failed, 1 missing)" in table
    assert "– (n=0, 3 missing)" in table
    without = (tmp_path / "report/tables/without-result.md").read_text()
    assert r"loss is \<b>nan\</b> & nothing else" in without  # text in Markdown, and readable in the file
    page = (tmp_path / "report/index.html").read_text()
    assert "4 of 12 planned trials have no result yet" in page
    assert "&lt;b&gt;nan" in page


def test_a_run_without_any_trial_has_a_report_that_says_so(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL, missing=range(8))  # type: ignore[arg-type]
    summary = write_report(store)
    assert (summary.finished, summary.missing) == (0, 8)
    assert any(remark.startswith("no figure MRE against shots") for remark in summary.remarks)


@pytest.mark.usefixtures("few_figures")
def test_a_run_without_its_file_is_reported_and_the_lack_named(tmp_path: Path) -> None:
    store = write_fake_run(
        tmp_path,
        specs(**FEW),
        shapes=SMALL,
        pictures=False,
        run_yaml=False,  # type: ignore[arg-type]
    )
    remarks = write_report(store).remarks
    assert any(remark.startswith("run.yaml:") for remark in remarks)
    assert any("no thumbnails of data set cephalo" in remark for remark in remarks)


def test_errors_of_a_trial_that_is_still_being_written_do_not_count(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL)  # type: ignore[arg-type]
    before = read_run(store).errors["cephalo"]
    points = np.zeros((2, 3, 2))
    write_errors(store, "0" * 12, {"truth": points, "predicted": points, "error": np.full((2, 3), 1e9)})
    after = read_run(store).errors["cephalo"]
    assert before.trial_ids == after.trial_ids
    assert np.array_equal(before.errors_TIK, after.errors_TIK, equal_nan=True)


def test_errors_are_read_into_their_places(tmp_path: Path) -> None:
    trials = specs(datasets=["cephalo", "chest"], methods=["scratch"], shots=[5], seeds=[0])
    store = write_fake_run(tmp_path, trials, shapes={**SMALL, "chest": Shape(2, 4, "px", 0)}, pictures=False)
    run = read_run(store)
    frame = tables.read_frame(store, "errors")
    for name, errors in run.errors.items():
        trial_id = errors.trial_ids[0]
        rows = frame[frame["trial_id"] == trial_id]
        wanted = rows.pivot(index="image", columns="landmark", values="error")
        assert tuple(wanted.index) == errors.images
        assert np.array_equal(wanted.to_numpy(), errors.errors_TIK[0])
        assert errors.duplicates_I.sum() == (3 if name == "cephalo" else 0)


HOSTILE = "<script>alert(1)</script>"
ROADS = "a/../../b"


def renamed(store: Store, names: dict[str, str]) -> None:
    """Give data sets, methods and images of a run names that no search space accepts, but a table could hold."""
    for part in [name.removesuffix(".parquet") for name in store.list("tables/trials")]:
        for table, columns in (("trials", ("dataset", "pretrain_dataset", "pretrain_method")), ("errors", ("image",))):
            rows = tables.read_part(store, table, part)
            for row in rows:
                row.update({name: names.get(str(row[name]), row[name]) for name in columns})
            tables.write_rows(store, table, part, rows)
    described = yaml.safe_load(store.read("run.yaml"))
    described["name"] = described["description"] = HOSTILE
    described["data"] = {names.get(name, name): facts for name, facts in described["data"].items()}
    store.write("run.yaml", yaml.safe_dump(described).encode())


def test_hostile_names_do_no_harm_in_files_page_latex_or_figures(tmp_path: Path) -> None:
    inside = tmp_path / "one" / "two" / "run"
    trials = specs(datasets=["cephalo", "chest"], **FEW)  # type: ignore[arg-type]
    shapes = {"cephalo": Shape(4, 2, duplicates=1), "chest": Shape(4, 2, duplicates=1)}
    store = write_fake_run(inside, trials, shapes=shapes)
    renamed(store, {"cephalo": HOSTILE, "chest": ROADS, "ddpm": f"{HOSTILE}{ROADS}", "000.jpg": f"{ROADS}{HOSTILE}"})
    write_report(store)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and inside not in path.parents]
    assert outside == []
    for path in store.sizes("report"):
        assert re.fullmatch(r"report/((tables|figures|pictures)/)?[a-z0-9-]+\.[a-z]+", path), path
        if path.endswith((".md", ".svg")):
            assert not re.search(rb"(?<!\\)<script", store.read(path)), path
    page = store.read("report/index.html").decode()
    tags = Tags()
    tags.feed(page)
    assert tags.names.count("script") == 3
    assert "<script>alert(1)" not in page
    assert r"\textless{}script\textgreater{}" in store.read("report/tables/all.tex").decode()


def test_damaged_or_missing_thumbnails_are_left_out_and_named(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL)  # type: ignore[arg-type]
    store.write("pictures/cephalo/001.jpg.jpg", b"not a picture")
    store.delete("pictures/cephalo/002.jpg.jpg")
    found, without = thumbnails(store, "cephalo", image_names(SMALL["cephalo"]))
    assert without == ["001.jpg", "002.jpg"]
    assert len(found) == 4
    gallery = build_gallery(analyse(read_run(store), num_resamples=50))
    assert "no readable thumbnail of 2 of 6 test images" in gallery.remarks[0]
    assert [image["name"] for image in gallery.viewer["images"]["cephalo"]] == list(found)


def test_a_tight_budget_keeps_the_worst_median_and_best_and_says_what_it_left_out(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes={"cephalo": Shape(20, 3)})  # type: ignore[arg-type]
    analysis = analyse(read_run(store), num_resamples=50)
    gallery = build_gallery(analysis, budget_bytes=30_000)
    names = [image["name"] for image in gallery.viewer["images"]["cephalo"]]
    panel = analysis.panels[0]
    assert 3 <= len(names) < 20
    assert set(cases(panel, panel.errors.images).values()) <= set(names)
    assert f"{len(names)} of 20 test images are in the viewer" in gallery.remarks[0]


def test_points_on_thumbnails_keep_the_centre_of_pixels(tmp_path: Path) -> None:
    spec = specs(methods=["scratch"], shots=[5], seeds=[0])
    store = write_fake_run(tmp_path, spec, shapes=SMALL)
    run = read_run(store)
    panel = analyse(run, num_resamples=50).panels[0]
    found, _ = thumbnails(store, "cephalo", panel.errors.images)
    halved = {n: type(t)(n, t.jpeg, t.width, t.height, 2 * t.width, 2 * t.height) for n, t in found.items()}
    shown = next(iter(shown_trials(analyse(run, num_resamples=50), panel, halved).values()))
    original = read_points(run, [spec[0].trial_id], list(halved), 3)[0]
    assert np.allclose(shown.truth_IK2, (original[..., :2] + 0.5) / 2 - 0.5)
    assert np.allclose(shown.predicted_IK2, (original[..., 2:] + 0.5) / 2 - 0.5)


def test_tables_of_statistics_agree_with_the_tables_of_the_run(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL, pictures=False)  # type: ignore[arg-type]
    run = read_run(store)
    analysis = analyse(run, num_resamples=200)
    trials = run.trials

    def mean(method: str, shots: int) -> float:
        chosen = trials[(trials["pretrain_method"] == method) & (trials["shots"] == shots)]
        return statistics.fmean(chosen["mre"])

    intervals = records(to_csv(next(iter(interval_tables(analysis)))))
    ddpm = next(row for row in intervals if row["initialisation"] == "DDPM" and row["shots"] == "5")
    assert float(ddpm["value"]) == pytest.approx(mean("ddpm", 5))
    assert float(ddpm["lower"]) < float(ddpm["value"]) < float(ddpm["upper"])
    pair = records(to_csv(next(iter(pair_tables(analysis)))))[0]
    assert (pair["a"], pair["b"], pair["shots"], pair["family_size"]) == ("DDPM", "scratch", "5", "2")
    assert float(pair["difference_value"]) == pytest.approx(mean("ddpm", 5) - mean("scratch", 5))
    assert 0 <= float(pair["p"]) <= float(pair["p_holm"]) <= 1
    assert 0 <= float(pair["p_wilcoxon"]) <= 1
    leak = records(to_csv(next(iter(leakage_tables(analysis)))))
    assert {row["images"] for row in leak if row["images_of"] == "all"} == {"6"}
    assert {row["images"] for row in leak if row["images_of"] == "without duplicates"} == {"3"}
    ranks = records(to_csv(next(iter(rank_tables(analysis)))))
    assert {row["initialisation"]: float(row["average_rank"]) for row in ranks}.keys() == {"DDPM", "scratch"}
    landmarks = records(to_csv(next(iter(landmark_tables(analysis)))))
    assert len(landmarks) == 2 * 2 * 3
    efficiency = records(to_csv(next(iter(efficiency_tables(analysis)))))
    assert {row["target"] for row in efficiency} == {"DDPM", "scratch"}


def test_sdr_ties_are_judged_by_the_same_errors_as_the_table(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL, pictures=False)  # type: ignore[arg-type]
    run = read_run(store)
    panel = analyse(run, num_resamples=50).panels[0]
    arm = next(iter(panel.arms.values()))
    trials = run.trials.set_index("trial_id")
    for trial_id, value in zip(arm.trial_ids, hit_sums(arm.errors_SIK, 2.5).values_S(), strict=True):
        rates = {rate["threshold"]: rate["rate"] for rate in trials.loc[trial_id, "sdr"]}
        assert rates[2.5] == pytest.approx(value)


def test_the_best_is_bold_and_only_what_a_test_could_not_tell_apart_is_tied(tmp_path: Path) -> None:
    trials = specs(methods=["ddpm", "mocov3", "scratch"], shots=[5, "all"], seeds=[0, 1, 2])
    store = write_fake_run(tmp_path, trials, shapes={"cephalo": Shape(30, 5)}, pictures=False)
    analysis = analyse(read_run(store), num_resamples=500)
    table = next(iter(metric_tables(analysis)))
    for column in range(1, len(table.header)):
        cells = [row[column] for row in table.rows]
        best = min(cells, key=lambda cell: float(str(cell.value)))
        assert [cell for cell in cells if cell.best] == [best]
        name = next(str(row[0].value) for row in table.rows if row[column] is best)
        labels = {row[0].value: row[column] for row in table.rows if row[column].tied}
        (judged,) = analysis.panels[0].compared.best[analysis.panels[0].group.columns[column - 1]]
        assert judged.name == name
        assert set(judged.not_worse) == set(labels)


def test_a_setting_is_chosen_on_the_validation_set_even_if_the_test_set_disagrees(tmp_path: Path) -> None:
    trials = [s for n in (100, 200) for s in specs(methods=["ddpm"], shots=[5], seeds=[0, 1], pretrain={"steps": n})]
    store = write_fake_run(tmp_path, trials, shapes=SMALL, pictures=False)
    for spec in trials:
        row = tables.read_part(store, "trials", spec.trial_id)[0]
        steps = int(str(row["pretrain_steps"]))
        row |= {"val_mre": 1.0 if steps == 200 else 2.0, "mre": 0.0}
        tables.write_rows(store, "trials", spec.trial_id, [row])
    table = next(iter(selection_tables(analyse(read_run(store), num_resamples=50))))
    assert [row[1].text for row in table.rows] == ["DDPM (steps 200) ¶"]
    assert "never on the test set" in table.caption


def test_cost_counts_a_shared_pretraining_once_and_every_attempt(tmp_path: Path) -> None:
    trials = specs(methods=["ddpm"], shots=[5], seeds=[0, 1])
    store = write_fake_run(tmp_path, trials, shapes=SMALL, pictures=False)
    lost = tables.read_frame(store, "stages")
    assert len(lost) == 3
    row = tables.read_part(store, "stages", tables.stage_part("finetune", trials[0].trial_id, "a"))[0]
    again = {**row, "outcome": "failed"}
    tables.write_rows(store, "stages", tables.stage_part("finetune", trials[0].trial_id, "b"), [again])
    table = next(iter(cost_tables(analyse(read_run(store), num_resamples=50))))
    record = table.records[0]
    assert record["pretrain_hours"] == pytest.approx(600 / 3600)
    assert record["finetune_hours"] == pytest.approx(3 * 62 / 3600)
    assert record["gpu_hours"] == pytest.approx((600 * 1.0 + 3 * 62 * 0.25) / 3600)
    assert record["hours_of_one_trial"] == pytest.approx((500 + 60 + 2) / 3600)


def test_status_table_lists_every_trial_without_a_result(tmp_path: Path) -> None:
    store = write_fake_run(
        tmp_path,
        specs(**FEW),
        shapes=SMALL,
        pictures=False,
        failed=[0],
        missing=[3],  # type: ignore[arg-type]
    )
    table = next(iter(status_tables(analyse(read_run(store), num_resamples=50))))
    assert sorted(str(record["status"]) for record in table.records) == ["failed", "missing"]


def test_planned_trials_come_from_the_runs_file(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL, pictures=False, missing=[0])  # type: ignore[arg-type]
    planned = yaml.safe_load(store.read("run.yaml"))["trials"][0]
    run = read_run(store)
    row = run.trials[run.trials["status"] == "missing"].iloc[0]
    assert (row["trial_id"], row["pretrain_method"], row["shots"], row["seed"]) == (planned["trial_id"], "ddpm", 5, 0)
    assert row["finetune_augment_shift"] == planned["finetune"]["augment"]["shift"]


def test_equal_runs_agree_and_moved_trials_are_named_with_their_change(tmp_path: Path) -> None:
    trials = specs(**FEW)  # type: ignore[arg-type]
    one = write_fake_run(tmp_path / "a", trials, shapes=SMALL, pictures=False)
    same = write_fake_run(tmp_path / "b", trials, shapes=SMALL, pictures=False)
    assert compare_runs(one, same).agree
    row = tables.read_part(same, "trials", trials[0].trial_id)[0]
    rates = [{**rate, "rate": rate["rate"] + 1e-12} for rate in row["sdr"]]
    tables.write_rows(same, "trials", trials[0].trial_id, [{**row, "sdr": rates, "device": "another"}])
    differ = compare_runs(one, same)
    assert not differ.agree
    assert next(record["verdict"] for record in differ.tables[-1].records) == "moved: sdr"
    moved = write_fake_run(tmp_path / "c", trials[:-1], shapes=SMALL, pictures=False, shift=0.25)
    found = compare_runs(one, moved, out=str(tmp_path / "out"))
    assert (found.num_both, found.num_agree, found.num_only_a, found.num_only_b) == (7, 0, 1, 0)
    assert not found.agree
    rows = records((tmp_path / "out" / "trials.csv").read_text())
    changes = [float(row["difference"]) for row in rows if row["verdict"].startswith("moved")]
    assert changes == pytest.approx([0.25] * 7)
    largest = [float(row["largest_landmark_change"]) for row in rows if row["largest_landmark_change"]]
    assert largest == pytest.approx([0.25] * 7)
    assert "7 trials finished in both runs: 0 agree in every number, 7 moved" in found.lines()
    assert "only in A" in found.render("github")
    with pytest.raises(InputError, match="--format"):
        found.render("word")


def test_other_data_or_code_is_named_when_runs_are_compared(tmp_path: Path) -> None:
    trials = specs(**FEW)  # type: ignore[arg-type]
    one = write_fake_run(tmp_path / "a", trials, shapes=SMALL, pictures=False)
    other = write_fake_run(tmp_path / "b", trials, shapes=SMALL, pictures=False)
    other.write("run.yaml", one.read("run.yaml").replace(b"00112233aabbccdd", b"ffffffffffffffff"))
    row = tables.read_part(other, "trials", trials[0].trial_id)[0]
    tables.write_rows(other, "trials", trials[0].trial_id, [{**row, "git_revision": "beef"}])
    notes = "\n".join(compare_runs(one, other).notes)
    assert "data set cephalo differs" in notes
    assert "git revision" in notes


@pytest.mark.parametrize("draws", [(None,), (3, 4, 5)])
def test_one_quantity_has_one_interval_in_every_table_and_figure(tmp_path: Path, draws: tuple[int | None, ...]) -> None:
    trials = [
        spec if draw is None else spec.model_copy(update={"few_shot": "random", "draw": draw})
        for spec in specs(methods=["ddpm", "mocov3", "scratch"], shots=[5, "all"], seeds=[0, 1, 2])
        for draw in draws
    ]
    store = write_fake_run(tmp_path, trials, shapes={"cephalo": Shape(8, 3)}, pictures=False)
    analysis = analyse(read_run(store), num_resamples=300)
    limits: dict[tuple[str, str], set[tuple[float, float]]] = {}
    for record in next(iter(interval_tables(analysis))).records:
        limits.setdefault((str(record["initialisation"]), str(record["shots"])), set()).add(
            (record["lower"], record["upper"])  # type: ignore[arg-type]
        )
    for record in next(iter(leakage_tables(analysis))).records:
        if record["images_of"] == "all":
            limits[str(record["initialisation"]), str(record["shots"])].add((record["lower"], record["upper"]))  # type: ignore[arg-type]
    chart = next(iter(FIGURES["MRE against shots"][0](analysis)))
    assert isinstance(chart, LineChart)
    for line in (line for line in chart.lines if line.lower):  # not that of the annotators
        for x, lower, upper in zip(line.x, line.lower, line.upper, strict=True):
            limits[line.label, {5.0: "5", 50.0: "all"}[x]].add((lower, upper))
    assert len(limits) == 6
    assert all(len(found) == 1 for found in limits.values()), limits

    (panel,) = analysis.panels
    chart = next(iter(FIGURES["SDR curves"][0](analysis)))
    assert isinstance(chart, LineChart)
    for arm in panel.column_arms(panel.group.columns[0]):
        line = next(line for line in chart.lines if line.label == arm.label)
        at = line.x.index(2.5)
        one = analysis.intervals.of(arm.sample, rate_metric("sdr", 2.5))
        assert one is not None
        assert (line.lower[at], line.y[at], line.upper[at]) == pytest.approx(
            (100 * one.lower, 100 * one.value, 100 * one.upper)  # type: ignore[operator]
        )


def test_an_interval_depends_on_the_trials_of_its_cell_alone(tmp_path: Path) -> None:
    trials = specs(methods=["ddpm", "mocov3", "scratch"], shots=[5, "all"], seeds=[0, 1, 2])
    store = write_fake_run(tmp_path / "a", trials, shapes=SMALL, pictures=False)
    fewer = [spec for spec in trials if spec.method != "ddpm" and spec.shots == 5]
    part = write_fake_run(tmp_path / "b", fewer, shapes=SMALL, pictures=False)
    found = []
    for one in (store, part):
        (panel,) = analyse(read_run(one), num_resamples=300).panels
        found.append({(arm.label, arm.shots): arm.mre for arm in panel.arms.values()})
    assert len(found[1]) == 2
    assert all(found[0][cell] == estimate for cell, estimate in found[1].items())


@pytest.mark.latex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_latex_of_a_report_compiles(tmp_path: Path) -> None:
    trials = specs(**FEW)  # type: ignore[arg-type]
    store = write_fake_run(tmp_path / "run", trials, pictures=False, failed=[0], missing=[1])
    renamed(store, {"cephalo": "a_b & <c> #%~^\\input{x} ü中[", "000.jpg": "$x$"})
    write_report(store)
    folder = tmp_path / "run" / "report" / "tables"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "all.pdf").is_file()


def test_long_tables_break_over_pages_and_every_table_is_in_the_document(tmp_path: Path) -> None:
    trials = specs(methods=["ddpm", "mocov3", "simclrv2", "scratch"], shots=[1, 2, 3, 4, 5, 6, 7, 8], seeds=[0])
    store = write_fake_run(tmp_path, trials, shapes=SMALL, pictures=False)
    tables = list(pair_tables(analyse(read_run(store), num_resamples=20)))
    text = latex_document(tables)
    assert len(tables[0].rows) == 48
    assert r"\begin{longtable}" in text
    assert render_table(tables[0], "latex") in text


def test_frames_hold_the_dtype_that_tables_promise(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(**FEW), shapes=SMALL, pictures=False, missing=[0])  # type: ignore[arg-type]
    trials = read_run(store).trials
    assert trials["shots"].dtype == pd.Int32Dtype()
