"""The spatial-configuration network: its parts, what pre-training trains of it, and what is refused."""

from pathlib import Path

import pytest
import torch
from tiny import small_network, tiny_trial

from ablate.errors import InputError
from ablate.network.building import build_network, check_network, count_parameters, outline
from ablate.network.scn import Scn, SpatialConfiguration, TimestepShifts
from ablate.pretrain.ddpm import strips
from ablate.space import NetworkSpec, TrialSpec
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store

torch.set_num_threads(1)

SMALL = small_network("scn")
IMAGES = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def build(spec: NetworkSpec = SMALL, num_outputs: int = 3, head: str = "landmarks") -> Scn:
    network = build_network(spec, num_outputs=num_outputs, image_size=32, seed=0, head=head)
    assert isinstance(network, Scn)
    return network


# --- the network ------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    spec = NetworkSpec(kind="scn")
    assert spec.fields == {
        "channels": (128, 128, 128, 128),
        "dropout": 0.5,
        "spatial_channels": 128,
        "spatial_kernel": 11,
        "spatial_scale": 16,
        "input_range": "symmetric",
    }
    network, _ = outline(spec, 512, num_outputs=37)
    convolutions = {name: item for name, item in network.named_modules() if isinstance(item, torch.nn.Conv2d)}
    wide = [item for item in convolutions.values() if item.kernel_size == (11, 11)]
    assert [(item.in_channels, item.out_channels) for item in wide] == [(37, 128), (128, 128), (128, 128), (128, 37)]
    # by hand: 4 levels of two convolutions, 3 narrowings and 3 convolutions on the way up, one to the maps
    levels = 9 * 128 * (1 + 7 * 128) + 3 * 128 * 128 + 3 * 9 * 128 * 128 + 11 * 2 * 128
    maps = 9 * 128 * 37 + 37
    spatial = 121 * (37 * 128 + 2 * 128 * 128 + 128 * 37) + 3 * 128 + 37
    time = 64 * 128 + 128 * 512
    assert count_parameters(network) == levels + maps + spatial + time


def test_output_is_local_appearance_times_spatial_configuration() -> None:
    network = build().eval()
    seen: dict[str, torch.Tensor] = {}
    for name in ("maps", "spatial"):
        network.get_submodule(f"net.{name}").register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, output)
        )
    output = network(IMAGES)
    assert torch.equal(output, seen["maps"] * seen["spatial"])
    assert seen["spatial"].abs().max() < 1


def test_spatial_configuration_sees_only_means_over_its_scale_and_starts_by_letting_maps_pass() -> None:
    part = SpatialConfiguration(SMALL, 3)
    maps = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    means = torch.nn.functional.avg_pool2d(maps, 16).repeat_interleave(16, 2).repeat_interleave(16, 3)
    torch.testing.assert_close(part(maps), part(means))
    other = maps.roll(16, 3)
    assert not torch.allclose(part(maps), part(other))
    torch.testing.assert_close(
        part(torch.zeros(1, 3, 32, 32)), torch.full((1, 3, 32, 32), 1.0).tanh(), atol=0.1, rtol=0
    )


def test_features_are_the_averages_of_every_level_over_quarters_of_the_image() -> None:
    network = build().eval()
    levels = network.net.levels(IMAGES * 2 - 1)
    assert [tuple(level.shape) for level in levels] == [(2, 16, 32, 32), (2, 32, 16, 16)]
    features = network.features(IMAGES)
    assert network.feature_dim == 4 * 48
    quarters = [
        levels[0][1, 5, :16, :16],
        levels[0][1, 5, :16, 16:],
        levels[0][1, 5, 16:, :16],
        levels[0][1, 5, 16:, 16:],
    ]
    torch.testing.assert_close(features[1, 20:24], torch.stack([quarter.mean() for quarter in quarters]))
    torch.testing.assert_close(features[0, -1], levels[1][0, -1, 8:, 8:].mean())


def test_dropout_acts_in_training_alone() -> None:
    network = build(SMALL.model_copy(update={"dropout": 0.5}))
    assert not torch.equal(network(IMAGES), network(IMAGES))
    network.eval()
    assert torch.equal(network(IMAGES), network(IMAGES))


# --- what pre-training trains -----------------------------------------------------------------------


def test_the_noise_head_is_local_appearance_alone_with_one_map() -> None:
    network = build(num_outputs=1, head="noise").eval()
    assert not any(name.startswith("net.spatial.") for name in network.state_dict())
    noised = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = network.net.maps(network.net.levels(noised)[0])
    assert torch.equal(network.denoise(noised), expected)
    assert expected.shape == (2, 1, 32, 32)


def test_fine_tuning_takes_the_levels_of_a_denoiser_and_makes_maps_and_spatial_configuration_anew() -> None:
    denoiser, network = build(num_outputs=1, head="noise"), build()
    new = network.load_initial(denoiser.state_dict())
    assert {name.split(".")[1] for name in new} == {"maps", "spatial"}
    assert {name.split(".")[1] for name in network.state_dict().keys() - set(new)} == {"levels", "time"}


def test_timestep_zero_and_no_timestep_are_the_same_and_others_are_not() -> None:
    network = build(num_outputs=1, head="noise").eval()
    zero, two = torch.zeros(2, dtype=torch.long), torch.tensor([0, 2])
    assert torch.equal(network.denoise(IMAGES), network.denoise(IMAGES, zero))
    found = network.denoise(IMAGES, two)
    assert torch.equal(found[0], network.denoise(IMAGES)[0])
    assert not torch.allclose(found[1], network.denoise(IMAGES)[1])
    assert torch.equal(build()(IMAGES, two), build()(IMAGES))  # fine-tuning tells it none
    assert all(not shift[0].any() and shift[1].all() for shift in TimestepShifts((4, 6))(torch.tensor([0, 7])))


def test_denoising_starts_in_the_range_from_minus_one_to_one() -> None:
    network = build(num_outputs=1, head="noise")
    scaled = network.scale(IMAGES)
    assert scaled.min() < -0.9
    torch.testing.assert_close(network.unscale(scaled), IMAGES)


def test_a_trial_runs_from_pre_training_to_its_row(tmp_path: Path) -> None:
    trial = tiny_trial(
        "ddpm",
        network=SMALL.model_dump(),
        finetune={"loss": "adaptive", "sigma": 1.5},
        evaluate={"decode": "dark"},
    )
    row = run_trial(trial, Store.open(tmp_path), data_in(None), threads=1)
    assert (row["status"], row["network_kind"], row["finetune_loss"]) == ("finished", "scn", "adaptive")
    assert row["network_channels"] == [16, 32]


def test_a_diffusion_of_local_appearance_has_pictures() -> None:
    trial = tiny_trial("ddpm", network=SMALL.model_dump(), pretrain={"timesteps": 4})
    assert trial.pretraining is not None
    tensors = build(num_outputs=1, head="noise").state_dict()
    found = strips(trial.pretraining, tensors, (IMAGES[0, 0, :16, :16] * 255).byte().numpy(), num_pictures=3)
    assert found.noising_NHW.shape == found.sampling_NHW.shape == (3, 16, 16)


# --- identity and refusals --------------------------------------------------------------------------


def scn_trial(**network: object) -> TrialSpec:
    return TrialSpec.model_validate(
        {"dataset": "cephalo", "image_size": 64, "network": {"kind": "scn", **network}, "finetune": {"lr": 1e-3}}
    )


def test_a_default_given_in_full_is_the_same_trial_and_another_value_is_not() -> None:
    plain = scn_trial().trial_id
    assert scn_trial(channels=[128] * 4, dropout=0.5, spatial_kernel=11).trial_id == plain
    assert scn_trial(channels=[64, 128, 256, 512]).trial_id != plain
    assert scn_trial(dropout=0.1).trial_id != plain
    assert scn_trial(width=8, layers_per_block=1).trial_id == plain  # it uses neither


def test_an_image_must_be_divisible_by_levels_and_spatial_scale() -> None:
    assert NetworkSpec(kind="scn", channels=(8, 8, 8), spatial_scale=6).multiple == 12
    with pytest.raises(ValueError, match=r"image_size must be divisible by 12 for this network; got 64"):
        scn_trial(channels=[8, 8, 8], spatial_scale=6)


def test_a_kernel_without_a_middle_is_refused() -> None:
    with pytest.raises(InputError, match=r"network\.spatial_kernel must be odd.*got 8; the nearest are 7 and 9"):
        check_network(NetworkSpec(kind="scn", spatial_kernel=8), 64)
