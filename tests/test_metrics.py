"""Both metric protocols against values worked by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from ablate.datasets import DATASETS, PaperScale, load_dataset
from ablate.network.heatmaps import centroid, targets, to_file, to_network
from ablate.network.metrics import Rate, paper_errors, paper_truth, physical_errors, summarise

CHEST = PaperScale(frame=(256.0, 256.0), reference=None)
CEPHALO = PaperScale(frame=(240.0, 193.5), reference=None)
HAND = PaperScale(frame=None, reference=(0, 4, 50.0))


def one_image(*points: tuple[float, float]) -> np.ndarray:
    return np.array([points], dtype=float)


# --- physical ---------------------------------------------------------------------------------------


def test_error_is_anisotropic_when_the_units_per_pixel_are() -> None:
    # 3 px at 2 mm on x and 4 px at 0.5 mm on y: hypot(6, 2)
    errors = physical_errors(one_image((13, 24)), one_image((10, 20)), np.array([[2.0, 0.5]]))
    assert errors == pytest.approx(np.array([[40**0.5]]))


def test_each_image_has_its_own_units_per_pixel() -> None:
    predicted, truth = np.array([[[3.0, 4.0]], [[3.0, 4.0]]]), np.zeros((2, 1, 2))
    errors = physical_errors(predicted, truth, np.array([[0.1, 0.1], [1.0, 1.0]]))
    assert errors == pytest.approx(np.array([[0.5], [5.0]]))


def test_predictions_are_not_rounded() -> None:
    assert physical_errors(one_image((10.25, 20)), one_image((10, 20)), np.ones((1, 2))) == pytest.approx(0.25)


def test_landmark_without_annotation_has_no_error() -> None:
    errors = physical_errors(one_image((1, 1), (2, 2)), one_image((1, 1), (np.nan, np.nan)), np.ones((1, 2)))
    np.testing.assert_array_equal(errors, [[0.0, np.nan]])


def test_one_network_pixel_on_a_non_square_film_is_wider_than_high_or_the_reverse() -> None:
    # a film of 193.5 x 240 mm, 1935 x 2400 px, shown on 256 x 256 px
    sizes, units = np.array([[1935, 2400]]), np.array([[0.1, 0.1]])
    truth = to_file(one_image((100, 100)), sizes, 256)
    on_x, on_y = (to_file(one_image(point), sizes, 256) for point in ((101, 100), (100, 101)))
    assert physical_errors(on_x, truth, units)[0, 0] == pytest.approx(193.5 / 256)
    assert physical_errors(on_y, truth, units)[0, 0] == pytest.approx(240 / 256)


# --- paper ------------------------------------------------------------------------------------------


def test_truth_is_the_nearest_whole_pixel_of_the_network_image() -> None:
    # 512 x 1024 file on 256 px: x_net = (x + 0.5) / 2 - 0.5, y_net = (y + 0.5) / 4 - 0.5
    truth = one_image((200, 400), (201, 403), (np.nan, np.nan))
    # (99.75, 99.625) -> (100, 100); (100.25, 100.375) -> (100, 100)
    np.testing.assert_array_equal(
        paper_truth(truth, np.array([[512, 1024]]), 256), [[[100, 100], [100, 100], [np.nan, np.nan]]]
    )


def test_truth_at_the_border_moves_inwards_with_its_cut_disk() -> None:
    # at x = 0 the disk of radius 5.887 px is cut to a half; its polygon's centroid is hand-made below
    columns = np.arange(6)  # 0..5
    half_heights = np.floor(np.sqrt(5.887**2 - columns**2))  # 5 5 5 5 4 3
    assert half_heights.tolist() == [5, 5, 5, 5, 4, 3]
    # polygon from x = 0 to 5: full height 10 to x = 3, then 10 -> 8 -> 6
    pieces = [(10, 10, 0, 3), (10, 8, 3, 4), (8, 6, 4, 5)]
    area = sum((a + b) / 2 * (end - start) for a, b, start, end in pieces)
    moment = 10 * 3 * 1.5 + sum(start * (a + b) / 2 + (a + 2 * b) / 6 for a, b, start, _ in pieces[1:])
    assert moment / area == pytest.approx(2.34, abs=0.01)
    whole = paper_truth(one_image((0, 128)), np.array([[256, 256]]), 256)
    assert whole.tolist() == [[[2, 128]]]


@pytest.mark.parametrize("image_size", [32, 96])
def test_truth_is_the_decoded_disk_wherever_it_lies(image_size: int) -> None:
    places = np.arange(0, image_size, 1 if image_size == 32 else 5)
    points = np.stack(np.meshgrid(places, places), axis=2).reshape(-1, 1, 2).astype(float)
    drawn, _ = targets(torch.from_numpy(points), image_size, sigma=max(1.0, 5 * image_size / 256), shape="disk")
    whole = paper_truth(points, np.full((len(points), 2), image_size), image_size)
    np.testing.assert_array_equal(whole, np.rint(centroid(drawn).numpy()))


def test_truth_of_a_small_image_is_found_though_the_scaled_disk_is_one_pixel() -> None:
    for image_size in (16, 32, 64):
        whole = paper_truth(one_image((7, 9)), np.array([[image_size, image_size]]), image_size)
        assert whole.tolist() == [[[7, 9]]]


def test_chest_errors_are_pixels_of_the_256_image() -> None:
    # file of 2000 x 3000: truth (100, 50) and prediction (103.4, 53.6) -> (103, 54) in network pixels
    sizes = np.array([[2000, 3000]])
    truth = to_file(one_image((100, 50)), sizes, 256)
    errors = paper_errors(one_image((103.4, 53.6)), truth, sizes, image_size=256, scale=CHEST)
    assert errors == pytest.approx(np.array([[5.0]]))  # 3 and 4


def test_chest_errors_at_another_size_are_still_pixels_of_a_256_image() -> None:
    sizes = np.array([[2000, 3000]])
    truth = to_file(one_image((50, 25)), sizes, 128)
    errors = paper_errors(one_image((53, 29)), truth, sizes, image_size=128, scale=CHEST)
    assert errors == pytest.approx(np.array([[10.0]]))


def test_cephalo_scales_x_by_the_height_of_the_film_and_y_by_its_width() -> None:
    sizes = np.array([[1935, 2400]])
    truth = to_file(one_image((100, 50), (30, 200)), sizes, 256)
    predicted = one_image((110, 50), (30, 190))
    errors = paper_errors(predicted, truth, sizes, image_size=256, scale=CEPHALO)
    # 10 px on x: 10 * 2400 / 256 * 0.1 mm; 10 px on y: 10 * 1935 / 256 * 0.1 mm
    assert errors == pytest.approx(np.array([[9.375, 7.55859375]]))
    physical = physical_errors(to_file(predicted, sizes, 256), truth, np.array([[0.1, 0.1]]))
    assert errors / physical == pytest.approx(np.array([[2400 / 1935, 1935 / 2400]]))  # 24 % over, 19 % under


def test_hand_scales_by_the_wrist_of_each_image_in_whole_pixels() -> None:
    sizes = np.array([[256, 512], [256, 512]])
    truth_net = np.array(
        [
            [[100.3, 200.0], [50, 50], [60, 60], [70, 70], [130.2, 240.4]],  # wrist (30, 40): 50 px = 50 mm
            [[100.0, 200.0], [50, 50], [60, 60], [70, 70], [100.0, 225.0]],  # wrist 25 px = 50 mm
        ]
    )
    predicted = truth_net.copy()
    predicted[:, 1] += [3.2, 4.4]  # (3, 4): 5 px
    errors = paper_errors(predicted, to_file(truth_net, sizes, 256), sizes, image_size=256, scale=HAND)
    assert errors == pytest.approx(np.array([[0, 5, 0, 0, 0], [0, 10, 0, 0, 0]]))


def test_hand_without_a_wrist_has_no_scale() -> None:
    truth = one_image((np.nan, np.nan), (50, 50), (60, 60), (70, 70), (80, 80))
    errors = paper_errors(np.nan_to_num(truth), truth, np.array([[256, 256]]), image_size=256, scale=HAND)
    assert np.isnan(errors).all()


def test_failed_decoding_counts_as_the_distance_from_zero_zero() -> None:
    truth = one_image((30, 40))
    errors = paper_errors(np.zeros((1, 1, 2)), truth, np.array([[256, 256]]), image_size=256, scale=CHEST)
    assert errors == pytest.approx(np.array([[50.0]]))


def test_scales_of_the_public_sets_are_those_of_the_hand_worked_cases() -> None:
    assert {name: DATASETS[name].paper for name in ("chest", "cephalo", "hand")} == {
        "chest": CHEST,
        "cephalo": CEPHALO,
        "hand": HAND,
    }


# --- summary ----------------------------------------------------------------------------------------


def test_summary_of_five_known_errors() -> None:
    summary = summarise(np.array([[1.0, 2.0, np.nan], [2.0, 3.0, 12.0]]), (2.0, 3.0, 4.0))
    assert (summary.mre, summary.median, summary.std) == pytest.approx((4.0, 2.0, 16.4**0.5))  # deviations 3 2 2 1 8
    assert summary.sdr == (Rate(2.0, 0.6), Rate(3.0, 0.8), Rate(4.0, 0.8))


def test_each_landmark_counts_the_same_not_each_image() -> None:
    assert summarise(np.array([[1.0, 1.0, 1.0], [5.0, np.nan, np.nan]]), ()).mre == 2.0


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one annotated"):
        summarise(np.full((2, 3), np.nan), (2.0,))


# --- real radiographs -------------------------------------------------------------------------------


def test_label_files_of_real_cephalograms_have_no_error_against_themselves(xray_data: Path) -> None:
    test = load_dataset("cephalo", xray_data, 64).test
    name = Path(test.names[0]).stem
    annotators = []
    for folder in ("400_junior", "400_senior"):
        with (xray_data / "cephalo" / folder / f"{name}.txt").open() as file:
            annotators.append([[float(value) for value in row] for row in list(csv.reader(file))[:19]])
    truth = np.array(annotators).mean(axis=0)
    np.testing.assert_allclose(test.points_NK2[0], truth)
    assert physical_errors(truth[None], test.points_NK2[:1], test.unit_per_pixel_N2[:1]).max() < 1e-9
    junior = physical_errors(np.array(annotators[:1]), test.points_NK2[:1], test.unit_per_pixel_N2[:1])
    width, height = test.sizes_N2[0]
    apart = (np.array(annotators[0]) - np.array(annotators[1])) / 2 / [width, height] * [193.5, 240.0]
    np.testing.assert_allclose(junior[0], np.hypot(*apart.T))


def test_perfect_prediction_on_real_cephalograms_has_no_error_in_either_protocol(xray_data: Path) -> None:
    data = load_dataset("cephalo", xray_data, 64)
    test, paper = data.test, data.paper
    assert paper is not None
    exact = to_network(test.points_NK2, test.sizes_N2, 64)
    restored = to_file(exact, test.sizes_N2, 64)
    assert physical_errors(restored, test.points_NK2, test.unit_per_pixel_N2).max() < 1e-9
    errors = paper_errors(exact, test.points_NK2, test.sizes_N2, image_size=64, scale=paper)
    assert np.median(errors) == 0
    assert errors.max() < 1.5 * 240 / 64  # a disk that the border cuts moves the truth by a pixel
