"""Fixtures shared by the tests."""

import logging
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # of the clusters that tests make on a busy machine


WAITING = {
    *("test_api", "test_autoscaling", "test_demand", "test_doctor", "test_kubernetes", "test_lab_data", "test_launch"),
    *("test_launch_ssh", "test_lock", "test_log", "test_outages", "test_patience", "test_preemption", "test_recorder"),
    *("test_run", "test_run_s3", "test_signals", "test_skypilot", "test_slurm", "test_spot", "test_stop"),
    *("test_store_s3", "test_trackers", "test_tuned_run"),
}
"""Files whose tests mostly wait: for clusters, servers and processes. Those of other files compute."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `WAITING`, before `-m` chooses by marks."""
    for item in items:
        if item.path.stem in WAITING:
            item.add_marker("waits")


@pytest.fixture(scope="session")
def xray_data() -> Path:
    """Folder with real radiographs in the public layouts; tests that need it skip where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ABLATE_TEST_DATA", default))
    if not (folder / "cephalo" / "jpg").is_dir():
        pytest.skip(f"needs real radiographs: set ABLATE_TEST_DATA to a folder with cephalo/jpg (looked in {folder})")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep prepared data of tests out of the user's own cache."""
    if "ABLATE_CACHE" not in os.environ:
        monkeypatch.setenv("ABLATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def ablate(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int | str, str, str]]:
    """Run a command line in this process; return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int | str, str, str]:
        from ablate import cli

        monkeypatch.setattr(sys, "argv", ["ablate", *map(str, arguments)])
        code: int | str = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a server on loopback that speaks the S3 protocol; credentials for it are in the environment."""
    server_module = pytest.importorskip("moto.server", reason="needs moto[server], from the test extra")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_address(s3_server: str) -> str:
    """Address of a store in a new, empty bucket, to be given to `--out`."""
    import boto3

    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one?endpoint_override={s3_server}"


@pytest.fixture(scope="session")
def gs_server() -> Iterator[str]:
    """HOST:PORT of a server on loopback that speaks the Google Cloud Storage protocol, in a process of its own."""
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys, time; from gcp_storage_emulator.server import create_server; "
        f"server = create_server('127.0.0.1', {port}, in_memory=True, default_bucket='bucket'); "
        "server.start(); print('up', flush=True); sys.stdin.read(); server.stop()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield f"127.0.0.1:{port}"
        process.kill()


@pytest.fixture
def gs_address(gs_server: str) -> str:
    """Address of an empty store on that server, to be given to `--out`."""
    return f"gs://anonymous@bucket/{uuid.uuid4().hex}/run?endpoint_override={gs_server}&scheme=http"
