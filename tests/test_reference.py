"""The reference U-Net: it computes what the authors' does, holds their tensors, and takes their weights."""

import csv
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import small_network, tiny_trial

from ablate.network.building import build_network, count_parameters, outline
from ablate.network.flops import count_flops
from ablate.network.reference import (
    FullAttention,
    LinearAttention,
    Reference,
    ReferenceUNet,
    StandardisedConv2d,
)
from ablate.network.starting import Start, load_start
from ablate.network.timesteps import TimestepEmbedding
from ablate.pretrain import build_method
from ablate.pretrain.ddpm import Ddpm, strips
from ablate.space import NetworkSpec, Pretraining, TrialSpec, WeightsSpec
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.training import seeded

torch.set_num_threads(1)

ORACLE = "reference_unet_width8.safetensors"
WIDE, SMALL = NetworkSpec(kind="reference"), small_network("reference")


def build(spec: NetworkSpec = SMALL, num_outputs: int = 1, seed: int = 0, head: str = "landmarks") -> Reference:
    network = build_network(spec, num_outputs=num_outputs, image_size=16, seed=seed, head=head)
    assert isinstance(network, Reference)
    return network


@pytest.fixture(scope="module")
def oracle() -> dict[str, torch.Tensor]:
    """Random weights of width 8, images, timesteps, and what the authors' code returns for them."""
    folder = os.environ.get("ABLATE_TEST_ORACLES")
    if folder is None:
        pytest.skip(f"needs outputs of the authors' code: set ABLATE_TEST_ORACLES to a folder with {ORACLE}")
    return load_file(Path(folder) / ORACLE)


def test_outputs_are_those_of_the_authors_code(oracle: dict[str, torch.Tensor]) -> None:
    weights = {name.removeprefix("weights."): item for name, item in oracle.items() if name.startswith("weights.")}
    network = build(NetworkSpec(kind="reference", width=8), head="noise")
    assert network.load_initial(weights) == []
    with torch.no_grad():
        told = network.denoise(oracle["input_B1HW"], oracle["timesteps_B"])
        untold = network.denoise(oracle["input_B1HW"])
    assert (told - oracle["output_at_timesteps"]).abs().max() < 1e-5
    assert (untold - oracle["output_without_timestep"]).abs().max() < 1e-5


# --- tensors ----------------------------------------------------------------------------------------


def test_names_shapes_and_order_of_all_tensors_are_the_authors() -> None:
    with (Path(__file__).parent / "reference_unet_tensors.csv").open() as file:
        rows = [(row["name"], tuple(map(int, row["shape"].split("x")))) for row in csv.DictReader(file)]
    built, _ = outline(WIDE, 256, "noise")
    own = [(name.removeprefix("net."), tuple(item.shape)) for name, item in built.state_dict().items()]
    assert len(rows) == 293
    assert own == rows


def test_parameters_and_operations_at_width_256_are_the_authors() -> None:
    built, _ = outline(WIDE, 256, "noise")
    assert count_parameters(built) == 558_548_225
    assert count_flops(WIDE, 256)[1] == pytest.approx(3.494e12, rel=1e-3)


def test_published_checkpoints_are_taken_whole_by_ddpm_and_without_their_output_by_fine_tuning(tmp_path: Path) -> None:
    source = build(seed=1, head="noise").net.state_dict()
    file = tmp_path / "ddpm.pt"
    torch.save({"model_state_dict": source, "epoch": 7, "optimizer_state_dict": {"state": {}}}, file)
    trial = tiny_trial("ddpm", network=SMALL, pretrain={"weights": str(file)})
    assert trial.pretraining is not None
    continued = build_method(trial.pretraining).network.state_dict()
    assert all(torch.equal(continued[f"net.{name}"], item) for name, item in source.items())

    network = build(num_outputs=3)
    fresh = {name: item.clone() for name, item in network.state_dict().items()}
    start = WeightsSpec(name="published", file=str(file))
    told = load_start(network, start, Start.read(start))
    assert "291 tensors of the network on reference without its output layer loaded by name" in told
    for name, item in network.state_dict().items():
        assert torch.equal(item, fresh[name] if "final_conv" in name else source[name.removeprefix("net.")])


# --- parts, by hand ---------------------------------------------------------------------------------


def test_timestep_embedding_by_hand() -> None:
    found = TimestepEmbedding(6)(torch.tensor([0, 7]))
    angles = [7.0, 7 / 100, 7 / 10_000]  # three waves: their frequencies fall by a hundred each
    expected = [[0.0] * 3 + [1.0] * 3, [*map(math.sin, angles), *map(math.cos, angles)]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1e-5), (torch.float64, 1e-3)])
def test_each_filter_is_standardised_before_it_convolves(dtype: torch.dtype, eps: float) -> None:
    layer = StandardisedConv2d(1, 1, (1, 4), bias=False).to(dtype)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, variance (4 + 1 + 0 + 9) / 4
    found = layer(torch.eye(4, dtype=dtype)[None, None])
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0], dtype=dtype) / math.sqrt(3.5 + eps)
    torch.testing.assert_close(found.flatten(), expected)


def heads_of(layer: LinearAttention | FullAttention, x_CP: torch.Tensor) -> torch.Tensor:
    """Return queries, keys and values (3, 4 heads, 32, P) of one image."""
    return (layer.to_qkv.weight.flatten(1) @ x_CP).reshape(3, 4, 32, -1)


def test_linear_attention_position_by_position() -> None:
    layer = LinearAttention(4)
    layer.to_out = torch.nn.Identity()  # type: ignore[assignment]
    x_CP = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    query, key, value = heads_of(layer, x_CP)
    expected = torch.zeros(4, 32, 6)
    for head, position in itertools.product(range(4), range(6)):
        asked = torch.exp(query[head, :, position])
        asked = asked / asked.sum() / math.sqrt(32)
        for other in range(6):
            weights = torch.exp(key[head, :, other]) / torch.exp(key[head]).sum(1)
            expected[head, :, position] += (asked * weights).sum() * value[head, :, other]
    torch.testing.assert_close(layer(x_CP.reshape(1, 4, 2, 3)).reshape(4, 32, 6), expected)


def test_full_attention_position_by_position() -> None:
    layer = FullAttention(4)
    layer.to_out = torch.nn.Identity()  # type: ignore[assignment]
    x_CP = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    query, key, value = heads_of(layer, x_CP)
    expected = torch.zeros(4, 32, 6)
    for head, position in itertools.product(range(4), range(6)):
        weights = torch.exp(query[head, :, position] @ key[head] / math.sqrt(32))
        expected[head, :, position] = value[head] @ (weights / weights.sum())
    torch.testing.assert_close(layer(x_CP.reshape(1, 4, 2, 3)).reshape(4, 32, 6), expected)


def test_downsampling_folds_channel_row_and_column_in_this_order() -> None:
    fold = ReferenceUNet(4).get_submodule("downs.0.3.0")
    image_CHW = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]])
    assert fold(image_CHW[None]).flatten().tolist() == list(range(8))


# --- images and timesteps ---------------------------------------------------------------------------


def test_the_image_is_the_second_input_channel_and_the_first_is_zero() -> None:
    network, images = build(), torch.rand(2, 1, 16, 16)
    seen: list[torch.Tensor] = []
    network.net.init_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    assert torch.equal(seen[0], torch.cat((torch.zeros(2, 1, 16, 16), images), 1))


def test_fine_tuning_tells_no_timestep_and_denoising_does() -> None:
    network, images = build(), torch.rand(2, 1, 16, 16)
    ten = torch.full((2,), 10)
    assert torch.equal(network(images, ten), network(images))
    assert torch.equal(network(images), network.denoise(images))
    assert not torch.allclose(network.denoise(images, ten), network.denoise(images))


def pretraining_of(**fields: object) -> Pretraining:
    pretraining = tiny_trial("ddpm", network=SMALL, pretrain={"timesteps": 20, **fields}).pretraining
    assert pretraining is not None
    return pretraining


def test_ddpm_noises_images_in_the_range_from_0_to_1() -> None:
    built = build_method(pretraining_of())
    assert isinstance(built, Ddpm)
    images = torch.rand(2, 1, 16, 16)
    scaled, noise, timesteps = built.prepare(images, seeded("cpu", 0), 1)
    assert torch.equal(scaled, images)
    predicted = built.network.denoise(built.schedule.add_noise(images, noise, timesteps), timesteps)
    torch.testing.assert_close(built.loss(scaled, noise, timesteps), (predicted - noise).square().mean())


def test_strips_of_ddpm_start_with_the_image_itself() -> None:
    pretraining = pretraining_of()
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensors = build_method(pretraining).snapshot()
    assert np.array_equal(strips(pretraining, tensors, image, num_pictures=3).noising_NHW[0], image)


# --- trials -----------------------------------------------------------------------------------------


def test_a_trial_goes_from_ddpm_to_errors(tmp_path: Path) -> None:
    spec = tiny_trial("ddpm", network=SMALL, pretrain={"timesteps": 20})
    row = run_trial(spec, Store.open(tmp_path / "run"), data_in(None))
    assert (row["status"], row["network_kind"], row["network_width"]) == ("finished", "reference", SMALL.width)
    assert row["parameters"] == count_parameters(build(num_outputs=12))
    assert math.isfinite(row["mre"])


def test_width_is_part_of_the_identity_and_a_timestep_of_fine_tuning_is_not() -> None:
    def trial(width: int = 256, **finetune: object) -> TrialSpec:
        network = {"kind": "reference", "width": width}
        fields = {"dataset": "chest", "pretrain": {"method": "ddpm"}, "network": network, "finetune": finetune}
        return TrialSpec.model_validate(fields)

    assert trial().trial_id == trial(timestep=7).trial_id
    assert trial().trial_id != trial(8).trial_id
    assert trial().pretrain_key != trial(8).pretrain_key
    left_out = {"dataset": "chest", "pretrain": {"method": "ddpm"}, "network": {"kind": "reference"}}
    assert trial().trial_id == TrialSpec.model_validate(left_out).trial_id
    unet = {"dataset": "chest", "pretrain": {"method": "ddpm"}, "network": {"kind": "unet"}}
    wide = {**unet, "network": {"kind": "unet", "width": 8}}
    assert TrialSpec.model_validate(unet).trial_id == TrialSpec.model_validate(wide).trial_id
