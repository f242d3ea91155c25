"""Search spaces: expansion, identity, and what is refused with which words."""

import hashlib
from pathlib import Path

import pytest
import yaml

from ablate.errors import InputError
from ablate.space import (
    METHODS,
    Pretraining,
    Source,
    TrialSpec,
    axes_of,
    canonical,
    find_grid,
    flatten,
    load_grid,
    load_trial,
    nest,
    plan_of,
    shipped_grids,
    trial_fields,
)


def grid_of(text, *overrides):
    return load_grid(Source.parse(text, "my.yaml"), overrides)


def one_block(**lines):
    return "name: x\nblocks:\n  - grid:\n" + "".join(f"      {key}: {value}\n" for key, value in lines.items())


def trial(**fields):
    return TrialSpec.model_validate({"dataset": "synthetic", **fields})


# --- expansion


def test_a_grid_is_the_product_of_its_lists_also_inside_pretrain():
    grid = grid_of(
        one_block(
            dataset="synthetic", shots="[5, 10]", pretrain="[{method: ddpm, steps: [1, 2, 3]}, {method: scratch}]"
        )
    )
    assert len(grid.trials) == 2 * (3 + 1)


def test_equal_trials_of_two_blocks_are_one():
    block = "  - grid: {dataset: synthetic, shots: [5, 10]}\n"
    assert len(grid_of("name: x\nblocks:\n" + block + block).trials) == 2


def test_a_list_field_expands_only_as_a_list_of_lists():
    assert len(grid_of(one_block(dataset="synthetic", network="{channels: [8, 16]}")).trials) == 1
    grid = grid_of(one_block(dataset="synthetic", network="{channels: [[8, 16], [8, 16, 32]]}"))
    assert [spec.network.channels for spec in grid.trials] == [(8, 16), (8, 16, 32)]


def test_scientific_notation_without_a_point_is_a_number():
    (spec,) = grid_of(one_block(dataset="synthetic", finetune="{lr: 1e-3}")).trials
    assert spec.finetune.lr == 0.001


def test_base_pretrain_reaches_only_methods_that_have_the_field():
    grid = grid_of(
        "name: x\nbase: {dataset: synthetic, pretrain: {steps: 7}}\n"
        "blocks: [{grid: {pretrain: [{method: ddpm}, {method: scratch}]}}]"
    )
    assert [getattr(spec.pretrain, "steps", None) for spec in grid.trials] == [7, None]


def test_set_overrides_base_and_is_recorded():
    grid = grid_of(
        "name: x\nbase: {finetune: {epochs: 5}}\nblocks: [{grid: {dataset: synthetic}}]", "finetune.epochs=2"
    )
    assert grid.trials[0].finetune.epochs == 2
    assert grid.resolved["base"]["finetune"]["epochs"] == 2


def test_a_field_that_no_network_of_the_search_space_has_is_refused():
    given = "name: x\nbase: {dataset: synthetic, network: %s}\nblocks: [{grid: {network: %s}}]"
    both = grid_of(given % ("{layers_per_block: 1, encoder: resnet18}", "{kind: [unet, encoder]}"))
    assert [spec.network.kind for spec in both.trials] == ["unet", "encoder"]  # base speaks to the kinds with the field
    words = "has no effect: a network of kind unet has no field 'encoder', but attention, channels,"
    for base, grid in (("{encoder: resnet18}", "{kind: unet}"), ("{kind: unet}", "{encoder: resnet18}")):
        with pytest.raises(InputError, match=words):
            grid_of(given % (base, grid))
    with pytest.raises(InputError, match=f"^--set network.encoder=resnet18: {words}"):
        grid_of(one_block(dataset="synthetic"), "network.encoder=resnet18")
    other = grid_of("name: x\nbase: {network: {width: 8, kind: reference}}\nblocks: [{grid: {dataset: synthetic}}]",
                    "network.kind=unet")  # fmt: skip
    assert other.trials[0].network.kind == "unet"
    run = {"name": "x", "search_space": other.resolved, "sessions": [], "trials": []}
    assert load_grid(Source("run.yaml", run, None)).trials == other.trials  # what a run began with is not refused


def test_steps_take_the_place_of_the_default_epochs():
    grid = grid_of(one_block(dataset="synthetic", finetune="{steps: [100, 200]}"))
    assert [(spec.finetune.steps, spec.finetune.epochs) for spec in grid.trials] == [(100, None), (200, None)]
    text = "name: x\nbase: {finetune: {epochs: 5}}\nblocks: [{grid: {dataset: synthetic}}]"
    (spec,) = grid_of(text, "finetune.steps=7", "finetune.epochs=null").trials
    assert (spec.finetune.steps, spec.finetune.epochs) == (7, None)


def test_axes_are_the_fields_that_differ():
    grid = grid_of(one_block(dataset="synthetic", shots="[5, all]", seed="[0, 1]"))
    assert axes_of(grid.trials) == {"shots": [5, "all"], "seed": [0, 1]}


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_and_its_json_have_the_same_flat_fields(method):
    spec = trial(shots=3, pretrain={"method": method})
    columns = flatten(spec)
    assert columns["pretrain_method"] == method
    assert columns["finetune_augment_shift"] == 0.02
    assert list(columns) == [field.column for field in trial_fields(method)]
    assert flatten(spec.model_dump() | {"trial_id": "x"}) == columns
    assert TrialSpec.model_validate(nest((f.path, columns[f.column]) for f in trial_fields(method))) == spec


def test_what_a_mapping_lacks_or_has_too_much_is_left_out_of_its_flat_fields():
    old = {"dataset": "cephalo", "pretrain": {"method": "gone", "steps": 3, "x": 1}, "finetune": 5, "y": 2}
    assert flatten(old) == {"dataset": "cephalo", "pretrain_method": "gone", "pretrain_steps": 3}


@pytest.mark.parametrize("name", sorted(shipped_grids()))
def test_every_shipped_search_space_loads_and_says_its_name(name):
    grid = load_grid(find_grid(name))
    assert grid.name == name
    assert grid.description
    assert len({spec.trial_id for spec in grid.trials}) == len(grid.trials)


def test_the_shipped_search_spaces_are_those_the_documentation_names():
    named = {"demo", "paper", "label-efficiency", "timesteps", "cross-domain", "matched", "cephalo-cpu"}
    named |= {"cephalo-imagenet", "scn-cpu", "tuned", "tuned-paper", "authors-checkpoints", "recommended"}
    named |= {"why-ddpm", "why-ddpm-cpu"}
    assert set(shipped_grids()) == named


def test_the_paper_grid_holds_the_papers_protocol():
    trials = load_grid(find_grid("paper")).trials
    assert len(trials) == 3 * 5 * 3 * 6
    ddpm = {spec.dataset: spec.pretrain for spec in trials if spec.method == "ddpm"}
    assert {name: spec.steps for name, spec in ddpm.items()} == {"chest": 6000, "cephalo": 8000, "hand": 8000}
    assert {spec.finetune.lr for spec in trials if spec.method == "scratch"} == {1e-4}
    assert {spec.finetune.lr for spec in trials if spec.method != "scratch"} == {1e-5}
    assert {spec.finetune.augment.scale for spec in trials if spec.dataset == "chest"} == {0.0}


def test_every_shipped_search_space_but_those_of_a_published_protocol_draws_its_shots():
    for name in shipped_grids():
        drawn = {spec.few_shot for spec in load_grid(find_grid(name)).trials}
        assert drawn == ({"first"} if name in ("paper", "authors-checkpoints", "scn-cpu") else {"random"}), name


def test_no_initialisation_of_a_shipped_search_space_has_more_snapshots_to_choose_from_than_another():
    for name in shipped_grids():
        steps = {}
        for spec in load_grid(find_grid(name)).trials:
            if spec.pretraining is not None:
                fields = spec.pretrain.model_dump_json(exclude={"steps", "seed"})
                arm = (spec.dataset, spec.network, spec.shots, spec.seed, fields)
                steps.setdefault(arm, set()).add(spec.pretrain.steps)
        assert len({len(found) for found in steps.values()}) <= 1, name


def test_no_initialisation_of_matched_rests_on_a_single_pretraining():
    plan = plan_of(load_grid(find_grid("matched")).trials)
    seeds = {}
    for pretraining in plan.pretrainings.values():
        arm = (pretraining.fields.method, pretraining.network.kind)
        seeds.setdefault(arm, set()).add(pretraining.fields.seed)
    assert len(seeds) == 12
    assert set(map(frozenset, seeds.values())) == {frozenset({0, 1, 2})}


@pytest.mark.parametrize(
    ("blocks", "digest"),
    [
        (  # the paper's arms by the defaults of a trial
            [
                {
                    "dataset": datasets,
                    "shots": [5, 10, 25, 50, "all"],
                    "seed": [0, 1, 2],
                    "pretrain": [
                        {"method": "ddpm", "timesteps": 500, "steps": steps},
                        *({"method": name, "steps": 10_000} for name in ("mocov3", "simclrv2", "dino")),
                        {"method": "imagenet"},
                        {"method": "scratch"},
                    ],
                }
                for datasets, steps in (("chest", 6000), (["cephalo", "hand"], 8000))
            ],
            "cc0ded9fcda9",
        ),
    ],
)
def test_the_identities_of_trials_never_change(blocks, digest, tmp_path):
    grid = tmp_path / "grid.yaml"
    described = {"name": "fixed", "description": "fixed", "blocks": [{"grid": block} for block in blocks]}
    grid.write_text(yaml.safe_dump(described))
    ids = sorted(spec.trial_id for spec in load_grid(find_grid(str(grid))).trials)
    assert hashlib.sha256("".join(ids).encode()).hexdigest()[:12] == digest


# --- identity


def test_the_trial_id_of_a_fixed_trial_never_changes():
    spec = trial(shots=10, pretrain={"method": "ddpm", "timesteps": 250})
    text = (
        '{"dataset":"synthetic","image_size":256,"method":"ddpm","pretrain":{"timesteps":250},'
        '"shots":10,"spec_version":1}'
    )
    assert spec.trial_id == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_a_default_written_out_is_the_same_trial():
    for method in METHODS:
        short = trial(pretrain={"method": method})
        full = TrialSpec.model_validate(short.model_dump())
        assert full.trial_id == short.trial_id, method
        assert full.pretrain_key == short.pretrain_key


def test_key_order_does_not_matter():
    left = TrialSpec.model_validate({"dataset": "synthetic", "shots": 5, "seed": 1})
    right = TrialSpec.model_validate({"seed": 1, "shots": 5, "dataset": "synthetic"})
    assert left.trial_id == right.trial_id


def test_fields_that_the_network_does_not_have_do_not_change_the_identity():
    encoder = {"method": "mocov3"}
    left = trial(pretrain=encoder)
    right = trial(pretrain=encoder, network={"channels": (8, 16)})
    assert left.trial_id == right.trial_id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"shots": 5},
        {"few_shot": "random"},
        {"finetune": {"epochs": 3}},
        {"finetune": {"validate_every": 2}},
        {"evaluate": {"decode": "argmax"}},
    ],
)
def test_trials_that_differ_after_pretraining_share_it(change):
    base, other = trial(pretrain={"method": "ddpm"}), trial(pretrain={"method": "ddpm"}, **change)
    assert base.trial_id != other.trial_id
    assert base.pretrain_key == other.pretrain_key


@pytest.mark.parametrize(
    ("pretrain", "fields"),
    [
        ({"timesteps": 100}, {}),
        ({"seed": 1}, {}),
        ({"lr": 1e-3}, {}),
        ({}, {"image_size": 64}),
        ({}, {"network": {"channels": (8, 16)}}),
        ({}, {"precision": "bf16"}),
        ({"dataset": "hand"}, {}),
    ],
)
def test_whatever_a_pretraining_depends_on_changes_its_key(pretrain, fields):
    base = trial(pretrain={"method": "ddpm"})
    assert trial(pretrain={"method": "ddpm", **pretrain}, **fields).pretrain_key != base.pretrain_key


def test_the_seed_of_a_pretraining_may_follow_the_trials():
    follows = trial(seed=3, pretrain={"method": "ddpm", "seed": "trial"})
    assert follows == trial(seed=3, pretrain={"method": "ddpm", "seed": 3})
    assert trial(pretrain={"method": "ddpm", "seed": "trial"}).trial_id == trial(pretrain={"method": "ddpm"}).trial_id
    grid = grid_of(one_block(dataset="synthetic", seed="[0, 1]", pretrain="{method: ddpm, seed: trial}"))
    assert [spec.pretrain.seed for spec in grid.trials] == [0, 1]
    assert len(plan_of(grid.trials).pretrainings) == 2


def test_steps_change_the_trial_but_not_the_pretraining():
    trials = [trial(pretrain={"method": "ddpm", "steps": steps}) for steps in (10, 20_000, 8000)]
    assert len({spec.trial_id for spec in trials}) == 3
    plan = plan_of(trials)
    ((key, pretraining),) = plan.pretrainings.items()
    assert pretraining.fields.steps == 20_000
    assert plan.snapshots[key] == (10, 8000, 20_000)  # 8000 is the default


def test_a_pretraining_on_another_data_set_serves_every_data_set():
    hand = trial(dataset="hand", pretrain={"method": "ddpm"})
    across = trial(dataset="cephalo", pretrain={"method": "ddpm", "dataset": "hand"})
    assert hand.pretrain_key == across.pretrain_key


def test_scratch_and_imagenet_have_no_pretraining():
    assert trial().pretrain_key is None
    assert trial(pretrain={"method": "imagenet"}).pretrain_key is None


def test_weights_enter_the_identity_by_content(tmp_path):
    ids = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        ids.append(trial(pretrain={"method": "imagenet", "weights": str(tmp_path / name)}).trial_id)
    assert ids[0] == ids[1] != ids[2]


def test_a_spec_survives_json():
    spec = trial(shots=10, pretrain={"method": "dino"}, network={"kind": "unet", "channels": (8, 16)})
    assert TrialSpec.model_validate_json(spec.model_dump_json()) == spec
    pretraining = spec.pretraining
    assert Pretraining.model_validate_json(pretraining.model_dump_json()).key == pretraining.key


def test_canonical_holds_only_what_differs():
    assert canonical(trial()) == {"dataset": "synthetic", "image_size": 256, "method": "scratch", "spec_version": 1}


# --- what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            one_block(dataset="synthetic", pretrain="{method: ddpm, timestps: [5]}"),
            ["my.yaml:5", "pretrain.timestps", "'timestps'", "did you mean 'timesteps'"],
        ),
        (
            one_block(dataset="synthetic", pretrain="[{method: ddmp}]"),
            ["my.yaml:5", "pretrain[0].method", "'ddmp'", "did you mean 'ddpm'"],
        ),
        (
            one_block(dataset="synthetic", pretrain="{method: imagenet}", network="{kind: unet}"),
            ["my.yaml:6", "network.kind", "encoder", "'unet'"],
        ),
        (
            one_block(dataset="synthetic", pretrain="{method: ddpm}", network="{kind: encoder}"),
            ["network.kind", "unet"],
        ),
        (one_block(dataset="synthetic", shots="[5, x]"), ["my.yaml:5", "shots[1]", "'x'", "all"]),
        (one_block(dataset="synthetic", shots="0"), ["shots", "at least 1", "got 0"]),
        (one_block(dataset="synthetic", seed="true"), ["seed", "whole number", "True"]),
        (one_block(dataset="synthetic", finetune="{loss: cee}"), ["finetune.loss", "ce, spatial_ce, mse", "'ce'"]),
        (one_block(dataset="synthetic", finetune="{lr: fast}"), ["finetune.lr", "a number", "'fast'"]),
        (one_block(dataset="synthetic", finetune="{lr: -1}"), ["finetune.lr", "above 0", "-1"]),
        (one_block(dataset="synthetic", finetune="5"), ["finetune", "mapping", "5"]),
        (one_block(dataset="synthetic", fintune="{lr: 1}"), ["fintune", "did you mean 'finetune'"]),
        (one_block(shots="5"), ["dataset is required"]),
        (one_block(dataset="../etc"), ["dataset", "folder", "'../etc'"]),
        (one_block(dataset="synthetic", image_size="100", pretrain="{method: mocov3}"), ["image_size", "32", "96"]),
        (one_block(dataset="synthetic", seed="[]"), ["seed", "empty"]),
        (
            one_block(dataset="synthetic", pretrain="{method: imagenet, weights: nowhere.pth}"),
            ["weights", "nowhere.pth"],
        ),
        (one_block(dataset="synthetic", pretrain="{method: simclr, batch_size: 1}"), ["batch_size", "at least 2"]),
        (
            one_block(dataset="synthetic", validation="inside_shots", shots="1"),
            ["my.yaml:6", "shots must be at least 2", "inside_shots", "got 1", "validation: none"],
        ),
        (
            one_block(dataset="synthetic", validation="none"),
            ["finetune.schedule must be linear or constant", "validation: none", "'plateau'"],
        ),
        (
            one_block(dataset="synthetic", finetune="{epochs: 20, steps: 100}"),
            ["my.yaml:5", "finetune.steps must be left out", "steps 100", "epochs 20"],
        ),
        (one_block(dataset="synthetic", finetune="{epochs: null}"), ["finetune.epochs must be", "null for both"]),
        (one_block(dataset="synthetic", finetune="{steps: 0}"), ["finetune.steps", "at least 1", "got 0"]),
        (one_block(dataset="synthetic", validation="some"), ["full, inside_shots, none", "'some'"]),
        (one_block(dataset="synthetic", validation_share="1.0"), ["validation_share", "below 1", "1.0"]),
        (
            one_block(dataset="synthetic", pretrain="{method: ddpm, seed: trail}"),
            ["my.yaml:5", "pretrain.seed must be a whole number", "trial", "'trail'"],
        ),
        ("name: x\nbase: {shots: [1, 2]}\nblocks: [{grid: {dataset: synthetic}}]", ["my.yaml:2", "base never expands"]),
        (
            "name: x\nbase: {pretrain: {temprature: 1}}\nblocks: [{grid: {dataset: a, pretrain: {method: simclr}}}]",
            ["base.pretrain.temprature", "did you mean 'temperature'"],
        ),
        ("name: x\nblock: []", ["my.yaml:2", "'block'", "did you mean 'blocks'"]),
        ("name: x\nblocks: []", ["at least one block"]),
        ("name: x\nblocks: [{gird: {}}]", ["blocks[0]", "grid"]),
        ("name: x\nname: y", ["my.yaml:2", "twice"]),
        ("name: [x", ["my.yaml", "not valid YAML"]),
        ("just text", ["mapping"]),
        ("name: ../x\nblocks: [{grid: {dataset: a}}]", ["name", "'../x'"]),
    ],
)
def test_a_bad_search_space_is_refused_with_place_rule_value_and_cure(text, words):
    with pytest.raises(InputError) as caught:
        grid_of(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("finetune.epohs=3", ["'epohs'", "did you mean 'epochs'"]),
        ("finetune.epochs=-3", ["--set finetune.epochs=-3", "at least 1"]),
        ("finetune.epochs", ["FIELD=VALUE"]),
        ("seed=1", ["--set seed=1", "no effect"]),
        ("shots=[1, 2]", ["--set", "base never expands"]),
        ("finetune.lr.x=3", ["finetune.lr is no mapping of fields"]),
        ("network.channels=3", ["network.channels", "channels must be a list", "got 3"]),
        ("network.channels=[]", ["network.channels", "channels must have at least 1 item", "got []"]),
    ],
)
def test_a_bad_override_is_refused(override, words):
    with pytest.raises(InputError) as caught:
        grid_of(one_block(dataset="synthetic", seed="[0, 1]"), override)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_grid_names_the_nearest():
    with pytest.raises(InputError, match=r"did you mean 'paper'"):
        find_grid("papre")


def test_weights_that_changed_are_refused(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"1")
    spec = trial(pretrain={"method": "imagenet", "weights": str(file)})
    file.write_bytes(b"2")
    with pytest.raises(InputError, match="has changed"):
        load_trial(Source("spec.yaml", spec.model_dump(mode="json"), None))


def test_a_trial_file_is_loaded_like_a_trial(tmp_path: Path):
    source = Source.parse("dataset: synthetic\nshots: 5\npretrain: {method: ddpm}\n", "trial.yaml")
    assert load_trial(source).trial_id == trial(shots=5, pretrain={"method": "ddpm"}).trial_id
    with pytest.raises(InputError, match=r"trial.yaml:2: shots"):
        load_trial(Source.parse("dataset: synthetic\nshots: -1\n", "trial.yaml"))


def test_a_list_under_a_misspelt_field_of_base_is_refused_by_its_name(tmp_path):
    grid = tmp_path / "grid.yaml"
    base = {"dataset": "synthetic", "network": {"kind": "unet", "channel": [8, 16]}}
    described = {"name": "t", "description": "t", "base": base, "blocks": [{"grid": {"seed": 0}}]}
    grid.write_text(yaml.safe_dump(described))
    with pytest.raises(InputError, match=r"channel.*did you mean 'channels'"):
        load_grid(find_grid(str(grid)))


def test_where_nothing_but_the_encoder_is_transferred_both_ways_are_one_trial():
    network = {"kind": "scn", "channels": [8, 16], "spatial_scale": 4}
    whole, encoder = (
        trial(image_size=32, network=network, pretrain={"method": "ddpm", "transfer": transfer})
        for transfer in ("network", "encoder")
    )
    assert whole.trial_id == encoder.trial_id


@pytest.mark.parametrize("hf", ["justaname", "a/b", "a/b@main/c.pth"])
def test_a_place_on_the_hub_has_three_parts(hf):
    with pytest.raises(ValueError, match="hf must be OWNER/REPOSITORY/FILE, or with @REVISION behind it; got"):
        trial(pretrain={"method": "weights", "name": "A", "hf": hf})
