"""Fine-tuning: a network learns the landmarks of a few annotated images.

One loop for every network, initialisation and loss. Randomness is stateless (see `ablate.training`): a state holds
weights, optimizer and counters, and going on from it after any optimizer step is exact.

Shapes: N images, B those of one forward pass, K landmarks, H and W of the square network input, 2 = (x, y).
A window is what one optimizer step sees: up to batch_size * accumulate images.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ablate.datasets import Dataset, Split
from ablate.finetune.objectives import Objective, build_objective
from ablate.finetune.rates import learning_rate
from ablate.finetune.shots import Shots, check_finetune
from ablate.finetune.validation import Images, validate, validation_error
from ablate.network import augment
from ablate.network.base import Network
from ablate.network.evaluation import as_input, run_network
from ablate.space import Length, TrialSpec
from ablate.training import (
    ONE_GROUP,
    Checkpoint,
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
    stream_order,
)

SECOND_LOSS = "loss_all_shots"
"""The metric by which a curve holds the training loss of the second phase, where a share of the shots validates."""


@dataclass(frozen=True)
class FinetuneOutcome:
    """What fine-tuning ends with; where nothing validates there are the last weights and no validation error."""

    best_state: dict[str, Tensor]  # the network's state_dict with the weights to be evaluated, on the CPU
    best_epoch: int  # counted from 1; where a share of the shots validates, of the first phase
    epochs: int  # done, or begun; where a share of the shots validates, in the first phase
    val_loss: float | None  # after the best epoch
    val_mre: float | None  # of the same weights, protocol physical, in the data set's unit
    curve: list[CurvePoint]  # per validation: loss, val_loss, lr, learnt sigma; val_mre of the best; then SECOND_LOSS
    seconds: float  # all attempts together
    groups: int  # of batch_size images, that a forward pass held at the end


# --- the loop ---------------------------------------------------------------------------------------


@dataclass
class _Position:
    """How far fine-tuning has come; with weights and optimizer, all that going on needs."""

    epoch: int = 0  # passes done over the images, of the phase under way
    window: int = 0  # windows done of the pass under way
    loss_sum: float = 0.0  # over the images since the last validation was due whose loss has been noted
    val_losses: list[float] = field(default_factory=list)  # per validation
    best_epoch: int = 0  # counted from 1
    best_loss: float = math.inf
    best_mre: float = math.nan  # measured once, when the phase is over; NaN before
    best_state: dict[str, Tensor] = field(default_factory=dict)  # of the phase under way, where something validates
    initial: dict[str, Tensor] = field(default_factory=dict)  # weights that the second phase starts from
    first_steps: int | None = None  # optimizer steps of the first phase, once there is a second

    def step(self, length: Length) -> int:
        """Return the optimizer steps done in the phase under way."""
        return self.epoch * length.num_windows + self.window

    def advance(self, length: Length) -> None:
        """Count one optimizer step."""
        self.window += 1
        if self.window == length.num_windows:
            self.epoch, self.window = self.epoch + 1, 0

    def judge(self, network: Network, epoch: int, val_loss: float) -> None:
        """Note a validation after `epoch` passes, and keep the weights if its loss is the least so far."""
        self.val_losses.append(val_loss)
        if val_loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, val_loss
            self.best_state = _copy(network)

    @property
    def best_validation(self) -> int:
        """Number of the best validation, from 1; 0 before the first."""
        return self.val_losses.index(min(self.val_losses)) + 1 if self.val_losses else 0

    def is_over(self, spec: TrialSpec, length: Length) -> bool:
        """Whether the phase under way is: all steps are done, or `patience` epochs brought no improvement."""
        waited = 0 if self.first_steps is not None else len(self.val_losses) - self.best_validation
        return self.step(length) >= length.total or waited * length.validate_every >= spec.finetune.patience

    def begin_again(self, length: Length) -> None:
        """Go on to the second phase from the first, whose length is given."""
        self.first_steps = self.step(length)
        self.epoch = self.window = 0
        self.loss_sum, self.initial, self.best_state = 0.0, {}, {}


@dataclass(frozen=True)
class _Lengths:
    """The lengths of the phases: the first, and where a share of the shots validates the second."""

    first: Length
    num_shots: int

    def second(self, at: _Position) -> Length:
        """Return the length of the second phase: as many steps as the first took to its best validation."""
        best = min(at.best_validation * self.first.every, self.first.total)
        return replace(self.first, num_images=self.num_shots, total=best)

    def now(self, at: _Position) -> Length:
        """Return the length of the phase under way."""
        return self.first if at.first_steps is None else self.second(at)

    def told(self, at: _Position, *, in_steps: bool) -> tuple[int, int]:
        """Return the epochs done and those there are at most, or the optimizer steps, of both phases together."""
        length = self.now(at)
        step = at.step(length)
        done, total = (step, length.total) if in_steps else (at.epoch, length.passes(length.total))
        if at.first_steps is None:
            return done, 2 * total if at.initial else total
        before = at.first_steps if in_steps else self.first.passes(at.first_steps)
        return before + (total if step == length.total else done), before + total


def finetune(
    spec: TrialSpec,
    network: Network,
    data: Dataset,
    *,
    device: torch.device | str,
    state: State | None,
    checkpoint: Checkpoint,
    report: Report,
    until: float | None = None,
    passes: PassSize = ONE_GROUP,
) -> FinetuneOutcome:
    """Fine-tune the whole of `network` on the trial's shots and leave it with the weights to be evaluated.

    As in the paper: AdamW, a validation after each epoch (or each `validate_every`), the weights of least validation
    loss kept, an end after `patience` epochs without improvement. Where the length is given in optimizer steps, spans
    of equally many take the place of epochs, see `Length`. Deviation: where the last window of an epoch is not full,
    its gradient is the mean over its images; the authors divide by `accumulate` all the same.

    Where a share of the shots validates (`validation: inside_shots`), that is the first phase, on the other shots. The
    second starts from the same initial weights and trains on all shots, for as many optimizer steps as the first took
    to its best weights, each at the learning rate that it had there. Where nothing validates, training goes on to its
    end. Either way the validation images are not looked at.

    Args:
        spec: the trial.
        network: with its initial weights; moved to `device` and trained in place.
        data: prepared at `spec.image_size`.
        device: where to train.
        state: what an earlier attempt saved, None to begin; `network`'s weights do not matter then.
        checkpoint: is handed the state when it is due, after any optimizer step, and when `report` asks to stop.
        report: called after each optimizer step with the epochs, where there are any, and optimizer steps done.
        until: of a tuning trial, the share of its optimizer steps after which to pause, at the next validation, with
            the state handed to `checkpoint`. The outcome is that so far, and there is no second phase.
        passes: how many groups of `finetune.batch_size` images a pass holds, where `state` does not say it.

    Raises:
        Interrupted: `report` asked to stop; the state is saved.
        Diverged: a training or validation loss is not finite.
        OutOfMemory: memory ran out with `finetune.batch_size` images in a forward pass.
        InputError: see `check_finetune`.
    """
    check_finetune(spec, len(data.train.names))
    device = torch.device(device)
    shots = Shots.of(spec, len(data.train.names))
    lengths = _Lengths(Length.of(spec.finetune, len(shots.first)), len(shots.all))
    judges = _judges(spec, data, shots)
    val = None if judges is None else Images.of(judges, spec.image_size, device)
    placed(network, device)
    at, curve, watch = _Position(), list[CurvePoint](), Stopwatch()
    objective = build_objective(spec, data.num_landmarks).to(device)
    optimizer = _optimizer(spec, network, objective, device)
    if state is not None:
        network.load_state_dict(state["network"])
        objective.load_state_dict(state.get("objective", {}))
        load_optimizer(optimizer, state["optimizer"])
        at, curve, watch = _Position(**state["position"]), curve_of(state["curve"]), Stopwatch(state["seconds"])
    elif len(shots.held_out):
        at.initial = _copy(network)

    def training_images() -> Images:
        chosen = shots.first if at.first_steps is None else shots.all
        return Images.of(data.train.part(chosen), spec.image_size, device)

    def measure_best() -> None:
        """Measure the error of the best weights, which the network then has; as in the paper, losses chose them."""
        if val is None or judges is None or not at.best_state:
            return
        network.load_state_dict(at.best_state)
        at.best_mre = validation_error(spec, network, val, judges, groups=forward.groups)
        step = min(at.best_validation * lengths.first.every, lengths.first.total)
        if not any((point.step, point.metric) == (step, "val_mre") for point in curve):  # as states of old have it
            curve.append(CurvePoint(step, at.best_epoch, "val_mre", at.best_mre, watch.seconds))

    train, length = training_images(), lengths.now(at)
    rate = math.nan

    def note(step: int, loss: float) -> None:
        _require_finite(loss, "loss", (step - 1) // length.num_windows, rate)
        at.loss_sum += loss * (length.images_until(step) - length.images_until(step - 1))

    losses = Losses(device, note)
    key = f"{spec.network} {spec.precision} {spec.image_size} {data.num_landmarks} {spec.finetune}"
    probe = functools.partial(run_network, network, as_input(train.images_NHW[:2]), spec)
    forward = Passes(passes, nn.ModuleList((network, objective)), optimizer, state=state, key=key, probe=probe)
    pause = None if until is None else lengths.first.validation_after(until)
    while True:
        if pause is not None and at.step(length) >= pause:
            break
        if at.is_over(spec, length):
            if pause is not None or not at.initial:
                break
            losses.catch_up()
            measure_best()
            network.load_state_dict(at.initial)
            objective.load_state_dict(build_objective(spec, data.num_landmarks).state_dict())
            optimizer = _optimizer(spec, network, objective, device)
            forward.go_on_with(optimizer)
            losses = Losses(device, note)
            at.begin_again(length)
            train, length = training_images(), lengths.now(at)
        start_s = time.monotonic()
        step = at.step(length)
        seen, num_images = length.images_until(step), length.images_until(step + 1) - length.images_until(step)
        order = stream_order(length.num_images, spec.seed, seen, num_images)
        every, total = lengths.first.every, lengths.first.total
        rate = learning_rate(spec.finetune, at.val_losses[: step // every], step, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices_B = on_device(order, device)
        window = train.images_NHW[indices_B], train.points_NK2[indices_B]
        gradients = functools.partial(
            accumulate_gradients, spec, network, objective, *window, step, launch=forward.launch
        )
        losses.step(optimizer, step + 1, forward.step(gradients, num_images // spec.finetune.batch_size))
        at.advance(length)
        step += 1
        done = (at.first_steps or 0) + step
        validates = step % every == 0 or step == length.total
        if validates:
            losses.catch_up()
        noted = length.images_until(losses.noted) - length.images_until((step - 1) // every * every)
        metrics = {"loss": at.loss_sum / noted, "lr": rate} if noted > 0 else {"lr": rate}
        images_per_second = num_images / max(time.monotonic() - start_s, 1e-9)
        if validates:
            epoch = length.passes(step)
            if val is not None and at.first_steps is None:
                metrics["val_loss"] = validate(spec, network, objective, val, groups=forward.groups)
                _require_finite(metrics["val_loss"], "validation loss", epoch - 1, rate)
                at.judge(network, epoch, metrics["val_loss"])
            at.loss_sum = 0.0
            metrics |= objective.told() if at.first_steps is None else {}
            measured = metrics if at.first_steps is None else {SECOND_LOSS: metrics["loss"]}
            epoch += lengths.first.passes(at.first_steps or 0)
            curve += [CurvePoint(done, epoch, name, value, watch.seconds) for name, value in measured.items()]
        told = lengths.told(at, in_steps=spec.finetune.steps is not None)
        stop = report(Progress("finetune", *told, metrics, images_per_second, optimizer_steps=done))
        if stop or (pause is not None and at.step(length) >= pause) or checkpoint.due():
            losses.catch_up()
            now: State = {
                "network": network.state_dict(),
                "objective": objective.state_dict(),
                "groups": forward.chosen,
                "optimizer": optimizer.state_dict(),
                "position": vars(at),
                "curve": curve_state(curve),
                "seconds": watch.seconds,
            }
            checkpoint.save(done, now)
        if stop:
            raise Interrupted
    losses.catch_up()
    measure_best()
    final = {name: tensor.to("cpu") for name, tensor in (at.best_state or _copy(network)).items()}
    epochs = lengths.first.passes(at.step(length) if at.first_steps is None else at.first_steps)
    judged = bool(at.val_losses)
    return FinetuneOutcome(
        final,
        at.best_epoch if judged else epochs,
        epochs,
        at.best_loss if judged else None,
        at.best_mre if judged else None,
        curve,
        watch.seconds,
        forward.groups,
    )


def _optimizer(spec: TrialSpec, network: Network, objective: Objective, device: torch.device) -> torch.optim.AdamW:
    fine = spec.finetune
    optimizer = adamw(network.parameters(), device, lr=fine.lr, weight_decay=fine.weight_decay)
    if own := list(objective.parameters()):  # no weights: nothing is to pull them towards zero
        optimizer.add_param_group({"params": own, "weight_decay": 0.0})
    return optimizer


def _judges(spec: TrialSpec, data: Dataset, shots: Shots) -> Split | None:
    """Return the images that validate; None where nothing does."""
    if spec.validation == "full":
        return data.val
    return data.train.part(shots.held_out) if spec.validation == "inside_shots" else None


def _copy(network: Network) -> dict[str, Tensor]:
    """Return a copy of the network's weights on its device."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def accumulate_gradients(
    spec: TrialSpec,
    network: Network,
    objective: Objective,
    images_NHW: Tensor,
    points_NK2: Tensor,
    step: int,
    groups: int = 1,
    launch: Launch = as_it_is,
) -> Tensor:
    """Add the gradient of the mean loss over one window's augmented images, and return that loss.

    The window is augmented as a whole, so for a network without batch statistics the result does not depend on
    how `finetune.batch_size` splits it into forward passes.

    Args:
        spec: the trial.
        network: set to training mode.
        objective: on the network's device.
        images_NHW: uint8.
        points_NK2: network pixels; NaN = not annotated.
        step: optimizer steps done; augmentation and dropout are drawn for it.
        groups: of `finetune.batch_size` images that one pass holds at most.
        launch: does each pass.
    """
    network.train()
    device = images_NHW.device
    changes, generator = spec.finetune.augment, seeded(device, spec.seed, "augment", step)
    affine = augment.draw(changes, len(images_NHW), spec.image_size, generator)
    images_N1HW, points_NK2 = augment.apply(affine, as_input(images_NHW), points_NK2)
    images_N1HW = augment.stretched(changes, augment.change_greys(changes, images_N1HW, affine.applied_B, generator))
    total = torch.zeros((), device=device)
    with global_seed(device, spec.seed, "dropout", step):  # some encoders drop features at random
        for one in forward_passes(len(images_N1HW), spec.finetune.batch_size, groups):
            work = functools.partial(_pass, spec, network, objective, one)
            (loss,) = launch((one.groups, one.share), work, images_N1HW[one.part], points_NK2[one.part])
            total += loss
    return total


def _pass(
    spec: TrialSpec, network: Network, objective: Objective, one: Pass, images_B1HW: Tensor, points_BK2: Tensor
) -> Outputs:
    """Add the gradient of one pass's share of the loss, and return that share."""
    with normalised_apart(network, one.groups):
        logits_BKHW = run_network(network, images_B1HW, spec)
    loss = objective(logits_BKHW, points_BK2).mean() * one.share
    loss.backward()
    return (loss.detach(),)


def _require_finite(value: float, name: str, epochs_done: int, rate: float) -> None:
    if not math.isfinite(value):
        raise Diverged(f"the {name} is {value} in epoch {epochs_done + 1} at learning rate {rate:g}; lower finetune.lr")
