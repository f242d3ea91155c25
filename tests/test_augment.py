"""Affine augmentation moves images and points together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.network.augment import Affine, apply, draw
from ablate.network.heatmaps import decode, targets
from ablate.space import AugmentSpec

torch.set_num_threads(1)

STRONG = AugmentSpec(shift=0.1, scale=0.2, rotate=30.0, probability=1.0)


def affine_of(shift: tuple[float, float] = (0, 0), scale: float = 1, degrees: float = 0) -> Affine:
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return Affine(
        torch.tensor([[[cos, -sin], [sin, cos]]], dtype=torch.float64),
        torch.tensor([shift], dtype=torch.float64),
        torch.tensor([True]),
    )


def ramp(side: int = 8) -> torch.Tensor:
    return torch.arange(side * side, dtype=torch.float32).reshape(1, 1, side, side)


def test_shift_by_two_columns_moves_pixels_and_repeats_the_border() -> None:
    image, points = apply(affine_of(shift=(2, 0)), ramp(), torch.tensor([[[1.0, 5.0]]]))
    expected = ramp().roll(2, dims=3)
    expected[..., :2] = ramp()[..., :1]
    torch.testing.assert_close(image, expected, atol=1e-3, rtol=0)
    assert points[0, 0].tolist() == [3.0, 5.0]


def test_quarter_turn_takes_the_top_right_pixel_to_the_bottom_right() -> None:
    image, points = apply(affine_of(degrees=90), ramp(), torch.tensor([[[7.0, 0.0], [0.0, 0.0]]]))
    # y points down: a positive angle turns clockwise on the screen
    torch.testing.assert_close(image, ramp().rot90(-1, dims=(2, 3)), atol=1e-3, rtol=0)
    np.testing.assert_allclose(points[0], [[7, 7], [7, 0]], atol=1e-5)


def test_doubling_the_scale_doubles_the_distance_from_the_centre() -> None:
    _, points = apply(affine_of(scale=2), ramp(), torch.tensor([[[3.5, 3.5], [4.5, 2.0]]]))
    np.testing.assert_allclose(points[0], [[3.5, 3.5], [5.5, 0.5]], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_a_blob_is_found_where_its_point_went(seed: int) -> None:
    points = 24 + 16 * torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(seed))
    maps, _ = targets(points.reshape(6, 1, 2), 64, sigma=2, shape="gaussian")
    affine = draw(STRONG, 6, 64, torch.Generator().manual_seed(seed))
    images, moved = apply(affine, maps, points.reshape(6, 1, 2))
    found = decode(images, "local_mean", sigma=3)
    assert (found - moved).abs().max() < 0.2
    assert (moved - points.reshape(6, 1, 2)).abs().max() > 0.1


def test_points_that_leave_the_image_keep_their_coordinates_and_unknown_ones_stay_unknown() -> None:
    points = torch.tensor([[[7.0, 3.0], [math.nan, math.nan]]])
    _, moved = apply(affine_of(shift=(5, 0)), ramp(), points)
    assert moved[0, 0].tolist() == [12.0, 3.0]
    assert moved[0, 1].isnan().all()


def test_an_image_that_is_not_chosen_stays_bit_for_bit() -> None:
    images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    points = torch.full((40, 1, 2), 5.25)
    spec = AugmentSpec(shift=0.1, probability=0.5)
    affine = draw(spec, 40, 16, torch.Generator().manual_seed(1))
    out, moved = apply(affine, images, points)
    kept = ~affine.applied_B
    assert 8 < int(kept.sum()) < 32
    assert torch.equal(out[kept], images[kept])
    assert torch.equal(moved[kept], points[kept])
    assert not (moved[~kept] == points[~kept]).all(dim=2).any()


def test_draws_stay_within_the_limits_and_reach_them() -> None:
    affine = draw(STRONG, 4000, 100, torch.Generator().manual_seed(0))
    scale = torch.linalg.det(affine.matrix_B22).sqrt()
    degrees = torch.atan2(affine.matrix_B22[:, 1, 0], affine.matrix_B22[:, 0, 0]).rad2deg()
    for values, limit in ((affine.shift_B2, 10), (scale - 1, 0.2), (degrees, 30)):
        assert values.abs().max() <= limit + 1e-9
        assert values.min() == pytest.approx(-limit, rel=0.02)
        assert values.max() == pytest.approx(limit, rel=0.02)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_share_of_augmented_images_is_the_probability(probability: float, share: float) -> None:
    affine = draw(AugmentSpec(probability=probability), 4000, 64, torch.Generator().manual_seed(0))
    assert affine.applied_B.float().mean().item() == pytest.approx(share, abs=0.03)


def test_equal_seeds_draw_equal_maps() -> None:
    first, second = (draw(STRONG, 5, 64, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.matrix_B22, second.matrix_B22)
    assert torch.equal(first.shift_B2, second.shift_B2)
