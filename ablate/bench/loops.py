"""Optimizer steps of the real loops, timed: the first ones warm up, the next are counted, and one more is profiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ablate.bench.device import Activity, Device
from ablate.bench.images import noise
from ablate.finetune import finetune
from ablate.network.base import Network
from ablate.network.building import build_network
from ablate.pretrain import run_pretraining
from ablate.schedule.benched import num_landmarks
from ablate.space import Pretraining, ScratchSpec, TrialSpec
from ablate.training import Interrupted, Progress, State

LEAST = 2
"""Steps that are counted at least."""

PROFILED = 1
"""Steps that a profiler watches, after those that are counted."""

ENDLESS = 10**9
"""More steps than any bench takes."""

IMAGES = 64
"""Training images of pre-training: what a step costs does not depend on how many there are to draw from."""


class Never:
    """A checkpoint that is never due; keeps the state that a loop hands it when it is stopped."""

    def __init__(self) -> None:
        self.state: State | None = None

    def due(self) -> bool:
        """Return False."""
        return False

    def save(self, step: int, state: State) -> None:
        """Keep the state itself, not a copy."""
        self.state = state


@dataclass
class Clock:
    """Times a loop that reports after each step, and stops it.

    Args:
        device: what computes.
        seconds: for how long steps are counted; at least `LEAST` are.
        profile: whether one more step is profiled.
        ready: called once the warm-up is over; waits for other processes where there are some.
    """

    device: Device
    seconds: float
    profile: bool = False
    ready: Callable[[], None] = lambda: None
    count: int = 0
    each: float = 0.0  # seconds of a step, the mean
    activity: Activity | None = None  # of a step
    _done: int = 0
    _start_s: float = 0.0
    _marks: list[object] = field(default_factory=list)
    _profiler: torch.profiler.profile | None = None
    _profiled: int = 0

    def __call__(self, progress: Progress) -> bool:
        """Count a step; return True once all is known."""
        self._done += 1
        if self._profiler is not None:
            return self._watch(self._profiler)
        if self._done < self.device.warm_up:
            return False
        if self._done == self.device.warm_up:
            self.device.synchronize()
            self.ready()
            self._start_s = time.monotonic()
        self._marks.append(self.device.mark())
        if len(self._marks) <= LEAST or time.monotonic() - self._start_s < self.seconds:
            return False
        steps = self.device.seconds(self._marks)
        self.count, self.each = len(steps), sum(steps) / len(steps)
        if not self.profile:
            return True
        self._profiler = self.device.profiler()
        self._profiler.start()
        self._start_s = time.monotonic()
        return False

    def _watch(self, profiler: torch.profiler.profile) -> bool:
        self._profiled += 1
        if self._profiled < PROFILED:
            return False
        self.device.synchronize()
        wall_s = time.monotonic() - self._start_s
        profiler.stop()
        seen = self.device.activity(profiler, wall_s)
        if seen is not None:  # the profiler slows the host: its shares of the step count, not its seconds
            scale = self.each / wall_s
            computed = min(self.each, seen.device / PROFILED) if self.device.is_gpu else seen.device * scale
            self.activity = Activity(computed, seen.sync * scale, seen.host * scale)
        return True


def time_pretraining(pretraining: Pretraining, clock: Clock, *, share: float = 1.0) -> None:
    """Pre-train on noise, on a share of a GPU where one computes, until the clock has seen enough."""
    size = pretraining.image_size
    plain = TrialSpec.model_validate({"dataset": "synthetic", "image_size": size, "network": pretraining.network})
    images_NHW = noise(plain, train=IMAGES, val=0, test=0).train.images_NHW
    try:
        run_pretraining(
            pretraining,
            images_NHW,
            steps=ENDLESS,
            publish=lambda step, tensors: None,
            device=clock.device.torch,
            report=clock,
            passes=clock.device.passes(share),
        )
    except Interrupted:
        return


def time_finetuning(trial: TrialSpec, images: int, clock: Clock, *, share: float = 1.0) -> None:
    """Fine-tune on so many images of noise, without validation, until the clock has seen enough."""
    spec = plain_trial(trial, shots=images, steps=ENDLESS, validation="none")
    network = build(spec)
    data = noise(spec, train=images, val=0, test=0)
    try:
        finetune(
            spec,
            network,
            data,
            device=clock.device.torch,
            state=None,
            checkpoint=Never(),
            report=clock,
            passes=clock.device.passes(share),
        )
    except Interrupted:
        return


def plain_trial(trial: TrialSpec, *, shots: int, steps: int, validation: str) -> TrialSpec:
    """Return a trial that fine-tunes like another, from scratch, on so many shots, and never ends early."""
    length = {"epochs": None, "steps": steps, "schedule": "constant", "patience": ENDLESS, "validate_every": 1}
    fine = trial.finetune.model_dump() | length
    changed = {
        "shots": shots,
        "few_shot": "first",
        "draw": None,
        "fold": None,
        "validation": validation,
        "exclude_duplicates": False,
        "pretrain": ScratchSpec(),
        "finetune": fine,
    }
    return TrialSpec.model_validate(trial.model_dump() | changed)


def build(trial: TrialSpec) -> Network:
    """Return the trial's network on the CPU."""
    return build_network(
        trial.network,
        num_outputs=num_landmarks(trial),
        image_size=trial.image_size,
        seed=trial.seed,
        precision=trial.precision,
    )
