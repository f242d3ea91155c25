"""Affine augmentation moves images and points together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.network.augment import Affine, apply, change_greys, draw
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


# --- shear, gamma and noise -------------------------------------------------------------------------


def test_without_shear_the_draws_are_those_of_five_numbers_an_image() -> None:
    affine = draw(STRONG, 7, 100, torch.Generator().manual_seed(3))
    numbers = torch.rand(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for image in range(7):
        _, x, y, scale, angle = (2 * numbers[:, image] - 1).tolist()
        radians, factor = math.radians(30 * angle), 1 + 0.2 * scale
        assert affine.shift_B2[image].tolist() == pytest.approx([10 * x, 10 * y])
        cos, sin = factor * math.cos(radians), factor * math.sin(radians)
        np.testing.assert_allclose(affine.matrix_B22[image], [[cos, -sin], [sin, cos]], atol=1e-12)


def test_shear_is_drawn_behind_all_else_and_moves_a_point_along_one_axis_by_a_share_of_the_other() -> None:
    seed = torch.Generator().manual_seed
    plain = draw(STRONG, 500, 100, seed(0))
    sheared = draw(STRONG.model_copy(update={"shear": 0.25}), 500, 100, seed(0))
    assert torch.equal(sheared.shift_B2, plain.shift_B2)
    assert torch.equal(sheared.applied_B, plain.applied_B)
    shear_B22 = torch.linalg.solve(plain.matrix_B22, sheared.matrix_B22)  # [[1, x], [y, 1]]
    torch.testing.assert_close(shear_B22.diagonal(dim1=1, dim2=2), torch.ones(500, 2, dtype=torch.float64))
    for values in (shear_B22[:, 0, 1], shear_B22[:, 1, 0]):
        assert 0.24 < values.max() <= 0.25
        assert -0.25 <= values.min() < -0.24


GREYS = AugmentSpec(gamma=1.0, noise=0.2, probability=1.0)


def test_grey_values_stay_as_they_are_unless_asked_for() -> None:
    images, generator = torch.rand(3, 1, 8, 8), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert change_greys(STRONG, images, torch.ones(3, dtype=torch.bool), generator) is images
    assert torch.equal(generator.get_state(), before)


def test_gamma_raises_grey_values_to_powers_from_a_half_to_two() -> None:
    images = torch.full((4000, 1, 1, 1), 0.25)
    spec = GREYS.model_copy(update={"noise": 0.0})
    found = change_greys(spec, images, torch.ones(4000, dtype=torch.bool), torch.Generator().manual_seed(0))
    powers = found.flatten().log() / math.log(0.25)
    assert powers.min() == pytest.approx(0.5, abs=0.01)
    assert powers.max() == pytest.approx(2, abs=0.02)
    assert powers.log().mean().abs() < 0.03  # darker as often as lighter


def test_noise_has_a_deviation_of_up_to_its_share_and_grey_values_stay_in_their_range() -> None:
    images = torch.full((200, 1, 32, 32), 0.5)
    spec = GREYS.model_copy(update={"gamma": 0.0})
    generator = torch.Generator().manual_seed(0)
    deviations = change_greys(spec, images, torch.ones(200, dtype=torch.bool), generator).std(dim=(1, 2, 3))
    assert deviations.min() < 0.01
    assert 0.18 < deviations.max() < 0.21
    strong = change_greys(spec, images.round(), torch.ones(200, dtype=torch.bool), generator)
    assert strong.min() == 0
    assert strong.max() <= 1


def test_grey_values_of_an_image_that_is_not_chosen_stay_bit_for_bit() -> None:
    images = torch.rand(6, 1, 8, 8)
    chosen = torch.tensor([True, False] * 3)
    found = change_greys(GREYS, images, chosen, torch.Generator().manual_seed(0))
    assert torch.equal(found[~chosen], images[~chosen])
    assert not (found[chosen] == images[chosen]).flatten(1).all(dim=1).any()
