"""Reports about a run: tables, figures, pictures, and a page to look at.

Names are imported when they are asked for: a table needs no plotting library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablate.report.comparing import RunComparison, compare_runs
    from ablate.report.figures import print_style
    from ablate.report.write import ReportSummary, write_report

_PLACES = {
    "ReportSummary": "write",
    "RunComparison": "comparing",
    "compare_runs": "comparing",
    "print_style": "figures",
    "write_report": "write",
}

__all__ = ["ReportSummary", "RunComparison", "compare_runs", "print_style", "write_report"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
