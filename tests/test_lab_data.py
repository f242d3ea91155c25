"""A clinic's own data, from the annotation tool to the report: few labels, many images, two scanners, patients.

Rebuilt from public cephalograms, see `lab_data`.
"""

from __future__ import annotations

import csv
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import yaml
from exports import EXPORTS
from lab_data import LANDMARKS, NUM_IMAGES, NUM_LABELLED, SIDES, WIDTH_MM, build_clinic
from tiny import tiny_fields

from ablate import read_results
from ablate.datasets import load_dataset, read_records
from ablate.space import find_grid, load_grid

SPLITS = "splits: {train: 0.7, val: 0.1, random: 0, stratify: disease, group: patient}\n"


@pytest.fixture(scope="module")
def clinic(xray_data, tmp_path_factory):
    return build_clinic(xray_data, tmp_path_factory.mktemp("clinic"))


def export(clinic, format_name, folder):
    """Write what an annotation tool exports of the annotated images; a table has the clinic's own columns."""
    sizes = {name: SIDES[clinic.columns[name]["scanner"]] for name in clinic.names}
    if format_name not in ("csv", "slicer"):
        return EXPORTS[format_name](folder, clinic.points, size=sizes)
    path = EXPORTS[format_name](folder, clinic.points)
    if format_name == "csv":
        table = pd.read_csv(path, index_col=0)
        with_rest = pd.DataFrame({"image": clinic.names}).merge(table, how="left", on="image")
        own = pd.DataFrame(clinic.columns).T.rename_axis("image").reset_index()
        with_rest.merge(own, on="image").to_csv(path, index=False)
    return path


def bring(ablate, clinic, format_name, folder):
    """Import the clinic's export by the command line; return its output and the data set's folder."""
    source, data = export(clinic, format_name, folder), folder / "data"
    code, out, err = ablate(
        *("data", "import", format_name, source, "--out", "clinic", "--data", data, "--images", clinic.images)
    )
    assert (code, err) == (0, "")
    return out, data


def add_columns(clinic, data):
    """Write the clinic's own columns into landmarks.csv, with a row for every image, and the division into splits."""
    path = data / "clinic" / "landmarks.csv"
    table = pd.DataFrame({"image": clinic.names}).merge(pd.read_csv(path), how="left", on="image")
    if "patient" not in table:
        own = pd.DataFrame(clinic.columns).T.rename_axis("image").reset_index()
        table = table.merge(own, on="image")
    table.to_csv(path, index=False)
    names = yaml.safe_dump({"landmark_names": list(LANDMARKS)})
    (data / "clinic" / "dataset.yaml").write_text(f"unit: mm\n{SPLITS}{names}")


@pytest.mark.parametrize("format_name", EXPORTS)
def test_every_format_brings_the_same_data_set(format_name, clinic, ablate, tmp_path):
    out, data = bring(ablate, clinic, format_name, tmp_path)
    counts = f"{NUM_IMAGES}: {NUM_LABELLED} annotated, {NUM_IMAGES - NUM_LABELLED} without annotation"
    assert re.search(f"^images +{counts}$", out, re.MULTILINE)
    assert re.search(f"^landmarks +{len(LANDMARKS)}: {', '.join(LANDMARKS)}$", out, re.MULTILINE)
    records = read_records("clinic", data)
    assert [record.name for record in records] == sorted(clinic.points)
    for record in records:
        wanted = np.array(list(clinic.points[record.name].values()))
        assert np.abs(record.points_K2 - wanted).max() < 1e-3
    add_columns(clinic, data)
    dataset = load_dataset("clinic", data, 16)
    assert len(dataset.unlabelled.names) > 0
    assert {tuple(scale) for scale in dataset.train.unit_per_pixel_N2.round(6).tolist()} == {
        (round(WIDTH_MM / width, 6),) * 2 for width, _ in SIDES.values()
    }


def test_the_check_finds_what_would_make_the_results_wrong(clinic, ablate, tmp_path):
    _, data = bring(ablate, clinic, "csv", tmp_path)
    description = data / "clinic" / "dataset.yaml"
    description.write_text("unit: mm\nsplits: {train: 42, val: 10}\n")
    code, out, err = ablate("data", "check", "clinic", "--data", data)
    assert (code, err) == (0, "")
    assert "images                         70 annotated, 60 unlabelled\n" in out
    assert "splits                         train 42, val 10, test 18\n" in out
    assert "scale                          0.7996 to 0.9974 mm per pixel\n" in out
    assert "scale from                     column spacing: 70 images\n" in out
    told = [line for line in out.splitlines() if line.startswith("warning: splits")]
    then = "a result on test then says little about train; for alike splits write random: 0"
    shares = "'COVID' is 100% of train, 20% of val, 0% of test"
    assert told == [
        f"warning: splits by sorted file name differ in column disease: {shares}; {then}, stratify: disease into "
        "splits of dataset.yaml",
        f"warning: splits by sorted file name differ in the prefix of the file names: {shares}; {then} into splits "
        "of dataset.yaml",
    ]
    description.write_text("unit: mm\nsplits: {train: 43, val: 10}\n")
    code, out, _ = ablate("data", "check", "clinic", "--data", data)
    twice = "2 values of column patient occur in two splits (p39, p44)"
    assert f"warning: {twice}; to keep each in one write random: 0, group: patient into splits of dataset.yaml\n" in out
    description.write_text(f"unit: mm\n{SPLITS}")
    code, out, _ = ablate("data", "check", "clinic", "--data", data)
    assert code == 0
    assert "warning: splits" not in out
    assert "occur in two splits (" not in out
    assert re.search(r"^disease COVID +\d+% of train, \d+% of val, \d+% of test$", out, re.MULTILINE)
    assert re.search(r"^values of patient +\d+ in train, \d+ in val, \d+ in test$", out, re.MULTILINE)
    path = data / "clinic" / "landmarks.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[0, "spacing"] = "799.6"
    table.loc[1, "patient"] = table.loc[0, "patient"].upper()
    table.to_csv(path, index=False)
    code, out, _ = ablate("data", "check", "clinic", "--data", data)
    assert code == 0
    assert (
        "warning: 1 image with more than 5 times, or less than 1/5 of, the median scale of 0.7996 mm per pixel: "
        "COVID-000.png 799.6; look whether the values are millimetres\n"
    ) in out
    assert (
        "warning: 1 value of column patient occur in two spellings, which count as two groups, such as 'P00' and "
        "'p00'; write them alike\n"
    ) in out
    add_columns(clinic, data)
    dataset = load_dataset("clinic", data, 16)
    shares = []
    for split in (dataset.train, dataset.val, dataset.test):
        patients = {clinic.columns[name]["patient"] for name in split.names}
        diseases = Counter(clinic.columns[name]["disease"] for name in split.names)
        shares.append(diseases["COVID"] / len(split.names))
        held = set(split.names) - set(dataset.train.names)
        if held:
            pooled = {clinic.columns[name]["patient"] for name in dataset.unlabelled.names}
            assert not patients & pooled
    assert max(shares) - min(shares) < 0.2


def test_unlabelled_images_change_the_pre_training_and_nothing_else(clinic, ablate, tmp_path):
    _, data = bring(ablate, clinic, "csv", tmp_path)
    add_columns(clinic, data)
    with_all = load_dataset("clinic", data, 16)
    for name in with_all.unlabelled.names:
        (data / "clinic" / "images" / name).unlink()
    path = data / "clinic" / "landmarks.csv"
    pd.read_csv(path).query("image not in @with_all.unlabelled.names").to_csv(path, index=False)
    without = load_dataset("clinic", data, 16)
    assert without.unlabelled.names == ()
    for split in ("train", "val", "test"):
        one, other = getattr(with_all, split), getattr(without, split)
        assert one.names == other.names
        for field in ("images_NHW", "points_NK2", "sizes_N2", "unit_per_pixel_N2", "duplicates_N"):
            assert np.array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.timeout(900)
def test_from_the_export_to_the_report_and_to_new_images(clinic, ablate, tmp_path):
    _, data = bring(ablate, clinic, "labelme", tmp_path)
    add_columns(clinic, data)
    fields = {k: v for k, v in tiny_fields("ddpm", dataset="clinic").items() if k not in ("shots", "pretrain")}
    ddpm = tiny_fields("ddpm", pretrain={"timesteps": 20})["pretrain"]
    grid = tmp_path / "mine.yaml"
    starts = [{"method": "scratch"}, {**ddpm, "images": "all"}, {**ddpm, "images": "train"}]
    space = {"name": "mine", "base": fields, "blocks": [{"grid": {"shots": [5, 25], "pretrain": starts}}]}
    grid.write_text(yaml.safe_dump(space))
    trials = load_grid(find_grid(str(grid)), []).trials
    assert len({trial.pretrain_key for trial in trials} - {None}) == 2
    too_many = tmp_path / "many.yaml"
    too_many.write_text(yaml.safe_dump(space).replace("- 25", "- 80"))
    refused = ablate("run", "--grid", too_many, "--data", data, "--out", tmp_path / "none")
    train = len(load_dataset("clinic", data, 16).train.names)
    assert refused[0] == 2
    assert refused[2].splitlines()[-1] == (
        f"ablate: shots must be at most {train}, the number of annotated training images of clinic; got 80; lower it "
        "or say all"
    )
    run = tmp_path / "run"
    code, out, _ = ablate("run", "--grid", grid, "--data", data, "--out", run, "--keep-weights")
    assert code == 0, out
    assert "6 trials finished, 0 failed, 0 open" in out
    found = read_results(run)
    assert found.trials["unit"].unique().tolist() == ["mm"]
    assert len(found.trials) == 6
    assert sorted(found.baselines["shots"]) == [5, 25]
    spacing = found.errors["image"].map(lambda name: float(clinic.columns[name]["spacing"]))
    pixels = np.hypot(found.errors["x_pred"] - found.errors["x_true"], found.errors["y_pred"] - found.errors["y_true"])
    assert np.allclose(pixels * spacing, found.errors["error"])
    code, out, err = ablate("report", run)
    assert (code, err) == (0, "")
    assert "report on 6 finished, 0 failed and 0 missing trials" in out
    table = (run / "report" / "tables" / "all.tex").read_text()
    assert "mean shape" in table
    assert "L19" in table
    new = tmp_path / "new"
    new.mkdir()
    for name in list(clinic.points)[:2]:
        (new / name).write_bytes((clinic.images / name).read_bytes())
    code, out, err = ablate("predict", run, trials[0].trial_id, new, "--out", tmp_path / "predicted")
    assert (code, err) == (0, "")
    with (tmp_path / "predicted" / "predictions-long.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [*LANDMARKS, *LANDMARKS]
    assert all(re.fullmatch(r"-?\d+\.\d\d", row["x"]) and 0 <= float(row["confidence"]) <= 1 for row in rows)
    overlays = sorted(path.stem for path in (tmp_path / "predicted").glob("*.png"))
    assert overlays == sorted(name.removesuffix(".png") for name in list(clinic.points)[:2])
