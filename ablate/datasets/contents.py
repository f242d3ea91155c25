"""What labels and file headers tell of a data set: its records and their divisions, and the digest of it all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ablate.datasets.splitting import Division, SplitRule
from ablate.datasets.types import PaperScale, Record, Unit


@dataclass(frozen=True)
class Contents:
    """The records of a data set and what holds for all of them."""

    name: str
    folder: str | None  # as printed, also of an address; None: generated
    num_landmarks: int
    unit: Unit
    sdr_thresholds: tuple[float, ...]
    paper: PaperScale | None
    records: tuple[Record, ...]  # all that are labelled, by sorted name
    divisions: tuple[Division, ...]  # one, or one for each fold
    rule: SplitRule | None = None  # how it is divided; None: as the labels say
    described: bool = False  # it is a user's own
    unlabelled: tuple[Record, ...] = ()  # all images for pre-training alone
    excluded: int = 0  # images left out as in the paper
    left_out: int = 0  # images left out because they have no label
    num_images: int | None = None  # as published
    landmark_names: tuple[str, ...] = ()  # of every landmark, or none
    restore: Callable[[], bool] = lambda: False  # mends files that were damaged since they were fetched, see `Copy`

    @property
    def folds(self) -> int | None:
        """Into how many folds the data set is divided; None: it has no folds."""
        return self.rule.folds if self.rule is not None else None

    @property
    def used(self) -> list[Record]:
        """Every record that some division has, in the order of the first."""
        first = self.divisions[0].ordered
        known = set(map(id, first))
        later = {id(record): record for division in self.divisions[1:] for record in division.ordered}
        return [*first, *(record for key, record in later.items() if key not in known)]


def num_threads() -> int:
    """Threads that decode at once; decoders release the interpreter's lock."""
    return min(4, os.cpu_count() or 1)


def outside_landmarks(record: Record) -> list[str]:
    """Name the landmarks that lie beyond the outer edge of their image's pixels."""
    width, height = record.size
    return [
        f"{record.name} landmark {index} at ({x:.1f}, {y:.1f}) of {width} x {height}"
        for index, (x, y) in enumerate(record.points_K2)
        if x < -0.5 or y < -0.5 or x > width - 0.5 or y > height - 0.5
    ]


def fingerprint_of(contents: Contents) -> str:
    """16 hex digits over pictures, labels to 1e-6 px, splits, scales, unit and thresholds; the same for every fold."""
    first, *others = contents.divisions
    part_of = {id(record): part for record, part in zip(first.ordered, first.parts, strict=True)}
    with ThreadPoolExecutor(num_threads()) as pool:
        digests = list(pool.map(lambda record: record.digest(), contents.used))
    rows = [
        [
            part_of.get(id(record)),
            record.name,
            digest,
            record.size,
            [f"{value:.6f}" for value in record.points_K2.ravel()],
            [f"{value:.9g}" for value in record.unit_per_pixel],
        ]
        for record, digest in zip(contents.used, digests, strict=True)
    ]
    folds = [[[part, record.name] for part, record in zip(other.parts, other.ordered, strict=True)] for other in others]
    described = [contents.unit, contents.sdr_thresholds, rows, *([folds] if folds else [])]
    text = json.dumps(described, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
