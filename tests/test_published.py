"""Published results that a run keeps: where they stand from then on, and what the run differs from them by."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_run import Shape, specs, write_errors, write_fake_run

import ablate as package
from ablate import tables
from ablate.report import write
from ablate.report.charts import FIGURES
from ablate.space import TrialSpec
from ablate.store import Store
from ablate.store.lock import RunLock

SHAPE = Shape(4, 2)
SOURCE = "Di Via 2025, table 2"
PROTOCOL = "authors' evaluation, 256 x 256"
NOTE = f"§1 not run here: {SOURCE}; protocol: {PROTOCOL}"
FILE = (
    "dataset,initialisation,shots,mre,std,sdr_2.5,paper_mre,unit,source,protocol\n"
    f'cephalo,DDPM,10,2.0,0.3,40,3.0,mm,"{SOURCE}","{PROTOCOL}"\n'
    f'cephalo,scratch,5,3.5,,,,mm,"{SOURCE}","{PROTOCOL}"\n'
    "cephalo,Payer et al.,10,1.2,,,,mm,Media 2019,\n"
)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def measure(store: Store, trial: TrialSpec, errors_NK: np.ndarray, paper_mre: float) -> None:
    """Write the results of a trial anew: these errors, and an MRE by the paper's protocol."""
    (row,) = [row for row in tables.read_table(store, "trials").to_pylist() if row["trial_id"] == trial.trial_id]
    rates = [{"threshold": 2.5, "rate": float((errors_NK <= 2.5).mean())}]
    row |= {"mre": float(errors_NK.mean()), "paper_mre": paper_mre, "sdr": rates, "paper_sdr": rates}
    tables.write_rows(store, "trials", trial.trial_id, [row])
    points = np.zeros((*errors_NK.shape, 2))
    write_errors(store, trial.trial_id, {"truth": points, "predicted": points, "error": errors_NK})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of known errors: DDPM at 10 shots has 2 mm and 3 mm on every landmark, scratch at 5 shots has one seed."""
    trials = specs(methods=["ddpm", "scratch"], shots=[5, 10], seeds=[0, 1])
    late = [
        number for number, trial in enumerate(trials) if (trial.method, trial.shots, trial.seed) == ("scratch", 5, 1)
    ]
    store = write_fake_run(tmp_path / "run", trials, shapes={"cephalo": SHAPE}, missing=late, pictures=False)
    for trial in trials:
        if (trial.method, trial.shots) == ("ddpm", 10):
            measure(store, trial, np.full((4, 2), 2.0 + trial.seed), 2.2 + 1.2 * trial.seed)
        elif (trial.method, trial.shots, trial.seed) == ("scratch", 5, 0):
            measure(store, trial, np.array([[3.8, 4.0], [3.9, 3.9], [4.1, 4.1], [4.2, 4.0]]), 4.0)
    return tmp_path / "run"


def written(folder: Path, text: str = FILE, name: str = "di-via.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def one_figure(monkeypatch):
    """Reports with one figure, which are written at once."""
    monkeypatch.setattr(write, "FIGURES", {name: FIGURES[name] for name in ("MRE against shots",)})


def against(text: str) -> list[list[str]]:
    """Return the rows of the table of differences in a text for the screen, after their metric."""
    _, _, below = text.partition("Against published numbers")
    lines = [line.split("  ") for line in below.splitlines() if "§" in line and "not run here" not in line]
    return [[cell.strip() for cell in line if cell.strip()][1:] for line in lines]


# --- added, listed, removed -------------------------------------------------------------------------


def test_what_is_added_is_listed_replaced_and_removed(ablate, run, tmp_path):
    assert ablate("reference", "list", run) == (
        0, f"{run}: keeps no published results; ablate reference add RUN FILE.csv keeps some beside it\n", "",
    )  # fmt: skip
    described = (
        f"  {NOTE}: 2 rows\n"
        "  §2 not run here: Media 2019; no protocol was given: 1 row\n"
        "  compared with the run's rows of the same name: DDPM, scratch\n"
        "  of other names than the run's rows (DDPM, scratch): Payer et al.\n"
    )
    kept = run / "references" / "di-via.csv"
    assert ablate("reference", "add", run, written(tmp_path)) == (0, f"kept {kept}: 3 rows\n{described}", "")
    assert kept.read_text(encoding="utf-8") == FILE
    assert ablate("reference", "list", run) == (0, f"di-via: 3 rows\n{described}", "")
    fewer = FILE.rpartition("cephalo,Payer")[0]
    code, out, _ = ablate("reference", "add", run, written(tmp_path, fewer))
    assert (code, out.splitlines()[0]) == (0, f"replaced {kept}: 2 rows")
    assert kept.read_text(encoding="utf-8") == fewer
    assert "references   " in ablate("clean", run)[1]
    assert ablate("reference", "remove", run, "di-via.csv") == (0, f"removed {kept}\n", "")
    assert not kept.exists()


def test_sources_are_numbered_over_all_files_in_the_order_of_their_names(ablate, run, tmp_path):
    ablate("reference", "add", run, written(tmp_path))
    head, line, *_ = FILE.splitlines()
    other = line.replace("Di Via 2025, table 2", "Earlier 2024").replace("cephalo,DDPM", "cephalo,scratch")
    assert ablate("reference", "add", run, written(tmp_path, f"{head}\n{other}\n", "a.csv"))[0] == 0
    code, out, _ = ablate("reference", "list", run)
    assert code == 0
    assert [line for line in out.splitlines() if "row" in line.rpartition(": ")[2]] == [
        "a: 1 row",
        f"  §1 not run here: Earlier 2024; protocol: {PROTOCOL}: 1 row",
        "di-via: 3 rows",
        f"  §2 not run here: {SOURCE}; protocol: {PROTOCOL}: 2 rows",
        "  §3 not run here: Media 2019; no protocol was given: 1 row",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("table.txt", FILE, "FILE must be called NAME.csv, with a name of letters, digits, '.', '_', '+' and '-', "
         "under which the run keeps it; got 'table.txt': rename it"),
        ("my table.csv", FILE, "got 'my table.csv': rename it"),
        (".csv", FILE, "got '.csv': rename it"),
        ("a.csv", FILE.replace("std,", "sdt,"), "a.csv, line 1, column 'sdt': must be one of dataset, initialisation"),
        ("a.csv", FILE.replace("cephalo,DDPM", "hand,DDPM"), "line 2, column 'dataset': must be one of the run's"),
        ("a.csv", FILE.replace("Media 2019", ""), "a.csv, line 4, column 'source': must not be empty"),
        ("a.csv", "", "a.csv, line 1: needs the column dataset"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_and_not_kept(ablate, run, tmp_path, name, text, message):
    code, out, err = ablate("reference", "add", run, written(tmp_path, text, name))
    assert (code, out) == (2, "")
    assert message in err
    assert not (run / "references").exists()


def test_a_row_stands_once_also_over_files(ablate, run, tmp_path):
    file = written(tmp_path)
    assert ablate("reference", "add", run, file)[0] == 0
    said = (
        f"line 2: DDPM on cephalo at these shots of this source stands in {run}/references/di-via.csv, line 2, "
        "already; keep one of them, in one of the two files\n"
    )
    again = written(tmp_path, name="again.csv")
    assert ablate("reference", "add", run, again) == (2, "", f"ablate: FILE {again}, {said}")
    for command in ("results", "report"):
        assert ablate(command, run, "--reference", file) == (2, "", f"ablate: --reference {file}, {said}")
    more = written(tmp_path, FILE.replace(SOURCE, "Another").rpartition("cephalo,Payer")[0], "more.csv")
    code, out, _ = ablate("results", run, "--reference", more)
    assert code == 0
    assert sorted(row[0] for row in against(out)) == ["DDPM §1 ¶", "DDPM §3 ¶", "scratch §1", "scratch §3"]


def test_what_is_not_there_is_refused(ablate, run, tmp_path):
    file = written(tmp_path)
    nowhere = tmp_path / "nowhere"
    none = f"ablate: {nowhere}: there is no run here; give the folder that --out named\n"
    assert ablate("reference", "add", nowhere, file) == (2, "", none)
    assert ablate("reference", "list", nowhere) == (2, "", none)
    assert ablate("reference", "remove", nowhere, "di-via") == (2, "", none)
    assert not nowhere.exists()
    code, _, err = ablate("reference", "add", run, tmp_path / "none.csv")
    assert (code, "none.csv: must be a CSV file in UTF-8; " in err) == (2, True)
    assert ablate("reference", "remove", run, "x") == (
        2, "", f"ablate: {run}: keeps no published results; got NAME 'x'\n"
    )  # fmt: skip
    ablate("reference", "add", run, file)
    assert ablate("reference", "remove", run, "di-vai") == (
        2, "", f"ablate: NAME must be one of the published results that {run} keeps, di-via; got 'di-vai' (did you "
        "mean 'di-via'?)\n",
    )  # fmt: skip


def planned_run(address: str | Path) -> Store:
    """Write the `run.yaml` of a run in which nothing has finished yet."""
    trials = specs(methods=["ddpm"], shots=[5, 10], seeds=[0])
    store = Store.open(address)
    facts = {"unit": "mm", "sdr_thresholds": [2.0, 2.5], "counts": {"train": 50, "val": 10, "test": 4}}
    planned = [{"trial_id": trial.trial_id, **trial.model_dump(mode="json")} for trial in trials]
    store.write("run.yaml", yaml.safe_dump({"name": "one", "trials": planned, "data": {"cephalo": facts}}).encode())
    return store


def test_a_run_at_work_takes_published_results_before_its_first_trial_ends(ablate, tmp_path):
    store = planned_run(tmp_path / "run")
    with RunLock(store):
        code, out, _ = ablate("reference", "add", tmp_path / "run", written(tmp_path))
        assert (code, out.splitlines()[0]) == (0, f"kept {tmp_path / 'run'}/references/di-via.csv: 3 rows")
        wrong = written(tmp_path, FILE.replace(",mm,", ",px,"), "wrong.csv")
        code, _, err = ablate("reference", "add", tmp_path / "run", wrong)
        assert (code, "the run's cephalo is in mm; got 'px'" in err) == (2, True)
        code, out, _ = ablate("results", tmp_path / "run")
    assert code == 0
    assert "DDPM §1" in out
    assert "Against published numbers" not in out


def test_a_run_on_an_object_store_keeps_them_too(ablate, tmp_path, s3_address):
    store = planned_run(s3_address)
    assert ablate("reference", "add", s3_address, written(tmp_path))[0] == 0
    assert store.read("references/di-via.csv").decode() == FILE
    assert ablate("reference", "list", s3_address)[1].startswith("di-via: 3 rows\n")
    assert ablate("reference", "remove", s3_address, "di-via")[0] == 0
    assert store.list("references") == []


# --- where they stand -------------------------------------------------------------------------------


def test_kept_results_stand_everywhere_without_being_given(ablate, run, tmp_path, one_figure):
    ablate("reference", "add", run, written(tmp_path))
    assert ablate("report", run)[0] == 0
    report = run / "report"
    for name in (
        "tables/mre.md",
        "tables/mre-intervals-cephalo.md",
        "tables/against-published-cephalo.md",
        "index.html",
    ):
        text = (report / name).read_text(encoding="utf-8")
        assert f"{NOTE}." in text or f"{NOTE}.".replace("'", "&#39;") in text, name
    found = package.read_results(run)
    assert f"{NOTE}." in repr(found.table())
    assert f"{NOTE}." in repr(found.plot())
    assert "DDPM §1" in ablate("results", run)[1]
    assert "§" not in ablate("results", run, "--columns", "seed")[1]
    ablate("reference", "remove", run, "di-via")
    assert "§" not in ablate("results", run)[1]
    ablate("report", run)
    assert not (report / "tables" / "against-published-cephalo.md").exists()


# --- run minus published ----------------------------------------------------------------------------


def test_differences_are_the_runs_number_and_interval_less_the_published_number(ablate, run, tmp_path):
    """DDPM at 10 shots: 2 mm and 3 mm, the mean 2.5 mm with an interval of the two seeds alone.

    The bootstrap draws means 2, 2.5 and 3, a spread of 0.5, which is scaled by sqrt(2) for two seeds and by
    t(1) / z = 12.706 / 1.960: 2.5 +- 4.584, cut at 0. Less the published 2.0: 0.5 [-2.00, 5.08].
    """
    ablate("reference", "add", run, written(tmp_path))
    out = ablate("results", run)[1]
    assert against(out) == [
        ["DDPM §1 ¶", "10", "2.50", "2.00", "+0.50 [-2.00, +5.08]", "2"],
        ["scratch §1", "5", "4.00", "3.50", "+0.50", "1"],
    ]
    assert "No interval of one seed" in out
    assert "Published numbers are taken as exact, also those that were published with a spread over seeds" in out
    (ddpm, scratch, payer) = [row for row in rows(ablate("results", run, "--format", "csv")[1]) if row["not_run_here"]]
    assert (ddpm["mean"], ddpm["sd"], ddpm["protocol"], ddpm["run_minus_published"]) == ("2.0", "0.3", PROTOCOL, "0.5")
    assert float(ddpm["run_minus_published_lower"]) == -2.0
    assert float(ddpm["run_minus_published_upper"]) == pytest.approx(0.5 + 0.5 * 2**0.5 * 12.7062 / 1.959964, rel=1e-4)
    assert float(scratch["run_minus_published"]) == pytest.approx(0.5)
    assert float(scratch["run_minus_published_lower"]) < 0.5 < float(scratch["run_minus_published_upper"])
    assert (payer["protocol"], payer["run_minus_published"]) == ("", "")


def test_rates_differ_in_points_and_the_papers_protocol_without_an_interval(ablate, run, tmp_path):
    """One seed finds all landmarks within 2.5 mm and one none: 50 %, of which two seeds say 0 % to 100 %."""
    ablate("reference", "add", run, written(tmp_path))
    rates = ablate("results", run, "--metric", "sdr@2.5")[1]
    assert against(rates) == [["DDPM §1 ¶", "10", "50.0", "40.0", "+10.0 [-40.0, +60.0]", "2"]]
    assert "Differences of percentages are in percentage points." in rates
    paper = ablate("results", run, "--metric", "paper_mre")[1]
    assert against(paper) == [["DDPM §1 ¶", "10", "2.80", "3.00", "-0.20", "2"]]
    assert "paper_ metrics have none" in paper


def test_the_report_has_all_published_metrics_in_one_table_and_the_same_numbers(ablate, run, tmp_path, one_figure):
    ablate("reference", "add", run, written(tmp_path))
    ablate("report", run)
    folder = run / "report" / "tables"
    found = rows((folder / "against-published-cephalo.csv").read_text(encoding="utf-8"))
    assert [(row["metric"], row["initialisation"], row["shots"], row["unit"]) for row in found] == [
        ("mre", "DDPM", "10", "mm"), ("mre", "scratch", "5", "mm"), ("sdr@2.5", "DDPM", "10", ""),
        ("paper_mre", "DDPM", "10", "mm"),
    ]  # fmt: skip
    assert [float(found[0][name]) for name in ("run", "published", "run_minus_published")] == [2.5, 2.0, 0.5]
    assert (found[0]["not_run_here"], found[0]["protocol"], found[0]["seeds"]) == (SOURCE, PROTOCOL, "2")
    assert float(found[2]["run_minus_published"]) == pytest.approx(0.1)
    for name in ("mre.csv", "mre-intervals-cephalo.csv"):
        beside = [row for row in rows((folder / name).read_text(encoding="utf-8")) if row["run_minus_published"]]
        assert [row["run_minus_published_upper"] for row in beside] == [
            row["run_minus_published_upper"] for row in found[:2]
        ], name
    text = (folder / "against-published-cephalo.md").read_text(encoding="utf-8")
    assert "| SDR within 2.5 mm (%) | DDPM §1 ¶" in " ".join(text.split())
    assert "p-value" not in text
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    table = page.partition('id="table-against-published-cephalo"')[2].partition("</table>")[0]
    assert table.count('<th scope="col" class="name">') == 3


def test_only_a_row_of_the_very_name_that_tables_have_is_compared(ablate, tmp_path):
    trials = [
        trial
        for steps in (100, 200)
        for trial in specs(methods=["ddpm"], shots=[10], seeds=[0, 1], pretrain={"steps": steps})
    ]
    write_fake_run(tmp_path / "run", trials, shapes={"cephalo": SHAPE}, pictures=False)
    code, out, _ = ablate("reference", "add", tmp_path / "run", written(tmp_path))
    assert code == 0
    assert "of other names than the run's rows (DDPM (steps 100), DDPM (steps 200)): DDPM, scratch, Payer et al." in out
    assert against(ablate("results", tmp_path / "run")[1]) == []
    written(tmp_path, FILE.replace("cephalo,DDPM,", "cephalo,DDPM (steps 200),"))
    ablate("reference", "add", tmp_path / "run", tmp_path / "di-via.csv")
    assert [row[0] for row in against(ablate("results", tmp_path / "run")[1])] == ["DDPM (steps 200) §1 ¶"]


def test_each_data_set_has_a_table_of_its_own(ablate, tmp_path):
    trials = specs(datasets=["cephalo", "chest"], methods=["ddpm"], shots=[10], seeds=[0, 1])
    write_fake_run(tmp_path / "run", trials, shapes={"cephalo": SHAPE, "chest": Shape(4, 2, "px")}, pictures=False)
    text = FILE + "chest,DDPM,10,5.0,,,,px,Another 2020,by its authors\n"
    ablate("reference", "add", tmp_path / "run", written(tmp_path, text))
    out = ablate("results", tmp_path / "run", "--format", "github")[1]
    shown = [table.splitlines() for table in out.split("**Against published numbers")[1:]]
    assert [lines[0].rstrip("*.").rpartition(": ")[2] for lines in shown] == ["cephalo", "chest"]
    assert [next(line for line in lines if "§" in line)[:10] for lines in shown] == ["| MRE (mm)", "| MRE (px)"]
