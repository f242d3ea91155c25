"""Networks: what they compute, which weights they start from, and what is refused."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hub import point_at
from huggingface_hub.file_download import repo_folder_name
from safetensors.torch import save_file
from tiny import small_network

from ablate.errors import InputError
from ablate.network.base import Network
from ablate.network.building import build_network, check_network, count_parameters
from ablate.network.imagenet import check_imagenet, imagenet_files, load_imagenet
from ablate.network.unet import UNet
from ablate.network.weights import check_weights, read_weights
from ablate.space import NETWORKS, NetworkSpec, TrialSpec

torch.set_num_threads(1)

UNET, ENCODER = small_network("unet"), small_network("encoder")
KINDS = pytest.mark.parametrize("spec", [small_network(kind) for kind in NETWORKS], ids=list(NETWORKS))


def build(spec: NetworkSpec, num_outputs: int = 3, seed: int = 0, head: str = "landmarks") -> Network:
    return build_network(spec, num_outputs=num_outputs, image_size=64, seed=seed, head=head)


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


@KINDS
def test_output_has_one_map_per_landmark_and_features_one_vector_per_image(spec: NetworkSpec) -> None:
    network = build(spec)
    images = torch.rand(2, 1, 64, 64)
    assert network(images).shape == (2, 3, 64, 64)
    assert network.features(images).shape == (2, network.feature_dim)


@KINDS
def test_body_depends_on_the_seed_alone_and_the_global_random_state_is_untouched(spec: NetworkSpec) -> None:
    before = torch.random.get_rng_state()
    first, second, other = build(spec).state_dict(), build(spec, num_outputs=5).state_dict(), build(spec, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert not differing(first, build(spec).state_dict())
    output = build(spec).output_names()
    assert output
    assert differing(first, second) == output
    weights = {name for name, tensor in first.items() if tensor.ndim > 1}
    assert differing(first, other.state_dict()) >= weights


@KINDS
def test_bf16_computes_layers_in_bfloat16_and_returns_the_dtype_of_the_images(spec: NetworkSpec) -> None:
    seen = set()
    fp32, bf16 = (
        build_network(spec, num_outputs=3, image_size=64, seed=0, precision=precision).eval()
        for precision in ("fp32", "bf16")
    )
    for module in bf16.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    images = torch.rand(2, 1, 64, 64)
    for compute in (lambda network: network(images), lambda network: network.features(images)):
        expected, found = compute(fp32), compute(bf16)
        assert found.dtype == images.dtype
        assert not torch.equal(found, expected)
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    assert seen == {torch.bfloat16}
    assert not differing(fp32.state_dict(), bf16.state_dict())
    assert {tensor.dtype for tensor in bf16.state_dict().values()} <= {torch.float32, torch.int64}


def test_unet_body_is_the_same_under_either_head() -> None:
    landmarks, noise = build(UNET, 1), build(UNET, 1, head="noise")
    assert landmarks.state_dict()["net.conv_out.weight"].shape == (1, 8, 1, 1)
    assert noise.state_dict()["net.conv_out.weight"].shape == (1, 8, 3, 3)
    assert differing(landmarks.encoder_state(), noise.encoder_state()) == set()


def test_the_noise_head_is_for_networks_that_denoise() -> None:
    with pytest.raises(ValueError, match=r"noise head needs a network\.kind that denoises, such as unet; got encoder"):
        build(ENCODER, 1, head="noise")


def test_unet_maps_images_to_plus_minus_one_and_is_told_a_timestep_or_none() -> None:
    network = build(UNET)
    assert isinstance(network, UNet)
    images = torch.rand(2, 1, 64, 64)
    zero, ten = torch.zeros(2, dtype=torch.long), torch.full((2,), 10)
    assert torch.equal(network(images, zero), network.denoise(images * 2 - 1, zero))
    assert not torch.allclose(network(images, zero), network(images, ten))
    assert not torch.allclose(network(images), network(images, zero))


def test_unet_features_are_the_average_of_what_enters_the_up_blocks() -> None:
    network = build(UNET)
    assert isinstance(network, UNet)
    seen = []
    hook = network.get_submodule("net.mid_block").register_forward_hook(lambda *call: seen.append(call[-1]))
    images = torch.rand(2, 1, 64, 64)
    network(images, torch.zeros(2, dtype=torch.long))
    hook.remove()
    torch.testing.assert_close(network.features(images), seen[0].mean((2, 3)))


def test_unet_attends_in_the_middle_only_when_asked() -> None:
    with_attention = build(UNET)
    without = build(NetworkSpec(kind="unet", channels=(8, 16), layers_per_block=1, attention="none"))
    names = {name for name in with_attention.state_dict() if "attentions" in name}
    assert {name.partition("attentions")[0] for name in names} == {"net.mid_block."}
    assert not any("attentions" in name for name in without.state_dict())


def test_unet_groups_are_the_greatest_common_divisor_of_eight_and_all_channels() -> None:
    network = build(NetworkSpec(kind="unet", channels=(12, 20), layers_per_block=1))
    groups = {module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)}
    assert groups == {4}


def test_encoder_sees_grey_as_rgb_normalised_for_imagenet() -> None:
    network = build(ENCODER)
    seen = []
    hook = network.get_submodule("net.encoder").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.full((1, 1, 64, 64), 0.485))
    hook.remove()
    # by hand: (0.485 - mean) / std of each channel
    expected = torch.tensor([0.0, (0.485 - 0.456) / 0.224, (0.485 - 0.406) / 0.225])
    assert seen[0].shape == (1, 3, 64, 64)
    torch.testing.assert_close(seen[0][0, :, 5, 7], expected)


@KINDS
def test_encoder_state_holds_all_that_features_use_and_nothing_else(spec: NetworkSpec) -> None:
    network = build(spec).eval()
    images = torch.rand(2, 1, 64, 64)
    features = network.features(images)
    kept = network.encoder_state().keys()
    network.keep_encoder_only()
    assert network.state_dict().keys() == kept
    assert torch.equal(network.features(images), features)
    names = {name for name, _ in network.named_parameters()}
    features.sum().backward()
    assert {name for name, parameter in network.named_parameters() if parameter.grad is not None} == names


@KINDS
def test_loading_the_whole_network_leaves_only_the_output_layer_new(spec: NetworkSpec) -> None:
    source, network = build(spec, 5, seed=1).state_dict(), build(spec)
    fresh = build(spec).state_dict()
    new = set(network.load_initial(source))
    assert new == network.output_names()
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], fresh[name] if name in new else source[name]) for name in loaded)


@KINDS
def test_loading_an_encoder_leaves_the_decoder_new(spec: NetworkSpec) -> None:
    source, network = build(spec, seed=1).encoder_state(), build(spec)
    fresh = build(spec).state_dict()
    new = set(network.load_initial({name.removeprefix("net."): tensor for name, tensor in source.items()}))
    assert new == fresh.keys() - source.keys()
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], fresh[name] if name in new else source[name]) for name in loaded)


def test_a_noise_network_takes_the_output_layer_too() -> None:
    source, network = build(UNET, 1, seed=1, head="noise").state_dict(), build(UNET, 1, head="noise")
    assert network.load_initial(source) == []
    assert not differing(network.state_dict(), source)


@KINDS
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(spec: NetworkSpec) -> None:
    network = build(spec)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole = build(spec, seed=1).state_dict()
    encoder = build(spec, seed=1).encoder_state()
    some = next(name for name, tensor in encoder.items() if tensor.ndim == 4)
    with pytest.raises(ValueError, match=f"missing {some}"):
        network.load_initial({name: tensor for name, tensor in encoder.items() if name != some})
    with pytest.raises(ValueError, match=f"missing {some}"):
        network.load_initial({name: tensor for name, tensor in whole.items() if name != some})
    with pytest.raises(ValueError, match=r"unknown net\.extra"):
        network.load_initial({**encoder, "net.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"{some} \(1, 2, 3, 3\) instead of"):
        network.load_initial({**whole, some: torch.zeros(1, 2, 3, 3)})
    assert not differing(before, network.state_dict())


def test_parameters_are_counted_by_hand() -> None:
    layer = torch.nn.Conv2d(3, 4, 5)
    assert count_parameters(layer) == 3 * 4 * 25 + 4
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 300


# --- what is refused --------------------------------------------------------------------------------


def test_networks_that_can_be_built_pass() -> None:
    check_network(UNET, 64)
    check_network(ENCODER, 64)
    check_network(NetworkSpec(kind="encoder", encoder="densenet161"), 64)
    check_network(NetworkSpec(kind="encoder", encoder="mit_b0"), 64)  # cannot be built without memory


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (NetworkSpec(kind="encoder", encoder="densenet116"), r"got 'densenet116' \(did you mean 'densenet1\d\d'\?\)"),
        (NetworkSpec(kind="encoder", encoder="tu-test_resnt"), r"did you mean 'tu-test_resnet'"),
        (NetworkSpec(kind="encoder", encoder="tu-test_vit"), r"'tu-test_vit' cannot be the encoder of a U-Net on 64"),
        (NetworkSpec(kind="unet", channels=(5, 10)), r"channels must start with an even number.*got 5"),
        (NetworkSpec(kind="reference", width=10), r"width must be a multiple of 4.*got 10; the nearest is 8"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(spec: NetworkSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_network(spec, 64)


# --- weights from files -----------------------------------------------------------------------------


def pretraining(weights: Path, method: str = "ddpm", spec: NetworkSpec = UNET):
    trial = {"dataset": "synthetic", "image_size": 64, "network": spec}
    return TrialSpec.model_validate({**trial, "pretrain": {"method": method, "weights": str(weights)}}).pretraining


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_weights_are_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    tensors = build(UNET).state_dict()
    file = tmp_path / f"weights{suffix}"
    save_file(tensors, file) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, file)
    assert not differing(read_weights(file), tensors)
    check_weights(pretraining(file))


class Payload:
    def __reduce__(self):
        return print, ("code in a weights file was run",)


def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Payload()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(tmp_path / "weights.pth")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_damaged_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(InputError, match=f"{name}' cannot be read"):
        read_weights(tmp_path / name)


def test_weights_must_be_tensors_by_name_in_a_known_format(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="must hold tensors by name"):
        read_weights(tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"must be a \.safetensors, \.pth or \.pt file; got 'a\.h5'"):
        read_weights("a.h5")
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "missing.pt")


def test_weights_of_another_network_are_refused_by_tensor(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(build(NetworkSpec(kind="unet", channels=(8, 24), layers_per_block=1)).state_dict(), file)
    with pytest.raises(
        InputError, match=r"weights\.safetensors': weights do not fit this network: other shapes: net\."
    ):
        check_weights(pretraining(file))


# --- ImageNet ---------------------------------------------------------------------------------------

RESNET = NetworkSpec(kind="encoder", encoder="resnet18")


@pytest.fixture
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("_offline")
def test_imagenet_without_network_cache_or_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for call in (lambda: check_imagenet(RESNET), lambda: load_imagenet(build(RESNET))):
        with pytest.raises(InputError) as caught:
            call()
        message = str(caught.value)
        assert "resnet18" in message
        assert str(tmp_path / "hub") in message
        assert "pretrain.weights: FILE" in message
        assert "get_encoder('resnet18', weights='imagenet')" in message


@pytest.mark.usefixtures("_offline")
def test_imagenet_weights_come_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    import segmentation_models_pytorch.encoders as encoders

    source = encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    repository = repo_folder_name(repo_id=source["repo_id"], repo_type="model")
    folder = tmp_path / "hub" / repository / "snapshots" / source["revision"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    weights = build(RESNET, seed=7).get_submodule("net.encoder").state_dict()
    save_file(weights, folder / "model.safetensors")
    check_imagenet(RESNET)
    network = build(RESNET)
    load_imagenet(network)
    assert not differing(network.get_submodule("net.encoder").state_dict(), weights)


class Hub(ThreadingHTTPServer):
    """A server on loopback in the place of the hub of weights; it answers with a status, or never."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.status: int | None = 200
        self.asked: list[str] = []
        self.over = threading.Event()


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.asked.append(f"{self.command} {Path(self.path).name}")
        if self.server.status is None:
            self.server.over.wait()
            return
        self.send_response(self.server.status)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"b"')
        self.send_header("Content-Length", "1000000")
        if self.server.status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_at(server.server_port, tmp_path / "hub", monkeypatch)
        yield server
        server.over.set()
        server.shutdown()


def test_a_check_asks_the_hub_for_the_files_and_downloads_nothing(hub: Hub, tmp_path: Path) -> None:
    check_imagenet(RESNET)
    check_imagenet(NetworkSpec(kind="encoder", encoder="tu-resnet18"))
    assert hub.asked == ["HEAD config.json", "HEAD model.safetensors", "HEAD model.safetensors"]
    assert not (tmp_path / "hub").exists()


def test_a_check_refuses_weights_that_the_hub_does_not_have(hub: Hub) -> None:
    hub.status = 404
    with pytest.raises(InputError, match=r"nor can they be downloaded \(\w+Error: .*; give pretrain\.weights: FILE"):
        check_imagenet(RESNET)


def test_a_check_asks_a_hub_that_does_not_answer_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.network.imagenet.HUB_TIMEOUT_S", 0.5)
    hub.status = None
    with pytest.raises(InputError, match="nor can they be downloaded"):
        check_imagenet(RESNET)
    assert hub.asked == ["HEAD config.json"]


def test_imagenet_weights_come_from_a_file_in_torchvisions_names(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    source = torchvision.models.resnet18()  # with the classifier, which the encoder has not
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    check_imagenet(RESNET, str(tmp_path / "resnet18.pth"))
    network = build(RESNET)
    load_imagenet(network, str(tmp_path / "resnet18.pth"))
    loaded = network.get_submodule("net.encoder").state_dict()
    assert len(loaded) == len(source.state_dict()) - 2
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in loaded.items())


def test_imagenet_file_of_another_encoder_is_refused_by_tensor(tmp_path: Path) -> None:
    save_file(build(ENCODER).get_submodule("net.encoder").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match=r"must hold the tensors of the encoder resnet18: .*missing net\.encoder\.conv1\.weight"
    ):
        check_imagenet(RESNET, str(tmp_path / "other.safetensors"))


def test_imagenet_needs_an_encoder_with_imagenet_weights() -> None:
    with pytest.raises(InputError, match=r"resnext101_32x16d has no ImageNet weights .*has instagram, ssl, swsl"):
        check_imagenet(NetworkSpec(kind="encoder", encoder="resnext101_32x16d"))
    with pytest.raises(InputError, match=r"needs network\.kind encoder; got 'unet'"):
        check_imagenet(UNET)
    with pytest.raises(InputError, match=r"needs network\.kind encoder; got 'unet'"):
        load_imagenet(build(UNET))


def test_every_encoder_of_the_paper_has_imagenet_weights_to_download() -> None:
    for name in ("vgg19", "densenet161", "resnext50_32x4d", "tu-resnet18"):
        assert "model.safetensors" in [file for _, _, file in imagenet_files(name)]
