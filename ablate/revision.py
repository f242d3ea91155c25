"""The git revision of the code that runs."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

REVISION = "REVISION"
"""The file beside this one that tells the git revision in a package that was packed for other machines."""


@functools.cache
def git_revision() -> str | None:
    """Return the git revision of the checkout that this package runs from, or was packed from; None outside one."""
    folder = Path(__file__).resolve().parent
    packed = folder / REVISION
    if packed.is_file():
        return packed.read_text(encoding="utf-8").strip() or None
    command = ["git", "-C", str(folder), "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
