"""Comparisons of initialisations in pairs, corrected for the number of pairs, and the best with its peers.

S seeds, I test images, P comparisons in a family.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from ablate.stats.bootstrap import Seeds, paired_differences
from ablate.stats.crossed import CONFIDENCE, Estimate
from ablate.stats.resamples import Resamples
from ablate.stats.samples import FloatArray, PerImage

WILCOXON_CAPTION = (
    "Wilcoxon's signed-rank test over images compares these trained networks on other images and says nothing about "
    "variation between trainings; it is in the CSV alone."
)
INTERVAL_CAPTION = "Intervals leave out pre-training variance unless pretrain.seed varies."


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test over test images: whether these trained networks differ on other images like these.

    It does not tell whether the initialisations differ: with other seeds the same two initialisations give other
    networks, and for equal initialisations whose networks differ by chance the test rejects far more often than
    5 % (14 % to 83 % of pairs in the simulations of `tests/benchmarks/false_alarms.py`). No report marks anything by
    it.

    Attributes:
        p_value: two-sided; NaN with no common image.
        effect: matched-pairs rank-biserial correlation (Kerby 2014), (W+ - W-) / (W+ + W-) over a - b: +1 where a has
            the larger error on every image, -1 where b has, 0 where the ranks balance; NaN with no common image.
        num_images: common images.
        num_zeros: of these, images on which both have exactly the same value; left out of the ranks.
    """

    p_value: float
    effect: float
    num_images: int
    num_zeros: int


def signed_rank(a_I: ArrayLike, b_I: ArrayLike) -> SignedRank:
    """Return Wilcoxon's signed-rank test of a - b with its effect size; see `SignedRank` for what it tells.

    Images where both are equal are dropped before ranking (Wilcoxon's own treatment, scipy's "wilcox"); if all are,
    p is 1 and the effect 0. Ties get average ranks. scipy chooses the exact distribution up to 50 images without
    ties and the normal approximation with tie correction otherwise.

    Args:
        a_I: one value per test image, averaged over seeds (`PerImage.seed_mean_I`); NaN = missing.
        b_I: the same images for the other initialisation.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = np.asarray(a_I, np.float64), np.asarray(b_I, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"both must hold one value per image; got shapes {a.shape} and {b.shape}")
    difference = a - b
    difference = difference[np.isfinite(difference)]
    nonzero = difference[difference != 0]
    num_images, num_zeros = difference.size, difference.size - nonzero.size
    if num_images == 0:
        return SignedRank(float("nan"), float("nan"), 0, 0)
    if nonzero.size == 0:
        return SignedRank(1.0, 0.0, num_images, num_zeros)
    ranks = scipy_stats.rankdata(np.abs(nonzero))
    effect = float((ranks * np.sign(nonzero)).sum() / ranks.sum())
    p_value = float(scipy_stats.wilcoxon(nonzero, zero_method="wilcox", alternative="two-sided").pvalue)
    return SignedRank(p_value, effect, num_images, num_zeros)


def holm(p_values_P: ArrayLike) -> FloatArray:
    """Return Holm's adjusted p-values (1979): what is below 0.05 holds at a family-wise error of 5 %.

    They tell which of these comparisons stand when all of them are looked at. The guarantee is for the family
    given, not for comparisons shown elsewhere, and it holds under any dependence. NaN (not testable) stays NaN and
    does not count for the family's size.

    Args:
        p_values_P: raw p-values.
    """
    p_values = np.asarray(p_values_P, np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    stepped = np.maximum.accumulate(p_values[order] * np.arange(order.size, 0, -1))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """Two initialisations at the same data set and shots.

    Attributes:
        a: name of the first.
        b: name of the second.
        difference: mean of a minus b with its interval and p-value.
        p_holm: its p-value after Holm's correction over the family; NaN where it was not tested.
        family_size: number of tests in that family.
    """

    a: str
    b: str
    difference: Estimate
    p_holm: float = float("nan")
    family_size: int = 0

    @property
    def tested(self) -> bool:
        """Whether there is a test: not with one seed or one test image, which say nothing of others."""
        return self.difference.p_value is not None

    @property
    def differs(self) -> bool:
        """Whether the two differ: p < 0.05 after the correction, and the interval leaves out 0."""
        return self.tested and self.p_holm < 1 - CONFIDENCE and self.difference.excludes_zero


def compare_pairs(
    arms: Mapping[str, PerImage],
    resamples: Resamples,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    seeds: Seeds = "drawn",
) -> tuple[Comparison, ...]:
    """Compare every pair of initialisations; the pairs are the family of Holm's correction.

    Each pair has its `paired_difference`. The intervals are not corrected for looking at many pairs; the p-values
    are. Where more comparisons are shown together, pass them all to `adjust_family`.

    Args:
        arms: name -> scores, all on the same images in the same order.
        resamples: bootstrap counts.
        pairs: names of a and b; default: every two.
        seeds: see `paired_difference`.
    """
    pairs = list(itertools.combinations(arms, 2)) if pairs is None else pairs
    differences = paired_differences(arms, pairs, resamples, seeds=seeds)
    return adjust_family([Comparison(a, b, found) for (a, b), found in zip(pairs, differences, strict=True)])


def adjust_family(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Return the same comparisons with Holm's correction over all of them: the family is what is shown together."""
    p_values = [comparison.difference.p_value for comparison in comparisons]
    adjusted = holm([float("nan") if p is None else p for p in p_values])
    size = sum(p is not None for p in p_values)
    return tuple(
        replace(comparison, p_holm=float(p), family_size=size)
        for comparison, p in zip(comparisons, adjusted, strict=True)
    )


@dataclass(frozen=True)
class Best:
    """The best of several initialisations, and what the tests say of the others.

    Attributes:
        name: with the lowest (or highest) value; None if nothing was measured, or there is nothing to compare.
        not_worse: others that were tested against it and do not differ.
        untested: others without such a test, such as those with one seed.
    """

    name: str | None
    not_worse: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()


def best_of(arms: Mapping[str, PerImage], comparisons: Sequence[Comparison], *, higher_is_better: bool = False) -> Best:
    """Return the best initialisation and those that do not differ from it.

    They are the rows of a table that must not be read as losers. "Not worse" is absence of evidence, not evidence
    that they are equal. The best is picked from the same numbers, so the family of the correction must hold every
    pair it could have been a part of: all pairs, not those with the best.

    Args:
        arms: name -> scores, all on the same images; ties go to the first.
        comparisons: of every pair of them, corrected over what is shown together.
        higher_is_better: True for SDR, False for errors.
    """
    sign = -1.0 if higher_is_better else 1.0
    means = {
        name: np.nanmean(values) for name, scores in arms.items() if np.isfinite(values := scores.values_S()).any()
    }
    if not means:
        return Best(None)
    best = min(means, key=lambda name: sign * float(means[name]))
    found = {other: each for each in comparisons for other in _other(each, best) if other in means}
    tested = [name for name in means if name in found and found[name].tested]
    return Best(
        best,
        tuple(name for name in tested if not found[name].differs),
        tuple(name for name in means if name != best and name not in tested),
    )


def _other(comparison: Comparison, name: str) -> tuple[str, ...]:
    """Return what a comparison compares with `name`; nothing if it is about others."""
    pair = (comparison.a, comparison.b)
    return tuple(other for other in pair if other != name) if name in pair else ()
