"""Radial errors of predicted landmarks, in millimetres or pixels, by two protocols, and their summary.

`physical` compares unrounded predictions with the label files and scales each axis by its own unit per pixel.
`paper` does what the authors' code does: see `paper_errors`.

Shapes: N images, K landmarks, M landmarks of several images, 2 = (x, y). NaN = not annotated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ablate.datasets import PaperScale
from ablate.network.heatmaps import HALF_MAXIMUM, centroid, targets, to_network
from ablate.space import PAPER_SIZE

_MAPS_AT_ONCE = 256  # truth maps held in memory together


@dataclass(frozen=True)
class Rate:
    """Share of landmarks whose error is at most a threshold (successful detection rate)."""

    threshold: float  # in the errors' unit
    rate: float  # fraction


@dataclass(frozen=True)
class Summary:
    """Radial errors of all annotated landmarks of all images, in their unit."""

    mre: float  # mean radial error
    median: float
    std: float  # population standard deviation
    sdr: tuple[Rate, ...]


def physical_errors(predicted_NK2: np.ndarray, truth_NK2: np.ndarray, unit_per_pixel_N2: np.ndarray) -> np.ndarray:
    """Return the distances (N, K) between points in pixels of the original file, each axis in its own unit.

    Args:
        predicted_NK2: pixels of the original file, not rounded.
        truth_NK2: the label files' points; NaN gives NaN.
        unit_per_pixel_N2: units (mm or px) per original pixel on x and y.
    """
    difference_NK2 = (predicted_NK2 - truth_NK2) * unit_per_pixel_N2[:, None, :]
    errors_NK: np.ndarray = np.hypot(difference_NK2[..., 0], difference_NK2[..., 1])
    return errors_NK


def paper_truth(truth_NK2: np.ndarray, sizes_N2: np.ndarray, image_size: int) -> np.ndarray:
    """Return the truth of protocol `paper`: whole pixels of the network's input (N, K, 2).

    A disk of the paper's sigma, 5 px at 256 x 256, is drawn around the truth rounded to a whole pixel, as the
    authors' code does, decoded by `centroid`, and rounded. The disk does not depend on the trial's own target. A
    disk that the border cuts moves its point inwards, as with the authors. Deviations: on small images the
    sigma is at least 1 px, because a smaller disk is one pixel, which has no contour area; a point outside
    the image is first moved to its border; pixel centres are placed as in `ablate.network.heatmaps`.
    The centroid of a disk that no border cuts is its centre, so only the others are drawn.
    """
    points_NK2: np.ndarray = np.clip(np.rint(to_network(truth_NK2, sizes_N2, image_size)), 0, image_size - 1)
    points_NK2[np.isnan(truth_NK2)] = np.nan
    sigma = max(1.0, 5 * image_size / PAPER_SIZE)
    reach = math.floor(sigma * HALF_MAXIMUM)
    cut_NK = ((points_NK2 < reach) | (points_NK2 > image_size - 1 - reach)).any(axis=2)
    cut_M12 = points_NK2[cut_NK][:, None]
    for start in range(0, len(cut_M12), _MAPS_AT_ONCE):
        part = slice(start, start + _MAPS_AT_ONCE)
        disks, _ = targets(torch.from_numpy(cut_M12[part]), image_size, sigma=sigma, shape="disk")
        cut_M12[part] = centroid(disks).numpy()
    points_NK2[cut_NK] = np.rint(cut_M12[:, 0])
    return points_NK2


def paper_errors(
    predicted_NK2: np.ndarray, truth_NK2: np.ndarray, sizes_N2: np.ndarray, *, image_size: int, scale: PaperScale
) -> np.ndarray:
    """Return the distances (N, K) as the authors' code computes them.

    Truth (see `paper_truth`) and prediction are whole pixels of the network's input. Their differences are
    scaled by `scale.frame` / image_size on each axis or, with a reference (a, b, units), by units / distance
    between the truth of landmarks a and b of that image; NaN where that distance is unknown or zero.

    Args:
        predicted_NK2: decoded by `centroid`, in network pixels; rounded here.
        truth_NK2: pixels of the original files; NaN gives NaN.
        sizes_N2: width and height of the original files.
        image_size: side of the network's input in pixels.
        scale: of the data set.
    """
    whole_NK2 = paper_truth(truth_NK2, sizes_N2, image_size)
    difference_NK2 = np.rint(predicted_NK2) - whole_NK2
    if scale.frame is not None:
        difference_NK2 = difference_NK2 * (np.asarray(scale.frame) / image_size)
    errors_NK: np.ndarray = np.hypot(difference_NK2[..., 0], difference_NK2[..., 1])
    if scale.reference is not None:
        first, second, units = scale.reference
        apart_N = np.hypot(*(whole_NK2[:, first] - whole_NK2[:, second]).T)
        errors_NK *= (units / np.where(apart_N > 0, apart_N, np.nan))[:, None]
    return errors_NK


def summarise(errors: np.ndarray, thresholds: Sequence[float]) -> Summary:
    """Summarise errors over all annotated landmarks of all images, each landmark counting the same.

    Args:
        errors: any shape, in one unit; NaN = not annotated, left out.
        thresholds: of the successful detection rates, in the errors' unit; an error equal to it is a success.

    Raises:
        ValueError: nothing is annotated.
    """
    known = errors[~np.isnan(errors)]
    if not known.size:
        raise ValueError("errors need at least one annotated landmark")
    return Summary(
        mre=float(known.mean()),
        median=float(np.median(known)),
        std=float(known.std()),
        sdr=tuple(Rate(float(threshold), float((known <= threshold).mean())) for threshold in thresholds),
    )
