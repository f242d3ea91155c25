"""Generated radiographs: determined by their index, varied, and only to be read by looking."""

import numpy as np
import pytest

from ablate.datasets import load_dataset, require_dataset
from ablate.datasets.synthetic import HEIGHT, LANDMARKS, MM_PER_PIXEL, WIDTH, render, synthetic_records


def test_a_picture_is_a_function_of_its_index() -> None:
    first, again, other = render(3), render(3), render(4)
    np.testing.assert_array_equal(first.image_HW, again.image_HW)
    np.testing.assert_array_equal(first.points_K2, again.points_K2)
    assert (first.image_HW != other.image_HW).any()
    assert first.image_HW.shape == (HEIGHT, WIDTH) == (240, 192)


def test_the_generator_still_draws_the_pictures_of_its_version() -> None:
    """A change of these numbers needs a new GENERATOR_VERSION."""
    record = synthetic_records()[7]
    np.testing.assert_allclose(record.points_K2[0], [39.295, 144.750], atol=0.01)
    assert render(7).image_HW.mean() == pytest.approx(100.48, abs=0.3)


def test_the_splits_have_130_20_and_100_images_and_no_paper_scale() -> None:
    info = require_dataset("synthetic", None)
    assert (info.of(None).train, info.of(None).val, info.of(None).test, info.num_landmarks) == (
        130,
        20,
        100,
        len(LANDMARKS),
    )
    assert (info.unit, info.paper, info.folder) == ("mm", None, None)


def test_landmarks_lie_inside_and_spread_over_a_tenth_of_the_side() -> None:
    points_NK2 = np.stack([record.points_K2 for record in synthetic_records()])
    shares_NK2 = (points_NK2 + 0.5) / (WIDTH, HEIGHT)
    assert shares_NK2.min() > 0.02
    assert shares_NK2.max() < 0.98
    assert shares_NK2.std(axis=0).min() > 0.1
    # after taking out the shift of each picture, landmarks still move: pose and anatomy vary
    centred_NK2 = points_NK2 - points_NK2.mean(axis=1, keepdims=True)
    assert (centred_NK2.std(axis=0) * MM_PER_PIXEL).max(axis=1).min() > 2


def test_the_mean_position_is_far_off() -> None:
    records = synthetic_records()
    train = np.stack([record.points_K2 for record in records if record.split == "train"])
    test = np.stack([record.points_K2 for record in records if record.split == "test"])
    error_mm = np.linalg.norm((test - train.mean(axis=0)) * MM_PER_PIXEL, axis=-1).mean()
    assert error_mm > 25


def test_landmarks_stand_on_bone_edges_in_the_picture() -> None:
    """At each edge landmark, inside the bone is brighter than the same way outside."""
    steps = {0: (6, 0), 1: (-6, 0), 5: (7, 0), 6: (-7, 0), 4: (0, -7)}  # towards the bone, in the knee's own axes
    brighter = total = 0
    for index in range(30):
        radiograph = render(index)
        points_K2 = radiograph.points_K2
        axis = (points_K2[1] - points_K2[0]) / np.linalg.norm(points_K2[1] - points_K2[0])
        frame = np.array([axis, [-axis[1], axis[0]]])
        for landmark, step in steps.items():
            offset = np.array(step) @ frame
            inside, outside = np.rint(points_K2[landmark] + offset), np.rint(points_K2[landmark] - offset)
            if (np.minimum(inside, outside) < 0).any() or (np.maximum(inside, outside) >= (WIDTH, HEIGHT)).any():
                continue
            x, y = inside.astype(int)
            u, v = outside.astype(int)
            brighter += int(radiograph.image_HW[y, x]) > int(radiograph.image_HW[v, u])
            total += 1
    assert total > 100
    assert brighter / total > 0.9


def test_exposure_and_noise_vary() -> None:
    pictures = [render(index).image_HW.astype(float) for index in range(25)]
    assert np.std([picture.mean() for picture in pictures]) > 8
    grain = [np.abs(np.diff(picture, axis=1)).mean() for picture in pictures]
    assert max(grain) > 1.5 * min(grain)


def test_a_loaded_set_has_the_network_size_and_no_duplicates() -> None:
    dataset = load_dataset("synthetic", None, 32)
    assert dataset.train.images_NHW.shape == (130, 32, 32)
    assert not np.concatenate([dataset.val.duplicates_N, dataset.test.duplicates_N]).any()
    np.testing.assert_array_equal(dataset.test.unit_per_pixel_N2, 0.9)
    np.testing.assert_array_equal(dataset.test.sizes_N2, np.full((100, 2), (192, 240)))
