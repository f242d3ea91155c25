"""Whether a stage's request fits a node, and how many stages share a GPU there.

A stage runs on one node: its request must fit a node that is there, or one of a type that the cluster may grow.
Ray itself would wait for such a node for ever, without a message.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ablate.errors import InputError, nearest
from ablate.words import counted

SMALLEST_SHARE = 1e-4
"""The smallest share of a GPU that Ray gives out."""

PRETRAIN_GPUS, FINETUNE_GPUS = 1.0, 0.25
"""GPUs that stages ask for by default where there is one."""

ACCELERATOR = "accelerator_type:"
"""Start of the name of the resource by which Ray tells a node's type of accelerator."""


@dataclass(frozen=True)
class Request:
    """CPUs and GPUs that a stage asks one node for."""

    cpus: float
    gpus: float = 0.0
    accelerator_type: str | None = None  # as Ray names it; matters only for stages that ask for a GPU

    def __str__(self) -> str:
        kind = "" if self.accelerator_type is None or not self.gpus else f" of type {self.accelerator_type}"
        gpus = f"{counted(self.gpus, 'GPU')}{kind} and " if self.gpus else ""
        return gpus + counted(self.cpus, "CPU")


@dataclass(frozen=True)
class Shape:
    """CPUs, GPUs and types of accelerator of a node."""

    cpus: float
    gpus: float = 0.0
    accelerator_types: frozenset[str] = frozenset()

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Shape:
        """Return the shape of a node with these resources, as Ray names them."""
        kinds = frozenset(name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR))
        return cls(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)), kinds)

    def fits(self, request: Request) -> bool:
        """Return whether a stage with this request can run on an empty node of this shape."""
        return self.cpus >= request.cpus and self.gpus >= request.gpus and self.has(request)

    def has(self, request: Request) -> bool:
        """Return whether the node has the type of accelerator that is asked for; True where none is."""
        asked = request.accelerator_type if request.gpus else None
        return asked is None or asked in self.accelerator_types

    def stages(self, request: Request) -> tuple[int, int]:
        """Return how many stages that ask for GPUs its GPUs hold at a time, and how many its CPUs hold."""
        shared = 0 < request.gpus < 1
        by_gpus = _whole(self.gpus) * _per_gpu(request.gpus) if shared else _whole(self.gpus / request.gpus)
        return by_gpus, _whole(self.cpus / request.cpus)

    def __str__(self) -> str:
        kinds = "".join(f" {kind}" for kind in sorted(self.accelerator_types))
        return f"({self.cpus:g} CPU" + (f", {self.gpus:g} GPU{kinds})" if self.gpus else ")")


@dataclass(frozen=True)
class Node:
    """A node that is there."""

    name: str
    host: str
    shape: Shape


@dataclass(frozen=True)
class NodeType:
    """A type of node of which the cluster may grow some."""

    name: str
    shape: Shape
    max_count: int


Growable: TypeAlias = Sequence[NodeType] | None
"""The types of node that a cluster may grow; none where nothing grows it, None where that cannot be known."""


def decide_gpus(
    *,
    present: Sequence[Node],
    growable: Growable,
    where: str,
    gpus_per_pretrain: float | None,
    gpus_per_finetune: float | None,
    cpus_per_stage: float,
    accelerator_type: str | None = None,
) -> tuple[float, float]:
    """Return GPUs per pre-training and per fine-tuning; refuse requests that no node, present or growable, can satisfy.

    Args:
        present: the nodes that are there.
        growable: the types of node that may come; None if that cannot be known, and then no request is refused that
            one of them might satisfy, see `doubt_lines`.
        where: for messages: `this machine`, `the cluster at HOST:PORT`.
        gpus_per_pretrain: as asked for; None for 1 where a node has a GPU, else 0.
        gpus_per_finetune: as asked for; None for 0.25 where a node has a GPU, else 0.
        cpus_per_stage: CPU cores of a stage of either kind.
        accelerator_type: type of the GPUs, as Ray names it; None for any.

    Raises:
        InputError: with the nodes that there are, and the cure.
    """
    shapes = shapes_of(present, growable)
    kinds = {kind for shape in shapes for kind in shape.accelerator_types}
    if accelerator_type is not None and growable is not None and accelerator_type not in kinds:
        among = (
            f"one of {', '.join(sorted(kinds))}, the accelerators" if kinds else "left out: there are no accelerators"
        )
        close = nearest(accelerator_type, kinds) or nearest(accelerator_type.upper(), kinds)
        raise InputError(
            f"--accelerator-type must be {among} of {where}; got '{accelerator_type}'{close}; "
            f"{stock(present, growable)}"
        )
    has_gpu = any(shape.gpus > 0 and shape.has(Request(0, 1, accelerator_type)) for shape in shapes)
    has_gpu |= growable is None and accelerator_type is not None
    pretrain = gpus_per_pretrain if gpus_per_pretrain is not None else PRETRAIN_GPUS * has_gpu
    finetune = gpus_per_finetune if gpus_per_finetune is not None else FINETUNE_GPUS * has_gpu
    if accelerator_type is not None and not (pretrain or finetune):
        raise InputError(
            f"--accelerator-type must be left out where no stage asks for a GPU; got '{accelerator_type}' with "
            "--gpus-per-pretrain 0 and --gpus-per-finetune 0; leave those out, or --accelerator-type"
        )
    for flag, gpus in (("--gpus-per-pretrain", pretrain), ("--gpus-per-finetune", finetune)):
        if not (gpus == 0 or SMALLEST_SHARE <= gpus <= 1 or (gpus > 1 and math.isfinite(gpus) and gpus == int(gpus))):
            raise InputError(f"{flag} must be a share of a GPU between 0 and 1 or a whole number; got {gpus:g}")
        refuse_unfit(
            Request(cpus_per_stage, gpus, accelerator_type), flag=flag, present=present, growable=growable, where=where
        )
    return pretrain, finetune


def refuse_unfit(request: Request, *, flag: str, present: Sequence[Node], growable: Growable, where: str) -> None:
    """Refuse a request that no node can ever satisfy; one that a node of an unknown type might is let through.

    Args:
        request: of a stage.
        flag: the option that asked for its GPUs.
        present: the nodes that are there.
        growable: the types of node that may come; None if that cannot be known.
        where: for messages.

    Raises:
        InputError: which of the options is too large, and what would fit.
    """
    shapes = shapes_of(present, growable)
    if growable is None or any(shape.fits(request) for shape in shapes):
        return
    right = [shape for shape in shapes if shape.has(request)]
    wide = [shape for shape in right if shape.gpus >= request.gpus]  # with enough GPUs: then the CPUs are too few
    if wide:
        most = max(shape.cpus for shape in wide)
        beside = f" beside {flag} {request.gpus:g}" if request.gpus else ""
        rule, got = f"--cpus-per-stage must be at most {most:g}{beside}", request.cpus
        cure = "lower it, or use nodes with more CPUs"
    else:
        roomy = [shape for shape in right if shape.cpus >= request.cpus] or right
        most = max((shape.gpus for shape in roomy), default=0.0)
        rule, got = f"{flag} must be at most {most:g}", request.gpus
        cure = "leave it out to compute on the CPU where there is no GPU" if not most else "lower it, or leave it out"
    raise InputError(
        f"{rule}: a stage runs on one node, and no node of {where} has {request}: {stock(present, growable)}; "
        f"got {got:g}; {cure}"
    )


def doubt_lines(requests: Iterable[tuple[str, Request]], *, present: Sequence[Node], growable: Growable) -> list[str]:
    """Return a line for each request, given with the name of its stages, that fits no node that is known.

    There is none where it is known which nodes may come: `refuse_unfit` refuses such requests there.
    """
    if growable is not None:
        return []
    return [
        f"no node that is there has {request} for a {words}, and which nodes this cluster may grow cannot be known "
        f"from here: {stock(present, ())}; if it grows no such node, the {words} waits for ever"
        for words, request in requests
        if not any(node.shape.fits(request) for node in present)
    ]


def sharing_lines(
    shapes: Iterable[Shape],
    *,
    gpus_pretrain: float,
    gpus_finetune: float,
    cpus_per_stage: float,
    accelerator_type: str | None = None,
) -> list[str]:
    """Return a line for each shape of node whose GPUs idle for want of CPUs, with the cure.

    Args:
        shapes: of the nodes; equal ones count once.
        gpus_pretrain: GPUs of a pre-training.
        gpus_finetune: GPUs of a fine-tuning.
        cpus_per_stage: CPU cores of a stage of either kind.
        accelerator_type: type of the GPUs, as Ray names it; None for any.
    """
    lines = []
    for shape in dict.fromkeys(shapes):
        for words, gpus in (("fine-tuning", gpus_finetune), ("pre-training", gpus_pretrain)):
            request = Request(cpus_per_stage, gpus, accelerator_type)
            if not gpus or not shape.fits(request):
                continue
            by_gpus, by_cpus = shape.stages(request)
            if by_cpus >= by_gpus:
                continue
            enough = math.floor(shape.cpus / by_gpus)
            cure = f"--cpus-per-stage {enough} lets all {by_gpus} run"
            if not enough:
                cure = "use nodes with more CPUs for each GPU"
                if gpus < 1:
                    cure = f"give fewer and larger shares by --gpus-per-finetune, or {cure}"
            on = f"on a node of {counted(shape.cpus, 'CPU')} and {counted(shape.gpus, 'GPU')} the CPUs decide"
            lines.append(
                f"{on}: its GPUs hold {by_gpus} {words}s of {gpus:g} GPU, its CPUs only {by_cpus} with "
                f"--cpus-per-stage {cpus_per_stage:g}, so {by_cpus} run at a time; {cure}"
            )
    return lines


def shapes_of(present: Iterable[Node], growable: Growable) -> list[Shape]:
    """Return the distinct shapes of all nodes that are there or may come."""
    grown = [kind.shape for kind in growable or () if kind.max_count > 0]
    return list(dict.fromkeys([*(node.shape for node in present), *grown]))


def stock(present: Iterable[Node], growable: Growable) -> str:
    """Return the nodes in words: `present 2 x (8 CPU, 1 GPU), may grow worker (8 CPU, 1 GPU) up to 8`."""
    counts = Counter(node.shape for node in present)
    there = " and ".join(f"{count} x {shape}" if count > 1 else f"{shape}" for shape, count in counts.items())
    text = f"present {there or 'none'}"
    if growable is None:
        return f"{text}, what it may grow cannot be known from here"
    kinds = [f"{kind.name} {kind.shape} up to {kind.max_count}" for kind in growable if kind.max_count > 0]
    return text + (f", may grow {' and '.join(kinds)}" if kinds else "")


def _per_gpu(share: float) -> int:
    """Return how many stages with this share fit one GPU; Ray counts shares in ten-thousandths."""
    unit = round(1 / SMALLEST_SHARE)
    return unit // max(1, round(share * unit))


def _whole(number: float) -> int:
    return math.floor(number + 1e-9)
