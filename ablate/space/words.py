"""The words by which tables and the screen name an initialisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ablate.space.fields import METHOD_FIELD, flatten
from ablate.space.methods import method_label
from ablate.space.pretrain import Pretrain
from ablate.space.spec import Spec
from ablate.space.trial import TrialSpec

_FORMS = {"pretrain.timesteps": "T={}", "pretrain.betas": "betas {}"}
"""Fields whose value alone does not say of what it is."""

_SPOKEN: Mapping[str, Mapping[object, str]] = {
    "pretrain_transfer": {"network": "whole network", "encoder": "encoder only"},
    "pretrain_hidden_dim": {0: "features"},
}
"""Values that a reader is not shown as they stand, by their field as a column."""


def spoken(column: str, value: object) -> object:
    """Return a field's value as a reader is shown it: the words for it, where there are some, else itself."""
    return _SPOKEN.get(column, {}).get(value, value) if isinstance(value, (str, int)) else value


def initialisation(spec: Spec) -> str:
    """Return an initialisation in a few words: `DDPM T=500, 8000 steps`, `RadImageNet`."""
    words = method_label(str(getattr(spec, "method")), str(getattr(spec, "name", "")))  # noqa: B009
    timesteps = f" T={spec.timesteps}" if hasattr(spec, "timesteps") else ""
    steps = f", {spec.steps} steps" if isinstance(spec, Pretrain) else ""
    return words + timesteps + steps


def arm_words(trial: TrialSpec, fields: Iterable[str]) -> str:
    """Return the values of an arm's fields, by dotted names, in a few words: `DDPM, encoder only`.

    Fields that the trial's initialisation lacks are left out, and that the whole network is transferred.
    """
    row, words = flatten(trial), []
    for field in fields:
        column = field.replace(".", "_")
        if field == ".".join(METHOD_FIELD):
            words.append(method_label(trial.method))
        elif field == "pretrain.transfer":
            words += [str(spoken(column, row[column]))] if row.get(column, "network") != "network" else []
        elif column in row:
            words.append(_FORMS.get(field, "{}").format(row[column]))
    return ", ".join(words)
