"""A data set in memory, and what is known of one before its pixels are decoded.

Shape suffixes: N images, H and W height and width of the network's square image, K landmarks,
2 = (x, y). A point is (x, y) in pixels of the original file, x to the right, the centre of the top-left
pixel at (0, 0); NaN = not annotated. A position in an image of another size is
x_net = (x + 0.5) * W_net / W - 0.5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ablate.errors import InputError

FloatArray: TypeAlias = npt.NDArray[np.float64]
Float32Array: TypeAlias = npt.NDArray[np.float32]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

Unit: TypeAlias = Literal["mm", "px"]
SplitName: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
UNLABELLED: Literal["unlabelled"] = "unlabelled"
"""Where an image without landmarks stands, in the column `split` and as a folder."""

Part: TypeAlias = Literal["train", "val", "test", "unlabelled"]
PARTS: tuple[Part, ...] = (*SPLITS, UNLABELLED)


@dataclass(frozen=True)
class Split:
    """The training, validation or test part of a data set."""

    names: tuple[str, ...]  # file names, in the order of use
    images_NHW: ByteArray  # min-max normalised per image, H = W = image_size
    points_NK2: FloatArray  # pixels of the original file, NaN = not annotated
    sizes_N2: IntArray  # (width, height) of the original files
    unit_per_pixel_N2: FloatArray  # units (mm or px) per original pixel, on x and y
    duplicates_N: BoolArray  # also occurs in an earlier split: for val in train, for test in train or val


@dataclass(frozen=True)
class Pool:
    """The images without landmarks, which take part in pre-training alone."""

    names: tuple[str, ...]  # file names; `unlabelled/NAME` for those in a folder of their own
    images_NHW: ByteArray  # as in a `Split`


@dataclass(frozen=True)
class PaperScale:
    """How the metric protocol `paper` turns whole pixels of the network's image into the unit."""

    frame: tuple[float, float] | None  # units across the whole image on x and y
    reference: tuple[int, int, float] | None  # two landmarks and the units between them


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: every image at the network's size, every label in pixels of its file."""

    name: str
    unit: Unit
    image_size: int
    num_landmarks: int
    sdr_thresholds: tuple[float, ...]
    paper: PaperScale | None  # None for a user's own data and for synthetic
    train: Split
    val: Split
    test: Split
    unlabelled: Pool
    fingerprint: str  # 16 hex digits over images, labels, splits and units; the same at every image_size
    landmark_names: tuple[str, ...] = ()  # of every landmark, or none


@dataclass(frozen=True)
class DatasetInfo:
    """What labels and file headers tell of a data set, without decoding pixels."""

    name: str
    unit: Unit
    num_landmarks: int
    sdr_thresholds: tuple[float, ...]
    paper: PaperScale | None
    train: int  # number of annotated images
    val: int
    test: int
    unlabelled: int  # images for pre-training alone
    folder: str | None  # as printed, also of an address; None: generated
    warnings: tuple[str, ...] = ()
    landmark_names: tuple[str, ...] = ()  # of every landmark, or none


@dataclass(frozen=True)
class Record(ABC):
    """One radiograph, its pixels not yet decoded."""

    name: str
    size: tuple[int, int]  # width, height
    points_K2: FloatArray  # all NaN for an unlabelled image
    unit_per_pixel: tuple[float, float]  # on x and y; NaN for an unlabelled image
    split: Part | None  # as the labels say; None: by sorted name

    @abstractmethod
    def grey(self) -> Float32Array:
        """Return the (height, width) grey values in the file's own range; raise `InputError` if it cannot be read."""

    @abstractmethod
    def digest(self) -> str:
        """Return a text that changes when the picture does."""


@dataclass
class Problems:
    """Where readers report: the first error is raised, or all are gathered."""

    stop: bool
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def error(self, message: str) -> None:
        """Raise `InputError` with `message`, or note it and let the reader go on."""
        if self.stop:
            raise InputError(message)
        self.errors.append(message)

    def warn(self, message: str) -> None:
        """Note something that does not keep the data from being used."""
        self.warnings.append(message)
