"""Charts drawn for print."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from ablate.report.charts import Chart, HeatChart, Line, LineChart, RankChart
from ablate.report.style import MATPLOTLIB, WIDTH_IN, look_of
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


@functools.cache
def _drawn_letters() -> frozenset[int]:
    font = get_font(findfont(FontProperties(family=str(MATPLOTLIB["font.family"]))))
    return frozenset(font.get_charmap())


def drawable(text: str, longest: int = 200) -> str:
    """Return text in one line that the font can draw; other letters become a box, a long name is cut."""
    letters = _drawn_letters()
    text = "".join(c if ord(c) in letters else "□" for c in one_line(text))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def draw(chart: Chart) -> Figure:
    """Return the chart as a figure of one column's width."""
    with mpl.rc_context(rc=MATPLOTLIB):  # type: ignore[arg-type]
        if isinstance(chart, LineChart):
            return _draw_lines(chart)
        return _draw_heat(chart) if isinstance(chart, HeatChart) else _draw_ranks(chart)


def files_of(figure: Figure) -> Mapping[FileFormat, bytes]:
    """Return the figure as PNG, SVG and PDF; the same figure gives the same bytes."""
    files: dict[FileFormat, bytes] = {}
    with mpl.rc_context(rc=MATPLOTLIB):  # type: ignore[arg-type]
        for form in FORMATS:
            out = io.BytesIO()
            figure.savefig(out, format=form, metadata=_METADATA[form])
            figure.set_layout_engine("none")  # once laid out, it is the same in every format
            files[form] = out.getvalue()
    return files


def _figure(height_in: float, width_in: float = WIDTH_IN) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _draw_lines(chart: LineChart) -> Figure:
    names = [drawable(line.label, LONGEST_NAME) for line in chart.lines]
    columns = 3 if max(map(len, names)) < 12 else 2 if max(map(len, names)) < 22 else 1
    figure, axes = _figure(2.3 + 0.16 * math.ceil(len(names) / columns))
    for number, (line, name) in enumerate(zip(chart.lines, names, strict=True)):
        _draw_line(axes, chart, line, name, number - (len(names) - 1) / 2)
    for x in chart.rules:
        axes.axvline(x, color="#999999", linewidth=0.6, linestyle=":", zorder=0)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
        _plain_numbers(axes, "y")
    if chart.x_ticks:
        axes.xaxis.set_major_locator(FixedLocator([x for x, _ in chart.x_ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([drawable(label) for _, label in chart.x_ticks])
    elif chart.x_log:
        _plain_numbers(axes, "x")
    axes.set_xlabel(drawable(chart.x_label))
    axes.set_ylabel(drawable(chart.y_label))
    axes.set_title(drawable(chart.title, 60))
    if not chart.y_log:
        axes.set_ylim(bottom=0, top=100 if chart.y_label.endswith("(%)") else None)
    figure.legend(loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.2)
    return figure


def _draw_line(axes: Axes, chart: LineChart, line: Line, name: str, place: float) -> None:
    look = look_of(line.method)
    dash = _DASHES[line.style % len(_DASHES)]
    x, y = np.array(line.x), np.array(line.y)
    if chart.dense:
        axes.plot(x, y, color=look.colour, linestyle=dash, label=name)
        if line.lower:
            axes.fill_between(x, line.lower, line.upper, color=look.colour, alpha=0.15, linewidth=0)
        return
    if chart.x_log and chart.x_ticks:
        x = x * 1.025**place  # side by side, so that bars do not hide one another
    axes.plot(x, y, color=look.colour, linestyle=dash, marker=look.marker, label=name, markeredgewidth=0)
    if line.lower and np.isfinite(line.lower).any():
        lower, upper = np.array(line.lower), np.array(line.upper)
        axes.vlines(x, lower, upper, color=look.colour, linewidth=0.8)


def _plain_numbers(axes: Axes, which: Literal["x", "y"]) -> None:
    """Label a log axis with plain numbers; within one decade also between the powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_formatter(_Short())
    axis.set_minor_formatter(_Short() if low > 0 and high / low < 10 else NullFormatter())


class _Short(ScalarFormatter):
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}"


def _draw_heat(chart: HeatChart) -> Figure:
    figure, axes = _figure(1.25 + 0.2 * len(chart.rows))
    axes.grid(False)
    values = np.array(chart.values, np.float64)
    image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=0)
    axes.set_yticks(range(len(chart.rows)), [drawable(name, 34) for name in chart.rows])
    every = max(1, math.ceil(len(chart.columns) / 12))
    axes.set_xticks(range(0, len(chart.columns), every), [drawable(name) for name in chart.columns[::every]])
    axes.set_xlabel(drawable(chart.x_label))
    axes.set_title(drawable(chart.title, 60))
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.03)
    bar.set_label(drawable(chart.value_label))
    return figure


def _draw_ranks(chart: RankChart) -> Figure:
    """Draw ranks on a line, names below on both sides, bars over what cannot be told apart."""
    order = sorted(range(len(chart.names)), key=lambda i: (chart.ranks[i], chart.names[i]))
    half = math.ceil(len(order) / 2)
    figure, axes = _figure(1.0 + 0.17 * half + 0.1 * len(chart.cliques))
    axes.set_axis_off()
    low, high = 1.0, float(max(len(chart.names), 2))
    bar_y = [-0.35 - 0.3 * level for level in range(len(chart.cliques))]
    names_y = -0.5 - 0.3 * len(chart.cliques)
    axes.set_xlim(low - 0.55 * (high - low), high + 0.55 * (high - low))
    axes.set_ylim(names_y - 0.55 * half, 1.5)
    axes.plot([low, high], [0, 0], color="black", linewidth=0.8)
    for tick in range(int(low), int(high) + 1):
        axes.plot([tick, tick], [0, 0.12], color="black", linewidth=0.8)
        axes.text(tick, 0.2, str(tick), ha="center", va="bottom", fontsize=7)
    shown = min(chart.critical_difference, high - low)
    axes.plot([low, low + shown], [1.0, 1.0], color="black", linewidth=1.2)
    beyond = "" if chart.critical_difference <= high - low else ", wider than the axis"
    axes.text(low, 1.08, f"critical difference {chart.critical_difference:.2f}{beyond}", va="bottom", fontsize=7)
    for place, i in enumerate(order):
        left = place < half
        y = names_y - 0.5 * (place if left else len(order) - 1 - place)
        edge = low - 0.05 * (high - low) if left else high + 0.05 * (high - low)
        look = look_of(chart.methods[i])
        axes.plot([chart.ranks[i], chart.ranks[i], edge], [0, y, y], color=look.colour, linewidth=0.8)
        axes.plot([chart.ranks[i]], [0], color=look.colour, marker=look.marker, markersize=4)
        axes.text(
            edge, y, f" {drawable(chart.names[i], 22)} {chart.ranks[i]:.2f} ", ha="right" if left else "left",
            va="center", fontsize=7,
        )  # fmt: skip
    ranks = dict(zip(chart.names, chart.ranks, strict=True))
    for y, clique in zip(bar_y, chart.cliques, strict=True):
        inside = [ranks[name] for name in clique]
        axes.plot([min(inside) - 0.03, max(inside) + 0.03], [y, y], color="black", linewidth=2.5)
    axes.set_title(drawable(chart.title, 60))
    return figure
