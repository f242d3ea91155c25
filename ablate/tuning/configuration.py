"""One configuration of a tuning, and what its trials came to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from ablate.space import Settings, Study, TrialSpec

State: TypeAlias = Literal["finished", "stopped", "failed"]
"""How a configuration ended: judged to its end, stopped halfway as one of the worse half, or without a value."""


class Result(NamedTuple):
    """What one tuning trial has come to at a rung."""

    val_mre: float  # of its best weights by validation loss so far, in the data set's unit; NaN where it failed
    epochs: int  # done
    hours: float  # of fine-tuning so far times the GPUs it held; on a CPU, of its slot
    error: str | None = None  # one line, where it failed


@dataclass
class Configuration:
    """Settings of an arm at a place, judged by the mean over the tuning seeds of the validation error."""

    number: int  # from 0, the arm's default
    round: int  # from 0
    settings: Settings
    trials: tuple[TrialSpec, ...]  # one for each tuning seed
    state: State | None = None  # None: still open
    value: float | None = None  # mean of `values`; None where it failed or is open
    values: tuple[float, ...] = ()  # validation errors at its end, by seed
    epochs: tuple[int, ...] = ()
    hours: float = 0.0
    chosen: bool = False
    halted_at: int | None = field(default=None)  # of a stopped one: the rung, from 0

    @classmethod
    def of(cls, study: Study, number: int, settings: Settings) -> Configuration:
        """Return an open configuration of a study."""
        trials = tuple(study.tuning_trial(settings, seed) for seed in study.spec.seeds)
        return cls(number, number // study.spec.round, settings, trials)

    def close(self, state: State, results: Sequence[Result]) -> None:
        """End the configuration with the results of its trials."""
        self.state = state
        self.values = tuple(result.val_mre for result in results)
        self.value = None if state == "failed" else math.fsum(self.values) / len(self.values)
        self.epochs = tuple(result.epochs for result in results)
        self.hours = math.fsum(result.hours for result in results)
