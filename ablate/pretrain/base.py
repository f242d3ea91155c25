"""The interface between a pre-training method and the training loop, and the base of self-supervised methods.

Shapes: B images of one optimizer step or of one forward pass, H and W of the square image.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from ablate.network.base import Head, Network
from ablate.network.building import build_network
from ablate.network.weights import load_weights, read_weights
from ablate.pretrain.views import View, random_view
from ablate.space import Momentum, Pretrain, Pretraining, SelfSupervised

AnySpec = TypeVar("AnySpec", bound=Pretrain)
ViewsSpec = TypeVar("ViewsSpec", bound=SelfSupervised)
MomentumSpec = TypeVar("MomentumSpec", bound=Momentum)


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

    group_by_group: bool = False
    """Whether a forward pass holds one group of images, because `before_pass` is to be called for each."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__()
        fields = pretraining.fields
        self.pretraining = pretraining
        self.spec = cast(AnySpec, fields)  # the row of `METHODS` pairs the class of the fields with this class
        self.network = build_network(
            pretraining.trained_network,
            num_outputs=1,
            image_size=pretraining.image_size,
            seed=fields.seed,
            head=self.head,
            precision=pretraining.precision,
        )
        self._left: list[Tensor] = []
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

        They are `groups` groups of equally many images, and the loss is the mean of what it is of each group alone (but
        see `ablate.pretrain.negatives`): see `ablate.training.groups`, also for batch norm, which the loop sees to.
        """

    def window(self, num_images: int, step: int) -> tuple[int, int]:
        """Return where the images of optimizer step `step`, counted from 1, begin in the stream, and their number.

        The stream is the data set's `num_images` in one shuffled order after the other. A step has whole groups.
        """
        size = self.spec.batch_size * self.spec.accumulate
        return (step - 1) * size, size

    def clip_of(self, num_groups: int) -> float | None:
        """Return `clip` of a step of so many groups."""
        return self.clip

    def leave(self, *tensors: Tensor) -> None:
        """Keep tensors of a forward pass, without a graph, for `after_step`.

        What `loss` keeps in any other way is lost on a GPU, where a pass may be a recording that knows no Python.
        """
        self._left += tensors

    def take_left(self) -> list[Tensor]:
        """Return what forward passes left since this was last asked, the first one's first, and forget it."""
        left, self._left = self._left, []
        return left

    def before_pass(self) -> None:
        """Do what precedes a forward pass."""

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
        self.network.rectifies = self.spec.rectify
        view = self._view(pretraining.image_size, self.spec.min_crop)
        self.views: tuple[View, ...] = (view, replace(view, solarize_probability=self.spec.solarize))

    def prepare(self, images_B1HW: Tensor, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """Return views (B, 1, H, W) of every image: two, or as many as the method's `views`."""
        drawn_for = self.spec.batch_size if self.spec.views == "pass" else 1
        return tuple(random_view(images_B1HW, view, generator, drawn_for=drawn_for) for view in self.views)

    def _view(self, size: int, min_area: float, max_area: float = 1.0) -> View:
        """Return how views of `size` pixels are drawn that show so large shares of the image's area."""
        jitter = self.spec.jitter
        return View(size, min_area, max_area, brightness=jitter, contrast=jitter, log_gamma=jitter)


class MomentumBranch(nn.Module):
    """A slowly moving copy of a network's encoder and of a head: (B, 1, H, W) to (B, projection).

    Its weights follow by `momentum * own + (1 - momentum) * other`. Batch statistics are those of its own forward
    passes, as in MoCo.
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


class WithMomentum(SelfSupervision[MomentumSpec]):
    """Base of the methods with a momentum encoder.

    It moves after each optimizer step or, with `momentum_update: pass`, before each group of images is seen. The
    trained weights are the same for all groups of a step, and so `accumulate` moves towards them leave
    `momentum ** accumulate` of what it was.
    """

    projector: nn.Module

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        self.group_by_group = self.spec.momentum_update == "pass"

    @property
    @abstractmethod
    def branch(self) -> MomentumBranch:
        """The momentum encoder and its head."""

    def before_pass(self) -> None:
        """Move the momentum branch, where it moves by groups."""
        if self.group_by_group:
            self._follow()

    def after_step(self, step: int) -> None:
        """Move the momentum branch, where it moves by steps."""
        if not self.group_by_group:
            self._follow()

    def _follow(self) -> None:
        self.branch.follow(self.network, self.projector, self.spec.momentum)
