"""Groups of images that are computed as if each had a forward pass of its own.

`batch_size` images are one group: batch statistics are taken and negatives are chosen within it, so it is part of what
a trial is. How many groups go through a network in one pass is not: gradients, running statistics and losses are those
of one pass for each group. Only what sums add in differs, and so the last bits of a result.

Shapes: G groups of a pass, B images of each, C channels, D anything behind the images.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Pass:
    """One forward pass of an optimizer step."""

    part: slice  # of the step's images
    groups: int  # of equally many images
    share: float  # of the step's images


def forward_passes(num_images: int, batch_size: int, groups: int = 1) -> Iterator[Pass]:
    """Yield the forward passes of one optimizer step, of at most `groups` groups of `batch_size` images each.

    What is left over for less than a whole group has a pass of its own. A loss that is a mean over the images of a
    pass, times its share, summed over the passes, is the mean over the step's images.
    """
    whole = num_images // batch_size * batch_size
    for start in range(0, whole, batch_size * groups):
        stop = min(start + batch_size * groups, whole)
        yield Pass(slice(start, stop), (stop - start) // batch_size, (stop - start) / num_images)
    if whole < num_images:
        yield Pass(slice(whole, num_images), 1, (num_images - whole) / num_images)


def apart(images_ND: Tensor, groups: int) -> Tensor:
    """Return the images of a pass as (G, B, D), for losses that compare images; of one group as they are, (B, D)."""
    return images_ND if groups == 1 else _split(images_ND, groups)


def by_view(vectors_ND: Tensor, num_views: int, groups: int) -> list[Tensor]:
    """Return each view's vectors (G * B, D) of what `join_views` joined."""
    return list(_split(vectors_ND, groups, num_views).transpose(0, 1).flatten(1, 2))


def join_views(views_VND: Sequence[Tensor], groups: int) -> Tensor:
    """Return several views (G * B, D) of a pass's images as one batch, in which the views of a group are together."""
    return torch.cat([_split(view_ND, groups) for view_ND in views_VND], 1).flatten(0, 1)


def _split(images_ND: Tensor, *parts: int) -> Tensor:
    """Return the images in `parts` equal parts, and those in further ones: (*parts, B, D)."""
    return images_ND.reshape(*parts, -1, *images_ND.shape[1:])


# --- batch statistics -------------------------------------------------------------------------------


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the layers of a module that normalise by the statistics of a batch."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextlib.contextmanager
def normalised_apart(module: nn.Module, groups: int) -> Iterator[None]:
    """Let batch norm take its statistics within each of the `groups` equal parts of what passes through `module`.

    Running statistics move at the end, as they would in passes of their own: by one group after the other, and within
    a group by one call of the layer after the other. In evaluation, and for one group, nothing changes.
    """
    normalisations = [_Normalisation(layer, groups) for layer in batch_norms(module)] if groups > 1 else []
    for one in normalisations:
        one.layer.forward = one
    try:
        yield
        shares = functools.lru_cache(_shares)  # they are few, and go with the context
        for one in normalisations:
            one.settle(shares)
    finally:
        for one in normalisations:
            del one.layer.forward  # of the instance: its class's is seen again


class _Normalisation:
    """Stands for the `forward` of a batch norm layer while passes hold several groups."""

    def __init__(self, layer: Any, groups: int) -> None:
        self.layer, self.groups = layer, groups
        self._forward: Callable[[Tensor], Tensor] = layer.forward
        self._is_plain = type(layer).forward is _BatchNorm.forward and layer.affine and layer.track_running_stats
        self._seen: list[Tensor] = []  # of each call: means and unbiased variances (2, G, C)

    def __call__(self, input_ND: Tensor) -> Tensor:
        """Return what the layer makes of each group alone."""
        if not self.layer.training:
            return self._forward(input_ND)
        return self._side_by_side(input_ND) if self._is_plain else self._one_by_one(input_ND)

    def _side_by_side(self, input_ND: Tensor) -> Tensor:
        """Normalise groups as if each had channels of its own, (B, G * C, ...), in one call whatever their number."""
        layer, groups = self.layer, self.groups
        channels_last = input_ND.ndim == 4 and input_ND.is_contiguous(memory_format=torch.channels_last)
        if channels_last:
            wide = _split(input_ND.permute(0, 2, 3, 1), groups).movedim(0, 3).flatten(3).permute(0, 3, 1, 2)
        else:
            wide = _split(input_ND, groups).movedim(0, 1).flatten(1, 2)
        mean, variance = self._statistics().flatten(1)
        weight, bias = layer.weight.repeat(groups), layer.bias.repeat(groups)
        wide = F.batch_norm(wide, mean, variance, weight, bias, True, 1.0, layer.eps)
        channels = (groups, layer.num_features)
        if channels_last:
            wide = wide.permute(0, 2, 3, 1)
            return wide.reshape(*wide.shape[:3], *channels).movedim(3, 0).flatten(0, 1).permute(0, 3, 1, 2)
        return wide.reshape(len(wide), *channels, *wide.shape[2:]).movedim(1, 0).flatten(0, 1)

    def _one_by_one(self, input_ND: Tensor) -> Tensor:
        """Call the layer for one group after the other, which any kind of batch norm allows."""
        layer, groups = self.layer, input_ND.chunk(self.groups)
        if not layer.track_running_stats:
            return torch.cat([self._forward(group_BD) for group_BD in groups])
        before = layer.running_mean, layer.running_var, layer.num_batches_tracked, layer.momentum
        layer.num_batches_tracked, layer.momentum = torch.zeros_like(layer.num_batches_tracked), 1.0
        outputs = []
        try:
            for group_BD, mean_C, variance_C in zip(groups, *self._statistics(), strict=True):
                layer.running_mean, layer.running_var = mean_C, variance_C
                outputs.append(self._forward(group_BD))
        finally:
            layer.running_mean, layer.running_var, layer.num_batches_tracked, layer.momentum = before
        return torch.cat(outputs)

    def _statistics(self) -> Tensor:
        """Return where a call writes its statistics (2, G, C): a momentum of 1 puts them in place of running ones."""
        self._seen.append(self.layer.running_mean.new_zeros((2, self.groups, self.layer.num_features)))
        return self._seen[-1]

    @torch.no_grad()
    def settle(self, shares: Callable[[int, float, torch.device, torch.dtype], Tensor]) -> None:
        """Move the running statistics by what was seen; `shares` is `_shares`."""
        if not self._seen:
            return
        layer = self.layer
        means_NC, variances_NC = torch.stack(self._seen, 2).flatten(1, 2)  # N = G * calls, those of a group together
        num_seen = len(means_NC)
        for running_C, seen_NC in ((layer.running_mean, means_NC), (layer.running_var, variances_NC)):
            if layer.momentum is None:  # the average over all batches so far
                before = layer.num_batches_tracked.to(running_C.dtype)
                running_C.mul_(before).add_(seen_NC.sum(0)).div_(before + num_seen)
            else:
                shares_N = shares(num_seen, layer.momentum, running_C.device, running_C.dtype)
                running_C.addmv_(seen_NC.T, shares_N, beta=(1 - layer.momentum) ** num_seen)
        layer.num_batches_tracked.add_(num_seen)


def _shares(num_seen: int, momentum: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return what each of several statistics weighs in running ones that moved by one after the other."""
    return momentum * (1 - momentum) ** torch.arange(num_seen - 1, -1, -1, device=device, dtype=dtype)


class KeptStatistics:
    """The running statistics of a module's batch norm as they were before an optimizer step."""

    def __init__(self, module: nn.Module) -> None:
        live: dict[torch.dtype, list[Tensor]] = {}  # those of one type are copied in one call
        for layer in batch_norms(module):
            for buffer in layer.buffers(recurse=False):
                live.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [(buffers, [buffer.clone() for buffer in buffers]) for buffers in live.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them as they are."""
        for live, kept in self._pairs:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was copied."""
        for live, kept in self._pairs:
            torch._foreach_copy_(live, kept)
