"""The display of a run: what is at work, and what waits for what."""

import io
import json

import pytest
from rich.console import Console
from tiny import tiny_trial

from ablate.running import display as module
from ablate.running.display import Display, Picture, Row, Wait
from ablate.schedule.costs import default_costs
from ablate.schedule.policy import Policy, Stage
from ablate.space import plan_of

NODE = Wait("a node with a GPU (the cluster has 1 and may grow to 4)", its_turn=False)
TURN = Wait("a GPU", its_turn=True)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


class Shown:
    """A display of three trials that share a pre-training and of two that need none."""

    def __init__(self, wait=NODE):
        shared = [tiny_trial("simclr", seed=seed) for seed in range(3)]
        alone = [tiny_trial("scratch", seed=seed) for seed in range(2)]
        self.screen = io.StringIO()
        self.policy = Policy(plan_of([*shared, *alone]), default_costs())
        console = Console(file=self.screen, width=300)
        self.display = Display(console, self.policy, already=0, wait=lambda stage: wait)
        self.pretraining = Stage("pretrain", shared[0].pretrain_key)
        self.first, self.second = (Stage("finetune", trial.trial_id) for trial in alone)

    @property
    def waits(self):
        return list(self.display.picture().waits)

    @property
    def rows(self):
        return [row.words.split()[0] for row in self.display.picture().rows]

    @property
    def lines(self):
        return self.screen.getvalue().splitlines()


def test_what_waits_for_a_node_is_said_with_its_number_and_for_how_long(clock):
    shown = Shown()
    shown.display.started(shown.first)
    clock[0] += 100
    shown.display.started(shown.second)
    clock[0] += 20
    assert shown.waits == [f"2 fine-tunings wait for {NODE.words}, the first for 0:02:00"]
    shown.display.placed(shown.first)
    assert shown.waits == [f"1 fine-tuning waits for {NODE.words}, for 0:00:20"]
    shown.display.placed(shown.second)
    assert shown.waits == []


def test_a_stage_that_was_just_offered_does_not_wait_yet(clock):
    shown = Shown()
    shown.display.started(shown.first)
    clock[0] += 9
    assert shown.waits == []


def test_trials_that_wait_for_a_pretraining_are_said_where_they_would_ask_for_nodes(clock):
    shown = Shown()
    shown.display.started(shown.pretraining)
    shown.display.placed(shown.pretraining)
    clock[0] += 60
    assert shown.waits == ["3 fine-tunings wait for what 1 pre-training will publish, the first for 0:01:00"]
    shown.policy.publish(shown.pretraining.name, 6)
    shown.display.progressed(shown.pretraining, {"phase": "pretrain", "step": 6, "total": 6})
    assert shown.waits == []


def test_where_every_node_is_there_a_stage_whose_turn_has_not_come_is_no_news(clock):
    shown = Shown(TURN)
    shown.display.started(shown.pretraining)
    shown.display.placed(shown.pretraining)
    shown.display.started(shown.first)
    clock[0] += 1000
    assert shown.waits == []
    assert shown.rows == ["pretrain"]


def test_a_stage_that_gets_no_place_while_nothing_runs_is_news_everywhere(clock):
    shown = Shown(TURN)
    shown.display.started(shown.first)
    clock[0] += 59
    assert shown.waits == []
    clock[0] += 1
    assert shown.waits == ["1 fine-tuning waits for a GPU, for 0:01:00"]


def test_plain_output_comes_also_while_nothing_is_at_work(clock):
    shown = Shown()
    shown.display.started(shown.first)
    clock[0] += 29
    shown.display.tick()
    assert shown.lines == []
    clock[0] += 1
    shown.display.tick()
    shown.display.tick()
    assert shown.lines == [
        "0/5 trials finished, 0 stages running, 0 failed, 0:00:30 so far",
        f"  1 fine-tuning waits for {NODE.words}, for 0:00:30",
    ]


def test_one_stage_is_one_stage(clock):
    shown = Shown()
    for number, stage in enumerate((shown.first, shown.second), start=1):
        shown.display.started(stage)
        shown.display.placed(stage)
        shown.display.progressed(stage, {"phase": "finetune", "step": 1, "total": 10})
        assert f", {number} stage{'s' if number > 1 else ''} running," in shown.display.picture().summary


def test_a_stage_takes_what_passes_from_its_place_on(clock):
    shown = Shown()
    shown.display.started(shown.first)
    clock[0] += 600
    shown.display.placed(shown.first)
    clock[0] += 5
    shown.display.ended(shown.first, "finished", None, None)
    assert shown.lines[-1].endswith(f"({shown.first.name}, 0:00:05)")


def test_what_never_started_is_not_said_to_be_interrupted(clock):
    shown = Shown()
    shown.display.started(shown.first)
    shown.display.ended(shown.first, "interrupted", "the run ends before it has started", None)
    assert shown.lines == []
    shown.display.started(shown.second)
    shown.display.ended(shown.second, "failed", "lost 4 times", None)
    assert "lost 4 times" in shown.lines[0]


def test_waits_go_through_the_store_and_are_drawn():
    row = Row("pretrain DDPM", 3, 10, ["pretrain", "3/10", "", "", ""])
    picture = Picture([row], 1, 2, "1/2 trials finished", None, 12.5, ("2 fine-tunings wait for a GPU",))
    assert Picture.from_bytes(picture.to_bytes()) == picture
    assert picture.lines() == [
        "1/2 trials finished",
        "  2 fine-tunings wait for a GPU",
        "  pretrain DDPM: pretrain, 3/10",
    ]
    screen = io.StringIO()
    Console(file=screen, width=120).print(picture.draw())
    assert "2 fine-tunings wait for a GPU" in screen.getvalue()


def test_a_picture_of_an_older_version_is_still_read():
    old = {"rows": [], "done": 1, "total": 2, "summary": "1/2", "warning": None, "at": 1.0}
    assert Picture.from_bytes(json.dumps(old).encode()) == Picture([], 1, 2, "1/2", None, 1.0)
