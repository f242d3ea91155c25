"""Costs: operations against hand counts and published ones, and the seconds in an earlier run's tables."""

import json
import subprocess
import sys
from importlib import resources

import pytest

from ablate import tables
from ablate.errors import InputError
from ablate.schedule.costs import costs_for, default_costs, measured_costs, require_measured, step_work
from ablate.schedule.flops import TABLE, forward_flops, shipped_networks, tabulate
from ablate.space import METHODS, NetworkSpec, TrialSpec, find_grid, load_grid, shipped_grids
from ablate.store import Store
from ablate.tables import trial_of_row

TINY = {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "attention": "none"}


def trial(method="ddpm", steps=100, shots=5, **fields):
    pretrain = {"method": method, **({} if METHODS[method].code is None else {"steps": steps})}
    return TrialSpec.model_validate({"dataset": "synthetic", "shots": shots, "pretrain": pretrain, **fields})


# --- defaults


def worked_out_flops(network, image_size):
    """Count the convolutions and the attention of diffusers' UNet2DModel: encoder, all but the output."""
    channels, layers = network.channels, network.layers_per_block
    pixels = [image_size**2 / 4**level for level in range(len(channels))]
    last = len(channels) - 1

    def conv(level, before, after, kernel=3):
        return 2 * kernel * kernel * before * after * pixels[level]

    def residual(level, before, after):
        shortcut = conv(level, before, after, kernel=1) if before != after else 0
        return conv(level, before, after) + conv(level, after, after) + shortcut

    down, skips = conv(0, 1, channels[0]), [channels[0]]
    for level, width in enumerate(channels):
        for layer in range(layers):
            down += residual(level, channels[max(level - 1, 0)] if layer == 0 else width, width)
            skips.append(width)
        if level < last:
            down += conv(level + 1, width, width)
            skips.append(width)
    width = channels[last]
    middle = 2 * residual(last, width, width)
    if network.attention == "middle":
        middle += 4 * conv(last, width, width, kernel=1) + 4 * pixels[last] ** 2 * width
    up = 0
    for level in range(last, -1, -1):
        for _ in range(layers + 1):
            up += residual(level, width + skips.pop(), channels[level])
            width = channels[level]
        if level:
            up += conv(level - 1, width, width)
    return down + middle, down + middle + up


@pytest.mark.parametrize(
    ("network", "image_size"),
    [
        (NetworkSpec(), 256),
        (NetworkSpec(attention="none"), 64),
        (NetworkSpec(channels=(16, 32, 64), layers_per_block=1), 256),
        (NetworkSpec(channels=(8, 8, 16, 24, 64), layers_per_block=3), 128),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(map(str, value.channels)),
)
def test_operations_of_a_unet_are_those_of_its_layers(network, image_size):
    # what is left out, time embedding and output layer, is less than a hundredth
    assert forward_flops(network, image_size) == pytest.approx(worked_out_flops(network, image_size), rel=0.02)


@pytest.mark.parametrize(
    ("encoder", "multiply_adds"),
    [("resnet18", 1.814e9), ("resnet50", 4.089e9), ("densenet161", 7.728e9)],  # with the classifier; torchvision's docs
)
def test_operations_of_an_encoder_are_those_that_its_library_publishes(encoder, multiply_adds):
    flops = forward_flops(NetworkSpec(kind="encoder", encoder=encoder), 224)
    assert flops.encoder == pytest.approx(2 * multiply_adds, rel=0.001)
    assert flops.whole > flops.encoder


def test_an_encoder_that_needs_memory_is_counted_too():
    small, large = (forward_flops(NetworkSpec(kind="encoder", encoder=name), 64) for name in ("mit_b0", "densenet161"))
    assert 0 < small.encoder < small.whole < large.encoder


def test_a_network_that_cannot_be_built_has_no_cost():
    with pytest.raises(InputError, match=r"network\.encoder must be an encoder of .*; got 'densenet116'"):
        forward_flops(NetworkSpec(kind="encoder", encoder="densenet116"), 256)


def test_the_table_is_what_torch_counts_for_the_shipped_search_spaces():
    written = json.loads(resources.files("ablate.schedule").joinpath(TABLE).read_text())
    assert written == {key: counts._asdict() for key, counts in tabulate(shipped_networks()).items()}


def test_planning_a_shipped_search_space_needs_no_torch():
    code = """
import sys
from ablate.schedule.costs import default_costs
from ablate.schedule.forecast import forecast
from ablate.schedule.machine import Machine
from ablate.space import find_grid, load_grid, plan_of, shipped_grids
for name in shipped_grids():
    forecast(plan_of(load_grid(find_grid(name)).trials), default_costs(), Machine(64))
sys.exit(bool({"torch", "ray"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.code is not None])
@pytest.mark.parametrize("gpus", [0.0, 0.5, 1.0])
def test_every_pretraining_method_has_a_cost_that_grows_with_its_batch(method, gpus):
    costs = default_costs(gpus_pretrain=gpus)
    small, large = (
        trial(pretrain={"method": method, "batch_size": 4, "accumulate": accumulate}).pretraining
        for accumulate in (1, 8)
    )
    assert costs.pretrain_step(large) == pytest.approx(8 * costs.pretrain_step(small))


def test_negatives_of_a_step_of_several_groups_cost_another_pass_without_gradients():
    def seconds(accumulate, negatives):
        fields = {"method": "simclr", "accumulate": accumulate, "negatives": negatives}
        return default_costs(gpus_pretrain=0.0).pretrain_step(trial(pretrain=fields).pretraining)

    assert seconds(1, "step") == seconds(1, "pass")
    assert 1 < seconds(8, "step") / seconds(8, "pass") <= 2
    flops = [
        step_work(trial(pretrain={"method": "simclr", "negatives": n}).pretraining).flops for n in ("pass", "step")
    ]
    assert flops[1] / flops[0] == pytest.approx(4 / 3)


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
    assert finetune(trial(shots=10, finetune={"steps": 200})) == base  # 200 epochs of one window
    assert finetune(trial(shots=10, finetune={"steps": 2000})) > 5 * base  # but no more validations


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
