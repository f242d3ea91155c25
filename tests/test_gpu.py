"""What a GPU must do: launch steps without waiting, and end interrupted work as uninterrupted work ends."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_finetune import Always, assert_equal_outcomes, dataset, network_of, spec_of
from test_pretrain import EVERY_METHOD, Recorder, make
from test_pretrain import run as pretrain

from ablate.finetune import build_objective, finetune
from ablate.finetune.loop import accumulate_gradients
from ablate.finetune.validation import Images
from ablate.pretrain.loop import backward
from ablate.pretrain.methods import build_method
from ablate.stage.machine import deterministic
from ablate.training import (
    CudaRecording,
    Interrupted,
    Losses,
    PassSize,
    adamw,
    compiling,
    global_seed,
    placed,
    seeded,
    silent,
    unpack,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda")


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """Let torch refuse every operation that waits for the device, from the call of what is yielded on."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@EVERY_METHOD
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_of_pre_training_are_launched_without_waiting(
    method: str, kind: str, precision: str, no_waiting: Any
) -> None:
    pretraining = make(method, kind).model_copy(update={"precision": precision})
    built = build_method(pretraining)
    placed(built, GPU).train()
    parameters = [parameter for parameter in built.parameters() if parameter.requires_grad]
    optimizer = adamw(parameters, GPU, lr=1e-3, weight_decay=0.01)
    losses = Losses(GPU, lambda step, loss: None)
    images = torch.rand(8, 1, pretraining.image_size, pretraining.image_size, device=GPU)
    for step in range(1, 7):
        if step == 4:  # workspaces, plans and optimizer states are there
            torch.cuda.synchronize()
            no_waiting()
        optimizer.zero_grad(set_to_none=True)
        with global_seed(GPU, 0, "dropout", step):
            loss = backward(built, images, seeded(GPU, 0, "draws", step), step)
        losses.step(optimizer, step, loss, built.clip)
        built.after_step(step)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_of_fine_tuning_are_launched_without_waiting(precision: str, no_waiting: Any) -> None:
    spec, data = spec_of(precision=precision), dataset()
    network = placed(network_of(spec), GPU)
    objective = build_objective(spec, data.num_landmarks).to(GPU)
    optimizer = adamw(network.parameters(), GPU, lr=1e-3, weight_decay=0.01)
    losses = Losses(GPU, lambda step, loss: None)
    train = Images.of(data.train, spec.image_size, GPU)
    for step in range(6):
        if step == 3:
            torch.cuda.synchronize()
            no_waiting()
        optimizer.zero_grad()
        loss = accumulate_gradients(spec, network, objective, train.images_NHW, train.points_NK2, step)
        losses.step(optimizer, step + 1, loss)


@EVERY_METHOD
def test_a_pre_training_goes_on_bit_for_bit_on_a_card(method: str, kind: str) -> None:
    with deterministic(GPU, wanted=True):
        whole, first, second = Recorder(save_at=(2,)), Recorder(stop_at=2), Recorder()
        pretrain(make(method, kind), whole, snapshots=[3], device=GPU)
        with pytest.raises(Interrupted):
            pretrain(make(method, kind), first, device=GPU)
        pretrain(make(method, kind), second, snapshots=[3], state=unpack(first.states[2]), device=GPU)
    for name, tensor in whole.snapshots[3].items():
        assert torch.equal(second.snapshots[3][name], tensor), name


@pytest.mark.parametrize("fields", [{}, {"validation": "inside_shots", "validation_share": 0.4}])
def test_a_fine_tuning_goes_on_bit_for_bit_on_a_card(fields: dict[str, Any]) -> None:
    spec, data, checkpoint = spec_of(**fields), dataset(), Always()

    def run(state: Any, checkpoint: Any) -> Any:
        return finetune(spec, network_of(spec), data, device=GPU, state=state, checkpoint=checkpoint, report=silent)

    with deterministic(GPU, wanted=True):
        whole = run(None, checkpoint)
        for files in checkpoint.saved.values():
            assert_equal_outcomes(run(unpack(files), Always()), whole)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"precision": "bf16"},
        {"validation": "inside_shots", "validation_share": 0.4},
        {"network": {"kind": "encoder", "encoder": "densenet121"}},
    ],
)
def test_a_fine_tuning_of_recorded_passes_ends_as_one_of_passes_as_they_are(fields: dict[str, Any]) -> None:
    spec, data = spec_of(**fields), dataset(16)

    def run(recordings: Any, state: Any = None, checkpoint: Any = None) -> Any:
        return finetune(
            spec,
            network_of(spec),
            data,
            device=GPU,
            state=state,
            checkpoint=checkpoint or Always(),
            report=silent,
            passes=PassSize(recordings=recordings),
        )

    with deterministic(GPU, wanted=True):
        plain = run(None)
        assert_equal_outcomes(run(CudaRecording.maker(GPU), checkpoint=(states := Always())), plain)
        middle = sorted(states.saved)[len(states.saved) // 2]
        assert_equal_outcomes(run(CudaRecording.maker(GPU), unpack(states.saved[middle])), plain)


@EVERY_METHOD
def test_a_pre_training_of_recorded_passes_ends_as_one_of_passes_as_they_are(method: str, kind: str) -> None:
    plain, recorded = Recorder(), Recorder()
    with deterministic(GPU, wanted=True):
        pretrain(make(method, kind), plain, snapshots=[3], device=GPU)
        size = PassSize(recordings=CudaRecording.maker(GPU))
        pretrain(make(method, kind), recorded, snapshots=[3], device=GPU, passes=size)
    for name, tensor in plain.snapshots[3].items():
        assert torch.equal(recorded.snapshots[3][name], tensor), name


@pytest.mark.slow
def test_a_compiled_pre_training_goes_on_bit_for_bit_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "pays", lambda remaining, seconds: True)
    size, pretraining = PassSize(compile_after=1), make("ddpm", "unet")
    with deterministic(GPU, wanted=True):
        whole, first, second = Recorder(save_at=(2,)), Recorder(stop_at=2), Recorder()
        pretrain(pretraining, whole, snapshots=[3], device=GPU, passes=size)
        with pytest.raises(Interrupted):
            pretrain(pretraining, first, device=GPU, passes=size)
        pretrain(pretraining, second, snapshots=[3], state=unpack(first.states[2]), device=GPU)
    for name, tensor in whole.snapshots[3].items():
        assert torch.equal(second.snapshots[3][name], tensor), name
