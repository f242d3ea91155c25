"""How files become grey images of the network's size."""

import builtins
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablate.datasets.images import normalise, prepare, read_grey, read_size, resize
from ablate.errors import InputError

RAMP = np.arange(600, dtype=np.uint16).reshape(20, 30) * 3 + 20_000  # 12 bits of contrast far from 0 and 65 535


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF"])
def test_sixteen_bit_files_keep_their_contrast(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(RAMP).save(path)
    np.testing.assert_array_equal(read_grey(path), RAMP)
    assert read_size(path) == (30, 20)
    prepared = normalise(read_grey(path))
    assert (prepared.min(), prepared.max()) == (0, 255)
    assert len(np.unique(prepared)) == 256
    np.testing.assert_array_equal(prepared, np.rint((RAMP - 20_000.0) * 255 / (3 * 599)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I", "F"])
def test_every_mode_becomes_the_same_grey(mode: str, tmp_path: Path) -> None:
    grey = np.zeros((8, 6), np.uint8)
    grey[2:5, 1:4] = 255
    path = tmp_path / ("a.png" if mode in ("1", "L", "P", "RGB", "RGBA", "LA") else "a.tif")
    image = Image.fromarray(grey)
    if mode == "P":  # indices fall where grey rises
        image = Image.fromarray(255 - grey)
        image.putpalette([value for index in range(256) for value in [255 - index] * 3])
    else:
        image = image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)
    image.save(path)
    with Image.open(path) as again:
        assert again.mode == mode
    np.testing.assert_array_equal(normalise(read_grey(path)), grey)


def test_colour_is_reduced_to_luminance(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    assert read_grey(tmp_path / "red.png")[0, 0] == 76  # 0.299 * 255, ITU-R 601


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns of a TIFF's cut head before it fails
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.97])
def test_a_truncated_file_is_an_error_that_names_it(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rf"a\{suffix}: must be a complete image file; it cannot be decoded"):
        read_grey(path)


def test_a_corrupt_png_and_a_text_file_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.png: must be a complete image file"):
        read_grey(path)
    path.write_text("not a picture")
    for read in (read_grey, read_size):
        with pytest.raises(InputError, match=r"a.png: must be a complete image file"):
            read(path)
    with pytest.raises(InputError, match=r"absent.png"):
        read_size(tmp_path / "absent.png")


def test_a_file_of_several_pictures_and_one_with_nan_are_errors(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((4, 4), np.uint8))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
    with pytest.raises(InputError, match=r"pages.tif: must hold one picture; got 3"):
        read_grey(tmp_path / "pages.tif")
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(InputError, match=r"nan.tif: grey values must be finite"):
        read_grey(tmp_path / "nan.tif")


def test_an_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_size(tmp_path / "a.jpg") == (30, 20)
    assert read_grey(tmp_path / "a.jpg").shape == (20, 30)


def test_shrinking_averages_areas() -> None:
    grey = np.array([[0, 2, 10, 30], [4, 6, 50, 70]], np.float32)
    np.testing.assert_allclose(resize(grey, 2, 1), [[3, 40]])
    checkers = np.indices((60, 90)).sum(axis=0).astype(np.float32) % 2
    np.testing.assert_allclose(resize(checkers, 15, 10), 0.5, atol=1e-6)  # no aliasing


def test_growing_interpolates_and_an_image_without_contrast_is_black() -> None:
    np.testing.assert_allclose(resize(np.array([[0, 4]], np.float32), 4, 1), [[0, 1, 3, 4]])
    assert normalise(np.full((3, 3), 9, np.float32)).tolist() == [[0] * 3] * 3


def test_resizing_a_non_square_image_moves_points_by_the_documented_rule() -> None:
    grey = np.zeros((60, 120), np.float32)
    for x, y in ((31, 7), (90, 44)):
        grey[:] = 0
        grey[y, x] = 1
        small = resize(grey, 48, 48).astype(np.float64)
        small /= small.sum()
        centre = ((small.sum(0) * np.arange(48)).sum(), (small.sum(1) * np.arange(48)).sum())
        np.testing.assert_allclose(centre, [(x + 0.5) * 48 / 120 - 0.5, (y + 0.5) * 48 / 60 - 0.5], atol=0.5)
    block = np.zeros((60, 120), np.float32)
    block[20:30, 20:40] = 1  # whole pixels of the small image: 8..16 on x, 16..24 on y
    small = resize(block, 48, 48)
    assert small[16:24, 8:16].min() == pytest.approx(1)
    assert small.sum() == pytest.approx(64)


def test_the_network_image_is_stretched_after_resizing() -> None:
    image = prepare(RAMP.astype(np.float32), 16)
    assert image.shape == (16, 16)
    assert (image.min(), image.max()) == (0, 255)


# --- DICOM ------------------------------------------------------------------------------------------


def write_dicom(path: Path, pixels: np.ndarray, interpretation: str = "MONOCHROME2", **fields: object) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = interpretation
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    for name, value in fields.items():
        setattr(file, name, value)
    file.PixelData = pixels.astype(np.uint16).tobytes()
    file.save_as(path, enforce_file_format=True)


TWELVE_BITS = np.arange(600).reshape(20, 30) * 6


def test_dicom_keeps_its_twelve_bits_and_its_size(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", TWELVE_BITS)
    assert read_size(tmp_path / "a.dcm") == (30, 20)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.dcm"), TWELVE_BITS)


def test_monochrome1_is_inverted_so_that_bone_is_bright(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", TWELVE_BITS, "MONOCHROME1")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.dcm"), TWELVE_BITS.max() - TWELVE_BITS)


def test_the_modality_transform_is_applied(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", TWELVE_BITS, RescaleSlope=-2, RescaleIntercept=100)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.dcm"), 100 - 2 * TWELVE_BITS)


def test_unusable_dicom_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, TWELVE_BITS)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"a.dcm: must be a complete image file"):
        read_grey(path)
    path.write_bytes(b"nothing")
    for read in (read_grey, read_size):
        with pytest.raises(InputError, match=r"a.dcm: must be a complete image file"):
            read(path)
    write_dicom(path, TWELVE_BITS, "PALETTE COLOR")
    with pytest.raises(InputError, match="must be MONOCHROME1 or MONOCHROME2; got PALETTE COLOR"):
        read_grey(path)
    write_dicom(path, np.stack([TWELVE_BITS, TWELVE_BITS]), NumberOfFrames=2)
    with pytest.raises(InputError, match=r"a.dcm: must hold one picture; got 2"):
        read_grey(path)


def test_dicom_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "a.dcm", TWELVE_BITS)
    find, real_import = importlib.util.find_spec, builtins.__import__
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydicom" else find(name))

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("pydicom"):
            pytest.fail("pydicom was imported")
        return real_import(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    for read in (read_size, read_grey):
        with pytest.raises(InputError, match=r"a.dcm: reading DICOM needs pydicom.*pip install 'ablate\[dicom\]'"):
            read(tmp_path / "a.dcm")
