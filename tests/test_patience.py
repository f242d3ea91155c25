"""A store that goes away and comes back: what is tried again, for how long, and what is told at once."""

import errno
import pickle
import time

import pytest
from runs import wait_until

from ablate.stage.checkpoints import saving
from ablate.store import BackgroundPublisher, Store, StoreAway, StoreFull, StoreRefused
from ablate.store.errors import trouble_of
from ablate.store.patience import Patience


class Flaky:
    """An operation that fails with the given errors, one after the other, and then succeeds."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def lost():
    return OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7")


def test_an_operation_is_tried_again_until_the_store_answers_and_the_absence_is_known_meanwhile():
    patience = Patience(60, "s3://bucket/run", is_local=False)
    seen = []
    operation = Flaky(lost(), lost())

    def watched():
        seen.append(patience.away_since is not None)
        return operation()

    assert patience(watched) == "done"
    assert operation.calls == 3
    assert seen == [False, True, True]
    assert patience.away_since is None


def test_past_the_patience_every_operation_is_tried_once_and_says_since_when():
    patience = Patience(0.0, "s3://bucket/run", is_local=False)
    for _ in range(2):
        operation = Flaky(lost(), lost(), lost())
        with pytest.raises(StoreAway, match=r"s3://bucket/run: the store has not answered since 20\d\d-.* UTC, longer"):
            patience(operation)
        assert operation.calls == 1
    assert StoreAway.exit_code == 3


def test_the_patience_counts_from_the_first_failure_of_all_operations_to_the_next_success():
    patience = Patience(0.6, "x", is_local=False)
    patience.note(answered=False, writes=False)
    time.sleep(0.7)
    operation = Flaky(lost(), lost())
    with pytest.raises(StoreAway):
        patience(operation)  # its own first failure, but the store is away for longer
    assert operation.calls == 1
    patience.note(answered=True, writes=False)
    assert not patience.is_over
    assert patience(Flaky(lost())) == "done"


def test_a_disk_that_became_read_only_is_away_for_writers_although_it_can_be_read():
    patience = Patience(0.5, "x", is_local=True)
    read_only = OSError(errno.EROFS, "Read-only file system")
    patience.note(answered=False, writes=True)
    time.sleep(0.6)
    assert patience(Flaky()) == "done"  # a read
    assert patience.is_over
    with pytest.raises(StoreAway, match="Read-only"):
        patience(Flaky(read_only), writes=True)
    assert patience(Flaky(), writes=True) == "done"
    assert patience.away_since is None


@pytest.mark.parametrize(
    ("error", "is_local", "expected"),
    [
        (OSError(errno.ENOSPC, "no space"), True, StoreFull),
        (OSError(errno.EDQUOT, "quota"), True, StoreFull),
        (OSError(errno.EACCES, "denied"), True, StoreRefused),
        (OSError(errno.EROFS, "read-only"), True, StoreAway),
        (OSError(errno.EIO, "i/o"), True, StoreAway),
        (OSError(errno.ESTALE, "stale"), True, StoreAway),
        (FileNotFoundError(errno.ENOENT, "none"), True, None),
        (NotADirectoryError(errno.ENOTDIR, "none"), True, None),
        (FileNotFoundError(errno.ENOENT, "none"), False, None),
        (OSError("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation"), False, StoreRefused),
        (OSError("AWS Error ACCESS_DENIED during PutObject operation: No response body."), False, StoreRefused),
        (OSError("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation"), False, StoreRefused),
        (OSError("AWS Error SLOW_DOWN during PutObject operation"), False, StoreAway),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during PutObject operation"), False, StoreAway),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no)"), False, StoreRefused),
        (OSError("google::cloud::Status(UNAVAILABLE: try again)"), False, StoreAway),
    ],
)
def test_errors_are_told_apart_by_whether_waiting_heals_them(error, is_local, expected):
    assert trouble_of(error, is_local=is_local) is expected


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "none"), OSError(errno.EACCES, "denied")])
def test_an_answer_or_a_refusal_is_not_tried_again(error):
    operation = Flaky(error, error)
    with pytest.raises((FileNotFoundError, StoreRefused)):
        Patience(60, "x", is_local=True)(operation)
    assert operation.calls == 1


def test_a_bucket_that_is_not_there_and_one_that_forbids_are_told_at_once(s3_server):
    store = Store.connect(f"s3://no-such-bucket-here/run?endpoint_override={s3_server}")
    with pytest.raises(StoreRefused, match=r"NO_SUCH_BUCKET.*check its address"):
        store.write("file", b"1")
    assert store.patience.away_since is None  # it has answered, and was not asked again


def test_a_store_takes_its_patience_along(tmp_path):
    store = Store.open(tmp_path / "run", patience_s=7)
    assert pickle.loads(pickle.dumps(store)).patience.seconds == 7


def test_a_folder_that_was_unplugged_is_not_written_elsewhere(tmp_path):
    store = Store.open(tmp_path / "disk" / "run", patience_s=0)
    (tmp_path / "disk" / "run").rename(tmp_path / "away")
    with pytest.raises(StoreAway, match="the store's folder is gone"):
        store.write("tables/x", b"1")
    assert not (tmp_path / "disk" / "run").exists()
    (tmp_path / "away").rename(tmp_path / "disk" / "run")
    store.write("tables/x", b"1")


class Disk:
    """A disk with a run on it, which can be unplugged and plugged in again."""

    def __init__(self, folder):
        self._mounted, self._away = folder / "disk", folder / "drawer"
        self.store = Store.open(self._mounted / "run", patience_s=600)

    def unplug(self):
        self._mounted.rename(self._away)

    def plug_in(self):
        self._away.rename(self._mounted)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


def test_training_hands_in_snapshots_without_waiting_while_the_store_is_away_and_all_arrive_in_order(disk):
    import torch

    store = disk.store
    with saving(store, "pretrained/key", minutes=0) as saver:
        saver.save(1, {"step": 1})
        assert saver.wait() == []
        disk.unplug()
        saver.save(2, {"step": 2})
        wait_until(lambda: store.patience.away_since is not None)
        assert not saver.due()  # the state before it is still to be written: training goes on without
        assert saver.durable_step == 1
        for step in (3, 4, 5):
            saver.publish(step, {"weight": torch.full((2,), float(step))})
        saver.later(lambda: store.write("row", b"5"))
        assert not store.patience.is_over  # the store is still away: nobody has waited for it
        assert saver.arrived() == []
        disk.plug_in()
        assert saver.wait() == [3, 4, 5]
        assert saver.durable_step == 2
        assert saver.due()
    assert store.list("pretrained/key") == ["state", "step_000003", "step_000004", "step_000005"]
    assert store.read("row") == b"5"


def test_a_publisher_gives_up_with_the_patience(disk):
    disk.store.patience.seconds = 0.2
    disk.unplug()
    publisher = BackgroundPublisher(disk.store)
    publisher.submit("s/step_000001", {"state": b"1"})
    with pytest.raises(StoreAway, match="the store's folder is gone"):
        publisher.flush()
    publisher.close()
