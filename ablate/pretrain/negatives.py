"""Methods whose negatives are the other images of a group, or of a whole optimizer step.

With `negatives: step` the `batch_size * accumulate` images of a step are compared with one another, while batch
statistics stay those of a group. Where they do not go through the network in one pass, gradients are exact all the
same, with the memory of one pass: all passes are first made without a graph; the loss of all their vectors gives each
vector its gradient; then each pass is made again, with a graph, and goes on backward from the gradients of its vectors
(Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup", section 3). Both times a
pass draws the same random numbers, and running statistics are those of the first time.

Shapes: B images, H and W of the square image, D channels of the projection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ablate.pretrain.base import SelfSupervision
from ablate.space import Contrasted
from ablate.training import KeptStatistics, Pass, apart, global_seed, normalised_apart

ContrastedSpec = TypeVar("ContrastedSpec", bound=Contrasted)


class Contrastive(SelfSupervision[ContrastedSpec]):
    """Base of the methods that tell the other view of an image from views of other images."""

    @abstractmethod
    def embed(self, *views_B1HW: Tensor) -> tuple[Tensor, ...]:
        """Return the vectors (B, D) that are trained, of both views."""

    def targets(self, *views_B1HW: Tensor) -> tuple[Tensor, ...]:
        """Return vectors (B, D) without a graph that the trained ones are compared with beside each other."""
        return ()

    @abstractmethod
    def compare(self, *vectors_BD: Tensor) -> Tensor:
        """Return the loss, a mean over images, of what `embed` and `targets` returned.

        Images that see one another are B; groups that do not are a leading dimension, see `ablate.training.apart`.
        """

    @property
    def sees_the_step(self) -> bool:
        """Whether all images of an optimizer step are compared with one another."""
        return self.spec.negatives == "step"

    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the loss of two views, each (B, 1, H, W), of a group's images or of all the images of a step."""
        vectors = (*self.embed(*prepared), *self.targets(*prepared))
        seen_apart = 1 if self.sees_the_step else groups
        return self.compare(*(apart(vector_BD, seen_apart) for vector_BD in vectors))


def backward_through_vectors(
    method: Contrastive[Any], prepared: Sequence[Tensor], passes: Sequence[Pass], step: int
) -> Tensor:
    """Add the gradients of one optimizer step whose images are all compared with one another, and return its loss.

    Args:
        method: one that `sees_the_step`.
        prepared: what it prepared for the step.
        passes: the forward passes of the step.
        step: counted from 1.
    """
    device, seed = prepared[0].device, method.pretraining.fields.seed

    def views(one: Pass) -> list[Tensor]:
        return [tensor[one.part] for tensor in prepared]

    trained, others = list[tuple[Tensor, ...]](), list[tuple[Tensor, ...]]()
    with torch.no_grad():
        for number, one in enumerate(passes):
            method.before_pass()
            with global_seed(device, seed, "dropout", step, number), normalised_apart(method, one.groups):
                trained.append(method.embed(*views(one)))
                others.append(method.targets(*views(one)))
    vectors = [torch.cat(parts).requires_grad_() for parts in zip(*trained, strict=True)]
    loss = method.compare(*vectors, *(torch.cat(parts) for parts in zip(*others, strict=True)))
    gradients = torch.autograd.grad(loss, vectors)

    statistics = KeptStatistics(method)
    for number, one in enumerate(passes):
        with global_seed(device, seed, "dropout", step, number), normalised_apart(method, one.groups):
            again = method.embed(*views(one))
        torch.autograd.backward(again, [gradient_BD[one.part] for gradient_BD in gradients])
    statistics.restore()
    return loss.detach()
