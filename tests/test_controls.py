"""What tells whether it is diffusion that helps: denoising at one level, masked images, the encoder alone,
and timesteps that end with the same noise.
"""

import math
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from fake_run import specs, write_fake_run
from safetensors.torch import save
from test_tables import frame
from tiny import small_network, tiny_trial
from torch import Tensor
from tuned import load_space, tune_section

from ablate import tables
from ablate.network.base import Denoiser
from ablate.network.building import build_network
from ablate.pretrain import build_method
from ablate.pretrain.ddpm import NoiseSchedule
from ablate.pretrain.denoise import Denoise
from ablate.pretrain.mask import GREY, Mask, hidden_patches
from ablate.pretrain.whole import WholeNetworkTraining
from ablate.report.analysis import analyse
from ablate.report.chart_kinds import LineChart
from ablate.report.charts import timestep_charts
from ablate.report.pivot import as_tables, pivot
from ablate.report.run_data import read_run
from ablate.report.tunings import Tuned
from ablate.running.naming import Names
from ablate.schedule.costs import step_work
from ablate.space import (
    METHODS,
    BetaSchedule,
    DdpmSpec,
    DenoiseSpec,
    MaskSpec,
    Pretraining,
    TrialSpec,
    WholeNetwork,
    find_grid,
    load_grid,
    plan_of,
    signal_left,
)
from ablate.space.noise import fixed_betas
from ablate.space.words import arm_words
from ablate.stage.inputs import initial_network
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.store.layout import MODEL, pretrained_folder, step_folder
from ablate.training import seeded

torch.set_num_threads(1)

WHOLE = tuple(name for name, method in METHODS.items() if issubclass(method.spec, WholeNetwork))
IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def pretraining_of(method: str, kind: str = "unet", **fields: Any) -> Pretraining:
    pretraining = tiny_trial(method, network=small_network(kind), pretrain=fields).pretraining
    assert pretraining is not None
    return pretraining


def built(method: str, kind: str = "unet", **fields: Any) -> WholeNetworkTraining[Any]:
    made = build_method(pretraining_of(method, kind, **fields))
    assert isinstance(made, WholeNetworkTraining)
    return made


def seen_by(network: Denoiser) -> list[tuple[Tensor, Tensor | None]]:
    """Return a list to which every image that goes through the network is added, with its timesteps."""
    seen, denoise = [], network.denoise

    def spy(scaled_B1HW: Tensor, timesteps_B: Tensor | None = None) -> Tensor:
        seen.append((scaled_B1HW, timesteps_B))
        return denoise(scaled_B1HW, timesteps_B)

    network.denoise = spy  # type: ignore[method-assign]
    return seen


# --- what all of them share -------------------------------------------------------------------------


def test_arms_differ_in_what_is_seen_and_predicted_and_in_no_other_field() -> None:
    assert set(WHOLE) == {"ddpm", "denoise", "mask"}
    shared = WholeNetwork.model_fields
    for method in WHOLE:
        fields = METHODS[method].spec.model_fields
        own = {name for name in fields if name not in shared or fields[name].default != shared[name].default}
        assert own <= {"method", "timesteps", "beta_schedule", "betas", "noise", "patches", "mask_ratio"}
        assert METHODS[method].networks == METHODS["ddpm"].networks
        work = step_work(pretraining_of(method))
        assert work == step_work(pretraining_of("ddpm"))


@pytest.mark.parametrize("method", ["denoise", "mask"])
def test_unet_is_told_the_timestep_of_fine_tuning_and_the_reference_network_none(method: str) -> None:
    for kind in ("unet", "reference"):
        made = built(method, kind)
        seen = seen_by(made.network)
        made.loss(*made.prepare(IMAGES, seeded("cpu", 0), 1))
        ((_, timesteps),) = seen
        assert timesteps is None if kind == "reference" else timesteps.tolist() == [0, 0, 0]


# --- denoising --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "reference"])
def test_noise_of_one_level_is_added_in_the_networks_range_and_predicted(kind: str) -> None:
    made = built("denoise", kind, noise=0.75)
    assert isinstance(made, Denoise)
    seen = seen_by(made.network)
    scaled, noise = made.prepare(IMAGES, seeded("cpu", 0), 1)
    assert torch.equal(scaled, IMAGES * 2 - 1 if kind == "unet" else IMAGES)
    loss = made.loss(scaled, noise)
    ((noised, timesteps),) = seen
    torch.testing.assert_close(noised, (scaled + 0.75 * noise) / 1.25)  # the root of 1 + 0.75^2
    torch.testing.assert_close(loss, (made.network.denoise(noised, timesteps) - noise).square().mean())


def test_images_are_noised_as_ddpm_noises_them_at_the_timestep_of_this_level() -> None:
    schedule = NoiseSchedule(DdpmSpec())
    left = float((1 - schedule.betas.double()).cumprod(0)[100])
    made = built("denoise", noise=math.sqrt((1 - left) / left))
    assert isinstance(made, Denoise)
    scaled, noise = made.prepare(IMAGES, seeded("cpu", 0), 1)
    torch.testing.assert_close(
        made.noised(scaled, noise), schedule.add_noise(scaled, noise, torch.tensor([100])), rtol=0, atol=1e-5
    )


def test_levels_of_ddpm_are_those_of_the_docstring() -> None:
    left = (1 - NoiseSchedule(DdpmSpec()).betas.double()).cumprod(0)
    levels = ((1 - left) / left).sqrt()[1:]  # of the timesteps that are drawn
    assert [float(levels[0]), float(levels[-1])] == pytest.approx([0.015, 12.5], rel=0.05)
    assert float((levels < DenoiseSpec().noise).double().mean()) == pytest.approx(0.09, abs=0.005)
    assert float(levels.median()) == pytest.approx(1.6, abs=0.05)


# --- masking ----------------------------------------------------------------------------------------


def test_every_image_hides_the_same_number_of_patches_at_places_of_its_own() -> None:
    hidden = hidden_patches(500, 4, 10, torch.Generator().manual_seed(0))
    assert hidden.shape == (500, 4, 4)
    assert set(hidden.sum((1, 2)).tolist()) == {10}
    assert hidden.float().mean(0).sub(10 / 16).abs().max() < 0.1  # each place is hidden as often as the others
    assert len({tuple(one.flatten().tolist()) for one in hidden}) > 400


def test_hidden_patches_are_squares_of_middle_grey_and_the_others_are_as_they_were() -> None:
    made = built("mask", patches=4, mask_ratio=0.5)
    seen = seen_by(made.network)
    images, hidden = made.prepare(IMAGES, seeded("cpu", 0), 1)
    assert torch.equal(images, IMAGES)
    patches = hidden.reshape(3, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).flatten(3)  # image, row, column, pixels
    assert torch.equal(patches.all(3), patches.any(3))
    assert patches.any(3).sum((1, 2)).tolist() == [8, 8, 8]
    made.loss(images, hidden)
    ((shown, _),) = seen
    assert torch.equal(shown, torch.where(hidden, torch.tensor(GREY), IMAGES) * 2 - 1)


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
def test_loss_is_that_of_hidden_pixels_alone(loss: str, power: int) -> None:
    made = built("mask", patches=4, mask_ratio=0.3, loss=loss)
    assert isinstance(made, Mask)
    images, hidden = made.prepare(IMAGES, seeded("cpu", 0), 1)
    predicted = made.restored(images.masked_fill(hidden, GREY) * 2 - 1)
    distances = (predicted - (images * 2 - 1)).abs()[hidden] ** power
    assert distances.numel() == 3 * 5 * 16  # images, round(0.3 * 16) patches, pixels of each
    torch.testing.assert_close(made.loss(images, hidden), distances.mean())


def test_what_is_hidden_is_not_seen() -> None:
    made = built("mask")
    seen = seen_by(made.network)
    images, hidden = made.prepare(IMAGES, seeded("cpu", 0), 1)
    first = made.loss(images, hidden)
    other = made.loss(torch.where(hidden, 1 - images, images), hidden)
    assert torch.equal(seen[0][0], seen[1][0])
    assert first != other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patches": 7}, r"pretrain\.patches must divide image_size 16.*got 7; the nearest is 8"),
        (
            {"patches": 2, "mask_ratio": 0.1},
            r"pretrain\.mask_ratio must hide at least one of the 4 patches and leave one",
        ),
        ({"patches": 2, "mask_ratio": 0.9}, r"got 0\.9, which hides 4; choose one from 0\.25 to 0\.75"),
    ],
)
def test_patches_that_cannot_be_hidden_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_trial("mask", pretrain=fields)


def test_default_patches_are_those_of_the_docstring() -> None:
    spec = MaskSpec()
    assert 256 / spec.patches == 32
    assert spec.num_hidden == 38  # of 64


# --- the encoder alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WHOLE)
def test_what_is_transferred_changes_the_trial_and_not_the_pre_training(method: str) -> None:
    whole, encoder = (tiny_trial(method, pretrain={"transfer": transfer}) for transfer in ("network", "encoder"))
    assert whole.trial_id == tiny_trial(method).trial_id != encoder.trial_id
    assert whole.pretraining == encoder.pretraining
    assert whole.pretrain_key == encoder.pretrain_key == tiny_trial(method).pretrain_key
    plan = plan_of([encoder, whole])
    assert (len(plan.trials), len(plan.pretrainings)) == (2, 1)


@pytest.mark.parametrize("kind", ["unet", "reference"])
def test_fine_tuning_starts_from_the_encoder_alone_and_else_as_self_supervised_arms_do(
    kind: str, tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "run")

    def start(method: str, **pretrain: Any) -> dict[str, Tensor]:
        spec = tiny_trial(method, network=small_network(kind), pretrain={"steps": 1, **pretrain})
        folder = pretrained_folder(str(spec.pretrain_key))
        if not store.list(folder):
            snapshot = build_method(spec.pretraining).snapshot()
            moved = {name: tensor + 1 for name, tensor in snapshot.items()}
            store.publish(step_folder(folder, 1), {MODEL: save(moved)})
        network, _ = initial_network(spec, 12, store, folder)
        return network.state_dict()

    fresh = build_network(small_network(kind), num_outputs=12, image_size=16, seed=0)
    encoder = fresh.encoder_state().keys()
    self_supervised = start("simclr")
    whole, alone = start("ddpm"), start("ddpm", transfer="encoder")
    assert set(encoder) < set(alone)
    for name, tensor in alone.items():
        if name in encoder:
            assert torch.equal(tensor, whole[name])
            assert not torch.equal(tensor, fresh.state_dict()[name])
        else:
            assert torch.equal(tensor, self_supervised[name])
            assert torch.equal(tensor, fresh.state_dict()[name])
            assert name in fresh.output_names() or not torch.equal(tensor, whole[name])


def test_both_arms_of_a_run_share_one_pre_training_and_reach_other_numbers(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "run")
    rows = [
        run_trial(tiny_trial("ddpm", pretrain={"timesteps": 20, **more}), store, data_in(None))
        for more in ({}, {"transfer": "encoder"})
    ]
    assert [row["pretrain_transfer"] for row in rows] == ["network", "encoder"]
    assert rows[0]["mre"] != rows[1]["mre"]
    stages = tables.read_frame(store, "stages")
    assert stages["kind"].tolist().count("pretrain") == 1


def test_tables_and_the_screen_name_the_encoder_alone() -> None:
    trials = specs(methods=["ddpm", "mask", "scratch"], shots=[5])
    trials += specs(methods=["ddpm"], shots=[5], pretrain={"transfer": "encoder"})
    (table,) = pivot(frame(trials, [1.0] * len(trials))).tables
    labels = [row.label("pretrain_method") for row in table.group.rows]
    assert labels == ["DDPM (encoder only)", "DDPM (whole network)", "masking", "scratch"]
    found = {Names(trials).trial(trial) for trial in trials if trial.seed == 0}
    assert found == {"DDPM, seed 0", "DDPM, encoder only, seed 0", "masking, seed 0", "scratch, seed 0"}
    (both,) = {trial.pretraining.key: trial.pretraining for trial in trials if trial.method == "ddpm"}.values()
    assert Names(trials).pretraining(both) == "DDPM"


def test_a_tuned_arm_may_be_the_encoder_alone(tmp_path: Path) -> None:
    grid = load_space(
        tmp_path / "space.yaml",
        grid={"pretrain": [{"method": "ddpm", "transfer": ["network", "encoder"]}, {"method": "scratch"}]},
        tune=tune_section(arm=["pretrain.method", "pretrain.transfer"], per=["shots"]),
    )
    assert [study.arm for study in grid.studies[:3]] == [
        "pretrain_method=ddpm,pretrain_transfer=network",
        "pretrain_method=ddpm,pretrain_transfer=encoder",
        "pretrain_method=scratch",
    ]
    assert [arm_words(study.default, study.spec.arm) for study in grid.studies[:3]] == [
        "DDPM",
        "DDPM, encoder only",
        "scratch",
    ]
    assert [Tuned(study.arm, "", 0, pd.DataFrame(), 0.0).label for study in grid.studies[:3]] == [
        "DDPM",
        "DDPM, encoder only",
        "scratch",
    ]
    matched = tiny_trial("ddpm", pretrain={"timesteps": 10, "betas": "matched"})
    fields = ("pretrain.method", "pretrain.transfer", "pretrain.timesteps", "pretrain.betas", "network.kind")
    assert arm_words(matched, fields) == "DDPM, T=10, betas matched, unet"
    first, second = grid.studies[:2]
    assert first.tuning_trial({}, 100).pretrain_key == second.tuning_trial({}, 100).pretrain_key


# --- timesteps and their noise ----------------------------------------------------------------------

SCHEDULED: tuple[BetaSchedule, ...] = get_args(BetaSchedule)


@pytest.mark.parametrize(("timesteps", "share"), [(10, 0.90), (100, 0.36), (500, 0.006)])
def test_fewer_timesteps_of_todays_betas_leave_more_of_the_image(timesteps: int, share: float) -> None:
    left = signal_left("linear", timesteps, "fixed")
    betas = [1e-4 + (0.02 - 1e-4) * step / (timesteps - 1) for step in range(timesteps)]
    assert left == pytest.approx(math.prod(1 - beta for beta in betas), rel=1e-9)
    assert left == pytest.approx(share, abs=0.005 if share > 0.1 else 0.0005)


def schedule_of(**fields: Any) -> NoiseSchedule:
    return NoiseSchedule(DdpmSpec(**fields))


def left_by(schedule: NoiseSchedule) -> Tensor:
    return (1 - schedule.betas.double()).cumprod(0)


@pytest.mark.parametrize("beta_schedule", SCHEDULED)
@pytest.mark.parametrize("timesteps", [2, 10, 500, 1000])
def test_betas_without_torch_are_those_that_images_are_noised_with(beta_schedule: BetaSchedule, timesteps: int) -> None:
    expected = schedule_of(timesteps=timesteps, beta_schedule=beta_schedule).betas.tolist()
    assert fixed_betas(beta_schedule, timesteps) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("beta_schedule", SCHEDULED)
@pytest.mark.parametrize("timesteps", [2, 10, 100, 500, 1000])
def test_matched_timesteps_end_with_the_noise_of_500(beta_schedule: BetaSchedule, timesteps: int) -> None:
    end = signal_left(beta_schedule, 500, "fixed")
    assert signal_left(beta_schedule, timesteps, "matched") == pytest.approx(end, rel=1e-9)
    schedule = schedule_of(timesteps=timesteps, beta_schedule=beta_schedule, betas="matched")
    assert float(left_by(schedule)[-1]) == pytest.approx(end, abs=1e-6)
    assert bool(((schedule.betas > 0) & (schedule.betas <= 1)).all())


def test_matched_timesteps_go_the_way_of_500() -> None:
    whole = left_by(schedule_of())
    ten = left_by(schedule_of(timesteps=10, betas="matched"))
    torch.testing.assert_close(ten, whole[49::50], rtol=1e-5, atol=1e-7)
    thousand = left_by(schedule_of(timesteps=1000, betas="matched"))
    torch.testing.assert_close(thousand[1::2], whole, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(thousand[2::2], (whole[:-1] * whole[1:]).sqrt(), rtol=1e-4, atol=1e-7)


def test_matching_500_timesteps_to_themselves_changes_no_bit() -> None:
    fixed, matched = (build_method(pretraining_of("ddpm", betas=betas)) for betas in ("fixed", "matched"))
    prepared = fixed.prepare(IMAGES, seeded("cpu", 0), 1)
    assert torch.equal(schedule_of().betas, schedule_of(betas="matched").betas)
    assert torch.equal(fixed.loss(*prepared), matched.loss(*prepared))
    assert not torch.equal(schedule_of(timesteps=100).betas, schedule_of(timesteps=100, betas="matched").betas)


def test_matched_betas_are_another_pre_training_but_of_500_timesteps() -> None:
    for timesteps in (100, 500):
        todays = tiny_trial("ddpm", pretrain={"timesteps": timesteps})
        fixed, matched = (
            tiny_trial("ddpm", pretrain={"timesteps": timesteps, "betas": betas}) for betas in ("fixed", "matched")
        )
        assert fixed.trial_id == todays.trial_id != matched.trial_id
        assert fixed.pretrain_key == todays.pretrain_key
        assert (matched.pretrain_key == todays.pretrain_key) == (timesteps == 500)


def swept(*betas: str) -> list[TrialSpec]:
    return [
        spec
        for kind in betas
        for timesteps in (2, 10, 100, 500)
        for spec in specs(methods=["ddpm"], shots=[10], pretrain={"timesteps": timesteps, "betas": kind})
    ]


def chart_of(folder: Path, trials: list[TrialSpec]) -> LineChart:
    analysis = analyse(read_run(write_fake_run(folder / "run", trials, pictures=False)), num_resamples=20)
    (chart,) = timestep_charts(analysis)
    assert isinstance(chart, LineChart)
    return chart


TODAY = ((2.0, "2 (0.98)"), (10.0, "10 (0.90)"), (100.0, "100 (0.36)"), (500.0, "500 (0.006)"))


def test_an_axis_of_timesteps_says_what_is_left_of_the_image(tmp_path: Path) -> None:
    chart = chart_of(tmp_path, swept("fixed"))
    assert (chart.x_label, chart.x_ticks) == ("timesteps T (signal left at T)", TODAY)
    assert chart.lines[0].hover[1].startswith("10 (0.90), 3 seeds")


def test_beside_matched_betas_the_axis_says_both(tmp_path: Path) -> None:
    chart = chart_of(tmp_path, swept("fixed", "matched"))
    assert (chart.x_label, chart.x_ticks) == ("timesteps T (signal left at T; betas matched: 0.006)", TODAY)
    assert [line.label for line in chart.lines[:2]] == ["DDPM (betas fixed)", "DDPM (betas matched)"]
    assert [line.hover[1].partition(", ")[0] for line in chart.lines[:2]] == ["10 (0.90)", "10 (0.006)"]


def test_where_all_betas_are_matched_every_tick_has_the_same_noise(tmp_path: Path) -> None:
    chart = chart_of(tmp_path, swept("matched"))
    assert chart.x_label == "timesteps T (signal left at T)"
    assert [label for _, label in chart.x_ticks] == ["2 (0.006)", "10 (0.006)", "100 (0.006)", "500 (0.006)"]


@pytest.mark.parametrize("axes", [("pretrain.timesteps", "shots"), ("pretrain.method", "pretrain.timesteps")])
def test_a_table_along_timesteps_says_what_is_left(axes: tuple[str, str]) -> None:
    trials = swept("fixed")
    (table,) = as_tables(pivot(frame(trials, [1.0] * len(trials)), rows=axes[0], columns=axes[1]))
    shown = [row[0].text for row in table.rows] if axes[0] == "pretrain.timesteps" else list(table.header[1:])
    assert shown == [label for _, label in TODAY]
    assert "In parentheses the share of the image's variance that is left after the last timestep." in table.notes
    assert {record["pretrain_timesteps"] for record in table.records} == {2, 10, 100, 500}


# --- the search spaces ------------------------------------------------------------------------------

CONTROLS = {"DDPM", "DDPM, encoder only", "denoising", "masking", "SimCLR v2", "scratch"}


@pytest.mark.parametrize(("name", "more", "pretrainings"), [("why-ddpm-cpu", 2, 5), ("why-ddpm", 7, 10)])
def test_shipped_arms_are_tuned_alike_and_every_seed_has_its_own_pre_training(
    name: str, more: int, pretrainings: int
) -> None:
    grid = load_grid(find_grid(name))
    arms = {arm_words(study.default, ("pretrain.method", "pretrain.transfer")) for study in grid.studies}
    assert arms == CONTROLS
    assert len({study.arm for study in grid.studies}) == len(CONTROLS) + more
    budgets = {(study.spec.budget, study.spec.halve, tuple(study.search)) for study in grid.studies}
    assert len(budgets) == 1
    plan = plan_of(grid.trials)
    assert len(plan.pretrainings) == 3 * pretrainings
    assert {pretraining.fields.seed for pretraining in plan.pretrainings.values()} == {0, 1, 2}
    shared = [spec.pretrain_key for spec in grid.trials if getattr(spec.pretrain, "transfer", "") == "encoder"]
    assert set(shared) < {
        spec.pretrain_key for spec in grid.trials if getattr(spec.pretrain, "transfer", "") != "encoder"
    }


def test_whole_network_arms_on_a_cpu_differ_in_the_method_alone() -> None:
    plan = plan_of(load_grid(find_grid("why-ddpm-cpu")).trials)
    whole = [one for one in plan.pretrainings.values() if isinstance(one.fields, WholeNetwork)]
    assert len(whole) == 12
    told = {
        tuple(getattr(one.fields, name) for name in WholeNetwork.model_fields if name not in ("method", "seed"))
        for one in whole
    }
    assert len(told) == 1


def test_timesteps_on_gpus_stand_beside_their_matches_with_one_pre_training_at_500() -> None:
    trials = [spec for spec in load_grid(find_grid("why-ddpm")).trials if isinstance(spec.pretrain, DdpmSpec)]
    keys: dict[tuple[int, str], set[str | None]] = {}
    for spec in trials:
        assert isinstance(spec.pretrain, DdpmSpec)
        keys.setdefault((spec.pretrain.timesteps, spec.pretrain.betas), set()).add(spec.pretrain_key)
    assert set(keys) == {(timesteps, betas) for timesteps in (2, 10, 100, 500) for betas in ("fixed", "matched")}
    assert keys[500, "fixed"] == keys[500, "matched"]
    assert all(len(found) == 3 for found in keys.values())
    assert not keys[10, "fixed"] & keys[10, "matched"]
