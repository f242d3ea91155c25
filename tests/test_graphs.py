"""Passes that are recorded and launched again: equal to passes as they are, on a tape that stands for a CUDA graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_finetune import Always, assert_equal_outcomes, dataset, spec_of
from test_finetune import run as fine_tune
from test_pretrain import Recorder, make
from test_pretrain import run as pretrain
from tiny import SMALL_NETWORKS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ablate.pretrain import build_method
from ablate.space import METHODS
from ablate.training import Interrupted, PassSize, graphs, unpack
from ablate.training.graphs import Launcher, Outputs

torch.set_num_threads(1)


SILENTLY_WRITTEN = ("running_mean", "running_var")
"""Arguments that operations of batch norm write though their schemas do not say so."""


class Tape(TorchDispatchMode):
    """Records operations on tensors at their places in memory, as a CUDA graph does; Python runs once only.

    Unlike a graph it computes while it records: what was changed in place is put back afterwards.
    """

    num_replayed = 0

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, Any, Any, Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operation with the tensors it reads and writes."""
        kwargs = kwargs or {}
        written = [
            given
            for argument, given in zip(func._schema.arguments, args, strict=False)
            if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in SILENTLY_WRITTEN
        ]
        self._before += [(leaf, leaf.clone()) for leaf in tree_leaves(written) if isinstance(leaf, Tensor)]
        result = func(*args, **kwargs)
        self._done.append((func, args, kwargs, result))
        return result

    def warm_up(self, work: Callable[[], Outputs]) -> Outputs:
        """Do a pass as it is."""
        return work()

    def record(self, work: Callable[[], Outputs]) -> Outputs:
        """Record a pass, and put back what it changed."""
        with self:
            outputs = work()
        with torch.no_grad():
            for tensor, value in reversed(self._before):
                tensor.copy_(value)
        return outputs

    @torch.no_grad()
    def replay(self) -> None:
        """Compute again, and write every result to its place."""
        Tape.num_replayed += 1
        for func, args, kwargs, result in self._done:
            if func.is_view:
                continue  # it shares the memory of what it is a view of
            again = func(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


RECORDED = PassSize(recordings=Tape)


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tape, "num_replayed", 0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"validation": "inside_shots", "validation_share": 0.4},
        {"network": {"kind": "encoder", "encoder": "tu-test_resnet"}},
        {"precision": "bf16"},
        {"finetune": {"loss": "adaptive", "sigma": 2.0}, "validation": "inside_shots", "validation_share": 0.4},
        {"network": SMALL_NETWORKS["scn"]},
    ],
)
def test_a_fine_tuning_of_recorded_passes_ends_as_one_of_passes_as_they_are(fields: dict[str, Any]) -> None:
    spec, data = spec_of(**fields), dataset(16)
    plain = fine_tune(spec, data)
    recorded = fine_tune(spec, data, passes=RECORDED, checkpoint=(states := Always()))
    assert Tape.num_replayed > 3
    assert_equal_outcomes(recorded, plain)
    middle = sorted(states.saved)[len(states.saved) // 2]
    assert_equal_outcomes(fine_tune(spec, data, passes=RECORDED, state=unpack(states.saved[middle])), plain)


def test_gradients_are_added_up_and_cleared_where_they_are() -> None:
    layer = nn.Linear(2, 1, bias=False)
    launcher = Launcher([*layer.parameters()], Tape)
    inputs = torch.ones(1, 2)

    def work(given: Tensor) -> Outputs:
        loss = layer(given).sum()
        loss.backward()
        return (loss.detach(),)

    for _ in range(graphs.WARM_UP):
        launcher("pass", work, inputs)
    assert not launcher.keeps_gradients
    layer.zero_grad()
    for count in range(1, 4):
        (loss,) = launcher("pass", work, count * inputs)
        assert torch.equal(loss, layer(count * inputs).sum().detach())
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[6.0, 6.0]]
    assert launcher.keeps_gradients
    place = layer.weight.grad.data_ptr()
    layer.zero_grad(set_to_none=False)
    launcher("pass", work, inputs)
    assert layer.weight.grad.data_ptr() == place
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]
    launcher.forget()
    assert not launcher.keeps_gradients


def test_passes_of_another_kind_or_size_are_recorded_apart() -> None:
    layer = nn.Linear(2, 1)
    launcher = Launcher([*layer.parameters()], Tape)
    for kind, size, factor in (("one", 1, 1.0), ("one", 2, 1.0), ("two", 1, 2.0)):

        def work(given: Tensor, factor: float = factor) -> Outputs:
            loss = factor * layer(given).sum()
            loss.backward()
            return (loss.detach(),)

        for value in range(graphs.WARM_UP + 2):
            given = torch.full((size, 2), float(value))
            (loss,) = launcher(kind, work, given)
            assert torch.equal(loss, factor * layer(given).sum().detach())
    assert Tape.num_replayed == 6


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.code is not None])
def test_a_pre_training_of_recorded_passes_ends_as_one_of_passes_as_they_are(method: str) -> None:
    pretraining = make(method, METHODS[method].network)
    plain, recorded, first, second = Recorder(), Recorder(), Recorder(stop_at=2), Recorder()
    pretrain(pretraining, plain, snapshots=[3])
    pretrain(pretraining, recorded, snapshots=[3], passes=RECORDED)
    assert (Tape.num_replayed == 0) == (build_method(pretraining).head == "noise")
    with pytest.raises(Interrupted):
        pretrain(pretraining, first, passes=RECORDED)
    pretrain(pretraining, second, snapshots=[3], passes=RECORDED, state=unpack(first.states[2]))
    for other in (recorded, second):
        for name, tensor in plain.snapshots[3].items():
            assert torch.equal(other.snapshots[3][name], tensor), name
