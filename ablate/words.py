"""Small words for every message: texts in one line, counts, durations."""

from __future__ import annotations

import unicodedata
from datetime import timedelta


def one_line(said: object, most: int | None = None) -> str:
    """Return a text, or what an exception says, without control characters and line breaks.

    What is longer than `most` characters is cut there, with ` ...` behind it.
    """
    kept = (" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in str(said))
    text = " ".join("".join(kept).split())
    return text if most is None or len(text) <= most else f"{text[:most]} ..."


def counted(count: float, noun: str) -> str:
    """Return `0 stages`, `0.25 GPU`, `1 stage`, `2 stages`."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {noun}" + ("" if 0 < count <= 1 else "s")


def duration(seconds: float) -> str:
    """Return seconds as `0:01:30`."""
    return str(timedelta(seconds=round(max(0.0, seconds))))
