"""The distinct methods and networks of a search space: the rows of a bench, and the seconds that their parts take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ablate.bench.device import WARM_UP
from ablate.bench.loops import LEAST, PROFILED
from ablate.bench.parts import EPOCH_SHOTS, RESUMED_STEPS
from ablate.network.evaluation import inference_batch_size
from ablate.schedule.bench_file import Epoch, FinetuneRow, PretrainRow, Resumed, Shared, StepTimes
from ablate.schedule.benched import Level, finetune_levels, num_landmarks, pretrain_levels, row_name
from ablate.schedule.costs import INFER, NUM_IMAGES, TRAIN, Amount, Work, step_work, work_seconds
from ablate.schedule.flops import forward_flops
from ablate.space import Pretraining, TrialSpec


@dataclass(frozen=True)
class StepKind:
    """One kind of optimizer step."""

    images: int
    work: Work
    window: int | None  # images of fine-tuning; None for pre-training


@dataclass
class Row:
    """A method on a network, or the fine-tuning of a network, with what was measured of it so far."""

    trial: TrialSpec
    pretraining: Pretraining | None  # None: a row of fine-tuning
    kinds: tuple[StepKind, ...]  # of fine-tuning the smallest window of the search space and its largest
    steps: list[StepTimes] = field(default_factory=list)  # one for each of `kinds`
    image_s: tuple[float, float] | None = None  # to validate and to evaluate an image
    shared: list[Shared] = field(default_factory=list)
    epoch: Epoch | None = None
    rest_s: float | None = None
    resumed: Resumed | None = None

    @property
    def name(self) -> str:
        """The row in words, see `row_name`."""
        return row_name(self.trial, pretrains=self.pretraining is not None)

    @property
    def is_measured(self) -> bool:
        """Whether there is enough of it for the file."""
        return len(self.steps) == len(self.kinds) and (self.pretraining is not None or self.image_s is not None)

    def as_pretrained(self) -> PretrainRow:
        """Return a measured row of pre-training for the file."""
        return PretrainRow(
            trial=self.trial,
            step=self.steps[0],
            shared=tuple(self.shared),
            rest_seconds=self.rest_s,
            resumed=self.resumed,
        )

    def as_finetuned(self) -> FinetuneRow:
        """Return a measured row of fine-tuning for the file."""
        assert self.image_s is not None
        return FinetuneRow(
            trial=self.trial,
            steps=tuple(self.steps),
            val_image_seconds=self.image_s[0],
            test_image_seconds=self.image_s[1],
            epoch=self.epoch,
            shared=tuple(self.shared),
            rest_seconds=self.rest_s,
            resumed=self.resumed,
        )

    # --- the least seconds of parts ---------------------------------------------------------------------

    def step_seconds(self, gpus: float) -> float:
        """Return the seconds of the largest step: measured, or estimated before that."""
        if self.steps:
            return self.steps[-1].seconds
        return work_seconds(self.kinds[-1].work, self.trial.network.kind, gpus)

    def image_seconds(self, gpus: float) -> float:
        """Return the seconds of an image without gradients: measured, or estimated before that."""
        if self.image_s is not None:
            return max(self.image_s)
        whole = forward_flops(self.trial.network, self.trial.image_size).whole
        return work_seconds(Work(INFER * whole, 1), self.trial.network.kind, gpus)

    def least_steps(self, gpus: float) -> float:
        """Return the least seconds of timing the row's steps and images, warm-up included."""
        steps = (WARM_UP + LEAST + PROFILED) * self.step_seconds(gpus) * len(self.kinds)
        images = 0 if self.pretraining is not None else 8 * inference_batch_size(self.trial)
        return steps + images * self.image_seconds(gpus)

    def least_shared(self, gpus: float, processes: int) -> float:
        """Return the least seconds of timing the row's largest step in one process and in several.

        On a GPU they take turns, and on a CPU they are in each other's way by half.
        """
        return (WARM_UP + LEAST) * self.step_seconds(gpus) * (1 + (processes if gpus else 1.5))

    def least_rest(self, gpus: float) -> float:
        """Return the seconds of a stage with a step or two: a DDPM also draws an image, in as many passes as it has."""
        drawn = getattr(self.trial.pretrain, "timesteps", 0) if self.pretraining is not None else 8
        return 2 * self.step_seconds(gpus) + drawn * self.image_seconds(gpus)

    def least_epoch(self, gpus: float) -> float:
        """Return the least seconds of taking an epoch apart: six times trained, seven times validated."""
        windows = math.ceil(EPOCH_SHOTS / self.kinds[-1].images)
        val = NUM_IMAGES.get(self.trial.dataset, NUM_IMAGES["cephalo"])[1]
        return 6 * windows * self.step_seconds(gpus) + 7 * val * self.image_seconds(gpus)

    def least_compared(self, gpus: float) -> float:
        """Return the least seconds of comparing stages and of timing both modes."""
        return 2 * (2 * RESUMED_STEPS + WARM_UP + LEAST) * self.step_seconds(gpus)


def rows_of(trials: Iterable[TrialSpec]) -> list[Row]:
    """Return the rows of a search space: its methods on its networks, then the fine-tunings, each in its order."""
    pretrained: dict[Level, Row] = {}
    finetuned: dict[Level, TrialSpec] = {}
    windows: dict[Level, set[int]] = {}
    for trial in trials:
        before = trial.pretraining
        if before is not None:
            images = before.fields.batch_size * before.fields.accumulate
            kind = StepKind(images, step_work(before), None)
            pretrained.setdefault(pretrain_levels(before)[0], Row(trial, before, (kind,)))
        key = finetune_levels(trial)[0]
        finetuned.setdefault(key, trial)
        windows.setdefault(key, set()).update(_windows(trial))
    rows = list(pretrained.values())
    for key, trial in finetuned.items():
        sizes = sorted({min(windows[key]), max(windows[key])})
        rows.append(Row(trial, None, tuple(_window_kind(trial, size) for size in sizes)))
    return rows


def leading(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without fine-tunings that differ from another in landmarks alone; the one with most stays."""
    found: dict[Level, Row] = {}
    for number, row in enumerate(rows):
        own = (row.trial.network, row.trial.image_size, row.trial.precision)
        key: Level = (number,) if row.pretraining is not None else own
        if key not in found or num_landmarks(row.trial) > num_landmarks(found[key].trial):
            found[key] = row
    return list(found.values())


def _window_kind(trial: TrialSpec, size: int) -> StepKind:
    whole = forward_flops(trial.network, trial.image_size).whole
    return StepKind(size, Work(float(TRAIN * whole * size), math.ceil(size / trial.finetune.batch_size)), size)


def _windows(trial: TrialSpec) -> Iterator[int]:
    """Yield the sizes of a trial's optimizer steps in images."""
    for length in Amount.of(trial).lengths:
        full, rest = divmod(length.num_images, length.window_size)
        yield from [length.window_size] * bool(full) + [rest] * bool(rest)
