"""Average ranks of the initialisations over data sets and shot counts, and the ranks that cannot be told apart.

N blocks (a data set at a shot count), k initialisations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from ablate.stats.samples import FloatArray

RANKS_CAPTION = "Ranks say nothing of how large a difference is."
BLOCKS_CAPTION = (
    "Blocks of the same data set at other shot counts are not independent, so the test is more confident than it "
    "should be."
)


@dataclass(frozen=True)
class RankComparison:
    """Average ranks over blocks, a test that all are equal, and how far ranks must lie apart (Demsar 2006).

    They tell whether there is a consistent order over data sets and shot counts, not how large the differences
    are, and they treat blocks as independent, which shot counts of one data set are not (`BLOCKS_CAPTION`).

    Attributes:
        names: the initialisations, in the order given.
        average_ranks: for each, the mean rank over the blocks, 1 = best; ties share their average.
        test: "friedman" (chi-squared with tie correction) for three or more, "sign" (exact) for two.
        statistic: Friedman's chi-squared; for two, the number of blocks that the first wins; None without a test.
        p_value: that all initialisations are equal; 1 if every block is a tie; None without a test.
        critical_difference: Nemenyi: average ranks further apart than this differ at `alpha`, family-wise; None
            without a test.
        cliques: largest groups whose ranks lie within the critical difference, for the bars of a diagram.
        num_blocks: complete blocks used.
        num_incomplete: blocks left out because an initialisation is missing in them.
        alpha: level of the critical difference.
    """

    names: tuple[str, ...]
    average_ranks: tuple[float, ...]
    test: Literal["friedman", "sign"]
    statistic: float | None
    p_value: float | None
    critical_difference: float | None
    cliques: tuple[tuple[str, ...], ...]
    num_blocks: int
    num_incomplete: int
    alpha: float


def compare_ranks(
    names: Sequence[str],
    scores_Nk: ArrayLike,
    *,
    alpha: float = 0.05,
    higher_is_better: bool = False,
    tested: bool = True,
) -> RankComparison | None:
    """Return average ranks with Friedman's test and Nemenyi's critical difference; see `RankComparison`.

    One block has ranks and no test: it says nothing of other blocks.

    With two initialisations Friedman's test is a sign test with a poor approximation, so the exact sign test is
    used (tied blocks left out). The critical difference for two is Nemenyi's as well.

    Args:
        names: k initialisations.
        scores_Nk: one number per block and initialisation (MRE averaged over seeds), NaN = missing.
        alpha: level of the critical difference.
        higher_is_better: True for SDR, False for errors.
        tested: False where the scores have no right to a test, such as those of one seed.

    Returns:
        None if there are fewer than two initialisations or no complete block.

    Raises:
        ValueError: the shape does not fit the names.
    """
    scores = np.asarray(scores_Nk, np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise ValueError(f"scores must have shape (blocks, {len(names)}); got {scores.shape}")
    complete_N = np.isfinite(scores).all(axis=1)
    kept = scores[complete_N]
    num_blocks, num_names = kept.shape
    if num_names < 2 or num_blocks == 0:
        return None
    ranks_Nk = scipy_stats.rankdata(-kept if higher_is_better else kept, axis=1)
    average_k = ranks_Nk.mean(axis=0)
    statistic: float | None
    p_value: float | None
    if not tested or num_blocks < 2:
        statistic, p_value = None, None
    elif num_names == 2:
        statistic, p_value = _sign_test(ranks_Nk)
    elif (ranks_Nk == ranks_Nk[:, :1]).all():
        statistic, p_value = 0.0, 1.0
    else:
        friedman = scipy_stats.friedmanchisquare(*ranks_Nk.T)
        statistic, p_value = float(friedman.statistic), float(friedman.pvalue)
    difference = None if p_value is None else nemenyi_critical_difference(num_names, num_blocks, alpha)
    return RankComparison(
        names=tuple(names),
        average_ranks=tuple(float(rank) for rank in average_k),
        test="sign" if num_names == 2 else "friedman",
        statistic=statistic,
        p_value=p_value,
        critical_difference=difference,
        cliques=() if difference is None else _cliques(tuple(names), average_k, difference),
        num_blocks=num_blocks,
        num_incomplete=int((~complete_N).sum()),
        alpha=alpha,
    )


@functools.lru_cache(maxsize=256)
def nemenyi_q(num_names: int, alpha: float = 0.05) -> float:
    """Return Nemenyi's q: the studentized range's quantile at infinite degrees of freedom, divided by sqrt(2)."""
    return float(scipy_stats.studentized_range.ppf(1 - alpha, num_names, np.inf)) / math.sqrt(2)


def nemenyi_critical_difference(num_names: int, num_blocks: int, alpha: float = 0.05) -> float:
    """Return how far two average ranks must lie apart to differ: q sqrt(k (k + 1) / (6 N)) (Demsar 2006, eq. 1)."""
    return nemenyi_q(num_names, alpha) * math.sqrt(num_names * (num_names + 1) / (6 * num_blocks))


def _sign_test(ranks_N2: FloatArray) -> tuple[float, float]:
    wins = int((ranks_N2[:, 0] < ranks_N2[:, 1]).sum())
    decided = wins + int((ranks_N2[:, 0] > ranks_N2[:, 1]).sum())
    return float(wins), float(scipy_stats.binomtest(wins, decided).pvalue) if decided else 1.0


def _cliques(names: tuple[str, ...], average_k: FloatArray, difference: float) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two or more, neighbours in rank, that fit into the difference and into no larger group."""
    order = np.argsort(average_k, kind="stable")
    found: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(order)):
        within = average_k[order] - average_k[order[start]] <= difference
        end = int(np.flatnonzero(within)[-1]) + 1
        if end - start > 1 and end > reached:
            found.append(tuple(names[i] for i in order[start:end]))
            reached = end
    return tuple(found)
