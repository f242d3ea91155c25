"""Compiling a U-Net's pre-training: decided once, kept in the state, and where it is not worth it left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_pretrain import Recorder, assert_same_state, make
from test_pretrain import run as pretrain
from torch import nn

from ablate.stage.machine import pass_size
from ablate.stage.settings import Settings
from ablate.training import Compiling, Interrupted, PassSize, compiling, unpack

torch.set_num_threads(1)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that are compiled, by torch's tracer without its code generator, which takes half a minute."""
    modules: list[nn.Module] = []
    plain: Callable[..., None] = nn.Module.compile

    def compile_plainly(module: nn.Module, **options: Any) -> None:
        modules.append(module)
        plain(module, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", compile_plainly)
    return modules


@pytest.mark.parametrize(
    ("steps", "step_seconds", "expected"),
    [(8000, 0.5, True), (8000, 0.01, False), (300, 2.9, False), (300, 3.1, True), (0, 100.0, False)],
)
def test_compiling_pays_where_what_it_saves_is_twice_what_it_costs(
    steps: int, step_seconds: float, expected: bool
) -> None:
    assert compiling.pays(steps, step_seconds) is expected


def test_it_is_decided_once(compiled: list[nn.Module]) -> None:
    for after, remaining, decided in ((None, 10**9, False), (3, 10, False), (3, 10**9, True)):
        one = Compiling(nn.Linear(1, 1), after=after, state=None)
        for step in range(1, 6):
            one.after_step(step, remaining if step == 3 else 10**9, 1.0)
        assert one.compiled is decided
    assert len(compiled) == 1


def test_a_compiled_pre_training_goes_on_compiled(compiled: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "pays", lambda remaining, seconds: True)
    size = PassSize(compile_after=1)
    whole, first, second = Recorder(save_at=(2,)), Recorder(stop_at=2), Recorder()
    pretraining = make("ddpm", "unet")
    pretrain(pretraining, whole, snapshots=[3], passes=size)
    with pytest.raises(Interrupted):
        pretrain(pretraining, first, passes=size)
    assert unpack(first.states[2])["compiled"] is True
    before = len(compiled)
    pretrain(pretraining, second, snapshots=[3], state=unpack(first.states[2]))  # whatever the options now say
    assert len(compiled) == before + 1
    assert_same_state(second.states[3], whole.states[3])
    for name, tensor in whole.snapshots[3].items():
        assert torch.equal(second.snapshots[3][name], tensor), name


def test_an_encoder_is_not_compiled(compiled: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "pays", lambda remaining, seconds: True)
    pretrain(make("simclr", "encoder"), Recorder(), passes=PassSize(compile_after=1))
    assert not compiled


def test_nothing_is_compiled_or_recorded_on_a_cpu() -> None:
    size = pass_size(torch.device("cpu"), Settings(cuda_graphs=True, compiled=True))
    assert size.compile_after is None
    assert size.recordings is None
