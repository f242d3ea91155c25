"""Exports of annotation tools become data sets: every format, and every mistake that must not pass in silence.

Exports are written by hand after their documented layouts, tables by pandas. Images are 40 x 60 px (width x height).
"""

import base64
import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from exports import (
    EXPORTS,
    HEIGHT,
    LANDMARKS,
    WIDTH,
    as_coco,
    as_csv,
    as_labelme,
    as_labelstudio,
    as_slicer,
    frame,
)
from PIL import Image

from ablate.datasets import (
    DATASETS,
    ImportOptions,
    dataset_names,
    import_dataset,
    load_dataset,
    read_records,
    require_dataset,
)
from ablate.datasets.importing.formats import FORMATS
from ablate.datasets.importing.matching import ImageFile
from ablate.datasets.importing.write import NewDataset, write_dataset
from ablate.errors import InputError

IMAGES = tuple(f"x_{index}.png" for index in range(1, 9))


def draw(path, size=(WIDTH, HEIGHT), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def images(tmp_path):
    """Folder of the images."""
    for seed, name in enumerate(IMAGES):
        draw(tmp_path / "images" / name, seed=seed)
    return tmp_path / "images"


@pytest.fixture
def truth():
    """Points by image and landmark, from the centre of the top-left pixel; one is not annotated."""
    generator = np.random.default_rng(7)
    low, high = (-0.4, -0.4), (WIDTH - 0.6, HEIGHT - 0.6)
    points = {name: {mark: tuple(generator.uniform(low, high)) for mark in LANDMARKS} for name in IMAGES}
    points["x_1.png"]["p2"] = (39.25, 59.25)  # only a non-square image holds it
    del points["x_3.png"]["p10"]
    return points


# --- what came of them ------------------------------------------------------------------------------


def options(**given):
    return ImportOptions.of_texts(**given)


def bring(format_name, source, tmp_path, **given):
    given.setdefault("images", tmp_path / "images")
    return import_dataset(format_name, source, out="mine", data_dir=tmp_path / "data", options=options(**given))


def table_of(tmp_path):
    with (tmp_path / "data" / "mine" / "landmarks.csv").open() as file:
        return list(csv.DictReader(file))


def points_of(tmp_path):
    """Return points by image and landmark, as landmarks.csv and dataset.yaml have them."""
    names = yaml.safe_load((tmp_path / "data" / "mine" / "dataset.yaml").read_text())["landmark_names"]
    return {
        row["image"]: {
            name: (float(row[f"x{index}"]), float(row[f"y{index}"]))
            for index, name in enumerate(names)
            if row[f"x{index}"]
        }
        for row in table_of(tmp_path)
    }


def assert_same(found, truth):
    assert found.keys() == truth.keys()
    for name, points in truth.items():
        assert found[name].keys() == points.keys(), name
        for mark, place in points.items():
            assert found[name][mark] == pytest.approx(place, abs=1e-6), (name, mark)


def refused(message, *arguments, **given):
    with pytest.raises(InputError) as caught:
        bring(*arguments, **given)
    text = str(caught.value)
    assert "\n" not in text
    assert message in text
    return text


def test_every_format_has_its_export_here_and_its_line_in_the_help(ablate):
    assert EXPORTS.keys() == FORMATS.keys()
    text = ablate("data", "import", "--help")[1].partition("Formats, ")[2]
    for name, known in FORMATS.items():
        line = text.partition(f"\n    {name} ")[2].partition(";")[2].split()
        assert line[0] == known.origin


@pytest.mark.parametrize("format_name", EXPORTS)
def test_points_come_through_and_the_data_set_is_accepted(format_name, images, truth, tmp_path):
    report = bring(format_name, EXPORTS[format_name](tmp_path, truth), tmp_path)
    assert_same(points_of(tmp_path), truth)
    assert report.landmark_names == LANDMARKS
    assert (report.num_annotated, report.num_unlabelled, report.not_annotated) == (8, 0, 1)
    info = require_dataset("mine", tmp_path / "data")
    assert (info.unit, info.num_landmarks, info.of(None).train, info.of(None).val, info.of(None).test) == (
        "px",
        4,
        5,
        1,
        2,
    )
    assert info.landmark_names == LANDMARKS
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["mine"]
    assert {path.name for path in (tmp_path / "data" / "mine").iterdir()} == {"images", "landmarks.csv", "dataset.yaml"}
    for name in IMAGES:
        assert (tmp_path / "data" / "mine" / "images" / name).read_bytes() == (images / name).read_bytes()
    assert load_dataset("mine", tmp_path / "data", 16).landmark_names == LANDMARKS


@pytest.mark.parametrize("format_name", EXPORTS)
def test_the_other_origin_moves_every_point_by_half_a_pixel(format_name, images, truth, tmp_path):
    other = {"corner": "centre", "centre": "corner"}[FORMATS[format_name].origin]
    source = EXPORTS[format_name](tmp_path, {name: dict.fromkeys(LANDMARKS, (20, 30)) for name in truth})
    bring(format_name, source, tmp_path, origin=other)
    expected = 0.5 if other == "centre" else -0.5
    assert points_of(tmp_path)["x_1.png"]["sella"] == (20 + expected, 30 + expected)


@pytest.mark.parametrize("format_name", ["coco", "labelme", "cvat", "labelstudio", "csv"])
def test_another_size_is_refused_and_cured_by_rescale(format_name, images, truth, tmp_path):
    """Annotated at 80 x 90 px: x doubled about the image's corner, y by 1.5."""
    grown = {
        name: {mark: ((x + 0.5) * 2 - 0.5, (y + 0.5) * 1.5 - 0.5) for mark, (x, y) in points.items()}
        for name, points in truth.items()
    }
    source = EXPORTS[format_name](tmp_path, grown, size=(80, 90))
    text = refused("give --rescale to bring the points to the file's pixels", format_name, source, tmp_path)
    assert "it states 80 x 90 px for x_1.png, the file has 40 x 60 px (8 of 8 images differ)" in text
    assert not (tmp_path / "data").exists()
    bring(format_name, source, tmp_path, rescale=True)
    assert_same(points_of(tmp_path), truth)


def test_points_at_another_resolution_without_stated_sizes_are_refused_and_cured_by_scale(images, truth, tmp_path):
    grown = {
        name: {mark: (4 * x + 1.5, 4 * y + 1.5) for mark, (x, y) in points.items()} for name, points in truth.items()
    }
    source = as_csv(tmp_path, grown)
    text = refused("as if they were set at another resolution; give --scale FACTOR", "csv", source, tmp_path)
    assert "at most 0.25" in text
    refused("--rescale needs an export that states the size of every image", "csv", source, tmp_path, rescale=True)
    report = bring("csv", source, tmp_path, scale=0.25)
    assert_same(points_of(tmp_path), truth)
    assert "multiplied by 0.25" in report.applied


def test_points_at_a_lower_resolution_are_warned_of(images, truth, tmp_path):
    small = {
        name: {m: (x / 4 - 0.375, y / 4 - 0.375) for m, (x, y) in points.items()} for name, points in truth.items()
    }
    source = as_csv(tmp_path, small)
    (warning,) = bring("csv", source, tmp_path, dry_run=True).warnings
    assert "all points lie in the left 25% and the upper 25% of their images" in warning
    assert bring("csv", source, tmp_path, scale=4).warnings == ()
    assert_same(points_of(tmp_path), truth)


def test_shares_of_width_and_height_are_refused_and_cured_by_normalised(images, truth, tmp_path):
    shares = {
        name: {mark: ((x + 0.5) / WIDTH, (y + 0.5) / HEIGHT) for mark, (x, y) in points.items()}
        for name, points in truth.items()
    }
    source = as_csv(tmp_path, shares)
    refused(
        "all 31 points lie between 0 and 1: they are shares of width and height; give --normalised",
        "csv",
        source,
        tmp_path,
    )
    bring("csv", source, tmp_path, normalised=True)
    assert_same(points_of(tmp_path), truth)


def test_pixels_are_no_shares(images, truth, tmp_path):
    refused(
        "--normalised needs shares of width and height, from 0 to 1",
        "csv",
        as_csv(tmp_path, truth),
        tmp_path,
        normalised=True,
    )


@pytest.mark.parametrize(("mark", "given"), [(-1, "-1"), (0, "0"), (-999, "-999"), (np.nan, "nan")])
def test_marks_for_missing_landmarks_are_refused_and_cured_by_missing(mark, given, images, truth, tmp_path):
    table = frame(truth)
    table.loc[2, ["p10_x", "p10_y"]] = mark
    source = tmp_path / "points.csv"
    table.to_csv(source, index=False, na_rep="NaN")
    text = refused(
        "--missing must say what marks a landmark that is not annotated; 1 point at", "csv", source, tmp_path
    )
    assert f"give --missing={given} to leave them out" in text
    assert "'p10' of x_3.png" in text
    report = bring("csv", source, tmp_path, missing=[given])
    assert_same(points_of(tmp_path), truth)
    assert "1 point marked as not annotated left out" in report.notes


def test_the_upper_left_pixel_is_a_place_where_the_user_says_so(images, truth, tmp_path):
    truth["x_2.png"]["sella"] = (0.0, 0.0)
    source = as_csv(tmp_path, truth)
    refused("or --missing=none if they are places in the image", "csv", source, tmp_path)
    bring("csv", source, tmp_path, missing=["none"])
    assert_same(points_of(tmp_path), truth)


def test_two_marks_are_named_together(images, truth, tmp_path):
    truth["x_2.png"]["sella"], truth["x_4.png"]["sella"] = (0.0, 0.0), (-1.0, -1.0)
    source = as_csv(tmp_path, truth)
    text = refused("give --missing=", "csv", source, tmp_path)
    assert "--missing=0 --missing=-1" in text
    bring("csv", source, tmp_path, missing=["0", "-1"])
    assert "sella" not in points_of(tmp_path)["x_2.png"]


def test_a_coordinate_that_is_missing_alone_is_refused(images, truth, tmp_path):
    truth["x_2.png"]["sella"] = (3.0, np.nan)
    refused("column sella_y must be a number; got ''", "csv", as_csv(tmp_path, truth), tmp_path)
    (tmp_path / "points.csv").write_text((tmp_path / "points.csv").read_text().replace(",3.0,\n", ",3.0,nan\n"))
    text = refused("both coordinates must be numbers; got (3, nan)", "csv", tmp_path / "points.csv", tmp_path)
    assert "'sella' of x_2.png" in text


def test_exchanged_coordinates_are_refused_and_cured_by_swap_xy(images, truth, tmp_path):
    swapped = {name: {mark: (y, x) for mark, (x, y) in points.items()} for name, points in truth.items()}
    source = as_csv(tmp_path, swapped)
    refused("with x and y exchanged all lie inside; give --swap-xy", "csv", source, tmp_path)
    bring("csv", source, tmp_path, swap_xy=True)
    assert_same(points_of(tmp_path), truth)


def test_swap_xy_is_refused_where_it_is_wrong(images, truth, tmp_path):
    refused("all lie inside; leave --swap-xy out", "csv", as_csv(tmp_path, truth), tmp_path, swap_xy=True)


def test_few_points_outside_are_warned_of_and_many_refused(images, truth, tmp_path):
    truth["x_2.png"]["sella"] = (-7.0, 12.0)
    (warning,) = bring("csv", as_csv(tmp_path, truth), tmp_path).warnings
    assert warning == "1 point of 31 outside the image, 'sella' of x_2.png at (-7.0, 12.0) of 40 x 60 px"
    assert_same(points_of(tmp_path), truth)
    shutil.rmtree(tmp_path / "data")
    truth["x_5.png"]["sella"] = (-8.0, 12.0)  # 2 of 31 are 6.5 %
    text = refused("at most 5% of the points may lie outside; 2 points of 31", "csv", as_csv(tmp_path, truth), tmp_path)
    assert "'sella' of x_5.png at (-8.0, 12.0)" in text
    assert not (tmp_path / "data").exists()


def test_a_few_points_outside_that_would_fit_exchanged_are_said_to(images, truth, tmp_path):
    square = {name: {mark: (x, y / 2) for mark, (x, y) in points.items()} for name, points in truth.items()}
    square["x_2.png"]["sella"] = (45.0, 20.0)
    (warning,) = bring("csv", as_csv(tmp_path, square), tmp_path).warnings
    assert warning.endswith("at (45.0, 20.0) of 40 x 60 px; all lie inside with x and y exchanged (give --swap-xy)")


def test_an_image_that_was_shown_turned_is_not_rescaled(images, truth, tmp_path):
    turned = {name: {mark: (y, x) for mark, (x, y) in points.items()} for name, points in truth.items()}
    source = as_coco(tmp_path, turned, size=(HEIGHT, WIDTH))
    refused("the image was shown turned, as by an EXIF orientation", "coco", source, tmp_path, rescale=True)


def test_an_exif_orientation_is_warned_of(images, truth, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(images / "x_2.png") as image:
        image.save(images / "x_2.png", exif=exif)
    (warning,) = bring("coco", as_coco(tmp_path, truth), tmp_path).warnings
    assert "1 annotated image with an EXIF orientation" in warning


# --- images -----------------------------------------------------------------------------------------


def test_images_without_annotation_are_taken_and_get_no_row(images, truth, tmp_path):
    draw(images / "more" / "y.png", seed=50)
    truth["x_8.png"] = {}
    report = bring("labelme", as_labelme(tmp_path, truth), tmp_path)
    del truth["x_8.png"]
    assert_same(points_of(tmp_path), truth)
    assert {path.name for path in (tmp_path / "data" / "mine" / "images").iterdir()} == {*IMAGES, "y.png"}
    assert (report.num_annotated, report.num_unlabelled) == (7, 2)
    assert "1 image of the export without a point, used without annotation: x_8.png" in report.notes
    assert "8 shapes other than points left out" in report.notes


def test_images_of_equal_names_get_the_folder_before_them(truth, tmp_path):
    for seed, name in enumerate(IMAGES):
        draw(tmp_path / "images" / "one" / name, seed=seed)
    draw(tmp_path / "images" / "two" / "x_1.png", seed=99)
    renamed = {f"one/{name}": points for name, points in truth.items()}
    report = bring("csv", as_csv(tmp_path, renamed), tmp_path)
    assert_same(points_of(tmp_path), {"one__x_1.png": truth.pop("x_1.png")} | truth)
    assert "2 images of equal names got that of the folder before it: one__x_1.png, two__x_1.png" in report.notes
    shutil.rmtree(tmp_path / "data")
    plain = {name.removeprefix("one/"): points for name, points in renamed.items()}
    refused("image 'x_1.png' must mean one file", "csv", as_csv(tmp_path, plain), tmp_path)


def test_an_image_that_is_missing_is_named_with_the_nearest(images, truth, tmp_path):
    (images / "x_2.png").rename(images / "x_2_.png")
    text = refused("give the folder of the images as --images", "coco", as_coco(tmp_path, truth), tmp_path)
    assert "'train/x_2.png' is none (did you mean 'x_2_.png'?), 1 of 8 images are missing there" in text


def test_images_lie_beside_the_export_by_default_and_other_data_sets_are_none_of_them(images, truth, tmp_path):
    bring("csv", as_csv(tmp_path, truth), tmp_path, images=None)
    report = import_dataset("csv", tmp_path / "points.csv", out="again", data_dir=tmp_path / "data")
    assert (report.num_annotated, report.num_unlabelled) == (8, 0)


def test_an_embedded_image_takes_the_place_of_a_missing_file(images, truth, tmp_path):
    contents = {name: (images / name).read_bytes() for name in IMAGES}
    source = as_labelme(tmp_path, truth, data=lambda name: base64.b64encode(contents[name]).decode())
    shutil.rmtree(images)
    bring("labelme", source, tmp_path, images=None)
    assert_same(points_of(tmp_path), truth)
    for name, content in contents.items():
        assert (tmp_path / "data" / "mine" / "images" / name).read_bytes() == content


def test_an_embedded_image_is_named_by_its_real_format(images, truth, tmp_path):
    content = base64.b64encode((images / "x_1.png").read_bytes()).decode()
    renamed = {name.replace(".png", ".bmp"): points for name, points in truth.items()}
    source = as_labelme(tmp_path, renamed, data=lambda _: content)
    bring("labelme", source, tmp_path, images=source)
    assert points_of(tmp_path).keys() == set(IMAGES)


def test_real_radiographs_come_through(xray_data, tmp_path):
    truth = {}
    for path in sorted((xray_data / "cephalo" / "jpg").iterdir())[:5]:
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "images")
    for record in read_records("cephalo", xray_data):
        if (tmp_path / "images" / record.name).exists():
            truth[record.name] = {f"L{index}": tuple(xy) for index, xy in enumerate(record.points_K2)}
            size = record.size
    assert len(truth) == 5
    rows = [{"file": name, "landmark": mark, "x": x, "y": y} for name, p in truth.items() for mark, (x, y) in p.items()]
    table = pd.DataFrame(rows).assign(width=size[0], height=size[1])
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "long.csv", index=False)
    bring("csv", tmp_path / "long.csv", tmp_path)
    assert_same(points_of(tmp_path), truth)
    assert require_dataset("mine", tmp_path / "data").landmark_names == tuple(f"L{i}" for i in range(19))


# --- formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "image", "names"),
    [
        ("{axis}{index}", "image", ("0", "1", "2", "3")),
        ("{axis}_{index}", "File Name", ("0", "1", "2", "3")),
        ("{mark}_{axis}", "filename", LANDMARKS),
        ("{mark}.{axis}", "image_path", LANDMARKS),
        ("{mark} {axis}", "name", LANDMARKS),
        ("{axis}_{mark}", "id", LANDMARKS),
        ("{mark}_{axis}_px", "Image", LANDMARKS),
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spellings_of_wide_tables(spelling, image, names, separator, images, truth, tmp_path):
    table = frame(truth)
    table.columns = [
        image,
        *(spelling.format(axis=a, index=i, mark=m) for i, m in enumerate(LANDMARKS) for a in "xy"),
    ]
    table.to_csv(tmp_path / "t.csv", index=False, sep=separator, decimal="," if separator == ";" else ".")
    assert bring("csv", tmp_path / "t.csv", tmp_path).landmark_names == names
    translated = dict(zip(LANDMARKS, names, strict=True))
    expected = {name: {translated[m]: p for m, p in points.items()} for name, points in truth.items()}
    assert_same(points_of(tmp_path), expected)


@pytest.mark.parametrize("landmark", ["landmark", "label", "point", "Keypoint", "name"])
def test_spellings_of_long_tables(landmark, images, truth, tmp_path):
    rows = [
        {"image": Path(name).stem, landmark: m, "x": x, "y": y} for name, p in truth.items() for m, (x, y) in p.items()
    ]
    pd.DataFrame(rows).assign(scanner="A", confidence=range(31)).to_csv(tmp_path / "t.csv", index=False)
    report = bring("csv", tmp_path / "t.csv", tmp_path)
    assert_same(points_of(tmp_path), truth)
    assert report.extra_columns == ("scanner",)
    assert "columns that differ between the points of an image left out: confidence" in report.notes
    assert table_of(tmp_path)[0]["scanner"] == "A"


@pytest.mark.parametrize(
    "heads",
    [
        *(("width", "height"), ("image_width", "image_height"), ("w", "h"), ("orig_width", "orig_height")),
        *(("img_w", "img_h"), ("Original Width", "Original Height"), ("imageWidth", "imageHeight")),
    ],
)
def test_spellings_of_stated_sizes(heads, images, truth, tmp_path):
    table = frame(truth)
    table[heads[0]], table[heads[1]] = 80, 120
    table.to_csv(tmp_path / "t.csv", index=False)
    refused("it states 80 x 120 px for x_1.png", "csv", tmp_path / "t.csv", tmp_path)
    assert bring("csv", tmp_path / "t.csv", tmp_path, scale=1).extra_columns == ()
    assert_same(points_of(tmp_path), truth)


def test_further_columns_are_kept_and_a_split_column_takes_the_place_of_counts(images, truth, tmp_path):
    table = frame(truth)
    table.insert(1, "patient", [f"P{i}, left" for i in range(8)])
    table["split"] = ["Train"] * 4 + ["validation"] * 2 + ["test"] * 2
    table["spacing_x"], table["spacing_y"], table["x-ray date"] = 0.1, 0.2, "2020"
    table.to_csv(tmp_path / "t.csv", index=False)
    bring("csv", tmp_path / "t.csv", tmp_path)
    rows = table_of(tmp_path)
    assert list(rows[0])[:6] == ["image", "patient", "spacing_x", "spacing_y", "x-ray date", "split"]
    assert [row["patient"] for row in rows] == [f"P{i}, left" for i in range(8)]
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert "splits" not in yaml.safe_load((tmp_path / "data" / "mine" / "dataset.yaml").read_text())


def test_a_split_column_is_accepted_and_counts_may_take_its_place(images, truth, tmp_path):
    frame(truth).assign(split=["train"] * 5 + ["val", "val", "test"]).to_csv(tmp_path / "t.csv", index=False)
    bring("csv", tmp_path / "t.csv", tmp_path)
    info = require_dataset("mine", tmp_path / "data")
    assert (info.of(None).train, info.of(None).val, info.of(None).test) == (5, 2, 1)
    shutil.rmtree(tmp_path / "data")
    bring("csv", tmp_path / "t.csv", tmp_path, splits="2,3")
    info = require_dataset("mine", tmp_path / "data")
    assert (info.of(None).train, info.of(None).val, info.of(None).test) == (2, 3, 3)
    shutil.rmtree(tmp_path / "data")
    frame(truth).assign(split="train").to_csv(tmp_path / "t.csv", index=False)
    refused("it gives none to val; complete it, or give --splits TRAIN,VAL", "csv", tmp_path / "t.csv", tmp_path)


def test_several_points_of_a_cvat_label_are_numbered_and_skeletons_told_apart(images, tmp_path):
    skeletons = "".join(
        f'<skeleton label="{side}"><points label="1" outside="0" points="{x},8.5"/></skeleton>'
        for side, x in (("left", 3.5), ("right", 4.5))
    )
    rows = [
        f'<image id="{i}" name="{name}"><points label="jaw" points="1.5,2.5;5.5,6.5"/>{skeletons}</image>'
        for i, name in enumerate(IMAGES[:3])
    ]
    (tmp_path / "a.xml").write_text(f"<annotations>{''.join(rows)}</annotations>")
    bring("cvat", tmp_path / "a.xml", tmp_path)
    expected = {"jaw_0": (1, 2), "jaw_1": (5, 6), "left_1": (3, 8), "right_1": (4, 8)}
    assert_same(points_of(tmp_path), dict.fromkeys(IMAGES[:3], expected))


def test_slicer_positions_are_divided_by_the_spacing(images, truth, tmp_path):
    bring("slicer", as_slicer(tmp_path, truth, spacing=0.5), tmp_path, slicer_spacing="0.5")
    assert_same(points_of(tmp_path), truth)


def test_slicer_labels_lose_the_name_of_their_list(images, truth, tmp_path):
    named = {
        name: {f"{Path(name).stem}-{index}": point for index, point in enumerate(points.values(), 1)}
        for name, points in truth.items()
    }
    assert bring("slicer", as_slicer(tmp_path, named), tmp_path).landmark_names == ("1", "2", "3", "4")


MISTAKES = {
    "coco": {
        "[]": "must be",
        '{"images": [], "categories": [], "annotations": []}': "must have annotations with keypoints",
        "{": "must be JSON",
        '{"images": [{"id": 1}], "categories": [], "annotations": []}': "images[0].file_name is required",
    },
    "labelme": {"[]": "must hold JSON files of labelme"},
    "cvat": {
        "<annotations><track/></annotations>": "found 1 track; export as 'CVAT for images 1.1'",
        "<a>": "must be XML",
    },
    "labelstudio": {'[{"image": "a.png", "kp": []}]': "export as 'JSON', not 'JSON-MIN'"},
    "slicer": {'{"markups": [{"coordinateSystem": "IJK"}]}': "must be LPS or RAS; got 'IJK'"},
    "csv": {
        "image\n": "it has 1 lines",
        "a,b\n1,2\n": "a column must name the images",
        "image,b\n1,2\n": "points must stand in columns",
        "image,a_x,b_y\nx_1.png,1,2\n": "landmark 'a' needs columns x and y; it has 'a_x' alone",
        "image,x_1,y_1,x_2\nx_1.png,1,2,3\n": "landmark '2' needs columns x and y; it has 'x_2' alone",
        "image,x_a,y_a,x_b\nx_1.png,1,2,3\n": "landmark 'b' needs columns x and y; it has 'x_b' alone",
        "image,a_x,a_y\nx_1.png,1,2\nx_1.png,1,2\n": "image 'x_1.png' already has a row",
        "image,label,x,y\nx_1.png,a,1,2\nx_1.png,a,1,2\n": "'a' stands twice",
        "image,a_x,a_y\nx_1.png,1,b\n": "t:2: column a_y must be a number; got 'b'",
        "image,x0,y0,split\nx_1.png,1,2,trian\n": "got 'trian' (did you mean 'train'?)",
        "image,x0,y0\nx_1.png,1,2\n": "at least 3 images must be annotated, one for each split; found 1",
    },
}


@pytest.mark.parametrize(("format_name", "text"), [(name, text) for name, texts in MISTAKES.items() for text in texts])
def test_files_that_are_no_export_are_refused(format_name, text, images, tmp_path):
    (tmp_path / "t").write_text(text)
    refused(MISTAKES[format_name][text], format_name, tmp_path / "t", tmp_path)
    assert not (tmp_path / "data").exists()


def test_two_objects_with_the_same_landmark_are_refused(images, truth, tmp_path):
    source = as_coco(tmp_path, truth)
    content = json.loads(source.read_text())
    content["annotations"].append(content["annotations"][0])
    source.write_text(json.dumps(content))
    refused("'nasion' stands twice", "coco", source, tmp_path)


def test_two_annotations_of_a_task_are_refused(images, truth, tmp_path):
    source = as_labelstudio(tmp_path, truth)
    source.write_text(source.read_text().replace('"was_cancelled": true', '"was_cancelled": false'))
    refused("every image must have one annotation; got 2", "labelstudio", source, tmp_path)


# --- the folder -------------------------------------------------------------------------------------


def test_the_command_says_what_it_found_and_what_comes_next(ablate, images, truth, tmp_path):
    source, data = as_csv(tmp_path, truth), tmp_path / "data"
    line = (
        "data",
        "import",
        "csv",
        source,
        "--out",
        "mine",
        "--data",
        data,
        "--images",
        images,
        "--mm-per-pixel",
        "0.1",
    )
    code, out, err = ablate(*line, "--dry-run")
    assert (code, err) == (0, "")
    assert not data.exists()
    assert f"nothing is written; it would go to {data}/mine\n" in out
    expected = f"""\
export         {source} (csv)
images         8: 8 annotated, 0 without annotation
landmarks      4: nasion, p2, p10, sella
not annotated  1
image width    40 px
image height   60 px
points         (0, 0) is the centre of the top-left pixel; taken as they are
splits         train 5, val 1, test 2, by sorted name (60 % and 15 %, chosen by the import)
unit           mm, 0.1 in each pixel
written to {data}/mine
ablate data check mine --data {data}
"""
    assert ablate(*line) == (0, expected, "")
    assert (
        (data / "mine" / "dataset.yaml").read_text()
        == """\
# Imported from points.csv (csv)
unit: mm
mm_per_pixel: 0.1
# Chosen by the import: 60 % train, 15 % val, the rest test. Change the numbers as you need them.
splits: {train: 5, val: 1}  # by sorted name; the rest, 2, is test
landmark_names: ["nasion", "p2", "p10", "sella"]
"""
    )
    assert ablate("data", "check", "mine", "--data", data)[0] == 0
    code, out, err = ablate(*line)
    assert (code, out) == (2, "")
    assert err == (
        f"ablate: --out must name a folder that does not exist or is empty; {data}/mine exists; give another name\n"
    )


def test_values_of_options_come_from_the_command_line(ablate, images, truth, tmp_path):
    truth = {name: {m: (x * 0.9 + 1, y * 0.9 + 1) for m, (x, y) in points.items()} for name, points in truth.items()}
    truth["x_3.png"]["p10"] = (-1.0, -1.0)
    source = as_csv(tmp_path, {name: {m: (y, x) for m, (x, y) in points.items()} for name, points in truth.items()})
    line = ("data", "import", "csv", source, "--out", "mine", "--data", tmp_path / "data", "--images", images)
    assert ablate(*line, "--missing=-1", "--swap-xy", "--splits", "3,2", "--origin", "corner")[0] == 0
    info = require_dataset("mine", tmp_path / "data")
    assert (info.of(None).train, info.of(None).val, info.of(None).test) == (3, 2, 3)
    x, y = truth["x_1.png"]["sella"]
    assert points_of(tmp_path)["x_1.png"]["sella"] == pytest.approx((x - 0.5, y - 0.5), abs=1e-6)


def test_an_empty_folder_is_filled(images, truth, tmp_path):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    bring("csv", as_csv(tmp_path, truth), tmp_path)
    assert require_dataset("mine", tmp_path / "data").of(None).train == 5


def new_dataset(folder, content):
    """Return three images to be written, the last of which calls `content`."""
    images = [ImageFile(name, (WIDTH, HEIGHT), folder / name) for name in IMAGES[:2]]
    return NewDataset(
        images=[*images, ImageFile("z.png", (WIDTH, HEIGHT), None, content)],
        names=IMAGES[:2],
        landmark_names=("sella",),
        points_NK2=np.zeros((2, 1, 2)),
        extra={},
        bare={},
        split=None,
        counts=(1, 1, 1),
        counts_chosen=True,
        mm_per_pixel=None,
        source="test",
    )


@pytest.mark.parametrize("error", [InputError("damaged"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing(error, images, tmp_path):
    def content():
        (temporary,) = (tmp_path / "data").iterdir()
        assert len(list((temporary / "images").iterdir())) == 2
        raise error

    with pytest.raises(type(error)):
        write_dataset(new_dataset(images, content), tmp_path / "data" / "mine")
    assert list((tmp_path / "data").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_import import new_dataset, write_dataset
write_dataset(new_dataset(Path(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)), Path(sys.argv[3]))
"""


def test_a_process_that_is_killed_while_writing_leaves_no_data_set(images, tmp_path):
    target = tmp_path / "data" / "mine"
    child = subprocess.run([sys.executable, "-c", KILLED, Path(__file__).parent, images, target], check=False)
    assert child.returncode == -signal.SIGKILL
    assert not target.exists()
    assert dataset_names(tmp_path / "data") == ["chest", "cephalo", "hand", "synthetic"]
    write_dataset(new_dataset(images, lambda: b""), target)
    assert (target / "dataset.yaml").exists()


def test_a_folder_that_cannot_be_written_is_named(images, truth, tmp_path):
    source = as_csv(tmp_path, truth)
    with pytest.raises(InputError, match=r"must be a folder that can be written; File name too long"):
        import_dataset("csv", source, out="n" * 250, data_dir=tmp_path / "data", options=options(images=images))
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"origin": "center"}, "--origin must be one of corner, centre; got 'center' (did you mean 'centre'?)"),
        ({"splits": "70"}, "--splits must be the numbers of training and validation images, such as 70,10; got '70'"),
        ({"splits": "7,1"}, "--splits must leave at least one image to test; got 7,1 of 8 annotated images"),
        ({"missing": ["x"]}, "--missing must be a number, nan or none; got 'x'"),
        ({"scale": 0.0}, "--scale must be a number above 0; got 0"),
        ({"scale": 2.0, "rescale": True}, "--rescale and --scale must not be given together"),
        ({"slicer_spacing": "0"}, "--slicer-spacing must be millimetres per pixel"),
        ({"mm_per_pixel": -1.0}, "--mm-per-pixel must be a number above 0; got -1"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(given, message, images, truth, tmp_path):
    refused(message, "csv", as_csv(tmp_path, truth), tmp_path, **given)


@pytest.mark.parametrize("out", ["", "a/b", ".hidden", ".."])
def test_the_new_name_is_that_of_a_folder(out, images, truth, tmp_path):
    with pytest.raises(InputError, match="--out must be the name of a folder"):
        import_dataset("csv", as_csv(tmp_path, truth), out=out, data_dir=tmp_path)


def test_an_unknown_format_an_absent_export_and_an_address_are_refused(tmp_path):
    refused(
        "FORMAT must be one of coco, labelme, cvat, labelstudio, slicer, csv; got 'labelmee' (did you mean",
        "labelmee",
        "a",
        tmp_path,
    )
    refused("a.csv does not exist", "csv", tmp_path / "a.csv", tmp_path)
    refused("is a folder; give the file in it", "coco", tmp_path, tmp_path)
    with pytest.raises(InputError, match="--data must be a folder of this machine to import into"):
        import_dataset("csv", tmp_path / "a.csv", out="mine", data_dir="s3://bucket/data")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[a]", "dataset.yaml:3: landmark_names: must have as many names as landmarks.csv has landmarks, 4; got 1"),
        ("[a, b, c, a]", "landmark_names must be different; got 'a' twice; rename one"),
        ("[a, b, c, '']", "landmark_names must not be empty"),
        ("[a, b, c, 4]", "must be text; got 4"),
    ],
)
def test_landmark_names_are_as_many_as_landmarks_and_different(names, message, images, truth, tmp_path):
    bring("csv", as_csv(tmp_path, truth), tmp_path)
    (tmp_path / "data" / "mine" / "dataset.yaml").write_text(
        f"unit: px\nsplits: {{train: 5, val: 1}}\nlandmark_names: {names}\n"
    )
    with pytest.raises(InputError) as caught:
        require_dataset("mine", tmp_path / "data")
    assert message in str(caught.value)


def test_data_sets_without_names_have_none(tmp_path):
    assert require_dataset("synthetic", tmp_path).landmark_names == ()
    assert all(layout.landmark_names == () for layout in DATASETS.values())


def test_a_column_of_spacings_is_the_scale_and_images_without_a_point_keep_their_columns(images, truth, tmp_path):
    table = pd.read_csv(as_csv(tmp_path, truth), index_col=0)
    table.loc[table["image"] == "x_8.png", [name for name in table if name != "image"]] = np.nan
    table["spacing"] = [0.1 + 0.01 * index for index in range(len(table))]
    table["patient"] = [f"p{index // 2}" for index in range(len(table))]
    path = tmp_path / "with_spacing.csv"
    table.to_csv(path, index=False)
    refused(
        "--mm-per-pixel must be left out where the export has the millimetres per pixel of each image; got 0.1 and "
        f"the column spacing in {path}; remove one of the two",
        *("csv", path, tmp_path),
        images=images,
        mm_per_pixel=0.1,
    )
    report = bring("csv", path, tmp_path, images=images)
    assert report.unit == "mm, by the column spacing"
    records = read_records("mine", tmp_path / "data")
    assert [record.unit_per_pixel[0] for record in records] == pytest.approx([0.1 + 0.01 * i for i in range(7)])
    assert [record.columns["patient"] for record in records] == ["p0", "p0", "p1", "p1", "p2", "p2", "p3"]
    last = (tmp_path / "data" / "mine" / "landmarks.csv").read_text().splitlines()[-1]
    assert last == "x_8.png,0.17,p3,,,,,,,,"
