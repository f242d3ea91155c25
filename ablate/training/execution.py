"""How optimizer steps are executed on a kind of device: what it saves there, and when the loss is read.

On a CPU everything is done as it is written down, so that numbers keep their bits. On a GPU the host must not wait for
the device: a step is launched while the one before it still runs, the loss of a step is read when the next one has been
launched, and an update that a loss which is not finite would make is refused on the device itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Execution:
    """What is done on one kind of device."""

    fused: bool = False  # torch's fused AdamW, which can refuse an update on the device
    reads_late: bool = False  # a step's loss is read after the next step has been launched; needs `fused`
    memory_format: torch.memory_format = torch.contiguous_format  # of weights with four dimensions


EXECUTIONS: Mapping[str, Execution] = {
    "cpu": Execution(),
    "cuda": Execution(fused=True, reads_late=True, memory_format=torch.channels_last),
}
"""The execution on each type of torch's devices."""


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device, its weights in the memory format of the device's execution; return it."""
    return module.to(device).to(memory_format=EXECUTIONS[device.type].memory_format)


def adamw(parameters: Iterable[nn.Parameter], device: torch.device, **options: float) -> torch.optim.AdamW:
    """Return the optimizer of every training.

    Args:
        parameters: on `device`.
        device: where to train.
        options: `lr` and `weight_decay`.
    """
    return torch.optim.AdamW(parameters, fused=EXECUTIONS[device.type].fused or None, **options)  # type: ignore[arg-type]


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from an optimizer's saved state, its tensors in the memory format of their parameters.

    How the update is computed stays that of this device, whatever device the state is from.
    """
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    own = [{**saved, "fused": group["fused"]} for saved, group in groups]
    optimizer.load_state_dict({**state, "param_groups": own})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array on a device, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Losses:
    """The losses of optimizer steps, each handed to `note` as a number: at once or, on a GPU, one step late.

    `note` raises `Diverged` where a loss is not finite. Where it is called at once, that is before the update; where it
    is called late, `step` has refused the update on the device. Call `catch_up` before a state is saved and wherever
    all losses must have been noted.
    """

    def __init__(self, device: torch.device, note: Callable[[int, float], None]) -> None:
        self._late, self._note = EXECUTIONS[device.type].reads_late, note
        self.noted = 0
        """The last step whose loss has been noted; 0 before the first."""
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def step(self, optimizer: torch.optim.Optimizer, step: int, loss: Tensor, clip: float | None = None) -> None:
        """Note the loss of optimizer step `step` and do the update, with gradient values between -`clip` and `clip`."""
        if not self._late:
            self._read(step, loss)
        else:
            optimizer.found_inf = (~loss.isfinite()).float()  # type: ignore[attr-defined]
        if clip is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_value_(parameters, clip)
        optimizer.step()
        if self._late:
            self.catch_up()
            self._pending = (step, *_on_its_way(loss))

    def catch_up(self) -> None:
        """Note the loss that has not been read yet, if there is one."""
        if self._pending is not None:
            (step, loss, copied), self._pending = self._pending, None
            if copied is not None:
                copied.synchronize()
            self._read(step, loss)

    def _read(self, step: int, loss: Tensor) -> None:
        self._note(step, float(loss))
        self.noted = step


def _on_its_way(loss: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Return where a loss will stand in the host's memory, and what tells that it stands there."""
    if loss.device.type != "cuda":
        return loss, None
    host = torch.empty((), dtype=loss.dtype, pin_memory=True)
    host.copy_(loss, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return host, copied
