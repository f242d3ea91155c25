"""Decoding of a radiograph's file to a grey image of the network's size.

The whole range of grey values counts: an image is decoded to float, resized in float and min-max
normalised before it is quantised to 8 bits, so a 16-bit image keeps its contrast. Resizing averages over
areas on an axis that shrinks (no aliasing) and interpolates linearly on one that grows; both keep
x_net = (x + 0.5) * W_net / W - 0.5. Pixels are taken as they are stored: an EXIF orientation is not
applied, because landmarks are in pixels of the file. Colour is reduced to luminance, transparency is
ignored; colour of 16 bits per channel is read with 8, as Pillow does.
"""

from __future__ import annotations

import importlib.util
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ablate.datasets.types import ByteArray, Float32Array
from ablate.errors import InputError

PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IMAGE_SUFFIXES = (*PILLOW_SUFFIXES, ".dcm")
_WHOLE_RANGE_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_EXIF_ORIENTATION = 0x0112
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_PROJECTIONS = ("CR", "DX", "RF", "RG", "XA", "PX", "IO", "MG")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def is_image(path: Path) -> bool:
    """Whether `path` is a visible file with the ending of an image that can be read."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in pixels from the file's header; raise `InputError` if it is no image."""
    if path.suffix.lower() == ".dcm":
        header = _read_dicom(path, pixels=False)
        return int(header.Columns), int(header.Rows)
    try:
        with Image.open(path) as image:
            return image.size
    except _BROKEN as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True)
class Spacing:
    """Millimetres per pixel, and the part of the DICOM header that says so."""

    x_mm: float
    y_mm: float
    source: str


def read_spacing(path: Path) -> Spacing | None:
    """Return what a DICOM header says of the size of a pixel; None for another file, or where it says nothing.

    DICOM PS3.3 10.7.1.3 and C.8.11.7: PixelSpacing of a projection is at the detector, or, with
    PixelSpacingCalibrationType, corrected for the patient. Where it is absent, ImagerPixelSpacing, at the
    detector, is divided by EstimatedRadiographicMagnificationFactor, where that is given. Then
    NominalScannedPixelSpacing, of digitised film. Each gives the distance of rows (y) first.

    Raises:
        InputError: the file cannot be read, or its numbers are no lengths.
    """
    if path.suffix.lower() != ".dcm":
        return None
    header = _read_dicom(path, pixels=False)
    name = next((name for name in _SPACINGS if header.get(name)), None)
    if name is None:
        return None
    source = f"DICOM {name}"
    factor = 1.0
    if name == "PixelSpacing" and header.get("PixelSpacingCalibrationType"):
        source += f", calibrated ({header.PixelSpacingCalibrationType})"
    elif name == "ImagerPixelSpacing" and header.get("EstimatedRadiographicMagnificationFactor"):
        factor = float(header.EstimatedRadiographicMagnificationFactor)
        source += f" divided by the magnification {factor:g}"
    elif name in ("PixelSpacing", "ImagerPixelSpacing") and header.get("Modality") in _PROJECTIONS:
        source += ", at the detector: not corrected for magnification"
    given = header[name].value
    try:
        y_mm, x_mm = (float(value) / factor for value in given)
    except (TypeError, ValueError, ZeroDivisionError):
        y_mm = x_mm = math.nan
    if not (0 < x_mm < math.inf and 0 < y_mm < math.inf):
        raise InputError(
            f"{path}: {source} must be two numbers of millimetres greater than 0; got {given}; correct the header, or "
            "write the image's column spacing in landmarks.csv"
        )
    return Spacing(x_mm, y_mm, source)


def has_orientation(path: Path) -> bool:
    """Whether the file carries an EXIF orientation, which is not applied; raises `InputError`."""
    if path.suffix.lower() == ".dcm":
        return False
    try:
        with Image.open(path) as image:
            return bool(image.getexif().get(_EXIF_ORIENTATION, 1) != 1)
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def read_grey(path: Path) -> Float32Array:
    """Decode a radiograph to (height, width) grey values in the file's own range.

    Raises `InputError` for a file that is truncated, corrupt, no image, or holds several pictures. DICOM
    follows PS3.3 C.7.6.3: MONOCHROME1 is inverted so that bone is bright; the modality transform is
    applied, the viewing window is not, since it would cut off grey values.
    """
    grey_HW = _read_dicom_grey(path) if path.suffix.lower() == ".dcm" else _read_pillow_grey(path)
    if not np.isfinite(grey_HW).all():
        raise InputError(f"{path}: grey values must be finite; it holds NaN or infinity; export the image again")
    return grey_HW


def resize(grey_HW: Float32Array, width: int, height: int) -> Float32Array:
    """Resize to (height, width): averages areas on an axis that shrinks, interpolates on one that grows."""
    image = Image.fromarray(np.ascontiguousarray(grey_HW, dtype=np.float32))
    image = image.resize((width, image.height), _filter(image.width, width))
    image = image.resize((width, height), _filter(image.height, height))
    return np.array(image, dtype=np.float32)


def normalise(grey_HW: Float32Array) -> ByteArray:
    """Stretch the smallest value to 0 and the largest to 255; an image without contrast becomes 0."""
    low, high = float(grey_HW.min()), float(grey_HW.max())
    if high <= low:
        return np.zeros(grey_HW.shape, np.uint8)
    scaled = (grey_HW.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(scaled).astype(np.uint8)


def prepare(grey_HW: Float32Array, image_size: int) -> ByteArray:
    """Return the network's image: resized to a square in float, then min-max normalised and quantised."""
    return normalise(resize(grey_HW, image_size, image_size))


def _filter(old: int, new: int) -> Image.Resampling:
    return Image.Resampling.BOX if new <= old else Image.Resampling.BILINEAR


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = str(error).replace(str(path), path.name).rstrip(".") or type(error).__name__
    return InputError(
        f"{path}: must be a complete image file; it cannot be decoded ({reason}); "
        "replace the file, or remove it together with its label"
    )


def _read_pillow_grey(path: Path) -> Float32Array:
    try:
        with Image.open(path) as image:
            pictures = getattr(image, "n_frames", 1)
            if pictures > 1:
                raise InputError(f"{path}: must hold one picture; got {pictures}; save the radiograph by itself")
            image.load()
            if image.mode in ("P", "PA"):  # a palette's indices are no grey values
                return np.asarray(image.convert("RGB").convert("L"), dtype=np.float32)
            if image.mode in _WHOLE_RANGE_MODES:
                return np.asarray(image, dtype=np.float32)
            return np.asarray(image.convert("L"), dtype=np.float32)
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _read_dicom(path: Path, *, pixels: bool) -> Any:
    """The one place that touches pydicom, which is untyped."""
    if importlib.util.find_spec("pydicom") is None:
        raise InputError(f"{path}: reading DICOM needs pydicom, which is not installed; pip install 'ablate[dicom]'")
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (pydicom.errors.InvalidDicomError, *_BROKEN) as error:
        raise _unreadable(path, error) from error


def _read_dicom_grey(path: Path) -> Float32Array:
    header = _read_dicom(path, pixels=True)
    from pydicom.pixels import apply_modality_lut

    interpretation = str(header.get("PhotometricInterpretation", "absent"))
    if interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(
            f"{path}: PhotometricInterpretation must be MONOCHROME1 or MONOCHROME2; got {interpretation}; "
            "export the image as PNG"
        )
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise InputError(f"{path}: must hold one picture; got {header.NumberOfFrames}; export the frame as PNG")
    try:
        grey = np.asarray(apply_modality_lut(header.pixel_array, header), dtype=np.float32)
    except (RuntimeError, AttributeError, *_BROKEN) as error:
        raise _unreadable(path, error) from error
    if interpretation == "MONOCHROME1":
        grey = grey.max() - grey
    return grey
