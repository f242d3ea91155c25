"""Radiographs that lie mirrored among others of one set, found by their likeness to the mean image.

An image that resembles the mirrored mean of the set, and not the mean, was scanned or exported the wrong way round:
its landmarks may be right, but no network that learns from the others finds them. Of the 400 ISBI 2015 radiographs one
is (correlations 0.93 with the mirrored mean and 0.05 with the mean); all others lie at least 0.09 closer to the mean.

N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ablate.datasets.images import resize
from ablate.datasets.types import Float32Array, FloatArray

SIDE = 32
"""Images are compared at this size."""

LIKE = 0.5
"""Correlation with the mirrored mean from which an image is said to resemble it."""

APART = 0.3
"""By how much that must be above the correlation with the mean: in sets whose images are symmetric, such as chests,
the two are alike."""


class Mirrored(NamedTuple):
    """An image that seems to be mirrored."""

    number: int  # of the image, from 0
    straight: float  # correlation with the mean image
    mirrored: float  # with the mirrored mean image


def small_image(grey_HW: Float32Array) -> Float32Array:
    """Return an image as it is compared: 32 x 32."""
    return resize(grey_HW, SIDE, SIDE)


def find_mirrored(small_NHW: Sequence[Float32Array]) -> list[Mirrored]:
    """Return the images that resemble the mirrored mean of all more than the mean itself."""
    if len(small_NHW) < 3:
        return []
    images_NHW = np.stack(small_NHW).astype(np.float64)
    spread_N = np.ptp(images_NHW, axis=(1, 2))
    images_NHW = (images_NHW - images_NHW.min(axis=(1, 2), keepdims=True)) / np.maximum(spread_N, 1e-12)[:, None, None]
    mean_HW = images_NHW.mean(axis=0)
    straight_N, mirrored_N = _correlations(images_NHW, mean_HW), _correlations(images_NHW, mean_HW[:, ::-1])
    found_N = (mirrored_N > LIKE) & (mirrored_N - straight_N > APART)
    return [Mirrored(int(i), float(straight_N[i]), float(mirrored_N[i])) for i in np.flatnonzero(found_N)]


def _correlations(images_NHW: FloatArray, other_HW: FloatArray) -> FloatArray:
    """Return the correlation of each image with another; 0 for an image of one grey value."""
    images_NHW = images_NHW - images_NHW.mean(axis=(1, 2), keepdims=True)
    other_HW = other_HW - other_HW.mean()
    norm_N = np.sqrt((images_NHW**2).sum(axis=(1, 2)) * (other_HW**2).sum())
    product_N = (images_NHW * other_HW).sum(axis=(1, 2))
    return np.asarray(np.divide(product_N, norm_N, out=np.zeros_like(product_N), where=norm_N > 0), np.float64)
