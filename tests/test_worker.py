"""What a worker tells the driver, without a cluster."""

import threading
from typing import Any

import pytest

from ablate.running.ray_tune import worker
from ablate.running.ray_tune.worker import Reports
from ablate.training import Progress


@pytest.fixture(autouse=True)
def _always_time_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.0)


def at(step: int, published: int | None = None) -> Progress:
    return Progress("pretrain", step, 9, {"loss": 0.5}, published=published)


class Driver:
    """Takes a report only when it is let."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int | None]] = []
        self.asked, self.may_take = threading.Event(), threading.Event()

    def __call__(self, words: dict[str, Any]) -> None:
        self.asked.set()
        assert self.may_take.wait(60)
        self.taken.append((words["step"], words["published"]))


def test_training_does_not_wait_for_the_driver_and_no_snapshot_is_passed_over() -> None:
    driver = Driver()
    with Reports(driver) as reports:
        reports.tell(at(1))
        assert driver.asked.wait(60)
        for progress in (at(2), at(3, published=3), at(4), at(5, published=5)):
            reports.tell(progress)
        assert not driver.taken
        driver.may_take.set()
    assert driver.taken == [(1, None), (3, 3), (5, 5)]


def test_progress_is_told_at_most_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "REPORT_SECONDS", 3600.0)
    told: list[int] = []
    with Reports(lambda words: told.append(words["step"])) as reports:
        for progress in (at(1), at(2), at(3, published=3), at(4)):
            reports.tell(progress)
    assert told == [1, 3]


def test_what_a_report_raises_ends_the_stage() -> None:
    def gone(words: dict[str, Any]) -> None:
        raise ConnectionError("the driver is gone")

    with pytest.raises(ConnectionError, match="the driver is gone"), Reports(gone) as reports:
        reports.tell(at(1))


def test_the_error_of_a_stage_comes_before_that_of_a_report() -> None:
    def stage() -> None:
        with Reports(lambda words: 1 / 0) as reports:  # type: ignore[arg-type, return-value]
            reports.tell(at(1))
            raise ValueError("the stage's own")

    with pytest.raises(ValueError, match="the stage's own"):
        stage()
