"""CPUs, GPUs and Ray's name of the accelerator for the machine types of three clouds.

No cloud's client library tells this without a network. A type that is missing here can be described in the cluster
file: `metadata: {machine_types: {NAME: {cpus: 8, gpus: 1, accelerator: L40S}}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ablate.words import counted

GOOGLE_CARDS = {
    "nvidia-tesla-t4": "T4",
    "nvidia-tesla-v100": "V100",
    "nvidia-tesla-p100": "P100",
    "nvidia-l4": "L4",
    "nvidia-tesla-a100": "A100",
    "nvidia-a100-80gb": "A100",
    "nvidia-h100-80gb": "H100",
    "nvidia-h100-mega-80gb": "H100",
    "nvidia-h200-141gb": "H200",
    "nvidia-rtx-pro-6000": "RTX-PRO-6000",
}
"""The accelerator's name in Ray by Google's (cloud.google.com/compute/docs/gpus)."""


@dataclass(frozen=True)
class Machine:
    """What a machine of one type has."""

    cpus: int
    gpus: int = 0
    accelerator: str | None = None  # as Ray names it: the `X` of the resource `accelerator_type:X`

    def __str__(self) -> str:
        gpus = f"{counted(self.gpus, 'GPU')} of type {self.accelerator}" if self.gpus else "no GPU"
        return f"{counted(self.cpus, 'CPU')} and {gpus}"


def _aws() -> dict[str, Machine]:
    """Return the machines with NVIDIA GPUs; data of EC2's DescribeInstanceTypes, as moto 5.2 carries it."""
    one = {"xlarge": 1, "2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "16xlarge": 1}
    wide = {**one, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8}
    two = {"2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "12xlarge": 2, "24xlarge": 4, "48xlarge": 8}
    families: dict[str, tuple[str, dict[str, int]]] = {
        "g4dn": ("T4", {**one, "12xlarge": 4}),
        "g5": ("A10G", wide),
        "g6": ("L4", wide),
        "gr6": ("L4", {"4xlarge": 1, "8xlarge": 1}),
        "g6e": ("L40S", wide),
        "g7e": ("RTX-PRO-6000", two),
        "p4d": ("A100", {"24xlarge": 8}),
        "p4de": ("A100", {"24xlarge": 8}),
        "p5": ("H100", {"4xlarge": 1, "48xlarge": 8}),
        "p5e": ("H200", {"48xlarge": 8}),
        "p5en": ("H200", {"48xlarge": 8}),
        "p6-b200": ("B200", {"48xlarge": 8}),
    }
    return {
        f"{family}.{size}": Machine(_aws_cpus(size), gpus, card)
        for family, (card, sizes) in families.items()
        for size, gpus in sizes.items()
    }


def _aws_cpus(size: str) -> int:
    """Return the vCPUs of a size: 4 for each `xlarge`, 2 below."""
    times = re.fullmatch(r"(\d*)xlarge", size)
    return 4 * int(times.group(1) or 1) if times else 2


def _gcp() -> dict[str, Machine]:
    """Return the machines with GPUs built in (cloud.google.com/compute/docs/accelerator-optimized-machines)."""
    table = {
        f"g2-standard-{cpus}": Machine(cpus, gpus, "L4")
        for cpus, gpus in {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}.items()
    }
    table |= {
        f"g4-standard-{cpus}": Machine(cpus, gpus, "RTX-PRO-6000")
        for cpus, gpus in {48: 1, 96: 2, 192: 4, 384: 8}.items()
    }
    for gpus in (1, 2, 4, 8):
        table |= {f"a2-{kind}-{gpus}g": Machine(12 * gpus, gpus, "A100") for kind in ("highgpu", "ultragpu")}
        table[f"a3-highgpu-{gpus}g"] = Machine(26 * gpus, gpus, "H100")
    table["a2-megagpu-16g"] = Machine(96, 16, "A100")
    table["a3-megagpu-8g"] = Machine(208, 8, "H100")
    table["a3-ultragpu-8g"] = Machine(224, 8, "H200")
    return table


def _azure() -> dict[str, Machine]:
    """Return the sizes with whole NVIDIA GPUs (learn.microsoft.com/azure/virtual-machines/sizes, GPU accelerated)."""
    rows = [
        *((f"NC{cpus}as_T4_v3", cpus, gpus, "T4") for cpus, gpus in {4: 1, 8: 1, 16: 1, 64: 4}.items()),
        *((f"NC{cpus}ads_A100_v4", cpus, gpus, "A100") for cpus, gpus in {24: 1, 48: 2, 96: 4}.items()),
        ("NC40ads_H100_v5", 40, 1, "H100"),
        ("NC80adis_H100_v5", 80, 2, "H100"),
        ("ND96asr_v4", 96, 8, "A100"),
        ("ND96amsr_A100_v4", 96, 8, "A100"),
        ("ND96isr_H100_v5", 96, 8, "H100"),
        ("ND96isr_H200_v5", 96, 8, "H200"),
    ]
    return {f"Standard_{name}": Machine(cpus, gpus, card) for name, cpus, gpus, card in rows}


GPU_MACHINES: Mapping[str, Mapping[str, Machine]] = {"aws": _aws(), "gcp": _gcp(), "azure": _azure()}
"""The machines with GPUs by cloud and type."""

_GENERAL = {
    "aws": r"(?:[cmr][5-9](?!g)[a-z]*\.(large|\d*xlarge)|t3a?\.(?:micro|small|medium|large))",
    "gcp": r"(?:n1|n2|n2d|e2|c2|c2d|c3|c3d|n4|c4|t2d)-(?:standard|highmem|highcpu)-(\d+)",
    "azure": r"Standard_[DEF](\d+)[a-z]*_v[2-7]",
}
"""The names of general machines for x86 by cloud; the group holds what tells their CPUs."""


def machine_of(cloud: str, name: str) -> Machine | None:
    """Return what a machine type has, without cards that are attached to it; None for one that is not known here."""
    if name in GPU_MACHINES[cloud]:
        return GPU_MACHINES[cloud][name]
    found = re.fullmatch(_GENERAL[cloud], name)
    if found is None:
        return None
    size = found.group(1)
    return Machine(_aws_cpus(size or "large") if cloud == "aws" else int(size))


def with_cards(machine: Machine, cards: str, count: int) -> Machine:
    """Return a machine of Google's with `count` cards that Google calls `cards` attached to it."""
    return Machine(machine.cpus, count, GOOGLE_CARDS[cards])
