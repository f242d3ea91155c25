"""Cross-validation: folds of a data set as an axis of a grid, pooled per image in the report."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from test_unlabelled import write
from tiny import tiny_fields, tiny_trial

from ablate import tables
from ablate.datasets import check_dataset, dataset_fingerprint, load_dataset
from ablate.errors import InputError
from ablate.report import compare_runs
from ablate.report.pivot import pivot, render
from ablate.report.run_data import read_run, read_trials
from ablate.report.write import write_report
from ablate.running.checks import check_trials, prepare
from ablate.running.inspection import status_lines
from ablate.running.sessions import run_file
from ablate.space import Grid, TrialSpec
from ablate.stage.pictures import write_thumbnails
from ablate.stage.settings import Settings
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.store.run_file import read_run_file, yaml_bytes

FOLDS = "unit: px\nsdr_thresholds: [2, 8]\nsplits: {folds: 3, random: 4, group: patient}\n"


@pytest.fixture
def folded(tmp_path):
    """A data set of 12 annotated images of 6 patients and 2 unlabelled ones of the first, in three folds."""
    rows = [f"{i:02}.png,{3 + i % 5},4,{5 + i % 3},{'' if i == 7 else 6},p{i // 2}\n" for i in range(12)]
    rows[7] = rows[7].replace(",6,,", ",,,").replace(f",{5 + 7 % 3},,", ",,,")
    rows += ["u1.png,,,,,p0\n", "u2.png,,,,,p0\n"]
    table = "image,x0,y0,x1,y1,patient\n" + "".join(rows)
    write(tmp_path / "data", table, FOLDS, [*(f"{i:02}.png" for i in range(12)), "u1.png", "u2.png"])
    return tmp_path / "data"


def fold_trials(folds=(0, 1, 2), **fields):
    return [tiny_trial(dataset="mine", fold=fold, **fields) for fold in folds]


def test_every_fold_has_its_own_splits_and_all_have_one_fingerprint(folded):
    data = [load_dataset("mine", folded, 16, fold) for fold in range(3)]
    assert {fold.fingerprint for fold in data} == {dataset_fingerprint("mine", folded)}
    assert sorted(name for fold in data for name in fold.test.names) == [f"{i:02}.png" for i in range(12)]
    assert [fold.folds for fold in data] == [3, 3, 3]
    for number, fold in enumerate(data):
        assert (len(fold.train.names), len(fold.val.names), len(fold.test.names)) == (4, 4, 4)
        assert fold.val.names == data[(number + 1) % 3].test.names
        has_p0 = "00.png" in fold.train.names
        assert fold.unlabelled.names == (("u1.png", "u2.png") if has_p0 else ())
        whole = load_dataset("mine", folded, 16, (number + 1) % 3)
        place = whole.train.names.index(fold.train.names[0]) if fold.train.names[0] in whole.train.names else None
        if place is not None:
            assert np.array_equal(whole.train.images_NHW[place], fold.train.images_NHW[0])
    assert ("splits", "3 folds; of the first train 4, val 4, test 4") in check_dataset("mine", folded).rows()


def test_the_division_is_a_part_of_the_fingerprint(folded):
    before = dataset_fingerprint("mine", folded)
    description = folded / "mine" / "dataset.yaml"
    description.write_text(FOLDS.replace("random: 4", "random: 5"))
    assert dataset_fingerprint("mine", folded) != before


def test_identities(folded):
    first, second = (trial.model_copy() for trial in fold_trials((0, 1), pretrain={}))
    assert first.trial_id != second.trial_id
    plain, folds = tiny_trial("ddpm"), [tiny_trial("ddpm", fold=fold) for fold in (None, 0, 1)]
    assert plain.trial_id == folds[0].trial_id
    assert plain.pretrain_key == folds[0].pretrain_key
    assert len({trial.pretrain_key for trial in folds}) == 3
    elsewhere = [tiny_trial("ddpm", fold=fold, pretrain={"dataset": "hand"}) for fold in (None, 0, 1)]
    assert len({trial.pretrain_key for trial in elsewhere}) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "mine"}, "fold must be one of 0 to 2, the folds of data set mine; got none; write fold: [0, 1, 2] "
         "for all of them"),
        ({"dataset": "mine", "fold": 3}, "fold must be one of 0 to 2, the folds of data set mine; got 3; write fold: "
         "[0, 1, 2] for all of them"),
        ({"method": "ddpm", "pretrain": {"dataset": "mine"}},
         "pretrain.dataset must not be divided into folds, unless it is the trial's own; mine has 3 (dataset "
         "synthetic); give a copy of it with splits of another kind"),
        ({"fold": 1}, "fold must be left out for data set synthetic, which has no folds; got 1; remove it, or write, "
         "for example, splits: {folds: 5, random: 0} into its dataset.yaml"),
    ],
)  # fmt: skip
def test_a_fold_that_is_not_there_is_refused_before_any_compute(fields, message, folded):
    trial = TrialSpec.model_validate(tiny_fields(**fields))
    with pytest.raises(InputError) as caught:
        check_trials([trial], str(folded))
    assert str(caught.value) == message


@pytest.fixture
def finished(folded, tmp_path):
    """A run of two seeds in three folds, and of a third seed whose last fold is open."""
    store = Store.open(tmp_path / "run")
    trials = [trial for seed in (0, 1, 2) for trial in fold_trials(seed=seed)]
    grid = Grid("folds", "", tuple(trials), {})
    store.write("run.yaml", yaml_bytes(run_file({}, grid, prepare(trials, str(folded)), {})))
    for trial in trials[:-1]:
        run_trial(trial, store, data_in(folded), settings=Settings(threads=1))
    return store, trials


def test_folds_are_pooled_per_image(finished, tmp_path):
    store, trials = finished
    run = read_run(store)
    rows = run.trials.set_index("trial_id")
    assert list(rows.loc[[trials[0].trial_id, trials[3].trial_id, trials[6].trial_id], "status"]) == [
        "finished",
        "finished",
        "missing",
    ]
    assert len(rows) == 3
    errors = tables.read_frame(store, "errors")
    baselines = tables.read_frame(store, "baselines").sort_values("fold")
    assert list(baselines["fold"]) == [0, 1, 2]
    for seed in (0, 1):
        ids = [trial.trial_id for trial in trials[3 * seed : 3 * seed + 3]]
        own = errors[errors["trial_id"].isin(ids)]
        assert own["image"].nunique() == 12
        assert len(own) == 23  # one landmark is not annotated
        row = rows.loc[ids[0]]
        assert row["mre"] == pytest.approx(own["error"].mean(), rel=1e-12)
        assert row["mre_median"] == pytest.approx(own["error"].median(), rel=1e-12)
        assert row["mre_std"] == pytest.approx(own["error"].std(ddof=0), rel=1e-12)
        rates = {rate["threshold"]: rate["rate"] for rate in row["sdr"]}
        assert rates == {t: pytest.approx((own["error"] <= t).mean()) for t in (2.0, 8.0)}
        weights = [int((own["trial_id"] == trial_id).sum()) for trial_id in ids]
        assert sorted(weights) == [7, 8, 8]
        assert row["mean_shape_mre"] == pytest.approx(np.average(baselines["mre"], weights=weights), rel=1e-12)
        stored = tables.read_frame(store, "trials").set_index("trial_id").loc[ids]
        assert row["val_mre"] == pytest.approx(stored["val_mre"].mean())
        whole = run.errors["mine"].of([ids[0]])[0]
        assert whole.shape == (12, 2)
        assert np.nanmean(whole) == pytest.approx(row["mre"], rel=1e-12)
    assert read_trials(store)["status"].tolist() == run.trials["status"].tolist()
    summary = write_report(store, str(tmp_path / "report"))
    assert (summary.finished, summary.missing) == (2, 1)
    page = (tmp_path / "report" / "index.html").read_text()
    told = (
        "Each result on mine pools 3 trials, one of each fold: every image is in the test split of one of them. What "
        "lacks a fold counts as missing."
    )
    assert told in page
    for name in ("mre", "cost"):
        assert told in (tmp_path / "report" / "tables" / f"{name}.md").read_text()
    assert told in render(pivot(read_trials(store)), "latex")
    costs = list(csv.DictReader((tmp_path / "report" / "tables" / "cost.csv").read_text().splitlines()))
    stages = tables.read_frame(store, "stages")
    assert [row["trials"] for row in costs] == ["8"]
    assert 3600 * float(costs[0]["finetune_hours"]) == pytest.approx(stages["seconds"].sum())


def test_single_folds_are_shown_on_request_and_two_runs_are_compared_trial_by_trial(finished, ablate):
    store, trials = finished
    stored = tables.read_frame(store, "trials").set_index("trial_id")["mre"]
    code, out, _ = ablate("results", store.root, "--columns", "fold", "--filter", "seed=0", "--format", "csv")
    assert code == 0
    rows = [line.split(",") for line in out.splitlines() if line.startswith("mre,px,scratch")]
    assert [(row[3], float(row[4])) for row in rows] == [
        (str(fold), pytest.approx(stored[trials[fold].trial_id])) for fold in range(3)
    ]
    code, out, _ = ablate("results", store.root, "--filter", "fold=1", "--format", "csv")
    assert code == 0
    assert "pools" not in out
    found = compare_runs(store, store)
    assert (found.num_both, found.num_agree) == (8, 8)


def test_results_of_some_folds_do_not_stand_beside_those_of_all(folded, tmp_path):
    store = Store.open(tmp_path / "run")
    trials = fold_trials((0, 1))
    grid = Grid("folds", "", tuple(trials), {})
    store.write("run.yaml", yaml_bytes(run_file({}, grid, prepare(trials, str(folded)), {})))
    for trial in trials:
        run_trial(trial, store, data_in(folded), settings=Settings(threads=1))
    assert read_trials(store)["status"].tolist() == ["missing"]


def test_thumbnails_and_facts_are_of_the_test_images_of_all_folds(finished, folded):
    store, trials = finished
    loaded = prepare(trials, str(folded))
    write_thumbnails(store, loaded["mine"][:1], folded)
    write_thumbnails(store, loaded["mine"], folded)
    assert len(store.list("pictures/mine")) == 13
    facts = read_run_file(store)["data"]["mine"]
    assert facts["folds"] == 3
    spare = facts["counts"]["unlabelled"]
    counted = "4 training, 4 validation, 4 test images" + (f", {spare} unlabelled" if spare else "")
    (line,) = [line for line in status_lines(store) if line.startswith("data sets")]
    assert line == f"data sets      mine: {counted} in the first of 3 folds, 2 landmarks, errors in px"
    assert facts["counts"] == {"train": 4, "val": 4, "test": 4, "unlabelled": len(loaded["mine"][0].unlabelled.names)}
