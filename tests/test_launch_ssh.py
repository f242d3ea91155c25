"""Launches on ssh hosts, for real: hosts in namespaces of this machine, a store at the laptop's end."""

import itertools
import os
import random
import shlex
import sys
import time
from collections import Counter

import pytest
from lab import missing
from runs import undisturbed, wait_until, write_grid
from same_tables import compare
from ssh_lab import STORE, SshLab
from tiny import tiny_trial

from ablate import tables
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
    assert set(tables.trial_status(copied).values()) == {"finished"}
    assert len(tables.trial_status(copied)) == len(trials)
    assert compare(copied, undisturbed(tmp_path / "alone", list(trials))) == []


# --- open ports -------------------------------------------------------------------------------------

METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",  # the control service
    "NodeManagerService/GetNodeStats",  # a raylet
    "ObjectManagerService/Push",
    "CoreWorkerService/GetCoreWorkerStats",  # a worker
    "ReporterService/GetTraceback",  # the dashboard's agent
    "RayletDriver/ClusterInfo",  # Ray's client server
)
"""A harmless call of every service of Ray that speaks gRPC; a server may know its own only."""

KNOCK = f"""
import sys, urllib.request, urllib.error
import grpc
for port in sys.argv[2:]:
    where = f"{{sys.argv[1]}}:{{port}}"
    answers = set()
    try:
        urllib.request.urlopen(f"http://{{where}}/", timeout=3).read()
        answers.add("open to all by http")
    except urllib.error.HTTPError as error:
        answers.add("asks for a token" if error.code == 401 else f"http {{error.code}}")
    except Exception:
        for method in {METHODS!r}:
            with grpc.insecure_channel(where) as channel:
                try:
                    channel.unary_unary(f"/ray.rpc.{{method}}")(b"", timeout=5)
                    answers.add("open to all by grpc")
                except grpc.RpcError as error:
                    codes = {{"UNAUTHENTICATED": "asks for a token", "UNIMPLEMENTED": None}}
                    answers.add(codes.get(error.code().name, f"grpc {{error.code().name}}"))
    print(port, " and ".join(sorted(filter(None, answers))) or "speaks nothing that Ray does")
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
    found = lab.on(stranger, f"{python} {shlex.quote(SCAN)} {address}").split()
    answers = lab.on(stranger, f"{python} {shlex.quote(KNOCK)} {address} {' '.join(p for p in found if p != '22')}")
    replies = dict(line.split(" ", 1) for line in answers.splitlines())
    owners = {}
    for line in lab.on(number, "ss -ltnpH").splitlines():
        columns = line.split()
        owners[columns[3].rpartition(":")[2]] = columns[5].split('"')[1] if len(columns) > 5 else "?"
    return {port: (owners.get(port, "?"), replies.get(port, "ssh")) for port in found}


# --- a launch ---------------------------------------------------------------------------------------


def test_a_launch_ends_as_one_machine_would_and_leaves_nothing(lab, tmp_path):
    grid, trials = small(tmp_path, seeds=1, steps=60)
    launched = lab.ablate("launch", lab.file, "--grid", grid, "--out", out(), "--yes")
    launched.until("started the driver")
    watched = lab.ablate("attach", lab.file)
    watched.until("the driver")
    watched.kill()
    assert lab.ablate("cluster", "status", lab.file).end() == 0
    wait_until(lambda: lab.tunnels() == (1, 1))  # the launch's own
    assert launched.end() == 0, launched.said
    assert "everything is taken down" in launched.said
    assert any("report on 2 finished" in line for line in launched.said)
    assert_equal_to_one_machine(lab, tmp_path, trials)
    for number in lab.machines:
        assert lab.rayish(number) == []
        assert "token" not in lab.on(number, "ls ~/.ablate/nodes/ablate-ssh").split()
    assert lab.laptop("ls ~/.ablate/clusters") == ""
    wait_until(lambda: lab.tunnels() == (0, 0))


@pytest.mark.slow
def test_a_launch_outlives_a_dead_host_a_cut_cable_and_its_own_end(lab, tmp_path):
    grid, trials = small(tmp_path, seeds=4, steps=150)
    first = lab.ablate("launch", lab.file, "--grid", grid, "--out", out(), "--checkpoint-minutes", "0", "--yes")
    first.until("started the driver")
    for number in (1, 2):
        found = open_ports(lab, 4, number)
        print(f"host {number}:", *(f"{port} {owner}: {answer}" for port, (owner, answer) in found.items()), sep="\n  ")
        assert found.pop("22") == ("sshd", "ssh")
        assert {answer for _, answer in found.values()} == {"asks for a token"}
        if number == 1:
            assert found["6379"][0] == "gcs_server"
    first.kill()
    status = lab.ablate("cluster", "status", lab.file)
    assert status.end() == 0
    assert any("driver   running" in line for line in status.said), status.said
    second = lab.ablate("attach", lab.file)
    lab.kill_host(3)
    lab.cut(2)
    time.sleep(60)
    lab.mend(2)
    lab.start_host(3)
    lab.furnish(3)
    assert second.end(1200) == 0, second.said
    print(*second.said, sep="\n")
    assert any("10.77.0.13 was missing, and is asked to join again" in line for line in second.said)
    assert_equal_to_one_machine(lab, tmp_path, trials)
    assert [lab.rayish(number) for number in lab.machines] == [[], [], []]


@pytest.mark.slow
def test_a_launch_whose_cluster_is_taken_down_elsewhere_ends_too(lab, tmp_path):
    grid, _ = small(tmp_path, seeds=2, steps=400)
    launched = lab.ablate("launch", lab.file, "--grid", grid, "--out", out(), "--yes")
    launched.until("started the driver")
    lab.wait_for_stages(out())
    down = lab.ablate("cluster", "down", lab.file)
    assert down.end() == 0, down.said
    assert launched.end(60) == 5, launched.said
    assert "taken down by another command" in launched.said[-1]
    assert [lab.rayish(number) for number in lab.machines] == [[], [], []]
    wait_until(lambda: lab.tunnels() == (0, 0))
    assert lab.laptop("ls ~/.ablate/clusters") == ""


@pytest.mark.slow
def test_after_the_loss_of_the_head_the_same_launch_goes_on(lab, tmp_path):
    grid, trials = small(tmp_path, seeds=2, steps=100)
    words = ("launch", lab.file, "--grid", grid, "--out", out(), "--checkpoint-minutes", "0", "--yes")
    first = lab.ablate(*words)
    first.until("started the driver")
    lab.wait_for_stages(out())
    lab.kill_host(1)
    assert first.end(600) == 6, first.said
    assert any("the head is lost" in line for line in first.said), first.said
    lab.start_host(1)
    lab.furnish(1)
    second = lab.ablate(*words)
    assert second.end(900) == 0, second.said
    assert_equal_to_one_machine(lab, tmp_path, trials)
    assert [lab.rayish(number) for number in lab.machines] == [[], [], []]


@pytest.mark.slow
def test_other_versions_on_a_machine_and_a_head_that_stays_silent_end_with_6_and_nothing_left(lab, tmp_path):
    grid, _ = small(tmp_path, seeds=1, steps=6)
    words = ("launch", lab.file, "--grid", grid, "--out", out(), "--yes")
    site = "$(ls -d ~/.ablate/nodes/ablate-ssh/env/lib/python*/site-packages)"
    about = f"{site}/ray-2.1.0.dist-info"
    lab.on(3, f"mkdir {about}; printf 'Name: ray\nVersion: 2.1.0\n' > {about}/METADATA")
    launched = lab.ablate(*words)
    assert launched.end() == 6, launched.said
    assert [line for line in launched.said if line.startswith("ablate: 10.77.0.13")], launched.said
    assert launched.said[-1] == "everything is taken down"
    lab.on(3, f"rm -r {site}/ray-2.1.0.dist-info")
    lab.on(1, "mount -t tmpfs -o size=4k tmpfs /tmp/ray")  # Ray has no room for its logs and sockets
    launched = lab.ablate(*words)
    assert launched.end() == 6, launched.said
    assert [line for line in launched.said if line.startswith("ablate: ") and "10.77.0.11" in line], launched.said
    assert launched.said[-1] == "everything is taken down"
    assert [lab.rayish(number) for number in lab.machines] == [[], [], []]


# --- chaos ------------------------------------------------------------------------------------------

SEED = int(os.environ.get("ABLATE_CHAOS_SEED", "0"))
KILLS = int(os.environ.get("ABLATE_CHAOS_KILLS", "30"))


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_thirty_kills_lose_double_and_change_nothing(lab, tmp_path):
    """Workers, hosts, the head, the driver, the launch and the way to the store die at random, one at a time."""
    draw = random.Random(SEED)
    through = f"s3://runs/run?endpoint_override=http://10.77.0.1:{lab.start_proxy()}"
    grid, trials = small(tmp_path, seeds=12, steps=3000)
    options = ("--checkpoint-minutes", "0", "--max-failures", "9", "--yes")
    words = ("launch", lab.file, "--grid", grid, "--out", through, *options)
    launched = lab.ablate(*words)
    launched.until("started the driver")
    killed = Counter()

    def relaunch():
        nonlocal launched
        launched.kill()
        launched = lab.ablate(*words)

    def kill_worker():
        return lab.kill_process(draw.choice(lab.machines), "ResourceTrainable.train")

    def kill_host():
        number = draw.choice(lab.machines[1:])
        lab.kill_host(number)
        time.sleep(draw.uniform(0, 10))
        lab.start_host(number)
        lab.furnish(number)
        return True

    def kill_head():
        lab.kill_host(1)
        time.sleep(draw.uniform(0, 10))
        lab.start_host(1)
        lab.furnish(1)
        relaunch()
        return True

    def kill_driver():
        return lab.kill_process(1, "ablate run")

    def kill_launch():
        relaunch()
        return True

    def kill_proxy():
        lab.stop_proxy()
        time.sleep(draw.uniform(1, 20))
        lab.start_proxy()
        return True

    times = {kill_worker: 10, kill_host: 5, kill_head: 3, kill_driver: 5, kill_launch: 3, kill_proxy: 4}
    kills = [kill for kill, count in times.items() for _ in range(count)]
    draw.shuffle(kills)
    begun = time.monotonic()
    for kill in itertools.islice(itertools.cycle(kills), KILLS):
        time.sleep(draw.uniform(2, 12))
        if launched.process.poll() is not None:
            if launched.process.returncode == 0:
                break
            relaunch()  # it ended with a loss that it told, such as the head's
        while not kill():
            time.sleep(1)
            if launched.process.poll() is not None:
                break
        else:
            killed[kill.__name__] += 1
            print(f"{time.monotonic() - begun:.0f} s: {kill.__name__}", flush=True)
        launched.hear()
    print(f"{sum(killed.values())} kills in {time.monotonic() - begun:.0f} s: {dict(killed)}")
    for _ in range(10):
        if launched.end(1800) == 0:
            break
        print(f"exit code {launched.process.returncode}:", *launched.said[-3:], sep="\n  ")
        relaunch()
    assert launched.process.returncode == 0, launched.said
    assert sum(killed.values()) >= KILLS, "the run ended before all kills: make it longer"
    assert_equal_to_one_machine(lab, tmp_path, trials)
    assert [lab.rayish(number) for number in lab.machines] == [[], [], []]
