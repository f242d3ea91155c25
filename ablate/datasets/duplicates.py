"""Radiographs that are the same picture, found by a difference hash.

The image is averaged to 32 x 32, and the signs of the differences between horizontal
and vertical neighbours are compared where both images have an edge. Two pictures are the same if nearly
no sign is opposite and their landmarks lie at the same place. Measured on the 400 ISBI 2015 radiographs
(79 800 pairs, 23 known duplicates, some of them scanned again): opposite signs are at most 0.34 % in
duplicates and at least 7.5 % in all other pairs; labels of duplicates lie at most 0.7 % of the image's
side apart. Both limits below leave at least a factor of three on each side that was observed.

Shape suffixes: N images, E signed differences, K landmarks, 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ablate.datasets.images import resize
from ablate.datasets.types import BoolArray, Float32Array, FloatArray, IntArray, Part

SIDE = 32
"""Images are compared at this size."""

EDGE = 0.01
"""A difference counts from this share of the image's range of grey values on."""

MAX_OPPOSITE = 0.02
"""Largest share of opposite signs in duplicates: 6 x the largest seen in one, a quarter of the smallest elsewhere."""

MAX_LABEL_DISTANCE = 0.02
"""Largest mean distance of duplicates' landmarks, as a share of the image's side: 3 x the largest seen."""

_MIN_EDGES = 40  # with fewer common edges two pictures cannot be compared
_MIN_OVERLAP = 0.5  # common edges, as a share of the edges of the image that has more


@dataclass(frozen=True)
class DuplicatePair:
    """Two images of one data set that show the same radiograph; indices in the order compared."""

    first: int
    second: int
    opposite: float  # share of opposite signs
    label_distance: float  # mean distance as a share of the side; NaN: no landmark annotated in both


def image_hash(grey_HW: Float32Array) -> npt.NDArray[np.int8]:
    """Return the (E,) signs, -1, 0 or 1, of the differences between neighbours of the image at 32 x 32."""
    small = resize(grey_HW, SIDE, SIDE)
    spread = float(small.max() - small.min())
    if spread <= 0:
        return np.zeros(2 * SIDE * (SIDE - 1), np.int8)
    edges = np.concatenate([np.diff(small, axis=1).ravel(), np.diff(small, axis=0).ravel()]) / spread
    return (np.sign(edges) * (np.abs(edges) > EDGE)).astype(np.int8)


def find_duplicates(hashes_NE: npt.NDArray[np.int8], points_NK2: FloatArray, sizes_N2: IntArray) -> list[DuplicatePair]:
    """Return every pair of images that show the same radiograph, in order of their indices.

    `hashes_NE` are rows of `image_hash`, `points_NK2` landmarks in pixels of the file (NaN = not annotated),
    `sizes_N2` (width, height) of the files. Where no landmark is annotated in both, the images decide, and so
    they do where they are alike in every sign: then one of two labels that differ is wrong.
    """
    signs = hashes_NE.astype(np.float32)
    edges = np.abs(signs)
    common = edges @ edges.T
    opposite = (common - signs @ signs.T) / 2  # equal signs add 1 to the product, opposite ones -1
    counts = edges.sum(axis=1)
    alike = (opposite <= MAX_OPPOSITE * common) & (common >= _MIN_EDGES)
    alike &= common >= _MIN_OVERLAP * np.maximum(counts[:, None], counts[None, :])
    shares_NK2 = (points_NK2 + 0.5) / sizes_N2[:, None, :]
    pairs = []
    for first, second in np.argwhere(np.triu(alike, 1)):
        distances = np.linalg.norm(shares_NK2[first] - shares_NK2[second], axis=-1)
        both = distances[np.isfinite(distances)]
        distance = float(both.mean()) if both.size else float("nan")
        same = np.array_equal(hashes_NE[first], hashes_NE[second])
        if same or not distance > MAX_LABEL_DISTANCE:
            share = float(opposite[first, second] / common[first, second])
            pairs.append(DuplicatePair(int(first), int(second), share, distance))
    return pairs


def seen_earlier(pairs_P2: IntArray, parts: Sequence[Part | None]) -> BoolArray:
    """Return (N,): whether the image also occurs in an earlier split (val: train; test: train or val).

    Args:
        pairs_P2: indices of the two images of each pair.
        parts: where each image stands; None: in no part.
    """
    rank: dict[Part, int] = {"train": 0, "val": 1, "test": 2, "unlabelled": 3}
    seen = np.zeros(len(parts), dtype=np.bool_)
    for first, second in pairs_P2.tolist():
        one, other = parts[first], parts[second]
        if one is not None and other is not None and rank[one] != rank[other]:
            seen[second if rank[other] > rank[one] else first] = True
    return seen
