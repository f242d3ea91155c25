"""Charts drawn for print."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from ablate.errors import InputError, nearest
from ablate.report.chart_kinds import Chart, HeatChart, Line, LineChart, RankChart, places_of
from ablate.report.rank_layout import RankLayout, RankName, lay_out
from ablate.report.style import FONT, WIDTH_IN, Print, look_of, settings_of, width_of
from ablate.words import one_line

FileFormat: TypeAlias = Literal["png", "svg", "pdf"]
FORMATS: tuple[FileFormat, ...] = ("png", "svg", "pdf")

_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""Metadata to leave out, so that the same figure gives the same file."""

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
LONGEST_NAME = 44

SMALL = 6.5
"""Size of what a figure says about itself, in points."""

LETTERS_ACROSS = 3
"""Names of a heat map's columns that are longer stand upright."""

LETTER_IN = 0.052
"""Width of a letter of a legend, on average."""


def check_font(name: str) -> str:
    """Return the name of an installed font; raise `InputError` if there is none of this name."""
    known = sorted(set(get_font_names()))
    found = [font for font in known if font.lower() == name.strip().lower()]
    if not found:
        raise InputError(
            f"--font must be a font that matplotlib finds on this machine; got {name!r}{nearest(name, known)}; "
            f"there are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
        )
    return found[0]


def print_style(font: str | None = None, column_width: str | None = None) -> Print:
    """Return what figures for print look like.

    Args:
        font: name of an installed font; default `FONT`.
        column_width: such as `86mm`, `3.4in` or `252pt`; default `WIDTH_IN`.

    Raises:
        InputError: there is no such font, or this is no width.
    """
    return Print(
        check_font(font) if font is not None else FONT,
        width_of(column_width) if column_width is not None else WIDTH_IN,
    )


@functools.cache
def _letters(font: str) -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=[font]))).get_charmap())


def _font() -> str:
    """Return the name of the font in use."""
    return str(mpl.rcParams["font.family"][0])


def _dots(letters: frozenset[int]) -> str:
    """Return what stands where letters were cut."""
    return "…" if ord("…") in letters else "."


def drawable(text: str, longest: int = 200, font: str | None = None) -> str:
    """Return text in one line that a font can draw; other letters become a box, a long name is cut.

    Args:
        text: what to write.
        longest: most letters.
        font: its name; default: the font in use.
    """
    letters = _letters(font or _font())
    box = "□" if ord("□") in letters else "?"
    text = "".join(c if ord(c) in letters else box for c in one_line(text))
    return text if len(text) <= longest else text[: longest - 1] + _dots(letters)


def drawable_names(names: Sequence[str], longest: int, font: str | None = None) -> list[str]:
    """Return names that a font can draw, see `drawable`, cut so that different names stay different where they can.

    Long names lose letters in the middle, all in one place: after two thirds, or as near as that keeps the most of them
    apart.

    Args:
        names: what to write.
        longest: most letters of a name.
        font: its name; default: the font in use.
    """
    whole = [drawable(name, font=font) for name in names]
    dots = _dots(_letters(font or _font()))

    def cut(kept: int) -> list[str]:  # letters kept after the dots
        return [
            name if len(name) <= longest else name[: longest - 1 - kept] + dots + name[len(name) - kept :]
            for name in whole
        ]

    return cut(max(range(longest), key=lambda kept: (len(set(cut(kept))), -abs(kept - longest // 3))))


def _wrapped(name: str, letters: int) -> str:
    """Return a name in lines of so many letters; what no three lines could hold is cut."""
    return "\n".join(textwrap.wrap(drawable(name, 3 * letters), letters))


def draw(chart: Chart, style: Print | None = None) -> Figure:
    """Return the chart as a figure of one column's width."""
    style = style or Print()
    with mpl.rc_context(rc=settings_of(style)):  # type: ignore[arg-type]
        if isinstance(chart, LineChart):
            return _draw_lines(chart, style.width_in)
        if isinstance(chart, HeatChart):
            return _draw_heat(chart, style.width_in)
        return _draw_ranks(chart, style.width_in)


def files_of(figure: Figure, style: Print | None = None) -> Mapping[FileFormat, bytes]:
    """Return the figure as PNG, SVG and PDF; the same figure gives the same bytes."""
    files: dict[FileFormat, bytes] = {}
    with mpl.rc_context(rc=settings_of(style or Print())):  # type: ignore[arg-type]
        for form in FORMATS:
            out = io.BytesIO()
            figure.savefig(out, format=form, metadata=_METADATA[form])
            figure.set_layout_engine("none")  # once laid out, it is the same in every format
            files[form] = out.getvalue()
    return files


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _legend_columns(names: Sequence[str], width_in: float) -> int:
    """Return how many names stand side by side below a figure, by the width of the longest."""
    entry_in = 0.42 + LETTER_IN * max(map(len, names))
    return min(len(names), max(1, int(width_in / entry_in)))


def _set_title(figure: Figure, axes: Axes, chart: Chart, width_in: float, *, marks: bool = True) -> None:
    """Write the title, and under it what the figure says about itself where it has no legend to say it."""
    title = drawable(chart.title, round(60 * width_in / 3.4))
    if marks and chart.marks:  # above the whole figure: beside long names of rows the axes are narrow
        said = _marks(chart, round(50 * width_in / 3.4))
        figure.suptitle("\n".join((title, *said)), fontsize=mpl.rcParams["axes.titlesize"])
    else:
        axes.set_title(title)


def _marks(chart: Chart, letters: int) -> list[str]:
    """Return what a figure says about itself, in lines of so many letters."""
    return [line for mark in chart.marks for line in textwrap.wrap(drawable(mark), letters)]


def _draw_lines(chart: LineChart, width_in: float) -> Figure:
    names = drawable_names([line.label for line in chart.lines], LONGEST_NAME)
    columns = _legend_columns(names, width_in)
    marks = _marks(chart, round(64 * width_in / 3.4))
    figure, axes = _figure(width_in, 2.3 + 0.16 * math.ceil(len(names) / columns) + 0.13 * len(marks))
    for line, name, place in zip(chart.lines, names, places_of(chart), strict=True):
        _draw_line(axes, chart, line, name, np.array(place))
    for x in chart.rules:
        axes.axvline(x, color="#999999", linewidth=0.6, linestyle=":", zorder=0)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
        _plain_numbers(axes)
    if chart.x_ticks:
        axes.xaxis.set_major_locator(FixedLocator([x for x, _ in chart.x_ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([drawable(label) for _, label in chart.x_ticks])
    if chart.x_end is not None:
        axes.set_xlim(0, chart.x_end)
    axes.set_xlabel(drawable(chart.x_label))
    axes.set_ylabel(drawable(chart.y_label))
    _set_title(figure, axes, chart, width_in, marks=False)
    if not chart.y_log:
        axes.set_ylim(bottom=0, top=chart.percent_end if chart.percent else None)
    legend = figure.legend(
        loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.2, title="\n".join(marks) or None
    )
    legend.get_title().set_fontsize(SMALL)
    return figure


def _draw_line(axes: Axes, chart: LineChart, line: Line, name: str, x: Any) -> None:
    look = look_of(line.method)
    dash = _DASHES[line.style % len(_DASHES)]
    y = np.array(line.y)
    if chart.dense and line.mark != "points":
        axes.plot(x, y, color=look.colour, linestyle=dash, label=name)
        if line.lower:
            axes.fill_between(x, line.lower, line.upper, color=look.colour, alpha=0.15, linewidth=0)
        return
    if line.mark == "rule":
        axes.plot(x, y, color=look.colour, linestyle=dash, label=name)
    elif line.mark == "points":
        axes.plot(
            x, y, color=look.colour, linestyle="none", marker=look.marker, label=name, markerfacecolor="white",
            markeredgecolor=look.colour, markeredgewidth=0.9,
        )  # fmt: skip
    else:
        axes.plot(x, y, color=look.colour, linestyle=dash, marker=look.marker, label=name, markeredgewidth=0)
    if line.lower and np.isfinite(line.lower).any():
        axes.vlines(x, np.array(line.lower), np.array(line.upper), color=look.colour, linewidth=0.8)


def _plain_numbers(axes: Axes) -> None:
    """Label a log axis with plain numbers; within one decade also between the powers of ten."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(_Short())
    axes.yaxis.set_minor_formatter(_Short() if low > 0 and high / low < 10 else NullFormatter())


class _Short(ScalarFormatter):
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}"


def _draw_heat(chart: HeatChart, width_in: float) -> Figure:
    columns = drawable_names(chart.columns, 24)
    longest = max(map(len, columns))
    upright = longest > LETTERS_ACROSS
    below_in = LETTER_IN * longest if upright else 0.0
    rows = [_wrapped(name, 34) for name in chart.rows]
    row_in = 0.09 + 0.11 * (1 + max(name.count("\n") for name in rows))
    figure, axes = _figure(width_in, 1.25 + row_in * len(rows) + 0.26 * len(chart.marks) + below_in)
    axes.grid(False)
    values = np.array(chart.values, np.float64)
    image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=0)
    axes.set_yticks(range(len(rows)), rows)
    every = max(1, math.ceil(len(columns) / ((6 if upright else 3.5) * width_in)))
    axes.set_xticks(range(0, len(columns), every), columns[::every], rotation=90 if upright else 0)
    axes.set_xlabel(drawable(chart.x_label))
    _set_title(figure, axes, chart, width_in)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.03)
    bar.set_label(drawable(chart.value_label))
    return figure


def _draw_ranks(chart: RankChart, width_in: float) -> Figure:
    layout = lay_out(chart, 22)
    figure, axes = _figure(width_in, 1.0 + 0.17 * layout.lines + 0.1 * len(chart.cliques) + 0.26 * len(chart.marks))
    axes.set_axis_off()
    span = layout.high - layout.low
    axes.set_xlim(layout.low - 0.6 * span, layout.high + 0.6 * span)
    axes.set_ylim(layout.bottom - 0.05, layout.top)
    _draw_rank_parts(axes, layout)
    for name in layout.names:
        _draw_rank_name(axes, name)
    _set_title(figure, axes, chart, width_in)
    return figure


def _draw_rank_parts(axes: Axes, layout: RankLayout) -> None:
    for stroke in layout.strokes:
        x, y = zip(*stroke.points, strict=True)
        colour = look_of(stroke.method).colour if stroke.method else "black"
        axes.plot(x, y, color=colour, linewidth=stroke.width, marker="none")
    for tag in layout.tags:
        align = "center" if tag.side == "below" else tag.side
        axes.text(tag.x, tag.y, drawable(tag.text), ha=align, va="bottom", fontsize=7)


def _draw_rank_name(axes: Axes, name: RankName) -> None:
    look = look_of(name.method)
    axes.plot([name.rank], [0], color=look.colour, marker=look.marker, markersize=4)
    lines = [drawable(line) for line in name.lines]
    text = "\n".join(f"{line} " if name.left else f" {line}" for line in lines)
    axes.text(name.x, name.y, text, ha="right" if name.left else "left", va="center", fontsize=7)
