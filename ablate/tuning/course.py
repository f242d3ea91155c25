"""The course of one tuning: which round is asked for, which trials run how far, which halves stop, and the choice.

It knows neither a store nor a clock: it is told configurations and results, and says what comes next. What it decides
depends on nothing but the specification and these results, so that it is rebuilt from tables at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ablate.space import Settings, Study, TrialSpec
from ablate.tuning.configuration import Configuration, Result, State

ResultKey: TypeAlias = tuple[str, float]
"""A tuning trial's id, and the rung that it has reached, as a share of its optimizer steps."""


class Ask(NamedTuple):
    """A round's configurations are to be asked for."""

    number: int  # of the round, from 0
    size: int  # how many configurations; the default, number 0, is not among them


class Segment(NamedTuple):
    """A stretch of a tuning trial, from one rung to the next."""

    trial: TrialSpec
    since: float  # the rung before, as a share of its optimizer steps; 0 at the start
    until: float  # the rung at which it pauses; 1 at its end

    @property
    def key(self) -> ResultKey:
        """Under which its result is known."""
        return self.trial.trial_id, self.until


class Run(NamedTuple):
    """Results of these segments are missing."""

    segments: tuple[Segment, ...]


class Over(NamedTuple):
    """The budget is used."""

    chosen: Configuration | None  # None: no configuration has a value


@dataclass
class Course:
    """One tuning so far.

    Args:
        study: what is tuned.
        configurations: by number; those of the last round may be open.
    """

    study: Study
    configurations: list[Configuration]

    @property
    def used(self) -> list[Configuration]:
        """The configurations within the budget."""
        return self.configurations[: self.study.spec.budget]

    def add(self, settings: Sequence[Settings]) -> list[Configuration]:
        """Append the configurations of the next round, the default first if it is the first; return them."""
        found = [self.study.defaults, *settings] if not self.configurations else settings
        start = len(self.configurations)
        added = [Configuration.of(self.study, start + place, values) for place, values in enumerate(found)]
        self.configurations += added
        return added

    def next(self, results: Mapping[ResultKey, Result]) -> Ask | Run | Over:
        """Return what comes next, after closing and stopping what the results allow."""
        spec = self.study.spec
        while True:
            open_ones = [found for found in self.used if found.state is None]
            if open_ones:
                missing = self._judge(open_ones, results)
                if missing:
                    return Run(missing)
            elif len(self.configurations) < spec.budget:
                number = len(self.configurations)
                return Ask(number // spec.round, spec.round - (number == 0))
            else:
                return Over(self._choose())

    def _judge(self, round_: Sequence[Configuration], results: Mapping[ResultKey, Result]) -> tuple[Segment, ...]:
        """Take a round as far as the results go, and close it at its end; return the segments that it lacks.

        Whatever its earlier rungs decide is decided anew from their results, until the whole round is closed.
        """
        halve, left = self.study.spec.halve, list(round_)
        ended: list[tuple[Configuration, State, int, list[Result]]] = []
        for rung in range(len(halve) + 1):
            segments = {found.number: _segments(found, halve, rung) for found in left}
            missing = {s.key: s for found in left for s in segments[found.number] if s.key not in results}
            if missing:
                return tuple(missing.values())
            reached = {found.number: [results[s.key] for s in segments[found.number]] for found in left}
            failed = {n for n, found in reached.items() if any(math.isnan(result.val_mre) for result in found)}
            alive = [found for found in left if found.number not in failed]
            stopped = _worse_half(alive, reached) if rung < len(halve) else set()
            for found in left:
                state: State | None = "failed" if found.number in failed else None
                state = "stopped" if found.number in stopped else state
                state = "finished" if state is None and rung == len(halve) else state
                if state is not None:
                    ended.append((found, state, rung, reached[found.number]))
            left = [found for found in alive if found.number not in stopped]
        for found, state, rung, of_seeds in ended:
            found.close(state, of_seeds)
            found.halted_at = rung if state == "stopped" else None
        return ()

    def _best(self) -> Configuration | None:
        """Return the finished configuration of the least value, the lower number of equal ones; None without any."""
        finished = [found for found in self.used if found.state == "finished"]
        return min(finished, key=lambda found: (found.value, found.number), default=None)

    def _choose(self) -> Configuration | None:
        """Return the best configuration, and mark it."""
        best = self._best()
        for found in self.configurations:
            found.chosen = found is best
        return best

    @property
    def is_settled(self) -> bool:
        """Whether the budget is used, and the choice is marked."""
        if len(self.configurations) < self.study.spec.budget or any(found.state is None for found in self.used):
            return False
        best = self._best()
        return all(found.chosen == (found is best) for found in self.configurations)

    def remaining(self) -> int:
        """Return how many configurations of the budget have not ended yet."""
        return self.study.spec.budget - sum(found.state is not None for found in self.used)


def _worse_half(alive: Sequence[Configuration], reached: Mapping[int, Sequence[Result]]) -> set[int]:
    """Return the numbers of the worse floor(n / 2) of n configurations; never the default's."""
    value = {found.number: math.fsum(result.val_mre for result in reached[found.number]) for found in alive}
    ranked = sorted((number for number in value if number != 0), key=lambda number: (value[number], number))
    return set(ranked[max(0, len(ranked) - len(alive) // 2) :])


def _segments(configuration: Configuration, halve: Sequence[float], rung: int) -> tuple[Segment, ...]:
    rungs = (0.0, *halve, 1.0)
    return tuple(Segment(trial, rungs[rung], rungs[rung + 1]) for trial in configuration.trials)
