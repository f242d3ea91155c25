"""What an artifact holds, as its `manifest.json` says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TypeAlias

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1

Fact: TypeAlias = str | int | float

_STEP = re.compile(r"step_([0-9]{6,})")


@dataclass(frozen=True)
class Entry:
    """What a manifest says of one file."""

    size: int  # bytes
    sha256: str  # 64 hex digits


@dataclass(frozen=True)
class Manifest:
    """What an artifact holds: its files by name, and the facts that were published with it."""

    files: dict[str, Entry]
    facts: dict[str, Fact] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in self.files.items()}
        data = {"format": MANIFEST_FORMAT, "files": files, "facts": self.facts}
        return json.dumps(data, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read the content of `manifest.json`; raise `ValueError` if it is not one."""
        try:
            value = json.loads(data)
            if value["format"] != MANIFEST_FORMAT:
                raise ValueError(f"manifest format {value['format']!r}, expected {MANIFEST_FORMAT}")
            files = {str(n): Entry(int(e["size"]), str(e["sha256"])) for n, e in value["files"].items()}
            return cls(files, {str(name): fact for name, fact in value["facts"].items()})
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a manifest: {error!r}") from error


def step_name(step: int) -> str:
    """Return the folder name of a step: `step_000800`; names of up to a million steps sort as numbers."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """Return the step of a folder name made by `step_name`; None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None
