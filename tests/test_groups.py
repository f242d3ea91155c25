"""Groups of images in one forward pass give what each gives in a pass of its own; in float64, to twelve digits."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from test_finetune import dataset, network_of, spec_of
from test_pretrain import LONG_RUN, make
from torch import Tensor, nn

import ablate.finetune.loop as finetune_loop
from ablate.finetune import accumulate_gradients, build_objective
from ablate.network.heatmaps import to_network
from ablate.pretrain import build_method
from ablate.pretrain.contrastive import info_nce, nt_xent
from ablate.pretrain.loop import backward
from ablate.space import Pretraining, TrialSpec
from ablate.training import apart, by_view, forward_passes, join_views, normalised_apart, seeded
from ablate.training.groups import KeptStatistics

torch.set_num_threads(1)

PLAIN, TIMM, SMALL_TIMM = "densenet121", "tu-efficientnet_b0", "tu-test_resnet"
"""Encoders with torch's batch norm, with one of timm's own classes for it, and a small one for every method."""


@pytest.fixture
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


float64 = pytest.mark.usefixtures("_float64")


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Compare to 1e-12 of the largest value."""
    assert first.keys() == second.keys()
    largest = max(1.0, *(float(tensor.abs().max()) for tensor in second.values()))
    far = {name: float((first[name] - second[name]).abs().max()) / largest for name in first}
    assert {name: distance for name, distance in far.items() if distance > 1e-12} == {}


# --- which images a pass holds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_images", "groups", "expected"),
    [
        (6, 1, [(0, 2, 1), (2, 4, 1), (4, 6, 1)]),
        (6, 2, [(0, 4, 2), (4, 6, 1)]),
        (7, 2, [(0, 4, 2), (4, 6, 1), (6, 7, 1)]),
        (7, 9, [(0, 6, 3), (6, 7, 1)]),
        (1, 4, [(0, 1, 1)]),
    ],
)
def test_a_pass_holds_whole_groups_and_what_is_left_over_is_alone(
    num_images: int, groups: int, expected: list[tuple[int, int, int]]
) -> None:
    passes = list(forward_passes(num_images, 2, groups))
    assert [(one.part.start, one.part.stop, one.groups) for one in passes] == expected
    assert [one.share * num_images for one in passes] == pytest.approx([stop - start for start, stop, _ in expected])


def test_views_of_a_group_lie_together_and_come_apart_again() -> None:
    first, second = torch.tensor([[1], [2], [3], [4]]), torch.tensor([[10], [20], [30], [40]])
    joined = join_views([first, second], 2)
    assert joined[:, 0].tolist() == [1, 2, 10, 20, 3, 4, 30, 40]
    assert [view[:, 0].tolist() for view in by_view(joined, 2, 2)] == [[1, 2, 3, 4], [10, 20, 30, 40]]
    assert join_views([first, second], 1)[:, 0].tolist() == [1, 2, 3, 4, 10, 20, 30, 40]
    assert apart(first, 2)[..., 0].tolist() == [[1, 2], [3, 4]]


# --- batch norm -------------------------------------------------------------------------------------


def test_running_statistics_by_hand() -> None:
    layer = nn.BatchNorm1d(1, momentum=0.5)
    with normalised_apart(layer, 2):
        output = layer(torch.tensor([[1.0], [3.0], [10.0], [30.0]]))
    torch.testing.assert_close(output[:, 0], torch.tensor([-1.0, 1.0, -1.0, 1.0]), atol=1e-4, rtol=0)
    assert layer.running_mean.tolist() == pytest.approx([(0 + 2) / 4 + 20 / 2])
    assert layer.running_var.tolist() == pytest.approx([(1 + 2) / 4 + 200 / 2])  # of two values, without bias
    assert int(layer.num_batches_tracked) == 2


def test_running_statistics_of_a_layer_that_is_called_twice_move_by_both_calls_of_one_group_first() -> None:
    together, apart_ = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    views = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(0))
    with normalised_apart(together, 3):
        for view in views:
            together(view)
    for group in zip(*(view.chunk(3) for view in views), strict=True):
        for part in group:
            apart_(part)
    for name, tensor in apart_.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], tensor)


class Activated(nn.BatchNorm2d):
    """A batch norm with more to it, as timm has."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, then cut off what is negative."""
        return super().forward(input).relu()


@float64
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(5),
        nn.BatchNorm2d(5, momentum=None),
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5, track_running_stats=False),
        nn.BatchNorm2d(5, momentum=None, affine=False),
        Activated(5),
    ],
    ids=["plain", "cumulative", "without affine part", "without running statistics", "neither", "subclass"],
)
def test_batch_norm_of_groups_is_that_of_passes_of_their_own(layer: nn.Module, layout: torch.memory_format) -> None:
    layer = layer.double()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    images = torch.randn(6, 5, 3, 4, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    weights = torch.randn(6, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    results = []
    for groups in (1, 3):
        layer.load_state_dict(state)
        layer.zero_grad()
        leaf = images.clone().requires_grad_()
        parts = leaf.chunk(3) if groups == 1 else [leaf]
        with normalised_apart(layer, groups):
            output = torch.cat([layer(part) for part in parts])
        (output * weights).sum().backward()
        assert leaf.grad is not None
        gradients = {name: item.grad for name, item in layer.named_parameters() if item.grad is not None}
        buffers = {name: item.clone() for name, item in layer.named_buffers()}
        results.append({"output": output.detach(), "images": leaf.grad, **gradients, **buffers})
        assert output.is_contiguous(memory_format=layout)
    assert_close(*results)


def test_evaluation_is_left_alone_and_layers_are_as_before() -> None:
    layer = nn.BatchNorm2d(2).eval()
    images = torch.randn(4, 2, 3, 3)
    expected = layer(images)
    with normalised_apart(layer, 2):
        assert torch.equal(layer(images), expected)
    assert "forward" not in vars(layer)
    layer.train()
    with pytest.raises(ZeroDivisionError), normalised_apart(layer, 2):
        raise ZeroDivisionError
    assert "forward" not in vars(layer)


def test_kept_statistics_come_back() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    kept = KeptStatistics(network)
    for _ in range(2):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        kept.keep()
        network(torch.randn(4, 2))
        assert not torch.equal(network[0].running_mean, before["0.running_mean"])
        kept.restore()
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        network(torch.randn(4, 2))


# --- losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_and_its_gradients_are_lightlys_to_the_bit(num_images: int, temperature: float) -> None:
    views = torch.randn(2, num_images, 24, generator=torch.Generator().manual_seed(num_images))
    results = []
    for loss in (NTXentLoss(temperature), functools.partial(nt_xent, temperature=temperature)):
        first, second = (view.clone().requires_grad_() for view in views)
        value = loss(first, second)
        value.backward()
        results.append((value, first.grad, second.grad))
    for own, lightlys in zip(*results, strict=True):
        assert torch.equal(own, lightlys)


@float64
@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_images_of_another_group_are_no_negatives(loss: Any) -> None:
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    each = [float(loss(*pair, 0.3)) for pair in zip(first.chunk(3), second.chunk(3), strict=True)]
    assert float(loss(apart(first, 3), apart(second, 3), 0.3)) == pytest.approx(sum(each) / 3, rel=1e-12)


# --- one optimizer step -----------------------------------------------------------------------------


def after_a_step(pretraining: Pretraining, groups: int) -> dict[str, Tensor]:
    """Return the loss, the gradients, and all that a method holds after one optimizer step."""
    built = build_method(pretraining).train()
    fields, size = pretraining.fields, pretraining.image_size
    num_images = fields.batch_size * fields.accumulate
    images = torch.rand(num_images, 1, size, size, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([weight for weight in built.parameters() if weight.requires_grad], lr=0.1)
    loss = backward(built, images, seeded("cpu", 0), 1, groups)
    gradients = {f"{name}.grad": item.grad for name, item in built.named_parameters() if item.grad is not None}
    optimizer.step()
    built.after_step(1)
    held = {name: item for name, item in built.state_dict().items() if isinstance(item, Tensor)}
    return {"loss": loss, **gradients, **held}


@float64
@LONG_RUN
def test_step_of_any_method_does_not_depend_on_the_groups_in_a_pass(method: str, kind: str) -> None:
    pretraining = make(method, kind, batch_size=4, accumulate=5)
    one = after_a_step(pretraining, 1)
    assert any(name.endswith(".grad") and tensor.abs().max() > 0 for name, tensor in one.items())
    for groups in (2, 4):  # passes of 2, 2 and 1, and of 4 and 1
        assert_close(after_a_step(pretraining, groups), one)


@float64
@pytest.mark.parametrize("encoder", ["resnet18", PLAIN, TIMM])
def test_step_on_any_encoder_does_not_depend_on_the_groups_in_a_pass(encoder: str) -> None:
    network = {"kind": "encoder", "encoder": encoder}
    pretraining = make("mocov3", "encoder", network=network, batch_size=4, accumulate=3)
    pretraining = pretraining.model_copy(update={"image_size": 64})
    assert_close(after_a_step(pretraining, 2), after_a_step(pretraining, 1))


def after_a_window(spec: TrialSpec, num_images: int, groups: int) -> dict[str, Tensor]:
    """Return the loss, the gradients and the running statistics after one window of fine-tuning."""
    train = dataset(7, image_size=spec.image_size).train
    network = network_of(spec)
    points = torch.from_numpy(to_network(train.points_NK2, train.sizes_N2, spec.image_size))[:num_images]
    objective = build_objective(spec, points.shape[1])
    images = torch.from_numpy(train.images_NHW)[:num_images]
    loss = accumulate_gradients(spec, network, objective, images, points, 7, groups)
    gradients = {f"{name}.grad": item.grad for name, item in network.named_parameters() if item.grad is not None}
    return {"loss": loss, **gradients, **dict(network.named_buffers())}


@float64
@pytest.mark.parametrize("network", [None, "resnet18", PLAIN, TIMM], ids=["unet", "resnet18", PLAIN, TIMM])
def test_window_of_fine_tuning_does_not_depend_on_the_groups_in_a_pass(
    network: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_loop, "as_input", lambda images: images[:, None] / 255.0)
    fields: dict[str, Any] = {} if network is None else {"network": {"kind": "encoder", "encoder": network}}
    spec = spec_of(
        image_size=64, finetune={"batch_size": 2, "accumulate": 4, "augment": {"probability": 0.0}}, **fields
    )
    one = after_a_window(spec, 7, 1)
    assert math.isfinite(one["loss"])
    for groups in (2, 4):  # passes of 4, 2 and 1 image, and of 6 and 1
        assert_close(after_a_window(spec, 7, groups), one)
