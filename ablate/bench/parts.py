"""What fine-tuning and stages are made of besides optimizer steps, each measured on the functions that a run calls."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ablate import tables
from ablate.bench.device import Device
from ablate.bench.images import noise
from ablate.bench.loops import IMAGES, Clock, Never, build, plain_trial, time_finetuning, time_pretraining
from ablate.datasets import Dataset
from ablate.finetune import build_objective, finetune
from ablate.finetune.validation import Images, validate
from ablate.network.evaluation import evaluate, inference_batch_size, logits_in_batches, read_points
from ablate.pretrain import run_pretraining
from ablate.schedule.bench_file import Epoch, Resumed
from ablate.schedule.costs import NUM_IMAGES
from ablate.schedule.stages import Stage
from ablate.space import Pretraining, TrialSpec
from ablate.stage.machine import deterministic_mode
from ablate.stage.task import Task
from ablate.stage.trial import perform
from ablate.store import Store
from ablate.training import Interrupted, Progress, Report, copied, pack, placed, silent, unpack

EPOCH_SHOTS = 5
"""Shots of the epoch that is taken apart: the fewest of the paper, where all but training weighs most."""

RESUMED_STEPS = 2
"""Steps of the stages that are compared: one is interrupted half-way."""


def mean_seconds(device: Device, seconds: float, work: Callable[[], object]) -> float:
    """Return the mean seconds of `work`, done once to warm up and then at least once, for about so many seconds."""
    work()
    device.synchronize()
    marks, start_s = [device.mark()], time.monotonic()
    while len(marks) < 2 or time.monotonic() - start_s < seconds:
        work()
        marks.append(device.mark())
    return sum(device.seconds(marks)) / (len(marks) - 1)


@dataclass(frozen=True)
class ImageSeconds:
    """Seconds of one image without gradients."""

    val: float
    test: float


def time_images(trial: TrialSpec, device: Device, seconds: float) -> ImageSeconds:
    """Return what validating and what evaluating an image takes, in batches as for passes of one group of images."""
    number = 2 * inference_batch_size(trial)
    spec = plain_trial(trial, shots=1, steps=1, validation="none")
    data = noise(spec, train=0, val=number, test=number)
    network = build(spec)
    placed(network, device.torch)
    val = Images.of(data.val, spec.image_size, device.torch)
    objective = build_objective(spec, data.num_landmarks).to(device.torch)
    validating = mean_seconds(device, seconds / 2, lambda: validate(spec, network, objective, val))
    evaluating = mean_seconds(
        device,
        seconds / 2,
        lambda: evaluate(network, spec, data.test, data, device=device.torch, report=silent),
    )
    return ImageSeconds(validating / number, evaluating / number)


def time_epoch(trial: TrialSpec, device: Device, seconds: float) -> Epoch:
    """Return an epoch on `EPOCH_SHOTS` shots with its validation.

    The whole is timed as the loop does it, the parts by themselves; the seconds are shared out evenly among the whole
    and its four parts.
    """
    num_val = NUM_IMAGES.get(trial.dataset, NUM_IMAGES["cephalo"])[1]
    windows = -(-EPOCH_SHOTS // (trial.finetune.batch_size * trial.finetune.accumulate))
    spec = plain_trial(trial, shots=EPOCH_SHOTS, steps=200 * windows, validation="full")  # a validation an epoch
    data, share = noise(spec, train=EPOCH_SHOTS, val=num_val, test=0), seconds / 5
    whole = _epoch_seconds(spec, data, device, windows, share)
    network = build(spec)
    placed(network, device.torch)
    val = Images.of(data.val, spec.image_size, device.torch)
    maps = [logits for _, logits in logits_in_batches(network, val.images_NHW, spec, device=device.torch)]

    def read() -> None:
        for logits_BKHW in maps:
            read_points(logits_BKHW, spec, spec.evaluate.decode).cpu()

    clock = Clock(device, share)
    time_finetuning(trial, EPOCH_SHOTS, clock)
    decoding = mean_seconds(device, share, read)
    objective = build_objective(spec, data.num_landmarks).to(device.torch)
    validating = mean_seconds(device, share, lambda: validate(spec, network, objective, val))
    copying = mean_seconds(
        device,
        share,
        lambda: {name: tensor.detach().clone() for name, tensor in network.state_dict().items()},
    )
    return Epoch(
        shots=EPOCH_SHOTS,
        val_images=num_val,
        seconds=whole,
        training=windows * clock.each,
        validation=validating,
        decoding=decoding,
        copying=copying,
    )


def _epoch_seconds(spec: TrialSpec, data: Dataset, device: Device, windows: int, seconds: float) -> float:
    """Return the mean seconds of an epoch in the loop; the first warms up."""
    marks: list[Any] = []
    start_s = time.monotonic()

    def report(progress: Progress) -> bool:
        nonlocal start_s
        if (progress.optimizer_steps or 0) % windows:
            return False
        if not marks:
            start_s = time.monotonic()
        marks.append(device.mark())
        return len(marks) > 1 and time.monotonic() - start_s >= seconds

    with contextlib.suppress(Interrupted):
        finetune(
            spec,
            build(spec),
            data,
            device=device.torch,
            state=None,
            checkpoint=Never(),
            report=report,
            passes=device.passes(),
        )
    return sum(device.seconds(marks)) / (len(marks) - 1)


# --- what a stage does besides ------------------------------------------------------------------------


def rest_of_pretraining(trial: TrialSpec, device: Device, step_s: float) -> float:
    """Return the seconds of a stage of pre-training besides its steps: data, network, snapshot, tables, pictures."""
    own = trial.pretrain.model_dump() | {"images": "train"}  # noise has nothing else
    pretraining = TrialSpec.model_validate(trial.model_dump() | {"fold": None, "pretrain": own}).pretraining
    assert pretraining is not None
    steps = 2
    with _run_folder() as store:
        row = _attempt(Stage("pretrain", pretraining.key), pretraining, trial, device, store, (steps,))
    return max(0.0, float(str(row["seconds"])) - steps * step_s)


def rest_of_finetuning(trial: TrialSpec, images: int, device: Device) -> float:
    """Return the seconds of a stage of fine-tuning on so many images besides training, validation and evaluation."""
    spec = plain_trial(trial, shots=images, steps=1, validation="none")
    with _run_folder() as store:
        row = _attempt(Stage("finetune", spec.trial_id), spec, trial, device, store)
        (own,) = tables.read_part(store, "trials", spec.trial_id)
    return max(0.0, float(str(row["seconds"])) - sum(float(str(own[f"{n}_seconds"])) for n in ("finetune", "evaluate")))


@contextlib.contextmanager
def _run_folder() -> Iterator[Store]:
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as folder:
        yield Store.open(folder)


def _attempt(
    stage: Stage,
    spec: Pretraining | TrialSpec,
    trial: TrialSpec,
    device: Device,
    store: Store,
    snapshots: tuple[int, ...] = (),
) -> Mapping[str, object]:
    """Perform a stage on noise in a store; return its row of `stages`."""
    data = noise(trial, train=IMAGES, val=4, test=4)
    same = torch.are_deterministic_algorithms_enabled()
    settings = replace(device.settings, gpus=float(device.is_gpu), deterministic=same)
    result = perform(Task(stage, spec, store, lambda name, size, fold=None: data, silent, settings, snapshots))
    if result.outcome != "finished":
        raise RuntimeError(f"a stage of the bench {result.outcome}: {result.error}")
    (row,) = tables.read_table(store, "stages").to_pylist()
    return dict(row)


# --- resumed and straight, deterministic and not ------------------------------------------------------

Weights = Mapping[str, Tensor]
Attempt = Callable[[Any, Report, Never], Weights]
"""Goes on from a state to the end; returns the weights it ends with."""


def compare_pretraining(trial: TrialSpec, device: Device, seconds: float) -> Resumed:
    """Return whether an interrupted pre-training ends as a straight one, and what deterministic mode costs."""
    pretraining = trial.pretraining
    assert pretraining is not None
    images_NHW = noise(trial, train=IMAGES, val=0, test=0).train.images_NHW

    def attempt(state: Any, report: Report, checkpoint: Never) -> Weights:
        final: dict[str, Tensor] = {}
        run_pretraining(
            pretraining,
            images_NHW,
            steps=RESUMED_STEPS,
            snapshots=(RESUMED_STEPS,),
            publish=lambda step, tensors: final.update(tensors),
            device=device.torch,
            state=state,
            checkpoint=checkpoint,
            report=report,
            passes=device.passes(),
        )
        return final

    return _compare(attempt, lambda clock: time_pretraining(pretraining, clock), device, seconds)


def compare_finetuning(trial: TrialSpec, images: int, device: Device, seconds: float) -> Resumed:
    """Return the same of a fine-tuning with windows of so many images."""
    spec = plain_trial(trial, shots=images, steps=RESUMED_STEPS, validation="none")
    data = noise(spec, train=images, val=0, test=0)

    def attempt(state: Any, report: Report, checkpoint: Never) -> Weights:
        network = build(spec)
        return finetune(
            spec,
            network,
            data,
            device=device.torch,
            state=state,
            checkpoint=checkpoint,
            report=report,
            passes=device.passes(),
        ).best_state

    return _compare(attempt, lambda clock: time_finetuning(trial, images, clock), device, seconds)


def _compare(attempt: Attempt, timed: Callable[[Clock], None], device: Device, seconds: float) -> Resumed:
    equal = _ends_alike(attempt)
    usual = Clock(device, seconds / 2)
    timed(usual)
    with _deterministic() as warned:
        equal_deterministic = _ends_alike(attempt)
        slower = Clock(device, seconds / 2)
        timed(slower)
    return Resumed(
        equal=equal,
        equal_deterministic=equal_deterministic,
        slowdown=slower.each / usual.each,
        not_deterministic=tuple(sorted({_operation(str(found.message)) for found in warned})),
    )


def _ends_alike(attempt: Attempt) -> bool:
    """Return whether an attempt that is stopped half-way and goes on from its state ends with the same weights."""
    straight = attempt(None, silent, Never())
    stopped, done = Never(), 0

    def half_way(progress: Progress) -> bool:
        nonlocal done
        done += 1
        return done == RESUMED_STEPS // 2

    with contextlib.suppress(Interrupted):
        attempt(None, half_way, stopped)
    assert stopped.state is not None
    resumed = attempt(unpack(pack(copied(stopped.state))), silent, Never())
    return straight.keys() == resumed.keys() and all(torch.equal(straight[name], resumed[name]) for name in straight)


@contextlib.contextmanager
def _deterministic() -> Iterator[list[warnings.WarningMessage]]:
    """Compute in torch's deterministic mode; yields a list that holds afterwards what torch warned of."""
    found: list[warnings.WarningMessage] = []
    with deterministic_mode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [item for item in caught if "deterministic" in str(item.message)]


def _operation(warning: str) -> str:
    """Return the operation that a warning of torch names: `upsample_bicubic2d_backward does not have ...`."""
    return re.split(r"\s+does not have", warning)[0].split()[-1]
