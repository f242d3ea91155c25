"""The seconds that stages take, by what a bench measured of their parts.

A pre-training is its steps and what its stage does besides; a fine-tuning is its windows, its validations, the test
images and the rest of its stage. Several processes at once slow one another as they did in the bench. A network or a
method that the bench did not measure takes the rate of the most similar one that it did, by their operations: the same
network at the same image size, in this precision or another, then the same kind of network, then any.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from ablate.errors import InputError
from ablate.schedule.bench_file import Bench, BenchRow, FinetuneRow, PretrainRow, Shared, StepTimes
from ablate.schedule.costs import Amount, step_work
from ablate.schedule.flops import forward_flops
from ablate.schedule.stages import Costs
from ablate.space import Pretraining, TrialSpec, method_label

NUM_LANDMARKS: Mapping[str, int] = {"chest": 6, "cephalo": 19, "hand": 37, "synthetic": 12}
"""Landmarks of the data sets that ship (paper, section 4); a user's data set counts as `cephalo`."""

RUN_STARTS = 5.0
"""What a run does besides its stages, in starts of a bench's processes: importing and checking in the driver 1.4, Ray
and its workers 2.6, libraries of the first stages 0.8, the end 0.2 (a run of four stages on two cores of a CPU). No
bench, which does without Ray, can measure it."""

Row = TypeVar("Row", bound=BenchRow)
Level: TypeAlias = tuple[object, ...]


def num_landmarks(trial: TrialSpec) -> int:
    """Return the landmarks of a trial's data set."""
    return NUM_LANDMARKS.get(trial.dataset, NUM_LANDMARKS["cephalo"])


def row_name(trial: TrialSpec, *, pretrains: bool) -> str:
    """Return a row of a bench in words: `DDPM, unet 64 px bf16`, `fine-tuning, 19 landmarks, unet 64 px`."""
    what = method_label(trial.method) if pretrains else f"fine-tuning, {num_landmarks(trial)} landmarks"
    precision = "" if trial.precision == "fp32" else f" {trial.precision}"
    return f"{what}, {trial.network.label} {trial.image_size} px{precision}"


def pretrain_levels(pretraining: Pretraining) -> list[Level]:
    """Return what the seconds of a step depend on; then, in ever wider groups, what makes pre-trainings alike."""
    fields, network, size = pretraining.fields, pretraining.network, pretraining.image_size
    return [
        (fields.method, network, size, fields.batch_size, fields.accumulate, pretraining.precision),
        (fields.method, network, size, pretraining.precision),
        (fields.method, network, size),
        (fields.method, network.kind),
        (network.kind,),
        (),
    ]


def finetune_levels(trial: TrialSpec) -> list[Level]:
    """Return what the seconds of windows and of images without gradients depend on; then what makes trials alike."""
    fine, network, size, landmarks = trial.finetune, trial.network, trial.image_size, num_landmarks(trial)
    how = (fine.batch_size, fine.accumulate, fine.loss, fine.target, trial.evaluate.decode)
    return [
        (network, size, landmarks, *how, trial.precision),
        (network, size, landmarks, trial.precision),
        (network, size, trial.precision),
        (network, size),
        (network.kind,),
        (),
    ]


# --- processes side by side -------------------------------------------------------------------------


def slowdown(shared: Sequence[Shared], processes: int) -> float:
    """Return the seconds of a step with so many processes at once, in those of a process alone.

    Between numbers that were measured the seconds are interpolated, beyond the last they grow with the processes.

    Args:
        shared: one of them of a single process.
        processes: how many there are at once.
    """
    known = {found.processes: found.seconds for found in shared}
    counts = sorted(known)
    if processes >= counts[-1]:
        return known[counts[-1]] * processes / counts[-1] / known[1]
    upper = next(count for count in counts if count >= processes)
    lower = max(count for count in counts if count <= processes)
    share = (processes - lower) / (upper - lower) if upper > lower else 0.0
    return (known[lower] + share * (known[upper] - known[lower])) / known[1]


def best_processes(shared: Sequence[Shared], *, tolerance: float = 0.03) -> int:
    """Return the fewest processes whose images per second, together, are within `tolerance` of the most."""
    most = max(found.images_per_second for found in shared)
    return min(found.processes for found in shared if found.images_per_second >= (1 - tolerance) * most)


@dataclass(frozen=True)
class Crowd:
    """How many stages of each kind compute on the device at a time."""

    pretrain: int
    finetune: int

    @classmethod
    def of(cls, *, gpus_pretrain: float, gpus_finetune: float, slots: int | None, most: int) -> Crowd:
        """Return the crowd on a GPU of which stages hold these shares, or on a CPU (0) of `most` places."""

        def number(gpus: float) -> int:
            if not gpus:
                return max(1, min(most, slots or most))
            return max(1, math.floor(1 / gpus + 1e-9))

        return cls(number(gpus_pretrain), number(gpus_finetune))


# --- parts of a stage -------------------------------------------------------------------------------


def window_seconds(steps: Iterable[StepTimes], images: float) -> float:
    """Return the seconds of an optimizer step on so many images: on the line through what was measured, or beside it.

    A single measurement gives a time in proportion to the images.
    """
    known = sorted((step.images, step.seconds) for step in steps)
    (low, least), (high, most) = known[0], known[-1]
    if low == high:
        return least * images / low
    slope = max(0.0, (most - least) / (high - low))
    return max(least + slope * (images - low), least * min(1.0, images / low))


def finetune_seconds(row: FinetuneRow, trial: TrialSpec, *, copying_s: float = 0.0) -> float:
    """Return the seconds of fine-tuning and evaluating a trial at the rates of a row, without the rest of its stage.

    The error of the images that validate is measured once. As `default_costs` it counts with all epochs, and with as
    many again where a share of the shots validates.

    Args:
        row: gives the seconds of windows and images.
        trial: gives their numbers.
        copying_s: seconds to copy the weights: after every validation, as if each were the best so far.
    """
    amount = Amount.of(trial)
    seconds = amount.validations * (amount.judged * row.val_image_seconds + copying_s)
    seconds += (amount.test + amount.judged) * row.test_image_seconds
    for length in amount.lengths:
        full, rest = divmod(length.num_images, length.window_size)
        window = full * window_seconds(row.steps, length.window_size) if full else 0.0
        seconds += length.total / length.num_windows * (window + (window_seconds(row.steps, rest) if rest else 0.0))
    return seconds


def bench_costs(bench: Bench, crowd: Crowd) -> Costs:
    """Return costs by what a bench measured.

    What a stage of pre-training does besides its steps is spread over them.

    Args:
        bench: of the device that stages will run on, see `require_device`.
        crowd: how many of them run there at a time.
    """

    def slower(own: float | None, every: Sequence[BenchRow], processes: int) -> float:
        """Return the slowdown that alike rows measured, else that of any row of the phase, or of any at all.

        Where none did, processes take turns on a GPU, and each has cores of its own on a CPU.
        """
        if own is not None:
            return own
        for rows in (every, [*bench.pretrain, *bench.finetune]):
            found = [slowdown(row.shared, processes) for row in rows if len(row.shared) > 1]
            if found:
                return statistics.median(found)
        return float(processes) if bench.device.kind == "cuda" else 1.0

    @functools.lru_cache(maxsize=4096)
    def pretrain_step(pretraining: Pretraining) -> float:
        levels, flops = pretrain_levels(pretraining), step_work(pretraining).flops

        def middle(number: Callable[[PretrainRow], float | None]) -> float | None:
            return _middle(bench.pretrain, levels, lambda row: pretrain_levels(row.pretraining), number)

        each = middle(lambda row: row.step.seconds * flops / step_work(row.pretraining).flops)
        if each is None:
            raise _nothing_alike("pre-training")
        rest = middle(lambda row: row.rest_seconds) or 0.0
        crowded = middle(lambda row: _slowdown(row, crowd.pretrain))
        return slower(crowded, bench.pretrain, crowd.pretrain) * (each + rest / pretraining.fields.steps)

    @functools.lru_cache(maxsize=4096)
    def finetune(trial: TrialSpec) -> float:
        levels, flops = finetune_levels(trial), forward_flops(trial.network, trial.image_size).whole

        def middle(number: Callable[[FinetuneRow], float | None]) -> float | None:
            return _middle(bench.finetune, levels, lambda row: finetune_levels(row.trial), number)

        def trained(row: FinetuneRow) -> float:
            own = forward_flops(row.trial.network, row.trial.image_size).whole
            return finetune_seconds(row, trial, copying_s=copying) * flops / own

        copying = middle(lambda row: None if row.epoch is None else row.epoch.copying) or 0.0
        seconds = middle(trained)
        if seconds is None:
            raise _nothing_alike("fine-tuning")
        rest = middle(lambda row: row.rest_seconds) or 0.0
        crowded = middle(lambda row: _slowdown(row, crowd.finetune))
        return slower(crowded, bench.finetune, crowd.finetune) * (seconds + rest)

    return Costs(pretrain_step, finetune, measured=True)


def not_measured(bench: Bench, trials: Iterable[TrialSpec]) -> list[str]:
    """Return what a plan needs and the bench has no row of: such stages take the rate of the most similar row."""
    pretrained = {pretrain_levels(row.pretraining)[0] for row in bench.pretrain}
    finetuned = {finetune_levels(row.trial)[0] for row in bench.finetune}
    missing: dict[str, None] = {}
    for trial in trials:
        before, where = trial.pretraining, f"{trial.network.label} at {trial.image_size} px in {trial.precision}"
        if before is not None and pretrain_levels(before)[0] not in pretrained:
            missing[f"pre-training by {trial.method} of {where}"] = None
        if finetune_levels(trial)[0] not in finetuned:
            missing[f"fine-tuning of {where}, {num_landmarks(trial)} landmarks"] = None
    return list(missing)


def require_device(bench: Bench, *, gpus: bool) -> None:
    """Refuse a bench of another kind of device than stages will run on."""
    if (bench.device.kind == "cuda") != gpus:
        wanted, got = ("on a GPU", "a CPU") if gpus else ("without a GPU", "a GPU")
        cure = "leave --gpus out, or measure on a machine with a GPU" if gpus else "give --gpus"
        raise InputError(f"--bench must be a bench {wanted}; it is one of {got} ({bench.device.name}); {cure}")


def start_seconds(bench: Bench) -> float:
    """Return the seconds that a run takes besides its stages, most of them before the first starts."""
    return RUN_STARTS * bench.process_seconds


def _middle(
    rows: Sequence[Row],
    levels: Sequence[Level],
    levels_of: Callable[[Row], Sequence[Level]],
    number: Callable[[Row], float | None],
) -> float | None:
    """Return the median of a number among the most alike rows that have it; None where no row has it."""
    for place, level in enumerate(levels):
        found = [number(row) for row in rows if levels_of(row)[place] == level]
        known = [value for value in found if value is not None]
        if known:
            return statistics.median(known)
    return None


def _slowdown(row: BenchRow, processes: int) -> float | None:
    return slowdown(row.shared, processes) if len(row.shared) > 1 else None


def _nothing_alike(phase: str) -> InputError:
    return InputError(
        f"--bench must hold a row of {phase} for this plan; it has none; measure again with more --minutes, or with "
        "this --grid: ablate bench --grid NAME --json FILE"
    )
