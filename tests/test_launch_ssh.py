"""Launches on ssh hosts, for real: hosts in namespaces of this machine, a store at the laptop's end."""

import subprocess
import sys
import time

import pytest
from lab import missing
from runs import undisturbed, write_grid
from ssh_lab import STORE, SshLab
from tiny import tiny_trial

from ablate import results
from ablate.store import Store

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
    pytest.mark.timeout(1800),
]


def pretrain(method, steps):
    more = {"timesteps": 20} if method == "ddpm" else {}
    return tiny_trial(method, pretrain={"steps": steps, **more}).pretrain.model_dump(mode="json")


@pytest.fixture
def lab(tmp_path):
    pytest.importorskip("moto.server", reason="needs moto[server], from the test extra")
    pytest.importorskip("aiohttp_cors", reason="needs ray[default], from the clusters extra")
    with SshLab(tmp_path / "lab", 3, strangers=1) as hosts:
        yield hosts


def out(name="run"):
    return f"s3://runs/{name}?endpoint_override={STORE}"


def small(tmp_path, seeds=2, steps=60):
    """Write a grid of two pre-trainings a seed and a fine-tuning of each."""
    block = {"seed": list(range(seeds)), "pretrain": [pretrain("ddpm", steps), pretrain("simclr", steps)]}
    return write_grid(tmp_path / "grid.yaml", [block])


def assert_equal_to_one_machine(lab, tmp_path, trials, name="run"):
    lab.tables(out(name), tmp_path / "copied")
    copied = Store.open(str(tmp_path / "copied"))
    assert set(results.finished_trials(copied).values()) == {"finished"}
    assert len(results.finished_trials(copied)) == len(trials)
    assert results.compare(copied, undisturbed(tmp_path / "alone", list(trials))) == []


# --- open ports -------------------------------------------------------------------------------------

KNOCK = """
import socket, sys, urllib.request, urllib.error
import grpc
host, ports = sys.argv[1], [int(word) for word in sys.argv[2:]]
for port in ports:
    try:
        urllib.request.urlopen(f"http://{host}:{port}/", timeout=3).read()
        print(port, "open to all by http")
        continue
    except urllib.error.HTTPError as error:
        print(port, "asks for a token" if error.code == 401 else f"http {error.code}")
        continue
    except Exception:
        pass
    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        call(b"", timeout=5)
        print(port, "open to all by grpc")
    except grpc.RpcError as error:
        print(port, "asks for a token" if error.code() == grpc.StatusCode.UNAUTHENTICATED else f"grpc {error.code()}")
"""

SCAN = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def is_open(port):
    with socket.socket() as knock:
        knock.settimeout(2)
        return knock.connect_ex((sys.argv[1], port)) == 0
with ThreadPoolExecutor(200) as pool:
    print(*[port for port, found in zip(range(1, 65536), pool.map(is_open, range(1, 65536))) if found])
"""


def open_ports(lab, stranger, number):
    """Return what a stranger's machine finds at every open port of a host, by port, and who listens there."""
    python = f"{sys.executable} -c"
    address = lab.address(number)
    found = lab.on(stranger, f"{python} {quoted(SCAN)} {address}").split()
    answers = lab.on(stranger, f"{python} {quoted(KNOCK)} {address} {' '.join(p for p in found if p != '22')}")
    replies = dict(line.split(" ", 1) for line in answers.splitlines())
    owners = {}
    for line in lab.on(number, "ss -ltnpH").splitlines():
        columns = line.split()
        owners[columns[3].rpartition(":")[2]] = columns[5].split('"')[1] if len(columns) > 5 else "?"
    return {port: (owners.get(port, "?"), replies.get(port, "ssh")) for port in found}


def quoted(code):
    import shlex

    return shlex.quote(code)


# --- a launch ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_launch_outlives_a_dead_host_a_cut_cable_and_its_own_end(lab, tmp_path):
    grid, trials = small(tmp_path, seeds=4, steps=150)
    words = ["--grid", str(grid), "--out", out(), "--checkpoint-minutes", "0"]
    first = lab.ablate("launch", str(lab.file), *words, "--yes")
    first.until("started the driver")
    ports = {number: open_ports(lab, 4, number) for number in (1, 2)}
    for number, found in ports.items():
        print(f"host {number}: {found}")
        assert {answer for port, (_, answer) in found.items() if port != "22"} == {"asks for a token"}
        assert found["22"][0] == "sshd"
    first.until("stage")  # running
    first.kill()
    assert (
        "running"
        in subprocess.run(
            lab.words(sys.executable, "-m", "ablate.cli", "cluster", "status", str(lab.file)),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    second = lab.ablate("attach", str(lab.file))
    second.until("stage")
    lab.kill_host(3)
    lab.cut(2)
    time.sleep(60)
    lab.mend(2)
    lab.start_host(3)
    lab.furnish(3)
    code = second.end(1200)
    print("\n".join(second.said))
    assert code in (0, 6), second.said
    assert_equal_to_one_machine(lab, tmp_path, trials)
    for number in (1, 2, 3):
        assert lab.rayish(number) == []
    assert code == 0


def test_a_launch_ends_as_one_machine_would_and_leaves_nothing(lab, tmp_path):
    grid, trials = small(tmp_path, seeds=1, steps=6)
    launched = lab.ablate("launch", str(lab.file), "--grid", str(grid), "--out", out(), "--yes")
    assert launched.end() == 0, launched.said
    assert "everything is taken down" in launched.said
    assert any("report on 2 finished" in line for line in launched.said)
    assert_equal_to_one_machine(lab, tmp_path, trials)
    for number in lab.machines:
        assert lab.rayish(number) == []
        assert "token" not in lab.on(number, "ls ~/.ablate/nodes/ablate-ssh").split()
    assert lab.laptop("ls ~/.ablate/clusters") == ""
