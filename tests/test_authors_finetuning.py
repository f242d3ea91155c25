"""Fine-tuning as the published code does it beside this package's way: targets and grey values."""

import numpy as np
import pytest
import torch

from ablate.network import augment
from ablate.network.heatmaps import decode, targets
from ablate.space import AugmentSpec
from ablate.training import seeded

SIGMA = 5.0  # the paper's, at 256 px: the disk's radius is 5.887 px


def disk(x: float, y: float, shape: str) -> np.ndarray:
    maps, _ = targets(torch.tensor([[[x, y]]]), 64, sigma=SIGMA, shape=shape)  # type: ignore[arg-type]
    return maps[0, 0].numpy()


def test_a_pixel_disk_is_that_of_the_nearest_whole_pixel_and_a_disk_moves_with_the_point() -> None:
    whole = disk(30.0, 20.0, "pixel_disk")
    assert whole.sum() == 109  # pixels within 5.887 of a pixel's centre
    for x, y in ((30.4, 20.4), (29.6, 19.7), (30.0, 20.0)):
        assert np.array_equal(disk(x, y, "pixel_disk"), whole)
    assert np.array_equal(disk(30.0, 20.0, "disk"), whole)
    differing = np.mean(
        [(disk(30 + x, 20 + y, "disk") != whole).sum() for x, y in np.mgrid[-4:5, -4:5].reshape(2, -1).T / 10]
    )
    assert 6 < differing < 16  # of 109, about 11 on average over real landmarks


def test_a_pixel_disk_decodes_to_its_pixel_and_a_disk_to_near_its_point() -> None:
    point = torch.tensor([[[30.4, 20.3]]])
    for shape, expected in (("pixel_disk", [30.0, 20.0]), ("disk", [30.4, 20.3])):
        maps, _ = targets(point, 64, sigma=SIGMA, shape=shape)  # type: ignore[arg-type]
        found = decode(maps, "centroid", sigma=SIGMA)[0, 0].tolist()
        assert found == pytest.approx(expected, abs=0.15)


def test_grey_values_are_stretched_once_more_behind_the_augmentation() -> None:
    images = torch.zeros(1, 1, 32, 32)
    images[0, 0, 0, 0] = 1.0  # the one bright pixel, which a shift takes out of the image
    images[0, 0, 16:, 16:] = 0.5
    affine = augment.Affine(torch.eye(2)[None].double(), torch.tensor([[-4.0, -4.0]]).double(), torch.tensor([True]))
    moved, _ = augment.apply(affine, images, torch.zeros(1, 0, 2))
    assert moved.max() == 0.5
    assert torch.equal(augment.stretched(AugmentSpec(), moved), moved)
    after = augment.stretched(AugmentSpec(normalize="after"), moved)
    assert torch.equal(after, moved * 2)
    assert torch.equal(
        augment.stretched(AugmentSpec(normalize="after"), torch.full((1, 1, 4, 4), 0.3)), torch.zeros(1, 1, 4, 4)
    )


def test_what_is_drawn_does_not_depend_on_it() -> None:
    maps = [
        augment.draw(AugmentSpec(normalize=when), 3, 64, seeded("cpu", 0)).matrix_B22  # type: ignore[arg-type]
        for when in ("before", "after")
    ]
    assert torch.equal(*maps)
