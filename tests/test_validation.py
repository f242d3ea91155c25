"""What chooses the weights: the validation images, a share of the shots, or nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from same_tables import compare
from test_finetune import Always, assert_equal_outcomes, dataset, network_of, run, spec_of
from test_trial import StopAt
from tiny import tiny_trial

from ablate import tables
from ablate.datasets import Dataset
from ablate.errors import InputError
from ablate.finetune import Shots, accumulate_gradients, build_objective, check_finetune, loop
from ablate.finetune.validation import Images
from ablate.space import FinetuneSpec, Length, TrialSpec, canonical, lengths, num_held_out
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.training import Interrupted, Progress, stream_order, unpack

torch.set_num_threads(1)

INSIDE = {"validation": "inside_shots", "validation_share": 0.4}
LINEAR = {"schedule": "linear"}


class Unseen:
    """A split whose images nobody may look at."""

    names = ("a.png", "b.png")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the validation split was asked for its {name}")


def without_validation(data: Dataset) -> Dataset:
    return dataclasses.replace(data, val=Unseen())  # type: ignore[arg-type]


def of_shots(data: Dataset, spec: TrialSpec) -> Dataset:
    """The data set in which the first phase of a trial is a whole fine-tuning."""
    shots = Shots.of(spec, len(data.train.names))
    return dataclasses.replace(data, train=data.train.part(shots.first), val=data.train.part(shots.held_out))


# --- which shots are held out -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "num_shots", "held_out"),
    [(0.2, 5, 1), (0.2, 10, 2), (0.2, 25, 5), (0.2, 2, 1), (0.01, 50, 1), (0.9, 2, 1), (0.95, 5, 4)],
)
def test_at_least_one_shot_is_held_out_and_at_least_one_is_not(share: float, num_shots: int, held_out: int) -> None:
    spec = spec_of(shots=num_shots, validation="inside_shots", validation_share=share)
    assert num_held_out(spec, num_shots) == held_out
    shots = Shots.of(spec, 60)
    assert len(shots.held_out) == held_out
    assert sorted([*shots.first, *shots.held_out]) == shots.all.tolist() == list(range(num_shots))


def test_arms_of_one_seed_hold_out_the_same_shots_and_seeds_hold_out_others() -> None:
    def held_out(seed: int, method: str, lr: float) -> list[int]:
        spec = tiny_trial(method, shots=10, seed=seed, finetune={"lr": lr}, **INSIDE)
        return Shots.of(spec, 60).held_out.tolist()

    assert held_out(1, "ddpm", 1e-3) == held_out(1, "scratch", 1e-4)
    assert len({tuple(held_out(seed, "scratch", 1e-3)) for seed in range(5)}) > 1


def test_without_inside_shots_all_shots_are_trained_on() -> None:
    for validation in ("full", "none"):
        shots = Shots.of(spec_of(shots=5, validation=validation, finetune=LINEAR), 60)
        assert shots.first.tolist() == shots.all.tolist()
        assert not len(shots.held_out)


# --- a share of the shots ---------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["plateau", "linear"])
def test_the_first_phase_is_a_fine_tuning_validated_by_the_shots_held_out(schedule: str) -> None:
    fields = {"schedule": schedule, "epochs": 6, "patience": 2, "plateau_patience": 1, "lr": 0.01}
    spec, data = spec_of(finetune=fields, **INSIDE), dataset()
    outcome = run(spec, without_validation(data))
    alone = run(spec_of(finetune=fields), of_shots(data, spec))
    assert (outcome.val_mre, outcome.val_loss) == (alone.val_mre, alone.val_loss)
    assert (outcome.best_epoch, outcome.epochs) == (alone.best_epoch, alone.epochs)
    assert [(p.step, p.metric, p.value) for p in outcome.curve][: len(alone.curve)] == [
        (p.step, p.metric, p.value) for p in alone.curve
    ]


def test_the_second_phase_replays_the_rates_up_to_the_best_step_on_all_shots() -> None:
    fields = {"epochs": 20, "patience": 2, "schedule": "linear", "lr": 0.03, "batch_size": 2, "accumulate": 1}
    spec, data = spec_of(seed=2, finetune=fields, **INSIDE), dataset()
    told: list[Progress] = []
    found = run(spec, data, report=lambda progress: bool(told.append(progress)))
    per_epoch = 2  # 3 of 5 shots are left in windows of 2 and 1
    first_steps, best_steps = found.epochs * per_epoch, found.best_epoch * per_epoch
    assert best_steps < first_steps
    assert len(told) == first_steps + best_steps
    rates = [progress.metrics["lr"] for progress in told]
    assert rates[first_steps:] == rates[:best_steps]
    assert len(set(rates[:best_steps])) > 1

    network = network_of(spec)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=spec.finetune.weight_decay)
    images = Images.of(data.train, spec.image_size, torch.device("cpu"))
    objective = build_objective(spec, data.num_landmarks)
    sizes = [2, 2, 1] * best_steps  # windows of all 5 shots
    for step in range(best_steps):
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        indices = torch.from_numpy(stream_order(5, spec.seed, sum(sizes[:step]), sizes[step]))
        accumulate_gradients(spec, network, objective, images.images_NHW[indices], images.points_NK2[indices], step)
        optimizer.step()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, found.best_state[name]), name


def test_the_second_phase_has_a_curve_of_its_own_behind_the_first() -> None:
    outcome = run(spec_of(finetune={"epochs": 3}, **INSIDE), dataset())
    first = [point.step for point in outcome.curve if point.metric == "loss"]
    again = [point.step for point in outcome.curve if point.metric == "loss_all_shots"]
    assert first == [1, 2, 3]  # 3 shots in windows of 4
    assert again
    assert again == sorted(set(again))
    assert again[0] > first[-1]


@pytest.mark.parametrize("schedule", ["plateau", "linear"])
def test_going_on_after_any_step_of_either_phase_ends_bit_for_bit_the_same(schedule: str) -> None:
    fields = {"schedule": schedule, "epochs": 5, "patience": 2, "plateau_patience": 1, "lr": 0.01, "batch_size": 1}
    spec, data = spec_of(finetune=fields, **INSIDE), dataset()
    checkpoint = Always()
    whole = run(spec, data, checkpoint=checkpoint)
    assert len(checkpoint.saved) > whole.epochs * 2  # states of the second phase are among them
    for files in checkpoint.saved.values():
        other = network_of(spec_of(seed=99))  # its weights must not matter
        assert_equal_outcomes(run(spec, data, unpack(files), network=other), whole)


def test_asked_to_stop_at_every_step_it_ends_the_same() -> None:
    spec, data = spec_of(finetune={"epochs": 3}, **INSIDE), dataset()
    whole, state, steps = run(spec, data), None, []
    for _ in range(99):
        checkpoint = Always()
        try:
            outcome = run(spec, data, state, checkpoint=checkpoint, report=lambda progress: True)
        except Interrupted:
            ((step, files),) = checkpoint.saved.items()
            state, steps = unpack(files), [*steps, step]
        else:
            break
    assert steps == list(range(1, len(steps) + 1))
    assert_equal_outcomes(outcome, whole)


def test_progress_counts_the_epochs_of_both_phases() -> None:
    told: list[Progress] = []
    spec = spec_of(finetune={"epochs": 3, "batch_size": 1, "accumulate": 3}, **INSIDE)  # 1 window, then 2
    outcome = run(spec, dataset(), report=lambda progress: bool(told.append(progress)))
    first, again = told[:3], told[3:]
    assert [(progress.step, progress.total) for progress in first] == [(1, 6), (2, 6), (3, 6)]
    assert len(again) == outcome.best_epoch
    assert again[-1].step == again[-1].total == 3 + -(-outcome.best_epoch // 2)
    assert [progress.optimizer_steps for progress in told] == list(range(1, len(told) + 1))


# --- nothing ----------------------------------------------------------------------------------------


def test_without_validation_training_goes_to_its_end_and_keeps_the_last_weights() -> None:
    fields = {"schedule": "constant", "epochs": 6, "patience": 1, "lr": 0.03}
    spec, data = spec_of(validation="none", finetune=fields), dataset()
    outcome = run(spec, without_validation(data))
    assert (outcome.val_loss, outcome.val_mre) == (None, None)
    assert outcome.best_epoch == outcome.epochs == 6
    assert {point.metric for point in outcome.curve} == {"loss", "lr"}
    validated = network_of(spec)
    last: dict[str, torch.Tensor] = {}

    def keep_last(progress: Progress) -> bool:
        last.update({name: tensor.clone() for name, tensor in validated.state_dict().items()})
        return False

    run(spec_of(finetune=fields | {"patience": 99}), data, network=validated, report=keep_last)
    assert all(torch.equal(tensor, outcome.best_state[name]) for name, tensor in last.items())


def test_going_on_without_validation_ends_bit_for_bit_the_same() -> None:
    spec, data = spec_of(validation="none", finetune=LINEAR), dataset()
    checkpoint = Always()
    whole = run(spec, data, checkpoint=checkpoint)
    assert len(checkpoint.saved) == 6
    for files in checkpoint.saved.values():
        assert_equal_outcomes(run(spec, data, unpack(files), network=network_of(spec_of(seed=99))), whole)


def test_only_full_looks_at_the_validation_images() -> None:
    with pytest.raises(AssertionError, match="validation split"):
        run(spec_of(), without_validation(dataset()))


# --- trials -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [INSIDE, {"validation": "none"}], ids=["inside_shots", "none"])
def test_an_interrupted_trial_ends_with_the_same_numbers(fields: dict[str, Any], tmp_path: Any) -> None:
    load = data_in(None)
    loaded = load("synthetic", 16)
    spec = tiny_trial(**fields, shots=5, finetune=LINEAR | {"epochs": 4})

    def data(name: str, image_size: int, fold: int | None = None, /) -> Dataset:
        return without_validation(loaded)

    whole, broken = Store.open(tmp_path / "whole"), Store.open(tmp_path / "broken")
    row = run_trial(spec, whole, data)
    assert (row["val_mre"] is None) == (fields["validation"] == "none")
    interruptions = 0
    for number in (1, 2, 1, 1, 3, 2, 99):
        try:
            run_trial(spec, broken, data, StopAt(number))
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 4
    assert compare(whole, broken, ["trials", "errors", "curves"]) == []


def test_the_defaults_change_no_identity_and_a_share_counts_only_where_it_validates() -> None:
    assert spec_of(validation="full", validation_share=0.5).trial_id == spec_of().trial_id
    assert spec_of(**INSIDE).trial_id != spec_of(validation="inside_shots").trial_id
    assert len({spec_of(validation=name, finetune=LINEAR).trial_id for name in ("full", "inside_shots", "none")}) == 3


def test_all_shots_that_are_one_image_cannot_validate_themselves() -> None:
    with pytest.raises(InputError, match=r"validation must be full or none .* got inside_shots for shots all of blobs"):
        check_finetune(spec_of(validation="inside_shots"), 1)


def test_a_shot_left_alone_by_those_held_out_is_refused_where_the_network_cannot_take_it() -> None:
    encoder = {"network": {"kind": "encoder", "encoder": "resnet18"}}
    with pytest.raises(InputError, match=r"leaves one of 4 images \(shots 6, 2 of them held out\)"):
        check_finetune(spec_of(shots=6, finetune={"batch_size": 3}, **encoder, **INSIDE), 10)
    with pytest.raises(InputError, match=r"leaves one of 5 images \(shots 5\)"):
        check_finetune(spec_of(shots=5, finetune={"batch_size": 4}, **encoder, **INSIDE), 10)


def test_a_part_of_a_split_has_the_images_asked_for() -> None:
    train = dataset().train
    part = train.part(np.array([3, 1]))
    assert part.names == ("003.png", "001.png")
    np.testing.assert_array_equal(part.points_NK2, train.points_NK2[[3, 1]])
    np.testing.assert_array_equal(part.images_NHW, train.images_NHW[[3, 1]])


# --- a length in optimizer steps --------------------------------------------------------------------


def test_steps_take_the_place_of_epochs_and_end_in_the_middle_of_a_pass() -> None:
    spec = spec_of(finetune={"epochs": None, "steps": 5})  # passes of 2 windows: 4 images and 1
    assert (spec.finetune.epochs, spec.finetune.steps) == (None, 5)
    told: list[Progress] = []
    outcome = run(spec, dataset(), report=lambda progress: bool(told.append(progress)))
    assert [(progress.step, progress.total, progress.optimizer_steps) for progress in told] == [
        (step, 5, step) for step in range(1, 6)
    ]
    assert outcome.epochs == 3
    assert [point.step for point in outcome.curve if point.metric == "val_loss"] == [1, 2, 3, 4, 5]


def test_the_same_number_of_steps_gives_the_same_weights_as_epochs() -> None:
    fields = {"schedule": "linear", "lr": 0.01}
    by_epochs = run(spec_of(validation="none", finetune=fields | {"epochs": 3}), dataset())
    by_steps = run(spec_of(validation="none", finetune=fields | {"epochs": None, "steps": 6}), dataset())
    assert all(torch.equal(tensor, by_steps.best_state[name]) for name, tensor in by_epochs.best_state.items())


@pytest.mark.parametrize(
    ("steps", "num_images", "every", "validations"), [(150, 5, 1, 150), (200, 50, 1, 200), (1001, 5, 6, 167)]
)
def test_there_are_at_most_200_validations_whatever_the_number_of_images(
    steps: int, num_images: int, every: int, validations: int
) -> None:
    length = Length.of(FinetuneSpec(steps=steps), num_images)
    assert (length.total, length.every, length.num_validations) == (steps, every, validations)


def test_200_epochs_of_5_images_are_200_steps_and_the_images_of_steps_are_counted_by_windows() -> None:
    length = Length.of(FinetuneSpec(), 5)
    assert (length.total, length.every, length.num_validations) == (200, 1, 200)
    length = Length.of(FinetuneSpec(batch_size=2, accumulate=2), 10)  # windows of 4, 4 and 2
    assert (length.total, length.every) == (600, 3)
    assert [length.images_until(step) for step in range(5)] == [0, 4, 8, 10, 14]
    assert [length.passes(step) for step in (0, 1, 3, 4)] == [0, 1, 1, 2]


def test_patience_counts_validations_where_the_length_is_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "MOST_SPANS", 20)
    losses = iter([3.0, 2.0, 1.0, 5.0, 5.0, 5.0])
    monkeypatch.setattr(loop, "validate", lambda *_, **__: next(losses))
    outcome = run(spec_of(finetune={"epochs": None, "steps": 60, "patience": 3}), dataset())
    checks = [point.step for point in outcome.curve if point.metric == "val_loss"]
    assert checks == [3, 6, 9, 12, 15, 18]
    assert (outcome.val_loss, outcome.best_epoch, outcome.epochs) == (1.0, 5, 9)  # passes of two steps


def test_with_validate_every_patience_and_plateau_count_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 5.0, 5.0, 5.0])
    monkeypatch.setattr(loop, "validate", lambda *_, **__: next(losses))
    fields = {"epochs": 40, "validate_every": 3, "patience": 7, "plateau_patience": 4, "lr": 1e-3}
    outcome = run(spec_of(finetune=fields), dataset())
    checks = [point.epoch for point in outcome.curve if point.metric == "val_loss"]
    assert checks == [3, 6, 9, 12, 15]  # 9 epochs without improvement are the first multiple of 3 from 7 on
    assert (outcome.val_loss, outcome.best_epoch, outcome.epochs) == (2.0, 6, 15)
    rates = [point.value for point in outcome.curve if point.metric == "lr"]
    assert rates == [1e-3, 1e-3, 1e-3, 1e-3, 5e-4]  # 6 epochs are the first multiple of 3 above 4


def test_the_last_step_is_validated_whatever_the_spacing() -> None:
    outcome = run(spec_of(finetune={"epochs": 5, "validate_every": 2}), dataset())
    assert [point.epoch for point in outcome.curve if point.metric == "val_loss"] == [2, 4, 5]
    outcome = run(spec_of(finetune={"epochs": 3, "validate_every": 9}), dataset())
    assert [point.epoch for point in outcome.curve if point.metric == "val_loss"] == [3]


@pytest.mark.parametrize("fields", [{}, INSIDE], ids=["full", "inside_shots"])
def test_going_on_after_any_of_so_many_steps_ends_bit_for_bit_the_same(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "MOST_SPANS", 4)
    length = {"epochs": None, "steps": 7, "plateau_patience": 1, "lr": 0.01, "validate_every": 2}
    spec, data, checkpoint = spec_of(finetune=length, **fields), dataset(), Always()
    whole = run(spec, data, checkpoint=checkpoint)
    for files in checkpoint.saved.values():
        assert_equal_outcomes(run(spec, data, unpack(files), network=network_of(spec_of(seed=99))), whole)


def test_a_trial_of_so_many_steps_survives_json_and_its_row() -> None:
    spec = tiny_trial(finetune={"epochs": None, "steps": 7})
    assert TrialSpec.model_validate_json(spec.model_dump_json()) == spec
    row = tables.blank("trials") | tables.spec_columns(spec)
    assert (row["finetune_epochs"], row["finetune_steps"]) == (None, 7)
    assert tables.trial_of_row(row) == spec
    assert TrialSpec.model_validate({"dataset": "synthetic", "finetune": {"steps": 7}}).finetune.epochs is None
    assert canonical(spec)["finetune"]["steps"] == 7
    assert "epochs" not in canonical(spec)["finetune"]
