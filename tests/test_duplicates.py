"""Which radiographs are found to be the same picture."""

import csv
from pathlib import Path

import numpy as np
import pytest

from ablate.datasets import check_dataset, load_dataset, read_records
from ablate.datasets.duplicates import MAX_OPPOSITE, SIDE, find_duplicates, image_hash, seen_earlier
from ablate.datasets.images import resize
from ablate.datasets.synthetic import render


def known_pairs(xray_data: Path) -> set[tuple[str, str]]:
    with (xray_data / "cephalo" / "duplicate_pairs.csv").open(newline="") as file:
        return {(row["image_a"], row["image_b"]) for row in csv.DictReader(file)}


def test_exactly_the_23_known_pairs_are_found_among_400_radiographs(xray_data: Path) -> None:
    report = check_dataset("cephalo", xray_data)
    assert {(pair.first, pair.second) for pair in report.duplicates} == known_pairs(xray_data)
    assert sum(pair.crosses for pair in report.duplicates) == 20


def test_the_limit_keeps_a_factor_of_three_to_both_sides_on_real_radiographs(xray_data: Path) -> None:
    records = read_records("cephalo", xray_data)
    signs = np.stack([image_hash(record.grey()) for record in records]).astype(np.float64)
    known = known_pairs(xray_data)
    names = [record.name for record in records]
    common = np.abs(signs) @ np.abs(signs).T
    share = (common - signs @ signs.T) / 2 / common
    first, second = np.triu_indices(len(names), 1)
    same = np.array([(names[i], names[j]) in known for i, j in zip(first, second, strict=True)])
    assert share[first, second][same].max() < MAX_OPPOSITE / 3
    assert share[first, second][~same].min() > MAX_OPPOSITE * 3


def test_test_images_seen_in_train_or_val_are_marked_and_others_are_not(xray_data: Path) -> None:
    dataset = load_dataset("cephalo", xray_data, 32)
    earlier = {*dataset.train.names, *dataset.val.names}
    crossing = [pair for pair in known_pairs(xray_data) if (pair[0] in earlier) != (pair[1] in earlier)]
    expected = {first if second in earlier else second for first, second in crossing}
    marked = {name for name, seen in zip(dataset.test.names, dataset.test.duplicates_N, strict=True) if seen}
    assert marked == expected
    assert len(marked) == 20
    assert not dataset.train.duplicates_N.any()
    assert not dataset.val.duplicates_N.any()


def test_seen_earlier_marks_the_later_split_only() -> None:
    pairs = np.array([(0, 2), (1, 4), (3, 5), (6, 7), (8, 0), (9, 4)])
    splits = ["train", "train", "val", "val", "test", "test", "test", "test", "test", None]
    assert seen_earlier(pairs, splits).tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 1, 0]  # 6 = 7 lies within test


def points(*rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


@pytest.fixture
def three() -> np.ndarray:
    """Hashes of one picture, the same re-scanned at twice the size with other contrast and noise, and another one."""
    picture = render(0).image_HW.astype(np.float32)
    height, width = picture.shape
    noise = np.random.default_rng(0).normal(0, 1.5, (2 * height, 2 * width)).astype(np.float32)
    again = 40 + 0.6 * resize(picture, 2 * width, 2 * height) + noise
    return np.stack([image_hash(picture), image_hash(again), image_hash(render(1).image_HW.astype(np.float32))])


def test_a_second_scan_of_another_size_contrast_and_noise_is_found(three: np.ndarray) -> None:
    sizes = np.array([[192, 240], [384, 480], [192, 240]])
    labels = points([[10.0, 20.0]], [[21.0, 41.0]], [[10.0, 20.0]])
    (pair,) = find_duplicates(three, labels, sizes)
    assert (pair.first, pair.second) == (0, 1)
    # (10.5 / 192 - 21.5 / 384, 20.5 / 240 - 41.5 / 480)
    assert pair.label_distance == pytest.approx(np.hypot(0.5 / 384, 0.5 / 480))


def test_the_same_picture_with_other_labels_is_no_duplicate(three: np.ndarray) -> None:
    sizes = np.array([[192, 240], [384, 480], [192, 240]])
    assert find_duplicates(three, points([[10.0, 20.0]], [[60.0, 41.0]], [[10.0, 20.0]]), sizes) == []


def test_without_a_common_landmark_the_pictures_decide(three: np.ndarray) -> None:
    sizes = np.array([[192, 240], [384, 480], [192, 240]])
    nan = np.nan
    labels = points([[10.0, 20.0], [nan, nan]], [[nan, nan], [5.0, 5.0]], [[nan, nan], [nan, nan]])
    (pair,) = find_duplicates(three, labels, sizes)
    assert (pair.first, pair.second) == (0, 1)
    assert np.isnan(pair.label_distance)


def test_pictures_without_structure_are_not_taken_for_one_another() -> None:
    flat = np.zeros((3, 2 * SIDE * (SIDE - 1)), np.int8)
    flat[1:, :10] = 1
    assert find_duplicates(flat, np.full((3, 1, 2), np.nan), np.full((3, 2), 50)) == []
    assert not image_hash(np.full((20, 30), 7, np.float32)).any()


def test_no_two_generated_radiographs_are_taken_for_one_another() -> None:
    hashes = np.stack([image_hash(render(index).image_HW.astype(np.float32)) for index in range(40)])
    assert find_duplicates(hashes, np.full((40, 1, 2), np.nan), np.full((40, 2), (192, 240))) == []
