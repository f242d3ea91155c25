"""Of two drivers of one run only one is ever at work, also on S3, and one that was frozen writes nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import obstore
import pytest
from proxy import Proxy, without_conditions
from runs import descendants, driver, run, status_of, wait_until, workers_at_work, write_grid
from tiny import tiny_trial

from ablate import tables
from ablate.errors import InputError
from ablate.running.driver import RunResult
from ablate.store import LockLost, Store
from ablate.store.addresses import object_client
from ablate.store.fence import Fence
from ablate.store.lock import RunLock
from ablate.store.lock_file import LOCK, condition_problem
from ablate.store.owner import Owner

# --- races on an S3 server --------------------------------------------------------------------------

RACER = """
import sys, time
from ablate.store.lock import RunLock
from ablate.errors import InputError
from ablate.store import Store
for line in sys.stdin:  # one race: the address, and the moment to start
    address, moment = line.split()
    store = Store.open(address)
    time.sleep(max(0.0, float(moment) - time.time()))
    try:
        with RunLock(store) as lock:
            begin = time.time()
            time.sleep(0.3)
            print("held", begin, time.time(), lock.lost, flush=True)
    except InputError as error:
        print("refused", str(error).replace(chr(10), " "), flush=True)
"""


def test_of_two_drivers_that_start_in_the_same_moment_one_gets_the_lock_in_50_races(s3_address):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    base, _, query = s3_address.partition("?")
    waited = 0
    try:
        for number in range(50):
            moment = time.time() + 0.15
            for racer in racers:
                racer.stdin.write(f"{base}{number}?{query} {moment}\n")
                racer.stdin.flush()
            told = [racer.stdout.readline().split() for racer in racers]
            held = [[float(value) for value in words[1:3]] for words in told if words[0] == "held"]
            assert all(words[3] == "False" for words in told if words[0] == "held")
            assert len(held) >= 1, told
            if len(held) == 2:  # one after the other, if ever
                (_, first_end), (second_begin, _) = sorted(held)
                assert first_end <= second_begin, told
                waited += 1
    finally:
        for racer in racers:
            racer.stdin.close()
            racer.wait(30)
            racer.stdout.close()
    assert waited < 25  # most of the races were races


@pytest.mark.slow
def test_two_real_drivers_of_one_run_on_s3_started_at_once(s3_address, tmp_path):
    grid, trials = write_grid(tmp_path / "grid.yaml", [{"shots": 2}], "scratch")
    for number in range(5):
        address = s3_address.replace("/runs/one", f"/runs/{number}")
        with driver(grid, address) as one, driver(grid, address) as other:
            texts = [process.communicate(timeout=300)[0] for process in (one, other)]
            codes = sorted([one.returncode, other.returncode])
        assert codes in ([0, 2], [0, 0]), texts  # [0, 0]: the second began when the first had ended
        assert status_of(Store.open(address)) == {trial.trial_id: "finished" for trial in trials}
        assert len(tables.read_table(Store.open(address), "stages")) == len(trials)  # nothing was done twice


# --- servers that ignore conditions -----------------------------------------------------------------


@pytest.fixture
def careless(s3_server):
    """An S3 server that ignores the conditions of a request: the real one behind a proxy that hides them."""
    parts = urlsplit(s3_server)
    proxy = Proxy((parts.hostname, parts.port), without_conditions)
    yield f"http://127.0.0.1:{proxy.port}"
    proxy.down()


def test_a_server_that_ignores_conditions_is_found_by_the_probe_and_said(careless, s3_server, s3_address):
    address = s3_address.replace(s3_server, careless)
    assert condition_problem(Store.open(s3_address)) is None
    problem = condition_problem(Store.open(address))
    assert "ignores the condition that an object must not exist yet" in problem
    result, text = run(address, [tiny_trial(shots=2, finetune={"epochs": 1})])
    assert result == RunResult(0, 1, 0, 0)
    assert f"warning: {Store.open(address).label}: the server ignores the condition" in text
    assert "best effort" in text
    with RunLock(Store.open(address)) as lock:
        assert lock.weakness == problem
        with pytest.raises(InputError, match="one is at work"):
            RunLock(Store.open(address)).acquire()
    assert RunLock(Store.open(address)).owner() is None


def test_on_a_server_that_honours_them_the_lock_is_deleted_and_no_probe_is_left(s3_address):
    import boto3

    store = Store.open(s3_address)
    with RunLock(store, heartbeat_s=0.05) as lock:
        time.sleep(0.5)
        assert lock.weakness is None
        assert not lock.lost
    assert not store.exists(LOCK)
    client = boto3.client("s3", endpoint_url=s3_address.partition("endpoint_override=")[2])
    bucket = store.root.partition("/")[0]
    objects = [found["Key"] for found in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    assert [key for key in objects if not key.endswith("/")] == []  # pyarrow marks the folder that it deletes from


# --- the fence --------------------------------------------------------------------------------------


def take_over(store):
    """Write another owner's lock, as a driver elsewhere that found this one gone would."""
    owner = json.loads(store.read(LOCK))
    store.put(LOCK, json.dumps(owner | {"token": uuid.uuid4().hex, "host": "node7"}).encode(), durable=False)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return Store.open(tmp_path / "run" if request.param == "local" else request.getfixturevalue("s3_address"))


def test_nothing_is_changed_once_the_lock_is_anothers(store):
    with RunLock(store) as lock:
        store.fence = Fence(store, lock.token, max_age_s=0)
        store.write("tables/x", b"1")
        take_over(store)
        for change in (
            lambda: store.write("tables/x", b"2"),
            lambda: store.publish("a/step_000001", {"model": b"2"}),
            lambda: store.delete("tables/x"),
            store.confirm_lock,
        ):
            with pytest.raises(LockLost, match=r"another driver \(host node7, pid \d+\) has taken this run over"):
                change()
        assert store.read("tables/x") == b"1"
        assert store.newest("a") is None


def test_between_two_looks_at_the_lock_changes_pass_but_no_row_of_trials(store):
    with RunLock(store) as lock:
        store.fence = Fence(store, lock.token, max_age_s=3600)
        store.write("x", b"1")
        take_over(store)
        store.write("x", b"2")
        with pytest.raises(LockLost):
            tables.commit_trial(store, tables.blank("trials") | {"trial_id": "0" * 12, "status": "failed"}, [], [])
        assert not store.exists("tables/trials")


def test_a_lock_that_was_given_back_is_nobodys(store):
    with RunLock(store) as lock:
        fence = Fence(store, lock.token)
    with pytest.raises(LockLost):
        fence.confirm()


def test_a_renewal_whose_answer_was_lost_does_not_lose_the_lock(s3_address):
    store = Store.open(s3_address)
    with RunLock(store, heartbeat_s=0.5) as lock:
        written = lock.owner()
        store.put(LOCK, replace(written, heartbeat=written.heartbeat + 0.001).to_bytes(), durable=False)
        assert lock.owner() != written  # this driver's own renewal, in a version that it does not know
        wait_until(lambda: lock.owner().heartbeat > written.heartbeat + 0.001)
        assert not lock.lost
    assert not store.exists(LOCK)


def test_a_renewal_of_another_length_never_makes_the_lock_look_lost(s3_address):
    """Renewals differ in length, as the digits of the time do; each look must find one of them, whole."""
    store = Store.open(s3_address)
    with RunLock(store, heartbeat_s=100.0) as lock:
        owner = lock.owner()
        renewals = [replace(owner, heartbeat=heartbeat).to_bytes() for heartbeat in (1.5, 1795909516.123456)]
        client, over = object_client(s3_address), threading.Event()

        def renew():
            while not over.is_set():
                for data in renewals:
                    obstore.put(client, LOCK, data)

        with ThreadPoolExecutor(1) as pool:
            renewing = pool.submit(renew)
            try:
                seen = [lock.owner() for _ in range(300)]
                Fence(store, lock.token).confirm()
            finally:
                over.set()
            renewing.result()
    assert [found.token for found in seen if found is not None] == [lock.token] * 300


# --- a driver that was frozen -----------------------------------------------------------------------

FROZEN = """
import sys
import ablate.running.driver, ablate.store.lock
from functools import partial
ablate.running.driver.RunLock = partial(ablate.store.lock.RunLock, heartbeat_s=1.0)
sys.argv = ["ablate", *sys.argv[1:]]
from ablate.cli import main
main()
"""


def processes_of(session):
    """Return the pids of all processes of a session, and of those below them."""
    return [session, *descendants(session)]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs a process namespace of its own")
def test_a_driver_frozen_past_its_lease_wakes_up_and_commits_no_row(s3_address, tmp_path):
    """The frozen driver is in a process namespace of its own, so that the second one sees a machine elsewhere."""
    pretrain = tiny_trial("simclr", pretrain={"steps": 150}).pretrain.model_dump(mode="json")
    grid, trials = write_grid(tmp_path / "grid.yaml", [{"seed": [0, 1], "pretrain": pretrain}], "simclr")
    store = Store.open(s3_address)
    (key,) = {trial.pretrain_key for trial in trials}
    arguments = ["run", "--grid", str(grid), "--out", s3_address, "--checkpoint-minutes", "0"]
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", FROZEN, *arguments]
    log = (tmp_path / "frozen.txt").open("w+")
    frozen = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        wait_until(lambda: (store.newest(f"pretrained/{key}/state") or 0) >= 5 or frozen.poll() is not None, 180)
        assert frozen.poll() is None
        first = RunLock(store).owner()
        pids = processes_of(frozen.pid)
        assert len(workers_at_work(frozen.pid)) >= 1
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        at_freeze = store.sizes()
        lock = RunLock(store, heartbeat_s=1.0, stale_s=4.0)
        time.sleep(5)
        lock.acquire()  # a second driver finds the first one gone
        assert lock.took_over.token == first.token
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        frozen.wait(120)
        assert frozen.returncode == 4
        log.seek(0)
        text = log.read()
        assert "has taken this run over" in text.splitlines()[-1], text
        assert "Traceback" not in text
        assert lock.owner().token == lock.token
        changed = {name for name, size in store.sizes().items() if at_freeze.get(name) != size}
        assert len({name for name in changed if name.startswith("pretrained")}) <= 1, changed  # the one in flight
        assert not any(name.startswith("tables/trials") for name in store.sizes())
        lock.release()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(frozen.pid, signal.SIGKILL)
        frozen.wait()
        log.close()
    with driver(grid, s3_address) as process:
        text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text


def test_the_content_of_a_lock_survives_a_round_trip():
    owner = Owner("t", "host", "machine", 1, "start", "now", 1.5)
    assert Owner.from_bytes(owner.to_bytes()) == owner
    assert Owner.from_bytes(b"{}") is None
    assert Owner.from_bytes(b"no json") is None
