"""Tables written as Markdown, LaTeX, CSV or plain text.

A `Table` holds texts for people and records for machines; every format escapes what comes from data.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from tabulate import tabulate

from ablate.errors import InputError, nearest
from ablate.words import one_line

Format: TypeAlias = Literal["github", "latex", "csv", "plain", "simple"]

LONG_TABLE = 40
"""Rows from which a LaTeX table may break over pages."""


@dataclass(frozen=True)
class Cell:
    """One entry: what is read, what it sorts by, and whether it is the best or not shown to be worse."""

    text: str
    value: float | str | None = None
    best: bool = False
    tied: bool = False  # not significantly worse than the best


@dataclass(frozen=True)
class Table:
    """A table with its caption; `records` are the same numbers for machines, unrounded."""

    name: str  # of its files: letters, digits and hyphens
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    records: tuple[Mapping[str, object], ...] = ()
    notes: tuple[str, ...] = ()
    text_columns: int = 1  # columns from the left that hold names, not numbers


def slug(*parts: object) -> str:
    """Return a file name of letters, digits and hyphens; whatever else the parts hold becomes a hyphen."""
    text = unicodedata.normalize("NFKD", "-".join(str(part) for part in parts)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80].strip("-") or "table"


def unique_names(tables: Sequence[Table]) -> list[Table]:
    """Return the tables with a number after each name that an earlier table has already."""
    used: dict[str, int] = {}
    named = []
    for table in tables:
        used[table.name] = number = used.get(table.name, 0) + 1
        named.append(table if number == 1 else replace(table, name=f"{table.name}-{number}"))
    return named


def check_format(name: str) -> Format:
    """Return the format called `name`; raise `InputError` if there is none."""
    for known in get_args(Format):
        if name == known:
            chosen: Format = known
            return chosen
    choices = get_args(Format)
    raise InputError(f"--format must be one of {', '.join(choices)}; got {name!r}{nearest(name, choices)}")


def render_table(table: Table, form: Format = "github") -> str:
    """Return the table as text, with its caption and notes (not in CSV), ending in a newline."""
    if form == "csv":
        return to_csv(table)
    if form == "latex":
        return to_latex(table)
    escape = _markdown if form == "github" else one_line
    cells = [[_marked(escape(cell.text), cell, form) for cell in row] for row in table.rows]
    align = ["left" if i < table.text_columns else "right" for i in range(len(table.header))]
    body = tabulate(
        cells,
        headers=[escape(name) for name in table.header],
        tablefmt=form,
        disable_numparse=True,
        colalign=align if cells else None,
    )
    parts = [f"**{escape(table.caption)}**" if form == "github" else one_line(table.caption), body]
    parts += [escape(note) for note in table.notes]
    return "\n\n".join(parts) + "\n"


def _marked(text: str, cell: Cell, form: str) -> str:
    if cell.best:
        text = f"**{text}**" if form == "github" else f"{text} *"
    return f"{text} †" if cell.tied and not cell.best else text


# --- escaping ---------------------------------------------------------------------------------------


_TAG = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)|[|`*]|(?<=\])\(")


def _markdown(text: str) -> str:
    """Return text that Markdown shows as it stands, with a backslash before what would be a tag, an entity or a mark.

    Nothing else is changed, so that `p < 0.05` and `R&D` can be read in the file itself.
    """
    return _TAG.sub(r"\\\g<0>", one_line(text).replace("\\", "\\\\"))


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"''", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}",
    "±": r"$\pm$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "−": r"$-$", "–": "--", "—": "---",
    "µ": r"\textmu{}", "·": r"$\cdot$", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$", "§": r"\S{}", "¶": r"\P{}",
    "→": r"$\to$", "…": r"\ldots{}", "’": "'",
    "‘": "`", "“": "``", "”": "''", "Δ": r"$\Delta$", "α": r"$\alpha$", "σ": r"$\sigma$", "\u00a0": "~",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Return text that pdfLaTeX prints as it stands, whatever it holds."""
    out = []
    for char in one_line(text):
        if char in _LATEX:
            out.append(_LATEX[char])
        elif char.isascii() or (unicodedata.normalize("NFD", char)[0].isascii() and char < "ſ"):
            out.append(char)
        else:  # a letter outside the fonts that LaTeX loads by itself
            out.append(f"{{[}}U+{ord(char):04X}{{]}}")
    return "".join(out)


def to_latex(table: Table) -> str:
    """Return a booktabs table, a `longtable` if it is long. Needs the packages booktabs and longtable."""
    align = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    header = " & ".join(latex_text(name) for name in table.header) + r" \\"
    lines = []
    for row in table.rows:
        cells = []
        for cell in row:
            text = latex_text(cell.text)
            text = rf"\textbf{{{text}}}" if cell.best else text
            cells.append(text + (r"$^{\dagger}$" if cell.tied and not cell.best else ""))
        lines.append(" & ".join(cells) + r" \\")
    caption = " ".join([latex_text(table.caption), *(latex_text(note) for note in table.notes)])
    label = rf"\label{{tab:{table.name}}}"
    if len(table.rows) > LONG_TABLE:
        parts = [
            rf"{{{_size(table)}",
            rf"\begin{{longtable}}{{{align}}}",
            rf"\caption{{{caption}}}{label}\\",
            r"\toprule", header, r"\midrule", r"\endhead", r"\bottomrule", r"\endlastfoot",
            *lines,
            r"\end{longtable}}",
        ]  # fmt: skip
    else:
        parts = [
            r"\begin{table}[htbp]",
            rf"\centering{_size(table)}",
            rf"\caption{{{caption}}}{label}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule", header, r"\midrule", *lines, r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]  # fmt: skip
    return "% needs \\usepackage{booktabs,longtable}\n" + "\n".join(parts) + "\n"


def _size(table: Table) -> str:
    """Return the type size in which a table fits a wide page, as far as letters can be counted."""
    widths = [max(map(len, column)) for column in zip(table.header, *_texts(table), strict=True)]
    letters = sum(widths) + 2 * len(widths)
    if letters < 150:
        return r"\footnotesize\setlength{\tabcolsep}{4pt}"
    return rf"\{'scriptsize' if letters < 200 else 'tiny'}\setlength{{\tabcolsep}}{{2pt}}"


def _texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def latex_document(tables: Sequence[Table]) -> str:
    """Return a whole document with all tables, to be compiled as it is."""
    head = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs,longtable}
\begin{document}
"""
    return head + "\\clearpage\n".join(to_latex(table) for table in tables) + "\\end{document}\n"


def to_csv(table: Table) -> str:
    """Return the records (without records: the texts) as CSV, numbers unrounded."""
    records = table.records or tuple(
        dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows
    )
    names = list(dict.fromkeys(name for record in records for name in record)) or list(table.header)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for record in records:
        writer.writerow([_csv_value(record.get(name)) for name in names])
    return out.getvalue()


def _csv_value(value: object) -> object:
    """A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, str):
        value = one_line(value)
        return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value
    return "" if value is None else value
