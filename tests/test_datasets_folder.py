"""A user's own folder: what it may hold, and how each mistake is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_trial

from ablate.api import run
from ablate.datasets import load_dataset, read_records, require_dataset
from ablate.errors import InputError
from ablate.space import Grid

SOUND_TABLE = """image,x0,y0,x1,y1
a.png,3,4,0,0
b.png,1.5,2.5,,
c.png,1,1,4,5
d.png,9,1,9,9
"""


def write(
    root: Path,
    description: str = "unit: px\nsplits: {train: 2, val: 1}\n",
    table: str = SOUND_TABLE,
    names: tuple[str, ...] = ("a.png", "b.png", "c.png", "d.png"),
    name: str = "mine",
) -> Path:
    folder = root / name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(names):
        noise = np.random.default_rng(index).integers(0, 256, (10, 20), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / file)
    (folder / "dataset.yaml").write_text(description)
    (folder / "landmarks.csv").write_text(table)
    return folder


def test_a_sound_folder_is_loaded(tmp_path: Path) -> None:
    write(tmp_path)
    info = require_dataset("mine", tmp_path)
    assert (info.name, info.unit, info.num_landmarks, info.of(None).train, info.of(None).val, info.of(None).test) == (
        "mine",
        "px",
        2,
        2,
        1,
        1,
    )
    assert info.sdr_thresholds == (3, 6, 9)
    dataset = load_dataset("mine", tmp_path, 16)
    assert dataset.paper is None
    assert dataset.train.names == ("a.png", "b.png")
    np.testing.assert_array_equal(dataset.train.points_NK2, [[[3, 4], [0, 0]], [[1.5, 2.5], [np.nan, np.nan]]])
    np.testing.assert_array_equal(dataset.train.sizes_N2, [[20, 10]] * 2)
    np.testing.assert_array_equal(dataset.train.unit_per_pixel_N2, 1)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("unit: mm\nmm_per_pixel: 0.143", (0.143, 0.143)),
        ("unit: mm\nmm_per_pixel: 1", (1, 1)),
        ("unit: mm\nfilm_mm: [30, 40]", (1.5, 4)),  # 20 x 10 px
        ("unit: mm\nreference: {landmarks: [0, 1], mm: 50}", (10, 10)),  # (3, 4) to (0, 0): 5 px
        ("unit: px\npx_frame: [256, 256]", (12.8, 25.6)),
        ("unit: px", (1, 1)),
    ],
)
def test_scales_worked_by_hand(scale: str, expected: tuple[float, float], tmp_path: Path) -> None:
    table = SOUND_TABLE.replace("1.5,2.5,,", "1.5,2.5,9,9")
    write(tmp_path, f"{scale}\nsplits: {{train: 1, val: 1}}\n", table)
    assert read_records("mine", tmp_path)[0].unit_per_pixel == pytest.approx(expected)


def test_mm_thresholds_and_given_thresholds(tmp_path: Path) -> None:
    write(tmp_path, "name: mine\nunit: mm\nmm_per_pixel: 0.1\nsplits: {train: 2, val: 1, test: 1}\n")
    assert require_dataset("mine", tmp_path).sdr_thresholds == (2, 2.5, 3, 4)
    write(tmp_path, "unit: mm\nmm_per_pixel: 0.1\nsdr_thresholds: [1, 2e0]\nsplits: {train: 2, val: 1}\n")
    assert require_dataset("mine", tmp_path).sdr_thresholds == (1, 2)


def test_a_split_column_may_stand_anywhere_and_each_split_keeps_the_order_of_names(tmp_path: Path) -> None:
    table = "image,split,x0,y0\nd.png,train,1,1\nb.png,test,2,2\na.png,train,3,3\nc.png,val,4,4\n"
    write(tmp_path, "unit: px\n", table)
    dataset = load_dataset("mine", tmp_path, 16)
    assert (dataset.train.names, dataset.val.names, dataset.test.names) == (("a.png", "d.png"), ("c.png",), ("b.png",))
    np.testing.assert_array_equal(dataset.train.points_NK2[:, 0], [[3, 3], [1, 1]])


def test_byte_order_mark_windows_line_ends_blank_lines_and_spaces_are_fine(tmp_path: Path) -> None:
    folder = write(tmp_path)
    text = "\ufeff" + SOUND_TABLE.replace("\n", "\r\n").replace("3,4", " 3 , 4") + "\r\n\r\n"
    (folder / "landmarks.csv").write_bytes(text.encode())
    np.testing.assert_array_equal(read_records("mine", tmp_path)[0].points_K2, [[3, 4], [0, 0]])


def test_a_folder_with_a_description_comes_before_the_built_in_layout(tmp_path: Path) -> None:
    for name in ("cephalo", "synthetic"):
        write(tmp_path, name=name)
        assert require_dataset(name, tmp_path).num_landmarks == 2
        assert load_dataset(name, tmp_path, 16).unit == "px"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".PNG", ".JPG"])
def test_every_kind_of_image_file_is_taken(suffix: str, tmp_path: Path) -> None:
    names = tuple(f"{stem}{suffix}" for stem in "abcd")
    write(tmp_path, table=SOUND_TABLE.replace(".png", suffix), names=names)
    assert load_dataset("mine", tmp_path, 16).train.names == names[:2]


PX = "unit: px\nsplits: {train: 2, val: 1}\n"


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("", r"dataset.yaml: must be a mapping"),
        ("unit: [", r"dataset.yaml:\d+: not valid YAML"),
        ("splits: {train: 2, val: 1}\n", r"dataset.yaml: unit: unit is required: mm or px"),
        ("unit: cm\n", r"dataset.yaml:1: unit: unit must be one of mm, px; got 'cm'"),
        ("unit: mmm\n", r"unit must be one of mm, px; got 'mmm' \(did you mean 'mm'\?\)"),
        (PX + "px_fram: [1, 2]\n", r"dataset.yaml:3: px_fram: unknown key 'px_fram'; known: .*did you mean 'px_frame'"),
        (PX + "splits: {train: 1}\n", r"dataset.yaml:3: .*'splits' twice"),
        (
            "unit: px\nsplits: {train: 2}\n",
            r"dataset.yaml:2: splits: .*val is required; write, for example, {train: 130",
        ),
        ("unit: px\nsplits: {train: 2, vall: 1}\n", r"splits.val: splits.val is required|unknown key 'vall'"),
        (
            "unit: px\nsplits: {train: two, val: 1}\n",
            r"yaml:2: splits.train: .*must be a number of images, such as 20, or a share .*; got 'two'",
        ),
        ("unit: px\nsplits: {train: 0, val: 1}\n", r"splits.train: .*must be a number of images.*; got 0"),
        ("unit: px\nsplits: {train: 3, val: 1}\n", r"need at least 5 annotated images; found 4; change splits in"),
        ("unit: px\nsplits: {train: 2, val: 1, test: 2}\n", r"need exactly 5 annotated images; found 4"),
        ("unit: px\nsplits: {train: 1, val: 1, test: 1}\n", r"need exactly 3 annotated images; found 4"),
        ("unit: px\n", r"dataset.yaml: splits is required, for example .* or give landmarks.csv a column split"),
        (
            "unit: mm\n" + PX[9:],
            r"yaml:1: unit: mm needs one of mm_per_pixel, film_mm, reference, a column spacing in landmarks.csv",
        ),
        ("unit: mm\nmm_per_pixel: 1\nfilm_mm: [1, 2]\n" + PX[9:], r"got mm_per_pixel and film_mm"),
        ("unit: px\nmm_per_pixel: 1\n" + PX[9:], r"dataset.yaml:2: mm_per_pixel: mm_per_pixel needs unit mm"),
        ("unit: mm\nmm_per_pixel: 1\npx_frame: [1, 2]\n" + PX[9:], r"dataset.yaml:3: px_frame: px_frame needs unit px"),
        ("unit: mm\nmm_per_pixel: 0\n" + PX[9:], r"mm_per_pixel: mm_per_pixel must be above 0; got 0"),
        ("unit: mm\nmm_per_pixel: yes\n" + PX[9:], r"mm_per_pixel must be a number; got True"),
        ("unit: mm\nfilm_mm: [1]\n" + PX[9:], r"film_mm\[1\] is required"),
        ("unit: mm\nfilm_mm: 3\n" + PX[9:], r"film_mm: film_mm must be a list; got 3"),
        (PX + "sdr_thresholds: [3, 2]\n", r"dataset.yaml:3: sdr_thresholds: .*must be ascending; got \[3.0, 2.0\]"),
        (PX + "sdr_thresholds: []\n", r"sdr_thresholds must have at least 1 item; got \[\]"),
        (PX + "name: other\n", r"dataset.yaml:3: name: must be the folder's name 'mine'; got 'other'"),
        (
            "unit: mm\nreference: {landmarks: [0, 2], mm: 5}\n" + PX[9:],
            r"reference.landmarks: must be between 0 and 1, "
            r"the landmarks of landmarks.csv; got 2",
        ),
        ("unit: mm\nreference: {landmarks: [1, 1], mm: 5}\n" + PX[9:], r"must be two different landmarks"),
        (
            "unit: mm\nreference: {landmarks: [0, 1], mm: 5}\n" + PX[9:],
            r"landmarks.csv:3: landmarks 0 and 1 must "
            r"both be annotated and apart.*\(image b.png\)",
        ),
    ],
)
def test_mistakes_in_the_description_are_named(description: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, description)
    with pytest.raises(InputError, match=message) as caught:
        require_dataset("mine", tmp_path)
    assert "\n" not in str(caught.value)


HEAD = "image,x0,y0,x1,y1\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", r"landmarks.csv: must have a header image,x0,y0,x1,y1,... and a row for every image; it is empty"),
        ("a.png,3,4,0,0\n", r"landmarks.csv:1: column 1 must be 'image'; got 'a.png'"),
        ("image,x0,y0,x2,y2\n", r"landmarks.csv:1: column 4 must be 'x1'; got 'x2'"),
        ("image,x0,y0,x1\n", r"landmarks.csv:1: column 5 must be 'y1'; got the end of the line"),
        ("image\n", r"landmarks.csv:1: column 2 must be 'x0'; got the end of the line"),
        ("image,y0,x0\n", r"landmarks.csv:1: column 2 must be 'x0'; got 'y0'"),
        ("image,x0,y0,splt\n", r"column 4 must not be 'splt' \(did you mean 'split'\?\)"),
        ("image,x0,y0,,x1,y1\n", r"column 4 must have a name"),
        ("image,x0,y0,x0,y0\n", r"column x0 must stand once; got 2"),
        ("image;x0;y0\n", r"landmarks.csv:1: columns must be separated by commas"),
        (SOUND_TABLE.replace("3,4,0,0", "3,4"), r":2: must have 5 columns .*got 3, too few \(image a.png\)"),
        (SOUND_TABLE.replace("3,4,0,0", "3,4,0,0,1"), r"landmarks.csv:2: must have 5 columns .*got 6, too many"),
        (SOUND_TABLE.replace("3,4,0,0", "3,,0,0"), r":2: column y0 must not be empty when its partner is '3'"),
        (SOUND_TABLE.replace("3,4,0,0", ",4,0,0"), r"landmarks.csv:2: column x0 must not be empty"),
        (SOUND_TABLE.replace("3,4,0,0", "3,4,0,O"), r"landmarks.csv:2: column y1 must be a number of pixels; got 'O'"),
        (SOUND_TABLE.replace("3,4,0,0", "nan,nan,0,0"), r"column x0 must be a number of pixels; got 'nan'; .*empty"),
        (SOUND_TABLE.replace("3,4,0,0", "inf,4,0,0"), r"column x0 must be a number of pixels; got 'inf'"),
        (SOUND_TABLE + "a.png,1,1,1,1\n", r"landmarks.csv:6: image 'a.png' already has a row in line 2"),
        (SOUND_TABLE + "e.png,1,1,1,1\n", r"landmarks.csv:6: image 'e.png' is not in .*images.*; add the image or"),
        (SOUND_TABLE.replace("d.png", "d.jpg"), r":5: image 'd.jpg' is not in .*images.*did you mean 'd.png'"),
        (SOUND_TABLE.replace("d.png,9,1,9,9\n", ""), r"need at least 4 annotated images; found 3"),
        (SOUND_TABLE.replace("d.png", ""), r"landmarks.csv:5: column image must be the name of a file"),
        (SOUND_TABLE.replace("3,4", '"3,4'), r"landmarks.csv:\d+: must be comma-separated values"),
        (SOUND_TABLE.replace("y1\n", "y1,split\n"), r"dataset.yaml:2: splits: must stand in one place"),
    ],
)
def test_mistakes_in_the_table_are_named_by_line_and_column(table: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, table=table)
    with pytest.raises(InputError, match=message) as caught:
        require_dataset("mine", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_misspelt_split_and_a_split_without_images_are_named(tmp_path: Path) -> None:
    table = "image,x0,y0,split\na.png,1,1,train\nb.png,1,1,{}\nc.png,1,1,test\nd.png,1,1,test\n"
    write(tmp_path, "unit: px\n", table.format("vall"))
    with pytest.raises(
        InputError,
        match=r"landmarks.csv:3: column split must be one of train, val, test, unlabelled; got 'vall' "
        r"\(did you mean 'val'\?\) \(image b.png\)",
    ):
        require_dataset("mine", tmp_path)
    write(tmp_path, "unit: px\n", table.format("train"))
    with pytest.raises(InputError, match="split val must have at least one image; the split column gives none"):
        require_dataset("mine", tmp_path)


def test_an_empty_or_missing_images_folder_and_a_missing_table_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, names=())
    with pytest.raises(InputError, match=r"mine/images: must hold at least one image .*found none"):
        require_dataset("mine", tmp_path)
    (folder / "images").rmdir()
    with pytest.raises(InputError, match=r"mine/images: folder not found"):
        require_dataset("mine", tmp_path)
    (folder / "landmarks.csv").unlink()
    with pytest.raises(InputError, match=r"landmarks.csv: must be a readable file; No such file"):
        require_dataset("mine", tmp_path)
    (folder / "dataset.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"dataset.yaml: must be UTF-8 text"):
        require_dataset("mine", tmp_path)


def test_a_file_that_is_no_image_fails_at_its_header_and_a_truncated_one_when_decoded(tmp_path: Path) -> None:
    folder = write(tmp_path)
    path = folder / "images" / "c.png"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    assert require_dataset("mine", tmp_path).of(None).train == 2
    with pytest.raises(InputError, match=r"images/c.png: must be a complete image file; it cannot be decoded"):
        load_dataset("mine", tmp_path, 16)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"images/c.png: must be a complete image file"):
        require_dataset("mine", tmp_path)


def test_other_files_beside_the_images_are_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "images" / "Thumbs.db").write_text("x")
    (folder / "images" / ".DS_Store").write_text("x")
    warnings = require_dataset("mine", tmp_path).warnings
    assert len(warnings) == 1
    assert "1 files are not images and are left out, for example Thumbs.db" in warnings[0]


# --- which folder -----------------------------------------------------------------------------------

SPELLINGS = [
    (None, None, "data"),
    (None, "", "data"),
    ("", None, "data"),
    ("", "", "data"),
    ("", "~/sets", "sets"),
    (None, "~/sets", "sets"),
    (None, "sets", "sets"),
    ("~/sets", None, "sets"),
    ("sets", "", "sets"),
    ("{tmp}/sets", "~/data", "sets"),
    ("file://{tmp}/sets", None, "sets"),
]
"""What `--data` and `ABLATE_DATA` say, and the folder that is meant, below the home and working folder `{tmp}`."""


@pytest.mark.parametrize(("given", "variable", "meant"), SPELLINGS)
def test_every_way_to_name_the_data_folder_means_the_same_to_functions_commands_and_runs(
    given: str | None,
    variable: str | None,
    meant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ablate: Callable[..., tuple[int | str, str, str]],
) -> None:
    for place in ("data", "sets"):
        write(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ABLATE_DATA", raising=False)
    if variable is not None:
        monkeypatch.setenv("ABLATE_DATA", variable)
    given = None if given is None else given.format(tmp=tmp_path)
    expected = tmp_path / meant

    assert Path(str(require_dataset("mine", given).folder)).absolute() == expected / "mine"
    code, out, err = ablate("data", "check", "mine", *(() if given is None else ("--data", given)))
    assert (code, err) == (0, "")
    assert f"mine ({expected}/mine)" in out
    trial = tiny_trial(dataset="absent")
    with pytest.raises(InputError, match=rf"in {expected} \(found: mine\); got 'absent'"):
        run(Grid("tiny", "", (trial,), {}), out=tmp_path / "run", data=given)


@pytest.mark.parametrize("given", ["s3:/bucket/data", Path("s3://bucket/data")])
def test_an_address_that_lost_a_slash_is_refused_by_commands_and_runs_too(
    given: Path | str, tmp_path: Path, ablate: Callable[..., tuple[int | str, str, str]]
) -> None:
    rule = "--data must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; got 's3:/bucket/data'"
    code, _, err = ablate("data", "check", "mine", "--data", given)
    assert (code, err) == (2, f"ablate: {rule}\n")
    with pytest.raises(InputError, match=rule):
        run(Grid("tiny", "", (tiny_trial(),), {}), out=tmp_path / "run", data=given)
