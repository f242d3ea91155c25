"""Processes that measure: each has its own device context, memory and threads, as the workers of a run have.

A task is the name of a row of `TASKS` with its arguments. Several processes do one task side by side: each warms up,
says so, and starts its clock when all are ready.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from ablate.stage.settings import Settings
from ablate.words import one_line

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # must stand before CUDA starts, for products to be deterministic
    "KINETO_LOG_LEVEL": "99",  # the profiler tells of itself otherwise, and of drivers that are missing
}
"""What the environment of the processes says, unless it is said already."""

NICENESS = ("RAY_worker_niceness", 15)
"""By how much Ray's workers step back behind other programs, and so these processes: its setting, and its default."""

START_S = 120.0
"""A process that has not started after so long never will."""


class Failed(Exception):  # noqa: N818
    """A task could not be done, with the reason in one line."""


class Lost(Failed):
    """A process ended, or has to be ended."""


# --- in the process -----------------------------------------------------------------------------------

Ready = Callable[[], None]


def _ceiling(device: Any, ready: Ready, *, name: Any, seconds: float) -> Any:
    from ablate.bench import ceilings

    return ceilings.measure(name, device, seconds)


def _steps(
    device: Any,
    ready: Ready,
    *,
    trial: Any,
    images: int | None,
    seconds: float,
    profile: bool = False,
    share: float = 1.0,
) -> Any:
    """Time steps of the trial's pre-training, or of fine-tuning on so many images, on a share of a GPU."""
    from ablate.bench import loops

    device.reset_peak()
    clock = loops.Clock(device, seconds, profile=profile, ready=ready)
    if images is None:
        loops.time_pretraining(trial.pretraining, clock, share=share)
    else:
        loops.time_finetuning(trial, images, clock, share=share)
    return clock.count, clock.each, device.peak_bytes(), clock.activity


def _images(device: Any, ready: Ready, *, trial: Any, seconds: float) -> Any:
    from ablate.bench import parts

    return parts.time_images(trial, device, seconds)


def _epoch(device: Any, ready: Ready, *, trial: Any, seconds: float) -> Any:
    from ablate.bench import parts

    return parts.time_epoch(trial, device, seconds)


def _rest(device: Any, ready: Ready, *, trial: Any, images: int | None, step_s: float) -> Any:
    from ablate.bench import parts

    if images is not None:
        return parts.rest_of_finetuning(trial, images, device)
    return parts.rest_of_pretraining(trial, device, step_s)


def _compare(device: Any, ready: Ready, *, trial: Any, images: int | None, seconds: float) -> Any:
    from ablate.bench import parts

    if images is None:
        return parts.compare_pretraining(trial, device, seconds)
    return parts.compare_finetuning(trial, images, device, seconds)


TASKS: Mapping[str, Callable[..., Any]] = {
    "ceiling": _ceiling,
    "steps": _steps,
    "images": _images,
    "epoch": _epoch,
    "rest": _rest,
    "compare": _compare,
}
"""What a process can be asked to measure."""


def serve(line: Connection, settings: Settings) -> None:
    """Do the tasks that come over `line` until it is closed; all but `compare`, which does both, as a run does them."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    import ablate.stage.trial  # noqa: F401  as the first stage of a worker does
    from ablate.bench.device import Device
    from ablate.stage.machine import deterministic, release_memory

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of who started it
    os.nice(int(os.environ.get(NICENESS[0], NICENESS[1])))
    torch.set_num_threads(settings.threads)
    device = Device(settings)
    if device.is_gpu:
        torch.zeros(1, device=device.torch)  # the context of the GPU is a part of the start
    line.send(("started", None))

    def ready() -> None:
        line.send(("ready", None))
        line.recv()

    while True:
        try:
            name, arguments = line.recv()
        except EOFError:
            return
        try:
            with deterministic(device.torch, wanted=settings.deterministic and name != "compare"):
                answer = ("done", TASKS[name](device, ready, **arguments))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold memory of the device
            answer = ("failed", f"{type(error).__name__}: {one_line(error, 200)}")
        release_memory()
        line.send(answer)


# --- from outside -------------------------------------------------------------------------------------


class Process:
    """One process that measures; a task that takes too long ends it."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, settings), daemon=True)
        self._process.start()
        other.close()

    def ask(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Hand out a task."""
        self._line.send((name, dict(arguments)))

    def go(self) -> None:
        """Let a process that is ready start its clock."""
        self._line.send(None)

    def hear(self, deadline_s: float) -> tuple[str, Any]:
        """Return the next that the process says: a word, and what goes with it.

        Args:
            deadline_s: on the monotonic clock.

        Raises:
            Failed: what it says is that it could not.
            Lost: it says nothing until the deadline, or has ended.
        """
        try:
            if not self._line.poll(max(0.0, deadline_s - time.monotonic())):
                raise Lost("it took longer than the time that was left")
            word, content = self._line.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise Lost(f"its process ended with exit code {self._process.exitcode}") from error
        if word == "failed":
            raise Failed(str(content))
        return word, content

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Crew:
    """The processes of a bench; those that are lost, or were never needed yet, are started when they are.

    Args:
        settings: of the stages that are measured.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._members: list[Process] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *reason: object) -> None:
        for process in self._members:
            process.close()

    def start(self, number: int) -> float:
        """Have at least so many processes; return the seconds that starting those that were missing took."""
        start_s = time.monotonic()
        missing = range(number - len(self._members))
        new = [Process(self._settings) for _ in missing]
        for process in new:
            process.hear(start_s + START_S)
        self._members += new
        return time.monotonic() - start_s

    def do(self, name: str, arguments: Mapping[str, Any], *, limit_s: float, processes: int = 1) -> list[Any]:
        """Let so many processes do one task side by side; return what each answers.

        Raises:
            Failed: one of them could not.
        """
        self.start(processes)
        deadline_s = time.monotonic() + limit_s
        chosen = self._members[:processes]
        try:
            for process in chosen:
                process.ask(name, arguments)
            said = [process.hear(deadline_s) for process in chosen]
            if all(word == "ready" for word, _ in said):
                for process in chosen:
                    process.go()
                said = [process.hear(deadline_s) for process in chosen]
        except Failed as error:
            if processes > 1 or isinstance(error, Lost):  # the others may wait for a start that never comes
                for process in chosen:
                    process.close()
                del self._members[:processes]
            raise
        return [answer for _, answer in said]
