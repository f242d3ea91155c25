"""Pre-training: one file per method, one loop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ablate.pretrain.base import Method
from ablate.pretrain.loop import run_pretraining
from ablate.space import METHODS, Pretraining
from ablate.training import global_seed

if TYPE_CHECKING:
    from typing import Protocol

    class MethodModule(Protocol):
        """A module of `METHODS[name].code`."""

        METHOD: type[Method]


__all__ = ["Method", "build_method", "run_pretraining"]


def build_method(pretraining: Pretraining) -> Method:
    """Build a pre-training's method on the CPU: the class `METHOD` of the module that `METHODS` names.

    Initial weights, of heads and queues too, depend on the pre-training's seed alone.

    Raises:
        InputError: `weights` cannot be loaded, see `ablate.models.load_weights`.
    """
    fields = pretraining.fields
    code = METHODS[fields.method].code
    assert code is not None  # a `Pretraining` is of a method that is trained
    module: MethodModule = importlib.import_module(code)
    with global_seed("cpu", fields.seed, "heads"):
        return module.METHOD(pretraining)
