"""Points, the target maps drawn of them, and what is decoded from maps."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ablate.network.heatmaps import SCORES, centroid, confidence, decode, targets, to_file, to_network

torch.set_num_threads(1)


def test_points_of_a_file_twice_as_wide_as_high_are_scaled_on_each_axis_by_its_own_factor() -> None:
    # 200 x 100 file on 50 px: x_net = (x + 0.5) / 4 - 0.5, y_net = (y + 0.5) / 2 - 0.5
    points = to_network(np.array([[[0.0, 0.0], [199.0, 99.0], [99.5, 49.5]]]), np.array([[200, 100]]), 50)
    np.testing.assert_allclose(points, [[[-0.375, -0.25], [49.375, 49.25], [24.5, 24.5]]])


def test_outer_edges_and_centre_of_a_file_are_those_of_the_network_image() -> None:
    # edges lie half a pixel outside the centres of the outermost pixels
    edges = np.array([[[-0.5, -0.5], [1934.5, 2399.5]]])
    np.testing.assert_allclose(to_network(edges, np.array([[1935, 2400]]), 256), [[[-0.5, -0.5], [255.5, 255.5]]])


@settings(deadline=None)
@given(st.floats(-50, 3000), st.floats(-50, 3000), st.integers(1, 4000), st.integers(1, 4000))
def test_to_file_undoes_to_network(x: float, y: float, width: int, height: int) -> None:
    sizes, points = np.array([[width, height]]), np.array([[[x, y], [np.nan, np.nan]]])
    np.testing.assert_allclose(to_file(to_network(points, sizes, 64), sizes, 64), points, atol=1e-6)


# --- targets ----------------------------------------------------------------------------------------


def test_disk_of_sigma_2_around_a_pixel_holds_the_21_pixels_within_2_35() -> None:
    maps, annotated = targets(torch.tensor([[[8.0, 6.0]]]), 16, sigma=2, shape="disk")
    # radius 2 * sqrt(2 ln 2) = 2.355: all of the 5 x 5 square but its 4 corners, which are 2.83 away
    square = np.ones((5, 5))
    square[[0, 0, 4, 4], [0, 4, 0, 4]] = 0
    expected = np.zeros((16, 16))
    expected[4:9, 6:11] = square
    np.testing.assert_array_equal(maps[0, 0], expected)
    assert annotated.tolist() == [[True]]


def test_disk_is_where_the_gaussian_is_at_least_half() -> None:
    points = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0)) * 31
    disks, _ = targets(points, 32, sigma=2.5, shape="disk")
    gaussians, _ = targets(points, 32, sigma=2.5, shape="gaussian")
    torch.testing.assert_close(disks, (gaussians >= 0.5).float())


def test_gaussian_has_the_textbook_value_at_each_pixel() -> None:
    maps, _ = targets(torch.tensor([[[3.25, 5.5]]], dtype=torch.float64), 8, sigma=1.5, shape="gaussian")
    assert maps[0, 0, 6, 2].item() == pytest.approx(math.exp(-(1.25**2 + 0.5**2) / (2 * 1.5**2)))


@settings(deadline=None)
@given(st.floats(-0.5, 15.5), st.floats(-0.5, 15.5))
def test_smallest_disk_still_holds_the_pixel_nearest_to_its_point(x: float, y: float) -> None:
    maps, _ = targets(torch.tensor([[[x, y]]]), 16, sigma=0.1, shape="disk")
    nearest = np.clip(np.rint([y, x]).astype(int), 0, 15)
    assert maps[0, 0, nearest[0], nearest[1]] == 1
    assert maps.sum() <= 4


def test_landmark_without_annotation_is_masked_and_has_an_empty_map() -> None:
    points = torch.tensor([[[4.0, 4.0], [math.nan, math.nan]]])
    for shape in ("disk", "gaussian"):
        maps, annotated = targets(points, 8, sigma=2, shape=shape)  # type: ignore[arg-type]
        assert annotated.tolist() == [[True, False]]
        assert maps[0, 0].max() == 1
        assert not maps[0, 1].any()


def test_disk_around_a_point_outside_reaches_in_only_as_far_as_its_radius() -> None:
    maps, annotated = targets(torch.tensor([[[-2.0, 8.0], [-9.0, 8.0]]]), 16, sigma=2, shape="disk")
    assert annotated.all()
    assert np.argwhere(maps[0, 0].numpy()).tolist() == [[7, 0], [8, 0], [9, 0]]  # 2.24 and 2 away
    assert not maps[0, 1].any()


# --- decoding ---------------------------------------------------------------------------------------


def maps_of(*arrays: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)[None].astype(np.float32))


def polygon_centroid(vertices: np.ndarray) -> np.ndarray:
    """Shoelace formula."""
    x, y = vertices.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    return np.array([((x + np.roll(x, -1)) * cross).sum(), ((y + np.roll(y, -1)) * cross).sum()]) / (3 * cross.sum())


def test_centroid_of_a_rectangle_is_its_middle() -> None:
    blob = np.zeros((12, 12))
    blob[2:5, 3:9] = 1  # rows 2..4, columns 3..8
    assert centroid(maps_of(blob))[0, 0].tolist() == [5.5, 3.0]


def test_centroid_of_an_l_shape_is_that_of_the_polygon_through_its_border_pixels() -> None:
    blob = np.zeros((12, 12))
    blob[1:10, 2:5] = 1
    blob[7:10, 2:10] = 1
    # the way round an inner corner cuts it: (4, 6) -> (5, 7) instead of through (4, 7)
    corners = np.array([[2, 1], [4, 1], [4, 6], [5, 7], [9, 7], [9, 9], [2, 9]], dtype=float)
    np.testing.assert_allclose(centroid(maps_of(blob))[0, 0], polygon_centroid(corners), atol=1e-5)
    pixels = np.argwhere(blob)[:, ::-1].mean(axis=0)  # the mean of the pixels is another point
    assert np.abs(centroid(maps_of(blob))[0, 0].numpy() - pixels).max() > 0.05


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(2, 29), st.integers(2, 29), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4
    )
)
def test_centroid_is_near_the_mean_of_the_largest_region_of_rectangles(rows: list[tuple[int, int, int, int]]) -> None:
    blob = np.zeros((40, 40))
    for y, x, height, width in rows:
        blob[y : y + height + 1, x : x + width + 1] = 1
    labels, count = ndimage.label(blob, structure=np.ones((3, 3)))
    filled = [ndimage.binary_fill_holes(labels == number) for number in range(1, count + 1)]
    contours = [
        cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0] for region in filled
    ]
    areas = [cv2.contourArea(contour) for contour in contours]
    best = [index for index, area in enumerate(areas) if area == max(areas)]
    found = centroid(maps_of(blob))[0, 0].numpy()
    vertices = [polygon_centroid(contours[index][:, 0].astype(float)) for index in best]
    assert min(np.abs(found - point).max() for point in vertices) < 1e-4
    means = [np.argwhere(filled[index])[:, ::-1].mean(axis=0) for index in best]
    assert min(np.linalg.norm(found - mean) for mean in means) < 1.5


def test_centroid_takes_the_region_of_largest_area_not_the_highest() -> None:
    blob = np.zeros((20, 20))
    blob[2:4, 2:4] = 1.0
    blob[10:15, 12:17] = 0.6
    assert centroid(maps_of(blob))[0, 0].tolist() == [14, 12]


def test_centroid_leaves_out_what_is_below_half_the_maximum() -> None:
    blob = np.zeros((20, 20))
    blob[2:5, 2:5] = 1.0
    blob[10:19, 10:19] = 0.49
    assert centroid(maps_of(blob))[0, 0].tolist() == [3, 3]


@pytest.mark.parametrize(
    "pixels",
    [(), ((5, 5),), ((5, 4), (5, 5), (5, 6))],
    ids=["no positive pixel", "one pixel has no area", "a line has no area"],
)
def test_no_contour_or_no_area_decodes_to_zero_zero(pixels: tuple[tuple[int, int], ...]) -> None:
    blob = np.zeros((12, 12))
    for pixel in pixels:
        blob[pixel] = 1
    assert centroid(maps_of(blob, blob - 1))[0].tolist()[0] == [0, 0]


def test_map_without_a_positive_value_decodes_to_zero_zero() -> None:
    assert centroid(torch.full((1, 2, 8, 8), -3.0)).tolist() == [[[0, 0], [0, 0]]]


@settings(deadline=None)
@given(st.floats(8, 55), st.floats(8, 55), st.sampled_from([1.25, 2.0, 5.0]))
def test_disk_decodes_to_its_point_within_half_a_pixel(x: float, y: float, sigma: float) -> None:
    maps, _ = targets(torch.tensor([[[x, y]]]), 64, sigma=sigma, shape="disk")
    assert np.abs(centroid(maps)[0, 0].numpy() - [x, y]).max() <= 0.5 + 1e-4


@settings(deadline=None)
@given(st.floats(8, 55), st.floats(8, 55), st.sampled_from([0.7, 1.5, 2.5]))
def test_local_mean_finds_the_point_of_a_gaussian_to_a_fiftieth_of_a_pixel(x: float, y: float, sigma: float) -> None:
    maps, _ = targets(torch.tensor([[[x, y]]]), 64, sigma=sigma, shape="gaussian")
    found = decode(maps, "local_mean", sigma=sigma)[0, 0].numpy()
    assert np.abs(found - [x, y]).max() < 0.02 * max(1, sigma)


@settings(deadline=None)
@given(st.floats(12, 51), st.floats(12, 51), st.sampled_from([0.7, 1.5, 2.5]), st.floats(0.1, 1000))
def test_dark_finds_the_point_of_a_gaussian_that_its_pixels_resolve(
    x: float, y: float, sigma: float, height: float
) -> None:
    maps, _ = targets(torch.tensor([[[x, y]]]), 64, sigma=sigma, shape="gaussian")
    found = decode(height * maps, "dark", sigma=sigma)[0, 0].numpy()
    assert np.abs(found - [x, y]).max() < {0.7: 0.02, 1.5: 5e-4, 2.5: 5e-4}[sigma]


def test_dark_finds_the_point_of_a_slanted_gaussian() -> None:
    # sigmas 3 and 1.5 along the diagonals: smoothing adds a variance of 1 to both and leaves the middle where it is
    y, x = np.mgrid[:48, :48]
    along, across = (x - 20.3 + y - 25.8) / math.sqrt(2), (x - 20.3 - y + 25.8) / math.sqrt(2)
    slanted = np.exp(-(along**2) / (2 * 3.0**2) - across**2 / (2 * 1.5**2))
    np.testing.assert_allclose(decode(maps_of(slanted), "dark", sigma=1)[0, 0], [20.3, 25.8], atol=2e-3)


@pytest.mark.parametrize("corner", [(0, 0), (31, 0), (0, 31), (31, 31)])
def test_dark_stays_within_a_pixel_of_a_peak_at_the_border(corner: tuple[int, int]) -> None:
    maps, _ = targets(torch.tensor([[corner]], dtype=torch.float32), 32, sigma=1.5, shape="gaussian")
    found = decode(maps, "dark", sigma=1.5)[0, 0].numpy()
    assert np.isfinite(found).all()
    assert np.abs(found - corner).max() <= 1.5


def test_dark_of_a_map_without_a_maximum_is_a_pixel_of_it() -> None:
    for flat in (torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), -2.0)):
        found = decode(flat, "dark", sigma=1)[0, 0]
        assert found.isfinite().all()
        assert found.equal(found.round())


def test_soft_argmax_is_the_mean_position_over_the_whole_map() -> None:
    blob = np.zeros((16, 16))
    blob[4, 2], blob[4, 10], blob[12, 2] = 2, 1, 1
    assert decode(maps_of(blob - 1e-9), "soft_argmax", sigma=1)[0, 0].tolist() == pytest.approx([4, 6])
    points = torch.tensor([[[20.25, 30.5], [31.5, 31.5]]])
    gaussians, _ = targets(points, 64, sigma=2, shape="gaussian")
    torch.testing.assert_close(decode(gaussians, "soft_argmax", sigma=2), points, atol=1e-3, rtol=0)


def test_local_mean_looks_no_further_than_its_window() -> None:
    blob = np.zeros((32, 32))
    blob[10, 8], blob[10, 9] = 2, 1
    blob[25:, 25:] = 1
    x, y = decode(maps_of(blob), "local_mean", sigma=1)[0, 0].tolist()
    assert (x, y) == (pytest.approx(8 + 1 / 3), 10)


def test_local_mean_at_the_corner_of_the_image_uses_what_there_is() -> None:
    blob = np.zeros((16, 16))
    blob[0, 0], blob[0, 1], blob[1, 0] = 2, 1, 1
    assert decode(maps_of(blob), "local_mean", sigma=1)[0, 0].tolist() == [0.25, 0.25]


def test_argmax_and_local_mean_of_a_map_without_positive_values_are_its_peak() -> None:
    blob = np.full((8, 8), -2.0)
    blob[3, 6] = -1
    for decoder in ("argmax", "local_mean", "soft_argmax"):
        assert decode(maps_of(blob), decoder, sigma=1)[0, 0].tolist() == [6, 3]  # type: ignore[arg-type]


def test_each_map_of_a_batch_is_decoded_by_itself() -> None:
    points = torch.tensor([[[5.0, 9.0], [20.0, 6.0]], [[11.0, 25.0], [26.0, 26.0]]])
    maps, _ = targets(points, 32, sigma=2, shape="disk")
    for decoder in ("centroid", "local_mean"):
        torch.testing.assert_close(decode(maps, decoder, sigma=2), points)  # type: ignore[arg-type]
    gaussians, _ = targets(points, 32, sigma=2, shape="gaussian")
    torch.testing.assert_close(decode(gaussians, "argmax", sigma=2), points)
    inner = points.clamp(9, 22)
    gaussians, _ = targets(inner, 32, sigma=1, shape="gaussian")
    torch.testing.assert_close(decode(gaussians, "dark", sigma=1), inner)


def test_scores_of_spatial_ce_are_probabilities_over_pixels() -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SCORES["spatial_ce"](logits).sum(dim=(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize("loss", SCORES)
def test_confidence_is_the_share_of_the_map_around_the_point(loss: str) -> None:
    peaks = torch.tensor([[[8.0, 8.0], [8.0, 8.0], [8.0, 8.0]]])
    one, _ = targets(peaks, 32, sigma=1.0, shape="gaussian")
    other, _ = targets(peaks.new_tensor([[[25.0, 20.0]]]), 32, sigma=1.0, shape="gaussian")
    maps = one.clone()
    maps[:, 1] += other[:, 0]
    maps[:, 2] = 1.0
    logits = maps if loss in ("mse", "adaptive") else torch.log(maps + 1e-9)
    sure, torn, flat = confidence(logits, peaks, loss=loss, sigma=1.0)[0].tolist()
    inside = sum((x - 8) ** 2 + (y - 8) ** 2 <= 4 for x in range(32) for y in range(32))
    assert 0.85 < sure <= 1
    assert torn == pytest.approx(sure / 2, abs=0.01)
    assert flat == pytest.approx(inside / 32**2, rel=1e-4)
    assert confidence(torch.full((1, 1, 8, 8), -5.0), peaks[:, :1], loss="mse", sigma=1.0).tolist() == [[0.0]]
