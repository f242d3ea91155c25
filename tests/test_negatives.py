"""Negatives from a whole optimizer step: exact gradients with the memory of one pass, whatever a pass holds."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_groups import _float64 as _float64  # the fixture behind `float64`
from test_groups import after_a_step, assert_close, float64
from test_passes import needed
from test_pretrain import Recorder, assert_same_state, make, run
from torch import Tensor, nn

from ablate.pretrain import build_method
from ablate.pretrain.contrastive import info_nce, nt_xent
from ablate.pretrain.loop import backward
from ablate.pretrain.negatives import Contrastive
from ablate.space import METHODS, Contrasted, Pretraining, TrialSpec
from ablate.training import Interrupted, PassSize, apart, seeded, unpack

torch.set_num_threads(1)

CONTRASTIVE = [name for name, row in METHODS.items() if issubclass(row.spec, Contrasted)]
EVERY_METHOD = pytest.mark.parametrize("method", CONTRASTIVE)
KINDS = pytest.mark.parametrize("kind", ["unet", "encoder"])


def of_steps(method: str, kind: str = "encoder", **fields: Any) -> Pretraining:
    return make(method, kind, **{"batch_size": 2, "accumulate": 3, "negatives": "step", **fields})


def contrastive(pretraining: Pretraining) -> Contrastive[Any]:
    built = build_method(pretraining).train()
    assert isinstance(built, Contrastive)
    return built


def images(num_images: int) -> Tensor:
    return torch.rand(num_images, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_methods_whose_negatives_are_other_images_have_the_choice() -> None:
    assert CONTRASTIVE == ["mocov3", "simclr", "simclrv2"]
    with pytest.raises(ValidationError, match=r"negatives"):
        TrialSpec.model_validate({"dataset": "synthetic", "pretrain": {"method": "mocov2", "negatives": "step"}})


@EVERY_METHOD
def test_an_image_sees_the_images_of_its_group_or_those_of_the_step(method: str) -> None:
    first, second = torch.eye(4), torch.eye(4)[[0, 1, 0, 3]]  # the third image's other view looks like the first image
    for negatives, seen_apart in (("pass", 2), ("step", 1)):
        built = contrastive(of_steps(method, "unet", negatives=negatives, accumulate=2))
        built.embed = built.targets = lambda *views: (first, second)  # type: ignore[method-assign]
        one, two = (apart(vectors, seen_apart) for vectors in (first, second))
        if method == "mocov3":
            expected = info_nce(one, two, 0.5) + info_nce(two, one, 0.5)
        else:
            built.targets = lambda *views: ()  # type: ignore[method-assign]
            expected = nt_xent(one, two, 0.5)
        torch.testing.assert_close(built.loss(first, second, groups=2), expected)


@float64
@KINDS
@EVERY_METHOD
def test_gradients_are_those_of_one_forward_pass_with_batch_norm_of_each_group(method: str, kind: str) -> None:
    pretraining = of_steps(method, kind)
    batch = images(6)
    cached = contrastive(pretraining)
    loss = backward(cached, batch, seeded("cpu", 0), 1)
    plain = contrastive(pretraining)
    prepared = plain.prepare(batch, seeded("cpu", 0), 1)
    groups = [[view[start : start + 2] for view in prepared] for start in (0, 2, 4)]
    vectors = [torch.cat(parts) for parts in zip(*(plain.embed(*views) for views in groups), strict=True)]
    vectors += [torch.cat(parts) for parts in zip(*(plain.targets(*views) for views in groups), strict=True)]
    assert [len(vector) for vector in vectors] == [6] * (4 if method == "mocov3" else 2)
    expected = plain.compare(*vectors)
    expected.backward()
    gradients = [{name: item.grad for name, item in built.named_parameters()} for built in (cached, plain)]
    given, wanted = ({name: item for name, item in one.items() if item is not None} for one in gradients)
    assert max(float(item.abs().max()) for item in wanted.values()) > 1e-3
    assert_close({"loss": loss, **given}, {"loss": expected.detach(), **wanted})
    assert_close(dict(cached.named_buffers()), dict(plain.named_buffers()))


@float64
@KINDS
@EVERY_METHOD
def test_a_step_does_not_depend_on_the_groups_in_a_pass(method: str, kind: str) -> None:
    pretraining = of_steps(method, kind, accumulate=5)
    one = after_a_step(pretraining, 1)
    for groups in (2, 5):  # passes of 2, 2 and 1 group, and one pass, which needs no second forward
        assert_close(after_a_step(pretraining, groups), one)


@EVERY_METHOD
def test_running_statistics_move_as_with_negatives_of_a_pass(method: str) -> None:
    held = []
    for negatives in ("pass", "step"):
        built = contrastive(of_steps(method, negatives=negatives))
        backward(built, images(6), seeded("cpu", 0), 1)
        held.append(dict(built.named_buffers()))
    of_pass, of_step = held
    assert any(name.endswith("running_mean") and item.abs().max() > 0 for name, item in of_pass.items())
    assert [name for name in of_pass if not torch.equal(of_pass[name], of_step[name])] == []


@EVERY_METHOD
def test_one_group_in_a_step_is_trained_as_with_negatives_of_a_pass_to_the_bit(method: str) -> None:
    of_pass, of_step = Recorder(), Recorder()
    run(of_steps(method, negatives="pass", batch_size=4, accumulate=1), of_pass)
    run(of_steps(method, batch_size=4, accumulate=1), of_step)
    assert_same_state(of_pass.states[3], of_step.states[3])


@EVERY_METHOD
@pytest.mark.parametrize("groups", [1, 2])
def test_interrupted_it_ends_as_if_it_had_run_through(method: str, groups: int) -> None:
    pretraining, passes = of_steps(method), PassSize(groups)
    through, first, second = Recorder(), Recorder(stop_at=1), Recorder()
    run(pretraining, through, steps=2, passes=passes)
    with pytest.raises(Interrupted):
        run(pretraining, first, steps=2, passes=passes)
    torch.rand(5)
    run(pretraining, second, steps=2, passes=passes, state=unpack(first.states[1]))
    assert_same_state(second.states[2], through.states[2])


@EVERY_METHOD
def test_both_forward_passes_draw_the_same_random_numbers_and_keys_are_made_once(method: str) -> None:
    built = contrastive(of_steps(method))
    drawing = nn.Sequential(built.get_submodule("projector"), nn.Dropout(0.5))
    built.projector = drawing
    outputs, keys = list[Tensor](), list[Tensor]()
    drawing.register_forward_hook(lambda *call: outputs.append(call[-1].detach()))
    if method == "mocov3":
        built.get_submodule("keys").register_forward_hook(lambda *call: keys.append(call[-1]))
    for _ in "12":
        backward(built, images(6), seeded("cpu", 0), 1)
    before, again = outputs[:6], outputs[6:12]  # three passes of two views
    for one, two in zip(before, again, strict=True):
        torch.testing.assert_close(one, two)
    assert not torch.equal(before[0] == 0, before[2] == 0)  # another pass draws others
    assert len(outputs) == 24
    assert len(keys) == (12 if method == "mocov3" else 0)


@EVERY_METHOD
def test_it_takes_the_memory_of_one_pass(method: str) -> None:
    of_pass, of_step = (of_steps(method, negatives=negatives, accumulate=6) for negatives in ("pass", "step"))
    assert needed(of_step, 1) < 1.02 * needed(of_pass, 1)
    assert needed(of_step, 6) > 2 * needed(of_pass, 1)
