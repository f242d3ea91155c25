"""The look of each initialisation, the same in every figure of every report.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color, safe for colour-blind readers), extended by three of Paul
Tol's muted scheme; every method also has its own marker, so that nothing hangs on colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Colour and marker of a method; plotly has its own names of markers."""

    colour: str
    marker: str
    plotly: str


LOOKS: dict[str, Look] = {
    "ddpm": Look("#D55E00", "o", "circle"),
    "mocov3": Look("#0072B2", "s", "square"),
    "simclrv2": Look("#009E73", "^", "triangle-up"),
    "dino": Look("#CC79A7", "D", "diamond"),
    "imagenet": Look("#E69F00", "v", "triangle-down"),
    "weights": Look("#CC6677", "H", "hexagon2"),
    "scratch": Look("#7A7A7A", "X", "x"),
    "mocov2": Look("#56B4E9", "p", "pentagon"),
    "simclr": Look("#44AA99", "<", "triangle-left"),
    "byol": Look("#AA4499", "h", "hexagon"),
    "barlow_twins": Look("#999933", "P", "cross"),
    "mean_shape": Look("#000000", "_", "line-ew-open"),
}
"""Fixed looks of methods of METHODS, and of the mean shape; the others get one by their names."""

_OTHERS = (Look("#882255", "*", "star"), Look("#6699CC", ">", "triangle-right"), Look("#997700", "d", "diamond-tall"))

DASHES = ("solid", "dash", "dot", "dashdot")
"""Line styles of several settings of one method, as plotly calls them."""


def look_of(method: str) -> Look:
    """Return how a method looks; one that is not in `LOOKS` gets a look that depends on its name alone."""
    return LOOKS.get(method) or _OTHERS[sum(map(ord, method)) % len(_OTHERS)]


WIDTH_IN = 3.4
"""Width of a figure in inches: one column of a two-column page."""

MATPLOTLIB: dict[str, object] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",
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
"""The house look, as matplotlib's settings."""
