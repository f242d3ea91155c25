"""The one training loop of all pre-training methods.

Nothing in it depends on the number of steps asked for, so a snapshot taken in passing equals the last one of a shorter
pre-training, and a longer pre-training goes on from the state of a shorter one. Shapes: N images of the data set, W
images of one optimizer step, H and W of the square image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ablate.pretrain.base import PretrainingMethod
from ablate.pretrain.methods import build_method
from ablate.pretrain.negatives import Contrastive, backward_through_vectors
from ablate.space import Pretraining
from ablate.training import (
    ONE_GROUP,
    Checkpoint,
    Compiling,
    CurvePoint,
    Diverged,
    Interrupted,
    Launch,
    Losses,
    Outputs,
    Pass,
    Passes,
    PassSize,
    Progress,
    Report,
    State,
    Stopwatch,
    adamw,
    as_it_is,
    curve_of,
    curve_state,
    forward_passes,
    global_seed,
    load_optimizer,
    normalised_apart,
    on_device,
    placed,
    seeded,
    silent,
    stream_order,
)

CURVE_EVERY = 10
"""Steps whose mean loss is one point of the learning curve."""

Publish: TypeAlias = Callable[[int, dict[str, Tensor]], None]
"""Called with a step and that snapshot's weights, on the CPU."""


def run_pretraining(
    pretraining: Pretraining,
    images_NHW: np.ndarray,
    *,
    steps: int,
    publish: Publish,
    snapshots: Sequence[int] = (),
    device: torch.device | str = "cpu",
    state: State | None = None,
    checkpoint: Checkpoint | None = None,
    report: Report = silent,
    passes: PassSize = ONE_GROUP,
) -> list[CurvePoint]:
    """Pre-train to `steps` optimizer steps, publishing snapshots on the way.

    AdamW with a learning rate that is constant after `warmup` steps. Every step takes the next `batch_size *
    accumulate` images of an endless shuffled stream, in `accumulate` groups, or fewer, see `PretrainingMethod.window`.
    After a step, in this order: its snapshot is published, its state is saved if that is due, it is reported. A state
    is therefore never ahead of a snapshot that was asked for.

    Args:
        pretraining: method, fields, network and image size; its number of steps is ignored.
        images_NHW: uint8, H = W = `pretraining.image_size`; all of them are kept on the device.
        steps: optimizer steps to end with, those before `state` included; at or below the state's step nothing is
            trained.
        publish: receives each snapshot.
        snapshots: steps whose snapshot is wanted; none before the state's step, which has lost them.
        device: where to train.
        state: of an earlier attempt, as given to `checkpoint`; None to begin.
        checkpoint: keeps states: when one is due, when `report` asks to stop, and after the last step; None: none.
        report: called after every step with the loss; returns True to ask the loop to stop.
        passes: how many groups of `batch_size` images go through the network at a time, where `state` does not say it.

    Returns:
        The learning curve from the first step on: the mean loss of every 10 steps.

    Raises:
        Interrupted: `report` asked to stop before the last step; the state is saved.
        Diverged: the loss is not finite. No update is made by it; on a GPU the next step may have been made.
        OutOfMemory: memory ran out with `batch_size` images in a forward pass.
        ValueError: a snapshot is asked for that lies before the state's step.
        InputError: `weights` cannot be loaded.
    """
    fields, device = pretraining.fields, torch.device(device)
    method = build_method(pretraining)
    placed(method, device)
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = adamw(parameters, device, lr=fields.lr, weight_decay=fields.weight_decay)
    start, loss_sum, curve, seconds = 0, 0.0, [], 0.0
    if state is not None:
        start, loss_sum, seconds = int(state["step"]), float(state["loss_sum"]), float(state["seconds"])
        curve = curve_of(state["curve"])
        method.load_state_dict(state["method"])
        load_optimizer(optimizer, state["optimizer"])
    if lost := [step for step in snapshots if step < start]:
        raise ValueError(f"snapshots at steps {lost} lie before the state at step {start}: begin without a state")

    method.train()
    images = torch.as_tensor(images_NHW).to(device)
    seen = 0  # images since the start
    watch = Stopwatch(seconds)
    saved, last_loss = start, math.nan

    def note(step: int, loss: float) -> None:
        nonlocal loss_sum, last_loss
        if not math.isfinite(loss):
            raise Diverged(
                f"the pre-training loss of {fields.method} is {loss} at step {step}: lower pretrain.lr (now "
                f"{fields.lr:g})"
            )
        last_loss, loss_sum = loss, loss_sum + loss
        if step % CURVE_EVERY == 0:
            curve.append(CurvePoint(step, None, "loss", loss_sum / CURVE_EVERY, watch.seconds))
            loss_sum = 0.0

    losses = Losses(device, note)
    is_whole = method.head == "noise"
    compiling = Compiling(method.network.net, after=passes.compile_after if is_whole else None, state=state)
    if is_whole:  # a U-Net's operations are few and large
        passes = replace(passes, recordings=None)
    key = pretraining.model_dump_json(exclude={"spec": {"steps", "seed"}})
    probe = functools.partial(method.network.features, images[:2, None] / 255)
    if method.group_by_group:
        passes = replace(passes, groups=1, card=None)
    forward = Passes(passes, method, optimizer, state=state, key=key, probe=probe)

    def save(step: int) -> None:
        nonlocal saved
        losses.catch_up()
        if checkpoint is not None and step > saved:
            checkpoint.save(
                step,
                {
                    "step": step,
                    "method": method.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "groups": forward.chosen,
                    "compiled": compiling.compiled,
                    "loss_sum": loss_sum,
                    "curve": curve_state(curve),
                    "seconds": watch.seconds,
                },
            )
            saved = step

    if start in snapshots:
        publish(start, _snapshot(method))
        if report(Progress("pretrain", start, steps, published=start)) and start < steps:
            raise Interrupted
    for step in range(start + 1, steps + 1):
        start_of_step, num_images = method.window(len(images), step)
        num_groups, seen = num_images // fields.batch_size, seen + num_images
        order = stream_order(len(images), fields.seed, start_of_step, num_images)
        batch_W1HW = images[on_device(order, device)][:, None].float() / 255
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(pretraining, step)
        loss = forward.step(functools.partial(_gradients, method, batch_W1HW, step, forward.launch), num_groups)
        losses.step(optimizer, step, loss, method.clip_of(num_groups))
        method.after_step(step)
        compiling.after_step(step, steps - step, (watch.seconds - seconds) / (step - start))
        published = step if step in snapshots else None
        if published is not None:
            losses.catch_up()  # a snapshot of weights that diverged is not published
            publish(step, _snapshot(method))
        if checkpoint is not None and checkpoint.due():
            save(step)
        rate = seen / max(watch.seconds - seconds, 1e-9)
        metrics = {} if math.isnan(last_loss) else {"loss": last_loss}
        stop = report(Progress("pretrain", step, steps, metrics, rate, published))
        if stop and step < steps:
            save(step)
            raise Interrupted
    save(max(start, steps))
    return curve


def learning_rate(pretraining: Pretraining, step: int) -> float:
    """Return the learning rate of a step, counted from 1: a linear rise over `warmup` steps, then constant."""
    fields = pretraining.fields
    return fields.lr * min(1.0, step / fields.warmup) if fields.warmup else fields.lr


def _gradients(method: PretrainingMethod[Any], batch_W1HW: Tensor, step: int, launch: Launch, groups: int) -> Tensor:
    """Do `backward` with the random numbers of optimizer step `step`, also when its passes are made again."""
    device, seed = batch_W1HW.device, method.pretraining.fields.seed
    method.take_left()  # of passes that memory ran out in
    with global_seed(device, seed, "dropout", step):
        return backward(method, batch_W1HW, seeded(device, seed, "draws", step), step, groups, launch)


def backward(
    method: PretrainingMethod[Any],
    batch_W1HW: Tensor,
    generator: torch.Generator,
    step: int,
    groups: int = 1,
    launch: Launch = as_it_is,
) -> Tensor:
    """Add the gradients of one optimizer step, of passes of up to `groups` groups, and return the step's mean loss.

    `launch` does each pass, but where negatives are those of the step and of several passes.
    """
    prepared = method.prepare(batch_W1HW, generator, step)
    groups = 1 if method.group_by_group else groups
    passes = tuple(forward_passes(len(batch_W1HW), method.pretraining.fields.batch_size, groups))
    if isinstance(method, Contrastive) and method.sees_the_step and len(passes) > 1:
        return backward_through_vectors(method, prepared, passes, step)
    total, left = torch.zeros((), device=batch_W1HW.device), list[Tensor]()
    for one in passes:
        method.before_pass()
        views = [tensor[one.part] for tensor in prepared]
        loss, *left_here = launch((one.groups, one.share), functools.partial(_pass, method, one), *views)
        total += loss
        left += left_here
    method.leave(*left)
    return total


def _pass(method: PretrainingMethod[Any], one: Pass, *prepared: Tensor) -> Outputs:
    """Add the gradient of one pass's share of the loss; return that share, and what the pass leaves for the step."""
    with normalised_apart(method, one.groups):
        loss = method.loss(*prepared, groups=one.groups) * one.share
    loss.backward()  # type: ignore[no-untyped-call]
    return (loss.detach(), *method.take_left())


def _snapshot(method: PretrainingMethod[Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in method.snapshot().items()}
