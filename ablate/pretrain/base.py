"""The interface between a pre-training method and the training loop, and the base of self-supervised methods.

Shapes: B images of one optimizer step or of one forward pass, H and W of the square image.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from ablate.network.base import Head, Network
from ablate.network.building import build_network
from ablate.network.weights import load_weights, read_weights
from ablate.pretrain.views import View, random_view
from ablate.space import Pretrain, Pretraining, SelfSupervised

AnySpec = TypeVar("AnySpec", bound=Pretrain)
ViewsSpec = TypeVar("ViewsSpec", bound=SelfSupervised)


class PretrainingMethod(nn.Module, ABC, Generic[AnySpec]):
    """A pre-training method: the network it trains, its loss, and what follows an optimizer step.

    `PretrainingMethod[DdpmSpec]` is a method whose fields are those of `DdpmSpec`. Everything it needs to go on is in
    `state_dict()`. Whatever it does is a function of the pre-training's fields, of the step and of the tensors it is
    given: nothing depends on the number of steps, and no method keeps a generator. Methods are built by
    `ablate.pretrain.build_method`, which seeds their heads.
    """

    spec: AnySpec
    network: Network

    head: ClassVar[Head] = "landmarks"
    clip: float | None = None
    """Gradient values are clipped to this on either side of zero; None: they are not clipped."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__()
        fields = pretraining.fields
        self.pretraining = pretraining
        self.spec = cast(AnySpec, fields)  # the row of `METHODS` pairs the class of the fields with this class
        self.network = build_network(
            pretraining.network,
            num_outputs=1,
            image_size=pretraining.image_size,
            seed=fields.seed,
            head=self.head,
            precision=pretraining.precision,
        )
        if fields.weights is not None:
            load_weights(self.network, read_weights(fields.weights), fields.weights)

    @abstractmethod
    def prepare(self, images_B1HW: Tensor, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """Make all random draws of one optimizer step.

        Args:
            images_B1HW: all images of the step, in [0, 1].
            generator: on the images' device; seeded for this step.
            step: counted from 1.

        Returns:
            Tensors whose first dimension is B: the loop slices them into forward passes.
        """

    @abstractmethod
    def loss(self, *prepared: Tensor, groups: int = 1) -> Tensor:
        """Return the loss, a mean over the images of `prepared`, slices of what `prepare` returned.

        They are `groups` groups of equally many images, and the loss is the mean of what it is of each group alone:
        see `ablate.training.groups`, also for batch norm, which the loop sees to.
        """

    def forget_passes(self) -> None:
        """Forget the forward passes since the last optimizer step, which are made again."""

    def after_step(self, step: int) -> None:
        """Do what follows optimizer step `step`, counted from 1: moving averages, queue, centre."""

    def snapshot(self) -> dict[str, Tensor]:
        """Return the weights that fine-tuning starts from, for `Network.load_initial`."""
        return self.network.encoder_state()


class SelfSupervision(PretrainingMethod[ViewsSpec]):
    """Base of the methods that compare augmented views of an image.

    Every method draws its two views, of the size of the image, in the same way (`ablate.pretrain.views`), so that
    methods are compared and not their augmentations. The part of the network that is not trained is dropped.
    """

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        self.network.keep_encoder_only()
        self.view = View(size=pretraining.image_size, min_area=self.spec.min_crop)

    def prepare(self, images_B1HW: Tensor, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """Return two views (B, 1, H, W) of every image."""
        return (
            random_view(images_B1HW, self.view, generator),
            random_view(images_B1HW, self.view, generator),
        )


class MomentumBranch(nn.Module):
    """A slowly moving copy of a network's encoder and of a head: (B, 1, H, W) to (B, projection).

    Its weights follow by `momentum * own + (1 - momentum) * other` after each optimizer step. Batch statistics are
    those of its own forward passes, as in MoCo.
    """

    def __init__(self, network: Network, head: nn.Module, head_copy: nn.Module | None = None) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.head = copy.deepcopy(head) if head_copy is None else head_copy
        self.head.load_state_dict(head.state_dict())
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images_B1HW: Tensor) -> Tensor:
        """Return the projections (B, projection) without a graph."""
        projected: Tensor = self.head(self.network.features(images_B1HW))
        return projected

    @torch.no_grad()
    def follow(self, network: Network, head: nn.Module, momentum: float) -> None:
        """Move towards the trained network and head."""
        for own, other in ((self.network, network), (self.head, head)):
            torch._foreach_lerp_(list(own.parameters()), list(other.parameters()), 1 - momentum)
