"""How steps are executed: what a GPU does to keep the host from waiting, on the CPU where it can do the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_finetune import Always, Never, assert_equal_outcomes, dataset, network_of, run, spec_of
from test_pretrain import Recorder, make
from test_pretrain import run as pretrain
from tiny import tiny_trial

from ablate.pretrain.methods import build_method
from ablate.running.checks import check_trials
from ablate.stage import machine
from ablate.training import Diverged, Losses, Progress, adamw, execution, load_optimizer, placed, unpack
from ablate.training.execution import EXECUTIONS, Execution

torch.set_num_threads(1)

CPU = torch.device("cpu")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU execute steps as a GPU does; its fused AdamW refuses updates as that of a GPU."""
    monkeypatch.setattr(execution, "EXECUTIONS", {"cpu": EXECUTIONS["cuda"]})


def a_parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0]))


def steps_of(losses: list[float], noted: list[tuple[int, float]]) -> tuple[torch.nn.Parameter, Losses]:
    """Two-parameter training whose gradients are the losses, and what was noted of it."""
    parameter = a_parameter()
    optimizer = adamw([parameter], CPU, lr=0.1, weight_decay=0.01)
    following = Losses(CPU, lambda step, loss: noted.append((step, loss)))
    for step, loss in enumerate(losses, start=1):
        parameter.grad = torch.full((2,), loss)
        following.step(optimizer, step, torch.tensor(loss))
    return parameter, following


def test_on_a_cpu_a_loss_is_noted_before_its_update() -> None:
    parameter = a_parameter()

    def refuse(step: int, loss: float) -> None:
        raise Diverged(f"step {step}")

    parameter.grad = torch.ones(2)
    with pytest.raises(Diverged, match="step 1"):
        Losses(CPU, refuse).step(adamw([parameter], CPU, lr=0.1, weight_decay=0.0), 1, torch.tensor(2.0))
    assert parameter.tolist() == [1.0, -2.0]


@pytest.mark.usefixtures("late")
def test_a_late_loss_is_noted_when_the_next_step_has_been_made_and_at_the_end() -> None:
    noted: list[tuple[int, float]] = []
    _, losses = steps_of([3.0, 2.0], noted)
    assert (noted, losses.noted) == ([(1, 3.0)], 1)
    losses.catch_up()
    losses.catch_up()
    assert (noted, losses.noted) == ([(1, 3.0), (2, 2.0)], 2)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_late_loss_that_is_not_finite_changes_no_weight(bad: float) -> None:
    with_bad, _ = steps_of([3.0, bad, 2.0], [])
    without, _ = steps_of([3.0, 2.0], [])
    assert torch.equal(with_bad, without)


def test_an_optimizer_goes_on_in_the_memory_format_of_its_parameters() -> None:
    layer = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.rand(1, 4, 8, 8)).sum().backward()
    optimizer.step()
    state = {"param_groups": optimizer.state_dict()["param_groups"]}
    state["state"] = {
        number: {name: value.contiguous() for name, value in values.items()}
        for number, values in optimizer.state_dict()["state"].items()
    }
    assert not state["state"][0]["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    other = torch.optim.AdamW(layer.parameters())
    load_optimizer(other, state)
    found, expected = other.state[layer.weight], optimizer.state[layer.weight]
    assert found["exp_avg"].stride() == layer.weight.stride()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("saved_fused", [None, True])
def test_an_optimizer_computes_as_its_device_does_whatever_the_state_is_from(saved_fused: bool | None) -> None:
    parameter = a_parameter()
    parameter.grad = torch.ones(2)
    saved = torch.optim.AdamW([parameter], lr=0.1, fused=saved_fused)
    saved.step()
    for fused in (None, True):
        other = torch.optim.AdamW([parameter], lr=0.1, fused=fused)
        load_optimizer(other, saved.state_dict())
        assert other.param_groups[0]["fused"] == fused
        assert torch.equal(other.state[parameter]["exp_avg"], saved.state[parameter]["exp_avg"])


def test_weights_are_placed_in_the_memory_format_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Conv2d(4, 4, 3)
    assert placed(layer, CPU).weight.is_contiguous()
    monkeypatch.setattr(execution, "EXECUTIONS", {"cpu": Execution(memory_format=torch.channels_last)})
    assert placed(layer, CPU).weight.is_contiguous(memory_format=torch.channels_last)


# --- whole trainings ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("fields", [{}, {"validation": "inside_shots", "validation_share": 0.4}])
def test_a_late_fine_tuning_goes_on_bit_for_bit_after_any_step(fields: dict[str, Any]) -> None:
    spec, data, checkpoint = spec_of(finetune={"validate_every": 2}, **fields), dataset(), Always()
    whole = run(spec, data, checkpoint=checkpoint)
    for files in checkpoint.saved.values():
        assert_equal_outcomes(run(spec, data, unpack(files), network=network_of(spec_of(seed=99))), whole)


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The distance between two networks' weights as a share of the second's length."""
    difference = sum((first[name] - tensor).double().square().sum() for name, tensor in second.items())
    return float((difference / sum(tensor.double().square().sum() for tensor in second.values())) ** 0.5)


def test_a_late_fine_tuning_ends_where_a_plain_one_does(request: pytest.FixtureRequest) -> None:
    plain = run(spec_of(), dataset())
    request.getfixturevalue("late")
    told: list[Progress] = []
    found = run(spec_of(), dataset(), report=lambda progress: bool(told.append(progress)), checkpoint=Never())
    assert apart(found.best_state, plain.best_state) < 1e-4
    for metric in ("loss", "val_loss", "val_mre"):
        ours, theirs = ([p.value for p in o.curve if p.metric == metric] for o in (found, plain))
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert "loss" not in told[0].metrics  # it has not been read yet
    assert "loss" in told[1].metrics  # a validation reads it


@pytest.mark.parametrize("method", ["ddpm", "simclr"])
def test_a_late_pre_training_has_the_curve_and_the_snapshot_of_a_plain_one(
    method: str, request: pytest.FixtureRequest
) -> None:
    plain, late = Recorder(), Recorder()
    curve = pretrain(make(method, "unet", steps=13), plain, steps=13, snapshots=[1, 13])
    request.getfixturevalue("late")
    found = pretrain(make(method, "unet", steps=13), late, steps=13, snapshots=[13])
    assert [step for step, _ in found] == [step for step, _ in curve] == [10]
    assert found[0][1] == pytest.approx(curve[0][1], rel=1e-3)
    moved = apart(plain.snapshots[1], plain.snapshots[13])
    assert apart(late.snapshots[13], plain.snapshots[13]) < 0.2 * moved  # AdamW follows the sign of rounding errors too


@pytest.mark.usefixtures("late")
def test_a_late_pre_training_that_diverges_is_refused_and_publishes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining = make("simclr", "unet")
    method_class = type(build_method(pretraining))
    plain: Callable[..., torch.Tensor] = method_class.loss
    calls: list[int] = []

    def broken(self: Any, *prepared: torch.Tensor, groups: int = 1) -> torch.Tensor:
        calls.append(1)
        return plain(self, *prepared, groups=groups) * (
            float("nan") if len(calls) == 3 else 1.0
        )  # in the second of two steps' passes

    monkeypatch.setattr(method_class, "loss", broken)
    recorder = Recorder()
    with pytest.raises(Diverged, match="is nan at step 2"):
        pretrain(pretraining, recorder, steps=4, snapshots=[1, 2, 3, 4])
    assert pretraining.fields.accumulate == 2
    assert list(recorder.snapshots) == [1]
    assert not recorder.states


# --- the machine --------------------------------------------------------------------------------------


def test_the_speed_of_bfloat16_is_measured_and_draws_no_random_numbers() -> None:
    machine.bf16_speed.cache_clear()
    before = torch.random.get_rng_state()
    speed = machine.bf16_speed()
    assert 0.01 < speed < 100
    assert torch.equal(torch.random.get_rng_state(), before)
    assert machine.bf16_speed() == speed  # once in a process


@pytest.mark.parametrize(("speed", "told"), [(0.5, "2.0 times as long"), (1.0, None), (1.6, None)])
def test_a_run_is_told_where_bfloat16_is_slower(
    speed: float, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "bf16_speed", lambda: speed)
    warnings: list[str] = []
    check_trials([tiny_trial(precision="bf16")], None, warnings.append)
    slow = [line for line in warnings if "bf16" in line]
    assert len(slow) == (told is not None)
    assert all(str(told) in line and "precision=fp32" in line for line in slow)
    warnings.clear()
    check_trials([tiny_trial()], None, warnings.append)
    assert not warnings


def test_a_gpu_computes_deterministically_for_the_time_of_a_stage() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    for device, wanted, expected in (("cuda", True, True), ("cuda", False, False), ("cpu", True, False)):
        with machine.deterministic(torch.device(device), wanted=wanted):
            assert torch.are_deterministic_algorithms_enabled() is expected
        assert not torch.are_deterministic_algorithms_enabled()
