"""The contract of the store, on a folder, an S3 and a GCS server; what a kill, a full disk or a rival leaves."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from runs import wait_until

from ablate.errors import InputError
from ablate.store import BackgroundPublisher, CorruptArtifact, Store, StoreFull, step_name, step_of
from ablate.store.layout import LOCK
from ablate.store.lock import RunLock
from ablate.store.owner import Owner, is_running, process_start
from ablate.store.stopping import StopWatch, clear_stop, request_stop, stop_reason


@pytest.fixture(params=["local", "s3", "gs"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return str(request.getfixturevalue(f"{request.param}_address"))


@pytest.fixture
def store(address: str) -> Store:
    return Store.open(address)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "run")


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# --- files ------------------------------------------------------------------------------------------


def test_a_file_reads_back_as_it_was_written_last(store: Store) -> None:
    store.write("a/b/c.bin", b"first")
    store.write("a/b/c.bin", b"\x00second\xff")
    assert store.read("a/b/c.bin") == b"\x00second\xff"
    assert store.exists("a/b/c.bin")
    assert store.exists("a/b")
    assert not store.exists("a/c")


def test_a_file_larger_than_one_upload_part_reads_back(store: Store) -> None:
    data = random.Random(0).randbytes(12_000_000)
    store.write("large.gz", data)  # the name must not make anybody compress it
    assert store.read("large.gz") == data
    assert store.sizes() == {"large.gz": 12_000_000}


def test_reading_what_is_missing_raises_file_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing/here")


def test_listing_is_sorted_and_without_hidden_names(store: Store) -> None:
    for path in ("f/b", "f/a", "f/.hidden", "f/sub/x", "f/sub/.tmp/y"):
        store.write(path, b"12")
    assert store.list("f") == ["a", "b", "sub"]
    assert store.list("absent") == []
    assert store.sizes() == {"f/a": 2, "f/b": 2, "f/sub/x": 2}
    assert store.sizes("f/sub") == {"f/sub/x": 2}
    assert store.sizes("absent") == {}


def test_deleting_takes_files_and_folders_and_ignores_the_missing(store: Store) -> None:
    for path in ("f/a", "f/sub/x", "g"):
        store.write(path, b"1")
    store.delete("f")
    store.delete("g")
    store.delete("g")
    store.delete("never/was")
    assert store.sizes() == {}
    assert store.list("f") == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a"])
def test_a_path_outside_the_store_is_refused(local: Store, path: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        local.write(path, b"")


def test_a_store_pickles_by_its_address(store: Store) -> None:
    store.write("x", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.read("x") == b"1"
    assert len(pickle.dumps(store)) < 500


# --- artifacts --------------------------------------------------------------------------------------


def test_an_artifact_holds_its_files_facts_sizes_and_hashes(store: Store) -> None:
    store.publish("p/step_000100", {"model.safetensors": b"abc", "empty": b""}, step=100, loss=0.25, method="ddpm")
    manifest = store.manifest("p/step_000100")
    assert manifest is not None
    assert manifest.facts == {"step": 100, "loss": 0.25, "method": "ddpm"}
    assert manifest.files["model.safetensors"].size == 3
    # FIPS 180 example: SHA-256 of "abc"
    assert manifest.files["model.safetensors"].sha256 == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert store.load("p/step_000100") == {"model.safetensors": b"abc", "empty": b""}
    assert store.list("p/step_000100") == ["empty", "manifest.json", "model.safetensors"]


def test_a_folder_without_a_manifest_is_no_artifact(store: Store) -> None:
    store.write("p/model", b"abc")
    assert store.manifest("p") is None
    assert store.manifest("absent") is None
    with pytest.raises(FileNotFoundError):
        store.load("p")


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "fil', b"[]", b"\xff\xfe", b'{"format": 2, "files": {}}'])
def test_an_unreadable_manifest_is_none(store: Store, content: bytes) -> None:
    store.publish("p", {"model": b"abc"})
    store.write("p/manifest.json", content)
    assert store.manifest("p") is None
    with pytest.raises(FileNotFoundError):
        store.load("p")


def test_a_truncated_file_makes_the_artifact_absent_and_loading_says_so(store: Store) -> None:
    store.publish("p", {"model": b"abcdef"})
    store.write("p/model", b"abc")
    assert store.manifest("p") is None
    with pytest.raises(CorruptArtifact, match=r"p/model: expected 6 bytes, found 3"):
        store.load("p")


def test_an_altered_file_of_equal_size_is_found_when_loaded(store: Store) -> None:
    store.publish("p", {"model": b"abc"})
    store.write("p/model", b"abd")
    found = hashlib.sha256(b"abd").hexdigest()
    with pytest.raises(CorruptArtifact, match=rf"p/model: expected SHA-256 ba7816bf\w+, found {found}"):
        store.load("p")


def test_a_missing_file_makes_the_artifact_absent_and_loading_says_so(store: Store) -> None:
    store.publish("p", {"model": b"abc"})
    store.delete("p/model")
    assert store.manifest("p") is None
    with pytest.raises(CorruptArtifact, match="p/model: expected 3 bytes, found no such file"):
        store.load("p")


def test_publishing_again_replaces_the_files_and_removes_those_no_longer_named(store: Store) -> None:
    store.publish("p", {"model": b"abc", "queue": b"1"}, step=1)
    store.publish("p", {"model": b"xyz"}, step=2)
    assert store.load("p") == {"model": b"xyz"}
    assert store.list("p") == ["manifest.json", "model"]


def test_publishing_over_a_corrupt_artifact_mends_it(store: Store) -> None:
    store.publish("p", {"model": b"abc"})
    store.write("p/model", b"abd")
    store.publish("p", {"model": b"abc"})
    assert store.load("p") == {"model": b"abc"}


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "manifest.json"])
def test_a_file_name_that_could_not_be_listed_is_refused(local: Store, name: str) -> None:
    with pytest.raises(ValueError, match="plain visible name"):
        local.publish("p", {name: b""})


def test_step_names_sort_as_numbers_and_read_back() -> None:
    assert step_name(800) == "step_000800"
    assert step_name(1_000_000) == "step_1000000"
    assert [step_of(name) for name in ("step_000800", "step_1000000", "step_80", "state", ".step_000800")] == [
        800, 1_000_000, None, None, None,
    ]  # fmt: skip


def test_newest_is_the_highest_step_with_a_whole_artifact(store: Store) -> None:
    assert store.newest("s") is None
    for step in (5, 100, 20):
        store.publish(f"s/{step_name(step)}", {"state": b"abc"})
    store.write(f"s/{step_name(300)}/state", b"abc")  # killed before its manifest
    store.publish(f"s/{step_name(200)}", {"state": b"abc"})
    store.write(f"s/{step_name(200)}/state", b"ab")  # truncated
    assert store.newest("s") == 100


def test_pruning_deletes_earlier_steps_only_once_the_kept_one_exists(store: Store) -> None:
    for step in (5, 20):
        store.publish(f"s/{step_name(step)}", {"state": b"abc"})
    store.write(f"s/{step_name(100)}/state", b"abc")
    with pytest.raises(FileNotFoundError, match="keep"):
        store.prune("s", keep=100)
    assert store.newest("s") == 20
    store.prune("s", keep=20)
    assert store.list("s") == [step_name(20), step_name(100)]


def test_two_attempts_that_publish_the_same_end_in_a_whole_artifact(store: Store) -> None:
    files = {"model": b"m" * 100_000, "ema": b"e" * 100_000}
    threads = [threading.Thread(target=store.publish, args=("p", files)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load("p") == files


def test_only_stale_temporaries_are_cleaned(local: Store) -> None:
    local.write("tables/trials/x.parquet", b"1")
    stale, fresh, other = (
        Path(local.path(f"p/{name}")) for name in (f".model.{'a' * 32}.tmp", f".model.{'b' * 32}.tmp", ".model.tmp")
    )
    stale.parent.mkdir()
    for path in (stale, fresh, other):
        path.write_bytes(b"half")
    for path in (stale, other):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    assert local.clean_temporaries(older_than_s=3600) == [f"p/{stale.name}"]
    assert fresh.exists()
    assert other.exists()  # not one of ours
    assert local.clean_temporaries(older_than_s=0) == [f"p/{fresh.name}"]
    assert local.sizes() == {"tables/trials/x.parquet": 1}


_PUBLISH_UNTIL_KILLED = """
import random, sys
from ablate.store import Store, step_name
store, step = Store.open(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    step += 1
    block = random.Random(step).randbytes(1000)
    store.publish(f"s/{step_name(step)}", {"model": block * 300, "queue": block * 100}, step=step)
    store.publish("latest", {"model": block * 300, "queue": block * 100}, step=step)
    print(step, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_no_half_artifact(address: str) -> None:
    store = Store.open(address)
    delays = random.Random(0)
    done = 0
    for _ in range(6):
        with python(_PUBLISH_UNTIL_KILLED, address, str(done)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(delays.uniform(0.0, 0.1 if store.is_local else 0.6))
            process.send_signal(signal.SIGKILL)
            told = [int(line) for line in process.stdout.read().split()]
        for name in store.list("s"):
            if store.manifest(f"s/{name}") is not None:
                block = random.Random(step_of(name)).randbytes(1000)
                assert store.load(f"s/{name}") == {"model": block * 300, "queue": block * 100}
        if store.manifest("latest") is not None:
            assert len(store.load("latest")["model"]) == 300_000
        newest = store.newest("s") or 0
        assert newest >= max(told, default=done)  # what was said to be published is there
        done = newest
    assert done > 0
    assert not any(".tmp" in path for path in store.sizes())
    store.clean_temporaries(older_than_s=0)
    if store.is_local:
        assert not list(Path(address).rglob("*.tmp"))


def test_a_reader_never_sees_a_half_file_while_it_is_replaced(store: Store) -> None:
    store.write("part", b"0" * 200_000)
    stop = threading.Event()

    def rewrite() -> None:
        digit = 0
        while not stop.is_set():
            digit = (digit + 1) % 10
            store.write("part", str(digit).encode() * 200_000)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(100):
            data = store.read("part")
            assert len(data) == 200_000
            assert len(set(data)) == 1
    finally:
        stop.set()
        writer.join()


# --- no room ----------------------------------------------------------------------------------------

_FILL = """
import resource, sys
from ablate.store import Store, StoreFull
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = Store.open(sys.argv[1])
store.publish("s/step_000001", {"model": b"small"})
try:
    store.publish("s/step_000002", {"model": b"m" * 50_000, "ema": b"e" * 200_000})
except StoreFull as error:
    print(error)
"""


def test_a_file_that_does_not_fit_is_a_clear_error_and_publishes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with python(_FILL, str(run)) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"{run}: no room for 200000 bytes of s/step_000002/ema" in out
    assert "free some space" in out
    store = Store.open(run)
    assert store.newest("s") == 1
    assert not list(run.rglob("*.tmp"))


def test_a_full_disk_keeps_what_was_there_and_takes_files_again_once_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        store = Store.open(disk / "run")
        store.publish("s/step_000001", {"state": b"1" * 100_000})
        with BackgroundPublisher(store) as publisher:
            publisher.submit("s/step_000002", {"state": b"2" * 400_000}, prune=True)
            with pytest.raises(StoreFull, match=r"run: no room for 400000 bytes of s/step_000002/state \(No space"):
                publisher.flush()
            assert store.newest("s") == 1
            assert store.load("s/step_000001") == {"state": b"1" * 100_000}
            publisher.submit("s/step_000003", {"state": b"3" * 100_000}, prune=True)
        assert store.list("s") == ["step_000003"]
        assert store.load("s/step_000003") == {"state": b"3" * 100_000}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- publishing in the background -------------------------------------------------------------------


class SlowStore(Store):
    """A local store whose writes wait until they are let through."""

    gate: threading.Event

    def write(self, path: str, data: bytes) -> None:
        if not path.startswith(".probe"):
            assert self.gate.wait(20)
        super().write(path, data)


@pytest.fixture
def slow(tmp_path: Path) -> SlowStore:
    plain = Store.open(tmp_path / "slow")
    store = SlowStore(plain.address, plain.filesystem, plain.root)
    store.gate = threading.Event()
    return store


def test_submitting_returns_at_once_and_waits_when_the_previous_write_goes_on(slow: SlowStore) -> None:
    with BackgroundPublisher(slow) as publisher:
        publisher.submit("s/step_000001", {"state": b"1"})
        assert slow.newest("s") is None
        assert not publisher.idle
        second = threading.Thread(target=publisher.submit, args=("s/step_000002", {"state": b"2"}))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # one behind is the most
        slow.gate.set()
        second.join(20)
        assert slow.newest("s") in (1, 2)
        publisher.flush()
        assert publisher.idle
        assert slow.newest("s") == 2


def test_what_is_published_is_a_copy_of_what_was_submitted(slow: SlowStore) -> None:
    buffer = bytearray(b"before")
    with BackgroundPublisher(slow) as publisher:
        publisher.submit("s/step_000001", {"state": buffer}, step=1)
        buffer[:] = b"after!"
        slow.gate.set()
    assert slow.load("s/step_000001") == {"state": b"before"}


def test_pruning_in_the_background_leaves_the_newest_state_alone(store: Store) -> None:
    with BackgroundPublisher(store) as publisher:
        for step in (1, 2, 3):
            publisher.submit(f"s/{step_name(step)}", {"state": b"%d" % step}, prune=True, step=step)
    assert store.list("s") == ["step_000003"]
    assert store.load("s/step_000003") == {"state": b"3"}


def test_an_error_in_the_background_is_raised_by_the_next_call_and_only_once(local: Store) -> None:
    local.write("s", b"a file where a folder should be")
    publisher = BackgroundPublisher(local)
    publisher.submit("s/step_000001", {"state": b"1"})
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        publisher.submit("s/step_000002", {"state": b"2"})
    publisher.close()


def test_an_error_in_the_background_does_not_hide_the_one_in_the_foreground(local: Store) -> None:
    local.write("s", b"a file where a folder should be")

    def train() -> None:
        with BackgroundPublisher(local) as publisher:
            publisher.submit("s/step_000001", {"state": b"1"})
            raise RuntimeError("loss is NaN")

    with pytest.raises(RuntimeError, match="loss is NaN") as caught:
        train()
    assert "Publishing in the background failed too" in caught.value.__notes__[0]


_EXIT_WHILE_PUBLISHING = """
import sys
from ablate.store.lock import RunLock
from ablate.store import BackgroundPublisher, Store
store = Store.open(sys.argv[1])
lock = RunLock(store, heartbeat_s=0.01)
lock.acquire()
publisher = BackgroundPublisher(store)
publisher.submit("s/step_000001", {"state": b"1" * 6_000_000})
"""


def test_a_process_that_ends_while_it_publishes_ends_well_and_completes_the_artifact(address: str) -> None:
    for _ in range(3):
        with python(_EXIT_WHILE_PUBLISHING, address) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
        store = Store.open(address)
        assert store.load("s/step_000001") == {"state": b"1" * 6_000_000}
        assert RunLock(store).owner() is None
        store.delete("s")


# --- addresses --------------------------------------------------------------------------------------


def test_a_local_address_is_absolute_so_that_workers_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.open("runs/demo").address == str(tmp_path / "runs" / "demo")
    assert Store.open(f"file://{tmp_path}/runs/demo").address == str(tmp_path / "runs" / "demo")
    assert (tmp_path / "runs" / "demo").is_dir()


def test_opening_leaves_no_file_behind(store: Store) -> None:
    if store.is_local:
        assert list(Path(store.root).iterdir()) == []
    assert store.list("") == []


def test_opening_for_reading_creates_nothing_and_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run here"):
        Store.open(tmp_path / "absent", writable=False)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "present").mkdir()
    assert Store.open(tmp_path / "present", writable=False).list("") == []


@pytest.mark.parametrize("address", ["hdfs://host/x", "http://host/x", "s3:/bucket/x", "s3://", "gs:bucket", " "])
def test_an_address_of_an_unknown_kind_is_refused_with_the_known_ones(address: str) -> None:
    with pytest.raises(InputError, match=r"must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; got"):
        Store.open(address)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file: a store must be a folder, and this is a file; give another folder"):
        Store.open(tmp_path / "file")
    with pytest.raises(InputError, match=r"file/run: cannot be used as a store: Not a directory; give --out"):
        Store.open(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(InputError, match="Permission denied; give --out a folder that you may write to"):
        Store.open(tmp_path / "locked" / "run")


# --- one driver at a time ---------------------------------------------------------------------------

_HOLD = """
import sys, time
from ablate.store.lock import RunLock
from ablate.store import Store
with RunLock(Store.open(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(address: str) -> Iterator[subprocess.Popen[str]]:
    with python(_HOLD, address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_driver_is_refused_with_host_pid_and_start_of_the_first(store: Store) -> None:
    with held(store.address) as process:
        owner = RunLock(store).owner()
        assert owner is not None
        assert owner.pid == process.pid
        with pytest.raises(InputError) as caught:
            RunLock(store).acquire()
        for part in (f"host {owner.host}", f"pid {process.pid}", f"started {owner.started_at}", "another --out"):
            assert part in str(caught.value)
        assert RunLock(store).owner() == owner


def test_the_lock_of_a_killed_driver_is_taken_over_at_once(store: Store) -> None:
    with held(store.address) as process:
        process.kill()
        process.wait()
        with RunLock(store, stale_s=3600, heartbeat_s=3600) as lock:  # its heartbeat is fresh: its process decides
            assert lock.took_over is not None
            assert lock.took_over.pid == process.pid
    assert RunLock(store).owner() is None


def test_a_driver_that_is_a_zombie_is_gone(local: Store) -> None:
    with held(local.address) as process:
        process.kill()
        wait_until(lambda: process_start(process.pid) is None)  # not waited for: it stays in the process table
        with RunLock(local):
            pass


def test_a_released_lock_can_be_taken_again(store: Store) -> None:
    for _ in range(2):
        with RunLock(store) as lock:
            assert lock.took_over is None
            with pytest.raises(InputError):
                RunLock(store).acquire()


def forge(store: Store, **changes: object) -> Owner:
    """Write a lock that looks like this process's own but for `changes`."""
    with RunLock(store) as lock:
        mine = lock.owner()
    assert mine is not None
    owner = replace(mine, token="other", **changes)  # type: ignore[arg-type]
    store.write(LOCK, json.dumps(owner.__dict__).encode())
    return owner


def test_a_later_process_with_the_same_pid_does_not_keep_the_lock_alive(local: Store) -> None:
    forge(local, process_start="12345")
    with RunLock(local):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_start_of_a_process_is_what_the_kernel_counts_so_that_locks_of_earlier_versions_are_judged(
    local: Store,
) -> None:
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # field 22: clock ticks since boot
    assert process_start(os.getpid()) == ticks
    owner = forge(local, process_start=ticks)
    with pytest.raises(InputError, match=f"pid {os.getpid()}, started"):
        RunLock(local).acquire()
    assert RunLock(local).owner() == owner


@pytest.mark.parametrize("start", ["Mon Sep 30 12:00:00 2024", ""])
def test_a_lock_whose_start_is_of_another_form_is_held_while_its_process_lives(local: Store, start: str) -> None:
    owner = forge(local, process_start=start)
    with pytest.raises(InputError, match="one is at work"):
        RunLock(local).acquire()
    with python("") as process:
        process.wait()
    local.write(LOCK, replace(owner, pid=process.pid).to_bytes())
    with RunLock(local) as lock:
        assert lock.took_over is not None


def test_a_pid_that_nobody_has_is_not_running() -> None:
    with python("") as process:
        process.wait()
    assert process_start(process.pid) is None
    assert not is_running(process.pid, "12345")


def test_a_driver_on_another_machine_keeps_the_lock_while_its_heartbeat_is_fresh(local: Store) -> None:
    forge(local, machine="elsewhere", host="node7", heartbeat=time.time() - 30)
    with pytest.raises(InputError, match=r"host node7, .*last seen 3\d s ago"):
        RunLock(local, stale_s=60).acquire()


def test_a_driver_on_another_machine_is_gone_when_its_heartbeat_is_old_and_does_not_move(local: Store) -> None:
    forge(local, machine="elsewhere", heartbeat=time.time() - 61)
    with RunLock(local, stale_s=60, heartbeat_s=0.1) as lock:
        assert lock.took_over is not None


def test_a_driver_whose_clock_is_slow_is_not_gone_while_its_heartbeat_moves(local: Store) -> None:
    owner = forge(local, machine="elsewhere", heartbeat=time.time() - 3600)

    def beat() -> None:
        time.sleep(0.1)
        moved = replace(owner, heartbeat=owner.heartbeat + 0.1)
        local.write(LOCK, json.dumps(moved.__dict__).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(InputError):
        RunLock(local, stale_s=60, heartbeat_s=0.4).acquire()
    thread.join()


def test_of_many_that_take_over_one_dead_lock_exactly_one_succeeds(local: Store) -> None:
    forge(local, process_start="12345")
    locks = [RunLock(local) for _ in range(8)]
    barrier = threading.Barrier(len(locks))
    winners: list[RunLock] = []

    def attempt(lock: RunLock) -> None:
        barrier.wait()
        with contextlib.suppress(InputError):
            lock.acquire()
            winners.append(lock)

    threads = [threading.Thread(target=attempt, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    owner = winners[0].owner()
    assert owner is not None
    assert owner.token == winners[0].token
    winners[0].release()


def test_the_heartbeat_moves_and_notices_that_the_lock_was_lost(store: Store) -> None:
    with RunLock(store, heartbeat_s=0.05) as lock:
        first = lock.owner()
        assert first is not None
        wait_until(lambda: (now := lock.owner()) is not None and now.heartbeat != first.heartbeat)
        assert not lock.lost
        rival = json.dumps({**first.__dict__, "token": "rival"}).encode()

        def rival_wins() -> bool:
            store.write(LOCK, rival)  # again: a heartbeat under way may have overwritten it
            return lock.lost

        wait_until(rival_wins)
    owner = RunLock(store).owner()
    assert owner is not None
    assert owner.token == "rival"  # a lost lock is not released


def test_lock_and_stop_flag_count_among_no_ones_files(store: Store) -> None:
    with RunLock(store):
        request_stop(store, "abc")
        assert store.list("") == []
        assert store.sizes() == {}


# --- stop flag --------------------------------------------------------------------------------------


def test_a_stop_request_reaches_the_stages_of_its_own_driver_only(store: Store) -> None:
    request_stop(store, "run1", "SIGINT")
    assert stop_reason(store, "run1") == "SIGINT"
    assert stop_reason(store, "run2") is None
    clear_stop(store, "run1")
    assert stop_reason(store, "run1") is None
    clear_stop(store, "run1")


def test_the_watch_for_requests_tells_the_first_reason_once_and_keeps_it(local: Store) -> None:
    told: list[str] = []
    with StopWatch(lambda: stop_reason(local, "run1"), every_s=0.02, told=told.append) as watch:
        assert not watch()
        request_stop(local, "run1", "SIGTERM")
        wait_until(watch)
        clear_stop(local, "run1")
        time.sleep(0.1)
        assert watch()  # a stage that was told to stop stays told
    assert told == ["SIGTERM"]


def test_a_look_that_hangs_or_fails_holds_nobody_up(local: Store) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hangs() -> str | None:
        asked.set()
        answer.wait(20)
        return "late"

    def fails() -> str | None:
        raise OSError("away")

    with StopWatch(hangs) as watch:
        assert asked.wait(10)
        assert not watch()
    with StopWatch(fails, lambda: "asked", every_s=0.02) as watch:
        wait_until(watch)
    answer.set()
