"""Notes on the machines that a reader of an estimate must know beside the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ablate.launch.backend import Fleet, MachineType
from ablate.launch.estimate.clock import Terms
from ablate.schedule.fitting import sharing_lines

PEAK_TFLOPS: Mapping[str, float] = {
    "T4": 8.1,
    "V100": 15.7,
    "A10G": 35.0,
    "L4": 60.0,
    "A100": 156.0,
    "L40S": 183.0,
    "H100": 494.0,
}
"""Peak speed of GPUs by Ray's names: in TF32 without sparsity, in float32 where there is no TF32; NVIDIA's data
sheets."""

SLOW_TFLOPS = 80.0
"""About half of an A100's: for GPUs with no more the default times are too short."""


def fleet_notes(fleet: Fleet, used: Sequence[MachineType], hours: Mapping[str, float], terms: Terms) -> list[str]:
    """Return notes on sharing, prices, guesses, and machines that a reader would not expect.

    Args:
        fleet: all machines.
        used: the types that stages can use.
        hours: that machines of those are paid for, by type, without interruptions.
        terms: what stages ask for.
    """
    notes = sharing_lines(
        [kind.shape for kind in used],
        gpus_pretrain=terms.pretrain.gpus,
        gpus_finetune=terms.finetune.gpus,
        cpus_per_stage=terms.pretrain.cpus,
        accelerator_type=terms.pretrain.accelerator_type,
    )
    head = [fleet.head] if fleet.head is not None else []
    paid = [kind for kind in used if hours[kind.name]] + head
    unknown = [kind.name for kind in paid if kind.price_per_hour is None]
    if unknown and len(unknown) < len(paid):
        notes.append(f"the cost is not known: the file gives no price of an hour of {' and '.join(unknown)}")
    if fleet.is_guess:
        notes.append("the CPUs and GPUs of the machines are not written in the file, and are a guess; so are the times")
    if terms.queue_s == 0 and any(terms.standing.get(kind.name, 0) < kind.max_count for kind in used):
        notes.append(
            "how long a machine takes to come up is not known: it counts as up as soon as a stage waits for it"
        )
    names = {kind.name for kind in used}
    idle = [kind.name for kind in fleet.workers if kind.max_count > 0 and kind.name not in names]
    if idle:
        notes.append(f"no stage fits, or may use, {' and '.join(idle)}: no such machine is asked for")
    if len({kind.shape.accelerator_types for kind in used if kind.shape.gpus}) > 1:
        notes.append(
            "the machines have GPUs of several types, which count as equally fast; which of them come is the "
            "autoscaler's choice, unless --accelerator-type names one"
        )
    if fleet.head is not None and fleet.head.spot:
        notes.append(
            f"the head {fleet.head.name} is a spot machine: if it is taken back the run stops with its states saved, "
            "and must be launched again; the figures leave that out"
        )
    return notes


def slow_notes(used: Sequence[MachineType]) -> list[str]:
    """Return for which GPUs the default times, those of an A100, are too short."""
    kinds = sorted({kind for machine in used if machine.shape.gpus for kind in machine.shape.accelerator_types})
    slow = [f"{kind} has {PEAK_TFLOPS[kind]:g}" for kind in kinds if PEAK_TFLOPS.get(kind, math.inf) <= SLOW_TFLOPS]
    if not slow:
        return []
    return [
        f"the times are for an A100, with {PEAK_TFLOPS['A100']:g} TFLOPS at its peak; {', '.join(slow)}: "
        "expect it to take longer and to cost more, in proportion at worst"
    ]
