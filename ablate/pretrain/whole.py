"""The base of methods that train the whole network to predict something at every pixel: DDPM, denoising, masking.

They differ in what the network sees and predicts alone: loss, clipping, average of the weights and snapshot are those
of the paper's DDPM for all of them. Deviations, each with a field for the authors' way: the average's decay starts low
and rises to `ema` (`ema_ramp`), the mean gradient is clipped, not the sum over the passes (`clip_on`), every step takes
as many images (`epoch_end`), and images are not augmented (`augment`). Shapes: B images, H and W of the square image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.network import augment
from ablate.network.base import Denoiser
from ablate.pretrain.base import PretrainingMethod
from ablate.space import NETWORKS, AugmentSpec, Pretraining, WholeNetwork

WholeSpec = TypeVar("WholeSpec", bound=WholeNetwork)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}
"""Distances between what is predicted and what is true, by their name in `pretrain.loss`."""


class WeightAverage(nn.Module):
    """Exponential moving average of a network's parameters: diffusers' EMAModel as part of a state.

    With a ramp the decay after step n is min(decay, n / (9 + n)) and 0 at n = 1, EMAModel's own start: with a constant
    0.995, from the initial weights on, a pre-training of a few hundred steps would mostly return these. It depends on n
    alone.
    """

    def __init__(self, network: nn.Module, decay: float, *, ramp: bool = True) -> None:
        super().__init__()
        from diffusers.training_utils import EMAModel

        constant = {} if ramp else {"min_decay": decay, "update_after_step": -1}
        self._average: Any = EMAModel(network.parameters(), decay=decay, foreach=True, **constant)

    def follow(self, network: nn.Module) -> None:
        """Take in the parameters after one more optimizer step."""
        self._average.step(network.parameters())

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the averaged parameters, and the network's other tensors as they are, by name."""
        names = [name for name, _ in network.named_parameters()]
        return {**network.state_dict(), **dict(zip(names, self._average.shadow_params, strict=True))}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the averages and the number of steps; called by `state_dict`."""
        state: dict[str, Any] = self._average.state_dict()
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from `get_extra_state`; called by `load_state_dict`."""
        device = self._average.shadow_params[0].device
        self._average.load_state_dict(state)
        self._average.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WeightAverage:
        """Follow the module to a device; called by `to`."""
        self._average.shadow_params = [fn(tensor) for tensor in self._average.shadow_params]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class WholeNetworkTraining(PretrainingMethod[WholeSpec]):
    """A method that trains a `Denoiser` from its input to its output; the snapshot holds the averaged weights."""

    head = "noise"
    network: Denoiser  # as all kinds of network are that the rows of `METHODS` allow

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        spec = self.spec
        self.clip = spec.clip
        self.average = WeightAverage(self.network, spec.ema, ramp=spec.ema_ramp)
        self.distance = LOSSES[spec.loss]
        moved = spec.augment
        self.augment = AugmentSpec(shift=moved.shift, scale=0.0, rotate=moved.rotate, probability=moved.probability)

    def window(self, num_images: int, step: int) -> tuple[int, int]:
        """Return the images of a step; `epoch_end: short` leaves images for the end of a pass and drops some there."""
        if self.spec.epoch_end == "full":
            return super().window(num_images, step)
        groups = num_images // self.spec.batch_size
        if not groups:
            raise ValueError(f"a pass needs a whole group of {self.spec.batch_size} images; there are {num_images}")
        passes_done, step_of_pass = divmod(step - 1, math.ceil(groups / self.spec.accumulate))
        first = step_of_pass * self.spec.accumulate
        number = min(groups - first, self.spec.accumulate)
        return passes_done * num_images + first * self.spec.batch_size, number * self.spec.batch_size

    def clip_of(self, num_groups: int) -> float | None:
        """Return what values of the mean gradient are clipped to, which clips the sum where `clip_on` says so."""
        return self.spec.clip / num_groups if self.spec.clip_on == "sum" else self.spec.clip

    def augmented(self, images_B1HW: Tensor, generator: torch.Generator) -> Tensor:
        """Return images, some of them shifted and rotated; nothing is drawn where there is no `augment`."""
        if not (self.augment.shift or self.augment.rotate):
            return images_B1HW
        affine = augment.draw(self.augment, len(images_B1HW), images_B1HW.shape[3], generator)
        no_points = images_B1HW.new_zeros(len(images_B1HW), 0, 2)
        return augment.apply(affine, images_B1HW, no_points)[0]

    def restored(self, scaled_B1HW: Tensor) -> Tensor:
        """Return what the network makes of spoilt images (B, 1, H, W), which are scaled already.

        It is told of no timestep but the 0 that fine-tuning and self-supervision tell, where there are timesteps.
        """
        timesteps_B = None
        if NETWORKS[self.network.spec.kind].has_timesteps:
            timesteps_B = torch.zeros(len(scaled_B1HW), dtype=torch.long, device=scaled_B1HW.device)
        return self.network.denoise(scaled_B1HW, timesteps_B)

    def after_step(self, step: int) -> None:
        """Move the average of the weights."""
        self.average.follow(self.network)

    def snapshot(self) -> dict[str, Tensor]:
        """Return the averaged weights of the whole network."""
        return self.average.tensors(self.network)
