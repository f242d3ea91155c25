"""A run whose store is on an S3 server: killed, continued, and with objects altered behind its back."""

import os
import signal
import sys

import pytest
from runs import attempts, driver, run, undisturbed, wait_until, write_grid
from same_tables import compare, unreadable_parts
from tiny import tiny_trial

from ablate.running.driver import RunResult
from ablate.space import TrialSpec
from ablate.store import Store, step_name

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def test_a_run_on_s3_is_killed_and_continued_and_finds_altered_objects(s3_address, s3_server, tmp_path):
    import boto3

    pretrain = tiny_trial("simclr", pretrain={"steps": 20}).pretrain.model_dump(mode="json")
    grid, trials = write_grid(tmp_path / "grid.yaml", [{"seed": [0, 1], "pretrain": pretrain}], "simclr")
    (key,) = {trial.pretrain_key for trial in trials}
    store = Store.open(s3_address)
    with driver(grid, s3_address) as process:
        wait_until(lambda: (store.newest(f"pretrained/{key}/state") or 0) >= 5 or process.poll() is not None)
        assert process.poll() is None, process.stdout.read()
        os.kill(process.pid, signal.SIGKILL)
    with driver(grid, s3_address) as process:
        text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    alone = undisturbed(tmp_path / "alone", trials)
    assert compare(store, alone) == []
    assert unreadable_parts(store) == {}
    killed, second = sorted(attempts(store), key=lambda row: row["from_step"])
    assert (killed["outcome"], second["outcome"]) == ("running", "finished")
    assert killed["to_step"] - 1 <= second["from_step"] < 20
    assert "s3://" in text
    assert "endpoint_override" not in text.partition("tables ")[2].partition("\n")[0]

    def with_seed(seed):
        return TrialSpec.model_validate(trials[0].model_dump() | {"seed": seed})

    # one object is cut off and one altered; new trials need them
    bucket, _, prefix = store.root.partition("/")
    client = boto3.client("s3", endpoint_url=s3_server)
    model = f"pretrained/{key}/{step_name(20)}/model.safetensors"
    whole = store.read(model)
    client.put_object(Bucket=bucket, Key=f"{prefix}/{model}", Body=whole[: len(whole) // 2])
    result, text = run(s3_address, [*trials, with_seed(2)])
    assert result == RunResult(0, 3, 0, 0)
    assert f"warning: {store.label}/pretrained/{key}/{step_name(20)} is damaged" in text
    assert store.read(model) == whole
    altered = bytearray(whole)
    altered[-1] ^= 1
    client.put_object(Bucket=bucket, Key=f"{prefix}/{model}", Body=bytes(altered))
    trials = [*trials, with_seed(2), with_seed(3)]
    result, text = run(s3_address, trials)
    assert result == RunResult(0, 4, 0, 0)
    assert "expected SHA-256" in text
    assert store.read(model) == whole
    assert compare(store, undisturbed(tmp_path / "alone", trials)) == []
