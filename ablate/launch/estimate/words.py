"""An estimate as lines of text: machines, time and cost."""

from __future__ import annotations

import math
from collections.abc import Callable

from ablate.launch.backend import Fleet, MachineType
from ablate.launch.estimate.estimation import Bill, Estimate, Interrupted, Spread

NO_END = "no end"
"""What a simulated run takes that was given up."""


def estimate_lines(found: Estimate) -> list[str]:
    """Return the machines, the times and the costs as lines of text."""
    lines = [
        f"  machines       {', '.join(_machines(found))}",
        f"  each stage     {found.terms.pretrain} to pre-train, {found.terms.finetune} to fine-tune",
        *_table(found),
    ]
    if found.interrupted is not None:
        lines += _interruptions(found.interrupted)
    lines.append(f"  times          {found.source}")
    if found.calm.cost is not None:
        lines.append(
            f"  prices         {found.fleet.prices_from or 'as the file gives them'}; "
            "disks, traffic and the store are not counted"
        )
    return [*lines, *(f"  note: {note}" for note in found.notes)]


def _machines(found: Estimate) -> list[str]:
    """Return the head and the types of worker in words."""
    fleet, words = found.fleet, []
    rented = any(kind.spot or kind.price_per_hour is not None for kind in fleet.workers)

    def inside(kind: MachineType) -> str:
        contract = ("spot, " if kind.spot else "on demand, ") if rented else ""
        size = str(kind.shape).strip("()") if kind.shape.cpus else "for the driver only"
        return f"({contract}{size})"

    if fleet.head is not None:
        name = fleet.head.name
        words.append(f"{name if name.startswith('head') else f'head {name}'} {inside(fleet.head)}")
    for kind in found.workers:
        all_there = found.terms.standing.get(kind.name, 0) >= kind.max_count
        words.append(f"{'' if all_there else 'up to '}{kind.max_count} x {kind.name} {inside(kind)}")
    return words


def _interruptions(storm: Interrupted) -> list[str]:
    told = "assumed: the file gives none" if storm.is_assumed else "as the file gives it"
    lines = [
        f"  interruptions  {storm.per_hour:g} an hour of each spot machine, one in {_time(3600 / storm.per_hour)} "
        f"({told}); {len(storm.bills)} simulated runs"
    ]
    stuck = sum(not bill.is_over for bill in storm.bills)
    if stuck:
        lines.append(
            f"  note: with so many interruptions {stuck} of {len(storm.bills)} simulated runs did not get on; use "
            "machines that are not taken back, or save more often by --checkpoint-minutes"
        )
    return lines


# --- the table --------------------------------------------------------------------------------------


def _table(found: Estimate) -> list[str]:
    """Return time, hours and cost in aligned columns, a row for each way that a run may go."""
    has_gpus = any(kind.shape.gpus for kind in found.workers)
    rows = [("", "time", "GPU-hours" if has_gpus else "machine-hours", "cost"), _calm_row(found, has_gpus=has_gpus)]
    if found.interrupted is not None:
        rows += _interrupted_rows(found.interrupted, found.fleet, has_gpus=has_gpus)
    if found.calm.cost is None:
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]]
    return [
        f"  {row[0]:<21}" + "".join(f"   {cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
        for row in rows
    ]


def _calm_row(found: Estimate, *, has_gpus: bool) -> tuple[str, ...]:
    calm: Bill = found.calm
    hours = _hours(calm.gpu_hours if has_gpus else calm.hours)
    return "without interruptions", _time(calm.makespan_s), hours, _money(calm.cost, found.fleet)


def _interrupted_rows(storm: Interrupted, fleet: Fleet, *, has_gpus: bool) -> list[tuple[str, ...]]:
    makespan_s, cost, hours = storm.makespan_s, storm.cost, storm.gpu_hours if has_gpus else storm.hours
    ends: tuple[tuple[str, Callable[[Spread], float]], ...] = (
        ("with them, median", lambda spread: spread.median),
        ("  5 % are below", lambda spread: spread.low),
        ("  5 % are above", lambda spread: spread.high),
    )
    return [
        (name, _time(of(makespan_s)), _hours(of(hours)), _money(None if cost is None else of(cost), fleet))
        for name, of in ends
    ]


def _time(seconds: float) -> str:
    """Return a time as `6 h 12 min`."""
    if seconds == math.inf:
        return NO_END
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _hours(hours: float) -> str:
    if hours == math.inf:
        return NO_END
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}"


def _money(cost: float | None, fleet: Fleet) -> str:
    if cost is None:
        return "not known"
    return NO_END if cost == math.inf else f"{cost:,.2f} {fleet.currency}"
