"""A bench from its budget to its figures: every part of every row gets its share of the time that is left."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from ablate import __version__
from ablate.bench import ceilings
from ablate.bench.device import Device, num_cores
from ablate.bench.rows import Row, leading, rows_of
from ablate.bench.worker import Crew, Failed
from ablate.revision import git_revision
from ablate.schedule.bench_file import Bench, Ceiling, LeftOut, Shared, StepTimes
from ablate.space import Grid
from ablate.stage.settings import Settings

Say = Callable[[str], None]

GPU_PROCESSES = (2, 4, 8)
"""Processes that share a GPU, beside one alone."""

MOST_S = 15.0
"""A part is not measured for longer than this for each unit of its weight, however much time there is."""

GRACE = 3.0
"""A part whose time was estimated wrongly is ended after this many times its share."""

LEAST_LIMIT_S = 60.0
"""No part is ended before this: the first of a process loads libraries."""


@dataclass(frozen=True)
class Part:
    """One measurement."""

    what: str
    weight: float  # its share of the time
    least_s: Callable[[], float]  # asked when it is its turn, when more is known
    measure: Callable[[float, float], None]  # for so many seconds, within so many
    wanted: Callable[[], bool] = lambda: True  # False: what it would build on is missing, and was told


class Budget:
    """The seconds of a bench, shared out among its parts."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end_s = clock, clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._end_s - self._clock())

    def spend(self, parts: Sequence[Part], say: Say) -> list[LeftOut]:
        """Measure one part after the other; return those that were left out, each with its reason.

        Each gets what is left in proportion to its weight, less what the parts before took beyond what they were told.
        One that needs more is measured if it needs less than a third of what is left: it cannot starve all behind it.
        """
        out, beyond = list[LeftOut](), list[float]()
        for number, part in enumerate(parts):
            if not part.wanted():
                continue
            left, needs = self.left_s, part.least_s()
            share = left * part.weight / sum(other.weight for other in parts[number:])
            if needs > max(share, left / 3):
                why = f"it needs about {needs:,.0f} s, and {share:.0f} s were its share"
                out.append(LeftOut(what=part.what, why=why))
                continue
            usual = statistics.median(beyond) if beyond else 0.0
            told = max(0.0, min(share - needs - usual, MOST_S * part.weight))
            say(f"{part.what}: about {told + needs + usual:.0f} s")
            before_s = self._clock()
            try:
                part.measure(told, max(GRACE * share, GRACE * needs, LEAST_LIMIT_S))
            except Failed as failure:
                out.append(LeftOut(what=part.what, why=str(failure)))
            beyond.append(max(0.0, self._clock() - before_s - told - needs))
        return out


def run_bench(grid: Grid, *, minutes: float, settings: Settings, say: Say) -> Bench:
    """Measure a search space's rows on this machine.

    Args:
        grid: whose methods and networks are measured, on images of noise.
        minutes: for all of it; a part that is under way when they end is finished.
        settings: of the stages that are measured.
        say: is told what is measured next.
    """
    begin_s, busy = time.monotonic(), os.getloadavg()[0]
    budget, found = Budget(60 * minutes), Device(settings)
    rows, places = rows_of(grid.trials), max(1, num_cores() // settings.threads)
    with Crew(found.settings) as crew:
        at_once = 1 if found.is_gpu else places
        say(f"the start of {at_once} processes" if at_once > 1 else "the start of a process")
        process_s = crew.start(at_once)
        measuring = _Measuring(crew)
        left_out = budget.spend(_parts(rows, measuring, found.is_gpu, places), say)
    return Bench(
        grid=grid.name,
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - begin_s,
        ablate_version=__version__,
        torch_version=str(torch.__version__),
        git_revision=git_revision(),
        device=found.describe(settings.threads, busy),
        deterministic=settings.deterministic,
        cuda_graphs=settings.cuda_graphs,
        compiled=settings.compiled,
        process_seconds=process_s,
        ceilings=tuple(measuring.ceilings),
        pretrain=tuple(row.as_pretrained() for row in rows if row.is_measured and row.pretraining is not None),
        finetune=tuple(row.as_finetuned() for row in rows if row.is_measured and row.pretraining is None),
        left_out=tuple(left_out),
    )


class _Measuring:
    """Asks the crew, and notes what it answers in the rows; each method takes so many seconds, within so many."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.ceilings: list[Ceiling] = []

    def ceiling(self, name: ceilings.Name, seconds: float, limit_s: float) -> None:
        """Measure one ceiling."""
        self.ceilings += self._crew.do("ceiling", {"name": name, "seconds": seconds}, limit_s=limit_s)

    def steps(self, row: Row, seconds: float, limit_s: float) -> None:
        """Time the row's steps, and of fine-tuning its images without gradients."""
        share = seconds / (len(row.kinds) + (row.pretraining is None))
        for kind in row.kinds:
            task = {"trial": row.trial, "images": kind.window, "seconds": share, "profile": kind is row.kinds[-1]}
            ((count, each, peak, activity),) = self._crew.do("steps", task, limit_s=limit_s)
            step = StepTimes(
                images=kind.images, seconds=each, count=count, flops=kind.work.flops, peak_memory_bytes=peak
            )
            if activity is not None:
                where = {"device": activity.device, "sync": activity.sync, "host": activity.host}
                step = step.model_copy(update={f"{name}_seconds": value for name, value in where.items()})
            row.steps.append(step)
        if row.pretraining is None:
            (images,) = self._crew.do("images", {"trial": row.trial, "seconds": share}, limit_s=limit_s)
            row.image_s = (images.val, images.test)

    def shared(self, row: Row, seconds: float, limit_s: float, *, processes: int) -> None:
        """Time the row's largest step in several processes at once; before that in one, as things are now."""
        kind, numbers = row.kinds[-1], (processes,) if row.shared else (1, processes)
        for number in numbers:
            task = {"trial": row.trial, "images": kind.window, "seconds": seconds / len(numbers), "share": 1 / number}
            each = [step_s for _, step_s, _, _ in self._crew.do("steps", task, limit_s=limit_s, processes=number)]
            row.shared.append(Shared(processes=number, seconds=sum(each) / len(each), images=kind.images))

    def rest(self, row: Row, seconds: float, limit_s: float) -> None:
        """Measure what a stage does besides training, once."""
        task = {"trial": row.trial, "images": row.kinds[-1].window, "step_s": row.steps[-1].seconds}
        (row.rest_s,) = self._crew.do("rest", task, limit_s=limit_s)

    def epoch(self, row: Row, seconds: float, limit_s: float) -> None:
        """Take an epoch of fine-tuning apart."""
        (row.epoch,) = self._crew.do("epoch", {"trial": row.trial, "seconds": seconds}, limit_s=limit_s)

    def compare(self, row: Row, seconds: float, limit_s: float) -> None:
        """Compare a resumed stage with a straight one, and deterministic mode with the usual one."""
        task = {"trial": row.trial, "images": row.kinds[-1].window, "seconds": seconds}
        (row.resumed,) = self._crew.do("compare", task, limit_s=limit_s)


def _parts(rows: Sequence[Row], measuring: _Measuring, is_gpu: bool, places: int) -> list[Part]:
    """Return what is to be measured, the most needed first.

    Args:
        rows: of the search space.
        measuring: does it.
        is_gpu: whether a GPU computes.
        places: how many processes with their threads the cores hold.
    """
    parts, gpus = list[Part](), 1.0 if is_gpu else 0.0

    def add(row: Row, what: str, weight: float, least: Callable[[float], float], measure: Callable[..., None]) -> None:
        bound = functools.partial(measure, row)
        parts.append(Part(f"{row.name}: {what}", weight, lambda: least(gpus), bound, lambda: row.is_measured))

    for name in ceilings.names(is_gpu):
        parts.append(Part(f"ceiling of {name}", 0.5, lambda: 0.5, functools.partial(measuring.ceiling, name)))
    for row in rows:
        bound, least = functools.partial(measuring.steps, row), functools.partial(row.least_steps, gpus)
        parts.append(Part(f"{row.name}: steps", 2.0 + (row.pretraining is None), least, bound))
    leaders = leading(rows)  # to crowd, to take apart and to compare the others would tell no more
    for row in leaders:
        for number in processes_of(row, is_gpu, places):
            crowd = functools.partial(measuring.shared, processes=number)
            needs = functools.partial(row.least_shared, processes=number)
            add(row, f"{number} processes at once", 1.5, needs, crowd)
    for row in rows:
        add(row, "a stage besides training", 1.0, row.least_rest, measuring.rest)
    for row in leaders:
        if row.pretraining is None:
            add(row, "an epoch in parts", 2.0, row.least_epoch, measuring.epoch)
    for row in leaders:
        add(row, "resumed and straight, deterministic mode", 2.0, row.least_compared, measuring.compare)
    return parts


def processes_of(row: Row, is_gpu: bool, places: int) -> list[int]:
    """Return the numbers of processes in which a row is measured side by side, beside one alone.

    Args:
        row: of pre-training, which has a GPU for itself, or of fine-tuning.
        is_gpu: whether a GPU computes.
        places: how many processes with their threads the cores hold.
    """
    if is_gpu:
        return [number for number in GPU_PROCESSES if number <= places] if row.pretraining is None else []
    if places == 1:
        return []
    return [places] if row.pretraining is not None else sorted({*(n for n in GPU_PROCESSES if n < places), places})
