"""Global and local crops of an image, which DINO and SwAV compare with one another.

Shapes: B images, H and W of a global crop, S side of a local crop, C feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ablate.pretrain.base import SelfSupervision
from ablate.pretrain.views import View, random_view
from ablate.space import MultiCrop, Pretraining
from ablate.training import join_views

CropsSpec = TypeVar("CropsSpec", bound=MultiCrop)

LOCAL_SIDE = 96 / 224  # of a local crop's side to a global crop's, as in SwAV and DINO
NUM_GLOBAL = 2  # global crops of each image


def local_size(image_size: int, stride: int) -> int:
    """Return the side of local crops in pixels: about 3/7 of the image's, a multiple of the encoder's `stride`.

    It is at least two strides, because a last feature map of a single position leaves batch norm nothing to normalise
    and pooling nothing to pool; but never above `image_size`.
    """
    positions = max(2, round(image_size * LOCAL_SIDE / stride))
    return min(positions * stride, image_size)


class MultiCropping(SelfSupervision[CropsSpec]):
    """Base of the methods that draw two global and `local_crops` local crops of every image.

    Global crops show from `min_crop` of the image's area to all of it, local crops from `local_share * min_crop` to
    `min_crop`.
    """

    local_share: ClassVar[float]
    """The smallest local crop's area to the smallest global crop's."""

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        min_crop = self.spec.min_crop
        self.local_view = View(
            size=local_size(pretraining.image_size, self.network.stride),
            min_area=min_crop * self.local_share,
            max_area=min_crop,
        )

    def prepare(self, images_B1HW: Tensor, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """Return the two global crops (B, 1, H, W), then the local crops (B, 1, S, S), of every image."""
        views = [self.view] * NUM_GLOBAL + [self.local_view] * self.spec.local_crops
        return tuple(random_view(images_B1HW, view, generator) for view in views)

    def features_of(self, crops: Sequence[Tensor], groups: int) -> Tensor:
        """Return the features of all crops ((1 + local_crops) * B, C), those of a group together, see `join_views`.

        Crops of one size go through the network together.
        """
        global_crops, local_crops = crops[:NUM_GLOBAL], crops[NUM_GLOBAL:]
        sizes = [global_crops, local_crops] if local_crops else [global_crops]
        return join_views([self.network.features(join_views(size, groups)) for size in sizes], groups)
