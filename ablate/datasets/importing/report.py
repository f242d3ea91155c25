"""What an import found and did, as it is printed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ablate.datasets.importing.options import Origin
from ablate.words import one_line


@dataclass(frozen=True)
class ImportReport:
    """What `import_dataset` found."""

    name: str
    folder: Path  # of the new data set
    written: bool
    format_name: str
    source: Path
    num_annotated: int
    num_unlabelled: int
    landmark_names: tuple[str, ...]
    not_annotated: int  # landmarks of annotated images without coordinates
    widths: tuple[int, int]  # smallest and largest, px
    heights: tuple[int, int]
    origin: Origin
    applied: tuple[str, ...]  # what was done to the points
    splits: str  # in words
    unit: str
    extra_columns: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    check: str  # the command that comes next

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to print as (what, value)."""
        total = self.num_annotated + self.num_unlabelled
        rows = [
            ("export", f"{self.source} ({self.format_name})"),
            ("images", f"{total}: {self.num_annotated} annotated, {self.num_unlabelled} without annotation"),
            ("landmarks", f"{len(self.landmark_names)}: {', '.join(map(one_line, self.landmark_names))}"),
            ("not annotated", str(self.not_annotated)),
            ("image width", _range(*self.widths)),
            ("image height", _range(*self.heights)),
            ("points", f"(0, 0) is the {self.origin} of the top-left pixel; {', '.join(self.applied)}"),
            ("splits", self.splits),
            ("unit", self.unit),
        ]
        if self.extra_columns:
            rows.append(("further columns", ", ".join(self.extra_columns)))
        return rows

    def text(self) -> str:
        """Return the report as plain text; the last line is the next command."""
        width = max(len(what) for what, _ in self.rows())
        lines = [f"{what:<{width}}  {value}" for what, value in self.rows()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines.append(
            f"written to {self.folder}" if self.written else f"nothing is written; it would go to {self.folder}"
        )
        return "\n".join([*lines, self.check])


def check_command(name: str, data: str | None) -> str:
    """Return the command that checks the new data set."""
    return shlex.join(["ablate", "data", "check", name, *(() if data is None else ("--data", data))])


def _range(low: int, high: int) -> str:
    return f"{low} px" if low == high else f"{low} to {high} px"
