"""The base of methods that train the whole network to predict something at every pixel: DDPM, denoising, masking.

They differ in what the network sees and predicts alone: loss, clipping, average of the weights and snapshot are those
of the paper's DDPM for all of them. Deviation: the average's decay starts low and rises to `ema`, see `WeightAverage`.
Shapes: B images, H and W of the square image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.network.base import Denoiser
from ablate.pretrain.base import PretrainingMethod
from ablate.space import NETWORKS, Pretraining, WholeNetwork

WholeSpec = TypeVar("WholeSpec", bound=WholeNetwork)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}
"""Distances between what is predicted and what is true, by their name in `pretrain.loss`."""


class WeightAverage(nn.Module):
    """Exponential moving average of a network's parameters: diffusers' EMAModel as part of a state.

    The decay after step n is min(decay, n / (9 + n)) and 0 at n = 1, EMAModel's own start: with a constant 0.995 a
    pre-training of a few hundred steps would mostly return its random initial weights. It depends on n alone.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        from diffusers.training_utils import EMAModel

        self._average: Any = EMAModel(network.parameters(), decay=decay, foreach=True)

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
        self.clip = self.spec.clip
        self.average = WeightAverage(self.network, self.spec.ema)
        self.distance = LOSSES[self.spec.loss]

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
