"""Where DDPM differs from the authors' published code: each difference with today's setting and with theirs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pretrain import Recorder, run
from tiny import small_network, tiny_trial
from torch import Tensor

from ablate.datasets import load_dataset
from ablate.datasets.types import Sizes
from ablate.errors import InputError
from ablate.network import augment
from ablate.network.base import Denoiser
from ablate.network.building import build_network
from ablate.network.evaluation import run_network
from ablate.pretrain import build_method
from ablate.pretrain.ddpm import NoiseSchedule
from ablate.pretrain.loop import backward
from ablate.pretrain.whole import WeightAverage, WholeNetworkTraining
from ablate.space import METHODS, AugmentSpec, DdpmSpec, NetworkSpec, Pretraining, TrialSpec, WholeNetwork
from ablate.stage.inputs import check_whole_groups
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.tables import spec_columns, trial_of_row
from ablate.training import adamw, seeded, unpack

torch.set_num_threads(1)

WHOLE = tuple(name for name, method in METHODS.items() if issubclass(method.spec, WholeNetwork))
UNET = {"kind": "unet", "channels": (8, 16), "layers_per_block": 1}


def pretraining_of(method: str = "ddpm", network: dict[str, Any] | None = None, **fields: Any) -> Pretraining:
    pretraining = tiny_trial(method, network={**UNET, **(network or {})}, pretrain=fields).pretraining
    assert pretraining is not None
    return pretraining


def built(method: str = "ddpm", network: dict[str, Any] | None = None, **fields: Any) -> WholeNetworkTraining[Any]:
    made = build_method(pretraining_of(method, network, **fields))
    assert isinstance(made, WholeNetworkTraining)
    return made


def test_defaults_are_todays_and_written_out_they_change_no_identity() -> None:
    today = {
        "ema_ramp": True, "clip_on": "mean", "epoch_end": "full", "betas": "fixed", "transfer": "network",
        "augment": {"shift": 0.0, "rotate": 0.0, "probability": 0.5}, "beta_schedule": "linear",
    }  # fmt: skip
    short = tiny_trial("ddpm")
    full = tiny_trial(
        "ddpm", pretrain=today, network={**UNET, "attention": "none", "input_range": "symmetric"},
        finetune={"timestep": 0},
    )  # fmt: skip
    assert (full.trial_id, full.pretrain_key) == (short.trial_id, short.pretrain_key)


@pytest.mark.parametrize(
    "theirs",
    [
        {"ema_ramp": False},
        {"clip_on": "sum"},
        {"epoch_end": "short"},
        {"beta_schedule": "cosine_clamped"},
        {"augment": {"shift": 0.02, "rotate": 2.0}},
    ],
    ids=str,
)
def test_the_authors_settings_are_another_pre_training(theirs: dict[str, Any]) -> None:
    spec = tiny_trial("ddpm", pretrain=theirs)
    assert spec.pretrain_key != tiny_trial("ddpm").pretrain_key
    assert trial_of_row(spec_columns(spec)) == spec


# --- input range ------------------------------------------------------------------------------------


def share_with_signal_above_noise(made: WholeNetworkTraining[Any], images: Tensor) -> float:
    """Return the share of the timesteps drawn in training at which scaled images deviate more than their noise."""
    scaled = made.network.scale(images)
    left = (1 - NoiseSchedule(DdpmSpec()).betas.double()).cumprod(0)[1:]
    signal = scaled.double().std(correction=0) * left.sqrt()
    return float((signal > (1 - left).sqrt()).double().mean())


@pytest.mark.parametrize(("input_range", "share"), [("symmetric", 0.240), ("unit", 0.124)])
def test_in_the_range_from_0_to_1_half_as_many_timesteps_have_signal_above_noise(
    input_range: str, share: float
) -> None:
    """Pixels of the 150 cephalograms of training and validation have a standard deviation of 0.298 in [0, 1].

    Signal is above noise while alpha bar s^2 > 1 - alpha bar, that is while alpha bar > 1 / (1 + s^2): 0.738 for 2 x
    0.298 and 0.918 for 0.298. With betas that rise from 1e-4 to 0.02 over 500 timesteps alpha bar falls so far at
    timestep 120, and at 62: 120 / 499 and 62 / 499 of those that are drawn.
    """
    images = 0.5 + 0.2985 * torch.tensor([-1.0, 1.0]).repeat(128).reshape(1, 1, 16, 16)
    found = share_with_signal_above_noise(built(network={"input_range": input_range}), images)
    assert found == pytest.approx(share, abs=0.0006)
    assert round(found * 499) == {"symmetric": 120, "unit": 62}[input_range]


@pytest.mark.slow
def test_those_shares_are_the_ones_of_the_cephalograms(xray_data: Path) -> None:
    data = load_dataset("cephalo", str(xray_data), 256)
    images_NHW = np.concatenate([data.train.images_NHW, data.val.images_NHW])
    images = torch.from_numpy(images_NHW)[:, None].float() / 255
    for input_range, share in (("symmetric", 0.240), ("unit", 0.124)):
        made = built(network={"input_range": input_range})
        assert share_with_signal_above_noise(made, images) == pytest.approx(share, abs=0.0006)


@pytest.mark.parametrize("kind", ["unet", "reference"])
@pytest.mark.parametrize("input_range", ["symmetric", "unit"])
def test_pre_training_and_fine_tuning_see_images_in_the_same_range(kind: str, input_range: str) -> None:
    spec = NetworkSpec.model_validate({**small_network(kind).model_dump(), "input_range": input_range})
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = images * 2 - 1 if input_range == "symmetric" else images
    trial = tiny_trial("ddpm", network=spec)
    assert trial.pretraining is not None
    scaled, *_ = build_method(trial.pretraining).prepare(images, seeded("cpu", 0), 1)
    assert torch.equal(scaled, expected)
    network = build_network(trial.network, num_outputs=3, image_size=16, seed=0)
    assert isinstance(network, Denoiser)
    told = torch.zeros(2, dtype=torch.long) if kind == "unet" else None
    assert torch.equal(run_network(network, images, trial), network.denoise(expected, told))
    torch.testing.assert_close(network.unscale(expected), images)
    seen: list[Tensor] = []
    first = network.get_submodule("net.conv_in" if kind == "unet" else "net.init_conv")
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -1:]))
    network.features(images)
    assert torch.equal(seen[0], expected)


def test_each_kind_of_network_has_a_range_of_its_own_that_is_no_part_of_its_identity() -> None:
    def trial(**network: Any) -> TrialSpec:
        fields = {"dataset": "chest", "pretrain": {"method": "ddpm"}, "network": network}
        return TrialSpec.model_validate(fields)

    for kind, own, other in (("unet", "symmetric", "unit"), ("reference", "unit", "symmetric")):
        assert trial(kind=kind).network.input_range == own
        assert trial(kind=kind).trial_id == trial(kind=kind, input_range=own).trial_id
        assert trial(kind=kind).trial_id != trial(kind=kind, input_range=other).trial_id
        assert trial(kind=kind).pretrain_key != trial(kind=kind, input_range=other).pretrain_key
    encoders = [
        TrialSpec.model_validate(
            {"dataset": "chest", "pretrain": {"method": "mocov3"}, "network": {"input_range": own}}
        )
        for own in ("symmetric", "unit")
    ]
    assert encoders[0].trial_id == encoders[1].trial_id


# --- augmentation -----------------------------------------------------------------------------------


def moved(method: str, images: Tensor, **fields: Any) -> Tensor:
    made = built(method, **fields)
    prepared: Tensor = made.prepare(images, seeded("cpu", 0), 1)[0]
    return prepared if method == "mask" else made.network.unscale(prepared)


@pytest.mark.parametrize("method", WHOLE)
def test_images_are_left_as_they_are_or_half_of_them_shifted_and_rotated(method: str) -> None:
    images = torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved(method, images), images)
    theirs = moved(method, images, augment={"shift": 0.02, "rotate": 2.0})
    changed = (theirs - images).abs().amax((1, 2, 3)) > 1e-4
    assert 0.4 < changed.float().mean() < 0.6
    spec = AugmentSpec(shift=0.02, scale=0.0, rotate=2.0, probability=0.5)  # that of fine-tuning, without a scale
    affine = augment.draw(spec, 400, 16, seeded("cpu", 0))
    expected, _ = augment.apply(affine, images, torch.zeros(400, 0, 2))
    torch.testing.assert_close(theirs, expected)


def test_a_shift_replicates_the_border() -> None:
    images = torch.arange(16.0).repeat(16, 1).expand(200, 1, 16, 16) / 16
    shifted = moved("ddpm", images, augment={"shift": 0.25, "probability": 1.0})
    lowest, highest = shifted.amin((1, 2, 3)), shifted.amax((1, 2, 3))
    assert float(lowest.min()) >= -1e-6
    assert float(highest.max()) <= 15 / 16 + 1e-6
    assert float((lowest - images.min()).max()) == pytest.approx(4 / 16, abs=0.02)  # a quarter of the side, to the left


# --- clipping ---------------------------------------------------------------------------------------


def test_the_sum_of_8_groups_is_clipped_where_the_mean_exceeds_an_eighth() -> None:
    assert built().clip_of(8) == 1.0
    assert built(clip_on="sum").clip_of(8) == 0.125
    assert built(clip_on="sum", clip=0.4).clip_of(5) == pytest.approx(0.08)  # of a short step of 5 groups


def test_clipping_of_the_sum_acts_in_all_of_the_first_25_steps_and_of_the_mean_in_none() -> None:
    mean, total = built(batch_size=4, accumulate=8, lr=1e-4), built(clip_on="sum")
    images = torch.from_numpy(load_dataset("synthetic", None, 16).train.images_NHW)[:, None].float() / 255
    optimizer = adamw(mean.parameters(), torch.device("cpu"), lr=1e-4, weight_decay=0.01)
    largest = []
    for step in range(1, 26):
        optimizer.zero_grad()
        batch = images[torch.randperm(len(images), generator=seeded("cpu", step))[:32]]
        backward(mean, batch, seeded("cpu", 0, "draws", step), step, groups=8)
        found = [float(weight.grad.abs().max()) for weight in mean.parameters() if weight.grad is not None]
        largest.append(max(found))
        optimizer.step()
    for made, steps in ((mean, 0), (total, 25)):
        limit = made.clip_of(8)
        assert limit is not None
        assert sum(value > limit for value in largest) == steps


# --- the end of a pass over the images --------------------------------------------------------------


def numbers(made: WholeNetworkTraining[Any], num_images: int, steps: int) -> list[int]:
    return [made.window(num_images, step)[1] for step in range(1, steps + 1)]


def test_the_last_step_of_a_pass_over_the_cephalograms_has_20_of_32_images() -> None:
    full, short = (built(batch_size=4, accumulate=8, epoch_end=end) for end in ("full", "short"))
    assert numbers(full, 150, 10) == [32] * 10
    assert numbers(short, 150, 10) == [32, 32, 32, 32, 20] * 2  # 37 groups of 4; 2 images are dropped
    assert [short.window(150, step)[0] for step in (1, 5, 6, 11)] == [0, 128, 150, 300]


@pytest.mark.parametrize(("num_images", "expected"), [(64, [32, 32]), (66, [32, 32]), (4, [4, 4]), (40, [32, 8])])
def test_whole_groups_make_the_steps_of_a_pass(num_images: int, expected: list[int]) -> None:
    assert numbers(built(batch_size=4, accumulate=8, epoch_end="short"), num_images, 2) == expected


def test_the_loop_takes_short_steps_and_goes_on_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining = pretraining_of(batch_size=4, accumulate=2, epoch_end="short", clip_on="sum")
    images = np.broadcast_to(np.arange(15, dtype=np.uint8)[:, None, None], (15, 16, 16)).copy()
    seen: list[list[int]] = []
    own = WholeNetworkTraining.augmented

    def spy(self: WholeNetworkTraining[Any], images_B1HW: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((images_B1HW[:, 0, 0, 0] * 255).round().int().tolist())
        return own(self, images_B1HW, generator)

    monkeypatch.setattr(WholeNetworkTraining, "augmented", spy)
    whole, again = Recorder(save_at=(3,)), Recorder()
    run(pretraining, whole, steps=4, images=images, snapshots=[4])
    assert [len(step) for step in seen] == [8, 4, 8, 4]
    assert len(set(seen[0] + seen[1])) == len(set(seen[2] + seen[3])) == 12
    run(pretraining, again, steps=4, images=images, snapshots=[4], state=unpack(whole.states[3]))
    assert all(torch.equal(tensor, again.snapshots[4][name]) for name, tensor in whole.snapshots[4].items())
    assert seen[4] == seen[3]


def test_a_pass_without_a_whole_group_is_refused_before_a_run() -> None:
    short = pretraining_of(batch_size=4, epoch_end="short", images="train")
    check_whole_groups(short, Sizes(train=4, val=0, test=9, unlabelled=0))
    check_whole_groups(pretraining_of(batch_size=4), Sizes(train=3, val=0, test=9, unlabelled=0))
    with pytest.raises(
        InputError, match=r"pretrain\.epoch_end short needs at least pretrain\.batch_size 4 images;.* 3 of"
    ):
        check_whole_groups(short, Sizes(train=3, val=9, test=9, unlabelled=9))
    shots = tiny_trial("ddpm", shots=3, pretrain={"batch_size": 4, "epoch_end": "short", "images": "shots"}).pretraining
    assert shots is not None
    with pytest.raises(InputError, match=r"synthetic has 3 of pretrain\.images shots; lower batch_size"):
        check_whole_groups(shots, Sizes(train=130, val=9, test=9, unlabelled=9))


# --- the average of the weights ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (False, [0.995 * 1 + 0.005 * 2, 0.995 * (0.995 * 1 + 0.005 * 2) + 0.005 * 3]),
        (True, [2.0, 2 / 11 * 2 + 9 / 11 * 3]),  # the decay is 0, then 2 / 11
    ],
)
def test_the_average_starts_from_the_initial_weights_or_ramps_up(ramp: bool, expected: list[float]) -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = WeightAverage(layer, 0.995, ramp=ramp)
    for value, mean in zip((2.0, 3.0), expected, strict=True):
        layer.weight.data.fill_(value)
        average.follow(layer)
        assert average.tensors(layer)["weight"].item() == pytest.approx(mean, rel=1e-6)


def test_without_a_ramp_300_steps_leave_a_fifth_of_the_initial_weights() -> None:
    made = built(ema_ramp=False)
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = WeightAverage(layer, made.spec.ema, ramp=made.spec.ema_ramp)
    layer.weight.data.fill_(0.0)
    for _ in range(300):
        average.follow(layer)
    assert average.tensors(layer)["weight"].item() == pytest.approx(0.995**300, rel=1e-3)
    assert 0.2 < 0.995**300 < 0.25


# --- the cosine schedule ----------------------------------------------------------------------------


def test_the_cosine_schedule_ends_at_0_999_or_is_clamped_to_1e_4_and_0_9999() -> None:
    def left(step: int) -> float:  # of the image, Nichol and Dhariwal 2021, eq. 17
        return math.cos((step / 500 + 0.008) / 1.008 * math.pi / 2) ** 2

    published, clamped = (NoiseSchedule(DdpmSpec(beta_schedule=name)).betas for name in ("cosine", "cosine_clamped"))
    first = 1 - left(1) / left(0)
    assert first < 1e-4 < 1 - left(2) / left(1)
    assert published[[0, -1]].tolist() == pytest.approx([first, 0.999], rel=1e-5)
    assert clamped[[0, -1]].tolist() == pytest.approx([1e-4, 0.9999], rel=1e-5)
    torch.testing.assert_close(published[1:-1], clamped[1:-1])


# --- fine-tuning without a timestep -----------------------------------------------------------------


def test_fine_tuning_tells_timestep_0_or_none_and_then_nothing_is_added() -> None:
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    zero, none = (tiny_trial("ddpm", network=UNET, finetune={"timestep": told}) for told in (0, None))
    network = build_network(zero.network, num_outputs=3, image_size=16, seed=0)
    told, untold = run_network(network, images, zero), run_network(network, images, none)
    assert torch.equal(told, network(images, torch.zeros(2, dtype=torch.long)))
    assert not torch.allclose(told, untold)
    untold.sum().backward()
    idle = {name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    time = {name for name, _ in network.named_parameters() if "time_emb" in name}
    assert len(time) == 4 + 2 * 8  # the embedding's two layers, and one in each of eight residual blocks
    assert idle == time
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "time_emb_proj" in name:
                weight.zero_()
    torch.testing.assert_close(run_network(network, images, zero), untold)
    torch.testing.assert_close(run_network(network, images, none), untold)


def test_no_timestep_changes_the_trial_and_not_its_pre_training() -> None:
    zero, none = tiny_trial("ddpm"), tiny_trial("ddpm", finetune={"timestep": None})
    assert zero.trial_id == tiny_trial("ddpm", finetune={"timestep": 0}).trial_id != none.trial_id
    assert zero.pretrain_key == none.pretrain_key
    assert trial_of_row(spec_columns(none)) == none
    reference = [
        tiny_trial("ddpm", network=small_network("reference"), finetune={"timestep": told}).trial_id
        for told in (0, None)
    ]
    assert reference[0] == reference[1]


def test_a_trial_with_all_of_the_authors_settings_runs(tmp_path: Path) -> None:
    pretrain = {
        "timesteps": 20, "ema_ramp": False, "clip_on": "sum", "epoch_end": "short", "beta_schedule": "cosine_clamped",
        "augment": {"shift": 0.02, "rotate": 2.0}, "steps": 3,
    }  # fmt: skip
    spec = tiny_trial(
        "ddpm", network={**UNET, "input_range": "unit"}, pretrain=pretrain, finetune={"timestep": None, "epochs": 1}
    )
    row = run_trial(spec, Store.open(tmp_path / "run"), data_in(None))
    assert row["status"] == "finished"
    assert (row["finetune_timestep"], row["network_input_range"], row["pretrain_augment_rotate"]) == (None, "unit", 2.0)
