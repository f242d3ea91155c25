"""What `ablate bench` measured on a machine, as one JSON file: `ablate plan --bench` reads it, without torch.

A row holds a trial of the search space by which it was measured; what a cost depends on is read from that trial, so
the file has no keys of its own that could disagree with the trial's fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ablate.errors import InputError
from ablate.space import Pretraining, TrialSpec
from ablate.space.spec import Positive, PositiveNumber, Spec, as_tuple
from ablate.store.local_write import replacing
from ablate.words import one_line

FORMAT: Literal["ablate bench"] = "ablate bench"
VERSION = 1
"""Raised when a field changes its meaning; files of another version are refused."""

Seconds: TypeAlias = Annotated[float, Field(ge=0)]


class BenchDevice(Spec):
    """What computed, and what it shares the machine with."""

    kind: Literal["cpu", "cuda"]
    name: str  # the GPU's, or the processor's
    count: Positive  # GPUs of the machine; 1 on a CPU
    memory_bytes: int  # of one GPU, or of the machine
    cores: Positive  # CPU cores that this process may use
    threads: Positive  # CPU threads of every process that was measured, as `--cpus-per-stage` gives them
    busy_cores: float  # that other programs kept busy as the bench began

    @property
    def places(self) -> int:
        """How many processes with their threads the cores hold."""
        return max(1, self.cores // self.threads)

    @property
    def words(self) -> str:
        """The device in a few words."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)} a stage"
        cores = f"{self.cores} core{'s' * (self.cores > 1)}"
        many = f"{self.count} x " if self.count > 1 else ""
        return f"{many}{self.name}, {cores}, {threads}"


class Ceiling(Spec):
    """The most that the device does of one thing."""

    name: str  # fp32, tf32, bf16, copy
    size: Positive  # side of the square matrices, or bytes
    unit: Literal["FLOP/s", "B/s"]
    value: PositiveNumber


class StepTimes(Spec):
    """Optimizer steps of one process that has the device for itself."""

    images: Positive  # of one step
    seconds: PositiveNumber  # of one step, the mean
    count: Positive  # steps that were timed
    flops: PositiveNumber  # of one step
    peak_memory_bytes: int  # as in the table `stages`
    device_seconds: Seconds | None = None  # of a step: in kernels of the GPU, or in operators on a CPU
    sync_seconds: Seconds | None = None  # of a step: the host waits for the GPU
    host_seconds: Seconds | None = None  # of a step: the rest of the host's time


class Shared(Spec):
    """Steps of several processes at once."""

    processes: Positive
    seconds: PositiveNumber  # of one step of one of them, the mean
    images: Positive  # of that step

    @property
    def images_per_second(self) -> float:
        """Of all of them together."""
        return self.processes * self.images / self.seconds


class Resumed(Spec):
    """Whether a stage that was interrupted ends as one that ran through, and what deterministic mode costs."""

    equal: bool  # to the last bit
    equal_deterministic: bool  # the same in torch's deterministic mode
    slowdown: PositiveNumber  # seconds of a step in deterministic mode, in those without
    not_deterministic: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()  # operations that have no such mode


class Epoch(Spec):
    """An epoch of fine-tuning on few shots, with its validation, in parts; the host is what they leave over."""

    shots: Positive
    val_images: Positive
    seconds: PositiveNumber
    training: Seconds
    validation: Seconds  # forward passes and losses
    copying: Seconds  # of the weights, where they are the best so far
    decoding: Seconds  # of the same images: once, at the end of a fine-tuning

    @property
    def host(self) -> float:
        """What the parts leave over; nothing where noise lets them be longer than the whole."""
        return max(0.0, self.seconds - self.training - self.validation - self.copying)


class BenchRow(Spec):
    """What rows of both phases hold."""

    trial: TrialSpec
    shared: Annotated[tuple[Shared, ...], BeforeValidator(as_tuple)] = ()  # of the largest step, by processes
    rest_seconds: Seconds | None = None  # of a stage, besides its steps, its validations and its evaluation
    resumed: Resumed | None = None


class PretrainRow(BenchRow):
    """One method on one network."""

    step: StepTimes

    @property
    def pretraining(self) -> Pretraining:
        """The pre-training of the row's trial."""
        found = self.trial.pretraining
        assert found is not None  # the validator below
        return found

    @model_validator(mode="after")
    def _is_pretrained(self) -> PretrainRow:
        if self.trial.pretraining is None:
            raise ValueError(f"a row of pre-training must have a method that trains; got {self.trial.method}")
        return self


class FinetuneRow(BenchRow):
    """The fine-tuning of one network, from whatever weights."""

    steps: Annotated[tuple[StepTimes, ...], BeforeValidator(as_tuple), Field(min_length=1)]  # by images
    val_image_seconds: Seconds  # to validate one image
    test_image_seconds: Seconds  # to evaluate one image
    epoch: Epoch | None = None


class LeftOut(Spec):
    """What was not measured, and why."""

    what: str
    why: str


class Bench(Spec):
    """All that one bench measured."""

    format: Literal["ablate bench"] = FORMAT
    version: int = VERSION
    grid: str
    written_at: str  # UTC, ISO 8601
    seconds: PositiveNumber  # that the bench took
    ablate_version: str
    torch_version: str
    git_revision: str | None
    device: BenchDevice
    deterministic: bool = True  # on a GPU, as runs compute by default
    cuda_graphs: bool = False  # on a GPU
    compiled: bool = False  # on a GPU
    process_seconds: Seconds  # to start the processes of a machine's stages, all at once, up to their first work
    ceilings: Annotated[tuple[Ceiling, ...], BeforeValidator(as_tuple)] = ()
    pretrain: Annotated[tuple[PretrainRow, ...], BeforeValidator(as_tuple)] = ()
    finetune: Annotated[tuple[FinetuneRow, ...], BeforeValidator(as_tuple)] = ()
    left_out: Annotated[tuple[LeftOut, ...], BeforeValidator(as_tuple)] = ()


def read_bench(path: Path | str) -> Bench:
    """Return what a bench measured.

    Raises:
        InputError: the file cannot be read, is no bench, or is of another version; or it measured no row.
    """
    rule = f"--bench must be a file that `ablate bench --json FILE` wrote; {path}"
    cure = "measure again: ablate bench --grid NAME --json FILE"
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{rule} cannot be read: {one_line(error, 200)}; {cure}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{rule} is none; {cure}")
    if content.get("version") != VERSION:
        raise InputError(f"{rule} has version {content.get('version')!r}, this ablate reads {VERSION}; {cure}")
    try:
        bench = Bench.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{rule} is not as it was written: {place}: {one_line(first['msg'], 200)}; {cure}") from error
    if not bench.pretrain and not bench.finetune:
        raise InputError(f"{rule} has no row: all were left out; give ablate bench more --minutes or a smaller --grid")
    return bench


def write_bench(bench: Bench, path: Path) -> None:
    """Write a bench, whole or not at all."""
    with replacing(path) as file:
        file.write(f"{bench.model_dump_json(indent=1)}\n".encode())
