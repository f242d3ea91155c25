"""The findings of an examination, and the lines that tell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rich.text import Text

Level: TypeAlias = Literal["ok", "note", "red"]
_STYLES: Mapping[Level, str] = {"ok": "green", "note": "yellow", "red": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What one check found in one place."""

    check: str
    level: Level
    text: str
    cure: str = ""


@dataclass(frozen=True)
class Report:
    """What was found, and where."""

    title: str
    places: tuple[str, ...]  # every node's name
    found: tuple[tuple[str, Finding], ...]  # by place; the empty name stands for the whole

    @property
    def num_red(self) -> int:
        """How many things must be put right, wherever they occur."""
        return len({finding for _, finding in self.found if finding.level == "red"})

    @property
    def exit_code(self) -> int:
        """1 if anything is red, else 0."""
        return int(self.num_red > 0)

    def lines(self) -> list[Text]:
        """Return a line for everything that was found; what is the same on several nodes is one line."""
        where: dict[Finding, list[str]] = {}
        for place, finding in self.found:
            where.setdefault(finding, []).append(place)
        checks = list(dict.fromkeys(finding.check for finding in where))
        lines = [Text(self.title)]
        for finding in sorted(where, key=lambda finding: checks.index(finding.check)):
            who = self._who(where[finding])
            cure = f"; {finding.cure}" if finding.cure else ""
            label = (f"  {finding.level:<6}", _STYLES[finding.level])
            lines.append(Text.assemble(label, f"{finding.check:<15}{who}{finding.text}{cure}"))
        end = f"{self.num_red} to put right" if self.num_red else "nothing to put right"
        lines.append(Text(end, "bold red" if self.num_red else "green"))
        return lines

    def _who(self, places: Sequence[str]) -> str:
        if "" in places or len(self.places) < 2:
            return ""
        if set(places) == set(self.places):
            return f"all {len(places)} nodes: "
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        return f"{', '.join(places[:4])}{more}: "
