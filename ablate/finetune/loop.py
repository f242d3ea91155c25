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
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ablate.datasets import Dataset, Split
from ablate.errors import InputError
from ablate.finetune import augment
from ablate.finetune.losses import LOSSES
from ablate.network.base import Network
from ablate.network.building import build_network
from ablate.network.evaluation import as_input, logits_in_batches, read_points, run_network
from ablate.network.heatmaps import targets, to_file, to_network
from ablate.network.metrics import physical_errors
from ablate.space import FinetuneSpec, NetworkSpec, Selection, TrialSpec
from ablate.training import (
    Checkpoint,
    CurvePoint,
    Diverged,
    Interrupted,
    Progress,
    Report,
    State,
    Stopwatch,
    curve_of,
    curve_state,
    micro_batches,
    seed_of,
    seeded,
    stream_order,
)

PLATEAU_THRESHOLD = 1e-4  # relative; torch's default for ReduceLROnPlateau, as the authors left it
PLATEAU_SMALLEST_CHANGE = 1e-8  # of the learning rate; torch's default


@dataclass(frozen=True)
class FinetuneOutcome:
    """What fine-tuning ends with."""

    best_state: dict[str, Tensor]  # the network's state_dict after the best epoch, on the CPU
    best_epoch: int  # counted from 1
    epochs: int  # done
    val_loss: float  # of the best epoch
    val_mre: float  # of the best epoch, protocol physical, in the data set's unit
    curve: list[CurvePoint]  # per epoch: loss, val_loss, val_mre, lr
    seconds: float  # all attempts together


# --- the training images ----------------------------------------------------------------------------


def select_shots(selection: Selection, num_train: int, *, dataset: str) -> np.ndarray:
    """Return the ascending indices of the annotated training images that are the shots.

    Without a draw they are the first by file name (paper). Fewer shots of a draw are a part of more.

    Args:
        selection: which shots.
        num_train: annotated training images.
        dataset: name of the data set, for the message.

    Raises:
        InputError: there are fewer annotated training images than shots.
    """
    if selection.shots == "all":
        return np.arange(num_train)
    if selection.shots > num_train:
        raise InputError(
            f"shots must be at most {num_train}, the number of annotated training images of {dataset}; "
            f"got {selection.shots}; lower it or say all"
        )
    if selection.draw is None:
        return np.arange(selection.shots)
    order: np.ndarray = np.random.default_rng(seed_of(selection.draw, "shots")).permutation(num_train)
    return np.sort(order[: selection.shots])


def check_finetune(spec: TrialSpec, num_train: int) -> None:
    """Refuse what would only fail once fine-tuning runs; needs no memory for weights.

    Raises:
        InputError: too few training images for `shots`; or a forward pass would hold a single image whose
            deepest feature map is one pixel, from which batch normalisation can estimate nothing.
    """
    num_images = len(select_shots(spec.selection, num_train, dataset=spec.dataset))
    batch_size = min(spec.finetune.batch_size, num_images)
    alone = batch_size == 1 or num_images % batch_size == 1
    if alone and not _takes_one_image(spec.network, spec.image_size):
        raise InputError(
            f"finetune.batch_size {spec.finetune.batch_size} leaves one of {num_images} images (shots {spec.shots}) "
            f"alone in a forward pass, and at image_size {spec.image_size} the batch normalisation of "
            f"{spec.network.label} needs at least two; choose a batch_size that does not leave a single image, or "
            f"an image_size of at least {2 * spec.image_size}"
        )


@functools.lru_cache(maxsize=64)
def _takes_one_image(network: NetworkSpec, image_size: int) -> bool:
    with torch.device("meta"):
        built = build_network(network, num_outputs=2, image_size=image_size, seed=0).train()
        try:
            built(torch.empty(1, 1, image_size, image_size))
        except ValueError:  # torch: Expected more than 1 value per channel when training
            return False
    return True


@dataclass(frozen=True)
class Images:
    """Images on the device, and their landmarks in network pixels."""

    images_NHW: Tensor  # uint8
    points_NK2: Tensor  # float32, NaN = not annotated

    @classmethod
    def of(cls, split: Split, chosen: np.ndarray, image_size: int, device: torch.device) -> Images:
        """Put the `chosen` images of `split` on `device`."""
        points_NK2 = to_network(split.points_NK2[chosen], split.sizes_N2[chosen], image_size)
        return cls(
            torch.from_numpy(split.images_NHW[chosen]).to(device),
            torch.from_numpy(points_NK2).float().to(device),
        )


# --- learning rate ----------------------------------------------------------------------------------


def learning_rate(spec: FinetuneSpec, val_losses: Sequence[float], step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0), a function of what is known before it.

    plateau: falls by `plateau_factor` when the validation loss has not improved for more than
    `plateau_patience` epochs, as torch's ReduceLROnPlateau with its other defaults (paper). linear: from `lr` at the
    first step to zero after the last of `total_steps`, the steps of all `epochs`. constant: `lr`.
    """
    if spec.schedule == "linear":
        return spec.lr * (1 - step / total_steps)
    if spec.schedule == "constant":
        return spec.lr
    rate, best, waited = spec.lr, math.inf, 0
    for loss in val_losses:
        if loss < best * (1 - PLATEAU_THRESHOLD):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > spec.plateau_patience:
            lower, waited = rate * spec.plateau_factor, 0
            rate = lower if rate - lower > PLATEAU_SMALLEST_CHANGE else rate
    return rate


# --- the loop ---------------------------------------------------------------------------------------


@dataclass
class _Position:
    """How far fine-tuning has come; with weights and optimizer, all that going on needs."""

    epoch: int = 0  # epochs done
    window: int = 0  # windows done of the epoch under way
    loss_sum: float = 0.0  # over the images of those windows
    val_losses: list[float] = field(default_factory=list)  # per epoch done
    best_epoch: int = 0  # counted from 1
    best_loss: float = math.inf
    best_mre: float = math.nan
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def finish_epoch(self, network: Network, val_loss: float, val_mre: float) -> None:
        """Go on to the next epoch, and keep the weights if its validation loss is the least so far."""
        self.epoch, self.window, self.loss_sum = self.epoch + 1, 0, 0.0
        self.val_losses.append(val_loss)
        if val_loss < self.best_loss:
            self.best_epoch, self.best_loss, self.best_mre = self.epoch, val_loss, val_mre
            weights = network.state_dict()
            self.best_state = {name: weights[name].detach().to("cpu", copy=True) for name in weights}

    def done(self, spec: FinetuneSpec) -> bool:
        """Whether all epochs are done or the last `patience` of them brought no improvement."""
        return self.epoch >= spec.epochs or self.epoch - self.best_epoch >= spec.patience


def finetune(
    spec: TrialSpec,
    network: Network,
    data: Dataset,
    *,
    device: torch.device | str,
    state: State | None,
    checkpoint: Checkpoint,
    report: Report,
    until: float = 1.0,
) -> FinetuneOutcome:
    """Fine-tune the whole of `network` on the trial's shots and leave it with the weights of the best epoch.

    As in the paper: AdamW, a validation after each epoch, the weights of least validation loss kept, an end after
    `patience` epochs without improvement. Deviation: where the last window of an epoch is not full, its gradient is
    the mean over its images; the authors divide by `accumulate` all the same.

    Args:
        spec: the trial.
        network: with its initial weights; moved to `device` and trained in place.
        data: prepared at `spec.image_size`.
        device: where to train.
        state: what an earlier attempt saved, None to begin; `network`'s weights do not matter then.
        checkpoint: is handed the state when it is due, after any optimizer step, and when `report` asks to stop.
        report: called after each optimizer step with the epochs and optimizer steps done.
        until: share of the optimizer steps after which to pause, at the next validation, with the state handed to
            `checkpoint`; the outcome is that so far.

    Raises:
        Interrupted: `report` asked to stop; the state is saved.
        Diverged: a training or validation loss is not finite.
        InputError: see `check_finetune`.
    """
    check_finetune(spec, len(data.train.names))
    device = torch.device(device)
    chosen = select_shots(spec.selection, len(data.train.names), dataset=spec.dataset)
    train = Images.of(data.train, chosen, spec.image_size, device)
    val = Images.of(data.val, np.arange(len(data.val.names)), spec.image_size, device)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=spec.finetune.lr, weight_decay=spec.finetune.weight_decay)
    at, curve, watch = _Position(), list[CurvePoint](), Stopwatch()
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        at, curve, watch = _Position(**state["position"]), curve_of(state["curve"]), Stopwatch(state["seconds"])

    num_images = len(chosen)
    window_size = spec.finetune.batch_size * spec.finetune.accumulate
    num_windows = math.ceil(num_images / window_size)
    pause = math.ceil(until * spec.finetune.epochs)
    while not at.done(spec.finetune):
        if at.window == 0 and at.epoch >= pause:
            break
        start_s = time.monotonic()
        step = at.epoch * num_windows + at.window
        first = at.window * window_size
        order = stream_order(num_images, spec.seed, at.epoch * num_images + first, min(window_size, num_images - first))
        rate = learning_rate(spec.finetune, at.val_losses, step, num_windows * spec.finetune.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        indices_B = torch.from_numpy(order).to(device)
        loss = accumulate_gradients(spec, network, train.images_NHW[indices_B], train.points_NK2[indices_B], step)
        _require_finite(loss, "loss", at.epoch, rate)
        optimizer.step()
        step += 1
        at.window += 1
        at.loss_sum += loss * len(order)
        metrics = {"loss": at.loss_sum / (first + len(order)), "lr": rate}
        images_per_second = len(order) / max(time.monotonic() - start_s, 1e-9)
        if at.window == num_windows:
            metrics["val_loss"], metrics["val_mre"] = validate(spec, network, val, data.val)
            _require_finite(metrics["val_loss"], "validation loss", at.epoch, rate)
            at.finish_epoch(network, metrics["val_loss"], metrics["val_mre"])
            curve += [CurvePoint(step, at.epoch, name, value, watch.seconds) for name, value in metrics.items()]
        told = Progress("finetune", at.epoch, spec.finetune.epochs, metrics, images_per_second, optimizer_steps=step)
        stop = report(told)
        pauses = until < 1 and at.window == 0 and at.epoch >= pause
        if stop or pauses or checkpoint.due():
            now: State = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "position": vars(at),
                "curve": curve_state(curve),
                "seconds": watch.seconds,
            }
            checkpoint.save(step, now)
        if stop:
            raise Interrupted
    network.load_state_dict(at.best_state)
    return FinetuneOutcome(at.best_state, at.best_epoch, at.epoch, at.best_loss, at.best_mre, curve, watch.seconds)


def accumulate_gradients(spec: TrialSpec, network: Network, images_NHW: Tensor, points_NK2: Tensor, step: int) -> float:
    """Add the gradient of the mean loss over one window's augmented images, and return that loss.

    The window is augmented as a whole, so for a network without batch statistics the result does not depend on
    how `finetune.batch_size` splits it into forward passes.

    Args:
        spec: the trial.
        network: set to training mode.
        images_NHW: uint8.
        points_NK2: network pixels; NaN = not annotated.
        step: optimizer steps done; augmentation and dropout are drawn for it.
    """
    network.train()
    device = images_NHW.device
    affine = augment.draw(
        spec.finetune.augment, len(images_NHW), spec.image_size, seeded("cpu", spec.seed, "augment", step)
    )
    images_N1HW, points_NK2 = augment.apply(affine, as_input(images_NHW), points_NK2)
    total = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(spec.seed, "dropout", step))  # some encoders drop features at random
        for part, share in micro_batches(len(images_N1HW), spec.finetune.batch_size):
            maps_BKHW, annotated_BK = draw_targets(spec, points_NK2[part])
            logits_BKHW = run_network(network, images_N1HW[part], spec)
            loss = LOSSES[spec.finetune.loss](logits_BKHW, maps_BKHW, annotated_BK).mean() * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
    return float(total)


def draw_targets(spec: TrialSpec, points_BK2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the trial's target maps (B, K, H, W) of points in network pixels, and the mask of annotated ones."""
    return targets(points_BK2, spec.image_size, sigma=spec.finetune.sigma, shape=spec.finetune.target)


def validate(spec: TrialSpec, network: Network, images: Images, split: Split) -> tuple[float, float]:
    """Return the mean loss over the images of `split` and their MRE in the data set's unit (protocol physical).

    The MRE is NaN where no image is annotated.
    """
    loss_N = torch.zeros(len(images.images_NHW), device=images.images_NHW.device)
    points_NK2 = torch.zeros_like(images.points_NK2)
    for part, logits_BKHW in logits_in_batches(network, images.images_NHW, spec, device=images.images_NHW.device):
        loss_N[part] = LOSSES[spec.finetune.loss](logits_BKHW, *draw_targets(spec, images.points_NK2[part]))
        points_NK2[part] = read_points(logits_BKHW, spec, spec.evaluate.decode)
    predicted_NK2 = to_file(points_NK2.cpu().double().numpy(), split.sizes_N2, spec.image_size)
    errors_NK = physical_errors(predicted_NK2, split.points_NK2, split.unit_per_pixel_N2)
    known = errors_NK[~np.isnan(errors_NK)]
    return float(loss_N.mean()), float(known.mean()) if known.size else math.nan


def _require_finite(value: float, name: str, epochs_done: int, rate: float) -> None:
    if not math.isfinite(value):
        raise Diverged(f"the {name} is {value} in epoch {epochs_done + 1} at learning rate {rate:g}; lower finetune.lr")
