"""The method of a pre-training, built from the table of methods."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ablate.pretrain.base import PretrainingMethod
from ablate.space import METHODS, Pretraining
from ablate.training import global_seed

if TYPE_CHECKING:
    from typing import Protocol

    class MethodModule(Protocol):
        """A module of `METHODS[name].code`."""

        IMPLEMENTATION: type[PretrainingMethod[Any]]


def build_method(pretraining: Pretraining) -> PretrainingMethod[Any]:
    """Build a pre-training's method on the CPU: the class `IMPLEMENTATION` of the module that `METHODS` names.

    Initial weights, of heads and queues too, depend on the pre-training's seed alone.

    Raises:
        InputError: `weights` cannot be loaded, see `ablate.network.weights.load_weights`.
    """
    fields = pretraining.fields
    code = METHODS[fields.method].code
    assert code is not None  # a `Pretraining` is of a method that is trained
    module: MethodModule = importlib.import_module(code)
    with global_seed("cpu", fields.seed, "heads"):
        return module.IMPLEMENTATION(pretraining)
