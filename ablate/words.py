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


def counted(count: int, noun: str) -> str:
    """Return `1 stage`, `2 stages`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """Return seconds as `0:01:30`."""
    return str(timedelta(seconds=round(max(0.0, seconds))))
