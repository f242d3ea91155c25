"""A training's forward passes: how many groups one holds, given, measured or from a state, and how it is launched.

The number is halved when memory runs out.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from ablate.training.graphs import Launcher, Recording
from ablate.training.groups import KeptStatistics
from ablate.training.memory import USABLE, Card, Need, fitting_groups
from ablate.training.randomness import draws_globally
from ablate.training.state import State

logger = logging.getLogger("ablate")
T = TypeVar("T")

_needs: dict[tuple[str, str], Need] = {}
"""What was measured in this process, by the name of the card and what is trained there."""


class OutOfMemory(Exception):  # noqa: N818
    """One group of images does not fit the memory."""


@dataclass(frozen=True)
class PassSize:
    """How the forward passes of a training are made: the machine's choice.

    How many groups of `batch_size` images one holds changes what sums add in, and compiling how they are added: both
    change last bits and are part of a training's state. See `ablate.training.groups`, `graphs` and `compiling`.
    """

    groups: int = 1
    card: Card | None = None  # where it is measured how many fit; `groups` does not matter then
    recordings: Callable[[], Recording] | None = None  # by which passes are launched; None: they are as they are
    compile_after: int | None = (
        None  # the step after which a U-Net's pre-training is compiled if that pays; None: never
    )


ONE_GROUP = PassSize()
"""As on a CPU, where nothing is gained by more."""


class Passes:
    """The forward passes of one training, whose number of groups is part of its state.

    So a training goes on as it would have without an interruption. It never rises, and falls only when memory runs out.
    """

    def __init__(
        self,
        size: PassSize,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        state: State | None,
        key: str,
        probe: Callable[[], object],
    ) -> None:
        """Take the number of groups from the state; without one, measure it at the first step.

        Args:
            size: what the machine gives.
            module: what is trained; in training mode when steps are made.
            optimizer: AdamW, of its weights.
            state: of an earlier attempt, with `groups`: what `chosen` was; without, of a time before there were any, 1.
            key: of all that decides how much memory a pass takes, but for the device.
            probe: makes a forward pass of any size that the module can take.
        """
        self._card, self._module, self._optimizer = size.card, module, optimizer
        self._key, self._probe = key, probe
        self._statistics = KeptStatistics(module)
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.launch = Launcher(self._parameters, size.recordings)
        """What `backward` of `step` launches each pass by."""
        saved = None if state is None else state.get("groups", 1)
        self.groups = size.groups if saved is None else int(saved)
        self._is_chosen = size.card is None or saved is not None

    @property
    def chosen(self) -> int | None:
        """The number of groups, for the state; None while no step had several groups to choose for."""
        return self.groups if self._is_chosen else None

    def go_on_with(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the steps of another optimizer of the same weights."""
        self._optimizer = optimizer

    def step(self, backward: Callable[[int], T], num_groups: int) -> T:
        """Do the passes of one optimizer step.

        Where memory runs out, the running statistics of batch norm are put back, and the step is done again with half
        as many groups in a pass.

        Args:
            backward: adds the gradients of the step, of passes of as many groups as it is given at most, and returns
                what the caller wants. They are cleared before; every call draws the same random numbers.
            num_groups: whole groups of the step's images.

        Raises:
            OutOfMemory: memory ran out with one group in a pass.
        """
        if not self._is_chosen and num_groups > 1:
            assert self._card is not None
            self.groups, self._is_chosen = self._chosen(self._card, backward, num_groups), True
        self._optimizer.zero_grad(set_to_none=not self.launch.keeps_gradients)
        while self.groups > 1:
            self._statistics.keep()
            try:
                return backward(self.groups)
            except torch.OutOfMemoryError:
                before = self.groups
            self._undo()  # here, because the exception holds the tensors of the pass that failed
            self.groups = max(1, min(before, num_groups) // 2)
            logger.warning("memory ran out with %d groups in a forward pass; it goes on with %d", before, self.groups)
        try:
            return backward(1)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(self._refusal()) from error

    def _undo(self) -> None:
        self._statistics.restore()
        self.launch.forget()
        self._optimizer.zero_grad()
        if self._card is not None:
            self._card.release()

    def _chosen(self, card: Card, backward: Callable[[int], T], num_groups: int) -> int:
        """Return how many groups go through the network in one pass.

        One where layers draw random numbers, such as dropout and stochastic depth: they draw in the order of the
        layers, so that groups in one pass would get others than in passes of their own.
        """
        self._statistics.keep()
        if self._draws():
            logger.info("a forward pass holds one group of images: the network draws random numbers in it")
            return 1
        with self.launch.as_they_are():
            need = _needs.get((card.name, self._key)) or self._measured(card, backward)
        _needs[card.name, self._key] = need
        later = 3 * sum(
            weight.numel() * weight.element_size() for weight in self._parameters
        )  # AdamW's two, and the best
        room_bytes = USABLE * card.limit_bytes - card.held_bytes() - later
        if self.launch.records:  # what recordings hold is theirs alone, and as much again is computed without them
            room_bytes /= 2
        groups = fitting_groups(need, room_bytes=room_bytes, most=num_groups)
        one, two = (None if size is None else f"{size / 1e9:.2f} GB" for size in (need.one_bytes, need.two_bytes))
        logger.info(
            "a forward pass holds %d of the %d groups of a step: 1 takes %s, 2 take %s, there is room for %.2f GB",
            *(groups, num_groups, one, two or "too much", room_bytes / 1e9),
        )
        return groups

    def _draws(self) -> bool:
        """Whether a forward pass draws from the global generators."""
        self._module.train()
        with torch.no_grad():
            drew = draws_globally(next(self._module.parameters()).device, self._probe)
        self._statistics.restore()
        return drew

    def _measured(self, card: Card, backward: Callable[[int], T]) -> Need:
        """Try a step with one group and one with two groups in a pass, and leave everything as it was."""
        peaks: list[int | None] = []
        for groups in (1, 2):
            try:
                peaks.append(card.peak_bytes(functools.partial(backward, groups)))
            except torch.OutOfMemoryError as error:
                if groups == 1:
                    raise OutOfMemory(self._refusal()) from error
                peaks.append(None)
            self._undo()
        held = card.held_bytes()
        one, two = (None if peak is None else peak - held for peak in peaks)
        assert one is not None
        return Need(one, two)

    def _refusal(self) -> str:
        card = self._card
        where = "" if card is None else f", {card.limit_bytes / 1e9:.1f} GB of {card.name}"
        return (
            f"one group of batch_size images must fit the memory that a stage may take{where}; it does not: give the "
            "stage a larger share (--gpus-per-pretrain, --gpus-per-finetune) or a larger GPU, or lower image_size or "
            "batch_size"
        )
