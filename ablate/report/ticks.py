"""Where the axes of figures have their ticks, and durations as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

MOST_TICKS = 6
"""Ticks of an axis whose labels do not collide in a column of print."""

_TIMES = (
    *(0.001 * step * 10**power for power in range(3) for step in (1, 2, 5)),
    1.0, 2.0, 5.0, 10.0, 20.0, 30.0,
    *(MINUTE * step for step in (1, 2, 5, 10, 20, 30)),
    *(HOUR * step for step in (1, 2, 5, 12)),
    *(DAY * step * 10**power for power in range(4) for step in (1, 2, 5)),
)  # fmt: skip
_DECADES = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))


def time_text(seconds: float) -> str:
    """Return a duration in the unit that fits it: `0.4 s`, `38 s`, `4.2 min`, `1.3 h`; `0` for none."""
    if seconds == 0:
        return "0"
    for limit, size, unit in ((100.0, 1.0, "s"), (100 * MINUTE, MINUTE, "min"), (math.inf, HOUR, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.{0 if value >= 10 else 1 if value >= 0.1 else 3}f} {unit}"
    raise AssertionError


def time_ticks(values: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Return ticks of a logarithmic axis of seconds: `10 s`, `1 min`, `1 h`."""
    low, high = min(values), max(values)
    inside = [time for time in _TIMES if low / 1.1 <= time <= high * 1.1]
    if len(inside) < 2:
        return tuple((value, time_text(value)) for value, _ in log_ticks(values))
    return _spaced([(time, _tick_text(time)) for time in _thinned(inside)], low, high)


def _tick_text(seconds: float) -> str:
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (1.0, "s"), (0.001, "ms")):
        if seconds >= size * (1 - 1e-9):
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds:g} s"


def log_ticks(values: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Return ticks of a logarithmic axis that holds some positive values, as many as can be read side by side."""
    low, high = min(values), max(values)
    found: list[float] = []
    for steps in _DECADES:
        powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        inside = [step * 10.0**power for power in powers for step in steps]
        inside = [value for value in inside if low / 1.1 <= value <= high * 1.1]
        if not found or len(inside) <= MOST_TICKS:
            found = inside
    if len(found) < 2:  # within less than a factor of two
        found = sorted({low, high}) if high > low * 1.1 else [math.sqrt(low * high)]
        return tuple((value, f"{value:.3g}") for value in found)
    return _spaced([(value, f"{value:g}") for value in _thinned(found)], low, high)


def _spaced(ticks: Sequence[tuple[float, str]], low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Return ticks that can be told apart also on a phone, whose letters are wider for its axis than those of print."""
    return readable(ticks, log=True, letter=1.3 * LETTER, length=1.1 * math.log(high / low))


def _thinned(values: Sequence[float]) -> list[float]:
    return list(values)[:: math.ceil(len(values) / MOST_TICKS)]


LETTER = 0.02
"""Width of a letter of a tick's label as a share of the axis, in a column of print."""


def readable(
    ticks: Sequence[tuple[float, str]], *, log: bool, letter: float = LETTER, length: float | None = None
) -> tuple[tuple[float, str], ...]:
    """Return the ticks with labels that do not run into one another: the last one stays, others give way.

    Args:
        ticks: values and labels.
        log: whether the axis is logarithmic.
        letter: width of a letter as a share of the axis.
        length: of the axis in its own scale; default: from the first to the last tick.
    """
    ordered = sorted(dict(ticks).items(), reverse=True)
    place = {value: math.log(value) if log else value for value, _ in ordered}
    if length is None:
        length = place[ordered[0][0]] - place[ordered[-1][0]] if ordered else 0.0
    kept = ordered[:1]
    for value, label in ordered[1:]:
        room = (place[kept[-1][0]] - place[value]) / length
        if room >= letter * (1 + (len(label) + len(kept[-1][1])) / 2):
            kept.append((value, label))
    return tuple(reversed(kept))
