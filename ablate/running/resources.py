"""What each kind of stage asks one node for: decided once, before a run, so that it fits the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ablate.schedule.fitting import (
    ACCELERATOR,
    Growable,
    Node,
    Request,
    Shape,
    decide_gpus,
    doubt_lines,
    shapes_of,
    sharing_lines,
)
from ablate.schedule.machine import Machine
from ablate.schedule.stages import WHOLE, StageKind


@dataclass(frozen=True)
class Resources:
    """What each kind of stage asks one node for."""

    cpus: float = 1.0
    gpus_pretrain: float = 0.0
    gpus_finetune: float = 0.0
    accelerator_type: str | None = None  # as Ray names it, such as H100

    @classmethod
    def decide(
        cls,
        *,
        present: Sequence[Node],
        growable: Growable,
        address: str | None,
        gpus_per_pretrain: float | None,
        gpus_per_finetune: float | None,
        cpus_per_stage: float,
        accelerator_type: str | None,
    ) -> Resources:
        """Return what stages ask for; refuse what no node could ever give.

        Args:
            present: the nodes that are there.
            growable: the types of node that may come; None if that cannot be known.
            address: of the cluster; None for this machine.
            gpus_per_pretrain: as asked for; None for the default of `decide_gpus`.
            gpus_per_finetune: the same for a fine-tuning.
            cpus_per_stage: CPU cores of a stage of either kind.
            accelerator_type: what GPUs must be, as Ray names them; None for any.

        Raises:
            InputError: with the nodes that there are, and the cure.
        """
        gpus_pretrain, gpus_finetune = decide_gpus(
            present=present,
            growable=growable,
            where="this machine" if address is None else f"the cluster at {address}",
            gpus_per_pretrain=gpus_per_pretrain,
            gpus_per_finetune=gpus_per_finetune,
            cpus_per_stage=cpus_per_stage,
            accelerator_type=accelerator_type,
        )
        return cls(cpus_per_stage, gpus_pretrain, gpus_finetune, accelerator_type)

    def gpus(self, kind: StageKind) -> float:
        """Return the GPUs of a kind of stage; a whole trial asks for what its pre-training needs."""
        return self.gpus_pretrain if kind in WHOLE else self.gpus_finetune

    def request(self, kind: StageKind) -> Request:
        """Return what a kind of stage asks one node for."""
        return Request(self.cpus, self.gpus(kind), self.accelerator_type)

    def bundle(self, kind: StageKind) -> dict[str, float]:
        """Return what a kind of stage asks one node for, by Ray's names."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus(kind)}
        if self.accelerator_type is not None and amounts["GPU"]:
            amounts[f"{ACCELERATOR}{self.accelerator_type}"] = 0.001  # a mark that Ray puts on such nodes
        return {name: amount for name, amount in amounts.items() if amount > 0}

    def machine(self, nodes: Iterable[tuple[Shape, int]], max_concurrent: int | None) -> Machine | None:
        """Return what stages run on as the simulator sees it, of so many nodes of each shape; None if none fits."""
        pretrain, finetune = self.request("pretrain"), self.request("finetune")
        usable = [(shape, count) for shape, count in nodes if shape.has(pretrain) and shape.has(finetune)]
        gpus = sum(int(shape.gpus) * count for shape, count in usable) if pretrain.gpus or finetune.gpus else 0
        places = sum(int(shape.cpus // self.cpus) * count for shape, count in usable)
        slots = places if max_concurrent is None else min(places, max_concurrent)
        if slots < 1 or gpus < max(pretrain.gpus, finetune.gpus):
            return None
        return Machine(gpus, pretrain.gpus, finetune.gpus, slots=slots)

    def notes(self, *, present: Sequence[Node], growable: Growable) -> list[str]:
        """Return a line for each request that may fit no node, and for each node whose GPUs idle for want of CPUs."""
        requests = {"pre-training": self.request("pretrain"), "fine-tuning": self.request("finetune")}
        sharing = sharing_lines(
            shapes_of(present, growable),
            gpus_pretrain=self.gpus_pretrain,
            gpus_finetune=self.gpus_finetune,
            cpus_per_stage=self.cpus,
            accelerator_type=self.accelerator_type,
        )
        return [*doubt_lines(requests.items(), present=present, growable=growable), *sharing]
