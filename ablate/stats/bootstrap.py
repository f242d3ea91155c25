"""Intervals for a number, or for the difference of two, that cover variation between trainings and between test images.

S seeds, U units, I test images. `ablate.stats.crossed` describes the bootstrap behind the intervals of one
initialisation and of differences without pairs, `ablate.stats.two_way` those of differences of pairs, and all p-values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from ablate.stats.crossed import (
    MISSING_IMAGES,
    NO_VALUES,
    NO_VARIATION,
    ONE_SEED_ONE_IMAGE,
    Estimate,
    SeedReplicates,
    estimate_of,
    note_on,
    seed_replicates,
)
from ablate.stats.resamples import Resamples
from ablate.stats.samples import BoolArray, FloatArray, IntArray, PerImage, all_along, any_along
from ablate.stats.two_way import unit_values, variances_of

Seeds: TypeAlias = Literal["drawn", "independent", "paired"]


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


def paired_difference(a: PerImage, b: PerImage, resamples: Resamples, *, seeds: Seeds = "drawn") -> Estimate:
    """Return the mean of a minus b with its 95 % interval and p-value, on their common images.

    The number is how much the two initialisations differ on average over trainings, on images like these. For
    errors, below 0 means that a is better. Images are always paired, so that hard images cancel. Variation between
    pre-trainings is in it only if their seed varies.

    What equal seeds share: the order of the images, the draws of the augmentation and of dropout, the weights that
    no pre-training sets (on the same network the decoder's and the output layer's, from scratch all of them) and,
    where the seed draws them (few_shot: random), the annotated images. Only the last makes pairs: a lucky draw helps
    both. That the rest is shared is not used, since trainings that start from other weights soon go their own ways.
    If the arms are correlated through it after all, the interval of independent arms is too wide, never too narrow.

    - "drawn": the units of both that were trained on the same draw of the annotated images (`PerImage.draws_S`) are
      paired: by the draw, or by the pre-training where each of them has several draws. Where nothing was drawn, or
      fewer than two draws are common, the arms are independent.
    - "independent": each arm's units are resampled on their own, by the crossed bootstrap.
    - "paired": row s of a and row s of b belong together.

    The interval of pairs is that of `ablate.stats.two_way`. It knows only U - 1 degrees of freedom where independent
    arms know up to 2 (U - 1), and is mostly narrower nevertheless.

    Args:
        a: scores of one initialisation, any number of seeds on I images.
        b: scores of the other one on the same I images; for paired seeds also the same seeds, row by row.
        resamples: bootstrap counts.
        seeds: how seeds belong together.

    Raises:
        ValueError: shapes do not fit together.
    """
    if a.sums_SI.shape[1] != b.sums_SI.shape[1]:
        raise ValueError(f"both must hold the same images; got {a.sums_SI.shape[1]} and {b.sums_SI.shape[1]}")
    if seeds == "paired":
        if a.sums_SI.shape[0] != b.sums_SI.shape[0]:
            raise ValueError(f"paired seeds need the same seeds; got {a.sums_SI.shape[0]} and {b.sums_SI.shape[0]}")
        both_S = _measured_S(a) & _measured_S(b)
        return _difference_of_pairs(a.seeds(both_S), replace(b, clusters_S=a.clusters_S).seeds(both_S))
    a, b = a.seeds(_measured_S(a)), b.seeds(_measured_S(b))
    if seeds == "drawn" and (pairs := _pairs(a, b)) is not None:
        return _difference_of_pairs(*pairs)
    common_I = _complete_I(a) & _complete_I(b)
    a, b = a.images(common_I), b.images(common_I)
    return _difference(seed_replicates(a, resamples), seed_replicates(b, resamples), _unit_values(a), _unit_values(b))


def paired_differences(
    arms: Mapping[str, PerImage],
    pairs: Iterable[tuple[str, str]],
    resamples: Resamples,
    *,
    seeds: Seeds = "drawn",
) -> list[Estimate]:
    """Return `paired_difference` of each pair of names: the same numbers, in a fraction of the time for many pairs.

    Args:
        arms: name -> scores, all on the same images in the same order.
        pairs: names of a and b.
        resamples: bootstrap counts.
        seeds: see `paired_difference`.
    """
    arms = arms if seeds == "paired" else {name: scores.seeds(_measured_S(scores)) for name, scores in arms.items()}
    complete = {name: bool(_complete_I(scores).all()) for name, scores in arms.items()}
    prepared: dict[str, tuple[SeedReplicates, FloatArray]] = {}
    found = []
    for a, b in pairs:
        paired = seeds == "paired" or (seeds == "drawn" and _pairs(arms[a], arms[b]) is not None)
        if paired or not (complete[a] and complete[b]):
            found.append(paired_difference(arms[a], arms[b], resamples, seeds=seeds))
            continue
        for name in (a, b):
            if name not in prepared:
                prepared[name] = seed_replicates(arms[name], resamples), _unit_values(arms[name])
        found.append(_difference(prepared[a][0], prepared[b][0], prepared[a][1], prepared[b][1]))
    return found


def _difference(a: SeedReplicates, b: SeedReplicates, values_a_UI: FloatArray, values_b_UI: FloatArray) -> Estimate:
    """Return the difference of independent arms."""
    estimate = replace(estimate_of([(1.0, a, 0), (-1.0, b, 1)], (-math.inf, math.inf)), kind="unpaired")
    if estimate.lower is None or estimate.num_seeds < 2 or estimate.num_images < 2:
        return estimate
    p_value = variances_of(values_a_UI, values_b_UI).p_values_P(estimate.value or 0.0)
    return replace(estimate, p_value=float(p_value))


def _difference_of_pairs(a: PerImage, b: PerImage) -> Estimate:
    """Return the difference of arms whose units, in order, belong together."""
    common_I = _complete_I(a) & _complete_I(b)
    values_a_UI, values_b_UI = _unit_values(a.images(common_I)), _unit_values(b.images(common_I))
    differences_UI = values_a_UI - values_b_UI
    num_units, num_images = differences_UI.shape
    note = note_on([num_units], num_images)
    empty = np.empty(0)
    if note == NO_VALUES:
        return Estimate(None, None, None, None, None, num_units, num_images, note, empty, "paired")
    value = float(differences_UI.mean())
    if note == ONE_SEED_ONE_IMAGE:
        return Estimate(value, None, None, None, None, num_units, num_images, note, empty, "paired")
    found = variances_of(differences_UI)
    seeds, images, interaction = (float(u) for u in (found.seeds_P, found.images_P, found.interaction_P))
    se_seeds = math.sqrt(max(seeds - interaction, 0.0)) if num_units > 1 else None
    se_images = math.sqrt(images)
    size = max(float(np.abs(values_a_UI).max()), float(np.abs(values_b_UI).max()))
    if math.sqrt(seeds + images) <= 1e-12 * size:  # nothing but rounding
        note = NO_VARIATION
        return Estimate(value, None, None, se_seeds, se_images, num_units, num_images, note, empty, "paired")
    half = float(found.half_widths_P())
    p_value = float(found.p_values_P(value)) if note is None else None
    return Estimate(
        value, value - half, value + half, se_seeds, se_images, num_units, num_images, note, empty, "paired", p_value
    )


def _pairs(a: PerImage, b: PerImage) -> tuple[PerImage, PerImage] | None:
    """Return both with the rows of the units that belong together, which are their clusters; None: independent."""
    keys = [_keys(scores) for scores in (a, b)]
    if keys[0] is None or keys[1] is None or keys[0][0] != keys[1][0]:
        return None
    (_, keys_a), (_, keys_b) = keys[0], keys[1]
    common = np.intersect1d(keys_a, keys_b)
    if common.size < 2:
        return None
    keyed = (replace(a, clusters_S=keys_a), replace(b, clusters_S=keys_b))
    return keyed[0].seeds(np.isin(keys_a, common)), keyed[1].seeds(np.isin(keys_b, common))


def _keys(scores: PerImage) -> tuple[bool, IntArray] | None:
    """Return whether the draw tells the units apart, and what does: the draw or the unit; None: nothing is drawn."""
    if scores.draws_S is None:
        return None
    if scores.clusters_S is None:
        return True, scores.draws_S
    pairs = set(zip(scores.clusters_S.tolist(), scores.draws_S.tolist(), strict=True))
    one_to_one = len(pairs) == len(set(scores.clusters_S.tolist())) == len(set(scores.draws_S.tolist()))
    return one_to_one, scores.draws_S if one_to_one else scores.clusters_S


def _unit_values(scores: PerImage) -> FloatArray:
    return unit_values(scores) if scores.sums_SI.size else np.empty(scores.sums_SI.shape)


def _measured_S(scores: PerImage) -> BoolArray:  # noqa: N802
    return any_along(scores.counts_SI > 0, axis=1)


def _complete_I(scores: PerImage) -> BoolArray:  # noqa: N802
    return all_along(scores.counts_SI > 0, axis=0)
