"""Storage goes away for a while, or for too long: no trial fails, and the tables end as if nothing had happened."""

import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
from proxy import Proxy
from runs import attempts, driver, status_of, undisturbed, wait_until, write_grid
from same_tables import compare, unreadable_parts
from tiny import tiny_trial

from ablate.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

SEED = int(os.environ.get("ABLATE_CHAOS_SEED", "0"))


@pytest.fixture
def proxy(s3_server):
    parts = urlsplit(s3_server)
    proxy = Proxy((parts.hostname, parts.port))
    yield proxy
    proxy.down()


@pytest.fixture
def behind(proxy, s3_server, s3_address):
    """The address of a store whose server is reached through the proxy, and the same store reached directly."""
    return s3_address.replace(s3_server, f"http://127.0.0.1:{proxy.port}"), Store.open(s3_address)


def pretrain(method, steps):
    more = {"timesteps": 20} if method == "ddpm" else {}
    return tiny_trial(method, pretrain={"steps": steps, **more}).pretrain.model_dump(mode="json")


def states_of(store):
    return {path for path in store.sizes() if "/state/step_" in path or path.startswith("tables/")}


def check(store, trials, folder):
    """Check that a run through outages has the tables of an undisturbed one, and that no attempt has failed."""
    assert status_of(store) == {trial.trial_id: "finished" for trial in trials}
    assert compare(store, undisturbed(folder, list(trials))) == []
    assert unreadable_parts(store) == {}
    rows = attempts(store) + attempts(store, "finetune")
    assert {row["outcome"] for row in rows} <= {"running", "interrupted", "finished"}


def test_an_outage_past_the_patience_ends_with_one_line_and_one_of_seconds_changes_nothing(proxy, behind, tmp_path):
    address, store = behind
    grid, trials = write_grid(
        tmp_path / "grid.yaml",
        [{"seed": [0, 1], "pretrain": pretrain("simclr", 400)}],
        "simclr",
        finetune={"epochs": 5},
    )
    (key,) = {trial.pretrain_key for trial in trials}

    def reached(step):
        return lambda: (store.newest(f"pretrained/{key}/state") or 0) >= step

    with driver(grid, address, "--store-patience", "0.25") as process:
        wait_until(lambda: reached(5)() or process.poll() is not None)
        assert process.poll() is None, process.stdout.read()
        proxy.down()
        text, _ = process.communicate(timeout=240)
    proxy.up()
    assert process.returncode == 3, text
    assert "the store has not answered since" in text
    assert "training goes on in memory" in text
    assert text.splitlines()[-1].startswith(f"ablate: {store.label}: the store has not answered since")
    assert "longer than --store-patience (0.25 minutes); run the same command again to go on" in text.splitlines()[-1]
    assert "Traceback" not in text
    assert "failed " not in text
    step = store.newest(f"pretrained/{key}/state")
    with driver(grid, address) as process:  # the dead driver's lock is no obstacle
        wait_until(lambda: reached(step + 5)() or process.poll() is not None)
        assert process.poll() is None, process.stdout.read()
        proxy.down()
        time.sleep(6)
        proxy.up()
        text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "Traceback" not in text
    check(store, trials, tmp_path / "alone")


@pytest.fixture
def silent_server(s3_server, tmp_path):
    """An S3 server in a process of its own, which can be frozen; yields the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with (tmp_path / "server.txt").open("w") as log:
        server = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 60)
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_server_that_falls_silent_ends_the_run_with_the_patience_while_training_goes_on(silent_server, tmp_path):
    """It takes connections and never answers: no request fails for long, and none may hold up the run."""
    import boto3

    server, endpoint = silent_server
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket1")
    address = f"s3://bucket1/run?endpoint_override={endpoint}"
    grid, trials = write_grid(
        tmp_path / "grid.yaml",
        [{"seed": [0, 1], "pretrain": pretrain("simclr", 3000)}],
        "simclr",
        finetune={"epochs": 5},
    )
    store = Store.open(address)
    (key,) = {trial.pretrain_key for trial in trials}
    with driver(grid, address, "--store-patience", "1") as process:
        wait_until(lambda: (store.newest(f"pretrained/{key}/state") or 0) >= 5 or process.poll() is not None)
        assert process.poll() is None, process.stdout.read()
        server.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        text, _ = process.communicate(timeout=240)
        seconds = time.monotonic() - began
    assert process.returncode == 3, text
    assert text.splitlines()[-1].startswith(f"ablate: {store.label}: the store has not answered since"), text
    assert "Traceback" not in text
    steps = [int(found) for found in re.findall(r"pretrain, (\d+)/3000", text)]
    server.send_signal(signal.SIGCONT)
    saved = store.newest(f"pretrained/{key}/state")
    assert max(steps) > saved + 20, (steps, saved)  # it trained on with nothing saved
    print(f"\nended {seconds:.0f} s after the server fell silent, at step {max(steps)}, {saved} saved")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_outages_and_a_slow_network_change_no_bit_of_the_tables(proxy, behind, tmp_path):
    address, store = behind
    chance = random.Random(SEED)
    blocks = [
        {
            "seed": list(range(6)),
            "pretrain": [pretrain(method, steps) for method in ("ddpm", "byol") for steps in (30, 60)],
        }
    ]
    grid, trials = write_grid(tmp_path / "grid.yaml", blocks, "ddpm", finetune={"epochs": 30})
    durations = [5, 30, 5, 120, 5, 30, 5, 5, 30, 120, 5, 5]
    outages, began = [], time.monotonic()
    with driver(grid, address) as process:
        for number in itertools.count():
            seen = states_of(store)
            wait_until(lambda seen=seen: states_of(store) - seen or process.poll() is not None, 300)
            time.sleep(chance.uniform(0, 2))
            if process.poll() is not None:
                break
            if number % 4 == 3:  # between outages, a slow network
                proxy.slow()
                time.sleep(10)
                proxy.slow(None, 0)
                continue
            if len(outages) < len(durations):
                outages.append(durations[len(outages)])
                proxy.down()
                time.sleep(outages[-1])
                proxy.up()
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert len(outages) >= 10, outages
    assert "Traceback" not in text
    assert "failed " not in text
    check(store, trials, tmp_path / "alone")
    print(f"\noutages of {outages} s in a run of {time.monotonic() - began:.0f} s, {proxy.num_connections} connections")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="remounts a file system")
def test_a_disk_that_is_read_only_for_20_seconds_changes_no_bit_of_the_tables(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        store = Store.open(disk / "run")
        grid, trials = write_grid(
            tmp_path / "grid.yaml",
            [{"seed": [0, 1], "pretrain": pretrain("simclr", 120)}],
            "simclr",
            finetune={"epochs": 20},
        )
        (key,) = {trial.pretrain_key for trial in trials}
        with driver(grid, store.address) as process:
            wait_until(lambda: (store.newest(f"pretrained/{key}/state") or 0) >= 5 or process.poll() is not None)
            assert process.poll() is None, process.stdout.read()
            remount(disk, "ro")
            time.sleep(20)
            remount(disk, "rw")
            text, _ = process.communicate(timeout=240)
        assert process.returncode == 0, text
        assert "the store has not answered since" in text
        assert "Traceback" not in text
        check(store, trials, tmp_path / "alone")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk, mode):
    """Change a file system's mode; it is busy as long as some file is open for writing."""
    wait_until(lambda: subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=False).returncode == 0, 30)
