"""What the live display of a run shows at one moment, and how it is drawn on a terminal of any width."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablate.words import counted, duration

NAME_SHOWN = 40
"""Columns are left out, the least important first, until a stage's name has so many characters, or all of its own."""

WIDE = 120
"""From this width on, bars are long."""


@dataclass(frozen=True)
class Row:
    """One running stage."""

    words: str  # what it is: pretrain DDPM T=500
    step: int = 0
    total: int = 0  # 0 before the first report
    loss: float | None = None
    rate: float | None = None  # images in a second
    left_s: float | None = None  # until the end of what it is doing

    @property
    def facts(self) -> list[str]:
        """Step, loss, rate and time left, as texts; without those that are unknown."""
        return [
            *([f"{self.step}/{self.total}"] if self.total else []),
            *([] if self.loss is None else [f"loss {self.loss:.4g}"]),
            *([] if self.rate is None else [f"{self.rate:.3g} images/s"]),
            *([] if self.left_s is None else [f"{duration(self.left_s)} left"]),
        ]


@dataclass(frozen=True)
class Picture:
    """What there is to see; goes through the store to `ablate status --watch`."""

    rows: list[Row]
    done: int  # trials, finished or failed
    total: int
    summary: str
    warning: str | None
    at: float  # seconds since 1970
    waits: Sequence[str] = ()  # what waits for what, and for how long
    took_s: float | None = None  # so far
    left_s: float | None = None  # of the whole run, about; None while nothing is known of it

    def to_bytes(self) -> bytes:
        """Return the picture as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Picture:
        """Read a picture, also of another version; raise `ValueError` or `TypeError` if it is none."""
        value = _known(cls, json.loads(data))
        rows = [Row(**_known(Row, row)) for row in value["rows"]] if "rows" in value else []
        return cls(**{**value, "rows": rows, "waits": tuple(value.get("waits", ()))})

    @property
    def times(self) -> str:
        """How long the run has taken, and about how long it will still take; empty where unknown."""
        took = [] if self.took_s is None else [f"{duration(self.took_s)} so far"]
        left = [] if self.left_s is None else [f"about {duration(self.left_s)} left"]
        return ", ".join([*took, *left])

    def lines(self) -> list[str]:
        """Return the picture as plain lines."""
        running = [f"  {row.words}: {', '.join(row.facts)}" for row in self.rows if row.total]
        waits = [f"  {wait}" for wait in self.waits]
        summary = ", ".join(filter(None, [self.summary, self.times]))
        return [summary, *([] if self.warning is None else [self.warning]), *waits, *running]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the picture for a terminal: the stages as far as there is room, then the run as a whole."""
        width, height = options.max_width, options.size.height
        room = max(1, height - 6 - len(self.waits) - (self.warning is not None))
        shown = self.rows if len(self.rows) <= room else self.rows[: room - 1]
        more = len(self.rows) - len(shown)
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=40 if width >= WIDE else 24)
        whole = Table.grid(padding=(0, 2))
        whole.add_row(bar, Text(f"{100 * self.done // max(self.total, 1)} %"), Text(self.times))
        yield Group(
            *([_table(shown, width)] if shown else []),
            *([Text(f"and {counted(more, 'stage')} more", style="dim")] if more else []),
            *(Text(wait, style="dim") for wait in self.waits),
            whole,
            Text(self.summary),
            *([] if self.warning is None else [Text(self.warning, style="red")]),
        )


def _known(kind: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values that are fields of a dataclass."""
    names = {field.name for field in fields(kind)}
    return {name: item for name, item in value.items() if name in names}


def _table(rows: Sequence[Row], width: int) -> Table:
    """Return the stages as a table that fits: what leaves no room for their names is left out."""
    bar = 16 if width >= WIDE else 8
    columns: dict[str, list[RenderableType]] = {
        "done": [ProgressBar(total=max(row.total, 1), completed=row.step, width=bar) for row in rows],
        "step": [Text(f"{row.step}/{row.total}" if row.total else "starting") for row in rows],
        "loss": [Text("" if row.loss is None else f"{row.loss:.4g}") for row in rows],
        "images/s": [Text("" if row.rate is None else f"{row.rate:.3g}") for row in rows],
        "left": [Text("" if row.left_s is None else duration(row.left_s)) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(_width(cell, bar) for cell in cells)}
    widths = {name: max(_width(cell, bar) for cell in [Text(name), *cells]) for name, cells in columns.items()}
    wanted = min(NAME_SHOWN, max(len(row.words) for row in rows))
    for name in ("images/s", "done", "loss", "left"):
        if width - sum(widths.values()) - 2 * len(widths) >= wanted:
            break
        del columns[name], widths[name]
    names = max(8, min(max(len(row.words) for row in rows), width - sum(widths.values()) - 2 * len(widths)))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("stage", width=names, no_wrap=True, overflow="ellipsis")
    for name, cells in widths.items():
        table.add_column(name, width=cells, no_wrap=True, justify="left" if name == "done" else "right")
    for number, row in enumerate(rows):
        table.add_row(Text(row.words), *(cells[number] for cells in columns.values()))
    return table


def _width(cell: RenderableType, bar: int) -> int:
    return len(cell) if isinstance(cell, Text) else bar
