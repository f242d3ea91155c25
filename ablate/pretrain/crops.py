"""Global and local crops of an image, which DINO and SwAV compare with one another.

Shapes: B images, H and W of a global crop, S side of a local crop, C feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from ablate.pretrain.base import SelfSupervision
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

    `prepare` returns the two global crops (B, 1, H, W), then the local crops (B, 1, S, S). Global crops show from
    `min_crop` of the image's area to all of it; what local crops show is in `MultiCrop.local_areas`.
    """

    def __init__(self, pretraining: Pretraining) -> None:
        super().__init__(pretraining)
        size = local_size(pretraining.image_size, self.network.stride)
        self.views += (self._view(size, *self.spec.local_areas),) * self.spec.local_crops

    def features_of(self, crops: Sequence[Tensor], groups: int) -> Tensor:
        """Return the features of all crops ((1 + local_crops) * B, C), those of a group together, see `join_views`.

        Crops of one size go through the network together.
        """
        global_crops, local_crops = crops[:NUM_GLOBAL], crops[NUM_GLOBAL:]
        sizes = [global_crops, local_crops] if local_crops else [global_crops]
        return join_views([self.network.features(join_views(size, groups)) for size in sizes], groups)
