"""Whether a grid goes on with the run that is there, or joins it with other trials."""

from __future__ import annotations

from typing import Any

from ablate.running.naming import Names
from ablate.space import Grid
from ablate.store import Store
from ablate.words import counted

CURE = "give --extend to do so, or another --out"
"""What to do about it, where nobody can be asked."""


def joining_words(before: dict[str, Any], grid: Grid, store: Store) -> str | None:
    """Return what is odd about `grid` in the run that `run.yaml` describes; None where it simply goes on.

    A grid goes on with a run of its own name whose trials it holds all; it may have grown.

    Args:
        before: content of the run's `run.yaml`; empty for a new run.
        grid: what is to be run there.
        store: of the run.
    """
    planned = {row["trial_id"]: row for row in before.get("trials", []) if row.get("role") != "tuned"}
    if not planned:
        return None
    own = {trial.trial_id for trial in grid.trials}
    lacking = [row for key, row in planned.items() if key not in own]
    there, new = before.get("name"), len(own - planned.keys())
    if there == grid.name and not lacking:
        return None
    which = f"of grid {there}" if there != grid.name else "of this grid"
    words = f"{store.label} holds a run {which} with {counted(len(planned), 'trial')}"
    if lacking:
        first = Names(planned.values()).trial(lacking[0])
        words += f", {len(lacking)} of them not in {grid.name} as given (such as {lacking[0]['trial_id']}: {first})"
    return f"{words}; {grid.name} would add {counted(new, 'trial')} to it"
