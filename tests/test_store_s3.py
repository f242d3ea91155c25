"""What is particular to object stores: addresses, credentials, endpoints, uploads that were never completed."""

import pickle
import subprocess
import sys

import pytest

from ablate.errors import InputError
from ablate.store import Store
from ablate.tables import blank, read_table, trial_status, write_rows


def test_an_endpoint_in_the_address_survives_pickling(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pickle.loads(pickle.dumps(Store.open(s3_address)))
    store.write("x", b"1")
    bucket = s3_address.removeprefix("s3://").partition("/")[0]
    assert store.root == f"{bucket}/runs/one"
    assert store.label == f"s3://{bucket}/runs/one"
    assert not store.is_local


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_in_the_environment_is_used(
    s3_address: str, s3_server: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, s3_server)
    plain = s3_address.partition("?")[0]
    Store.open(plain).write("x", b"1")
    assert Store.open(s3_address).read("x") == b"1"


def test_credentials_in_an_address_are_never_printed(s3_address: str) -> None:
    store = Store.open(s3_address.replace("s3://", "s3://name:secret@"))
    assert "secret" not in f"{store!r} {store.label}"
    with pytest.raises(FileNotFoundError) as caught:
        store.load("nothing")
    assert "secret" not in str(caught.value)


def test_a_missing_bucket_is_refused(s3_server: str) -> None:
    with pytest.raises(InputError, match=r"s3://no-such-bucket/run: cannot be used as a store: .*NO_SUCH_BUCKET"):
        Store.open(f"s3://no-such-bucket/run?endpoint_override={s3_server}")


def test_an_unknown_setting_in_an_address_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'endpint'; after '\?' an address may set endpoint_override, scheme"):
        Store.open("s3://bucket/run?endpint=http://127.0.0.1:1")


@pytest.mark.timeout(60)
def test_an_endpoint_where_nothing_listens_is_refused_without_the_patience_of_a_run(s3_server: str) -> None:
    with pytest.raises(InputError, match=r"s3://bucket/run: cannot be used as a store: .*check the bucket's name"):
        Store.open("s3://bucket/run?endpoint_override=http://127.0.0.1:1", patience_s=3600)


def test_an_object_in_place_of_the_prefix_is_refused(s3_address: str) -> None:
    Store.open(s3_address).write("file", b"1")
    base, _, query = s3_address.partition("?")
    with pytest.raises(InputError, match="must be a folder, and this is a file"):
        Store.open(f"{base}/file?{query}")


def test_an_upload_that_was_never_completed_is_invisible(s3_address: str, s3_server: str) -> None:
    import boto3

    store = Store.open(s3_address)
    client = boto3.client("s3", endpoint_url=s3_server)
    bucket, _, prefix = store.root.partition("/")
    target = {"Bucket": bucket, "Key": f"{prefix}/s/step_000001/model"}
    upload = client.create_multipart_upload(**target)["UploadId"]
    client.upload_part(**target, UploadId=upload, PartNumber=1, Body=b"half")
    assert not store.exists("s")
    assert store.sizes() == {}
    store.publish("s/step_000001", {"model": b"whole"})
    assert store.load("s/step_000001") == {"model": b"whole"}


def test_an_object_altered_behind_the_stores_back_is_found(s3_address: str, s3_server: str) -> None:
    import boto3

    from ablate.store import CorruptArtifact

    store = Store.open(s3_address)
    store.publish("s/step_000001", {"model": b"whole"})
    bucket, _, prefix = store.root.partition("/")
    boto3.client("s3", endpoint_url=s3_server).put_object(
        Bucket=bucket, Key=f"{prefix}/s/step_000001/model", Body=b"whOle"
    )
    with pytest.raises(CorruptArtifact, match="expected SHA-256"):
        store.load("s/step_000001")


def test_tables_are_read_from_an_object_store_as_one_data_set(s3_address: str) -> None:
    store = Store.open(s3_address)
    assert read_table(store, "trials").num_rows == 0
    for number in range(12):
        row = {**blank("trials"), "trial_id": f"{number:012x}", "status": "finished", "mre": number / 8}
        write_rows(store, "trials", f"{number:012x}", [row])
    assert trial_status(store) == {f"{number:012x}": "finished" for number in range(12)}
    assert read_table(store, "trials", ["mre"])["mre"].to_pylist() == [number / 8 for number in range(12)]


def test_another_process_opens_the_store_by_its_address(s3_address: str) -> None:
    store = Store.open(s3_address)
    store.write("x", b"from here")
    code = (
        "import pickle, sys; store = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "print(store.read('x').decode()); store.write('y', b'from there')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(store).hex()], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("from here\n", "")
    assert store.read("y") == b"from there"
