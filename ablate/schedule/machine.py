"""What stages run on: GPUs and CPUs, what each kind of stage asks for, and which of them it gets.

Stages are placed as Ray places them: a whole GPU is given out only when it is empty, a share of one goes to the
fullest GPU that has room (Ray's best fit), and shares count in ten-thousandths. Where CPUs are counted, GPUs come in
nodes, and a stage takes all it asks for from one of them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ablate.errors import InputError
from ablate.schedule.fitting import Node, Request, Shape, refuse_unfit
from ablate.schedule.stages import WHOLE, Stage

UNIT = 10_000
"""A GPU, in the smallest share that Ray gives out."""


@dataclass(frozen=True)
class Machine:
    """The GPUs and CPUs that stages run on, and what each kind of stage asks for.

    Raises:
        InputError: a number is out of range, or a stage cannot fit a node; the message names the option of the command.
    """

    gpus: int
    gpus_pretrain: float = 1.0  # also of a whole trial
    gpus_finetune: float = 0.25
    slots: int | None = None  # most stages at a time, such as CPU cores; None for as many as the GPUs hold
    pending: int = 1  # stages that wait for their place at a time; the first of them that fits starts
    cpus_per_gpu: int | None = None  # CPU cores of a node, for each of its GPUs; None: CPUs are not counted
    cpus_per_stage: int = 1
    gpus_per_node: int = 1  # matters where CPUs are counted

    def __post_init__(self) -> None:
        if self.gpus < 0 or (self.slots is not None and self.slots < 1):
            raise InputError(f"--gpus must be at least 0 and --slots at least 1; got {self.gpus} and {self.slots}")
        if self.gpus == 0 and self.slots is None:
            raise InputError(
                "--slots must be given where --gpus is 0: how many stages run at a time, such as CPU cores"
            )
        for flag, gpus in (("pretrain", self.gpus_pretrain), ("finetune", self.gpus_finetune)):
            if not (gpus == 0 or 1 / UNIT <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
                raise InputError(
                    f"--gpus-per-{flag} must be a share of a GPU between 0 and 1 or a whole number; got {gpus:g}"
                )
            if gpus > self.gpus:
                raise InputError(f"--gpus-per-{flag} must be at most --gpus, {self.gpus}; got {gpus:g}")
            if gpus == 0 and self.slots is None and self.cpus_per_gpu is None:
                raise InputError(
                    f"--slots must be given where --gpus-per-{flag} is 0: nothing else limits these stages"
                )
        self._check_nodes()

    def _check_nodes(self) -> None:
        if self.cpus_per_gpu is None:
            if self.cpus_per_stage != 1 or self.gpus_per_node != 1:
                raise InputError(
                    "--cpus-per-gpu must be given for --cpus-per-stage and --gpus-per-node to count, such as "
                    "--cpus-per-gpu 8: the CPU cores of a node for each of its GPUs"
                )
            return
        if self.gpus == 0:
            raise InputError("--cpus-per-gpu must be left out where --gpus is 0; --slots are the CPU cores there")
        numbers = (self.cpus_per_gpu, self.cpus_per_stage, self.gpus_per_node)
        if min(numbers) < 1:
            raise InputError(
                "--cpus-per-gpu, --cpus-per-stage and --gpus-per-node must be at least 1; got "
                + ", ".join(map(str, numbers))
            )
        if self.gpus % self.gpus_per_node:
            raise InputError(
                f"--gpus must be a multiple of --gpus-per-node, {self.gpus_per_node}; got {self.gpus}: nodes are alike"
            )
        node = Node("node", "node", self.node)
        for flag, gpus in (("pretrain", self.gpus_pretrain), ("finetune", self.gpus_finetune)):
            request = Request(self.cpus_per_stage, gpus)
            refuse_unfit(request, flag=f"--gpus-per-{flag}", present=[node], growable=(), where="the plan")

    @property
    def node(self) -> Shape:
        """The shape of a node; all GPUs and unlimited CPUs where CPUs are not counted."""
        if self.cpus_per_gpu is None:
            return Shape(math.inf, self.gpus)
        return Shape(self.cpus_per_gpu * self.gpus_per_node, self.gpus_per_node)

    @property
    def num_nodes(self) -> int:
        """How many nodes there are; one where CPUs are not counted."""
        return 1 if self.cpus_per_gpu is None else self.gpus // self.gpus_per_node

    @property
    def places(self) -> int | None:
        """Most stages at a time, by slots and CPUs; None where neither limits them."""
        cores = None if self.cpus_per_gpu is None else self.num_nodes * self._stages_per_node
        limits = [limit for limit in (self.slots, cores) if limit is not None]
        return min(limits, default=None)

    @property
    def _stages_per_node(self) -> int:
        assert self.cpus_per_gpu is not None
        return self.cpus_per_gpu * self.gpus_per_node // self.cpus_per_stage

    def request(self, stage: Stage) -> int:
        """Return the GPUs that a stage asks for, in units of 1 / UNIT."""
        return round(UNIT * (self.gpus_pretrain if stage.kind in WHOLE else self.gpus_finetune))

    def lanes(self, request: int) -> int:
        """Return how many stages with this request (in units of 1 / UNIT) run at a time."""
        if request == 0:
            assert self.places is not None
            return self.places
        width = int(self.node.gpus)
        fit = width // (request // UNIT) if request >= UNIT else width * (UNIT // request)
        if self.cpus_per_gpu is not None:
            fit = min(fit, self._stages_per_node)
        fit *= self.num_nodes
        return fit if self.slots is None else min(fit, self.slots)


@dataclass(frozen=True)
class Place:
    """The node that a stage runs on, and those of its GPUs that it holds."""

    node: int
    gpus: tuple[int, ...]


class Pool:
    """The nodes that are there, and how much of their GPUs and CPUs and of the slots is free.

    Nodes come and go; nodes and GPUs are numbered in the order in which they come.

    Args:
        cpus_per_stage: CPU cores that every stage takes.
        slots: most stages at a time; None for no limit.
    """

    def __init__(self, cpus_per_stage: float, slots: int | None = None) -> None:
        self._cpus_per_stage = cpus_per_stage
        self._slots = math.inf if slots is None else slots
        self._cpus: dict[int, float] = {}  # free, by node
        self._gpus: dict[int, dict[int, int]] = {}  # free shares, by node and GPU
        self._levels: dict[int, list[tuple[int, int]]] = {}  # free shares -> such GPUs and their nodes, ascending
        self._num_nodes = self._num_gpus = 0  # that ever came

    @classmethod
    def of(cls, machine: Machine) -> Pool:
        """Return the empty nodes of a machine."""
        pool = cls(machine.cpus_per_stage, machine.slots)
        for _ in range(machine.num_nodes):
            pool.add(machine.node)
        return pool

    def copy(self) -> Pool:
        """Return the same nodes with the same stages on them."""
        other = Pool(self._cpus_per_stage)
        other._slots, other._cpus = self._slots, dict(self._cpus)
        other._gpus = {node: dict(gpus) for node, gpus in self._gpus.items()}
        other._levels = {free: list(gpus) for free, gpus in self._levels.items() if gpus}
        other._num_nodes, other._num_gpus = self._num_nodes, self._num_gpus
        return other

    def gpus(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield each node and the numbers of its GPUs."""
        return ((node, tuple(gpus)) for node, gpus in self._gpus.items())

    def add(self, shape: Shape) -> int:
        """Add an empty node; return its number."""
        node, first = self._num_nodes, self._num_gpus
        self._num_nodes, self._num_gpus = node + 1, first + int(shape.gpus)
        self._cpus[node] = shape.cpus
        self._gpus[node] = dict.fromkeys(range(first, self._num_gpus), UNIT)
        self._levels.setdefault(UNIT, []).extend((gpu, node) for gpu in self._gpus[node])
        return node

    def remove(self, node: int) -> None:
        """Take a node away, together with what stages hold of it."""
        for gpu, free in self._gpus[node].items():
            self._levels[free].remove((gpu, node))
        del self._cpus[node], self._gpus[node]

    def take(self, request: int) -> Place | None:
        """Take a stage's GPUs (in units of 1 / UNIT), CPUs and slot; return its place, None if it does not fit now."""
        if self._slots < 1:
            return None
        place = self._whole(request // UNIT) if request >= UNIT else self._share(request)
        if place is not None:
            self._slots -= 1
            self._cpus[place.node] -= self._cpus_per_stage
            for gpu in place.gpus:
                self._change(gpu, place.node, -min(request, UNIT))
        return place

    def _whole(self, num_gpus: int) -> Place | None:
        """Return the first node with so many empty GPUs."""
        empty: dict[int, list[int]] = {}
        for gpu, node in self._levels.get(UNIT, ()):
            if self._cpus[node] >= self._cpus_per_stage:
                found = empty.setdefault(node, [])
                found.append(gpu)
                if len(found) == num_gpus:
                    return Place(node, tuple(found))
        return None

    def _share(self, request: int) -> Place | None:
        """Return the fullest GPU with room for a share; where none is asked for, the node with most free CPUs."""
        if not request:
            node = max(self._cpus, key=lambda node: (self._cpus[node], -node), default=None)
            return None if node is None or self._cpus[node] < self._cpus_per_stage else Place(node, ())
        for free in sorted(level for level in self._levels if level >= request):
            for gpu, node in self._levels[free]:
                if self._cpus[node] >= self._cpus_per_stage:
                    return Place(node, (gpu,))
        return None

    def give_back(self, place: Place, request: int) -> None:
        """Give back a stage's place and slot; only the slot if its node was taken away."""
        self._slots += 1
        if place.node not in self._cpus:
            return
        self._cpus[place.node] += self._cpus_per_stage
        for gpu in place.gpus:
            self._change(gpu, place.node, min(request, UNIT))

    def _change(self, gpu: int, node: int, by: int) -> None:
        free = self._gpus[node][gpu]
        self._levels[free].remove((gpu, node))
        bisect.insort(self._levels.setdefault(free + by, []), (gpu, node))
        self._gpus[node][gpu] = free + by
