"""The display of a run: what is at work, what waits for what, and how attempts ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ablate.running.events import Watcher
from ablate.running.inspection import mre_text, stage_line
from ablate.running.naming import Names
from ablate.running.picture import Picture, Row
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Stage
from ablate.stage.settings import StageResult
from ablate.words import counted, duration

if TYPE_CHECKING:
    from ablate.running.tuner import Tuner
    from ablate.training import Progress

PLAIN_SECONDS = 30.0
"""Where the output is no terminal, a line about the running stages is printed this often."""

REPORTED_SECONDS = 5.0
"""The progress of a single trial is printed at most this often."""

WAIT_SHOWN_S = 10.0
"""A stage that got no place on a cluster that may grow within this time is said to wait for a node."""

STUCK_SHOWN_S = 60.0
"""While nothing is at work, a stage that got no place on the nodes that are there within this time is said to wait."""

_NOUNS = {"pretrain": "pre-training", "finetune": "fine-tuning", "tune": "tuning trial", "trial": "trial"}

_OUTCOMES = {"finished": "green", "failed": "red", "interrupted": "yellow", "lost": "yellow"}


@dataclass(frozen=True)
class Wait:
    """What a stage waits for that was offered to Ray and has no place yet."""

    words: str  # such as: a node with a GPU (the cluster has 1 and may grow to 2)
    its_turn: bool  # every node is there: it only waits for another stage to end


@dataclass
class _Running:
    """One stage on the screen."""

    kind: str
    name: str
    began: float
    placed: bool = False
    dependents: int = 0  # trials that wait for what it publishes
    phase: str = ""
    step: int = 0
    total: int = 0
    loss: float | None = None
    rate: float | None = None
    first: tuple[float, int] | None = None  # time and step of the phase's first report, for the time left

    def update(self, progress: Mapping[str, Any]) -> None:
        phase = str(progress["phase"])
        if phase != self.phase or self.first is None:
            self.first = (time.monotonic(), int(progress["step"]))
        self.phase, self.step, self.total = phase, int(progress["step"]), int(progress["total"])
        metrics: Mapping[str, float] = progress.get("metrics") or {}
        self.loss = metrics.get("loss", self.loss)
        self.rate = progress.get("rate") or self.rate

    @property
    def seconds_left(self) -> float | None:
        if self.first is None or self.step <= self.first[1]:
            return None
        each = (time.monotonic() - self.first[0]) / (self.step - self.first[1])
        return each * (self.total - self.step)

    @property
    def row(self) -> Row:
        """The stage as it is drawn: its phase tells what it does, before the first its kind."""
        words = " ".join(filter(None, [self.phase or self.kind, self.name]))
        return Row(words, self.step, self.total, self.loss, self.rate, self.seconds_left)


class LineReporter:
    """Prints a trial's progress as plain lines, at most one every few seconds; a `Report` that never stops."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, 0.0
        self._running = _Running("trial", "", time.monotonic())

    def __call__(self, progress: Progress) -> bool:
        """Print where the trial is."""
        row = {"metrics": progress.metrics, "rate": progress.images_per_second}
        self._running.update({"phase": progress.phase, "step": progress.step, "total": progress.total, **row})
        if time.monotonic() - self._last >= REPORTED_SECONDS:
            self._last = time.monotonic()
            shown = self._running.row
            self._console.print("  ".join([shown.words, *shown.facts]), soft_wrap=True)
        return False


class Display(Watcher):
    """Live progress on a terminal, plain lines elsewhere.

    Args:
        console: where to.
        policy: knows the stages.
        names: of the trials and pre-trainings.
        already: trials that were finished before.
        wait: returns what a stage waits for.
        units: of the trials' errors, by data set.
        warning: returns what is wrong just now, such as a store that is away; None if nothing is.
        left_s: returns about how long the whole run will still take, in seconds; None while nothing is known of it.
        tuner: where settings are tuned, knows the rounds and how many trials are to come.
    """

    def __init__(
        self,
        console: Console,
        policy: Policy,
        *,
        names: Names,
        already: int,
        wait: Callable[[Stage], Wait],
        units: Mapping[str, str],
        warning: Callable[[], str | None] = lambda: None,
        left_s: Callable[[], float | None] = lambda: None,
        tuner: Tuner | None = None,
    ) -> None:
        self._console, self._policy = console, policy
        self._names, self._units = names, units
        self._warning, self._wait, self._left_s = warning, wait, left_s
        self._tuner, self._finished, self._failed = tuner, 0, 0
        self._already = already
        self._running: dict[Stage, _Running] = {}
        self._began = time.monotonic()
        self._last_plain = self._began
        self._live = Live(get_renderable=self.picture, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print a line above the live display."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    # --- what it is told ----------------------------------------------------------------------------

    def started(self, stage: Stage) -> None:
        """Show a stage that was handed to Ray."""
        if stage.kind == "pretrain":
            name = self._names.pretraining(self._policy.pretraining(stage)[0])
        else:
            name = self._names.trial(self._policy.trial(stage))
        self._running[stage] = _Running(stage.kind, name, time.monotonic())
        self._count_dependents(stage)

    def placed(self, stage: Stage) -> None:
        """Show that a stage has its place; what it takes counts from here."""
        if stage in self._running:
            self._running[stage].placed, self._running[stage].began = True, time.monotonic()

    def progressed(self, stage: Stage, progress: Mapping[str, Any]) -> None:
        """Show how far a stage is."""
        if stage in self._running:
            self._running[stage].update(progress)
            self._count_dependents(stage)

    def tick(self) -> None:
        """Print where the run is from time to time where there is no live display."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_plain >= PLAIN_SECONDS:
            self._last_plain = now
            for line in self.picture().lines():
                self.say(line)

    def ended(self, stage: Stage, result: StageResult) -> None:
        """Show and count how an attempt at a stage ended."""
        running = self._running.pop(stage)
        what: str = stage.kind
        outcome, metrics = result.outcome, result.metrics
        if stage.kind == "tune" and outcome == "finished" and metrics:
            until = self._policy.until(stage)
            what = f"val {mre_text(metrics['val_mre'], self._units[self._policy.trial(stage).dataset])}"
            what += f" at {until:.0%}" if until < 1 else ""
        if stage.kind in ("finetune", "trial"):
            self._finished += outcome == "finished"
            self._failed += outcome == "failed"
            if outcome == "finished" and metrics and "mre" in metrics:
                what = mre_text(metrics["mre"], self._units[self._policy.trial(stage).dataset])
        if running.placed or outcome != "interrupted":  # nothing is lost of what had not started
            took = duration(time.monotonic() - running.began)
            self._say_ended(outcome, took, stage.name, what, running.name, result.error)

    def released(self, trial_id: str, reason: str) -> None:
        """Show and count a trial that fails with its pre-training."""
        stage = Stage("tune" if self._policy.is_tuning(trial_id) else "finetune", trial_id)
        self._failed += stage.kind == "finetune"
        self._say_ended("failed", "-", trial_id, stage.kind, self._names.trial(self._policy.trial(stage)), reason)

    def _say_ended(self, outcome: str, took: str, key: str, what: str, name: str, error: str | None) -> None:
        line = stage_line(outcome, key, what, f"{took:>7}  {name}")
        self.say(f"{line}: {error}" if error else line, _OUTCOMES.get(outcome, ""))

    def _count_dependents(self, stage: Stage) -> None:
        if stage.kind == "pretrain":
            self._running[stage].dependents = len(self._policy.dependents(stage))

    # --- what is drawn ------------------------------------------------------------------------------

    def _summary(self) -> str:
        done = f"{self._finished}/{self._total} trials finished"
        if self._tuner is not None:
            done = f"{self._tuner.line()}; {done}"
        at_work = sum(running.total > 0 for running in list(self._running.values()))
        skipped = f" ({self._already} more were finished before)" if self._already else ""
        return f"{done}{skipped}, {counted(at_work, 'stage')} running, {self._failed} failed"

    @property
    def _total(self) -> int:
        """Trials of the run, at most where settings are tuned."""
        return self._policy.num_trials + (self._tuner.num_to_come if self._tuner else 0)

    def picture(self) -> Picture:
        """Return what there is to see now; configurations that are tried count as trials do."""
        tried = (self._tuner.num_ended, self._tuner.num_configurations) if self._tuner else (0, 0)
        running = list(self._running.values())
        return Picture(
            rows=[stage.row for stage in running if stage.placed],
            done=self._finished + self._failed + tried[0],
            total=self._total + tried[1],
            summary=self._summary(),
            warning=self._warning(),
            at=time.time(),
            waits=self._waits(),
            took_s=time.monotonic() - self._began,
            left_s=self._left_s(),
        )

    def _waits(self) -> tuple[str, ...]:
        """Say what waits for what, and for how long.

        A stage whose turn has not come is no news: there is always one while others are at work. One that waits for
        a node is, and so are the trials that would ask for more nodes if their pre-training were done.
        """
        now, stages = time.monotonic(), list(self._running.items())
        idle = not any(running.placed for _, running in stages)
        waiting: dict[tuple[str, str], list[float]] = {}
        behind: list[tuple[int, float]] = []  # trials that wait, and for how long
        for stage, running in stages:
            wait, seconds = self._wait(stage), now - running.began
            stuck = idle and seconds >= STUCK_SHOWN_S
            if not running.placed and seconds >= WAIT_SHOWN_S and (not wait.its_turn or stuck):
                waiting.setdefault((_NOUNS[stage.kind], wait.words), []).append(seconds)
            if running.dependents and seconds >= WAIT_SHOWN_S and not self._wait(Stage("finetune", "")).its_turn:
                behind.append((running.dependents, seconds))
        lines = [_wait_line(len(ages), noun, words, max(ages)) for (noun, words), ages in waiting.items()]
        if behind:
            trials = sum(count for count, _ in behind)
            words = f"what {counted(len(behind), _NOUNS['pretrain'])} will publish"
            lines.append(_wait_line(trials, _NOUNS["finetune"], words, max(seconds for _, seconds in behind)))
        return tuple(lines)


def _wait_line(count: int, noun: str, what: str, seconds: float) -> str:
    verb, first = ("waits", "") if count == 1 else ("wait", "the first ")
    return f"{counted(count, noun)} {verb} for {what}, {first}for {duration(seconds)}"
