"""A data set in memory, and what is known of one before its pixels are decoded.

Shape suffixes: N images, H and W height and width of the network's square image, K landmarks,
2 = (x, y). A point is (x, y) in pixels of the original file, x to the right, the centre of the top-left
pixel at (0, 0); NaN = not annotated. A position in an image of another size is
x_net = (x + 0.5) * W_net / W - 0.5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
DESCRIPTION = "dataset.yaml"
LABELS = "landmarks.csv"
IMAGES = "images"
"""What the folder of a user's own data set holds."""

SPACING = "spacing"
"""The column of `landmarks.csv` that holds an image's millimetres per pixel."""

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

    def part(self, chosen: IntArray) -> Split:
        """Return the images at the places `chosen`, in that order."""
        return Split(
            tuple(self.names[index] for index in chosen),
            self.images_NHW[chosen],
            self.points_NK2[chosen],
            self.sizes_N2[chosen],
            self.unit_per_pixel_N2[chosen],
            self.duplicates_N[chosen],
        )


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
    folds: int | None = None  # into how many folds the data set is divided; None: it has no folds

    def without_test(self) -> Dataset:
        """Return the data set with an empty test split, for whoever must not see it."""
        size, points = self.image_size, np.zeros((0, self.num_landmarks, 2))
        images_NHW, sizes_N2 = np.zeros((0, size, size), np.uint8), np.zeros((0, 2), np.int64)
        return replace(self, test=Split((), images_NHW, points, sizes_N2, np.zeros((0, 2)), np.zeros(0, np.bool_)))


@dataclass(frozen=True)
class Sizes:
    """Numbers of images in the parts of a data set, or of one of its folds."""

    train: int  # annotated
    val: int
    test: int
    unlabelled: int  # for pre-training alone


@dataclass(frozen=True)
class DatasetInfo:
    """What labels and file headers tell of a data set, without decoding pixels."""

    name: str
    unit: Unit
    num_landmarks: int
    sdr_thresholds: tuple[float, ...]
    paper: PaperScale | None
    sizes: tuple[Sizes, ...]  # one, or one for each fold
    folds: int | None  # None: it has no folds
    folder: str | None  # as printed, also of an address; None: generated
    warnings: tuple[str, ...] = ()
    landmark_names: tuple[str, ...] = ()  # of every landmark, or none

    def of(self, fold: int | None) -> Sizes:
        """Return the numbers of images of a fold.

        Raises:
            InputError: the data set has no such fold; or it has folds, and none is given.
        """
        return self.sizes[fold_index(self.name, self.folds, fold)]


def fold_index(name: str, folds: int | None, fold: int | None) -> int:
    """Return the place of a fold among the divisions of data set `name`; 0 where it has no folds.

    Raises:
        InputError: the data set has no such fold; or it has folds, and none is given.
    """
    if folds is None and fold is not None:
        raise InputError(
            f"fold must be left out for data set {name}, which has no folds; got {fold}; remove it, or write, for "
            "example, splits: {folds: 5, random: 0} into its dataset.yaml"
        )
    if folds is not None and (fold is None or fold >= folds):
        every = ", ".join(map(str, range(folds)))
        raise InputError(
            f"fold must be one of 0 to {folds - 1}, the folds of data set {name}; got "
            f"{'none' if fold is None else fold}; write fold: [{every}] for all of them"
        )
    return fold or 0


@dataclass(frozen=True)
class Record(ABC):
    """One radiograph, its pixels not yet decoded."""

    name: str
    size: tuple[int, int]  # width, height
    points_K2: FloatArray  # all NaN for an unlabelled image
    unit_per_pixel: tuple[float, float]  # on x and y; NaN for an unlabelled image
    split: Part | None  # as the labels say; None: as the data set's rule says
    columns: Mapping[str, str] = field(default_factory=dict, kw_only=True)  # the user's own, without empty cells
    scale_from: str = field(default="", kw_only=True)  # what gave the scale, where that differs between images

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
