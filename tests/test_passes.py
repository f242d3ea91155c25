"""The size of forward passes: measured on a card with a limit, kept in the state, halved when memory runs out."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_finetune import Always, assert_equal_outcomes, dataset, spec_of
from test_finetune import run as fine_tune
from test_pretrain import Recorder, assert_same_state, make
from test_pretrain import run as pretrain
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from ablate.pretrain import build_method
from ablate.space import Pretraining
from ablate.stage.machine import pass_size
from ablate.stage.settings import Settings
from ablate.training import ONE_GROUP, Gpu, Interrupted, OutOfMemory, PassSize, State, pack, unpack
from ablate.training.memory import Need, fitting_groups
from ablate.training.passes import _needs

torch.set_num_threads(1)


class Saved:
    """A tensor that a graph keeps for its backward pass, and the memory that it takes meanwhile."""

    def __init__(self, tensor: Tensor, card: "FakeCard") -> None:
        self.tensor, self.card = tensor.detach(), card  # a graph that holds itself would never go
        card.held += tensor.nbytes
        card.peak = max(card.peak, card.held)

    def __del__(self) -> None:
        """Give the memory back."""
        self.card.held -= self.tensor.nbytes


class FakeCard(torch.autograd.graph.saved_tensors_hooks):
    """A card on the CPU that counts what graphs keep; a context in which layers fail beyond its limit."""

    name = "fake"

    def __init__(self, limit_bytes: float = float("inf")) -> None:
        super().__init__(lambda tensor: Saved(tensor, self), lambda saved: saved.tensor)
        self.limit_bytes = limit_bytes
        self.held, self.peak, self.num_measured = 0, 0, 0

    def __enter__(self) -> "FakeCard":
        """Count from here on."""
        super().__enter__()
        self._hook = register_module_forward_hook(self._check)
        return self

    def __exit__(self, *raised: object) -> None:
        """Count no longer."""
        self._hook.remove()
        super().__exit__(*raised)

    def _check(self, *call: object) -> None:
        if self.held > self.limit_bytes:
            raise torch.OutOfMemoryError

    def held_bytes(self) -> int:
        """Return what graphs keep now."""
        return self.held

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Return the most that they keep while `run` is called."""
        self.peak, self.num_measured = self.held, self.num_measured + 1
        run()
        return self.peak

    def release(self) -> None:
        """Have nothing to give back."""


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    _needs.clear()


def four_groups(method: str = "simclr", kind: str = "encoder", **fields: Any) -> Pretraining:
    return make(method, kind, **{"batch_size": 2, "accumulate": 4, **fields})


def trained(
    pretraining: Pretraining, passes: PassSize, state: State | None = None, stop_at: int | None = None
) -> State:
    """Return the last state of two steps, or of fewer where it is stopped."""
    recorder = Recorder(stop_at)
    try:
        pretrain(pretraining, recorder, steps=2, passes=passes, state=state)
    except Interrupted:
        assert stop_at is not None
    return unpack(recorder.states[stop_at or 2])


def later(pretraining: Pretraining) -> int:
    """Return the bytes of what AdamW and the best weights will take."""
    return sum(3 * weight.nbytes for weight in build_method(pretraining).parameters() if weight.requires_grad)


def needed(pretraining: Pretraining, groups: int) -> int:
    """Return the most that graphs keep in a step of passes of so many groups."""
    with FakeCard() as card:
        trained(pretraining, PassSize(groups))
    return card.peak


def assert_equal_states(first: State, second: State) -> None:
    assert_same_state(pack(first), pack(second))


# --- how many fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "room", "most", "expected"),
    [
        (3, 5, 100, 8, 8),  # 3 + 7 * 2 = 17
        (3, 5, 17, 8, 8),
        (3, 5, 16, 8, 4),  # 7 fit; two passes are of 4 and 4
        (3, 5, 10, 8, 4),
        (3, 5, 8, 8, 3),  # three passes, of 3, 3 and 2
        (3, 5, 6, 8, 2),
        (3, 5, 4, 8, 1),
        (3, 5, 2, 8, 1),
        (3, None, 100, 8, 1),
        (3, 3, 5, 8, 8),  # something else takes the most
        (3, 5, 100, 2, 2),
    ],
)
def test_as_many_groups_as_make_the_fewest_passes_that_fit(
    one: int, two: int | None, room: float, most: int, expected: int
) -> None:
    assert fitting_groups(Need(one, two), room_bytes=room, most=most) == expected


@pytest.mark.parametrize(("groups", "room_for"), [(4, 4.0), (2, 3.5), (2, 2.0), (1, 1.9)])
def test_passes_fill_85_percent_of_the_card_beside_what_comes_later(groups: int, room_for: float) -> None:
    pretraining = four_groups()
    one, two = needed(pretraining, 1), needed(pretraining, 2)
    room = one + (two - one) * (room_for - 1)
    with FakeCard((room + 1 + later(pretraining)) / 0.85) as card:
        state = trained(pretraining, PassSize(card=card))
    assert state["groups"] == groups


def test_measuring_changes_nothing_and_is_done_once(caplog: pytest.LogCaptureFixture) -> None:
    pretraining, card = four_groups("mocov2"), FakeCard(1e9)
    with card, caplog.at_level(logging.INFO, logger="ablate"):
        measured = trained(pretraining, PassSize(card=card))
    assert "a forward pass holds 4 of the 4 groups of a step: 1 takes 0.00 GB, 2 take 0.00 GB" in caplog.text
    assert card.num_measured == 2
    with card:
        trained(four_groups("mocov2", seed=1), PassSize(card=card))
    assert card.num_measured == 2  # of the same network: known
    with card:
        trained(four_groups("mocov2", network={"kind": "unet", "channels": (8, 16)}), PassSize(card=card))
    assert card.num_measured == 4
    assert_equal_states(measured, trained(pretraining, PassSize(4)))


def test_a_step_of_one_group_is_not_measured() -> None:
    with FakeCard(1e9) as card:
        assert trained(four_groups(accumulate=1), PassSize(card=card))["groups"] is None  # a later step may have more
    assert card.num_measured == 0


@pytest.mark.parametrize("encoder", ["mit_b0", "efficientnet-b0"])
def test_a_network_that_draws_random_numbers_keeps_one_group_in_a_pass(
    encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    pretraining, card = four_groups(network={"kind": "encoder", "encoder": encoder}, accumulate=2), FakeCard(1e9)
    with card, caplog.at_level(logging.INFO, logger="ablate"):
        measured = trained(pretraining, PassSize(card=card))
    assert measured["groups"] == 1
    assert "a forward pass holds one group of images: the network draws random numbers in it" in caplog.text
    assert_equal_states(measured, trained(pretraining, ONE_GROUP))


# --- states -----------------------------------------------------------------------------------------


def test_training_goes_on_with_the_groups_of_its_state_whatever_the_card() -> None:
    pretraining = four_groups("dino")
    complete = trained(pretraining, PassSize(3))
    stopped = trained(pretraining, PassSize(3), stop_at=1)
    assert stopped["groups"] == 3
    with FakeCard(1e9) as card:
        assert_equal_states(trained(pretraining, PassSize(card=card), state=stopped), complete)
    assert card.num_measured == 0


def test_a_state_without_groups_goes_on_with_one() -> None:
    pretraining = four_groups()
    stopped = trained(pretraining, ONE_GROUP, stop_at=1)
    del stopped["groups"]
    assert_equal_states(trained(pretraining, PassSize(4), state=stopped), trained(pretraining, ONE_GROUP))


def test_fine_tuning_chooses_keeps_and_goes_on_with_its_groups() -> None:
    spec, data = spec_of(finetune={"epochs": 2, "batch_size": 1, "accumulate": 4}), dataset(5)
    with FakeCard(1e9) as card:
        complete = fine_tune(spec, data, passes=PassSize(card=card), checkpoint=(states := Always()))
    assert card.num_measured == 2
    assert {unpack(state)["groups"] for state in states.saved.values()} == {4}
    assert_equal_outcomes(complete, fine_tune(spec, data, passes=PassSize(4)))
    for step in (1, 2, 3):
        assert_equal_outcomes(complete, fine_tune(spec, data, state=unpack(states.saved[step])))


# --- memory runs out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind"),
    [("mocov2", "encoder"), ("dino", "encoder"), ("byol", "encoder"), ("simclr", "unet"), ("ddpm", "unet")],
)
def test_out_of_memory_halves_the_pass_and_the_step_is_done_again(
    method: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pretraining = four_groups(method, kind, accumulate=5)  # the first pass of 4 groups fails, or that of the fifth
    two = needed(pretraining, 2)
    with FakeCard(two), caplog.at_level(logging.WARNING, logger="ablate"):
        halved = trained(pretraining, PassSize(4))
    assert "memory ran out with 4 groups in a forward pass; it goes on with 2" in caplog.text
    assert len(caplog.records) == 1
    assert halved["groups"] == 2
    assert_equal_states(halved, trained(pretraining, PassSize(2)))


def test_out_of_memory_in_a_later_pass_takes_back_the_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining = four_groups("mocov2", accumulate=3)
    method = type(build_method(pretraining))
    original, calls = method.loss, []

    def failing(self: Any, *prepared: Tensor, groups: int = 1) -> Tensor:
        loss = original(self, *prepared, groups=groups)
        calls.append(groups)
        if calls == [2, 1]:
            raise torch.OutOfMemoryError
        return loss

    monkeypatch.setattr(method, "loss", failing)
    again = trained(pretraining, PassSize(2))
    assert calls == [2, 1, *[1] * 6]
    assert_equal_states(again, trained(pretraining, ONE_GROUP))


def test_two_groups_that_do_not_even_fit_for_measuring_leave_one() -> None:
    pretraining = four_groups()
    with FakeCard(needed(pretraining, 1)) as card:
        state = trained(pretraining, PassSize(card=card))
    assert_equal_states(state, trained(pretraining, ONE_GROUP))


@pytest.mark.parametrize("measured", [True, False])
def test_one_group_that_does_not_fit_is_an_error_with_the_cure(measured: bool) -> None:
    pretraining = four_groups()
    card = FakeCard(needed(pretraining, 1) // 2)
    size = PassSize(card=card) if measured else PassSize(4)
    told = r", 0\.0 GB of fake" if measured else ""
    with (
        card,
        pytest.raises(OutOfMemory, match=rf"one group of batch_size images must fit .* may take{told}; .*larger share"),
    ):
        trained(pretraining, size)


# --- the share of a GPU -----------------------------------------------------------------------------


def test_on_a_cpu_a_pass_holds_one_group() -> None:
    assert pass_size(torch.device("cpu"), Settings(gpus=0.25)) == ONE_GROUP == PassSize(groups=1, card=None)


@pytest.mark.parametrize(("gpus", "share"), [(0.25, 0.25), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0)])
def test_a_fraction_of_a_gpu_is_what_the_process_may_fill(
    gpus: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass
    class Properties:
        name: str = "NVIDIA T4"
        total_memory: int = 16_000_000_000

    held: list[tuple[float, int | None]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: held.append(given))
    device = torch.device("cuda")
    card = pass_size(device, Settings(gpus=gpus)).card
    assert isinstance(card, Gpu)
    assert (card.name, card.limit_bytes) == ("NVIDIA T4", share * 16e9)
    assert held == [(share, None)]  # torch refuses a device without an index, and takes none for the current one


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("method", "kind"), [("simclr", "encoder"), ("ddpm", "unet")])
def test_passes_on_a_gpu_hold_all_groups_of_a_small_network_and_go_on_with_them(method: str, kind: str) -> None:
    pretraining, device = four_groups(method, kind), torch.device("cuda")
    size, recorder = pass_size(device, Settings(gpus=0.5)), Recorder()
    pretrain(pretraining, recorder, steps=2, passes=size, device=device)
    assert unpack(recorder.states[2])["groups"] == 4
    assert size.card is not None
    assert size.card.held_bytes() < size.card.limit_bytes == torch.cuda.get_device_properties(device).total_memory // 2
