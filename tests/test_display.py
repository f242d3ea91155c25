"""The display of a run: whole screens, the names of trials, what is at work, what waits for what, the time left."""

import io
import json

import pytest
from rich.console import Console
from tiny import tiny_trial

from ablate.running import display as module
from ablate.running.display import Display, Wait
from ablate.running.naming import Names
from ablate.running.picture import Picture, Row
from ablate.running.remaining import TimeLeft
from ablate.running.resources import Resources
from ablate.schedule.costs import default_costs
from ablate.schedule.fitting import Shape
from ablate.schedule.machine import Machine
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Costs, Stage
from ablate.space import find_grid, load_grid, plan_of
from ablate.stage.settings import StageResult

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

    def __init__(self, wait=NODE, width=300):
        shared = [tiny_trial("simclr", seed=seed) for seed in range(3)]
        alone = [tiny_trial("scratch", seed=seed) for seed in range(2)]
        self.screen = io.StringIO()
        self.policy = Policy(plan_of([*shared, *alone]), default_costs())
        self.left_s = None
        self.console = Console(file=self.screen, width=width)
        self.display = Display(
            self.console,
            self.policy,
            names=Names([*shared, *alone]),
            already=0,
            wait=lambda stage: wait,
            units={"synthetic": "mm"},
            left_s=lambda: self.left_s,
        )
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
    shown.display.ended(shown.first, StageResult("finished"))
    assert shown.lines == [f"finished    {shown.first.name}  finetune      0:00:05  scratch, seed 0"]


def test_what_never_started_is_not_said_to_be_interrupted(clock):
    shown = Shown()
    shown.display.started(shown.first)
    shown.display.ended(shown.first, StageResult("interrupted", "the run ends before it has started"))
    assert shown.lines == []
    shown.display.started(shown.second)
    shown.display.ended(shown.second, StageResult("failed", "lost 4 times"))
    assert "lost 4 times" in shown.lines[0]


def test_waits_go_through_the_store_and_are_drawn():
    row = Row("pretrain DDPM", 3, 10, 1.5, 20.0, 4.0)
    picture = Picture([row], 1, 2, "1/2 trials finished", None, 12.5, ("2 fine-tunings wait for a GPU",), 60.0, 90.0)
    assert Picture.from_bytes(picture.to_bytes()) == picture
    assert picture.lines() == [
        "1/2 trials finished, 0:01:00 so far, about 0:01:30 left",
        "  2 fine-tunings wait for a GPU",
        "  pretrain DDPM: 3/10, loss 1.5, 20 images/s, 0:00:04 left",
    ]
    assert "2 fine-tunings wait for a GPU" in drawn(picture, 120)


def test_a_picture_of_another_version_is_still_read():
    old = {"rows": [{"words": "pretrain DDPM", "step": 1, "total": 2, "facts": ["pretrain", "1/2"]}], "done": 1}
    old |= {"total": 2, "summary": "1/2", "warning": None, "at": 1.0, "to_come": "something"}
    assert Picture.from_bytes(json.dumps(old).encode()) == Picture([Row("pretrain DDPM", 1, 2)], 1, 2, "1/2", None, 1.0)


# --- whole screens ----------------------------------------------------------------------------------


def drawn(picture, width, height=24):
    """Return a picture as a terminal of this size shows it."""
    screen = io.StringIO()
    Console(file=screen, width=width, height=height).print(picture)
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines())


def session(clock, width):
    """Return all that a terminal shows of a run: the lines of what has ended, and the picture below them."""
    shown = Shown(width=width)
    display = shown.display
    for stage in (shown.pretraining, shown.first, shown.second):
        display.started(stage)
        display.placed(stage)
    for step, passed in ((0, 20), (100, 40)):
        progress = {"phase": "pretrain", "step": step, "total": 150, "metrics": {"loss": 0.12345}, "rate": 30.61}
        display.progressed(shown.pretraining, progress)
        clock[0] += passed
    display.progressed(shown.first, {"phase": "evaluate", "step": 64, "total": 100, "metrics": {}, "rate": 301.0})
    display.ended(shown.first, StageResult("finished", None, None, {"mre": 2.3149, "val_mre": 2.0}))
    shown.left_s = 95.0
    return shown, "\n".join([*shown.lines, drawn(display.picture(), width)])


def test_a_screen_of_80_columns_shows_name_progress_loss_and_the_times(clock):
    shown, screen = session(clock, 80)
    assert screen == (
        f"finished    {shown.first.name}  MRE 2.31 mm   0:01:00  scratch, seed 0\n"
        "stage                     done          step    loss  images/s     left\n"
        "pretrain SimCLR           ━━━━━      100/150  0.1235      30.6  0:00:30\n"
        "finetune scratch, seed 1            starting\n"
        "3 fine-tunings wait for what 1 pre-training will publish, the first for 0:01:00\n"
        "━━━━╸                     20 %  0:01:00 so far, about 0:01:35 left\n"
        "1/5 trials finished, 1 stage running, 0 failed"
    )
    assert max(map(len, screen.splitlines())) <= 80


def test_a_screen_of_160_columns_has_longer_bars(clock):
    shown, screen = session(clock, 160)
    assert screen == (
        f"finished    {shown.first.name}  MRE 2.31 mm   0:01:00  scratch, seed 0\n"
        "stage                     done                  step    loss  images/s     left\n"
        "pretrain SimCLR           ━━━━━━━━━━╸        100/150  0.1235      30.6  0:00:30\n"
        "finetune scratch, seed 1                    starting\n"
        "3 fine-tunings wait for what 1 pre-training will publish, the first for 0:01:00\n"
        "━━━━━━━━                                  20 %  0:01:00 so far, about 0:01:35 left\n"
        "1/5 trials finished, 1 stage running, 0 failed"
    )


LONG = [
    Row("finetune DDPM T=500, 8000 steps, hand, from chest, 25 shots, lr 0.0003, seed 2", 7, 200, 3.25, 101.5, 3725.0),
    Row("pretrain MoCo v3, 10000 steps on cephalo", 123, 10000, 0.5, 88.0, 86399.0),
]


def test_of_long_names_the_least_important_columns_give_way():
    screen = Picture(LONG, 3, 270, "3/270 trials finished", None, 1.0, (), 59.0)
    assert drawn(screen, 80) == (
        "stage                                        done           step  loss      left\n"
        "finetune DDPM T=500, 8000 steps, hand, fro…                7/200  3.25   1:02:05\n"
        "pretrain MoCo v3, 10000 steps on cephalo               123/10000   0.5  23:59:59\n"
        "                          1 %  0:00:59 so far\n"
        "3/270 trials finished"
    )
    first, second, *_ = drawn(screen, 160).splitlines()
    assert first.split() == ["stage", "done", "step", "loss", "images/s", "left"]
    assert second.startswith(LONG[0].words)


def test_more_stages_than_lines_are_counted_and_the_run_as_a_whole_stays_in_sight():
    rows = [Row(f"finetune seed {number}", 1, 10) for number in range(64)]
    screen = drawn(Picture(rows, 0, 64, "0/64 trials finished", None, 1.0), 80, height=12).splitlines()
    assert len(screen) <= 11
    assert screen[1].startswith("finetune seed 0")
    assert screen[-3] == "and 59 stages more"
    assert screen[-1] == "0/64 trials finished"


# --- names ------------------------------------------------------------------------------------------


def test_a_trial_is_named_by_the_axes_that_vary():
    rates = [tiny_trial("simclr", finetune={"lr": lr}) for lr in (1e-3, 3e-4)]
    assert [Names(rates).trial(trial) for trial in rates] == ["lr 0.001", "lr 0.0003"]
    both = [
        tiny_trial("simclr", seed=seed, pretrain={"lr": lr}, finetune={"lr": lr * by})
        for seed in (0, 1)
        for lr in (1e-3, 2e-3)
        for by in (1, 0.1)
    ]
    assert Names(both).trial(both[1]) == "pretrain.lr 0.001, finetune.lr 0.0001, seed 0"
    assert Names(both).pretraining(both[1].pretraining) == "SimCLR, pretrain.lr 0.001"


def test_what_goes_with_a_named_axis_is_not_named():
    # kind of network and learning rate follow the initialisation, sigma the image size
    methods = [tiny_trial(method, shots=shots) for method in ("ddpm", "scratch") for shots in (1, 3)]
    assert [Names(methods).trial(trial) for trial in methods] == [
        "DDPM, 1 shot",
        "DDPM, 3 shots",
        "scratch, 1 shot",
        "scratch, 3 shots",
    ]


def test_a_trial_that_differs_from_no_other_is_named_in_full():
    trial = tiny_trial("ddpm", pretrain={"timesteps": 20}, seed=4)
    assert Names([trial]).trial(trial) == "DDPM T=20, 6 steps, synthetic, 3 shots, seed 4"
    assert Names([trial]).pretraining(trial.pretraining) == "DDPM T=20, 6 steps on synthetic"


@pytest.mark.parametrize("name", ["cross-domain", "demo", "label-efficiency", "matched", "paper", "timesteps"])
def test_the_names_of_a_shipped_search_space_are_short_and_tell_all_trials_apart(name):
    trials = load_grid(find_grid(name)).trials
    names = Names(trials)
    texts = [names.trial(trial) for trial in trials]
    assert len(set(texts)) == len(trials)
    assert max(map(len, texts)) <= 50
    mappings = [{"trial_id": trial.trial_id, **trial.model_dump(mode="json")} for trial in trials]
    assert [Names(mappings).trial(mapping) for mapping in mappings] == texts  # as `ablate status` reads them


def test_pretrainings_that_follow_the_seeds_of_trials_are_told_apart_by_them():
    trials = [tiny_trial("simclr", seed=seed, pretrain={"seed": "trial"}) for seed in range(2)]
    names = Names([*trials, tiny_trial()])
    assert [names.pretraining(trial.pretraining) for trial in trials] == ["SimCLR, seed 0", "SimCLR, seed 1"]
    matched = load_grid(find_grid("matched")).trials
    pretrainings = plan_of(matched).pretrainings.values()
    assert len({Names(matched).pretraining(item) for item in pretrainings}) == len(pretrainings)


# --- the time left ----------------------------------------------------------------------------------

SECOND = Costs(pretrain_step=lambda pretraining: 1.0, finetune=lambda trial: 10.0)
"""Estimates: a step of pre-training takes a second, a fine-tuning ten."""


class Rest:
    """The time left of a run of two trials behind a pre-training of 6 steps, and of one that needs none."""

    def __init__(self, costs=SECOND, slots=1):
        self.shared = [tiny_trial("simclr", seed=seed) for seed in range(2)]
        self.alone = tiny_trial("scratch")
        self.policy = Policy(plan_of([*self.shared, self.alone]), costs)
        machine = None if slots is None else Machine(0, 0, 0, slots=slots)
        self.left = TimeLeft(self.policy, costs, lambda: machine)
        self.pretraining = Stage("pretrain", self.shared[0].pretrain_key)


def test_nothing_is_said_of_the_time_left_before_a_stage_was_measured(clock):
    rest = Rest()
    assert rest.left() is None
    rest.left.placed(rest.pretraining)
    rest.left.progressed(rest.pretraining, {"phase": "pretrain", "step": 0, "total": 6})
    clock[0] += 10
    assert rest.left() is None


def test_the_time_left_is_that_of_the_schedule_at_the_measured_speed(clock):
    rest = Rest()
    rest.left.placed(rest.pretraining)
    for step in (0, 2):
        rest.left.progressed(rest.pretraining, {"phase": "pretrain", "step": step, "total": 6})
        clock[0] += 8
    # 4 s a step instead of 1: 4 steps are left, and three fine-tunings of 4 * 10 s, one after the other
    assert rest.left() == pytest.approx(4 * 4 + 3 * 40)
    clock[0] += 3
    assert rest.left() == pytest.approx(4 * 4 + 3 * 40 - 3)  # the same estimate, 3 s later


def test_a_finished_fine_tuning_and_a_failed_trial_are_counted_out(clock):
    rest = Rest(Costs(SECOND.pretrain_step, SECOND.finetune, measured=True), slots=2)
    assert rest.left() == pytest.approx(20)  # beside the pre-training (0 to 6) the third, then a second one (10 to 20)
    stage = Stage("finetune", rest.alone.trial_id)
    rest.left.placed(stage)
    rest.left.progressed(stage, {"phase": "finetune", "step": 0, "total": 30})
    clock[0] += 5  # half of what was expected: it stopped early
    rest.left.ended(stage, StageResult("finished", None, None, {"mre": 2.0}))
    rest.left.released(rest.shared[0].trial_id, "its pre-training failed")
    # of the measured half only fine-tunings are known; a pre-training is scaled as the stages that were measured
    assert rest.left() == pytest.approx(6 * 0.5 + 5)


def test_nothing_is_said_of_the_time_left_while_there_is_no_machine(clock):
    rest = Rest(Costs(SECOND.pretrain_step, SECOND.finetune, measured=True), slots=None)
    assert rest.left() is None


def test_the_machine_of_a_run_is_what_its_stages_fit():
    cpus = Resources(cpus=2)
    assert cpus.machine([(Shape(4), 2), (Shape(3), 1)], None) == Machine(0, 0, 0, slots=5)
    assert cpus.machine([(Shape(4), 2)], 3) == Machine(0, 0, 0, slots=3)
    assert cpus.machine([], None) is None
    gpus = Resources(1, 1.0, 0.25, "H100")
    there = [(Shape(8, 2, frozenset({"H100"})), 2), (Shape(8, 8, frozenset({"A100"})), 1)]
    assert gpus.machine(there, None) == Machine(4, 1.0, 0.25, slots=16)
    assert gpus.machine(there[1:], None) is None
