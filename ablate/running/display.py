"""The display of a run: what is at work, what waits for what, and how attempts ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablate.running.events import Watcher
from ablate.schedule.policy import Policy, Stage
from ablate.space.words import initialisation, trial_words
from ablate.words import counted, duration

if TYPE_CHECKING:
    from ablate.training import Progress

PLAIN_SECONDS = 30.0
"""Where the output is no terminal, a line about the running stages is printed this often."""

REPORTED_SECONDS = 5.0
"""The progress of a single trial is printed at most this often."""

WAIT_SHOWN_S = 10.0
"""A stage that got no place on a cluster that may grow within this time is said to wait for a node."""

STUCK_SHOWN_S = 60.0
"""While nothing is at work, a stage that got no place on the nodes that are there within this time is said to wait."""

_NOUNS = {"pretrain": "pre-training", "finetune": "fine-tuning", "trial": "trial"}

_OUTCOMES = {"finished": "green", "failed": "red", "interrupted": "yellow", "lost": "yellow"}


@dataclass(frozen=True)
class Wait:
    """What a stage waits for that was offered to Ray and has no place yet."""

    words: str  # such as: a node with a GPU (the cluster has 1 and may grow to 2)
    its_turn: bool  # every node is there: it only waits for another stage to end


@dataclass
class _Running:
    """One stage on the screen."""

    words: str
    began: float
    placed: bool = False
    dependents: int = 0  # trials that wait for what it publishes
    phase: str = "starting"
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
    def facts(self) -> list[str]:
        """Phase, step, loss, rate and time left, as texts; empty where unknown."""
        left = self.seconds_left
        return [
            self.phase,
            f"{self.step}/{self.total}" if self.total else "",
            "" if self.loss is None else f"loss {self.loss:.4g}",
            "" if self.rate is None else f"{self.rate:.3g} images/s",
            "" if left is None else f"{duration(left)} left",
        ]


class LineReporter:
    """Prints a trial's progress as plain lines, at most one every few seconds; a `Report` that never stops."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, 0.0
        self._running = _Running("", time.monotonic())

    def __call__(self, progress: Progress) -> bool:
        """Print where the trial is."""
        row = {"metrics": progress.metrics, "rate": progress.images_per_second}
        self._running.update({"phase": progress.phase, "step": progress.step, "total": progress.total, **row})
        if time.monotonic() - self._last >= REPORTED_SECONDS:
            self._last = time.monotonic()
            self._console.print("  ".join(fact for fact in self._running.facts if fact), soft_wrap=True)
        return False


@dataclass(frozen=True)
class Row:
    """One running stage as it is drawn."""

    words: str
    step: int
    total: int
    facts: list[str]  # phase, step, loss, rate and time left, as texts; empty where unknown


@dataclass(frozen=True)
class Picture:
    """What the live display shows at one moment; goes through the store to `ablate status --watch`."""

    rows: list[Row]
    done: int  # trials, finished or failed
    total: int
    summary: str
    warning: str | None
    at: float  # seconds since 1970
    waits: Sequence[str] = ()  # what waits for what, and for how long

    def to_bytes(self) -> bytes:
        """Return the picture as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Picture:
        """Read a picture; raise `ValueError` or `TypeError` if it is none."""
        value = json.loads(data)
        waits = tuple(value.get("waits", ()))  # none in the pictures of older versions
        return cls(**{**value, "rows": [Row(**row) for row in value["rows"]], "waits": waits})

    def draw(self) -> Group:
        """Return the picture for a terminal."""
        table = Table(box=None, padding=(0, 1), show_header=False, expand=False)
        for row in self.rows:
            table.add_row(
                Text(row.words, overflow="ellipsis", no_wrap=True),
                ProgressBar(total=max(row.total, 1), completed=row.step, width=16),
                *(Text(fact, no_wrap=True) for fact in row.facts),
            )
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=40)
        warning = [] if self.warning is None else [Text(self.warning, style="red")]
        waits = [Text(wait, style="dim") for wait in self.waits]
        return Group(table, *waits, bar, Text(self.summary), *warning)

    def lines(self) -> list[str]:
        """Return the picture as plain lines."""
        running = [f"  {row.words}: {', '.join(fact for fact in row.facts if fact)}" for row in self.rows if row.total]
        waits = [f"  {wait}" for wait in self.waits]
        return [self.summary, *([] if self.warning is None else [self.warning]), *waits, *running]


class Display(Watcher):
    """Live progress on a terminal, plain lines elsewhere.

    Args:
        console: where to.
        policy: knows the stages.
        already: trials that were finished before.
        wait: returns what a stage waits for.
        warning: returns what is wrong just now, such as a store that is away; None if nothing is.
    """

    def __init__(
        self,
        console: Console,
        policy: Policy,
        *,
        already: int,
        wait: Callable[[Stage], Wait],
        warning: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._console, self._policy = console, policy
        self._warning, self._wait = warning, wait
        self._total, self._finished, self._failed = policy.num_trials, 0, 0
        self._already = already
        self._running: dict[Stage, _Running] = {}
        self._began = time.monotonic()
        self._last_plain = self._began
        self._live = Live(
            get_renderable=lambda: self.picture().draw(), console=console, refresh_per_second=2, transient=True
        )

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
            pretraining, _ = self._policy.pretraining(stage)
            words = f"pretrain {initialisation(pretraining.spec)} on {pretraining.fields.dataset}"
        else:
            words = f"{stage.kind} {trial_words(self._policy.trial(stage))}"
        self._running[stage] = _Running(words, time.monotonic())
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

    def ended(self, stage: Stage, outcome: str, error: str | None, trouble: str | None) -> None:
        """Show and count how an attempt at a stage ended."""
        running = self._running.pop(stage)
        if stage.kind != "pretrain":
            self._finished += outcome == "finished"
            self._failed += outcome == "failed"
        if running.placed or outcome != "interrupted":  # nothing is lost of what had not started
            took = duration(time.monotonic() - running.began)
            line = f"{outcome:<11} {running.words} ({stage.name}, {took})"
            self.say(f"{line}: {error}" if error else line, _OUTCOMES.get(outcome, ""))

    def released(self, trial_id: str, reason: str) -> None:
        """Show and count a trial that fails with its pre-training."""
        self._failed += 1
        stage = Stage("finetune", trial_id)
        self.say(f"{'failed':<11} finetune {trial_words(self._policy.trial(stage))} ({trial_id}): {reason}", "red")

    def _count_dependents(self, stage: Stage) -> None:
        if stage.kind == "pretrain":
            self._running[stage].dependents = len(self._policy.dependents(stage))

    # --- what is drawn ------------------------------------------------------------------------------

    def _summary(self) -> str:
        done = f"{self._finished}/{self._total} trials finished"
        at_work = sum(running.total > 0 for running in list(self._running.values()))
        skipped = f" ({self._already} more were finished before)" if self._already else ""
        return (
            f"{done}{skipped}, {counted(at_work, 'stage')} running, {self._failed} failed, "
            f"{duration(time.monotonic() - self._began)} so far"
        )

    def picture(self) -> Picture:
        """Return what there is to see now."""
        running = list(self._running.values())
        return Picture(
            rows=[Row(stage.words, stage.step, stage.total, stage.facts) for stage in running if stage.placed],
            done=self._finished + self._failed,
            total=self._total,
            summary=self._summary(),
            warning=self._warning(),
            at=time.time(),
            waits=self._waits(),
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
