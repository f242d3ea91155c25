"""The recorder of a run: rows of trials that no worker can record, written beside the loop of stages."""

import threading

import pytest
from tiny import tiny_trial

from ablate import tables
from ablate.running.recorder import Recorder
from ablate.schedule.stages import Stage
from ablate.stage.settings import StageResult
from ablate.store import CorruptArtifact, LockLost, Store, StoreFull
from ablate.store.fence import Fence
from ablate.store.lock import RunLock

TRIALS = {trial.trial_id: trial for trial in (tiny_trial("simclr", seed=seed) for seed in range(3))}
FIRST, SECOND, THIRD = TRIALS
KEY = TRIALS[FIRST].pretrain_key


class Stops:
    """Keeps why the run was to stop."""

    def __init__(self):
        self.troubles = []

    def __call__(self, trouble):
        self.troubles.append(trouble)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "run")


def rows(store):
    return {row["trial_id"]: (row["status"], row["error"]) for row in tables.read_table(store, "trials").to_pylist()}


def test_lost_workers_and_failed_pretrainings_leave_the_rows_of_their_trials(store):
    stops = Stops()
    with Recorder(store, TRIALS, stops) as recorder:
        recorder.ended(Stage("finetune", FIRST), StageResult("failed", "its worker was lost 4 times"))
        recorder.released(SECOND, "pre-training failed: no memory")
        recorder.ended(Stage("pretrain", KEY), StageResult("failed", "no memory"))
        recorder.ended(Stage("finetune", THIRD), StageResult("interrupted", "its worker was lost"))
    assert rows(store) == {
        FIRST: ("failed", "its worker was lost 4 times"),
        SECOND: ("failed", "pre-training failed: no memory"),
    }
    assert stops.troubles == []


def test_the_row_that_a_worker_has_written_stays(store):
    with Recorder(store, TRIALS, Stops()) as recorder:
        recorder.ended(Stage("finetune", FIRST), StageResult("failed", "Diverged: nan"))
    (before,) = tables.read_part(store, "trials", FIRST)
    with Recorder(store, TRIALS, Stops()) as recorder:
        recorder.ended(Stage("finetune", FIRST), StageResult("failed", "Diverged: nan"))
    assert tables.read_part(store, "trials", FIRST) == [before]


def test_trouble_that_a_stage_had_with_the_store_stops_the_run_at_once(store):
    stops = Stops()
    with Recorder(store, TRIALS, stops) as recorder:
        recorder.ended(Stage("pretrain", KEY), StageResult("interrupted", "no room for model.safetensors", "StoreFull"))
        (trouble,) = stops.troubles
    assert isinstance(trouble, StoreFull)
    assert str(trouble) == "no room for model.safetensors"


def test_a_row_that_the_store_does_not_take_stops_the_run(store):
    stops = Stops()
    with RunLock(store):
        store.fence = Fence(store, "the token of another driver")
        with Recorder(store, TRIALS, stops) as recorder:
            recorder.released(FIRST, "pre-training failed")
        store.fence = None
    assert [type(trouble) for trouble in stops.troubles] == [LockLost]
    assert rows(store) == {}


class Closed(Fence):
    """A fence that lets nothing pass until it is opened."""

    def __init__(self):
        self.opened = threading.Event()

    def __call__(self):
        assert self.opened.wait(60)

    confirm = __call__


def test_the_loop_of_stages_does_not_wait_until_a_row_is_written(store):
    store.fence = Closed()
    with Recorder(store, TRIALS, Stops()) as recorder:
        recorder.released(FIRST, "pre-training failed")
        recorder.released(SECOND, "pre-training failed")
        assert rows(store) == {}
        store.fence.opened.set()
    assert rows(store).keys() == {FIRST, SECOND}


def record_two(store, error=None):
    """Record two failed trials, of which the first has a damaged row, and then raise `error`."""
    store.write(tables.part_path("trials", FIRST), b"no Parquet file")
    with Recorder(store, TRIALS, Stops()) as recorder:
        recorder.released(FIRST, "pre-training failed")
        recorder.released(SECOND, "pre-training failed")
        if error is not None:
            raise error


def test_what_goes_wrong_with_a_row_is_raised_at_the_end(store):
    with pytest.raises(CorruptArtifact, match="not a whole Parquet file"):
        record_two(store)
    assert [row["status"] for row in tables.read_part(store, "trials", SECOND)] == ["failed"]


def test_it_is_only_noted_where_the_run_has_failed_already(store):
    with pytest.raises(RuntimeError, match="the run fails") as caught:
        record_two(store, RuntimeError("the run fails"))
    (note,) = caught.value.__notes__
    assert "not a whole Parquet file" in note
