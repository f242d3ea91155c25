"""What an encoder takes images as, and what is averaged of it: the published code's choices beside this package's."""

from typing import Any

import numpy as np
import pytest
import torch
from test_models import build
from test_pretrain import make
from torch import nn

from ablate.pretrain import build_method
from ablate.space import NetworkSpec

torch.set_num_threads(1)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def encoder(name: str = "tu-test_resnet", **fields: Any) -> NetworkSpec:
    return NetworkSpec(kind="encoder", encoder=name, **fields)


def seen(spec: NetworkSpec, grey: float) -> np.ndarray:
    """What the first convolution is given of an image of one grey value: a number for each channel."""
    network, given = build(spec), list[torch.Tensor]()
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_hook(lambda layer, inputs, output: given.append(inputs[0]))
    with torch.no_grad():
        network.eval()(torch.full((1, 1, 64, 64), grey))
    return given[0][0].mean((1, 2)).numpy()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("imagenet", [(0.25 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]),
        ("half", [(0.25 - 0.5) / std for std in STD]),  # the authors' input of views
        ("grey", [0.25]),  # the authors' input of fine-tuning
    ],
)
def test_an_encoder_takes_a_grey_value_as(value: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(seen(encoder(input=value), 0.25), expected, rtol=1e-5)


def test_views_may_be_taken_in_another_way_than_images_of_fine_tuning_and_kernels_are_summed() -> None:
    pretraining = make("simclr", "encoder", network=encoder(input="grey").model_dump(), input="half")
    method = build_method(pretraining)
    assert method.network.spec.input == "half"
    name = "net.encoder.model.conv1.weight"
    (wide,) = (tensor for key, tensor in method.snapshot().items() if tensor.ndim == 4 and tensor.shape[1] == 3)
    network = build(encoder(input="grey"))
    kept = network.load_initial(method.snapshot())
    assert kept
    assert all(not key.startswith("net.encoder.") for key in kept)
    (narrow,) = (tensor for key, tensor in network.encoder_state().items() if tensor.ndim == 4 and tensor.shape[1] == 1)
    assert torch.equal(narrow, wide.sum(1, keepdim=True)), name


def test_summed_kernels_see_grey_as_three_equal_channels_do() -> None:
    wide, narrow = build(encoder("resnet18", input="half")), build(encoder("resnet18", input="grey"))
    narrow.load_initial(wide.encoder_state())
    images = torch.rand(2, 1, 64, 64)
    centred = (images - 0.5) / 0.225  # near to what three channels are given, whose deviations differ little
    with torch.no_grad():
        expected, found = wide.eval().features(images), narrow.eval().features(centred)
    assert torch.corrcoef(torch.stack((expected.flatten(), found.flatten())))[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["encoder", "unet", "reference"])
def test_features_are_averaged_behind_a_relu_where_that_is_asked_for(kind: str) -> None:
    plain = build_method(make("simclr", kind)).network.eval()
    rectified = build_method(make("simclr", kind, rectify=True)).network.eval()
    images = torch.rand(2, 1, plain.image_size, plain.image_size)
    with torch.no_grad():
        maps = plain.feature_map(images)
        assert torch.equal(plain.features(images), maps.mean((2, 3)))
        assert torch.equal(rectified.features(images), maps.relu().mean((2, 3)))
    if kind != "encoder":  # the last layers of that end with a ReLU
        assert (maps < 0).any()
