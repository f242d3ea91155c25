"""The options of a run, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How a search space is run; nothing here changes what a trial computes on a CPU but `cpus_per_stage`.

    `ablate run` has the same defaults.
    """

    out: str
    data_dir: str | None = None  # folder or address
    address: str | None = None
    gpus_per_pretrain: float | None = None  # None: 1 where there is a GPU, else 0
    gpus_per_finetune: float | None = None  # None: 0.25 where there is a GPU, else 0
    cpus_per_stage: int = 1
    accelerator_type: str | None = None  # as Ray names it, such as H100
    max_concurrent: int | None = None
    deterministic: bool = True  # on a GPU
    cuda_graphs: bool = False  # on a GPU
    compiled: bool = False  # on a GPU
    max_failures: int = 3
    checkpoint_minutes: float = 5.0
    store_patience: float = 15.0  # minutes
    share: bool = True
    keep_weights: bool = False
    retry_failed: bool = False
    extend: bool = False  # join a run of another grid, or with trials that this one lacks
    log: tuple[str, ...] = ()  # trackers: tensorboard, mlflow, wandb
