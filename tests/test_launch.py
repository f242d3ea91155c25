"""Launches up to the point where something would be paid for: what is refused, what is shown, what is sent."""

import io
import os
import re
import stat
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from ablate import __version__
from ablate.errors import InputError
from ablate.launch.clouds.access import account_commands
from ablate.launch.cluster_file import find_cluster, parse_cluster, shipped_clusters
from ablate.launch.memory import Memory
from ablate.launch.ssh.wheel import build_wheel, constraints

ROOT = Path(__file__).resolve().parents[1]
OUT = "s3://bucket/runs"


@pytest.fixture(autouse=True)
def _stranger(monkeypatch, tmp_path):
    """Be a user with an empty home, no credentials and no terminal."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def edited(name, folder, **changes):
    """Write a shipped cluster file with every mark replaced; return its path."""
    text = (ROOT / "clusters" / name).read_text()
    values = {"EDIT-YOUR-IP": "203.0.113.7", "EDIT-PRICE-SOURCE": "the price list", "EDIT-PRICE": "0.5"}
    values |= {"EDIT-DATE": "2026-11-25", "EDIT-ADDRESS-OF-THE-FIRST": "192.0.2.1", "EDIT-USER": "me"}
    values |= {"EDIT-ADDRESS-OF-THE-SECOND": "192.0.2.2", "EDIT-ADDRESS-OF-THE-THIRD": "192.0.2.3"}
    for mark, value in sorted(values.items(), key=lambda item: -len(item[0])):
        text = text.replace(mark, value)
    text = text.replace("EDIT-SUBSCRIPTION-ID", "00000000-0000-0000-0000-000000000001")
    text = re.sub(r"EDIT-[A-Z0-9-]+", "my-value", text)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


def refused(result, *words):
    code, out, err = result
    assert code == 2, out + err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssh.yaml", "aws.yaml", "gcp.yaml", "azure.yaml", "kuberay.yaml", "skypilot.yaml"])
def test_a_shipped_file_is_refused_until_its_marks_are_edited(ablate, name):
    assert name in shipped_clusters()
    refused(ablate("launch", name, "--grid", "demo", "--out", OUT, "--yes"), f"{name}:", "EDIT-", "must be replaced")


def test_slurm_scripts_are_refused_until_their_marks_are_edited(ablate, tmp_path):
    for name in ("slurm.sbatch", "slurm-elastic.sbatch"):
        refused(ablate("launch", name, "--grid", "demo", "--out", tmp_path / "out", "--yes"), f"{name}:", "EDIT-")


def test_no_credentials_are_one_line_before_anything_is_reached(ablate, tmp_path):
    file = edited("ssh.yaml", tmp_path)
    out = "s3://bucket/runs?endpoint_override=http://127.0.0.1:9&region=us-east-1"
    refused(ablate("launch", file, "--grid", "demo", "--out", out, "--yes"), "s3://bucket/runs", "credentials")


def test_without_a_terminal_yes_must_be_given(ablate, tmp_path):
    refused(ablate("launch", edited("ssh.yaml", tmp_path), "--grid", "demo", "--out", OUT), "--yes", "terminal")


def test_a_folder_for_several_machines_is_refused_with_the_cure(ablate, tmp_path):
    result = ablate("launch", edited("ssh.yaml", tmp_path), "--grid", "demo", "--out", tmp_path / "out", "--yes")
    refused(result, "--out", "s3://BUCKET/PREFIX", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("out", "rule"), [("ftp://host/run", "s3://BUCKET/PREFIX or gs://"), ("s3://BUCKET/PREFIX", "a bucket of yours")]
)
def test_a_dry_run_refuses_an_address_that_cannot_be_one(ablate, tmp_path, out, rule):
    result = ablate("launch", edited("ssh.yaml", tmp_path), "--grid", "demo", "--out", out, "--dry-run")
    refused(result, "--out must", rule, f"got '{out}'")


def test_one_launch_at_a_time_brings_a_cluster_up(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with Memory("lab").launching():
        with Memory("other").launching():
            pass
        with pytest.raises(InputError, match=r"lab is being brought up by another launch.*ablate attach lab"):
            Memory("lab").launching().__enter__()
    with Memory("lab").launching():
        pass


def test_credentials_in_an_address_are_refused_and_not_repeated(ablate, tmp_path):
    result = ablate(
        "launch", edited("ssh.yaml", tmp_path), "--grid", "demo", "--out", "s3://k:s3cr3t@bucket/x", "--yes"
    )
    refused(result, "--out", "credentials")
    assert "s3cr3t" not in result[1] + result[2]


def test_an_address_of_a_cluster_has_no_place_in_a_launch(ablate, tmp_path):
    words = ("--grid", "demo", "--out", OUT, "--address", "auto", "--yes")
    refused(ablate("launch", edited("ssh.yaml", tmp_path), *words), "--address", "auto")


def test_options_of_run_are_checked_as_run_does(ablate, tmp_path):
    file = edited("ssh.yaml", tmp_path)
    code, _, err = ablate(
        "launch", edited("ssh.yaml", tmp_path), "--grid", "demo", "--out", OUT, "--cpus-per-stage", "0"
    )
    assert code == 2
    assert "cpus-per-stage" in err
    code, _, err = ablate("launch", file, "--grid", "demo", "--out", OUT, "--no-such")
    assert code == 2
    assert "no-such" in err


def test_a_stage_that_no_machine_could_run_is_refused(ablate, tmp_path):
    file = edited(
        "ssh.yaml", tmp_path, **{"  # machine: {cpus: 16, gpus: 2, accelerator_type: A100}": "  machine: {cpus: 4}"}
    )
    refused(
        ablate("launch", file, "--grid", "demo", "--out", OUT, "--cpus-per-stage", "8", "--yes"),
        "--cpus-per-stage",
        "4",
    )


def test_a_name_that_is_no_file_is_answered_with_the_nearest(ablate):
    refused(ablate("launch", "awz.yaml", "--grid", "demo", "--out", OUT, "--yes"), "FILE", "did you mean 'aws.yaml'")
    refused(ablate("attach", "ssh.yaml"), "no launch of the cluster ablate-ssh is remembered")


def test_a_key_with_a_passphrase_is_refused(ablate, tmp_path):
    key = tmp_path / "key"
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", key], check=True)
    except FileNotFoundError:
        pytest.skip("needs ssh-keygen")
    old = "  # ssh_private_key: ~/.ssh/id_ed25519"
    file = edited("ssh.yaml", tmp_path, **{old: f"  ssh_private_key: {key}"})
    refused(ablate("launch", file, "--grid", "demo", "--out", OUT, "--yes"), "ssh_private_key", "has a passphrase")
    file = edited("ssh.yaml", tmp_path, **{old: "  ssh_private_key: /no/such/key"})
    refused(ablate("launch", file, "--grid", "demo", "--out", OUT, "--yes"), "ssh_private_key", "no file /no/such/key")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("head_ip: 192.0.2.1", "head_ip: 192.0.2.2", ("worker_ips", "192.0.2.2 again")),
        ("head_ip: 192.0.2.1", "haed_ip: 192.0.2.1", ("haed_ip", "did you mean 'head_ip'")),
        ("worker_ips:", "workers_ips:", ("workers_ips", "did you mean 'worker_ips'")),
        ("  # ray_options: --num-gpus=1", "  ray_options: --num-cpu=1", ("ray_options", "--num-cpu", "--num-cpus")),
        ("  # ray_options: --num-gpus=1", "  ray_options: --num-cpus=one", ("ray_options", "'one'")),
        ("cluster_name: ablate-ssh", "cluster_name: My Lab", ("cluster_name", "My Lab")),
        ("  port: 6379", "  port: 99", ("port", "1024", "99")),
        ("auth:", "head_start_ray_commands: [ray start]\nauth:", ("head_start_ray_commands", "left out")),
    ],
)
def test_what_is_wrong_in_a_list_of_machines_is_named_with_its_place(ablate, tmp_path, old, new, words):
    file = edited("ssh.yaml", tmp_path, **{old: new})
    refused(ablate("launch", file, "--grid", "demo", "--out", OUT, "--yes"), "ssh.yaml", *words)


def test_a_machine_that_does_not_answer_is_refused_before_anything_is_started(s3_server, ablate, tmp_path, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="launches")
    addresses = {f"192.0.2.{number}": f"127.0.0.{number}" for number in (1, 2, 3)}
    file = edited("ssh.yaml", tmp_path, **addresses)
    result = ablate(
        "launch", file, "--grid", "demo", "--out", f"s3://launches/x?endpoint_override={s3_server}", "--yes"
    )
    refused(result, "cannot be reached", "ssh -o BatchMode=yes")
    assert not (tmp_path / "home" / ".ablate").exists()


# --- dry runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssh.yaml", "aws.yaml", "gcp.yaml", "azure.yaml", "kuberay.yaml"])
def test_a_dry_run_needs_no_credentials_and_leaves_nothing(ablate, tmp_path, name):
    file = edited(name, tmp_path)
    code, out, err = ablate("launch", file, "--grid", "demo", "--out", OUT, "--set", "finetune.epochs=3", "--dry-run")
    assert (code, err) == (0, "")
    for words in ("trials         24", "without interruptions", "\nsteps\n", "  1. ", "as it will be used:"):
        assert words in out
    assert not (tmp_path / "home" / ".ablate").exists()
    if name in ("aws.yaml", "gcp.yaml", "azure.yaml"):
        resolved = yaml.safe_load(out.split("as it will be used:\n", 1)[1])
        assert resolved["head_start_ray_commands"][1].startswith("bash ~/.ablate/nodes/")
        assert "USD" in out
        by_you = out.split("by you, once for each account (a command may fail because its object exists)\n")[1]
        assert by_you.split("\n\n")[0].splitlines() == account_commands(resolved)


# --- what is sent -----------------------------------------------------------------------------------


def test_the_wheel_holds_this_very_version_and_pip_takes_it(tmp_path):
    name, data = build_wheel()
    assert build_wheel() == (name, data)
    (tmp_path / name).write_bytes(data)
    files = set(zipfile.ZipFile(tmp_path / name).namelist())
    assert {
        "ablate/cli/__init__.py",
        "ablate/launch/ssh/node.sh",
        "ablate/search_spaces/paper.yaml",
        "ablate/clusters/ssh.yaml",
    } <= files
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", tmp_path / name], check=True)
    code = "import ablate, importlib.metadata as m; print(ablate.__version__, m.version('ablate'), ablate.__file__)"
    said = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.split()
    assert said[:2] == [__version__, __version__]
    assert said[2].startswith(str(environment))


def test_constraints_pin_ray_and_torch_to_what_is_installed_here():
    pins = dict(line.split("==") for line in constraints().splitlines())
    import ray

    assert pins["ray"] == ray.__version__
    assert "+" not in pins["torch"]


# --- what is remembered -----------------------------------------------------------------------------


def test_only_the_owner_may_read_what_a_launch_remembers(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    memory = Memory("one")
    token = memory.token()
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert memory.token() == token
    memory.remember(out="s3://bucket/x")
    memory.remember(job="j")
    assert memory.state() == {"out": "s3://bucket/x", "job": "j"}
    for path in memory.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(memory.folder.stat().st_mode) == 0o700
    assert token not in str(memory.state())
    memory.forget()
    assert not memory.exists


def test_a_file_that_is_no_cluster_file_is_refused_with_what_it_could_be(tmp_path):
    for name, text, words in (
        ("a.yaml", "- 1\n", "mapping"),
        ("a.yaml", "name: x\n", "Ray cluster file"),
        ("a.yaml", "cluster_name: a\nprovider: {type: awz}\n", "did you mean 'aws'"),
        ("a.sbatch", "echo\n", "#SBATCH"),
    ):
        with pytest.raises(InputError, match=words):
            parse_cluster(tmp_path / name, text)
    with pytest.raises(InputError, match="path of a cluster file"):
        find_cluster(str(tmp_path / "none.yaml"))
