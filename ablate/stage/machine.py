"""Facts of the machine that a stage computes on: device, memory, threads."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ablate.stage.settings import Settings
from ablate.training import DECIDED_AFTER, ONE_GROUP, CudaRecording, Gpu, PassSize

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What the environment must say when cuBLAS is first used, for its products to be deterministic."""

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux tells the name of a CPU."""

TRIES = 8
"""How often `bf16_speed` computes in each precision; the first are slow."""


def choose_device(settings: Settings) -> torch.device:
    """Return the device a stage computes on."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def share_of(settings: Settings) -> float:
    """Return the share of a GPU that a stage may fill: what it was given of one, or all where it has it alone."""
    return settings.gpus if 0 < settings.gpus < 1 else 1.0


def pass_size(device: torch.device, settings: Settings) -> PassSize:
    """Return how a stage's forward passes are sized: by its share of the GPU, to which the process is held from now on.

    On a CPU a pass holds one group of images, is launched as it is, and nothing is compiled.
    """
    if device.type != "cuda":
        return ONE_GROUP
    share = share_of(settings)
    torch.cuda.set_per_process_memory_fraction(share, device.index)  # it takes no device without an index
    recordings = CudaRecording.maker(device) if settings.cuda_graphs else None
    return PassSize(
        card=Gpu(device, share), recordings=recordings, compile_after=DECIDED_AFTER if settings.compiled else None
    )


def device_name(device: torch.device) -> str:
    """Return what computes: `cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers do not allow it: the peak is then the process's
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held since the attempt began: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


@functools.cache
def bf16_speed() -> float:
    """Return how many times as fast as in fp32 this CPU computes a convolution in bf16, on one thread.

    The instructions that a CPU has do not tell: with avx512_bf16 alone one is nearly twice as fast and another half as
    fast. Forward and backward, 16 images of 32 x 32 pixels and 32 channels; the least processor time of several tries
    each, so that other programs do not count, within a fifth of a second.
    """
    with torch.random.fork_rng([]):
        layer, images_BCHW = torch.nn.Conv2d(32, 32, 3, padding=1), torch.rand(16, 32, 32, 32)

    def seconds(*, bf16: bool) -> float:
        start_s = time.thread_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = layer(images_BCHW)
        output.float().sum().backward()
        return time.thread_time() - start_s

    with thread_count(1):
        pairs = [(seconds(bf16=False), seconds(bf16=True)) for _ in range(TRIES)]
    return min(fp32_s for fp32_s, _ in pairs) / min(bf16_s for _, bf16_s in pairs)


def slow_bf16(device: torch.device) -> str | None:
    """Return what to say of a device on which bf16 is slower than fp32; None where it is not.

    A GPU is asked for its instructions, so that nothing is computed on it.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            None if supported else f"{device_name(device)} has no instructions for bf16, so that fp32 is faster on it"
        )
    speed = bf16_speed()
    return None if speed >= 1 else f"a convolution in bf16 takes {1 / speed:.1f} times as long as in fp32 on this CPU"


@contextlib.contextmanager
def deterministic(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Let a GPU compute with algorithms that give equal bits for equal inputs; a CPU's do so anyway.

    An operation that has no such algorithm is computed all the same, and torch warns of it.
    """
    with deterministic_mode() if device.type == "cuda" and wanted else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def deterministic_mode() -> Iterator[None]:
    """Let torch choose deterministic algorithms on any device, and warn where there is none."""
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def release_memory() -> None:
    """Give back what a stage leaves behind: reused workers keep it otherwise."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Compute with `count` CPU threads for the time of the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
