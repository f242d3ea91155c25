"""The words by which tables and the screen name an initialisation."""

from __future__ import annotations

from ablate.space.methods import method_label
from ablate.space.pretrain import Pretrain
from ablate.space.spec import Spec


def initialisation(spec: Spec) -> str:
    """Return an initialisation in a few words: `DDPM T=500, 8000 steps`, `RadImageNet`."""
    words = method_label(str(getattr(spec, "method")), str(getattr(spec, "name", "")))  # noqa: B009
    timesteps = f" T={spec.timesteps}" if hasattr(spec, "timesteps") else ""
    steps = f", {spec.steps} steps" if isinstance(spec, Pretrain) else ""
    return words + timesteps + steps
