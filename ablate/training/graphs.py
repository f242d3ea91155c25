"""Forward and backward passes that are recorded once and launched again as a whole, as CUDA graphs are.

A pass of a deep encoder is thousands of small operations, and a GPU that computes them faster than the host can launch
them stands idle. A recording launches them all at once. It knows nothing of Python: what it computes with stands at
fixed places in memory, so inputs are copied to where they were, gradients stay where they are from step to step, and
what a pass leaves behind are its outputs and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Passes of one kind that are computed as they are before the next is recorded: workspaces and plans are there then."""

Outputs: TypeAlias = tuple[Tensor, ...]

Work: TypeAlias = Callable[..., Outputs]
"""A pass: of its inputs, adds gradients to the module's parameters and returns tensors without a graph.

It waits for nothing on the device and does not depend on values that change from step to step but its inputs.
"""

Launch: TypeAlias = Callable[..., Outputs]
"""Does a pass: called with its kind, the work and its inputs, as `Launcher` is."""


def as_it_is(kind: Hashable, work: Work, *inputs: Tensor) -> Outputs:
    """Do a pass as it is written down."""
    return work(*inputs)


class Recording(Protocol):
    """Operations of a device that can be done again, on the same places in memory."""

    def warm_up(self, work: Callable[[], Outputs]) -> Outputs:
        """Do a pass as it is, in the way in which it will be recorded."""

    def record(self, work: Callable[[], Outputs]) -> Outputs:
        """Record a pass without changing anything; returns where its outputs will stand."""

    def replay(self) -> None:
        """Do what was recorded."""


class CudaRecording:
    """A CUDA graph. Recordings of one training share the memory of what a pass computes on its way."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream, pool: Any) -> None:
        self._device, self._stream, self._pool = device, stream, pool
        self._graph = torch.cuda.CUDAGraph()

    @classmethod
    def maker(cls, device: torch.device) -> Callable[[], CudaRecording]:
        """Return what makes the recordings of one training on a GPU."""
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return functools.partial(cls, device, stream, torch.cuda.graph_pool_handle())

    def warm_up(self, work: Callable[[], Outputs]) -> Outputs:
        """Do a pass on the stream on which it will be recorded."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            outputs = work()
        here.wait_stream(self._stream)
        return outputs

    def record(self, work: Callable[[], Outputs]) -> Outputs:
        """Capture a pass; other threads may use the GPU meanwhile."""
        with torch.cuda.graph(self._graph, self._pool, self._stream, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()


class Launcher:
    """Launches the passes of one training: as they are, or recorded after a few of each kind."""

    def __init__(self, parameters: Sequence[nn.Parameter], start: Callable[[], Recording] | None) -> None:
        """Know whose gradients passes add to.

        Args:
            parameters: all that is trained; they stay where they are.
            start: makes a recording; None: passes are launched as they are.
        """
        self._parameters = parameters
        self._start = start
        self._passes: dict[Hashable, _Pass] = {}

    @property
    def records(self) -> bool:
        """Whether passes are recorded."""
        return self._start is not None

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients have to be cleared where they are, for recordings add to them there."""
        return any(one.is_recorded for one in self._passes.values())

    def __call__(self, kind: Hashable, work: Work, *inputs: Tensor) -> Outputs:
        """Do a pass.

        Args:
            kind: all that `work` depends on but its inputs and the module; passes of one kind are alike.
            work: the pass.
            inputs: on the device.
        """
        if self._start is None:
            return work(*inputs)
        key = (kind, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._passes:
            self._passes[key] = _Pass(self._start(), self._parameters)
        return self._passes[key](work, inputs)

    @contextlib.contextmanager
    def as_they_are(self) -> Iterator[None]:
        """Launch passes as they are for the time of the context."""
        start, self._start = self._start, None
        try:
            yield
        finally:
            self._start = start

    def forget(self) -> None:
        """Drop all recordings, and with them the memory they hold."""
        self._passes.clear()


class _Pass:
    """Passes of one kind."""

    def __init__(self, recording: Recording, parameters: Sequence[nn.Parameter]) -> None:
        self._recording, self._parameters = recording, parameters
        self._warm, self._inputs, self._outputs = 0, list[Tensor](), tuple[Tensor, ...]()
        self._trained = list[bool]()  # of each parameter whether a pass gives it a gradient

    @property
    def is_recorded(self) -> bool:
        return bool(self._inputs)

    def __call__(self, work: Work, inputs: Outputs) -> Outputs:
        if self._warm < WARM_UP:
            self._warm += 1
            outputs = self._recording.warm_up(functools.partial(work, *inputs))
            self._trained = [parameter.grad is not None for parameter in self._parameters]
            return outputs
        if self.is_recorded:
            torch._foreach_copy_(self._inputs, list(inputs))
        else:
            for parameter, trained in zip(self._parameters, self._trained, strict=True):
                if trained and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            static = [tensor.detach().clone() for tensor in inputs]
            self._outputs = self._recording.record(functools.partial(work, *static))
            self._inputs = static
        self._recording.replay()
        return tuple(output.clone() for output in self._outputs)
