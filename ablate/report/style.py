"""The look of each initialisation, the same in every figure of every report.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color, safe for colour-blind readers), extended by those of Paul
Tol's muted scheme; every method also has its own marker, so that nothing hangs on colour alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ablate.errors import InputError


@dataclass(frozen=True)
class Look:
    """Colour and marker of a method; plotly has its own names of markers."""

    colour: str
    marker: str | tuple[int, int, int]  # as matplotlib has it; (6, 1, 0) is a star of six points
    plotly: str


LOOKS: dict[str, Look] = {
    "ddpm": Look("#D55E00", "o", "circle"),
    "denoise": Look("#332288", "8", "octagon"),
    "mask": Look("#117733", "*", "star"),
    "mocov3": Look("#0072B2", "s", "square"),
    "simclrv2": Look("#009E73", "^", "triangle-up"),
    "dino": Look("#CC79A7", "D", "diamond"),
    "imagenet": Look("#E69F00", "v", "triangle-down"),
    "weights": Look("#CC6677", "H", "hexagon2"),
    "scratch": Look("#7A7A7A", "X", "x"),
    "mocov2": Look("#56B4E9", "p", "pentagon"),
    "mocov1": Look("#88CCEE", (3, 1, 0), "star-triangle-up"),
    "simclr": Look("#44AA99", "<", "triangle-left"),
    "swav": Look("#661100", (6, 1, 0), "hexagram"),
    "byol": Look("#AA4499", "h", "hexagon"),
    "simsiam": Look("#DDCC77", (4, 1, 0), "star-diamond"),
    "barlow_twins": Look("#999933", "P", "cross"),
    "mean_shape": Look("#000000", "_", "line-ew-open"),
    "annotators": Look("#777777", "|", "line-ns-open"),
}
"""Fixed looks of methods of METHODS, of the mean shape and of annotators; the others get one by their names."""

_OTHERS = (Look("#882255", "*", "star"), Look("#6699CC", ">", "triangle-right"), Look("#997700", "d", "diamond-tall"))

DASHES = ("solid", "dash", "dot", "dashdot")
"""Line styles of several settings of one method, as plotly calls them."""


_LITERATURE = ("o", "circle"), ("s", "square"), ("D", "diamond"), ("^", "triangle-up"), ("v", "triangle-down")


def look_of(method: str) -> Look:
    """Return how a method looks; one that is not in `LOOKS` gets a look that depends on its name alone.

    `literature N` is the Nth row of the literature: black, with hollow markers.
    """
    name, _, number = method.partition(" ")
    if name == "literature" and number.isdecimal():
        return Look("#000000", *_LITERATURE[int(number) % len(_LITERATURE)])
    return LOOKS.get(method) or _OTHERS[sum(map(ord, method)) % len(_OTHERS)]


WIDTH_IN = 3.4
"""Width of a figure in inches: one column of a two-column page."""

FONT = "DejaVu Sans"
"""Font of figures; it comes with matplotlib."""


@dataclass(frozen=True)
class Print:
    """What a journal asks of figures."""

    font: str = FONT
    width_in: float = WIDTH_IN  # of a column


NARROWEST_IN, WIDEST_IN = 1.5, 20.0
UNITS_IN = {"in": 1.0, "mm": 1 / 25.4, "cm": 1 / 2.54, "pt": 1 / 72.27}
"""Units of a column's width, in inches; a point is TeX's, as `\\the\\columnwidth` prints it."""


def width_of(text: str) -> float:
    """Return a column's width such as `86mm`, `3.4in` or `252pt` in inches.

    Raises:
        InputError: it has no unit, or cannot be the width of a figure.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]+)\s*", text)
    try:
        width_in = float(found[1]) * UNITS_IN[found[2]] if found else None
    except (ValueError, KeyError):
        width_in = None
    if width_in is None:
        raise InputError(
            f"--column-width must be a number and one of the units {', '.join(UNITS_IN)}, for example 86mm; "
            f"got {text!r}"
        )
    if not NARROWEST_IN <= width_in <= WIDEST_IN:
        raise InputError(
            f"--column-width must be from {NARROWEST_IN:g}in to {WIDEST_IN:g}in; got {text!r} ({width_in:.3g}in)"
        )
    return width_in


_MATPLOTLIB: dict[str, object] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a name with dollar signs is a name
    "text.usetex": False,
    "svg.hashsalt": "ablate",  # the same figure gives the same file
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


def settings_of(style: Print) -> dict[str, object]:
    """Return the house look as matplotlib's settings."""
    return {**_MATPLOTLIB, "font.family": style.font}
