"""Fine-tuning: it learns, counts and goes on exactly as it says."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import small_network
from torch import Tensor

from ablate.datasets import Dataset, PaperScale, Pool, Split
from ablate.errors import InputError
from ablate.finetune import (
    FinetuneOutcome,
    accumulate_gradients,
    build_objective,
    check_finetune,
    draw_targets,
    finetune,
    learning_rate,
    select_shots,
)
from ablate.network.base import Network
from ablate.network.building import build_network
from ablate.network.evaluation import evaluate, images_that_count, predict
from ablate.network.heatmaps import to_file, to_network
from ablate.network.metrics import physical_errors
from ablate.space import FinetuneSpec, TrialSpec
from ablate.training import Diverged, Interrupted, Progress, State, pack, silent, unpack

torch.set_num_threads(1)

SIZE, NUM_LANDMARKS = 32, 3


@functools.cache
def split_of(num_images: int, seed: int, image_size: int = SIZE) -> Split:
    """Blobs of three brightnesses on noise, in files of 96 x 64 pixels at 0.5 and 0.25 mm per pixel."""
    generator = np.random.default_rng(seed)
    sizes = np.tile([96, 64], (num_images, 1))
    points = generator.uniform(6, 26, (num_images, NUM_LANDMARKS, 2)) * image_size / 32
    for image in range(num_images):  # apart from each other, so that none hides another
        while min(np.linalg.norm(points[image, a] - points[image, a - 1]) for a in range(3)) < 7 * image_size / 32:
            points[image] = generator.uniform(6, 26, (NUM_LANDMARKS, 2)) * image_size / 32
    y, x = np.mgrid[:image_size, :image_size]
    images = generator.normal(90, 6, (num_images, image_size, image_size))
    for landmark, height in enumerate((160, 90, -80)):
        distance2 = (x - points[:, landmark, 0, None, None]) ** 2 + (y - points[:, landmark, 1, None, None]) ** 2
        images += height * np.exp(-distance2 / (2 * (2.0 * image_size / 32) ** 2))
    return Split(
        tuple(f"{index:03}.png" for index in range(num_images)),
        np.clip(images, 0, 255).astype(np.uint8),
        to_file(points, sizes, image_size),
        sizes,
        np.tile([0.5, 0.25], (num_images, 1)),
        np.zeros(num_images, dtype=bool),
    )


@functools.cache
def dataset(num_train: int = 5, num_val: int = 2, num_test: int = 6, image_size: int = SIZE) -> Dataset:
    parts = [split_of(count, seed, image_size) for seed, count in enumerate((num_train, num_val, num_test))]
    pool = Pool((), np.zeros((0, image_size, image_size), np.uint8))
    return Dataset(
        "blobs", "mm", image_size, NUM_LANDMARKS, (2.0, 4.0), PaperScale((48.0, 16.0), None), *parts, pool, "0" * 16
    )


def spec_of(**fields: Any) -> TrialSpec:
    finetune_fields = {"lr": 1e-3, "epochs": 3, "batch_size": 2, "accumulate": 2} | fields.pop("finetune", {})
    network = {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "attention": "none"}
    return TrialSpec.model_validate(
        {"dataset": "blobs", "image_size": SIZE, "network": network, "finetune": finetune_fields, **fields}
    )


def network_of(spec: TrialSpec) -> Network:
    return build_network(spec.network, num_outputs=NUM_LANDMARKS, image_size=spec.image_size, seed=spec.seed)


class Never:
    """Checkpoints are never due."""

    def due(self) -> bool:
        return False

    def save(self, step: int, state: State) -> None:
        raise AssertionError("no checkpoint was due")


class Always:
    """Keeps the state after every step, as bytes."""

    def __init__(self) -> None:
        self.saved: dict[int, dict[str, bytes]] = {}

    def due(self) -> bool:
        return True

    def save(self, step: int, state: State) -> None:
        assert step not in self.saved
        self.saved[step] = pack(state)


def run(spec: TrialSpec, data: Dataset, state: State | None = None, **options: Any) -> FinetuneOutcome:
    options = {"checkpoint": Never(), "report": silent, "network": network_of(spec)} | options
    return finetune(spec, data=data, device="cpu", state=state, **options)


def assert_equal_outcomes(first: FinetuneOutcome, second: FinetuneOutcome) -> None:
    def numbers(outcome: FinetuneOutcome) -> list[Any]:
        curve = [dataclasses.replace(point, seconds=0.0) for point in outcome.curve]
        return [outcome.best_epoch, outcome.epochs, outcome.val_loss, outcome.val_mre, curve]

    assert numbers(first) == numbers(second)
    assert first.best_state.keys() == second.best_state.keys()
    assert all(torch.equal(first.best_state[name], second.best_state[name]) for name in first.best_state)


# --- learning ---------------------------------------------------------------------------------------


SMALL = {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "attention": "none"}
SCN = small_network("scn").model_dump()


@pytest.mark.parametrize(
    ("network", "loss", "target", "sigma", "decode", "epochs"),
    [
        (SMALL, "ce", "disk", 2.0, "centroid", 50),
        (SMALL, "spatial_ce", "gaussian", 1.0, "local_mean", 40),
        (SMALL, "mse", "gaussian", 2.0, "centroid", 60),
        ({"kind": "encoder", "encoder": "resnet18"}, "spatial_ce", "gaussian", 1.0, "local_mean", 40),
        (SCN, "adaptive", "gaussian", 1.5, "dark", 60),
        (SCN, "wing", "gaussian", 1.5, "soft_argmax", 100),
    ],
    ids=["unet-ce", "unet-spatial_ce", "unet-mse", "encoder-spatial_ce", "scn-adaptive", "scn-wing"],
)
def test_network_overfits_four_images_to_under_one_pixel(
    network: dict[str, Any], loss: str, target: str, sigma: float, decode: str, epochs: int
) -> None:
    data = dataset(4)
    data = dataclasses.replace(data, val=data.train)  # the best epoch is the best on the images themselves
    lr = 2e-3 if network["kind"] == "encoder" else 1e-2
    fields = {
        "lr": lr, "schedule": "linear", "epochs": epochs, "patience": epochs,
        "batch_size": 4, "accumulate": 1, "augment": {"probability": 0.0},
        "loss": loss, "target": target, "sigma": sigma,
    }  # fmt: skip
    spec = spec_of(network=network, finetune=fields, evaluate={"decode": decode})
    trained = network_of(spec)
    run(spec, data, network=trained)
    points = predict(trained, data.train.images_NHW, data.train.sizes_N2, spec, device="cpu").points_NK2
    errors_px = np.linalg.norm(
        to_network(points, data.train.sizes_N2, SIZE) - to_network(data.train.points_NK2, data.train.sizes_N2, SIZE),
        axis=2,
    )
    assert errors_px.max() < 1


# --- accumulation -----------------------------------------------------------------------------------


def gradients(spec: TrialSpec, data: Dataset, num_images: int) -> tuple[float, dict[str, Tensor]]:
    network = network_of(spec)
    points = to_network(data.train.points_NK2[:num_images], data.train.sizes_N2[:num_images], spec.image_size)
    images = torch.from_numpy(data.train.images_NHW[:num_images])
    objective = build_objective(spec, NUM_LANDMARKS)
    loss = accumulate_gradients(spec, network, objective, images, torch.from_numpy(points).float(), 7)
    return float(loss), {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("loss", ["ce", "spatial_ce", "mse"])
def test_step_of_2_x_8_equals_one_of_16(loss: str) -> None:
    data = dataset(16)
    data.train.points_NK2[3, 1] = np.nan
    one = spec_of(finetune={"batch_size": 16, "accumulate": 1, "loss": loss})
    many = spec_of(finetune={"batch_size": 2, "accumulate": 8, "loss": loss})
    (loss_one, of_one), (loss_many, of_many) = gradients(one, data, 16), gradients(many, data, 16)
    assert loss_many == pytest.approx(loss_one, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in of_one.values())
    assert largest > 0
    assert of_one.keys() == of_many.keys()
    for name, gradient in of_one.items():
        torch.testing.assert_close(of_many[name], gradient, rtol=1e-5, atol=1e-5 * largest)


def test_incomplete_window_steps_on_the_mean_over_its_images() -> None:
    data = dataset(5)
    whole = spec_of(finetune={"batch_size": 5, "accumulate": 1})
    parts = spec_of(finetune={"batch_size": 2, "accumulate": 8})  # passes of 2, 2 and 1 image
    (loss_whole, of_whole), (loss_parts, of_parts) = gradients(whole, data, 5), gradients(parts, data, 5)
    assert loss_parts == pytest.approx(loss_whole, rel=1e-5)
    for name, gradient in of_whole.items():
        torch.testing.assert_close(of_parts[name], gradient, rtol=1e-5, atol=1e-6)


def test_epoch_of_5_images_in_windows_of_4_takes_two_steps() -> None:
    checkpoint = Always()
    outcome = run(spec_of(finetune={"epochs": 2}), dataset(), checkpoint=checkpoint)
    assert list(checkpoint.saved) == [1, 2, 3, 4]
    assert [point.step for point in outcome.curve if point.metric == "val_loss"] == [2, 4]


def test_loss_of_an_epoch_is_the_mean_over_its_images_not_over_its_windows() -> None:
    still = {"epochs": 1, "lr": 1e-12, "augment": {"probability": 0.0}}  # all windows see one network
    losses = [
        run(spec_of(finetune=still | window), dataset()).curve[0].value
        for window in ({"batch_size": 5, "accumulate": 1}, {"batch_size": 2, "accumulate": 2})
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- shots, schedule, stopping ----------------------------------------------------------------------


def test_first_shots_are_the_first_files_and_all_is_all() -> None:
    assert select_shots(spec_of(shots=3).selection, 8, dataset="blobs").tolist() == [0, 1, 2]
    assert select_shots(spec_of(shots="all").selection, 4, dataset="blobs").tolist() == [0, 1, 2, 3]
    assert select_shots(spec_of(shots=8).selection, 8, dataset="blobs").tolist() == list(range(8))


def test_random_shots_depend_on_the_seed_and_fewer_are_part_of_more() -> None:
    few, more = (
        select_shots(spec_of(shots=shots, few_shot="random", seed=1).selection, 50, dataset="blobs")
        for shots in (5, 20)
    )
    assert set(few) < set(more)
    assert more.tolist() == sorted(set(more.tolist()))
    assert (
        few.tolist()
        != select_shots(spec_of(shots=5, few_shot="random", seed=2).selection, 50, dataset="blobs").tolist()
    )


def test_more_shots_than_training_images_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"shots must be at most 8.*blobs; got 9"):
        select_shots(spec_of(shots=9).selection, 8, dataset="blobs")


def test_only_the_shots_are_trained_on() -> None:
    data = dataset()
    damaged = dataclasses.replace(data.train, images_NHW=data.train.images_NHW.copy())
    damaged.images_NHW[3:] = 0
    assert_equal_outcomes(run(spec_of(shots=3), data), run(spec_of(shots=3), dataclasses.replace(data, train=damaged)))


def test_plateau_halves_the_rate_exactly_when_torch_does() -> None:
    generator = np.random.default_rng(0)
    for case in range(20):
        losses = np.abs(np.cumsum(generator.normal(-0.01, 0.3, 120)) + 3).tolist()
        spec = FinetuneSpec(lr=1e-3, plateau_patience=1 + case % 4, plateau_factor=0.5)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1 + case % 4, factor=0.5)
        for epoch, loss in enumerate(losses):
            assert learning_rate(spec, losses[:epoch], epoch, 120) == optimizer.param_groups[0]["lr"]
            scheduler.step(loss)
        assert optimizer.param_groups[0]["lr"] < 1e-3


def test_plateau_of_the_paper_waits_for_14_epochs_without_improvement() -> None:
    losses = [2.0, 1.0] + [1.0] * 13
    assert learning_rate(FinetuneSpec(lr=1e-4), losses, 15, 200) == 1e-4
    assert learning_rate(FinetuneSpec(lr=1e-4), [*losses, 1.0], 16, 200) == 5e-5


def test_linear_schedule_falls_to_zero_after_the_last_step() -> None:
    spec = FinetuneSpec(lr=1.0, schedule="linear")
    assert [learning_rate(spec, [], step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert learning_rate(FinetuneSpec(lr=1.0, schedule="constant"), [1.0] * 99, 50, 100) == 1.0


@pytest.mark.parametrize("schedule", ["plateau", "linear", "constant"])
def test_rate_rises_for_the_warm_up_to_what_it_is_without(schedule: str) -> None:
    plain, warm = (FinetuneSpec(lr=1e-3, schedule=schedule, warmup=steps) for steps in (0, 4))
    rates = [learning_rate(warm, [], step, 100) / learning_rate(plain, [], step, 100) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_curve_holds_the_rate_each_epoch_ended_with() -> None:
    outcome = run(spec_of(finetune={"schedule": "linear", "epochs": 2, "lr": 1.0e-3}), dataset())
    assert [point.value for point in outcome.curve if point.metric == "lr"] == [0.75e-3, 0.25e-3]


def test_training_stops_after_patience_epochs_without_improvement_and_keeps_the_best_weights() -> None:
    # a rate so high that the first epochs soon are the best
    spec = spec_of(finetune={"epochs": 60, "patience": 3, "lr": 0.03, "schedule": "constant"})
    network = network_of(spec)
    outcome = run(spec, dataset(), network=network)
    losses = [point.value for point in outcome.curve if point.metric == "val_loss"]
    assert outcome.epochs == len(losses) < 60
    assert outcome.best_epoch == outcome.epochs - 3 == 1 + int(np.argmin(losses))
    assert outcome.val_loss == min(losses)
    (best,) = [point for point in outcome.curve if point.metric == "val_mre"]
    assert (best.epoch, best.value) == (outcome.best_epoch, outcome.val_mre)
    assert all(torch.equal(tensor, outcome.best_state[name]) for name, tensor in network.state_dict().items())


def test_validation_error_is_the_physical_error_of_the_best_weights_on_the_validation_images() -> None:
    data, spec = dataset(), spec_of()
    network = network_of(spec)
    outcome = run(spec, data, network=network)
    val = data.val
    points = predict(network, val.images_NHW, val.sizes_N2, spec, device="cpu").points_NK2
    assert outcome.val_mre == pytest.approx(physical_errors(points, val.points_NK2, val.unit_per_pixel_N2).mean())


def test_loss_that_is_not_finite_ends_with_the_epoch_and_the_cure() -> None:
    spec = spec_of()
    network = network_of(spec)
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    with pytest.raises(Diverged, match=r"loss is nan in epoch 1.*lower finetune\.lr"):
        run(spec, dataset(), network=network)


def test_unet_runs_at_the_timestep_of_the_trial() -> None:
    data = dataset()
    seen: set[float] = set()
    spec = spec_of(finetune={"epochs": 1, "timestep": 7})
    network = network_of(spec)
    network.register_forward_pre_hook(lambda _, inputs: seen.update(inputs[1].tolist()))
    run(spec, data, network=network)
    evaluate(network, spec, data.test, data, device="cpu", report=silent)
    assert seen == {7}


def test_same_trial_twice_is_bit_identical_and_another_seed_is_not() -> None:
    data = dataset()
    first = run(spec_of(seed=1), data)
    assert_equal_outcomes(first, run(spec_of(seed=1), data))
    start = network_of(spec_of(seed=1))  # the same initial weights, another order and augmentation
    assert run(spec_of(seed=2), data, network=start).val_loss != first.val_loss


# --- going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "size", "schedule", "epochs"),
    [(SMALL, 32, "plateau", 5), ({"kind": "encoder", "encoder": "efficientnet-b0"}, 64, "linear", 2)],
    ids=["unet", "encoder that drops features at random"],
)
def test_going_on_after_any_optimizer_step_ends_bit_for_bit_the_same(
    network: dict[str, Any], size: int, schedule: str, epochs: int
) -> None:
    data = dataset(6, image_size=size)
    spec = spec_of(
        image_size=size, network=network,
        finetune={"schedule": schedule, "plateau_patience": 1, "patience": 2, "lr": 0.01, "epochs": epochs},
    )  # fmt: skip
    checkpoint = Always()
    whole = run(spec, data, checkpoint=checkpoint)
    assert len(checkpoint.saved) == 2 * whole.epochs
    for files in checkpoint.saved.values():
        other = network_of(spec_of(image_size=size, network=network, seed=99))  # its weights must not matter
        assert_equal_outcomes(run(spec, data, unpack(files), network=other), whole)


def test_saving_changes_nothing() -> None:
    assert_equal_outcomes(run(spec_of(), dataset(), checkpoint=Always()), run(spec_of(), dataset()))


def test_asked_to_stop_at_every_step_it_saves_and_ends_the_same() -> None:
    spec, data = spec_of(), dataset()
    whole = run(spec, data)

    class OnRequest(Always):
        def due(self) -> bool:
            return False

    state: State | None = None
    for attempt in range(1, 100):
        checkpoint = OnRequest()
        try:
            outcome = run(spec, data, state, checkpoint=checkpoint, report=lambda progress: True)
        except Interrupted:
            assert list(checkpoint.saved) == [attempt]
            state = unpack(checkpoint.saved[attempt])
        else:
            break
    assert attempt == 7  # 3 epochs of 2 steps, and one that finds nothing left to do
    assert_equal_outcomes(outcome, whole)


def test_seconds_of_all_attempts_add_up() -> None:
    spec, data, checkpoint = spec_of(), dataset(), Always()
    run(spec, data, checkpoint=checkpoint)
    state = unpack(checkpoint.saved[1])
    state["seconds"] = 1000.0
    assert run(spec, data, state).seconds > 1000


def test_progress_counts_epochs_and_names_what_it_measured() -> None:
    seen: list[Progress] = []
    run(spec_of(), dataset(), report=lambda progress: bool(seen.append(progress)))
    assert [progress.step for progress in seen] == [0, 1, 1, 2, 2, 3]
    assert {progress.total for progress in seen} == {3}
    assert seen[1].metrics.keys() == {"loss", "val_loss", "lr"}


def test_progress_counts_optimizer_steps_also_where_it_goes_on() -> None:
    seen: list[Progress] = []
    checkpoint = Always()
    run(spec_of(), dataset(), checkpoint=checkpoint, report=lambda progress: bool(seen.append(progress)))
    assert [progress.optimizer_steps for progress in seen] == [1, 2, 3, 4, 5, 6]
    seen.clear()
    run(spec_of(), dataset(), unpack(checkpoint.saved[3]), report=lambda progress: bool(seen.append(progress)))
    assert [progress.optimizer_steps for progress in seen] == [4, 5, 6]


# --- batch statistics -------------------------------------------------------------------------------


def test_single_image_whose_deepest_map_is_one_pixel_is_refused_before_training() -> None:
    encoder = {"kind": "encoder", "encoder": "resnet18"}
    fields = {"network": encoder, "finetune": {"batch_size": 2}}
    with pytest.raises(InputError, match=r"finetune\.batch_size 2 leaves one of 5 images .* image_size 32"):
        check_finetune(spec_of(**fields, shots=5), 10)
    with pytest.raises(InputError, match="leaves one of 5 images"):
        run(spec_of(**fields), dataset())
    check_finetune(spec_of(**fields, shots=6), 10)
    check_finetune(spec_of(**fields, shots=5, image_size=64), 10)
    check_finetune(spec_of(shots=5), 10)  # group normalisation


# --- evaluation -------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Draws the truth of the test images, whose first pixel says which one each is."""

    def __init__(self, spec: TrialSpec, split: Split, offset: tuple[float, float]) -> None:
        super().__init__()
        points = to_network(split.points_NK2, split.sizes_N2, spec.image_size) + offset
        self.maps, _ = draw_targets(spec, torch.from_numpy(points).float())
        self.batches: list[int] = []

    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor) -> Tensor:
        self.batches.append(len(images_B1HW))
        return self.maps[(images_B1HW[:, 0, 0, 0] * 255).round().long()]


def numbered(split: Split) -> Split:
    images = split.images_NHW.copy()
    images[:, 0, 0] = np.arange(len(images))
    return dataclasses.replace(split, images_NHW=images)


@pytest.mark.parametrize("decode", ["local_mean", "dark", "centroid", "argmax"])
def test_evaluation_scales_each_axis_and_decodes_the_paper_protocol_by_centroid(decode: str) -> None:
    data = dataset(image_size=64)
    drawn = {"loss": "mse", "target": "gaussian", "sigma": 3}
    spec = spec_of(image_size=64, evaluate={"decode": decode}, finetune=drawn)
    test = numbered(data.test)
    oracle = Oracle(spec, test, offset=(2, 1))
    seen: list[Progress] = []
    found = evaluate(
        oracle, spec, test, data, device="cpu", report=lambda progress: bool(seen.append(progress)), batch_size=4
    )
    assert oracle.batches == [4, 2]
    assert [(progress.phase, progress.step, progress.total) for progress in seen] == [
        ("evaluate", 4, 6), ("evaluate", 6, 6),
    ]  # fmt: skip
    # 2 px of 96 / 64 file px of 0.5 mm, and 1 px of 64 / 64 file px of 0.25 mm
    exact = math.hypot(2 * 1.5 * 0.5, 0.25)
    tolerance = {"local_mean": 0.01, "dark": 0.02, "centroid": 0.4, "argmax": 0.5}[decode]
    assert np.abs(found.errors_NK - exact).max() < tolerance
    assert found.points_file_NK2 == pytest.approx(test.points_NK2 + np.array([3, 1]), abs=1)
    assert found.errors_paper_NK is not None
    # whole pixels of 48 / 64 mm and 16 / 64 mm
    whole = found.errors_paper_NK**2
    steps = {round((0.75 * x) ** 2 + (0.25 * y) ** 2, 9) for x in range(5) for y in range(5)}
    assert {round(float(value), 9) for value in whole.ravel()} <= steps
    by_centroid = spec_of(image_size=64, evaluate={"decode": "centroid"}, finetune=drawn)
    centroid = evaluate(oracle, by_centroid, test, data, device="cpu", report=silent)
    np.testing.assert_array_equal(found.errors_paper_NK, centroid.errors_paper_NK)
    assert found.summary.mre == pytest.approx(float(found.errors_NK.mean()))
    assert found.paper_summary is not None
    assert [rate.threshold for rate in found.paper_summary.sdr] == [2.0, 4.0]


def test_a_users_own_data_has_no_paper_errors() -> None:
    data = dataclasses.replace(dataset(), paper=None)
    spec = spec_of()
    found = evaluate(network_of(spec), spec, data.test, data, device="cpu", report=silent)
    assert found.errors_paper_NK is None
    assert found.paper_summary is None


def test_duplicates_are_left_out_only_when_asked() -> None:
    data = dataset()
    test = dataclasses.replace(data.test, duplicates_N=np.array([False, True, False, True, False, False]))
    kept = images_that_count(spec_of(exclude_duplicates=True), test)
    assert kept.names == ("000.png", "002.png", "004.png", "005.png")
    np.testing.assert_array_equal(kept.points_NK2, test.points_NK2[[0, 2, 4, 5]])
    assert images_that_count(spec_of(), test) is test
    spec = spec_of(exclude_duplicates=True)
    found = evaluate(network_of(spec), spec, test, data, device="cpu", report=silent)
    assert found.split.names == kept.names
    assert found.errors_NK.shape == (4, NUM_LANDMARKS)
    every = dataclasses.replace(test, duplicates_N=np.ones(6, dtype=bool))
    with pytest.raises(InputError, match="exclude_duplicates leaves none of the 6 test images"):
        images_that_count(spec, every)


def test_evaluation_can_be_asked_to_stop() -> None:
    data, spec = dataset(), spec_of()
    with pytest.raises(Interrupted):
        evaluate(network_of(spec), spec, data.test, data, device="cpu", report=lambda progress: True)


def test_evaluating_twice_and_in_other_batches_finds_the_same_points() -> None:
    data, spec = dataset(), spec_of()
    network = network_of(spec)
    first, second = (
        evaluate(network, spec, data.test, data, device="cpu", report=silent, batch_size=size) for size in (6, 2)
    )
    np.testing.assert_allclose(first.points_file_NK2, second.points_file_NK2, atol=1e-4)
