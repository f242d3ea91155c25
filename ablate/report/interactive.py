"""Charts as plotly draws them on the page, with their numbers on hover."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ablate.report.chart_kinds import Chart, HeatChart, Line, LineChart, RankChart, places_of
from ablate.report.rank_layout import ROW, RankName, lay_out
from ablate.report.style import DASHES, look_of
from ablate.words import one_line

RANK_LETTERS = 16
"""Letters of a line of a name beside the ranks."""

LINE_PX = 16
"""Height of such a line."""


def chart_json(chart: Chart) -> dict[str, Any]:
    """Return a chart as plain data for the page's script; texts are not escaped, the script sets them as text.

    plotly reads a few tags in texts; `<` is written as an entity that it shows as such.
    """
    if isinstance(chart, LineChart):
        traces, layout = _lines(chart)
    elif isinstance(chart, HeatChart):
        traces, layout = _heat(chart)
    else:
        traces, layout = _ranks(chart)
    return {"name": chart.name, "title": one_line(chart.title), "note": chart.note, "data": traces, "layout": layout}


def safe(text: str) -> str:
    """Return text that plotly shows as it stands: no tag, no entity and no template of its own."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("%{", "% {")


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _lines(chart: LineChart) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for line, place in zip(chart.lines, places_of(chart), strict=True):
        look = look_of(line.method)
        name = safe(line.label)
        texts = [safe(text) for text in line.hover] or [""] * len(line.x)
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers" if line.mark == "points" else "lines" if chart.dense or line.mark == "rule" else
            "lines+markers",
            "name": name,
            "legendgroup": name,
            "x": _numbers(place),
            "y": _numbers(line.y),
            "line": {"color": look.colour, "dash": DASHES[line.style % len(DASHES)], "width": 2},
            "marker": {
                "symbol": f"{look.plotly}-open" if line.mark == "points" and not look.plotly.endswith("-open") else
                look.plotly, "size": 8, "color": look.colour,
            },
        }  # fmt: skip
        if line.lower and chart.dense:
            x, band = _band(line)
            traces.append({
                "type": "scatter", "mode": "lines", "x": x, "y": band,
                "fill": "toself", "fillcolor": f"{look.colour}22", "line": {"width": 0}, "hoverinfo": "skip",
                "showlegend": False, "legendgroup": name,
            })  # fmt: skip
        elif line.lower:
            trace["error_y"] = {
                "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": look.colour,
                "array": _numbers([u - v for u, v in zip(line.upper, line.y, strict=True)]),
                "arrayminus": _numbers([v - low for low, v in zip(line.lower, line.y, strict=True)]),
            }  # fmt: skip
        trace["text"] = [
            f"{name}<br>{safe(chart.x_label)}: {text or f'{x:.4g}'}<br>{safe(chart.y_label)}: {y:.4g}{_limits(line, i)}"
            for i, (x, y, text) in enumerate(zip(line.x, line.y, texts, strict=True))
        ]
        trace["hovertemplate"] = "%{text}<extra></extra>"
        traces.append(trace)
    x_axis: dict[str, Any] = {"title": {"text": safe(chart.x_label)}, "type": "log" if chart.x_log else "linear"}
    if chart.x_ticks:
        x_axis |= {
            "tickmode": "array",
            "tickvals": [x for x, _ in chart.x_ticks],
            "ticktext": [safe(label) for _, label in chart.x_ticks],
            "tickangle": 0,
        }
    if chart.x_end is not None:
        x_axis["range"] = [0, chart.x_end]
    y_axis: dict[str, Any] = {"title": {"text": safe(chart.y_label)}, "type": "log" if chart.y_log else "linear"}
    if chart.percent:
        y_axis["range"] = [0, chart.percent_end]
    elif not chart.y_log:
        y_axis["rangemode"] = "tozero"
    shapes = [
        {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1, "dash": "dot"}}
        for x in chart.rules
    ]
    return traces, {"xaxis": x_axis, "yaxis": y_axis, "shapes": shapes}


def _band(line: Line) -> tuple[list[float | None], list[float | None]]:
    """Return the outline of the area between the limits: a polygon for each stretch that has limits, then a gap."""
    x: list[float | None] = []
    y: list[float | None] = []
    has_limits = [math.isfinite(low) and math.isfinite(up) for low, up in zip(line.lower, line.upper, strict=True)]
    for inside, group in itertools.groupby(range(len(line.x)), key=has_limits.__getitem__):
        if inside:
            stretch = list(group)
            x += [*_numbers([line.x[i] for i in stretch + stretch[::-1]]), None]
            y += [*_numbers([line.upper[i] for i in stretch] + [line.lower[i] for i in stretch[::-1]]), None]
    return x, y


def _limits(line: Line, index: int) -> str:
    if not line.lower or not math.isfinite(line.lower[index]):
        return ""
    return f" [{line.lower[index]:.4g}, {line.upper[index]:.4g}]"


def _heat(chart: HeatChart) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    trace = {
        "type": "heatmap",
        "x": [safe(name) for name in chart.columns],
        "y": [safe(name) for name in chart.rows],
        "z": [_numbers(row) for row in chart.values],
        "colorscale": "Cividis",
        "zmin": 0,
        "colorbar": {"title": {"text": safe(chart.value_label), "side": "right"}, "thickness": 12},
        "hovertemplate": (
            f"%{{y}}<br>{safe(chart.x_label)} %{{x}}<br>{safe(chart.value_label)}: %{{z:.4g}}<extra></extra>"
        ),
    }
    layout = {
        "xaxis": {"title": {"text": safe(chart.x_label)}, "type": "category"},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
    }
    return [trace], layout


def _ranks(chart: RankChart) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the diagram as it is in print; names are broken into short lines, so that a phone has room for them."""
    layout = lay_out(chart, RANK_LETTERS)
    looks = [look_of(name.method) for name in layout.names]
    trace = {
        "type": "scatter", "mode": "markers", "x": _numbers([name.rank for name in layout.names]),
        "y": [0.0] * len(looks), "text": [safe(name.name) for name in layout.names], "cliponaxis": False,
        "marker": {"size": 10, "color": [k.colour for k in looks], "symbol": [k.plotly for k in looks]},
        "hovertemplate": "%{text}: %{x:.2f}<extra></extra>", "showlegend": False,
    }  # fmt: skip
    shapes: list[dict[str, Any]] = []
    for stroke in layout.strokes:
        line: dict[str, Any] = {"width": 1.6 * stroke.width}
        if stroke.method:
            line["color"] = look_of(stroke.method).colour
        shapes += [
            {"type": "line", "layer": "below", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "line": line}
            for (x0, y0), (x1, y1) in itertools.pairwise(stroke.points)
        ]
    tags = [
        {
            "x": tag.x, "y": tag.y, "text": safe(tag.text), "showarrow": False, "yanchor": "bottom",
            "xanchor": "center" if tag.side == "below" else tag.side,
        }
        for tag in layout.tags
    ]  # fmt: skip
    names = [_rank_name(name) for name in layout.names]
    longest = max(len(line) for name in names for line in str(name["text"]).split("<br>"))
    edge = 0.05 * (layout.high - layout.low)
    return [trace], {
        "xaxis": {"visible": False, "range": [layout.low - edge, layout.high + edge], "fixedrange": True},
        "yaxis": {"visible": False, "range": [layout.bottom, layout.top], "fixedrange": True},
        "shapes": shapes,
        "annotations": [*tags, *names],
        "margin": {"l": 7 * longest + 8, "r": 7 * longest + 8, "t": 10, "b": 10},
        "meta": {"least_height": round(LINE_PX / ROW * (layout.top - layout.bottom)) + 20},
    }


def _rank_name(name: RankName) -> dict[str, Any]:
    return {
        "x": name.x, "y": name.y, "text": "<br>".join(map(safe, name.lines)), "showarrow": False, "yanchor": "middle",
        "xanchor": "right" if name.left else "left", "align": "right" if name.left else "left",
    }  # fmt: skip
