"""Checkpoints laid out as the authors' are: read from a file or from a hub, published in the run, fine-tuned from."""

import http.server
import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from hub import point_at
from test_models import build
from tiny import tiny_trial
from torch import Tensor, nn

from ablate.errors import InputError
from ablate.network.hub import fetch
from ablate.network.starting import Start, check_start
from ablate.running.inspection import kind_of
from ablate.space import NetworkSpec, TrialSpec, WeightsSpec
from ablate.stage.settings import Settings
from ablate.stage.starts import publish_start, start_of
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.store.layout import MODEL, log_file, start_folder, trial_folder

REFERENCE = NetworkSpec(kind="reference", width=8)
DENSENET = NetworkSpec(kind="encoder", encoder="densenet121")


def ddpm_file(path: Path, change: Callable[[dict[str, Tensor]], object] = lambda tensors: None) -> Path:
    """A DDPM's checkpoint: the tensors of the reference U-Net with one output, the epoch, the optimizer's state."""
    tensors = dict(build(REFERENCE, head="noise").net.state_dict())
    change(tensors)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"epoch": 8000, "model_state_dict": tensors, "optimizer_state_dict": optimizer}, path)
    return path


def densenet_file(path: Path, change: Callable[[dict[str, Tensor]], object] = lambda tensors: None) -> Path:
    """A self-supervised method's checkpoint: torchvision's DenseNet, its classifier replaced by the identity."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.densenet121()
    model.classifier = nn.Identity()
    tensors = dict(model.state_dict())
    change(tensors)
    torch.save(tensors, path)
    return path


LAYOUTS = {"ddpm": (ddpm_file, REFERENCE), "self-supervised": (densenet_file, DENSENET)}
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def spec_of(file: Path) -> WeightsSpec:
    return WeightsSpec(name="Authors 1", file=str(file))


def trial_of(network: NetworkSpec, **pretrain: Any) -> TrialSpec:
    fields = network.model_dump(include={"kind", *network.fields})
    return tiny_trial("weights", pretrain={"name": "Authors", **pretrain}, network=fields, image_size=32, shots=4)


@LAYOUT
def test_a_trial_fine_tunes_from_it(layout: str, tmp_path: Path) -> None:
    make, network = LAYOUTS[layout]
    file = make(tmp_path / "checkpoint.pth")
    trial = trial_of(network, file=str(file))
    store = Store.open(tmp_path / "run")
    assert run_trial(trial, store, data_in(None), settings=Settings())["status"] == "finished"
    assert "loaded by name" in store.read(log_file(trial_folder(trial.trial_id))).decode()
    file.unlink()  # what a run has published it need not find again
    another = TrialSpec.model_validate(trial.model_dump() | {"seed": 1})
    assert run_trial(another, store, data_in(None), settings=Settings())["status"] == "finished"


@LAYOUT
@pytest.mark.parametrize("fault", ["missing", "renamed", "other shape"])
def test_it_is_refused_by_name_where_a_tensor_does_not_fit(layout: str, fault: str, tmp_path: Path) -> None:
    make, network = LAYOUTS[layout]

    def change(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in list(tensors)[40:] if name.endswith("weight") and tensors[name].ndim == 4)
        changed.append(name)
        tensor = tensors.pop(name)
        if fault == "renamed":
            tensors[name.replace("weight", "kernel")] = tensor
        elif fault == "other shape":
            tensors[name] = tensor[:, :1]

    changed: list[str] = []
    spec = spec_of(make(tmp_path / "checkpoint.pth", change))
    with pytest.raises(InputError) as refusal:
        check_start(network, 32, spec, Start.read(spec))
    assert changed[0].removesuffix("weight") in str(refusal.value)
    words = {"missing": "missing", "renamed": "did you mean", "other shape": "other shapes"}
    assert words[fault] in str(refusal.value)


class Wipe:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return shutil.rmtree, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    torch.save({"model_state_dict": {"weight": torch.zeros(1)}, "epoch": Wipe(kept)}, tmp_path / "new.pth")
    with (tmp_path / "old.pth").open("wb") as file:
        pickle.dump(Wipe(kept), file, protocol=2)
    for name in ("new.pth", "old.pth"):
        with pytest.raises(InputError, match="cannot be read"):
            Start.read(spec_of(tmp_path / name))
    assert kept.is_dir()


def test_a_published_start_is_what_was_read_and_keeps_its_order(tmp_path: Path) -> None:
    spec = spec_of(ddpm_file(tmp_path / "checkpoint.pth"))
    store = Store.open(tmp_path / "run")
    read, kept = Start.read(spec), start_of(store, spec)
    assert list(kept.found.tensors) == list(read.found.tensors)
    assert all(torch.equal(kept.found.tensors[name], tensor) for name, tensor in read.found.tensors.items())
    assert (kept.found.container, kept.found.is_ordered, kept.source) == ("model_state_dict", True, spec.file)
    assert "starts/Authors_1-" in start_folder(spec.name, spec.content)
    sizes = store.sizes()
    publish_start(store, spec)
    assert store.sizes() == sizes


# --- on a hub ---------------------------------------------------------------------------------------

REPOSITORY, COMMIT = "Someone/Checkpoints", "c" * 40


class Hub(http.server.ThreadingHTTPServer):
    """A repository of files, as far as huggingface_hub asks for it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder = folder


class Answers(http.server.BaseHTTPRequestHandler):
    """The hub's answers: what a repository has, and its files."""

    server: Hub

    def do_GET(self) -> None:
        path = unquote(self.path).partition("?")[0]
        files = {item.relative_to(self.server.folder).as_posix(): item for item in self.server.folder.rglob("*.*")}
        body = b""
        if path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/main"):
            body = json.dumps(
                {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in sorted(files)]}
            ).encode()
        elif (name := path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")) in files:
            body = files[name].read_bytes()
        self.send_response(200 if body else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(body)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a repository on a hub; the cache is empty."""
    folder = tmp_path / "repository"
    folder.mkdir()
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_at(server.server_port, tmp_path / "hub", monkeypatch)
        yield folder
        server.shutdown()


def test_a_file_on_a_hub_is_found_by_a_pattern_and_kept_in_the_cache(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "Cephalo").mkdir()
    for name in ("Cephalo/DDPM_8k.pth", "Cephalo/dino.pth", "notes.md"):
        (repository / name).write_bytes(name.encode())
    found = fetch(f"{REPOSITORY}/*ceph*ddpm*")
    assert found.source == f"{REPOSITORY}/Cephalo/DDPM_8k.pth@{COMMIT}"
    assert found.path.read_bytes() == b"Cephalo/DDPM_8k.pth"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch(f"{REPOSITORY}/*ceph*ddpm*@{COMMIT}") == found


@pytest.mark.parametrize(("pattern", "fits"), [("*simclr*", "none"), ("*.pth", "a.pth, b.pth")])
def test_a_pattern_that_does_not_fit_one_file_is_refused_with_all_there_are(
    repository: Path, pattern: str, fits: str
) -> None:
    for name in ("a.pth", "b.pth", "notes.md"):
        (repository / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"must fit one file; it fits {fits}; {REPOSITORY} has a.pth, b.pth, notes.md"):
        fetch(f"{REPOSITORY}/{pattern}")


def test_a_hub_that_cannot_be_reached_is_told_with_the_cure(repository: Path) -> None:
    with pytest.raises(InputError, match=r"neither in the cache .* nor can it be reached .*; give pretrain\.file"):
        fetch("Nobody/Nothing/*.pth")


def test_a_trial_from_a_hub_is_identified_by_place_or_by_content(repository: Path, tmp_path: Path) -> None:
    file = ddpm_file(repository / "ddpm.pth")
    by_file = trial_of(REFERENCE, file=str(file))
    sha = by_file.pretrain.weights_sha256
    by_place = trial_of(REFERENCE, hf=f"{REPOSITORY}/ddpm.pth")
    by_content = trial_of(REFERENCE, hf=f"{REPOSITORY}/*ddpm*", weights_sha256=sha)
    assert by_content.trial_id == by_file.trial_id != by_place.trial_id
    row = run_trial(by_place, Store.open(tmp_path / "run"), data_in(None), settings=Settings())
    assert row["status"] == "finished"
    with pytest.raises(InputError, match="has changed: SHA-256"):
        Start.read(WeightsSpec(name="A", hf=f"{REPOSITORY}/ddpm.pth", weights_sha256="0" * 64))


def test_a_file_and_a_place_on_a_hub_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file must be left out where hf is given"):
        WeightsSpec(name="A", file=str(ddpm_file(tmp_path / "a.pth")), hf="a/b/c")
    with pytest.raises(ValueError, match="hf"):
        WeightsSpec(name="A", hf="just-a-name")


def test_a_damaged_start_in_a_run_is_read_from_its_file_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_of(ddpm_file(tmp_path / "checkpoint.pth"))
    store = Store.open(tmp_path / "run")
    publish_start(store, spec)
    damaged = tmp_path / "run" / start_folder(spec.name, spec.content) / MODEL
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with caplog.at_level("WARNING", logger="ablate"):
        found = start_of(store, spec)
    assert found.found.tensors.keys() == Start.read(spec).found.tensors.keys()
    assert "read again" in caplog.text


def test_clean_says_what_starts_take(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "run")
    publish_start(store, spec_of(ddpm_file(tmp_path / "checkpoint.pth")))
    assert {kind_of(path) for path in store.sizes()} == {"starts"}
