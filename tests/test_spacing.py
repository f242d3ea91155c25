"""Millimetres per pixel of each image: a column, or what the header of a DICOM file says."""

from pathlib import Path

import numpy as np
import pytest
from test_datasets_images import TWELVE_BITS, write_dicom

from ablate.datasets import check_dataset, load_dataset, read_records
from ablate.datasets.images import Spacing, read_spacing
from ablate.errors import InputError

AT_THE_DETECTOR = ", at the detector: not corrected for magnification"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.2, 0.1]}, Spacing(0.1, 0.2, "DICOM PixelSpacing")),
        ({"PixelSpacing": [0.2, 0.1], "Modality": "DX"}, Spacing(0.1, 0.2, f"DICOM PixelSpacing{AT_THE_DETECTOR}")),
        (
            {"PixelSpacing": [0.2, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL", "Modality": "DX"},
            Spacing(0.1, 0.2, "DICOM PixelSpacing, calibrated (FIDUCIAL)"),
        ),
        (
            {"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.4, 0.4]},
            Spacing(0.1, 0.2, "DICOM PixelSpacing"),
        ),
        (
            {"ImagerPixelSpacing": [0.22, 0.11], "Modality": "CR"},
            Spacing(0.11, 0.22, f"DICOM ImagerPixelSpacing{AT_THE_DETECTOR}"),
        ),
        (
            {"ImagerPixelSpacing": [0.22, 0.11], "EstimatedRadiographicMagnificationFactor": 1.1},
            Spacing(0.1, 0.2, "DICOM ImagerPixelSpacing divided by the magnification 1.1"),
        ),
        ({"NominalScannedPixelSpacing": [0.3, 0.3]}, Spacing(0.3, 0.3, "DICOM NominalScannedPixelSpacing")),
    ],
)
def test_what_a_header_says(header: dict[str, object], expected: Spacing | None, tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", TWELVE_BITS, **header)
    found = read_spacing(tmp_path / "a.dcm")
    if expected is None or found is None:
        assert found is expected
    else:
        assert (found.x_mm, found.y_mm) == pytest.approx((expected.x_mm, expected.y_mm))
        assert found.source == expected.source


def test_a_spacing_that_is_no_length_is_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", TWELVE_BITS, PixelSpacing=[0, 0.1])
    with pytest.raises(
        InputError, match=r"a.dcm: DICOM PixelSpacing must be two numbers of millimetres greater than 0"
    ):
        read_spacing(tmp_path / "a.dcm")


def write(folder: Path, spacings: dict[str, str], description: str = "unit: mm\nsplits: {train: 2, val: 1}\n") -> Path:
    """Write the data set `mine` of four DICOM files, the first two of which have a header with a spacing."""
    images = folder / "mine" / "images"
    images.mkdir(parents=True)
    for number in range(4):
        header = {"ImagerPixelSpacing": [0.5, 0.25]} if number < 2 else {}
        write_dicom(images / f"{number}.dcm", TWELVE_BITS + number, **header)
    column = "," if spacings else ""
    rows = [f"{number}.dcm,1,2,3,4{column}{spacings.get(str(number), '')}\n" for number in range(4)]
    (folder / "mine" / "landmarks.csv").write_text(
        f"image,x0,y0,x1,y1{',spacing' if spacings else ''}\n" + "".join(rows)
    )
    (folder / "mine" / "dataset.yaml").write_text(description)
    return folder


def test_the_column_comes_before_the_header_and_errors_are_in_each_images_own_millimetres(tmp_path: Path) -> None:
    data = write(tmp_path, {"1": "0.1", "2": "0.2", "3": "0.4"})
    records = read_records("mine", data)
    assert [record.unit_per_pixel for record in records] == [(0.25, 0.5), (0.1, 0.1), (0.2, 0.2), (0.4, 0.4)]
    dataset = load_dataset("mine", data, 16)
    assert np.array_equal(dataset.train.unit_per_pixel_N2, [[0.25, 0.5], [0.1, 0.1]])
    rows = check_dataset("mine", data).rows()
    assert ("scale", "0.1 to 0.5 mm per pixel") in rows
    assert [value for what, value in rows if what == "scale from"] == [
        "DICOM ImagerPixelSpacing: 1 image",
        "column spacing: 3 images",
    ]


@pytest.mark.parametrize(
    ("spacings", "description", "message"),
    [
        (
            {"2": "0.2"},
            "unit: mm\nsplits: {train: 2, val: 1}\n",
            "landmarks.csv:5: every annotated image needs its millimetres per pixel, in column spacing or in the "
            "header of its DICOM file; image 3.dcm has neither; write the column, or mm_per_pixel in dataset.yaml if "
            "it is the same for all",
        ),
        (
            {"2": "0,2"},
            "unit: mm\nsplits: {train: 2, val: 1}\n",
            "landmarks.csv:4: must have 6 columns (2 landmarks) as the header; got 7, too many (image 2.dcm); leave "
            "both fields of a landmark empty if it is not annotated",
        ),
        (
            {"2": "-1"},
            "unit: mm\nsplits: {train: 2, val: 1}\n",
            "landmarks.csv:4: column spacing must be millimetres per pixel, a number greater than 0; got '-1'; correct "
            "it (image 2.dcm)",
        ),
        (
            {"2": "0.2"},
            "unit: mm\nmm_per_pixel: 0.1\nsplits: {train: 2, val: 1}\n",
            "dataset.yaml:2: mm_per_pixel: the scale must stand in one place; {data}/mine/landmarks.csv has a column "
            "spacing (millimetres per pixel of each image); remove one of the two",
        ),
        (
            {"2": "0.2"},
            "unit: px\nsplits: {train: 2, val: 1}\n",
            "dataset.yaml:1: unit: the scale must stand in one place; {data}/mine/landmarks.csv has a column spacing "
            "(millimetres per pixel of each image); remove one of the two",
        ),
    ],
)
def test_a_scale_that_is_missing_wrong_or_there_twice_is_refused(
    spacings: dict[str, str], description: str, message: str, tmp_path: Path
) -> None:
    data = write(tmp_path, spacings, description)
    with pytest.raises(InputError) as caught:
        load_dataset("mine", data, 16)
    assert str(caught.value) == f"{data}/mine/" + message.replace("{data}", str(data))
