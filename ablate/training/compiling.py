"""Compiling a network with torch's inductor, where the steps that remain pay for it.

Its cache of compiled kernels is a folder of the machine (TORCHINDUCTOR_CACHE_DIR, by default one for each user), so
that the stages of a node compile a network once.
"""

from __future__ import annotations

import logging

from torch import nn

from ablate.training.state import State

logger = logging.getLogger("ablate")

DECIDED_AFTER = 20
"""The optimizer step after which a run decides, when it is known what one takes; before, nothing is compiled."""

COMPILING_S = 90.0
"""Seconds that compiling a U-Net's forward and backward pass is taken to cost; assumed, not measured."""

SAVED = 0.2
"""Share of a step that compiling is taken to save; assumed, not measured: `ablate bench --compile` measures it."""

TIMES_PAID = 2
"""How often what is saved has to pay for compiling."""


def pays(remaining_steps: int, step_seconds: float) -> bool:
    """Return whether compiling pays for steps that take so long without it."""
    return remaining_steps * step_seconds * SAVED >= TIMES_PAID * COMPILING_S


class Compiling:
    """Whether the network of one training is compiled, which is part of its state, for it changes last bits."""

    def __init__(self, module: nn.Module, *, after: int | None, state: State | None) -> None:
        """Compile at once what an earlier attempt had compiled.

        Args:
            module: called as a module in every step; its weights keep their names.
            after: the step after which it is decided; None: it never is.
            state: of an earlier attempt, with `compiled`.
        """
        self._module, self._after = module, after
        self.compiled = False
        if state is not None and state.get("compiled", False):
            self._compile()

    def after_step(self, step: int, remaining_steps: int, step_seconds: float) -> None:
        """Decide, after the one step after which that is done.

        Args:
            step: of the training, counted from 1.
            remaining_steps: that are asked for.
            step_seconds: what a step took, the mean of this attempt.
        """
        if not self.compiled and step == self._after and pays(remaining_steps, step_seconds):
            self._compile()

    def _compile(self) -> None:
        logger.info("the network is compiled from here on")
        self._module.compile(dynamic=False)
        self.compiled = True
