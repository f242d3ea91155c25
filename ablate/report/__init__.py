"""What did a run find, in tables, figures and a page to look at?"""

from ablate.report.tables import Pivot, pivot, render

__all__ = ["Pivot", "pivot", "render"]
