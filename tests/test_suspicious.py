"""Radiographs that lie mirrored in a set, and test images that every arm fails on."""

from pathlib import Path

import numpy as np
import pytest
from fake_run import Shape, specs, write_fake_run
from numpy.typing import NDArray

from ablate import tables
from ablate.datasets import check_dataset
from ablate.datasets.mirrored import find_mirrored, small_image
from ablate.report.analysis import analyse
from ablate.report.run_data import read_run
from ablate.report.suspects import suspect_tables
from ablate.report.write import write_report
from ablate.store import Store


def test_exactly_one_of_the_400_cephalograms_is_mirrored(xray_data: Path) -> None:
    (warning,) = [text for text in check_dataset("cephalo", xray_data).warnings if "mirrored" in text]
    assert warning == (
        "1 radiograph may be mirrored, by the correlation with the mirrored mean image against that with the mean: "
        "322.jpg (0.93 against 0.05); look at them, and mirror picture and landmarks, or leave them out"
    )


def test_none_of_the_generated_radiographs_is() -> None:
    assert [text for text in check_dataset("synthetic").warnings if "mirrored" in text] == []


def pictures(symmetric: bool) -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    base = np.zeros((50, 40), np.float32)
    base[10:40, 4:14] = 1.0
    if symmetric:
        base[10:40, 26:36] = 1.0
    return [base + generator.normal(0, 0.2, base.shape).astype(np.float32) for _ in range(9)]


def test_a_mirrored_picture_is_found_whatever_its_brightness() -> None:
    images = pictures(symmetric=False)
    images[4] = 7 * images[4][:, ::-1] - 3
    (found,) = find_mirrored([small_image(image) for image in images])
    assert found.number == 4
    assert found.mirrored > 0.8 > 0.3 > found.straight


def test_a_mirrored_picture_among_symmetric_ones_cannot_be_told() -> None:
    images = pictures(symmetric=True)
    images[4] = images[4][:, ::-1]
    assert find_mirrored([small_image(image) for image in images]) == []


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_pictures_of_one_grey_value_are_no_mirror_images(value: float) -> None:
    assert find_mirrored([np.full((32, 32), value, np.float32)] * 4) == []


def spoiled(folder: Path, spoil: dict[str, float]) -> Store:
    """Write a generated run; the errors of the second image are multiplied, by method."""
    trials = specs(methods=["ddpm", "scratch"], shots=[5, 10], seeds=[0, 1])
    store = write_fake_run(folder, trials, shapes={"cephalo": Shape(num_images=6, num_landmarks=3)})
    for spec in trials:
        rows = tables.read_part(store, "errors", spec.trial_id)
        second = sorted({str(row["image"]) for row in rows})[1]
        changed = [
            row | {"error": float(str(row["error"])) * spoil[spec.method]} if row["image"] == second else row
            for row in rows
        ]
        tables.write_rows(store, "errors", spec.trial_id, changed)
    return store


def test_an_image_that_every_arm_fails_on_is_listed_and_left_out_beside_the_headline(tmp_path: Path) -> None:
    store = spoiled(tmp_path, {"ddpm": 100.0, "scratch": 100.0})
    analysis = analyse(read_run(store), num_resamples=100)
    images, headline = suspect_tables(analysis)
    (row,) = images.records
    assert row["image"] == analysis.panels[0].errors.images[1]
    assert float(str(row["times_median"])) > 10
    (arm, *_) = analysis.panels[0].arms.values()
    others = np.delete(arm.errors_SIK, 1, axis=1)
    by_kind = {str(record["images_of"]): record["value"] for record in headline.records[:2]}
    assert by_kind["all"] == pytest.approx(arm.errors_SIK.mean())
    assert by_kind["without suspicious"] == pytest.approx(others.mean())
    write_report(store)
    assert (tmp_path / "report" / "tables" / "suspicious-cephalo.md").exists()


def test_an_image_that_one_arm_can_do_is_not_suspicious(tmp_path: Path) -> None:
    store = spoiled(tmp_path, {"ddpm": 100.0, "scratch": 1.0})
    assert list(suspect_tables(analyse(read_run(store), num_resamples=100))) == []
