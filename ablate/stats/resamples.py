"""Bootstrap counts: how often each replicate holds each seed and each test image.

R replicates, S seeds, I test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ablate.stats.samples import FloatArray

NUM_RESAMPLES = 10_000
MOST_COUNTS = 6_000_000  # kept per table: 10 000 replicates of 600 images, 48 MB
_CHUNK_COUNTS = 2_000_000  # counts drawn at once: 16 MB


class Resamples:
    """Bootstrap counts, drawn once and shared: how often replicate r holds seed s, and how often image i.

    All numbers of one data set must use the same object: the same images are then resampled for every
    initialisation, so that their replicates can be subtracted. Tables depend on the generator's state at
    construction and on the size asked for, not on the order of the calls.

    Args:
        generator: one integer is drawn from it.
        num_resamples: R; 10 000 gives each limit a Monte-Carlo error of about 2 % of the standard error.
        most_counts: a table with more counts is not kept but drawn again, in chunks; the counts are the same.
    """

    def __init__(
        self,
        generator: np.random.Generator,
        num_resamples: int = NUM_RESAMPLES,
        *,
        most_counts: int = MOST_COUNTS,
    ) -> None:
        if num_resamples < 1:
            raise ValueError(f"num_resamples must be at least 1; got {num_resamples}")
        self.num_resamples = num_resamples
        self._most_counts = most_counts
        self._entropy = int(generator.integers(2**63))
        self._tables: dict[tuple[int, int], FloatArray] = {}

    def seed_counts_RS(self, num_seeds: int, arm: int = 0) -> FloatArray:  # noqa: N802
        """Return how often each replicate holds each seed; rows sum to `num_seeds`. Arms are independent."""
        return self._table(num_seeds, 1 + arm)

    def image_counts_RI(self, num_images: int) -> FloatArray:  # noqa: N802
        """Return how often each replicate holds each image; rows sum to `num_images`."""
        return self._table(num_images, 0)

    def over_images(self, function: Callable[[FloatArray], FloatArray], num_images: int) -> FloatArray:
        """Return `function(counts_RI)` for all replicates, computed in chunks of rows where the table is large."""
        if self.num_resamples * num_images <= self._most_counts:
            return function(self.image_counts_RI(num_images))
        return np.concatenate([function(counts_RI) for counts_RI in self._chunks(num_images, 0)])

    def _table(self, size: int, stream: int) -> FloatArray:
        table = self._tables.get((size, stream))
        if table is None:
            table = np.concatenate(list(self._chunks(size, stream)))
            if table.size <= self._most_counts:
                if sum(kept.size for kept in self._tables.values()) > 4 * self._most_counts:
                    self._tables.clear()
                self._tables[size, stream] = table
        return table

    def _chunks(self, size: int, stream: int) -> Iterator[FloatArray]:
        generator = np.random.default_rng(np.random.SeedSequence(self._entropy, spawn_key=(stream, size)))
        rows = max(1, _CHUNK_COUNTS // size)
        for start in range(0, self.num_resamples, rows):
            num = min(rows, self.num_resamples - start)
            drawn = generator.integers(size, size=(num, size)) + size * np.arange(num)[:, None]
            yield np.bincount(drawn.ravel(), minlength=num * size).reshape(num, size).astype(np.float64)
