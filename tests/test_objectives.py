"""What fine-tuning minimises: the contract of every loss, learnt sigmas and the wing loss by hand."""

import itertools
import math
import typing
from typing import Any

import pytest
import torch
from test_finetune import NUM_LANDMARKS, Always, assert_equal_outcomes, dataset, network_of, run, spec_of
from tiny import small_network

from ablate.finetune import Objective, build_objective
from ablate.finetune.losses import wing
from ablate.finetune.objectives import AdaptiveObjective
from ablate.network.heatmaps import Loss, gaussians
from ablate.space import SMALLEST_SIGMA, EvaluateSpec
from ablate.training import unpack

torch.set_num_threads(1)

SIZE = 16
POINTS = torch.tensor([[[3.0, 4.0], [9.0, 10.0], [12.2, 3.0]], [[8.0, 8.0], [8.5, 9.0], [1.0, 14.0]]])
EVERY_LOSS = pytest.mark.parametrize("loss", typing.get_args(Loss))
SCN = small_network("scn").model_dump()


def objective_of(loss: str, **fields: Any) -> Objective:
    fields = {"loss": loss, "target": "gaussian", "sigma": 1.5, **fields}
    return build_objective(spec_of(image_size=SIZE, finetune=fields), NUM_LANDMARKS).double()


def maps_of(num_images: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((num_images, NUM_LANDMARKS, SIZE, SIZE), generator=generator).double().requires_grad_()


# --- every loss -------------------------------------------------------------------------------------


@EVERY_LOSS
def test_losses_of_parts_weighted_by_their_images_are_the_loss_of_the_whole(loss: str) -> None:
    objective, maps = objective_of(loss), maps_of()
    parts = [objective(maps[[image]], POINTS[[image]].double()).mean() / 2 for image in range(2)]
    torch.testing.assert_close(sum(parts), objective(maps, POINTS.double()).mean())


@EVERY_LOSS
def test_a_landmark_without_annotation_adds_nothing(loss: str) -> None:
    objective, maps, points = objective_of(loss), maps_of(), POINTS.double().clone()
    points[:, 1] = math.nan
    found = objective(maps, points)
    found.sum().backward()
    assert found.isfinite().all()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert not maps.grad[:, 1].any()
    assert maps.grad[:, 0].any()
    for parameter in objective.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).tolist() == [True, False, True]
    changed = maps.detach().clone()
    changed[:, 1] += 5
    torch.testing.assert_close(objective(changed, points), found)


@EVERY_LOSS
def test_an_image_without_any_annotation_has_loss_zero_and_no_gradient(loss: str) -> None:
    objective, maps = objective_of(loss), maps_of()
    found = objective(maps, torch.full_like(POINTS, math.nan).double())
    found.sum().backward()
    assert found.tolist() == [0, 0]
    assert maps.grad is not None
    assert not maps.grad.any()
    assert not any(parameter.grad is None or parameter.grad.any() for parameter in objective.parameters())


def test_only_the_adaptive_loss_has_parameters() -> None:
    assert {loss for loss in typing.get_args(Loss) if list(objective_of(loss).parameters())} == {"adaptive"}


# --- learnt sigmas ----------------------------------------------------------------------------------


def test_adaptive_loss_is_the_published_formula_and_starts_from_the_trials_sigma() -> None:
    objective, maps = objective_of("adaptive", sigma=2.0, heat_scale=50.0, sigma_penalty=3.0), maps_of(1).detach()
    assert isinstance(objective, AdaptiveObjective)
    torch.testing.assert_close(objective.sigmas(), torch.full((3,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)
    expected = 0.0
    for landmark, (x, y) in enumerate(POINTS[0].double().tolist()):
        for row in range(SIZE):
            for column in range(SIZE):
                distance2 = (column - x) ** 2 + (row - y) ** 2
                target = 50 / (2 * math.pi * 2.0**2) * math.exp(-distance2 / (2 * 2.0**2))
                expected += (maps[0, landmark, row, column].item() - target) ** 2
        expected += 3.0 * 2.0**2
    assert objective(maps, POINTS[:1].double()).item() == pytest.approx(expected / 3, rel=1e-6)


def minimised(**fields: Any) -> AdaptiveObjective:
    """Return the objective after its sigmas alone were trained against maps that are zero everywhere."""
    objective = objective_of("adaptive", **fields)
    assert isinstance(objective, AdaptiveObjective)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        objective(torch.zeros(2, NUM_LANDMARKS, SIZE, SIZE), torch.full_like(POINTS, 7.5)).sum().backward()
        optimizer.step()
    return objective


def test_sigma_settles_where_the_derivative_is_zero() -> None:
    # of a missed target scale^2 / (4 pi sigma^2) + penalty sigma^2 is least at sigma^4 = scale^2 / (4 pi penalty)
    found = minimised(heat_scale=100.0, sigma_penalty=400.0).sigmas()
    assert found.tolist() == pytest.approx([(100**2 / (4 * math.pi * 400)) ** 0.25] * 3, rel=1e-2)


def test_sigma_never_falls_below_its_bound() -> None:
    found = minimised(heat_scale=1.0, sigma_penalty=1e6).sigmas()
    assert (found >= SMALLEST_SIGMA).all()
    assert (found < SMALLEST_SIGMA + 0.05).all()


def test_each_landmark_has_a_sigma_of_its_own() -> None:
    maps, _ = gaussians(POINTS, SIZE, torch.tensor([1.0, 2.0, 3.0]))
    for landmark, sigma in enumerate((1.0, 2.0, 3.0)):
        x, y = POINTS[1, landmark].tolist()
        distance2 = (5 - x) ** 2 + (7 - y) ** 2
        assert maps[1, landmark, 7, 5].item() == pytest.approx(math.exp(-distance2 / (2 * sigma**2)), rel=1e-5)


ADAPTIVE = {"loss": "adaptive", "sigma": 2.0, "lr": 0.01, "epochs": 2, "schedule": "linear"}


@pytest.mark.parametrize("validation", ["full", "inside_shots", "none"])
def test_learnt_sigmas_go_on_bit_for_bit_after_any_optimizer_step(validation: str) -> None:
    spec = spec_of(network=SCN, finetune=ADAPTIVE, validation=validation)
    data, checkpoint = dataset(6), Always()
    whole = run(spec, data, checkpoint=checkpoint)
    states = [unpack(files) for files in checkpoint.saved.values()]
    sigmas = [state["objective"]["raw_K"].tolist() for state in states]
    assert all(before != after for before, after in itertools.pairwise(sigmas))
    for state in states:
        other = network_of(spec_of(network=SCN, finetune=ADAPTIVE, seed=99))
        assert_equal_outcomes(run(spec, data, state, network=other), whole)


def test_learnt_sigmas_go_on_after_a_pause() -> None:
    spec, data, checkpoint = spec_of(network=SCN, finetune=ADAPTIVE), dataset(6), Always()
    run(spec, data, checkpoint=checkpoint, until=0.5)
    (*_, last) = checkpoint.saved.values()
    assert_equal_outcomes(run(spec, data, unpack(last)), run(spec, data))


def test_the_second_phase_starts_from_the_first_sigma_again() -> None:
    checkpoint = Always()
    spec = spec_of(network=SCN, finetune=ADAPTIVE, validation="inside_shots", validation_share=0.4)
    run(spec, dataset(5), checkpoint=checkpoint)
    states = [unpack(files) for files in checkpoint.saved.values()]
    second = [state for state in states if state["position"]["first_steps"] is not None]
    start = build_objective(spec, NUM_LANDMARKS).state_dict()["raw_K"]
    moved = [float((state["objective"]["raw_K"] - start).abs().max()) for state in (states[0], second[0])]
    assert moved == pytest.approx([0.01, 0.01], rel=1e-2)  # the first step of Adam is as long as the learning rate


def test_the_curve_holds_the_mean_sigma_of_each_validation() -> None:
    outcome = run(spec_of(network=SCN, finetune=ADAPTIVE), dataset())
    found = [point.value for point in outcome.curve if point.metric == "sigma"]
    assert len(found) == len(set(found)) == 2
    assert all(1.5 < value < 2.5 for value in found)
    other = run(spec_of(finetune={"epochs": 1}), dataset())
    assert {point.metric for point in other.curve} == {"loss", "val_loss", "lr", "val_mre"}


def test_weights_are_judged_by_their_error_and_with_other_losses_by_the_loss() -> None:
    objective, maps = objective_of("adaptive"), gaussians(POINTS + 1.0, SIZE, torch.ones(NUM_LANDMARKS))[0]
    points = POINTS.clone()
    points[1, 2] = math.nan
    objective.spec = objective.spec.model_copy(update={"evaluate": EvaluateSpec(decode="local_mean")})
    found = objective.judged(maps, points)
    assert found.tolist() == pytest.approx([math.sqrt(2)] * 2, abs=0.05)
    other = objective_of("mse")
    assert torch.equal(other.judged(maps, points), other(maps, points))


# --- wing -------------------------------------------------------------------------------------------


def test_wing_by_hand() -> None:
    found = wing(torch.tensor([0.0, 2.0, 10.0, 12.0], dtype=torch.float64), width=10.0, curvature=2.0)
    at_width = 10 * math.log(6)
    assert found.tolist() == pytest.approx([0, 10 * math.log(2), at_width, at_width + 2])


def test_wing_compares_landmarks_with_the_mean_position_of_the_softmax() -> None:
    maps = torch.full((1, NUM_LANDMARKS, SIZE, SIZE), -1e4).double()
    maps[0, :, 6, 4] = maps[0, :, 6, 8] = 0  # mean position (6, 6)
    points = torch.tensor([[[6.0, 6.0], [6.5, 6.0], [6.0, 16.0]]]).double()  # right, half a pixel off, outside
    width, curvature = 10 * SIZE / 256, 2 * SIZE / 256
    expected = (0 + width * math.log1p(0.5 / curvature)) / 2
    assert objective_of("wing")(maps, points).item() == pytest.approx(expected)
