"""One trial in one process: the same numbers always, interrupted or not, and what is recorded."""

import json
import logging

import pytest
import torch
from runs import wait_until
from same_tables import compare
from tiny import TRAINED, tiny_trial

from ablate import tables
from ablate.errors import InputError
from ablate.schedule.stages import Stage
from ablate.stage.checkpoints import load_snapshot
from ablate.stage.inputs import initial_network
from ablate.stage.rows import clear_leftovers, is_finished
from ablate.stage.settings import Settings
from ablate.stage.task import Task, config_of, data_in
from ablate.stage.trial import TrialFailed, perform, run_trial
from ablate.store import Store, step_name
from ablate.store.layout import pretrained_folder
from ablate.training import Interrupted, silent

DATA = data_in(None)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "run")


def test_a_trial_gives_the_same_tables_twice(tmp_path):
    spec = tiny_trial("ddpm")
    stores = [Store.open(tmp_path / name) for name in "ab"]
    for store in stores:
        run_trial(spec, store, DATA)
    assert compare(*stores) == []
    assert len(tables.read_table(stores[0], "errors")) == 100 * 12  # every landmark of every test image


def test_another_seed_gives_other_numbers(tmp_path):
    rows = [run_trial(tiny_trial(seed=seed), Store.open(tmp_path / str(seed)), DATA) for seed in (0, 1)]
    assert rows[0]["mre"] != rows[1]["mre"]


def test_the_row_says_what_was_run_and_what_came_out(store):
    spec = tiny_trial("ddpm")
    row = run_trial(spec, store, DATA)
    assert row["trial_id"] == spec.trial_id
    assert row["pretrain_key"] == spec.pretrain_key
    assert (row["status"], row["unit"], row["shots"], row["pretrain_timesteps"]) == ("finished", "mm", 3, 500)
    assert row["epochs"] == 2
    assert row["paper_mre"] is None  # generated radiographs are not the paper's
    errors = tables.read_frame(store, "errors")
    assert errors["error"].mean() == pytest.approx(row["mre"], rel=1e-12)
    for entry in row["sdr"]:
        assert entry["rate"] == pytest.approx((errors["error"] <= entry["threshold"]).mean())


class StopAt:
    """Asks to stop from the n-th report on."""

    def __init__(self, number):
        self.left = number

    def __call__(self, progress):
        self.left -= 1
        return self.left <= 0


# An average, a queue, a centre, weights alone in the state; the loops of the others are interrupted in test_pretrain.
AT_ONCE = ("ddpm", "mocov2", "dino", "simclr")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in AT_ONCE else [pytest.mark.slow]) for name in TRAINED]
)
def test_an_interrupted_trial_ends_with_the_same_numbers(method, tmp_path):
    spec = tiny_trial(method)
    whole, broken = Store.open(tmp_path / "whole"), Store.open(tmp_path / "broken")
    run_trial(spec, whole, DATA)
    interruptions = 0
    for number in (1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 99):  # at almost every report of every phase
        try:
            run_trial(spec, broken, DATA, StopAt(number))
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 8
    assert compare(whole, broken, ["trials", "errors", "curves"]) == []


def test_a_finished_trial_leaves_no_state_and_a_pretraining_keeps_its_last(store):
    spec = tiny_trial("ddpm")
    run_trial(spec, store, DATA)
    assert store.list(f"trials/{spec.trial_id}") == ["log.txt"]
    assert store.list(f"pretrained/{spec.pretrain_key}/state") == [step_name(6)]


def test_a_longer_pretraining_goes_on_from_the_kept_state(tmp_path):
    short, long = (tiny_trial("ddpm", pretrain={"steps": steps}) for steps in (6, 9))
    grown, fresh = Store.open(tmp_path / "grown"), Store.open(tmp_path / "fresh")
    run_trial(short, grown, DATA)
    run_trial(long, grown, DATA)
    run_trial(long, fresh, DATA)
    attempts = tables.read_table(grown, "stages", filters=[("kind", "==", "pretrain")]).to_pylist()
    assert sorted((row["from_step"], row["to_step"]) for row in attempts) == [(0, 6), (6, 9)]
    folder = pretrained_folder(long.pretrain_key)
    left, right = load_snapshot(grown, folder, 9), load_snapshot(fresh, folder, 9)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_finetuning_starts_from_the_snapshots_very_tensors(store):
    spec = tiny_trial("ddpm")
    run_trial(spec, store, DATA)
    folder = pretrained_folder(spec.pretrain_key)
    snapshot = load_snapshot(store, folder, 6)
    network, seconds = initial_network(spec, 12, store, folder)
    own = network.state_dict()
    shared = [name for name in snapshot if "conv_out" not in name]
    assert len(shared) > 10
    assert all(torch.equal(own[name], snapshot[name]) for name in shared)
    assert seconds > 0


def test_a_damaged_snapshot_is_made_anew_with_a_warning(store, caplog):
    spec = tiny_trial("ddpm")
    expected = run_trial(spec, store, DATA)
    path = f"{pretrained_folder(spec.pretrain_key)}/{step_name(6)}/model.safetensors"
    content = bytearray(store.read(path))
    content[-1] ^= 1
    store.write(path, bytes(content))
    store.delete(tables.part_path("trials", spec.trial_id))
    with caplog.at_level(logging.WARNING, "ablate"):
        row = run_trial(spec, store, DATA)
    assert row["mre"] == expected["mre"]
    log = store.read(f"trials/{spec.trial_id}/log.txt").decode()
    assert "damaged" in log
    assert "SHA-256" in log


def test_an_exception_is_recorded_with_its_traceback_and_its_last_line(store):
    spec = tiny_trial(finetune={"lr": 1e30})
    with pytest.raises(TrialFailed, match="loss"):
        run_trial(spec, store, DATA)
    (row,) = tables.read_part(store, "trials", spec.trial_id)
    assert row["status"] == "failed"
    assert row["error"].startswith("Diverged:")
    assert "Traceback" in store.read(f"trials/{spec.trial_id}/log.txt").decode()
    (attempt,) = tables.read_table(store, "stages").to_pylist()
    assert attempt["outcome"] == "failed"


def test_a_failed_pretraining_fails_its_trial_with_its_reason(store):
    spec = tiny_trial("ddpm", pretrain={"lr": 1e30})
    with pytest.raises(TrialFailed, match="pre-training"):
        run_trial(spec, store, DATA)
    (row,) = tables.read_part(store, "trials", spec.trial_id)
    assert "pre-training" in row["error"]


def test_other_data_than_the_runs_is_refused(store):
    spec = tiny_trial()
    settings = Settings(fingerprints={"synthetic": "0" * 16})
    result = perform(Task(Stage("finetune", spec.trial_id), spec, store, DATA, silent, settings))
    assert result.outcome == "failed"
    assert "fingerprint" in result.error


def test_a_whole_trial_in_one_stage_gives_the_same_numbers_and_keeps_no_pretraining(tmp_path):
    spec = tiny_trial("simclr")
    shared, alone = Store.open(tmp_path / "shared"), Store.open(tmp_path / "alone")
    expected = run_trial(spec, shared, DATA)
    result = perform(Task(Stage("trial", spec.trial_id), spec, alone, DATA, silent, Settings()))
    assert result.outcome == "finished"
    (row,) = tables.read_part(alone, "trials", spec.trial_id)
    assert row["mre"] == expected["mre"]
    assert alone.list("pretrained") == []
    assert alone.list(f"trials/{spec.trial_id}") == ["log.txt"]


def test_kept_weights_carry_the_spec(store):
    spec = tiny_trial()
    run_trial(spec, store, DATA, settings=Settings(keep_weights=True))
    files = store.load(f"trials/{spec.trial_id}")
    assert set(files) == {"model.safetensors", "spec.json"}
    assert type(spec).model_validate_json(files["spec.json"]) == spec


def test_threads_are_set_for_the_stage_and_put_back(store):
    before = torch.get_num_threads()
    seen = []
    run_trial(tiny_trial(), store, DATA, lambda progress: bool(seen.append(torch.get_num_threads())), threads=2)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


def test_threads_of_the_settings_count_and_two_numbers_are_refused(store):
    seen = []

    def report(progress):
        seen.append(torch.get_num_threads())
        return False

    run_trial(tiny_trial(), store, DATA, report, settings=Settings(threads=2))
    assert set(seen) == {2}
    run_trial(tiny_trial(seed=1), store, DATA, report, 2, settings=Settings(threads=2))
    with pytest.raises(ValueError, match=r"got threads 2 and settings\.threads 1; give the number in settings alone"):
        run_trial(tiny_trial(seed=2), store, DATA, report, 2, settings=Settings())
    assert len(tables.read_table(store, "trials")) == 2


def test_the_log_is_in_the_store_while_the_stage_goes_on(store):
    spec = tiny_trial()
    found = []

    def report(progress):
        if progress.phase == "finetune" and not found:
            path = f"trials/{spec.trial_id}/log.txt"
            wait_until(lambda: store.exists(path), 30)
            found.append(store.read(path).decode())
        return False

    run_trial(spec, store, DATA, report)
    assert f"fine-tuning {spec.trial_id} goes on from optimizer step 0" in found[0]


def test_the_row_of_an_attempt_counts_optimizer_steps(store):
    spec = tiny_trial(shots=5)  # windows of 4 images and 1: two steps in each of 2 epochs
    with pytest.raises(Interrupted):
        run_trial(spec, store, DATA, StopAt(3))
    run_trial(spec, store, DATA)
    rows = tables.read_table(store, "stages").to_pylist()
    assert sorted((row["from_step"], row["to_step"]) for row in rows) == [(0, 3), (3, 4)]


def test_a_task_goes_through_its_config(store):
    spec = tiny_trial("ddpm")
    pretrain, finetune = Stage("pretrain", spec.pretrain_key), Stage("finetune", spec.trial_id)
    surroundings = {"store": store, "data": DATA, "report": silent, "settings": Settings(threads=2)}
    for task in (
        Task(pretrain, spec.pretraining, snapshots=(3, 6), **surroundings),
        Task(finetune, spec, **surroundings),
        Task(Stage("trial", spec.trial_id), spec, **surroundings),
    ):
        config = json.loads(json.dumps(config_of(task.stage, task.spec, task.snapshots)))
        assert Task.of(config, **surroundings) == task


def test_whether_a_trial_is_finished_is_asked_without_a_deed(store):
    spec = tiny_trial("simclr")
    home = f"trials/{spec.trial_id}"
    left = [f"{home}/state/{step_name(2)}/state.json", f"{home}/pretrained/{step_name(6)}/model.safetensors"]
    assert not is_finished(spec, store)
    run_trial(spec, store, DATA)
    for path in left:  # of a worker that was lost before it could delete them
        store.write(path, b"left")
    assert is_finished(spec, store)
    assert all(store.exists(path) for path in left)
    clear_leftovers(spec, store)
    assert store.list(home) == ["log.txt"]
    assert store.list(f"pretrained/{spec.pretrain_key}/state") == [step_name(6)]


def test_a_missing_weights_file_is_refused_by_name(tmp_path):
    with pytest.raises((InputError, ValueError), match="nowhere"):
        tiny_trial("imagenet", pretrain={"weights": str(tmp_path / "nowhere.pth")}, network={"kind": "encoder"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["ddpm", "mocov3"])
def test_a_stage_leaves_nothing_on_the_gpu(store, method):
    spec = tiny_trial(method)
    settings = Settings(device="cuda", gpus=1.0)
    pretraining = spec.pretraining
    stage = Stage("pretrain", pretraining.key)
    assert perform(Task(stage, pretraining, store, DATA, silent, settings, (6,))).outcome == "finished"
    assert torch.cuda.memory_allocated() == 0
    stage = Stage("finetune", spec.trial_id)
    assert perform(Task(stage, spec, store, DATA, silent, settings)).outcome == "finished"
    assert torch.cuda.memory_allocated() == 0
    (row,) = tables.read_part(store, "trials", spec.trial_id)
    assert row["device"] == torch.cuda.get_device_name()
    assert row["peak_memory_bytes"] > 0
