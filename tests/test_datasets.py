"""Contract of every data set, the reader of the public layouts, decoding, cache, check and preview."""

import csv
import math
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablate.datasets import (
    DATASETS,
    check_dataset,
    dataset_fingerprint,
    dataset_names,
    load_dataset,
    prepare_dataset,
    preview_dataset,
    read_records,
    require_dataset,
)
from ablate.datasets.cache import read_cache
from ablate.datasets.check import grouped
from ablate.errors import InputError
from ablate.space import BUILT_IN_DATASETS


def picture(path: Path, width: int, height: int, seed: int) -> None:
    """Write a radiograph-like picture: smooth random structure."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)


def write_public(root: Path, name: str, num_images: int, size: tuple[int, int] = (40, 50)) -> Path:
    """Write a data set in its public layout with points at known places: landmark k at (k + 1, 2 k + 0.5)."""
    folder = root / name
    layout = DATASETS[name]
    points = [(k * 0.7 + 1, k * 0.9 + 0.5) for k in range(layout.num_landmarks)]
    rows = []
    for index in range(num_images):
        stem = f"CHNCXR_{index + 1:04d}_0" if name == "chest" else f"{index + 1:03d}"
        suffix = ".png" if name == "chest" else ".jpg"
        picture(folder / layout.image_folder / f"{stem}{suffix}", *size, seed=index)
        if name == "chest":
            text = "6\n" + "".join(f"{(x + 0.5) / size[0]:.9f} {(y + 0.5) / size[1]:.9f}\n" for x, y in points)
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "labels" / f"{stem}.txt").write_text(text)
        elif name == "cephalo":
            for annotator, shift in (("400_junior", -1), ("400_senior", 1)):
                text = "".join(f"{x + shift},{y - shift}\n" for x, y in points) + "1\n" * 8
                (folder / annotator).mkdir(exist_ok=True)
                (folder / annotator / f"{stem}.txt").write_text(text)
        else:
            rows.append(",".join([str(index + 1), *(f"{x},{y}" for x, y in points)]))
    if name == "hand":
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / "all.csv").write_text("\n".join(rows) + "\n")
    return folder


PUBLISHED = {"chest": (270 + 2, (195, 34, 41)), "cephalo": (400, (130, 20, 250)), "hand": (620, (550, 59, 11))}
"""Images to write and the splits they give; of 272 chest images 0059 and 0178 ... are excluded."""


@pytest.mark.parametrize("name", DATASETS)
def test_every_built_in_set_is_read_from_its_public_layout(name: str, tmp_path: Path) -> None:
    num_images, (train, val, test) = PUBLISHED[name]
    write_public(tmp_path, name, num_images, size=(20, 24) if name != "hand" else (40, 50))
    info = require_dataset(name, tmp_path)
    excluded = 4 if name == "chest" else 0  # 0059, 0178, 0228 and 0267 lie below 0273
    assert (info.of(None).train, info.of(None).val) == (train, val)
    assert info.of(None).test == (test if name != "chest" else num_images - excluded - train - val)
    dataset = load_dataset(name, tmp_path, 16)
    layout = DATASETS[name]
    assert dataset.num_landmarks == layout.num_landmarks == dataset.test.points_NK2.shape[1]
    assert dataset.unit == layout.unit
    assert dataset.sdr_thresholds == layout.sdr_thresholds
    assert dataset.paper == layout.paper is not None
    for split, count in (
        (dataset.train, info.of(None).train),
        (dataset.val, info.of(None).val),
        (dataset.test, info.of(None).test),
    ):
        assert len(split.names) == count
        assert list(split.names) == sorted(split.names)
        assert split.images_NHW.shape == (count, 16, 16)
        assert split.images_NHW.dtype == np.uint8
        assert (split.images_NHW.max(axis=(1, 2)) == 255).all()
        assert (split.images_NHW.min(axis=(1, 2)) == 0).all()
        expected = [[k * 0.7 + 1, k * 0.9 + 0.5] for k in range(layout.num_landmarks)]
        np.testing.assert_allclose(split.points_NK2, np.broadcast_to(expected, split.points_NK2.shape), atol=1e-6)
        assert not split.duplicates_N.any()
    assert dataset.train.names[-1] < dataset.val.names[0] < dataset.val.names[-1] < dataset.test.names[0]


def test_the_table_and_the_trial_spec_name_the_same_data_sets() -> None:
    assert {*DATASETS, "synthetic"} == set(BUILT_IN_DATASETS)


def test_chest_labels_are_shares_of_a_non_square_image_and_its_unit_is_a_256_px_frame(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "chest", 1, size=(40, 80))
    (folder / "labels" / "CHNCXR_0001_0.txt").write_text("6\n0 0\n1 1\n0.5 0.5\n0.25 0.25\n0.5 0.25\n0.1 0.9\n")
    (record,) = read_records("chest", tmp_path)
    # the image's outer corners lie half a pixel beyond the centres of its corner pixels
    np.testing.assert_allclose(
        record.points_K2, [[-0.5, -0.5], [39.5, 79.5], [19.5, 39.5], [9.5, 19.5], [19.5, 19.5], [3.5, 71.5]]
    )
    assert record.unit_per_pixel == (6.4, 3.2)


def test_cephalo_truth_is_the_annotators_mean_and_its_film_measures_193_5_by_240_mm(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "cephalo", 1, size=(387, 480))
    for annotator, first in (("400_junior", "10,20"), ("400_senior", "13,24")):
        path = folder / annotator / "001.txt"
        path.write_text(first + "\n" + "1,1\n" * 18 + "3\n" * 8)
    (record,) = read_records("cephalo", tmp_path)
    np.testing.assert_allclose(record.points_K2[0], [11.5, 22])
    assert record.unit_per_pixel == pytest.approx((0.5, 0.5))
    picture(folder / "jpg" / "001.jpg", 193, 480, seed=0)
    (record,) = read_records("cephalo", tmp_path)
    assert record.unit_per_pixel == pytest.approx((193.5 / 193, 0.5))


def test_hand_scale_makes_the_wrist_50_mm_in_original_pixels(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "hand", 1)
    points = [(0.0, 0.0)] * 4 + [(30.0, 40.0)] + [(1.0, 2.0)] * 32
    (folder / "labels" / "all.csv").write_text("1," + ",".join(f"{x},{y}" for x, y in points))
    (record,) = read_records("hand", tmp_path)
    assert record.unit_per_pixel == (1.0, 1.0)  # 3-4-5 triangle: 50 px


def test_chest_leaves_out_the_papers_exclusions_and_images_without_label(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "chest", 60)
    picture(folder / "pngs" / "CHNCXR_0400_1.png", 10, 10, seed=1)
    names = [record.name for record in read_records("chest", tmp_path)]
    assert len(names) == 59
    assert "CHNCXR_0059_0.png" not in names
    report = check_dataset("chest", tmp_path)
    assert (report.excluded, report.left_out, report.unlabelled) == (1, 1, 0)


def test_hand_tolerates_the_one_spare_row_of_the_public_table_and_no_more(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "hand", 4)
    picture(folder / "jpg" / "0099.jpg", 10, 10, seed=1)
    (folder / "jpg" / "001.jpg").unlink()
    assert [record.name for record in read_records("hand", tmp_path)] == ["002.jpg", "003.jpg", "004.jpg"]
    (folder / "jpg" / "002.jpg").unlink()
    with pytest.raises(InputError, match=r"all.csv:1: image '1' is not in .*jpg.*add the image or remove its label"):
        read_records("hand", tmp_path)


@pytest.mark.parametrize(
    ("name", "relative", "text", "message"),
    [
        ("chest", "labels/CHNCXR_0002_0.txt", "6\n0.1 0.2\n", r"0002_0.txt: must hold 6 points; got 1"),
        ("chest", "labels/CHNCXR_0002_0.txt", "5\n0.1 0.2\n", r":1: must be the number of points, 6; got '5'"),
        ("chest", "labels/CHNCXR_0002_0.txt", "6\n0 0\n0 0\n0 x\n0 0\n0 0\n0 0\n", r":4: landmark 2 must be two"),
        ("chest", "labels/CHNCXR_0002_0.txt", "", r":1: must be the number of points"),
        ("cephalo", "400_senior/002.txt", "1,2\n" * 18, r"400_senior/002.txt: must hold 19 points; got 18"),
        ("cephalo", "400_senior/002.txt", "1,2\n" * 11 + "1\n" * 8, r"400_senior/002.txt:12: landmark 11 must be"),
        ("cephalo", "400_senior/002.txt", "nan,2\n" * 19, r":1: landmark 0 must be two numbers; got 'nan,2'"),
        ("hand", "labels/all.csv", "1" + ",1,2" * 37 + "\n2" + ",1,2" * 36, r"all.csv:2: must be an image id and 37"),
        ("hand", "labels/all.csv", "1" + ",1,2" * 37 + "\n1" + ",1,2" * 37, r"all.csv:2: image '1' already has a row"),
        ("hand", "labels/all.csv", "1" + ",1,2" * 36 + ",a,2", r":1: landmark 36 must be two numbers; got 'a,2'"),
        ("hand", "labels/all.csv", "1" + ",1,2" * 37, r"landmarks 0 and 4 must both be annotated and apart"),
    ],
)
def test_wrong_public_labels_are_named_by_file_and_line(
    name: str, relative: str, text: str, message: str, tmp_path: Path
) -> None:
    folder = write_public(tmp_path, name, 2)
    (folder / relative).write_text(text)
    with pytest.raises(InputError, match=message):
        require_dataset(name, tmp_path)


def test_a_missing_second_annotation_is_an_error(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "cephalo", 2)
    (folder / "400_senior" / "002.txt").unlink()
    with pytest.raises(InputError, match=r"400_senior/002.txt: file not found; every radiograph needs both"):
        require_dataset("cephalo", tmp_path)


def test_a_missing_image_and_a_missing_label_are_errors(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "cephalo", 3)
    (folder / "jpg" / "002.jpg").unlink()
    with pytest.raises(InputError, match=r"400_junior/002.txt: image '002' is not in .*jpg.*add the image"):
        require_dataset("cephalo", tmp_path)
    shutil.rmtree(folder)
    write_public(tmp_path, "cephalo", 3)
    for annotator in ("400_junior", "400_senior"):
        (folder / annotator / "002.txt").unlink()
    with pytest.raises(InputError, match=r"jpg/002.jpg: every image needs a label"):
        require_dataset("cephalo", tmp_path)


def test_two_files_of_one_radiograph_are_refused(tmp_path: Path) -> None:
    folder = write_public(tmp_path, "cephalo", 2)
    picture(folder / "jpg" / "001.png", 10, 10, seed=0)
    with pytest.raises(InputError, match=r"001.png: another image has the same label '001'"):
        require_dataset("cephalo", tmp_path)


@pytest.mark.parametrize("name", DATASETS)
def test_an_absent_public_set_says_where_it_is_obtained_and_how_laid_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        require_dataset(name, tmp_path)
    layout = DATASETS[name]
    for part in (str(tmp_path / name), layout.title, layout.source, layout.tree, "--data"):
        assert part in str(caught.value)
    (tmp_path / name).mkdir()
    with pytest.raises(
        InputError,
        match=r"folder not found; the images .* belong there; the .* is obtained from http|"
        r"obtained from images",
    ):
        require_dataset(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "needed"), [("chest", "at least 230"), ("cephalo", "exactly 400"), ("hand", "at least 610")]
)
def test_fewer_images_than_the_splits_need_is_said_with_both_numbers(name: str, needed: str, tmp_path: Path) -> None:
    write_public(tmp_path, name, 5)
    with pytest.raises(InputError, match=f"need {needed} annotated images; found 5"):
        load_dataset(name, tmp_path, 16)
    assert len(read_records(name, tmp_path)) == 5


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cehpalo", "", "../cephalo", "a/b", ".hidden", "nul\0"])
def test_an_unknown_name_is_refused_with_the_choices(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset must be one of chest, cephalo, hand, synthetic or a folder with"):
        require_dataset(name, tmp_path)


def test_a_misspelt_name_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 'cehpalo' \(did you mean 'cephalo'\?\)"):
        load_dataset("cehpalo", tmp_path, 32)


def test_names_are_the_built_in_ones_then_folders_with_a_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("zebra", "ankle", "cephalo", "no-description", ".hidden"):
        (tmp_path / name).mkdir()
        if name != "no-description":
            (tmp_path / name / "dataset.yaml").write_text("unit: px\n")
    assert dataset_names(tmp_path) == [*BUILT_IN_DATASETS, "ankle", "zebra"]
    monkeypatch.setenv("ABLATE_DATA", str(tmp_path))
    assert dataset_names() == [*BUILT_IN_DATASETS, "ankle", "zebra"]
    assert dataset_names(tmp_path / "absent") == list(BUILT_IN_DATASETS)


def test_a_folder_without_description_and_a_data_folder_that_is_a_data_set_are_explained(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match=r"mine has no dataset.yaml"):
        require_dataset("mine", tmp_path)
    (tmp_path / "mine" / "dataset.yaml").write_text("unit: px\n")
    with pytest.raises(InputError, match=r"is itself a data set, give the folder above it as --data"):
        require_dataset("yours", tmp_path / "mine")


# --- cache ------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with the user's data set `small` of six pictures, and a cache of its own."""
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "small"
    rows = ["image,x0,y0,x1,y1"]
    for index in range(6):
        picture(folder / "images" / f"{index}.png", 30, 20, seed=index)
        rows.append(f"{index}.png,{index},1.5,,")
    (folder / "landmarks.csv").write_text("\n".join(rows) + "\n")
    (folder / "dataset.yaml").write_text("unit: mm\nmm_per_pixel: 0.5\nsplits: {train: 3, val: 1}\n")
    return tmp_path / "data"


def test_a_second_load_decodes_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset("small", small, 16)
    monkeypatch.setattr("ablate.datasets.layout.read_grey", lambda path: pytest.fail(f"{path} was decoded"))
    second = load_dataset("small", small, 16)
    for a, b in ((first.train, second.train), (first.val, second.val), (first.test, second.test)):
        np.testing.assert_array_equal(a.images_NHW, b.images_NHW)
        np.testing.assert_array_equal(a.points_NK2, b.points_NK2)
        np.testing.assert_array_equal(a.duplicates_N, b.duplicates_N)
    assert first.fingerprint == second.fingerprint == dataset_fingerprint("small", small)


def test_a_changed_picture_is_decoded_again_and_changes_the_fingerprint(small: Path) -> None:
    before = load_dataset("small", small, 16)
    stamp = (small / "small" / "images" / "0.png").stat()
    picture(small / "small" / "images" / "0.png", 30, 20, seed=99)
    os.utime(small / "small" / "images" / "0.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # content counts
    after = load_dataset("small", small, 16)
    assert before.fingerprint != after.fingerprint
    assert (before.train.images_NHW[0] != after.train.images_NHW[0]).any()
    np.testing.assert_array_equal(before.train.images_NHW[1:], after.train.images_NHW[1:])
    (small / "small" / "images" / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"images/0.png: must be a complete image file"):
        load_dataset("small", small, 16)


def test_the_fingerprint_follows_labels_scale_and_splits_but_not_image_size_or_name(small: Path) -> None:
    base = dataset_fingerprint("small", small)
    assert load_dataset("small", small, 16).fingerprint == load_dataset("small", small, 32).fingerprint == base
    shutil.copytree(small / "small", small / "copy")
    assert dataset_fingerprint("copy", small) == base
    description, table = small / "copy" / "dataset.yaml", small / "copy" / "landmarks.csv"
    original, labels = description.read_text(), table.read_text()
    changes = [
        (description, original.replace("0.5", "0.6")),
        (description, original.replace("train: 3, val: 1", "train: 2, val: 2")),
        (description, original + "sdr_thresholds: [1, 2]\n"),
        (table, labels.replace("0.png,0,", "0.png,0.01,")),
    ]
    found = {base}
    for path, text in changes:
        description.write_text(original)
        table.write_text(labels)
        path.write_text(text)
        found.add(dataset_fingerprint("copy", small))
    assert len(found) == 5


def test_nothing_is_written_into_the_data_folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(small.rglob("*"))
    load_dataset("small", small, 16)
    check_dataset("small", small)
    assert sorted(small.rglob("*")) == before
    monkeypatch.setenv("ABLATE_CACHE", str(small / "small" / "cache"))
    with pytest.raises(InputError, match=r"ABLATE_CACHE must lie outside the data folder"):
        load_dataset("small", small, 16)
    assert sorted(small.rglob("*")) == before


def test_a_cache_that_cannot_be_written_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = small.parent / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("ABLATE_CACHE", str(blocked / "cache"))
    with pytest.raises(InputError, match=r"set ABLATE_CACHE to a folder that is"):
        load_dataset("small", small, 16)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "flip"])
def test_a_damaged_cache_file_is_prepared_anew(damage: str, small: Path) -> None:
    (path,) = prepare_dataset("small", small, [16])
    good = read_cache(path, num_images=6, image_size=16)
    assert good is not None
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "garbage":
        content = bytearray(b"nothing")
    else:
        content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    assert read_cache(path, num_images=6, image_size=16) is None
    dataset = load_dataset("small", small, 16)
    np.testing.assert_array_equal(dataset.train.images_NHW, good.images_NHW[:3])
    assert read_cache(path, num_images=6, image_size=16) is not None


def test_prepare_fills_the_cache_for_each_size(small: Path) -> None:
    paths = prepare_dataset("small", small, [16, 24])
    assert len(set(paths)) == 2
    files = [path for path in (small.parent / "cache").iterdir() if path.is_file()]
    assert sorted(paths) == sorted(files)  # and no temporary file is left
    with pytest.raises(InputError, match="image_size must be at least 16 px; got 8"):
        prepare_dataset("small", small, [8])


def _load(arguments: tuple[str, str]) -> str:
    data, cache = arguments
    os.environ["ABLATE_CACHE"] = cache
    dataset = load_dataset("small", data, 48)
    return f"{dataset.fingerprint} {int(dataset.test.images_NHW.sum())}"


def test_processes_that_prepare_at_once_all_get_the_same_and_leave_one_file(small: Path) -> None:
    cache = small.parent / "shared-cache"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.map(_load, [(str(small), str(cache))] * 6, chunksize=1)
    assert len(set(results)) == 1
    assert len([path for path in cache.iterdir() if path.is_file()]) == 1


# --- check and preview ------------------------------------------------------------------------------


def test_check_gathers_every_problem(small: Path) -> None:
    images = small / "small" / "images"
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[: len(content) // 2])
    shutil.copy(images / "0.png", images / "5.png")
    (small / "small" / "landmarks.csv").write_text(
        "image,x0,y0,x1,y1\n0.png,1,2,,\n1.png,1,2,3,4\n2.png,1,2,29.6,4\n3.png,,,,\n4.png,a,2,,\n5.png,1.1,2,,\n"
        "6.png,1,2,3,4\n"
    )
    (small / "small" / "dataset.yaml").write_text("unit: mm\nmm_per_pixel: 0.5\nsplits: {train: 2, val: 1}\n")
    report = check_dataset("small", small)
    assert report.unreadable == ("1.png",)
    assert report.outside == ("2.png landmark 1 at (29.6, 4.0) of 30 x 20",)
    assert len(report.errors) == 3
    text = report.text()
    for part in (
        "landmarks.csv:6: column x0 must be a number",
        "landmarks.csv:8: image '6.png' is not in",
        "1.png: must be a complete image file",
        "0.png (train) = 5.png (test)",
        "images                         4 annotated, 1 unlabelled",
        "warning: 1 landmarks lie outside their image",
        "warning: 1 radiographs occur in two splits",
    ):
        assert part in text
    assert report.not_annotated == 1 + 0 + 0 + 1


def test_check_of_sound_data_has_no_errors_and_counts_right(small: Path) -> None:
    report = check_dataset("small", small)
    assert report.errors == report.warnings == ()
    assert report.splits == {"train": 3, "val": 1, "test": 2}
    assert (report.widths, report.heights, report.unit_per_pixel) == ((30, 30), (20, 20), (0.5, 0.5))
    assert ("splits", "train 3, val 1, test 2") in report.rows()


def test_check_reports_a_broken_description_and_refuses_an_unknown_name(small: Path) -> None:
    (small / "small" / "dataset.yaml").write_text("unit: cm\n")
    report = check_dataset("small", small)
    assert len(report.errors) == 1
    assert "unit" in report.errors[0]
    with pytest.raises(InputError, match="dataset must be one of"):
        check_dataset("smal", small)


def test_check_warns_of_an_orientation_that_is_not_applied_and_of_a_flat_picture(small: Path) -> None:
    images = small / "small" / "images"
    with Image.open(images / "2.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(images / "2.png", exif=exif)
    Image.new("L", (30, 20), 77).save(images / "4.png")
    warnings = check_dataset("small", small).warnings
    assert any("1 images carry an EXIF orientation, which is not applied" in text for text in warnings)
    assert any(text.startswith("4.png: every pixel has the same grey value") for text in warnings)
    assert load_dataset("small", small, 16).test.images_NHW[0].max() == 0
    assert load_dataset("small", small, 16).train.sizes_N2[2].tolist() == [30, 20]


def test_preview_keeps_the_aspect_and_draws_landmarks_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    (folder / "images").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(folder / "images" / f"{index}.png")
    (folder / "landmarks.csv").write_text("image,x0,y0\n0.png,29.5,4.5\n1.png,60,60\n2.png,29.5,4.5\n")
    (folder / "dataset.yaml").write_text("unit: px\nsplits: {train: 1, val: 1, test: 1}\n")
    path = preview_dataset("wide", tmp_path, tmp_path / "new" / "sheet.png", columns=2, rows=2, cell_px=80)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
        assert sheet.size == (160, 2 * (80 + 18))
    # 40 x 20 becomes 80 x 40, centred: rows 20..60; (29.5 + 0.5) * 2 - 0.5 = 59.5, (4.5 + 0.5) * 2 - 0.5 + 20 = 29.5
    assert (pixels[19, 0] == 0x20).all()
    assert (pixels[20, 0] == 0).all()
    assert pixels[29:31, 59:61].reshape(-1, 3).tolist() == [[0xFF, 0x5A, 0x5F]] * 4
    assert (pixels[20:60, 80:160] == 0).all()  # the second picture has no landmark
    with pytest.raises(InputError, match=r"must be written to a \.png file"):
        preview_dataset("wide", tmp_path, tmp_path / "sheet.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the preview must be writable"):
        preview_dataset("wide", tmp_path, tmp_path / "file" / "sheet.png")
    with pytest.raises(InputError, match="columns must be at least 1; got 0"):
        preview_dataset("wide", tmp_path, tmp_path / "sheet.png", columns=0)


# --- real files -------------------------------------------------------------------------------------


def test_the_nine_real_hands_are_read_with_the_wrist_at_50_mm(xray_data: Path) -> None:
    records = read_records("hand", xray_data)
    assert [record.name for record in records] == sorted(path.name for path in (xray_data / "hand" / "jpg").iterdir())
    with (xray_data / "hand" / "labels" / "all.csv").open(newline="") as file:
        rows = {row[0]: [float(value) for value in row[1:]] for row in csv.reader(file)}
    for record in records:
        values = rows[Path(record.name).stem]
        np.testing.assert_array_equal(record.points_K2.ravel(), values)
        wrist_px = math.hypot(values[8] - values[0], values[9] - values[1])
        assert record.unit_per_pixel[0] * wrist_px == pytest.approx(50)
    with pytest.raises(InputError, match="need at least 610 annotated images; found 9"):
        load_dataset("hand", xray_data, 64)
    report = check_dataset("hand", xray_data)
    assert (report.num_images, report.outside, report.duplicates) == (9, (), ())


def test_the_real_chest_labels_are_read_for_pictures_of_any_size(xray_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chest"
    shutil.copytree(xray_data / "chest" / "labels", folder / "labels")
    (folder / "pngs").mkdir()
    sizes = [(30, 24), (25, 25), (20, 33)]
    for index, path in enumerate(sorted((folder / "labels").iterdir())):
        Image.new("L", sizes[index % 3], 5).save(folder / "pngs" / f"{path.stem}.png")
    records = read_records("chest", tmp_path)
    info = require_dataset("chest", tmp_path)
    assert (len(records), info.of(None).train, info.of(None).val, info.of(None).test) == (270, 195, 34, 41)
    for record in records:
        shares = np.loadtxt(folder / "labels" / f"{Path(record.name).stem}.txt", skiprows=1)
        np.testing.assert_allclose((record.points_K2 + 0.5) / record.size, shares, atol=1e-12)
        assert record.unit_per_pixel == (256 / record.size[0], 256 / record.size[1])


def test_the_real_cephalograms_are_loaded_in_the_papers_splits(xray_data: Path) -> None:
    dataset = load_dataset("cephalo", xray_data, 32)
    assert [len(split.names) for split in (dataset.train, dataset.val, dataset.test)] == [130, 20, 250]
    assert (dataset.train.names[0], dataset.val.names[0], dataset.test.names[0]) == ("001.jpg", "131.jpg", "151.jpg")
    np.testing.assert_allclose(dataset.test.unit_per_pixel_N2[0], [193.5 / 413, 240 / 512])
    junior, senior = (
        np.loadtxt(xray_data / "cephalo" / name / "151.txt", delimiter=",", max_rows=19)
        for name in ("400_junior", "400_senior")
    )
    np.testing.assert_allclose(dataset.test.points_NK2[0], (junior + senior) / 2)
    assert dataset.paper is not None
    assert dataset.paper.frame == (240.0, 193.5)


def test_messages_that_are_alike_are_told_three_times() -> None:
    paths = [f"/data/mine/images/p{number}.png" for number in range(9)]
    same = [f"{path}: must be a complete image file; it cannot be decoded (truncated at {len(path)})" for path in paths]
    other = "mine: splits train 3, val 1 need at least 5 annotated images; found 4"
    assert grouped([*same, other]) == [*same[:3], f"6 more like the last one, up to: {same[-1]}", other]
    assert grouped([*same[:3], other]) == [*same[:3], other]
