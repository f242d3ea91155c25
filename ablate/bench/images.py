"""Data sets of noise, of the sizes of those that ship: what a step costs does not depend on what is in the images.

Shapes: N images, H = W = the network's image, K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import numpy as np

from ablate.datasets import Dataset, PaperScale, Pool, Split
from ablate.schedule.benched import num_landmarks
from ablate.space import TrialSpec


def noise(trial: TrialSpec, *, train: int, val: int, test: int) -> Dataset:
    """Return a data set in place of the trial's, with as many landmarks.

    Args:
        trial: gives the image size and the number of landmarks.
        train: training images.
        val: validation images.
        test: test images.
    """
    size, landmarks = trial.image_size, num_landmarks(trial)
    generator = np.random.default_rng(0)

    def split(name: str, number: int) -> Split:
        return Split(
            tuple(f"{name}{index:04d}" for index in range(number)),
            generator.integers(0, 256, (number, size, size), np.uint8),
            generator.uniform(0, size - 1, (number, landmarks, 2)),
            np.full((number, 2), size, np.int64),
            np.ones((number, 2)),
            np.zeros(number, np.bool_),
        )

    paper = None if trial.dataset == "synthetic" else PaperScale((float(size), float(size)), None)
    pool = Pool((), np.zeros((0, size, size), np.uint8))
    parts = (split("train", train), split("val", val), split("test", test))
    return Dataset(trial.dataset, "px", size, landmarks, (2.0, 4.0), paper, *parts, pool, "0" * 16)
