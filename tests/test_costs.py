"""Costs: operations counted against torch, and what an earlier run's tables teach."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ablate import tables
from ablate.errors import InputError
from ablate.network.building import build_network
from ablate.schedule.costs import (
    ENCODER_FLOPS,
    costs_for,
    default_costs,
    forward_flops,
    measured_costs,
    require_measured,
)
from ablate.space import METHODS, NetworkSpec, TrialSpec, find_grid, load_grid, shipped_grids
from ablate.store import Store
from ablate.tables import trial_of_row

TINY = {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "attention": "none"}


def trial(method="ddpm", steps=100, shots=5, **fields):
    pretrain = {"method": method, **({} if METHODS[method].code is None else {"steps": steps})}
    return TrialSpec.model_validate({"dataset": "synthetic", "shots": shots, "pretrain": pretrain, **fields})


# --- defaults


def counted_flops(network, image_size):
    with torch.device("meta"), torch.no_grad():
        built = build_network(network, num_outputs=19, image_size=image_size, seed=0).eval()
        images = torch.empty(1, 1, image_size, image_size)
        counts = []
        for function in (built.features, built):
            with FlopCounterMode(display=False) as counter:
                function(images)
            counts.append(counter.get_total_flops())
    return counts


@pytest.mark.parametrize(
    ("network", "image_size"),
    [
        (NetworkSpec(), 256),
        (NetworkSpec(attention="none"), 64),
        (NetworkSpec(channels=(16, 32, 64), layers_per_block=1), 256),
        (NetworkSpec(channels=(8, 8, 16, 24, 64), layers_per_block=3), 128),
        (NetworkSpec(kind="encoder", encoder="densenet161"), 256),
        (NetworkSpec(kind="encoder", encoder="resnet18"), 128),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(map(str, value.channels)) + value.encoder,
)
def test_operations_of_a_forward_pass_are_those_torch_counts(network, image_size):
    assert forward_flops(network, image_size) == pytest.approx(counted_flops(network, image_size), rel=0.02)


def test_an_unlisted_encoder_counts_as_densenet161():
    flops = forward_flops(NetworkSpec(kind="encoder", encoder="mit_b0"), 256)
    assert flops == (ENCODER_FLOPS["densenet161"][0], sum(ENCODER_FLOPS["densenet161"]))


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.code is not None])
@pytest.mark.parametrize("gpus", [0.0, 0.5, 1.0])
def test_every_pretraining_method_has_a_cost_that_grows_with_its_batch(method, gpus):
    costs = default_costs(gpus_pretrain=gpus)
    small, large = (
        trial(pretrain={"method": method, "batch_size": 4, "accumulate": accumulate}).pretraining
        for accumulate in (1, 8)
    )
    assert costs.pretrain_step(large) == pytest.approx(8 * costs.pretrain_step(small))


def test_a_quarter_of_a_gpu_is_slower_but_at_most_four_times_and_two_gpus_are_not_faster():
    spec = trial(dataset="hand", shots="all")
    quarter, whole, two = (default_costs(gpus_finetune=gpus).finetune(spec) for gpus in (0.25, 1, 2))
    assert whole < quarter < 4 * whole
    assert two == whole


def test_more_shots_epochs_and_pixels_cost_more():
    finetune = default_costs().finetune
    base = finetune(trial(shots=10))
    assert base < finetune(trial(shots=50)) < finetune(trial(shots="all"))
    assert base < finetune(trial(shots=10, image_size=512))
    assert base > finetune(trial(shots=10, finetune={"epochs": 20}))


# --- measured


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "run")


def write_trial(store, spec, **times):
    row = tables.blank("trials") | tables.spec_columns(spec) | {"status": "finished"} | times
    tables.write_rows(store, "trials", spec.trial_id, [row])


def write_stage(store, spec, kind, attempt, seconds, from_step=0, to_step=0, outcome="finished", gpus=1.0):
    row = tables.blank("stages") | {
        "kind": kind,
        "pretrain_key": spec.pretrain_key,
        "trial_id": None if kind == "pretrain" else spec.trial_id,
        "from_step": from_step,
        "to_step": to_step,
        "seconds": seconds,
        "gpus": gpus,
        "outcome": outcome,
    }
    name = spec.pretrain_key if kind == "pretrain" else spec.trial_id
    tables.write_rows(store, "stages", tables.stage_part(kind, name, attempt), [row])


def test_a_run_without_finished_stages_measures_nothing(store):
    spec = trial()
    write_trial(store, spec)
    write_stage(store, spec, "pretrain", "a", 50.0, to_step=100, outcome="interrupted")
    write_stage(store, spec, "finetune", "b", 7.0, outcome="running", gpus=0.25)
    assert measured_costs(store) is None
    assert costs_for(store).finetune(spec) == default_costs().finetune(spec)
    with pytest.raises(InputError, match="--costs must be a run with finished stages on a GPU"):
        require_measured(store, gpus_pretrain=1, gpus_finetune=0.25)


def test_a_pretraining_costs_the_median_seconds_per_step_of_its_finished_attempts(store):
    spec = trial()
    write_trial(store, spec)
    write_stage(store, spec, "pretrain", "a", 20.0, to_step=100)  # 0.2 a step
    write_stage(store, spec, "pretrain", "b", 30.0, from_step=50, to_step=150)  # 0.3 a step
    write_stage(store, spec, "pretrain", "c", 40.0, from_step=10, to_step=20)  # 4 a step
    write_stage(store, spec, "pretrain", "d", 900.0, to_step=10, outcome="failed")
    write_stage(store, spec, "pretrain", "e", 3.0, from_step=100, to_step=100)  # all was there already
    assert costs_for(store).pretrain_step(spec.pretraining) == pytest.approx(0.3)
    longer = trial(steps=900)
    assert costs_for(store).pretrain_step(longer.pretraining) == pytest.approx(0.3)


def test_a_finetuning_costs_the_median_over_its_seeds_if_one_attempt_did_all_of_it(store):
    seeds = [trial(seed=seed) for seed in range(4)]
    for spec, seconds in zip(seeds, (10.0, 30.0, 20.0, 1.0), strict=True):
        write_trial(store, spec)
        write_stage(store, spec, "finetune", "a", seconds, from_step=40 if seconds == 1.0 else 0, gpus=0.25)
    assert costs_for(store).finetune(trial(seed=77)) == pytest.approx(20.0)


def test_what_was_never_measured_is_scaled_by_the_most_similar_that_was(store):
    ddpm, dino = trial(), trial("dino", network=TINY)
    for spec, factor in ((ddpm, 2.0), (dino, 8.0)):
        write_trial(store, spec)
        usual = default_costs()
        write_stage(store, spec, "pretrain", "a", factor * 100 * usual.pretrain_step(spec.pretraining), to_step=100)
        write_stage(store, spec, "finetune", "a", 3 * factor * usual.finetune(spec), gpus=0.25)
    costs, usual = costs_for(store), default_costs()

    def ratios(spec):
        return costs.pretrain_step(spec.pretraining) / usual.pretrain_step(spec.pretraining), costs.finetune(
            spec
        ) / usual.finetune(spec)

    assert ratios(trial(dataset="hand", image_size=128)) == pytest.approx((2, 6))  # the same method
    assert ratios(trial("byol", network=TINY)) == pytest.approx((5, 15))  # any method on a U-Net
    assert ratios(trial("mocov3")) == pytest.approx((5, 15))  # any pre-training, any fine-tuning
    assert costs.finetune(trial("scratch")) / usual.finetune(trial("scratch")) == pytest.approx(15)


def test_another_share_of_a_gpu_scales_what_was_measured(store):
    spec = trial()
    write_trial(store, spec)
    quarter, whole = (default_costs(gpus_finetune=gpus).finetune(spec) for gpus in (0.25, 1.0))
    write_stage(store, spec, "finetune", "a", 2 * quarter, gpus=0.25)
    assert costs_for(store, gpus_finetune=0.25).finetune(spec) == pytest.approx(2 * quarter)
    assert costs_for(store, gpus_finetune=1.0).finetune(spec) == pytest.approx(2 * whole)


def test_a_run_on_a_cpu_says_nothing_about_a_gpu(store):
    spec = trial()
    write_trial(store, spec)
    write_stage(store, spec, "finetune", "a", 60.0, gpus=0.0)
    assert measured_costs(store) is None
    assert costs_for(store, gpus_pretrain=0, gpus_finetune=0).finetune(spec) == pytest.approx(60)


def test_whole_trials_count_by_the_times_in_their_rows(store):
    spec = trial()
    write_trial(store, spec, pretrain_seconds=50.0, finetune_seconds=20.0, evaluate_seconds=2.0)
    write_stage(store, spec, "trial", "a", 75.0)
    costs = costs_for(store, gpus_finetune=1)
    assert costs.pretrain_step(spec.pretraining) == pytest.approx(0.5)
    assert costs.finetune(spec) == pytest.approx(22)


@pytest.mark.parametrize("name", shipped_grids())
def test_a_trial_is_found_again_in_its_row(name):
    for spec in load_grid(find_grid(name)).trials:
        assert trial_of_row(tables.spec_columns(spec)).trial_id == spec.trial_id
