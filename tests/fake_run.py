"""A generated run: tables with plausible numbers and pictures, without any training."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from ablate import tables
from ablate.space import TrialSpec
from ablate.store import Store

WIDTH, HEIGHT = 193, 240  # of the generated radiographs' originals, at 1 mm per pixel
QUALITY = {"ddpm": 0.8, "mocov3": 0.95, "simclrv2": 1.0, "imagenet": 0.9, "scratch": 1.2}
THRESHOLDS = (2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True)
class Shape:
    """Size of a generated test set."""

    num_images: int = 12
    num_landmarks: int = 5
    unit: str = "mm"
    duplicates: int = 3


def specs(
    *,
    datasets: Sequence[str] = ("cephalo",),
    methods: Sequence[str] = ("ddpm", "mocov3", "scratch"),
    shots: Sequence[int | str] = (5, 10, "all"),
    seeds: Sequence[int] = (0, 1, 2),
    pretrain: Mapping[str, Any] | None = None,
) -> list[TrialSpec]:
    return [
        TrialSpec.model_validate(
            {
                "dataset": dataset,
                "image_size": 64,
                "shots": shot,
                "seed": seed,
                "pretrain": {"method": method, **(pretrain or {})},
                "network": {"kind": "encoder" if method == "imagenet" else "unet"},
            }
        )
        for dataset in datasets
        for method in methods
        for shot in shots
        for seed in seeds
    ]


def write_fake_run(
    folder: Path,
    trials: Sequence[TrialSpec],
    *,
    shapes: Mapping[str, Shape] | None = None,
    failed: Sequence[int] = (),
    missing: Sequence[int] = (),
    pictures: bool = True,
    curves: bool = True,
    run_yaml: bool = True,
    shift: float = 0.0,
) -> Store:
    """Write a run of `trials`; `failed` and `missing` are positions in it. `shift` is added to every error."""
    store = Store.open(folder)
    shapes = dict(shapes or {})
    for name in dict.fromkeys(spec.dataset for spec in trials):
        shapes.setdefault(name, Shape())
    truths = {name: _truth(shape) for name, shape in shapes.items()}
    for position, spec in enumerate(trials):
        if position in missing:
            continue
        shape = shapes[spec.dataset]
        row = tables.blank("trials") | tables.spec_columns(spec) | _common(spec, position)
        if position in failed:
            row |= {"status": "failed", "error": "ValueError: loss is <b>nan</b> & nothing else", "unit": shape.unit}
        else:
            errors = _errors(spec, shape, truths[spec.dataset], shift)
            row |= _metrics(errors, shape)
            write_errors(store, spec.trial_id, errors)
        if curves:
            _write_curves(store, spec)
        tables.write_rows(store, "trials", spec.trial_id, [row])
        tables.write_rows(store, "stages", tables.stage_part("finetune", spec.trial_id, "a"), [_stage(spec)])
    for key, spec in {spec.pretrain_key: spec for spec in trials if spec.pretrain_key}.items():
        stage = _stage(spec) | {"kind": "pretrain", "trial_id": None, "gpus": 1.0, "seconds": 600.0}
        tables.write_rows(store, "stages", tables.stage_part("pretrain", str(key), "a"), [stage])
    if run_yaml:
        described = {
            "name": "fake",
            "description": "A generated run",
            "sessions": [
                {
                    "started_at": "2025-01-01T00:00:00+00:00",
                    "command": "ablate run --grid fake",
                    "ablate": "0.1.0",
                    "git_revision": "0123456789abcdef",
                    "versions": {"torch": "2.14.1"},
                }
            ],
            "trials": [{"trial_id": spec.trial_id, **spec.model_dump(mode="json")} for spec in trials],
            "data": {
                name: {
                    "unit": shape.unit,
                    "fingerprint": "00112233aabbccdd",
                    "num_landmarks": shape.num_landmarks,
                    "counts": {"train": 50, "val": 10, "test": shape.num_images},
                    "duplicates": image_names(shape)[: shape.duplicates],
                }
                for name, shape in shapes.items()
            },
        }
        store.write("run.yaml", yaml.safe_dump(described, sort_keys=False).encode())
    if pictures:
        for name, shape in shapes.items():
            _write_pictures(store, name, shape)
        for key in {spec.pretrain_key for spec in trials if spec.method == "ddpm"}:
            store.write(f"pictures/ddpm/{key}.png", _png(np.random.default_rng(1).integers(0, 255, (64, 512))))
    return store


def image_names(shape: Shape) -> list[str]:
    return [f"{number:03d}.jpg" for number in range(shape.num_images)]


def _truth(shape: Shape) -> np.ndarray:
    generator = np.random.default_rng(7)
    return generator.uniform([30, 30], [WIDTH - 30, HEIGHT - 30], (shape.num_images, shape.num_landmarks, 2))


def _errors(spec: TrialSpec, shape: Shape, truth_NK2: np.ndarray, shift: float) -> dict[str, np.ndarray]:
    shots = 100 if spec.shots == "all" else int(spec.shots)
    generator = np.random.default_rng([sum(map(ord, spec.method)), spec.seed, shots, sum(map(ord, spec.dataset))])
    images = np.random.default_rng(3)
    image_N1 = images.lognormal(0, 0.25, (shape.num_images, 1))
    landmark_1K = images.lognormal(0, 0.4, (1, shape.num_landmarks))
    level = 8 * QUALITY.get(spec.method, 1.0) * shots**-0.35 * generator.lognormal(0, 0.04)
    radius_NK = level * image_N1 * landmark_1K * np.sqrt(generator.chisquare(2, truth_NK2.shape[:2]) / 1.6) + shift
    angle_NK = generator.uniform(0, 2 * np.pi, truth_NK2.shape[:2])
    offset_NK2 = radius_NK[..., None] * np.stack([np.cos(angle_NK), np.sin(angle_NK)], axis=-1)
    return {"truth": truth_NK2, "predicted": truth_NK2 + offset_NK2, "error": radius_NK}


def write_errors(store: Store, trial_id: str, errors: Mapping[str, np.ndarray]) -> None:
    """Write the rows of one trial column by column, as `tables.write_rows` would lay them out."""
    error_NK = errors["error"]
    num_images, num_landmarks = error_NK.shape
    names = np.array([f"{number:03d}.jpg" for number in range(num_images)], dtype=object)
    flat = {
        "trial_id": np.full(error_NK.size, trial_id, dtype=object),
        "image": np.repeat(names, num_landmarks),
        "landmark": np.tile(np.arange(num_landmarks, dtype=np.int16), num_images),
        "x_true": errors["truth"][..., 0].ravel(),
        "y_true": errors["truth"][..., 1].ravel(),
        "x_pred": errors["predicted"][..., 0].ravel(),
        "y_pred": errors["predicted"][..., 1].ravel(),
        "error": error_NK.ravel(),
        "error_paper": error_NK.ravel().round(),
    }
    sink = pa.BufferOutputStream()
    schema = tables.TABLES["errors"]
    pq.write_table(pa.table([pa.array(flat[c.name], c.type) for c in schema], schema=schema), sink)
    store.write(tables.part_path("errors", trial_id), sink.getvalue().to_pybytes())


def _metrics(errors: Mapping[str, np.ndarray], shape: Shape) -> dict[str, object]:
    radius = errors["error"]
    rates = [{"threshold": t, "rate": float((radius <= t).mean())} for t in THRESHOLDS]
    return {
        "status": "finished",
        "unit": shape.unit,
        "mre": float(radius.mean()),
        "mre_median": float(np.median(radius)),
        "mre_std": float(radius.std()),
        "sdr": rates,
        "paper_mre": float(radius.round().mean()),
        "paper_sdr": rates,
        "val_loss": 0.1,
        "val_mre": float(radius.mean() * 1.05),
    }


def _common(spec: TrialSpec, position: int) -> dict[str, object]:
    start = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=position)
    return {
        "status": "finished",
        "best_epoch": 40,
        "epochs": 60,
        "pretrain_seconds": 500.0 if spec.pretrain_key else None,
        "pretrain_shared": bool(spec.pretrain_key),
        "finetune_seconds": 60.0,
        "evaluate_seconds": 2.0,
        "parameters": 640_000,
        "peak_memory_bytes": 2**30,
        "device": "cpu",
        "node": "node-1",
        "started_at": start,
        "finished_at": start + timedelta(seconds=60),
        "ablate_version": "0.1.0",
        "torch_version": "2.14.1",
        "git_revision": "0123456789abcdef",
    }


def _stage(spec: TrialSpec) -> dict[str, object]:
    return tables.blank("stages") | {
        "kind": "finetune",
        "pretrain_key": spec.pretrain_key,
        "trial_id": spec.trial_id,
        "from_step": 0,
        "to_step": 100,
        "seconds": 62.0,
        "gpus": 0.25,
        "images_per_second": 42.0,
        "peak_memory_bytes": 2**30,
        "node": "node-1",
        "outcome": "finished",
    }


def _write_curves(store: Store, spec: TrialSpec) -> None:
    epochs = np.arange(1, 21)
    rows = []
    for metric, factor in (("loss", 1.0), ("val_loss", 1.2)):
        for epoch in epochs:
            rows.append({
                "trial_id": spec.trial_id, "pretrain_key": None, "phase": "finetune", "step": int(epoch) * 2,
                "epoch": int(epoch), "metric": metric, "value": float(factor * QUALITY.get(spec.method, 1) / epoch),
                "seconds": float(epoch),
            })  # fmt: skip
    tables.write_rows(store, "curves", spec.trial_id, rows)
    if spec.pretrain_key and not store.exists(tables.part_path("curves", spec.pretrain_key)):
        tables.write_rows(store, "curves", spec.pretrain_key, [
            {
                "trial_id": None, "pretrain_key": spec.pretrain_key, "phase": "pretrain", "step": step, "epoch": None,
                "metric": "loss", "value": 1.0 / (1 + step / 100), "seconds": float(step),
            }
            for step in range(50, 1001, 50)
        ])  # fmt: skip


def _write_pictures(store: Store, dataset: str, shape: Shape) -> None:
    folder = f"pictures/{dataset}"
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    index = {}
    for number, name in enumerate(image_names(shape)):
        pixels = 120 + 80 * np.sin((columns + 3 * number) / 20) * np.cos(rows / 25)
        out = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(out, "JPEG", quality=60)
        store.write(f"{folder}/{name}.jpg", out.getvalue())
        index[name] = {"width": WIDTH, "height": HEIGHT, "duplicate": number < shape.duplicates}
    store.write(f"{folder}/index.json", json.dumps(index).encode())


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()
