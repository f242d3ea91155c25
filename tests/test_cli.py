"""The command line: what it prints, and what it refuses with which words before any training starts."""

import io
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import tiny_fields, tiny_trial

from ablate import tables
from ablate.space import Source, load_grid, shipped_grids
from ablate.store import Store


def write_grid(path, **changes):
    """Write a search space of one tiny trial, with fields replaced by dotted names."""
    fields = tiny_fields("ddpm")
    for name, value in changes.items():
        node = fields
        *parents, last = name.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    path.write_text(yaml.safe_dump({"name": "tiny", "blocks": [{"grid": fields}]}))
    return path


def write_dataset(folder, *, images=6, points="3,4,5,6"):
    """Write a user's data set of noise images."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,x0,y0,x1,y1"]
    for number in range(images):
        grey = np.random.default_rng(number).integers(0, 255, (20, 16), dtype=np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,{points}")
    (folder / "landmarks.csv").write_text("\n".join(rows) + "\n")
    splits = {"train": images - 3, "val": 1, "test": 2}
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"unit": "px", "splits": splits}))
    return folder


def size_of(path):
    with Image.open(path) as image:
        return image.size


def assert_refused(outcome, *words):
    code, _, err = outcome
    assert code == 2, err
    assert "Traceback" not in err
    assert err.count("\n") == 1, err  # one message, unwrapped
    for word in words:
        assert str(word) in err


# --- what it prints


def test_help_is_quick_and_names_every_command():
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ablate.cli", "--help"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    for command in ("grids", "plan", "run", "trial", "status", "results", "report", "predict", "clean", "data"):
        assert f"  {command}" in done.stdout
    print(f"ablate --help took {seconds:.2f} s")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; import ablate.cli; print(sorted({'torch', 'ray', 'pandas', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_grids_lists_every_shipped_search_space(ablate):
    code, out, _ = ablate("grids")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(shipped_grids())


def test_plan_counts_what_sharing_saves(ablate):
    code, out, _ = ablate("plan", "--grid", "timesteps")
    assert code == 0
    # 144 trials, 4 values of T: each pre-training goes to 16 000 steps once instead of 36 times to 48 000 / 6
    assert "trials         144" in out
    assert "4 for 144 trials: sharing saves 140 pre-trainings" in out
    assert "1,088,000 of 1,152,000 optimizer steps" in out
    assert "pretrain_timesteps       100, 250, 500, 1000" in out


def test_dry_run_writes_nothing(ablate, tmp_path):
    code, out, _ = ablate("run", "--grid", "demo", "--dry-run", "--out", tmp_path / "run")
    assert code == 0
    assert "trials         24" in out
    assert not (tmp_path / "run").exists()


# --- one trial, and what is read from it


def test_a_trial_from_the_shell_and_what_follows(ablate, tmp_path):
    grid = write_grid(tmp_path / "grid.yaml", pretrain={"method": "scratch"})
    (spec,) = load_grid(Source.parse(grid.read_text(), "grid")).trials
    run = tmp_path / "run"
    code, out, err = ablate("trial", spec.trial_id, "--grid", grid, "--out", run, "--keep-weights")
    assert code == 0, err
    assert "MRE" in out
    store = Store.open(run)
    assert tables.finished_trials(store) == {spec.trial_id: "finished"}

    images = tmp_path / "new"
    images.mkdir()
    for number, (width, height) in enumerate([(30, 40), (64, 16)]):
        Image.fromarray(np.zeros((height, width), np.uint8) + np.arange(width, dtype=np.uint8)).save(
            images / f"{number}.png"
        )
    code, out, err = ablate("predict", run, spec.trial_id, images, "--out", tmp_path / "found")
    assert code == 0, err
    lines = (tmp_path / "found" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 3
    assert len(lines[1].split(",")) == 1 + 2 * 12
    assert size_of(tmp_path / "found" / "1.png.png") == (64, 16)

    code, out, _ = ablate("results", run, "--format", "csv")
    assert code == 0
    assert "scratch" in out


def test_predict_without_kept_weights_says_how_to_keep_them(ablate, tmp_path):
    grid = write_grid(tmp_path / "grid.yaml", pretrain={"method": "scratch"}, finetune__epochs=1)
    (spec,) = load_grid(Source.parse(grid.read_text(), "grid")).trials
    assert ablate("trial", spec.trial_id, "--grid", grid, "--out", tmp_path / "run")[0] == 0
    (tmp_path / "image.png").write_bytes(b"")
    assert_refused(ablate("predict", tmp_path / "run", spec.trial_id, tmp_path), "--keep-weights")
    assert_refused(ablate("predict", tmp_path / "run", "0" * 12, tmp_path), "finished trial")


# --- what it refuses


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrain__timestps": 5}, ["timestps", "timesteps"]),
        ({"finetune__epochs": "many"}, ["finetune.epochs", "'many'"]),
        ({"pretrain__method": "ddmp"}, ["'ddmp'", "did you mean 'ddpm'"]),
        ({"dataset": "sinthetic"}, ["'sinthetic'", "did you mean 'synthetic'"]),
        ({"pretrain__method": "imagenet"}, ["imagenet"]),
        ({"network__kind": "encoder", "image_size": 32}, ["network.kind", "unet"]),
        ({"shots": 131}, ["shots", "130", "131"]),
        ({"network__channels": [7, 16]}, ["channels", "7"]),
    ],
)
def test_a_search_space_that_cannot_run_is_refused(ablate, tmp_path, changes, words):
    grid = write_grid(tmp_path / "grid.yaml", **changes)
    assert_refused(ablate("run", "--grid", grid, "--out", tmp_path / "run"), *words)
    assert not list((tmp_path / "run").glob("tables/*"))


def test_imagenet_without_network_and_file_is_refused_with_the_cure(ablate, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fields = {
        "dataset": "synthetic",
        "image_size": 32,
        "pretrain": {"method": "imagenet"},
        "shots": 4,
        "network": {"encoder": "resnet18"},
        "finetune": {"batch_size": 4},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"name": "x", "blocks": [{"grid": fields}]}))
    outcome = ablate("run", "--grid", tmp_path / "grid.yaml", "--out", tmp_path / "run")
    assert_refused(outcome, "resnet18", "pretrain.weights")


def damage_missing(folder):
    (folder / "images" / "2.png").unlink()
    return ["2.png"]


def damage_corrupt(folder):
    (folder / "images" / "2.png").write_bytes(b"not an image")
    return ["2.png", "image"]


def damage_truncated(folder):
    path = folder / "images" / "2.png"
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "JPEG")
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    return ["2.png", "complete"]


def damage_too_few_points(folder):
    path = folder / "landmarks.csv"
    lines = path.read_text().splitlines()
    lines[3] = "2.png,3,4"
    path.write_text("\n".join(lines) + "\n")
    return ["landmarks.csv", "2.png"]


def damage_empty(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    return ["images"]


@pytest.mark.parametrize(
    "damage", [damage_missing, damage_corrupt, damage_truncated, damage_too_few_points, damage_empty]
)
def test_damaged_data_is_refused_before_training(ablate, tmp_path, damage):
    words = damage(write_dataset(tmp_path / "data" / "mine"))
    grid = write_grid(tmp_path / "grid.yaml", dataset="mine", shots=2)
    outcome = ablate("run", "--grid", grid, "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert_refused(outcome, *words)
    assert not list((tmp_path / "run").glob("tables/*"))


def test_an_out_that_cannot_be_written_is_refused(ablate, tmp_path):
    (tmp_path / "file").write_text("")
    grid = write_grid(tmp_path / "grid.yaml")
    assert_refused(ablate("run", "--grid", grid, "--out", tmp_path / "file"), "must be a folder")
    assert_refused(ablate("run", "--grid", grid, "--out", "/proc/nowhere/run"), "/proc/nowhere")
    assert_refused(ablate("run", "--grid", grid, "--out", "ftp://host/run"), "ftp://host/run")


def test_a_gpu_that_is_not_there_is_refused(ablate, tmp_path):
    grid = write_grid(tmp_path / "grid.yaml")
    outcome = ablate("run", "--grid", grid, "--out", tmp_path / "run", "--gpus-per-pretrain", "64")
    assert_refused(outcome, "--gpus-per-pretrain must be at most 0", "no node of this machine has 64 GPUs", "got 64")


def test_a_run_that_is_none_is_refused(ablate, tmp_path):
    for command in ("status", "results", "report", "clean"):
        assert_refused(ablate(command, tmp_path / "nowhere"), "nowhere")


def test_an_unknown_grid_or_override_is_refused(ablate, tmp_path):
    assert_refused(ablate("plan", "--grid", "papr"), "did you mean 'paper'")
    assert_refused(ablate("plan", "--grid", "paper", "--set", "finetune.epohs=3"), "did you mean 'epochs'")
    assert_refused(ablate("trial", "0" * 12, "--grid", "demo", "--out", tmp_path), "0" * 12)


def test_data_check_finds_the_listed_duplicates(ablate, xray_data):
    code, out, _ = ablate("data", "check", "cephalo", "--data", xray_data)
    assert code == 0
    pairs = [line.split(",") for line in (xray_data / "cephalo" / "duplicate_pairs.csv").read_text().split()[1:]]
    across = [pair for pair in pairs if (int(pair[0][:3]) <= 150) != (int(pair[1][:3]) <= 150)]
    assert len(across) == 20
    for left, right in across:
        assert left in out
        assert right in out


def test_data_check_of_a_broken_set_says_everything_and_exits_2(ablate, tmp_path):
    folder = write_dataset(tmp_path / "mine")
    damage_missing(folder)
    (folder / "images" / "4.png").write_bytes(b"nothing")
    code, out, _ = ablate("data", "check", "mine", "--data", tmp_path)
    assert code == 2
    assert "2.png" in out
    assert "4.png" in out


def test_preview_and_prepare_write_their_files(ablate, tmp_path, monkeypatch):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    write_dataset(tmp_path / "data" / "mine")
    assert ablate("data", "preview", "mine", "--data", tmp_path / "data", "--out", tmp_path / "sheet.png")[0] == 0
    assert size_of(tmp_path / "sheet.png")[0] > 100
    code, out, _ = ablate("data", "prepare", "mine", "--data", tmp_path / "data", "--image-size", "32")
    assert code == 0
    assert all(Path(line).exists() for line in out.splitlines())


def test_a_spec_file_runs_like_the_same_trial_of_a_grid(ablate, tmp_path):
    spec = tiny_trial(finetune={"epochs": 1})
    file = tmp_path / "trial.yaml"
    file.write_text(yaml.safe_dump(json.loads(spec.model_dump_json())))
    assert ablate("trial", file, "--out", tmp_path / "run")[0] == 0
    assert tables.finished_trials(Store.open(tmp_path / "run")) == {spec.trial_id: "finished"}


def test_a_folder_that_is_no_run_is_left_alone(ablate, tmp_path):
    write_dataset(tmp_path / "mine")
    for command in ("status", "results", "report", "clean"):
        assert_refused(ablate(command, tmp_path), "there is no run here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_cluster_that_does_not_answer_is_refused(ablate, tmp_path):
    grid = write_grid(tmp_path / "grid.yaml")
    outcome = ablate("run", "--grid", grid, "--out", tmp_path / "run", "--address", "127.0.0.1:1")
    assert_refused(outcome, "--address 127.0.0.1:1", "ray start --head")


def test_a_picture_in_two_splits_with_different_labels_is_found(ablate, tmp_path):
    folder = write_dataset(tmp_path / "mine")
    grey = np.random.default_rng(7).integers(0, 255, (60, 50), dtype=np.uint8)
    for name in ("0.png", "5.png"):
        Image.fromarray(grey).save(folder / "images" / name)
    path = folder / "landmarks.csv"
    path.write_text(path.read_text().replace("5.png,3,4,5,6", "5.png,40,50,45,55"))
    code, out, _ = ablate("data", "check", "mine", "--data", tmp_path)
    assert code == 0
    assert "one of the labels is wrong" in out
    assert "0.png" in out
    assert "5.png" in out


def test_what_is_odd_in_the_data_is_said_before_a_run(ablate, tmp_path):
    folder = write_dataset(tmp_path / "data" / "mine", points="3,4,500,600")
    spec = tmp_path / "trial.yaml"
    fields = tiny_fields(dataset="mine", shots=2, finetune={"epochs": 1})
    spec.write_text(yaml.safe_dump(fields))
    code, out, err = ablate("trial", spec, "--data", folder.parent, "--out", tmp_path / "run")
    assert code == 0, err
    assert "warning:" in out
    assert "500" in out


# --- places that are not there ----------------------------------------------------------------------


class RefusesUnsigned(BaseHTTPRequestHandler):
    """An S3 server that refuses every request, as real ones do without credentials."""

    def refuse(self):
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

    def log_message(self, *arguments):
        """Print nothing."""


@pytest.fixture
def forbidding():
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusesUnsigned) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("option", ["--out", "--data"])
def test_a_bucket_that_is_not_there_and_missing_credentials_are_refused(
    ablate, tmp_path, s3_server, forbidding, monkeypatch, option
):
    grid = tmp_path / "grid.yaml"
    base = {name: value for name, value in tiny_fields().items() if name not in ("shots", "pretrain")}
    name = "synthetic" if option == "--out" else "mine"
    grid.write_text(
        yaml.safe_dump({"name": "tiny", "base": base | {"dataset": name}, "blocks": [{"grid": {"shots": [2]}}]})
    )
    places = {"--out": str(tmp_path / "run"), "--data": str(tmp_path)}

    def refused(address, *parts):
        chosen = places | {option: address}
        outcome = ablate("run", "--grid", grid, *[word for pair in chosen.items() for word in pair])
        assert_refused(outcome, *parts)

    refused(f"s3://no-such-bucket-here/place?endpoint_override={s3_server}", "s3://no-such-bucket-here/place", "bucket")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    refused(
        f"s3://bucket1/place?endpoint_override={forbidding}", "s3://bucket1/place", "credentials in the environment"
    )


def test_a_data_address_without_the_data_set_is_refused(ablate, tmp_path, s3_address):
    fields = tiny_fields(dataset="mine", shots=2)
    spec = tmp_path / "trial.yaml"
    spec.write_text(yaml.safe_dump(fields))
    outcome = ablate("trial", spec, "--data", s3_address, "--out", tmp_path / "run")
    assert_refused(outcome, "mine", "s3://")
