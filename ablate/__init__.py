"""ablate: a distributed ablation runner for few-shot landmark detection in X-ray images.

`load_grid`, `plan`, `run` and `read_results` are for notebooks and scripts; they are imported when asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablate.api import Results, load_grid, plan, read_results, run
    from ablate.errors import InputError

__version__ = "0.1.0"

__all__ = ["InputError", "Results", "load_grid", "plan", "read_results", "run"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("ablate.errors" if name == "InputError" else "ablate.api"), name)
