"""Prints the README's table of what the search spaces `paper` and `recommended` differ in, and why.

Usage: python tests/profiles.py
"""

from collections.abc import Mapping
from typing import Any

from ablate.space import METHODS, TrialSpec, find_grid, flatten, load_grid

PROFILES = ("paper", "recommended")

NOT_COMPARED = {"shots", "seed", "draw", "dataset", "pretrain_dataset", "pretrain_seed"}
"""Axes of the search spaces, and what follows from them."""

REASONS: Mapping[str, str] = {}
"""Why `recommended` differs, by field as a column."""


def fields_of(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the fields of a profile's trials by data set and method, of the first trial of each."""
    found: dict[tuple[str, str], TrialSpec] = {}
    for trial in load_grid(find_grid(name)).trials:
        found.setdefault((trial.dataset, trial.method), trial)
    return {key: used_fields(trial) for key, trial in found.items()}


def used_fields(trial: TrialSpec) -> dict[str, Any]:
    """Return the fields that matter to a trial."""
    network = {f"network_{field}" for field in ("kind", *trial.network.fields)}
    return {
        field: value
        for field, value in flatten(trial).items()
        if field not in NOT_COMPARED and (not field.startswith("network_") or field in network)
    }


def differences() -> dict[tuple[str, str, str], set[str]]:
    """Return field, value in `paper` and value in `recommended` with the methods that differ so."""
    paper, recommended = map(fields_of, PROFILES)
    assert paper.keys() == recommended.keys(), "both profiles have the same data sets and methods"
    found: dict[tuple[str, str, str], set[str]] = {}
    for key, ours in recommended.items():
        for field in dict.fromkeys((*paper[key], *ours)):
            values = [words(profile.get(field)) for profile in (paper[key], ours)]
            if values[0] != values[1]:
                found.setdefault((field, *values), set()).add(key[1])
    return found


def words(value: Any) -> str:
    """Return a value as the table shows it; a dash for a field that is not there."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def table() -> str:
    """Return the table in Markdown."""
    rows = ["| field | of | `paper` | `recommended` | why |", "|---|---|---|---|---|"]
    methods = {method for methods in differences().values() for method in methods}
    for (field, ours, theirs), which in differences().items():
        of = "all" if which == methods else ", ".join(METHODS[name].label for name in METHODS if name in which)
        rows.append(f"| `{field}` | {of} | {ours} | {theirs} | {REASONS[field]} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
