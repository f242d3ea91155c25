"""What every network is: K maps from an image, an encoder that can be trained by itself, an output to replace.

Shapes: B batch, K outputs (landmarks, or 1 for noise), C feature channels, H and W of the square image.
Images are float (B, 1, H, W) in [0, 1]; each network normalises them inside `forward` and `features`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ablate.space import NetworkSpec, Precision

Head: TypeAlias = Literal["landmarks", "noise"]
T = TypeVar("T")

_LISTED = 4  # names given in a message before it says how many more there are


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def without_memory(build: Callable[[], T]) -> tuple[T, torch.device]:
    """Return what `build` builds on the meta device, without memory for its weights, and the device it is on.

    A network whose constructor reads the values of its tensors is built on the CPU instead.
    """
    device = torch.device("meta")
    try:
        with device:
            return build(), device
    except RuntimeError:
        return build(), torch.device("cpu")


class Network(nn.Module, ABC):
    """A network that turns an image into K maps, and whose encoder can be trained by itself."""

    net: Any
    """The library's own model."""

    feature_dim: int
    """C, the channels of `features`."""

    stride: int
    """Pixels of the image per position of the encoder's last feature map; an image's side must be a multiple of it."""

    _prefix = "net."  # of every tensor of the library's own model in `state_dict`
    _output: tuple[str, ...]  # prefixes of the output layer in `state_dict`
    _encoder: tuple[str, ...]  # prefixes of what self-supervision trains in `state_dict`

    rectifies: bool = False
    """Whether `features` are averaged behind a ReLU."""

    precision: Precision = "fp32"
    """What its layers compute in, see `_computed`."""

    def __init__(self, spec: NetworkSpec, image_size: int, head: Head) -> None:
        super().__init__()
        self.spec, self.image_size, self.head = spec, image_size, head

    def _computed(self, layers: Callable[[], Tensor], images_B1HW: Tensor) -> Tensor:
        """Return what `layers` make of images, computed in the network's precision and of the images' dtype.

        In `bf16` torch's autocast chooses: convolutions and products take bfloat16, and what it keeps in fp32 stays so
        (on a GPU group norm among others). What follows, such as heads, losses and decoding, is not under it.
        """
        if self.precision == "fp32":
            return layers()
        with torch.autocast(images_B1HW.device.type, torch.bfloat16):
            output = layers()
        return output.to(images_B1HW.dtype)

    @abstractmethod
    def forward(self, images_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return logits (B, K, H, W) of images in [0, 1]; `timesteps_B` (int64; None: none) matter to `unet` only."""

    @classmethod
    def check(cls, spec: NetworkSpec) -> None:
        """Refuse what would fail once the network is built; raises `InputError`."""

    @classmethod
    def unsuitable(cls, spec: NetworkSpec, image_size: int, reason: str) -> str:
        """Return the message that refuses a network which cannot be built for images of this size."""
        return f"network.kind {spec.kind} cannot be built for image_size {image_size}: {reason}"

    @abstractmethod
    def replace_output(self, num_outputs: int) -> None:
        """Put a new output layer with `num_outputs` channels in place of the one that is there."""

    @abstractmethod
    def feature_map(self, images_B1HW: Tensor) -> Tensor:
        """Return the encoder's last feature map (B, C, h, w)."""

    def features(self, images_B1HW: Tensor) -> Tensor:
        """Return the encoder's last feature map, averaged over its positions: (B, C); see `rectifies`."""

        def averaged() -> Tensor:
            map_BChw = self.feature_map(images_B1HW)
            return (map_BChw.relu() if self.rectifies else map_BChw).mean((2, 3))

        return self._computed(averaged, images_B1HW)

    def output_names(self) -> set[str]:
        """Return the names in `state_dict()` of the output layer's tensors."""
        return {name for name in self.state_dict() if name.startswith(self._output)}

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the tensors that self-supervision trains, named as in `state_dict()`."""
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(self._encoder)}

    @abstractmethod
    def keep_encoder_only(self) -> None:
        """Drop what `features` does not use; afterwards `state_dict()` is `encoder_state()` and `forward` fails."""

    def load_initial(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Start from pre-trained weights: the whole network but its output layer, or exactly its encoder.

        Names are those of `state_dict()`, or of the library's own model, that is without `net.`. An output
        layer in `tensors` is left aside, but that of a noise network is loaded into a noise network.

        Returns:
            The names of this network's tensors that keep their new initial values.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape; the message names it.
        """
        own = self.state_dict()
        given = dict(tensors)
        if not any(name.startswith(self._prefix) for name in given):
            given = {self._prefix + name: tensor for name, tensor in given.items()}
        output = self.output_names()
        keep_output = self.head == "noise" and all(
            name in given and given[name].shape == own[name].shape for name in output
        )
        if not keep_output:
            given = {name: tensor for name, tensor in given.items() if not name.startswith(self._output)}
        body = own.keys() - (set() if keep_output else output)
        encoder = self.encoder_state().keys()
        wanted = encoder if given.keys() <= encoder else body
        problems = []
        if missing := [name for name in own if name in wanted and name not in given]:
            problems.append(f"missing {_some(missing)}")
        if unknown := [name for name in given if name not in own]:
            problems.append(f"unknown {_some(unknown)}")
        shapes = [
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ]
        if shapes:
            problems.append(f"other shapes: {_some(shapes)}")
        if problems:
            raise ValueError(f"weights do not fit this network: {'; '.join(problems)}")
        self.load_state_dict(given, strict=False)
        return [name for name in own if name not in given]


class Denoiser(Network):
    """A network that can also be trained to predict the noise in a noised image; K is 1 then."""

    def scale(self, images_B1HW: Tensor) -> Tensor:
        """Map images in [0, 1] to the range that `denoise` works in: `spec.input_range`."""
        return images_B1HW * 2 - 1 if self.spec.input_range == "symmetric" else images_B1HW

    def unscale(self, scaled_B1HW: Tensor) -> Tensor:
        """Undo `scale`."""
        return (scaled_B1HW + 1) / 2 if self.spec.input_range == "symmetric" else scaled_B1HW

    @abstractmethod
    def denoise(self, scaled_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        """Return maps (B, K, H, W) of what is already scaled, such as noised images.

        Args:
            scaled_B1HW: images in the range of `scale`.
            timesteps_B: int64; None: the network is told none.
        """
