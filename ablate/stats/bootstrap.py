"""Intervals for a number, or for the difference of two, that cover variation between trainings and between test images.

S seeds, I test images. `ablate.stats.crossed` describes how the intervals are computed, and why so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from ablate.stats.crossed import MISSING_IMAGES, Estimate, SeedReplicates, estimate_of, seed_replicates
from ablate.stats.resamples import Resamples
from ablate.stats.samples import BoolArray, PerImage, all_along, any_along

Seeds: TypeAlias = Literal["independent", "paired"]


def crossed_bootstrap(scores: PerImage, resamples: Resamples, *, arm: int = 0) -> Estimate:
    """Return the mean over seeds with its 95 % crossed-bootstrap interval; see `Estimate`.

    The number is what this initialisation reaches on average over trainings, on images like these. It does not tell
    whether two initialisations differ: overlapping intervals prove nothing, use `paired_difference`.

    Args:
        scores: sums and counts of S seeds on I images. Images that no seed has are left out, seeds without any too.
        resamples: bootstrap counts, shared by all numbers of a data set.
        arm: initialisations with different numbers have their seeds resampled independently of one another.
    """
    measured = scores.measured()
    remark = None if (measured.counts_SI > 0).all() else MISSING_IMAGES
    return estimate_of([(1.0, seed_replicates(measured, resamples), arm)], scores.bounds, remark)


def paired_difference(a: PerImage, b: PerImage, resamples: Resamples, *, seeds: Seeds = "independent") -> Estimate:
    """Return the mean of a minus b with its 95 % crossed-bootstrap interval, on their common images.

    The number is how much the two initialisations differ on average over trainings, on images like these. For
    errors, below 0 means that a is better. Images are always paired: each replicate holds the same images for a and
    b, so that hard images cancel. Variation between pre-trainings is in it only if their seed is an axis.

    With `seeds="independent"` each arm's seeds are resampled on their own: a training that starts from other weights
    is a different training even if the seed has the same number, since only the order of the data and the draws of the
    augmentation agree. If the arms are correlated after all, the interval is too wide, never too narrow. With
    `seeds="paired"` row s of a and row s of b are resampled together: right, and mostly narrower, where the seed also
    draws the annotated images (few_shot: random) and a lucky draw helps both arms; it knows only S - 1 degrees of
    freedom where independent arms know up to 2 (S - 1), and with few seeds and no correlation it is wider
    and covers less (`ablate.stats.coverage`: down to 91 % at 3 seeds).

    Args:
        a: scores of one initialisation, any number of seeds on I images.
        b: scores of the other one on the same I images; for paired seeds also the same seeds, row by row.
        resamples: bootstrap counts.
        seeds: how seeds are resampled.

    Raises:
        ValueError: shapes do not fit together.
    """
    if a.sums_SI.shape[1] != b.sums_SI.shape[1]:
        raise ValueError(f"both must hold the same images; got {a.sums_SI.shape[1]} and {b.sums_SI.shape[1]}")
    if seeds == "paired":
        if a.sums_SI.shape[0] != b.sums_SI.shape[0]:
            raise ValueError(f"paired seeds need the same seeds; got {a.sums_SI.shape[0]} and {b.sums_SI.shape[0]}")
        both_S = _measured_S(a) & _measured_S(b)
        a, b = a.seeds(both_S), b.seeds(both_S)
    else:
        a, b = a.seeds(_measured_S(a)), b.seeds(_measured_S(b))
    common_I = _complete_I(a) & _complete_I(b)
    return _difference(
        seed_replicates(a.images(common_I), resamples), seed_replicates(b.images(common_I), resamples), seeds
    )


def paired_differences(
    arms: Mapping[str, PerImage],
    pairs: Iterable[tuple[str, str]],
    resamples: Resamples,
    *,
    seeds: Seeds = "independent",
) -> list[Estimate]:
    """Return `paired_difference` of each pair of names: the same numbers, in a fraction of the time for many pairs.

    Args:
        arms: name -> scores, all on the same images in the same order.
        pairs: names of a and b.
        resamples: bootstrap counts.
        seeds: see `paired_difference`.
    """
    if seeds == "independent":
        arms = {name: scores.seeds(_measured_S(scores)) for name, scores in arms.items()}
    sharable = all(_complete_I(scores).all() and _measured_S(scores).all() for scores in arms.values())
    if not sharable or len({scores.sums_SI.shape[seeds == "independent" :] for scores in arms.values()}) > 1:
        return [paired_difference(arms[a], arms[b], resamples, seeds=seeds) for a, b in pairs]
    prepared = {name: seed_replicates(scores, resamples) for name, scores in arms.items()}
    return [_difference(prepared[a], prepared[b], seeds) for a, b in pairs]


def _difference(a: SeedReplicates, b: SeedReplicates, seeds: Seeds) -> Estimate:
    unbounded = (-math.inf, math.inf)
    if seeds == "independent":
        return estimate_of([(1.0, a, 0), (-1.0, b, 1)], unbounded)
    both = SeedReplicates(a.point_SM - b.point_SM, a.replicates_RSM - b.replicates_RSM, a.num_images, a.resamples)
    return estimate_of([(1.0, both, 0)], unbounded)


def _measured_S(scores: PerImage) -> BoolArray:  # noqa: N802
    return any_along(scores.counts_SI > 0, axis=1)


def _complete_I(scores: PerImage) -> BoolArray:  # noqa: N802
    return all_along(scores.counts_SI > 0, axis=0)
