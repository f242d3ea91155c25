"""Where the parts of a critical-difference diagram stand, the same in print and on the page."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from ablate.report.chart_kinds import RankChart
from ablate.words import one_line

ROW = 0.5
"""Height of a line of a name below the axis, in units of the diagram."""

LONGEST_NAME = 60
"""Most letters of a name; a longer one is cut."""


@dataclass(frozen=True)
class Stroke:
    """A line through some points; without a method it has the colour of the text."""

    points: tuple[tuple[float, float], ...]
    width: float  # in points of print
    method: str | None = None


@dataclass(frozen=True)
class Tag:
    """A text at a point; `side` is where the point lies as seen from the text."""

    x: float
    y: float
    text: str
    side: str  # left, right or below


@dataclass(frozen=True)
class RankName:
    """An initialisation: its rank on the axis, and its name at the end of its stroke."""

    name: str
    lines: tuple[str, ...]  # the name and its rank, as they are written
    method: str
    rank: float
    x: float  # end of the stroke
    y: float
    left: bool  # the name stands to the left of the end


@dataclass(frozen=True)
class RankLayout:
    """A diagram in units of ranks across; up from the axis, which lies at 0."""

    low: float  # ends of the axis
    high: float
    bottom: float
    top: float
    strokes: tuple[Stroke, ...]
    tags: tuple[Tag, ...]
    names: tuple[RankName, ...]
    lines: int  # of all names on the longer side


def lay_out(chart: RankChart, letters: int) -> RankLayout:
    """Return the diagram: ranks on a line, names below on both sides, bars over what cannot be told apart.

    Args:
        chart: what it shows.
        letters: most letters of a line of a name.
    """
    order = sorted(range(len(chart.names)), key=lambda i: (chart.ranks[i], chart.names[i]))
    half = math.ceil(len(order) / 2)
    low, high = 1.0, float(max(len(chart.names), 2))
    strokes = [
        Stroke(((low, 0.0), (high, 0.0)), 0.8),
        *(Stroke(((tick, 0.0), (tick, 0.12)), 0.8) for tick in range(int(low), int(high) + 1)),
    ]
    tags = [Tag(tick, 0.2, str(tick), "below") for tick in range(int(low), int(high) + 1, 1 if high < 10 else 2)]
    if chart.critical_difference is not None:
        shown = min(chart.critical_difference, high - low)
        beyond = "" if chart.critical_difference <= high - low else ", wider than the axis"
        strokes.append(Stroke(((low, 1.0), (low + shown, 1.0)), 1.2))
        tags.append(Tag(low, 1.08, f"critical difference {chart.critical_difference:.2f}{beyond}", "left"))
    ranks = dict(zip(chart.names, chart.ranks, strict=True))
    for level, clique in enumerate(chart.cliques):
        y, inside = -0.35 - 0.3 * level, [ranks[name] for name in clique]
        strokes.append(Stroke(((min(inside) - 0.03, y), (max(inside) + 0.03, y)), 2.5))
    written = [_lines(name, rank, letters) for name, rank in zip(chart.names, chart.ranks, strict=True)]
    lines = max(map(len, written))
    row = ROW * lines
    names_y = -0.5 - 0.3 * len(chart.cliques)
    names = []
    for place, i in enumerate(order):
        left = place < half
        y = names_y - row * (place if left else len(order) - 1 - place)
        x = low - 0.05 * (high - low) if left else high + 0.05 * (high - low)
        names.append(RankName(chart.names[i], written[i], chart.methods[i], chart.ranks[i], x, y, left))
        strokes.append(Stroke(((chart.ranks[i], 0.0), (chart.ranks[i], y), (x, y)), 0.8, chart.methods[i]))
    return RankLayout(low, high, names_y - row * half, 1.5, tuple(strokes), tuple(tags), tuple(names), lines * half)


def _lines(name: str, rank: float, letters: int) -> tuple[str, ...]:
    """Return a name and its rank in lines of so many letters."""
    name = one_line(name)
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return tuple(textwrap.wrap(f"{short} {rank:.2f}", letters))
