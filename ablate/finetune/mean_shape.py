"""The mean shape of the shots: where the landmarks lie on average, whatever the image shows.

The constant prediction that every method must beat. Shapes: N images, K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import numpy as np

from ablate.datasets import Dataset
from ablate.finetune.shots import select_shots
from ablate.network.evaluation import images_that_count
from ablate.network.metrics import physical_errors
from ablate.space import TrialSpec


def mean_shape(points_NK2: np.ndarray, sizes_N2: np.ndarray) -> np.ndarray:
    """Return each landmark's mean place (K, 2) as shares of the image's width and height.

    A landmark that no image has lies in the middle.

    Args:
        points_NK2: pixels of the files, the centre of the top-left pixel at (0, 0); NaN = not annotated.
        sizes_N2: (width, height) of the files.
    """
    shares_NK2 = (points_NK2 + 0.5) / sizes_N2[:, None, :]
    known_NK2 = np.isfinite(shares_NK2)
    counts_K2 = known_NK2.sum(axis=0)
    sums_K2 = np.where(known_NK2, shares_NK2, 0.0).sum(axis=0)
    mean_K2: np.ndarray = np.where(counts_K2 > 0, sums_K2 / np.maximum(counts_K2, 1), 0.5)
    return mean_K2


def mean_shape_errors(spec: TrialSpec, dataset: Dataset) -> np.ndarray:
    """Return the errors (N, K), by protocol `physical`, of the mean shape of a trial's shots on its test images.

    In the data set's unit; NaN = not annotated.
    """
    chosen = select_shots(spec.selection, len(dataset.train.names), dataset=spec.dataset)
    shape_K2 = mean_shape(dataset.train.points_NK2[chosen], dataset.train.sizes_N2[chosen])
    test = images_that_count(spec, dataset.test)
    predicted_NK2 = shape_K2[None] * test.sizes_N2[:, None, :] - 0.5
    return physical_errors(predicted_NK2, test.points_NK2, test.unit_per_pixel_N2)
