"""What did a run find, in tables, figures, pictures and a page to look at?

Names are imported when they are asked for: a table needs no plotting library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablate.report.comparing import RunComparison, compare_runs
    from ablate.report.tables import Pivot, pivot, render
    from ablate.report.writing import ReportSummary, write_report

_PLACES = {
    "Pivot": "tables",
    "ReportSummary": "writing",
    "RunComparison": "comparing",
    "compare_runs": "comparing",
    "pivot": "tables",
    "render": "tables",
    "write_report": "writing",
}

__all__ = ["Pivot", "ReportSummary", "RunComparison", "compare_runs", "pivot", "render", "write_report"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
