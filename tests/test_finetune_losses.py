"""Each loss against torch's own or a hand count, image by image."""

import math

import pytest
import torch

from ablate.finetune import LOSSES
from ablate.network.heatmaps import targets

torch.set_num_threads(1)

POINTS = torch.tensor(
    [[[3.0, 4.0], [9.0, 10.0], [12.2, 3.0]], [[8.0, 8.0], [8.5, 9.0], [1.0, 14.0]], [[5.0, 5.0], [2.0, 2.0], [7, 7]]]
)
NAN = math.nan


def batch(points: torch.Tensor = POINTS, shape: str = "disk") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    maps, annotated = targets(points.double(), 16, sigma=1.5, shape=shape)  # type: ignore[arg-type]
    logits = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits.requires_grad_(), maps, annotated


def test_ce_is_torchs_cross_entropy_with_soft_labels() -> None:
    logits, maps, annotated = batch()
    expected = torch.nn.CrossEntropyLoss()(logits, maps)  # mean over 3 * 16 * 16 pixels
    torch.testing.assert_close(LOSSES["ce"](logits, maps, annotated).mean(), expected)


def test_ce_has_no_gradient_at_pixels_in_no_disk() -> None:
    logits, maps, annotated = batch()
    LOSSES["ce"](logits, maps, annotated).mean().backward()
    assert logits.grad is not None
    in_some_disk = (maps.sum(dim=1, keepdim=True) > 0).expand_as(maps)
    assert not logits.grad[~in_some_disk].any()
    assert logits.grad[in_some_disk].all()


def test_spatial_ce_of_a_gaussian_is_its_cross_entropy_with_the_softmax_over_pixels() -> None:
    logits, maps, annotated = batch(shape="gaussian")
    expected = torch.zeros(3, dtype=torch.float64)
    for image in range(3):
        for landmark in range(3):
            p = maps[image, landmark].flatten() / maps[image, landmark].sum()
            q = logits[image, landmark].flatten().exp() / logits[image, landmark].exp().sum()
            expected[image] -= (p * q.log()).sum() / 3
    torch.testing.assert_close(LOSSES["spatial_ce"](logits, maps, annotated), expected)


def test_mse_is_the_mean_squared_difference_of_each_image() -> None:
    logits, maps, annotated = batch(shape="gaussian")
    torch.testing.assert_close(
        LOSSES["mse"](logits, maps, annotated), ((logits - maps) ** 2).reshape(3, -1).mean(dim=1)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_parts_weighted_by_their_images_are_the_loss_of_the_whole(name: str) -> None:
    logits, maps, annotated = batch()
    whole = LOSSES[name](logits, maps, annotated).mean()  # type: ignore[index]
    parts = [
        LOSSES[name](logits[part], maps[part], annotated[part]).mean() * share  # type: ignore[index]
        for part, share in ((slice(0, 2), 2 / 3), (slice(2, 3), 1 / 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", ["disk", "gaussian"])
def test_landmark_without_annotation_gets_no_gradient_and_changes_no_other(name: str, shape: str) -> None:
    points = POINTS.clone()
    points[0, 1] = NAN
    logits, maps, annotated = batch(points, shape)
    loss = LOSSES[name](logits, maps, annotated)  # type: ignore[index]
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[0, 1].any()
    assert logits.grad[0, 0].any()
    # the same as if the landmark did not exist in that image
    without = logits.detach()[:1, [0, 2]].requires_grad_()
    alone = LOSSES[name](without, maps[:1, [0, 2]], annotated[:1, [0, 2]])  # type: ignore[index]
    torch.testing.assert_close(alone[0], loss[0])
    alone.sum().backward()
    torch.testing.assert_close(without.grad, logits.grad[:1, [0, 2]])


@pytest.mark.parametrize("name", LOSSES)
def test_image_without_any_annotation_has_loss_zero_and_no_gradient(name: str) -> None:
    points = POINTS.clone()
    points[1] = NAN
    logits, maps, annotated = batch(points)
    loss = LOSSES[name](logits, maps, annotated)  # type: ignore[index]
    loss.sum().backward()
    assert loss[1] == 0
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert logits.grad.isfinite().all()


def test_landmark_that_augmentation_moved_outside_does_not_count_in_spatial_ce() -> None:
    points = POINTS.clone()
    points[0, 1] = torch.tensor([40.0, 8.0])
    logits, maps, annotated = batch(points)
    assert annotated.all()
    loss = LOSSES["spatial_ce"](logits, maps, annotated)
    assert loss.isfinite().all()
    loss.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[0, 1].any()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_least_where_the_maps_are_right(name: str) -> None:
    _, maps, annotated = batch()
    right = LOSSES[name](maps * (1 if name == "mse" else 20), maps, annotated)  # type: ignore[index]
    wrong = LOSSES[name](maps.flip(1) * (1 if name == "mse" else 20), maps, annotated)  # type: ignore[index]
    assert (right < wrong).all()
