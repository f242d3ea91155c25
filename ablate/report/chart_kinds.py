"""Figures as data: lines over an axis, a number for each row and column, average ranks."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Mark: TypeAlias = Literal["line", "rule", "points"]
"""How the values of a `Line` are drawn: joined, as a line without markers, or as hollow markers alone."""


@dataclass(frozen=True)
class Line:
    """Points of one initialisation, with limits where there are any (NaN: none)."""

    label: str
    method: str  # decides colour and marker
    style: int  # number among the settings of this method; decides the dashes
    x: tuple[float, ...]  # NaN: a gap in the line
    y: tuple[float, ...]
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()
    hover: tuple[str, ...] = ()
    mark: Mark = "line"


@dataclass(frozen=True)
class LineChart:
    """Lines over a common axis."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_log: bool = False
    y_log: bool = False
    x_ticks: tuple[tuple[float, str], ...] = ()
    x_end: float | None = None  # where the axis ends, from 0
    rules: tuple[float, ...] = ()  # x of vertical lines
    dense: bool = False  # a curve: no markers, a band instead of bars
    own_selection: bool = False  # it says by itself how settings were chosen, or shows all of them
    side_by_side: bool = False  # the lines share their x, so that bars would hide one another
    note: str = ""
    marks: tuple[str, ...] = ()  # what print must say too, a line each

    @property
    def percent(self) -> bool:
        """Whether the values are shares, which end at 100 %."""
        return self.y_label.endswith("(%)")

    @property
    def percent_end(self) -> float:
        """Where an axis of shares ends: 100 %, or 50, 20 or 10 % where all lie below."""
        values = [value for line in self.lines for value in (*line.y, *line.upper) if math.isfinite(value)]
        return next((end for end in (10.0, 20.0, 50.0) if max(values, default=100.0) <= end), 100.0)


@dataclass(frozen=True)
class HeatChart:
    """A number for each row and column."""

    name: str
    title: str
    x_label: str
    value_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]  # NaN: none
    note: str = ""
    marks: tuple[str, ...] = ()  # what print must say too, a line each


@dataclass(frozen=True)
class RankChart:
    """A critical-difference diagram (Demsar 2006)."""

    name: str
    title: str
    names: tuple[str, ...]
    methods: tuple[str, ...]  # decide colour and marker
    ranks: tuple[float, ...]
    critical_difference: float | None  # None: nothing was tested
    cliques: tuple[tuple[str, ...], ...]
    note: str = ""
    marks: tuple[str, ...] = ()  # what print must say too, a line each


Chart: TypeAlias = LineChart | HeatChart | RankChart

WIDEST_STEP = 0.012
"""Share of the axis by which neighbouring lines stand apart, where there is room."""

FULLEST = 0.4
"""Share of the room between two values of the axis that all lines together may take."""


def places_of(chart: LineChart) -> list[tuple[float, ...]]:
    """Return the x at which each line is drawn: side by side where the lines share their x.

    Lines without markers keep their x.
    """
    moved = [number for number, line in enumerate(chart.lines) if line.mark != "rule"]
    values = sorted({_position(x, chart.x_log) for number in moved for x in chart.lines[number].x if math.isfinite(x)})
    if not chart.side_by_side or len(values) < 2 or len(moved) < 2:
        return [line.x for line in chart.lines]
    gap = min(after - before for before, after in itertools.pairwise(values))
    step = min(WIDEST_STEP * (values[-1] - values[0]), FULLEST * gap / len(moved))
    places: list[tuple[float, ...]] = [line.x for line in chart.lines]
    for place, number in enumerate(moved):
        offset = step * (place - (len(moved) - 1) / 2)
        places[number] = tuple(
            math.exp(math.log(x) + offset) if chart.x_log else x + offset for x in chart.lines[number].x
        )
    return places


def _position(x: float, log: bool) -> float:
    return math.log(x) if log else x
