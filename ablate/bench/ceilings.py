"""The most that a device does: products of square random matrices, and copies of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ablate.bench.device import Device
from ablate.bench.parts import mean_seconds
from ablate.schedule.bench_file import Ceiling

Name = Literal["fp32", "tf32", "bf16", "copy"]


@dataclass(frozen=True)
class _Product:
    """How matrices are multiplied."""

    dtype: torch.dtype
    precision: str  # of fp32 products, see `torch.set_float32_matmul_precision`


_PRODUCTS: Mapping[Name, _Product] = {
    "fp32": _Product(torch.float32, "highest"),
    "tf32": _Product(torch.float32, "high"),
    "bf16": _Product(torch.bfloat16, "highest"),
}

SIDE: Mapping[bool, int] = {True: 8192, False: 1024}
"""Side of the matrices, on a GPU and on a CPU: there one core does 1024 x 1024 in some 30 ms."""

COPIED: Mapping[bool, int] = {True: 2**30, False: 2**28}
"""Bytes that are copied, on a GPU and on a CPU: more than any cache holds."""


def names(is_gpu: bool) -> tuple[Name, ...]:
    """Return the ceilings that a device has: TF32 is a GPU's."""
    return ("fp32", "tf32", "bf16", "copy") if is_gpu else ("fp32", "bf16", "copy")


def measure(name: Name, device: Device, seconds: float) -> Ceiling:
    """Measure one ceiling for about so many seconds; a copied byte counts twice, as it is read and written."""
    work, size, amount = _copy(device) if name == "copy" else _product(_PRODUCTS[name], device)
    with _precision(_PRODUCTS[name].precision if name != "copy" else "highest"):
        value = amount / mean_seconds(device, seconds, work)
    return Ceiling(name=name, size=size, unit="B/s" if name == "copy" else "FLOP/s", value=value)


def _product(product: _Product, device: Device) -> tuple[Callable[[], object], int, float]:
    side = SIDE[device.is_gpu]
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(side, side, generator=generator).to(device.torch, product.dtype) for _ in range(2))
    result = torch.empty(side, side, device=device.torch, dtype=product.dtype)
    return lambda: torch.mm(one, other, out=result), side, 2.0 * side**3


def _copy(device: Device) -> tuple[Callable[[], object], int, float]:
    size = COPIED[device.is_gpu]
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device.torch) for _ in range(2))
    return lambda: target.copy_(source), size, 2.0 * size


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def ceiling_of(precision: str, device_kind: str) -> Name:
    """Return the ceiling that networks of a precision are held against: on a GPU convolutions in fp32 take TF32."""
    if precision == "bf16":
        return "bf16"
    return "tf32" if device_kind == "cuda" else "fp32"
