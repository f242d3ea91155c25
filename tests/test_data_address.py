"""Data sets read by their address: fetched once for each node, mended where damaged, evicted when the cache is full."""

import hashlib
import http.client
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import boto3
import pytest
from PIL import Image
from runs import wait_until
from test_datasets import write_public
from test_datasets_folder import write

from ablate.datasets import (
    Dataset,
    check_dataset,
    data_folder,
    dataset_fingerprint,
    dataset_names,
    load_dataset,
    prepare_dataset,
    preview_dataset,
    read_records,
    require_dataset,
)
from ablate.datasets.loading import open_contents
from ablate.datasets.types import Problems, Sizes
from ablate.errors import InputError
from ablate.space import BUILT_IN_DATASETS
from ablate.store import StoreAway
from ablate.store.addresses import locate

NAMES = tuple(f"{index:02d}.png" for index in range(12))
TABLE = "image,x0,y0\n" + "".join(f"{name},{index},1.5\n" for index, name in enumerate(NAMES))
DESCRIPTION = "unit: mm\nmm_per_pixel: 0.5\nsplits: {train: 6, val: 2}\n"


class Gateway(http.server.ThreadingHTTPServer):
    """A server before the object store: it counts what is fetched, and can alter, hold back and refuse it."""

    daemon_threads = True

    def __init__(self, store: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = urlsplit(store).netloc
        self.gets: Counter[str] = Counter()  # of each object, by its path in the folder of data sets
        self.lists = 0
        self.alter: dict[str, Callable[[bytes, int], bytes]] = {}  # body and number of the request -> body
        self.held: dict[str, threading.Event] = {}
        self.refuses_unsigned = False
        self.num_failures = 0  # requests that are answered by 503 from now on
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent when a client was killed."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_GET(self) -> None:
        gateway = self.server
        bucket_and_path = urlsplit(self.path).path.lstrip("/")
        name = unquote(bucket_and_path.partition("/")[2]).removeprefix("data/")
        fetches = self.command == "GET" and bool(name)
        with gateway.lock:
            gateway.num_failures -= 1
            fails = gateway.num_failures >= 0
            gateway.gets[name] += fetches
            gateway.lists += self.command == "GET" and not fetches
            number = gateway.gets[name]
        if fails:
            self.answer(503, [], b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")
            return
        if gateway.refuses_unsigned and "Authorization" not in self.headers:
            self.answer(403, [], b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
            return
        connection = http.client.HTTPConnection(gateway.store)
        connection.request(self.command, self.path, headers=dict(self.headers))
        response = connection.getresponse()
        headers, body = response.getheaders(), response.read()
        connection.close()
        if fetches and name in gateway.held:
            gateway.held[name].wait(60)
        if fetches and name in gateway.alter:
            body = gateway.alter[name](body, number)
        self.answer(response.status, headers, body)

    do_HEAD = do_GET

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        kept = {"content-length"} if self.command == "GET" else set()
        for key, value in headers:
            if key.lower() not in kept | {"transfer-encoding", "connection"}:
                self.send_header(key, value)
        if kept or not headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""


class Shelf:
    """A bucket with a folder of data sets."""

    def __init__(self, store: str, gateway: Gateway) -> None:
        self.bucket, self.gateway = f"bucket-{uuid.uuid4().hex}", gateway
        self.client = boto3.client("s3", endpoint_url=store)
        self.client.create_bucket(Bucket=self.bucket)
        host, port = gateway.server_address[:2]
        self.query = f"?endpoint_override=http://{host}:{port}"
        self.label = f"s3://{self.bucket}/data"
        self.address = self.label + self.query

    def put(self, folder: Path) -> int:
        """Upload a data set as it lies on disk; return its number of files."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in files:
            key = f"data/{folder.name}/{path.relative_to(folder).as_posix()}"
            self.client.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes())
        return len(files)


@pytest.fixture
def shelf(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """A bucket behind a gateway, and a cache of its own."""
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    gateway = Gateway(s3_server)
    thread = threading.Thread(target=gateway.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Shelf(s3_server, gateway)
    gateway.shutdown()
    gateway.server_close()
    thread.join()


@pytest.fixture
def mine(shelf: Shelf, tmp_path: Path) -> Path:
    """The data set `mine` of twelve pictures, on the shelf and in the returned folder of data sets."""
    folder = write(tmp_path / "local", DESCRIPTION, TABLE, NAMES)
    assert shelf.put(folder) == 14
    shelf.client.put_object(Bucket=shelf.bucket, Key="data/mine/images/", Body=b"")  # as consoles mark a folder
    return tmp_path / "local"


CHILD = """
import hashlib, json, os, sys
written = []
def note(event, arguments):
    if event == "open" and ".npz." in str(arguments[0]) and "x" in (arguments[1] or ""):
        written.append(str(arguments[0]))
sys.addaudithook(note)
from ablate.datasets import load_dataset, open_records
import ablate.datasets.remote
do, name, address = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
if do == "load":
    dataset = load_dataset(name, address, 32)
    arrays = [part for split in (dataset.train, dataset.val, dataset.test)
              for part in (split.images_NHW, split.points_NK2, split.sizes_N2, split.duplicates_N)]
    content = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    print(json.dumps([dataset.fingerprint, content, len(written)]), flush=True)
else:
    with open_records(name, address) as records:
        print("reading", flush=True)
        sys.stdin.readline()
        print(json.dumps([record.grey().shape for record in records]), flush=True)
"""


def start(do: str, name: str, address: str) -> subprocess.Popen[str]:
    """Start a process that waits for a line before it works."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, do, name, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdout.readline().strip() or process.stderr.read()


def finish(process: subprocess.Popen[str]) -> str:
    """Return the last line of a process that ends well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip().splitlines()[-1]


def content_of(dataset: Dataset) -> str:
    arrays = [
        part
        for split in (dataset.train, dataset.val, dataset.test)
        for part in (split.images_NHW, split.points_NK2, split.sizes_N2, split.duplicates_N)
    ]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def fetched(cache: Path, name: str = "mine") -> Path:
    """Return the one folder of a fetched data set."""
    (folder,) = (path for path in (cache / "fetched").iterdir() if path.name.startswith(name))
    return folder / name


# --- once for each node -----------------------------------------------------------------------------


def test_ten_processes_at_once_fetch_each_object_once_and_prepare_once(
    shelf: Shelf, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [start("load", "mine", shelf.address) for _ in range(10)]
    assert [line(process) for process in processes] == ["ready"] * 10
    for process in processes:
        go(process)
    results = [json.loads(finish(process)) for process in processes]
    paths = ["dataset.yaml", "landmarks.csv", *(f"images/{name}" for name in NAMES)]
    assert shelf.gateway.gets == {f"mine/{path}": 1 for path in paths} | {"": 0}
    assert sorted(written for *_, written in results) == [0] * 9 + [1]
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "other"))
    local = load_dataset("mine", mine, 32)
    assert {(fingerprint, content) for fingerprint, content, _ in results} == {(local.fingerprint, content_of(local))}
    assert dataset_fingerprint("mine", mine) == local.fingerprint


def test_ten_processes_at_once_prepare_a_local_folder_once(mine: Path) -> None:
    processes = [start("load", "mine", str(mine)) for _ in range(10)]
    assert [line(process) for process in processes] == ["ready"] * 10
    for process in processes:
        go(process)
    results = [json.loads(finish(process)) for process in processes]
    assert sorted(written for *_, written in results) == [0] * 9 + [1]
    assert len({(fingerprint, content) for fingerprint, content, _ in results}) == 1


def test_when_the_process_that_fetches_is_killed_the_next_goes_on_with_the_rest(
    shelf: Shelf, mine: Path, tmp_path: Path
) -> None:
    held = "mine/images/07.png"
    shelf.gateway.held[held] = threading.Event()
    first = start("load", "mine", shelf.address)
    assert line(first) == "ready"
    go(first)
    wait_until(lambda: len(list((tmp_path / "cache").glob("fetched/*.partial/mine/**/*.*"))) == 13)
    second = start("load", "mine", shelf.address)
    assert line(second) == "ready"
    lists = shelf.gateway.lists
    go(second)
    wait_until(lambda: shelf.gateway.lists == lists + 2)  # it has listed, and waits for the first
    time.sleep(0.3)
    assert second.poll() is None
    first.kill()
    first.communicate()
    wait_until(lambda: shelf.gateway.gets[held] == 2)
    shelf.gateway.held[held].set()
    assert json.loads(finish(second))[0] == dataset_fingerprint("mine", mine)
    counts = {path: count for path, count in shelf.gateway.gets.items() if path}
    assert counts.pop(held) == 2
    assert set(counts.values()) == {1}
    assert len(counts) == 13
    assert [path.name for path in (tmp_path / "cache" / "fetched").iterdir()] == [
        fetched(tmp_path / "cache").parent.name
    ]


def test_a_set_that_changed_at_its_address_is_fetched_anew(shelf: Shelf, mine: Path, tmp_path: Path) -> None:
    before = load_dataset("mine", shelf.address, 32).fingerprint
    table = mine / "mine" / "landmarks.csv"
    table.write_text(TABLE.replace("00.png,0,", "00.png,9,"))  # as many bytes
    shelf.put(mine / "mine")
    assert load_dataset("mine", shelf.address, 32).fingerprint == dataset_fingerprint("mine", mine) != before
    assert len(list((tmp_path / "cache" / "fetched").iterdir())) == 2


# --- what arrives damaged ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [lambda body: body[: len(body) // 2], lambda body: body[:-1] + b"?", lambda body: b""]
)
def test_an_object_that_arrives_damaged_is_fetched_again(
    damage: Callable[[bytes], bytes], shelf: Shelf, mine: Path
) -> None:
    shelf.gateway.alter["mine/images/03.png"] = lambda body, number: damage(body) if number == 1 else body
    assert load_dataset("mine", shelf.address, 32).fingerprint == dataset_fingerprint("mine", mine)
    counts = {path: count for path, count in shelf.gateway.gets.items() if path}
    assert counts.pop("mine/images/03.png") == 2
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("damage", [lambda body: body[:-1] + b"?", lambda body: b""])
def test_an_object_that_stays_damaged_is_named(
    damage: Callable[[bytes], bytes], shelf: Shelf, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablate.datasets.remote.FIRST_PAUSE_S", 0.01)
    shelf.gateway.alter["mine/images/03.png"] = lambda body, number: damage(body)
    content = (mine / "mine" / "images" / "03.png").read_bytes()
    expected = f"{len(content)} bytes with MD5 {hashlib.md5(content).hexdigest()}"
    with pytest.raises(
        InputError,
        match=rf"^{shelf.label}/mine/images/03.png: must arrive as it is stored, {expected}; "
        r"4 times it arrived with \d+ bytes, MD5 .*upload it again",
    ):
        load_dataset("mine", shelf.address, 32)
    assert shelf.gateway.gets["mine/images/03.png"] == 4
    assert shelf.gateway.gets["mine/images/04.png"] == 1
    shelf.gateway.alter.clear()
    assert load_dataset("mine", shelf.address, 32).fingerprint == dataset_fingerprint("mine", mine)
    assert shelf.gateway.gets["mine/images/03.png"] == 5
    assert shelf.gateway.gets["mine/images/04.png"] == 1


def test_a_store_whose_etags_are_no_checksums_is_read_by_sizes(shelf: Shelf, tmp_path: Path) -> None:
    folder = write(tmp_path / "local", DESCRIPTION, TABLE, NAMES)
    for path in folder.rglob("*.*"):  # an upload in parts: the ETag is no MD5
        key = f"data/mine/{path.relative_to(folder).as_posix()}"
        upload = shelf.client.create_multipart_upload(Bucket=shelf.bucket, Key=key)["UploadId"]
        part = shelf.client.upload_part(
            Bucket=shelf.bucket, Key=key, UploadId=upload, PartNumber=1, Body=path.read_bytes()
        )
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        shelf.client.complete_multipart_upload(Bucket=shelf.bucket, Key=key, UploadId=upload, MultipartUpload=parts)
    assert load_dataset("mine", shelf.address, 32).fingerprint == dataset_fingerprint("mine", tmp_path / "local")


@pytest.mark.parametrize("damage", ["cut", "delete", "empty", "header", "manifest"])
def test_a_copy_that_is_damaged_later_is_mended(damage: str, shelf: Shelf, mine: Path, tmp_path: Path) -> None:
    good = load_dataset("mine", shelf.address, 32)
    copy = fetched(tmp_path / "cache")
    image, table = copy / "images" / "05.png", copy / "landmarks.csv"
    content = image.read_bytes()
    if damage == "cut":
        image.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        shutil.rmtree(copy / "images")
    elif damage == "empty":
        table.write_bytes(b"")
    elif damage == "header":  # as many bytes
        image.write_bytes(b"x" * 16 + content[16:])
    else:
        (copy.parent / ".manifest.json").write_text("{")
    shelf.gateway.gets.clear()
    again = load_dataset("mine", shelf.address, 32)
    assert (again.fingerprint, content_of(again)) == (good.fingerprint, content_of(good))
    wanted = {"delete": [f"images/{name}" for name in NAMES], "empty": ["landmarks.csv"], "manifest": []}
    paths = [path for path, count in shelf.gateway.gets.items() if count]
    assert sorted(paths) == sorted(f"mine/{path}" for path in wanted.get(damage, ["images/05.png"]))
    assert image.read_bytes() == content


def test_checksums_are_compared_before_images_are_decoded(shelf: Shelf, mine: Path, tmp_path: Path) -> None:
    load_dataset("mine", shelf.address, 32)
    image = fetched(tmp_path / "cache") / "images" / "05.png"
    with Image.open(mine / "mine" / "images" / "06.png") as other:
        assert other.size == (20, 10)
    content = image.read_bytes()
    image.write_bytes(content[:-20] + bytes(20))  # as many bytes
    good = load_dataset("mine", mine, 48)
    for path in (tmp_path / "cache").glob("*.npz"):
        path.unlink()
    assert content_of(load_dataset("mine", shelf.address, 48)) == content_of(good)
    assert image.read_bytes() == content


# --- the limit of the cache -------------------------------------------------------------------------


def test_the_oldest_that_nobody_uses_goes_and_foreign_files_stay(
    shelf: Shelf, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    for name in ("two", "three"):
        write(mine, DESCRIPTION, TABLE, NAMES, name)
        Image.new("L", (20, 10), 7).save(mine / name / "images" / f"{NAMES[0]}")  # other content than `mine`
    reader = start("read", "mine", shelf.address)
    assert line(reader) == "ready"
    go(reader)
    assert line(reader) == "reading"
    used = fetched(cache)
    (old,) = prepare_dataset("mine", mine, [64])
    (newer,) = prepare_dataset("mine", mine, [65])
    foreign = [cache / "notes.txt", cache / "mine.npz", cache / "fetched" / "own" / "file", cache / "locks" / "file"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10**6))
    for age, path in ((400, used.parent / ".manifest.json"), (300, old), (200, newer)):
        os.utime(path, (time.time() - age,) * 2)
    fetched_bytes = sum(path.stat().st_size for path in used.parent.rglob("*") if path.is_file())
    room = fetched_bytes + newer.stat().st_size + 12 * 64**2 + 5000
    monkeypatch.setenv("ABLATE_CACHE_GB", f"{room / 1e9:.9f}")
    (two,) = prepare_dataset("two", mine, [64])
    assert [path.exists() for path in (used, old, newer, two)] == [True, False, True, True]
    monkeypatch.setenv("ABLATE_CACHE_GB", "0.000001")
    (three,) = prepare_dataset("three", mine, [64])
    assert [path.exists() for path in (used, newer, two, three)] == [True, False, False, True]
    go(reader)
    assert json.loads(finish(reader)) == [[10, 20]] * 12
    reader = start("read", "mine", shelf.address)  # killed: its mark is nobody's
    go(reader)
    assert [line(reader), line(reader)] == ["ready", "reading"]
    reader.kill()
    reader.communicate()
    (again,) = prepare_dataset("two", mine, [64])
    assert [path.exists() for path in (used, three, again)] == [False, False, True]
    assert all(path.stat().st_size == 10**6 for path in foreign)
    assert not list((cache / "locks").glob("*.use.lock"))


def test_using_an_entry_makes_it_the_newest(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = prepare_dataset("mine", mine, [64])
    (second,) = prepare_dataset("mine", mine, [65])
    for age, path in ((300, first), (200, second)):
        os.utime(path, (time.time() - age,) * 2)
    load_dataset("mine", mine, 64)
    monkeypatch.setenv("ABLATE_CACHE_GB", f"{2 * second.stat().st_size / 1e9:.9f}")
    (third,) = prepare_dataset("mine", mine, [63])
    assert [path.exists() for path in (first, second, third)] == [True, False, True]


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused(value: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATE_CACHE_GB", value)
    with pytest.raises(InputError, match=rf"ABLATE_CACHE_GB must be a number of gigabytes .* got '{value}'; set it to"):
        load_dataset("mine", mine, 32)


def test_a_cache_that_cannot_be_written_is_named(shelf: Shelf, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = mine.parent / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("ABLATE_CACHE", str(blocked / "cache"))
    with pytest.raises(InputError, match=r"cache of prepared data must be writable; .*set ABLATE_CACHE to a folder"):
        require_dataset("mine", shelf.address)


# --- everything that takes a data folder ------------------------------------------------------------


def test_every_reader_gives_the_same_by_address_and_from_the_folder(
    shelf: Shelf, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(write_public(mine, "chest", 3))
    assert dataset_names(shelf.address) == dataset_names(mine) == [*BUILT_IN_DATASETS, "mine"]
    info, local = require_dataset("mine", shelf.address), require_dataset("mine", mine)
    assert (info.sizes, info.unit) == (local.sizes, local.unit) == ((Sizes(6, 2, 4, 0),), "mm")
    assert info.folder == f"{shelf.label}/mine"
    records = read_records("chest", shelf.address)
    assert [(record.name, record.digest()) for record in records] == [
        (record.name, record.digest()) for record in read_records("chest", mine)
    ]
    monkeypatch.setenv("ABLATE_DATA", shelf.address)
    assert dataset_fingerprint("mine") == dataset_fingerprint("mine", mine)
    (path,) = prepare_dataset("mine", None, [32])
    assert path.is_file()
    monkeypatch.setenv("ABLATE_DATA", mine.as_uri())
    assert data_folder(None) == mine


def test_google_cloud_storage_is_read_too(gs_address: str, mine: Path, tmp_path: Path) -> None:
    location = locate(gs_address)
    for path in (mine / "mine").rglob("*.*"):
        with location.filesystem.open_output_stream(f"{location.root}/{path.relative_to(mine).as_posix()}") as stream:
            stream.write(path.read_bytes())
    assert dataset_names(gs_address) == [*BUILT_IN_DATASETS, "mine"]
    dataset = load_dataset("mine", gs_address, 32)
    assert dataset.fingerprint == dataset_fingerprint("mine", mine)
    (fetched(tmp_path / "cache") / "images" / "05.png").unlink()
    assert content_of(load_dataset("mine", gs_address, 32)) == content_of(dataset)
    with pytest.raises(InputError, match=r"found: mine\); got 'mime'"):
        require_dataset("mime", gs_address)
    with pytest.raises(InputError, match=r"^gs://absent/.*cannot be used as a folder of data: there is no bucket 'abs"):
        require_dataset("mine", gs_address.replace("bucket", "absent"))


def test_check_and_preview_by_address(shelf: Shelf, mine: Path, tmp_path: Path) -> None:
    report, local = check_dataset("mine", shelf.address), check_dataset("mine", mine)
    assert report.rows()[1:] == local.rows()[1:]
    assert report.rows()[0] == ("data set", f"mine ({shelf.label}/mine)")
    assert report.errors == report.warnings == ()
    sheets = [
        preview_dataset("mine", where, tmp_path / f"{index}.png").read_bytes()
        for index, where in enumerate((shelf.address, mine))
    ]
    assert sheets[0] == sheets[1]


def test_what_is_wrong_in_the_data_is_told_at_its_address(shelf: Shelf, mine: Path) -> None:
    images = mine / "mine" / "images"
    (images / "02.png").write_bytes((images / "02.png").read_bytes()[:100])
    (images / "notes.txt").write_text("no image")
    shelf.put(mine / "mine")
    assert check_dataset("mine", shelf.address).unreadable == ("02.png",)
    (error,) = check_dataset("mine", shelf.address).errors
    assert error.startswith(f"{shelf.label}/mine/images/02.png: must be a complete image file")
    (warning,) = require_dataset("mine", shelf.address).warnings
    assert warning.startswith(f"{shelf.label}/mine/images: 1 files are not images")
    with pytest.raises(InputError, match=f"^{shelf.label}/mine/images/02.png: must be a complete image file"):
        load_dataset("mine", shelf.address, 32)
    (mine / "mine" / "dataset.yaml").write_text("unit: cm\n")
    shelf.put(mine / "mine")
    with pytest.raises(InputError, match=rf"^{shelf.label}/mine/dataset.yaml:1: unit"):
        require_dataset("mine", shelf.address)


def test_files_of_opened_contents_outlast_a_full_cache(
    shelf: Shelf, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABLATE_CACHE_GB", "0.000000001")
    with open_contents("mine", shelf.address, Problems(stop=True)) as contents:
        load_dataset("mine", mine, 32)
        assert [record.grey().shape for record in contents.records] == [(10, 20)] * 12


# --- addresses that cannot be read ------------------------------------------------------------------


def test_generated_data_never_touch_the_address(shelf: Shelf) -> None:
    address = f"s3://nobody/data{shelf.query}"
    assert require_dataset("synthetic", address).folder is None
    assert dataset_fingerprint("synthetic", address) == dataset_fingerprint("synthetic")
    assert shelf.gateway.lists == 0
    assert not shelf.gateway.gets


def test_a_bucket_that_is_not_there_is_refused_at_once(shelf: Shelf) -> None:
    address = f"s3://no-such-bucket/data{shelf.query}"
    for read in (lambda: require_dataset("mine", address), lambda: dataset_names(address)):
        with pytest.raises(
            InputError, match=r"^s3://no-such-bucket/data: cannot be used as a folder of data: .*bucket"
        ):
            read()
    assert shelf.gateway.lists == 2


def test_an_address_without_the_data_set_names_what_is_there(shelf: Shelf, mine: Path) -> None:
    shelf.put(write_public(mine, "chest", 3))
    with pytest.raises(InputError, match=rf"in {shelf.label} \(found: mine\); got 'mime' \(did you mean 'mine'\?\)$"):
        require_dataset("mime", shelf.address)
    with pytest.raises(
        InputError,
        match=rf"^{shelf.label}/hand: folder not found; .*is not in the data folder {shelf.label} "
        r"\(folders there: chest, mine\); obtain it from",
    ):
        load_dataset("hand", shelf.address, 32)
    with pytest.raises(InputError, match=r"data/mine is itself a data set, give the folder above it as --data"):
        require_dataset("images", shelf.label + "/mine" + shelf.query)
    with pytest.raises(InputError, match=r"folders there: none"):
        require_dataset("hand", f"s3://{shelf.bucket}/elsewhere{shelf.query}")
    shelf.client.put_object(Bucket=shelf.bucket, Key="data/bare/file", Body=b"1")
    with pytest.raises(InputError, match=rf"{shelf.label}/bare has no dataset.yaml"):
        require_dataset("bare", shelf.address)
    assert not [path for path, count in shelf.gateway.gets.items() if count]


@pytest.mark.parametrize(
    "address", [Path("s3://bucket/data"), "s3:/bucket/data", "s3://", "https://host/data", "gcs://b"]
)
def test_an_address_of_another_form_is_refused(address: Path | str) -> None:
    with pytest.raises(InputError, match=r"--data must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; got '"):
        require_dataset("mine", address)


@pytest.mark.parametrize("refuses_unsigned", [True, False])
def test_missing_credentials_are_one_message(refuses_unsigned: bool, shelf: Shelf, mine: Path, tmp_path: Path) -> None:
    shelf.gateway.refuses_unsigned = refuses_unsigned
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    code = (
        "import sys; from ablate.datasets import require_dataset; from ablate.errors import InputError\n"
        "try: require_dataset('mine', sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, shelf.address], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(f"{shelf.label}: cannot be used as a folder of data: ")
    assert ("ACCESS_DENIED" if refuses_unsigned else "no credentials") in done.stdout
    assert done.stdout.count("\n") == 1
    assert "credentials in the environment" in done.stdout
    assert done.stderr == ""


def test_a_store_that_does_not_answer_for_a_while_is_asked_again_and_that_is_said_once(
    shelf: Shelf, mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.gateway.num_failures = 35  # pyarrow itself tries for six seconds, five times in each
    assert require_dataset("mine", shelf.address).of(None).train == 6
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{shelf.label} does not answer, trying for 15 minutes: ")


def test_a_store_that_stays_away_is_one_message(shelf: Shelf, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.datasets.remote.PATIENCE_S", 0.5)
    shelf.gateway.num_failures = 10**6
    with pytest.raises(StoreAway, match=rf"^{shelf.label}: the data have not answered for .*run the same command"):
        require_dataset("mine", shelf.address)
