"""The device that a bench measures: its clock, its memory, and what it is; one object for a CPU and for a GPU."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._C._autograd import DeviceType

from ablate.schedule.bench_file import BenchDevice
from ablate.stage.machine import (
    CPU_INFO,
    choose_device,
    device_name,
    pass_size,
    peak_memory_bytes,
    reset_peak_memory,
)
from ablate.stage.settings import Settings
from ablate.training import PassSize, graphs

WARM_UP = 2
"""Steps before the clock starts: the first builds kernels and asks for memory."""

_SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of CUDA's runtime in which the host waits for the GPU, by their names in a profile."""


@dataclass(frozen=True)
class Activity:
    """Where the seconds of some profiled work went."""

    device: float  # in kernels of the GPU, or in operators on a CPU
    sync: float  # the host waits for the GPU; 0 on a CPU
    host: float  # the host does something else: it hands out work to the GPU, or on a CPU runs between operators


class Device:
    """A device with its clock.

    A mark is a moment on the device's own time line: of a GPU it lies behind all work that was handed to it before, and
    taking it does not wait for that work.
    """

    def __init__(self, settings: Settings) -> None:
        self.torch = choose_device(settings)
        self.is_gpu = self.torch.type == "cuda"
        self.settings = replace(settings, device="cuda" if self.is_gpu else "cpu")

    @property
    def warm_up(self) -> int:
        """Optimizer steps before steps are as all that follow."""
        return WARM_UP + (graphs.WARM_UP if self.is_gpu and self.settings.cuda_graphs else 0)

    def passes(self, share: float = 1.0) -> PassSize:
        """Return how forward passes are made in a stage with this share of a GPU, to which the process is now held.

        What a run compiles where that pays is compiled after the first step.
        """
        found = pass_size(self.torch, replace(self.settings, gpus=share))
        return found if found.compile_after is None else replace(found, compile_after=1)

    def mark(self) -> Any:
        """Return this moment, for `seconds`."""
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Return the seconds between each mark and the next; waits until the last is reached."""
        pairs = list(itertools.pairwise(marks))
        if not self.is_gpu:
            return [after - before for before, after in pairs]
        self.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]

    def synchronize(self) -> None:
        """Wait until the device has done all that was handed to it."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def reset_peak(self) -> None:
        """Let `peak_bytes` count from here on."""
        reset_peak_memory(self.torch)

    def peak_bytes(self) -> int:
        """Return the most memory held since `reset_peak`: of the GPU, or of this process on a CPU."""
        return peak_memory_bytes(self.torch)

    def profiler(self) -> torch.profiler.profile:
        """Return a profiler of what the device and the host do, not yet started."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.is_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        return torch.profiler.profile(activities=activities)

    def activity(self, profile: torch.profiler.profile, wall_s: float) -> Activity | None:
        """Return what a stopped profiler saw in so many seconds; None where it saw no kernel of the GPU."""
        computed = waited = 0.0
        for row in profile.key_averages():
            on_gpu = row.device_type == DeviceType.CUDA
            if self.is_gpu and on_gpu:
                computed += row.self_device_time_total / 1e6
            elif self.is_gpu and row.key in _SYNCHRONISING:
                waited += row.self_cpu_time_total / 1e6
            elif not self.is_gpu and row.key.startswith(("aten::", "mkldnn::")):
                computed += row.self_cpu_time_total / 1e6
        if self.is_gpu and not computed:
            return None
        computed, waited = min(computed, wall_s), min(waited, wall_s)
        return Activity(computed, waited, wall_s - (waited if self.is_gpu else computed))

    def describe(self, threads: int, busy_cores: float) -> BenchDevice:
        """Return what the device is, for the file."""
        return BenchDevice(
            kind="cuda" if self.is_gpu else "cpu",
            name=device_name(self.torch) if self.is_gpu else processor(),
            count=torch.cuda.device_count() if self.is_gpu else 1,
            memory_bytes=self.memory_bytes(),
            cores=num_cores(),
            threads=threads,
            busy_cores=busy_cores,
        )

    def memory_bytes(self) -> int:
        """Return the memory of the GPU, or of the machine."""
        if self.is_gpu:
            return int(torch.cuda.get_device_properties(self.torch).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def num_cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()
