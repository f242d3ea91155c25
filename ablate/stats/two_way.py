"""Variances of a difference of means by the two-way analysis of variance, and the intervals and p-values they give.

S units (seeds, or the draws or pre-trainings that several seeds share), I test images, P differences.

The model is `score = mean + unit effect + image effect + interaction`, with variances A, B and E. The mean over all
units and images has the variance A / S + B / I + E / (S I), and of

- `U_seeds` = variance of the units' means / S
- `U_images` = variance of the images' means / I
- `U_interaction` = residual mean square / (S I)

the expectations are A / S + E / (S I), B / I + E / (S I) and E / (S I), so that `U_seeds + U_images - U_interaction` is
unbiased for it. `U_seeds` is known from S - 1 degrees of freedom and gets Student's t for these; what the images add
gets t for I - 1:

    half-width^2 = t(S - 1)^2 U_seeds + t(I - 1)^2 max(0, U_images - U_interaction)

The interaction is taken out of the image part, which is known well, and stays in the seed part, which is not: taking it
out there leaves an estimate that is 0 half of the time where seeds matter little, and an interval that is too short.
Where one part is all there is, this is Student's interval; else it is a little too long (as Cochran's is for two means
with unequal variances). `ablate.stats.coverage` has the coverage that was measured.

For the difference of two independent arms `U_seeds` and `U_interaction` are the sums of theirs, `U_images` is of the
differences of the images' means, and t takes Welch's degrees of freedom for the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ablate.stats.crossed import CONFIDENCE, cluster_shares
from ablate.stats.samples import FloatArray, PerImage

_SMALLEST_P = 1e-12
_HALVINGS = 50


@dataclass(frozen=True, eq=False)
class Variances:
    """What the variance of each of P differences of means is made of; see the module.

    Attributes:
        seeds_P: `U_seeds`; 0 with one unit, which tells nothing of others.
        images_P: `U_images`; 0 with one image.
        interaction_P: `U_interaction`; 0 with one unit or one image.
        degrees_P: degrees of freedom behind `seeds_P`.
        num_images: I.
    """

    seeds_P: FloatArray
    images_P: FloatArray
    interaction_P: FloatArray
    degrees_P: FloatArray
    num_images: int

    def half_widths_P(self, p: ArrayLike = 1 - CONFIDENCE) -> FloatArray:  # noqa: N802 - the shape suffix
        """Return half the width of the intervals that leave out a share `p`."""
        from_seeds_P = _t(self.degrees_P, p) ** 2 * self.seeds_P
        if self.num_images < 2:
            return np.sqrt(from_seeds_P)
        added_P = np.maximum(self.images_P - self.interaction_P, 0.0)
        return np.asarray(np.sqrt(from_seeds_P + _t(self.num_images - 1, p) ** 2 * added_P))

    def p_values_P(self, differences_P: ArrayLike) -> FloatArray:  # noqa: N802
        """Return the share left out by the interval that ends at 0: the two-sided p-value; at least 1e-12."""
        distance_P = np.abs(np.asarray(differences_P, np.float64))
        low_P, high_P = np.full(distance_P.shape, np.log(_SMALLEST_P)), np.zeros(distance_P.shape)
        for _ in range(_HALVINGS):  # the width falls as p grows
            middle_P = (low_P + high_P) / 2
            wider_P = self.half_widths_P(np.exp(middle_P)) > distance_P
            low_P, high_P = np.where(wider_P, middle_P, low_P), np.where(wider_P, high_P, middle_P)
        return np.asarray(np.exp(high_P))


def variances_of(first_PSI: ArrayLike, *others_PSI: ArrayLike) -> Variances:
    """Return the variances of the first mean minus the means of the others, which have units of their own.

    For paired units pass their differences alone.

    Args:
        first_PSI: scores of S units on I images, complete.
        others_PSI: the same, any number of units on the same images.
    """
    arms = [np.asarray(arm, np.float64) for arm in (first_PSI, *others_PSI)]
    num_images = arms[0].shape[-1]
    parts = [_parts(arm) for arm in arms]
    seeds_P = np.asarray(sum(seeds for seeds, _ in parts), np.float64)
    each = [seeds**2 / max(arm.shape[-2] - 1, 1) for (seeds, _), arm in zip(parts, arms, strict=True)]
    squares_P = np.asarray(sum(each), np.float64)
    degrees_P = np.full_like(seeds_P, max(min(arm.shape[-2] for arm in arms) - 1, 1))
    np.divide(seeds_P**2, squares_P, out=degrees_P, where=squares_P > 0)  # Welch and Satterthwaite
    means_PI = arms[0].mean(axis=-2) - sum(arm.mean(axis=-2) for arm in arms[1:])
    images_P = means_PI.var(axis=-1, ddof=1) / num_images if num_images > 1 else np.zeros_like(seeds_P)
    interaction_P = np.asarray(sum(interaction for _, interaction in parts), np.float64)
    return Variances(seeds_P, np.asarray(images_P), interaction_P, degrees_P, num_images)


def _parts(values_PSI: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return `U_seeds` and `U_interaction` of one arm."""
    num_seeds, num_images = values_PSI.shape[-2:]
    if num_seeds < 2:
        nothing_P = np.zeros(values_PSI.shape[:-2])
        return nothing_P, nothing_P
    units_PS = values_PSI.mean(axis=-1)
    seeds_P = np.asarray(units_PS.var(axis=-1, ddof=1) / num_seeds)
    if num_images < 2:
        return seeds_P, np.zeros_like(seeds_P)
    # squares of all deviations from the images' means, less those of the units' means
    within_P = values_PSI.var(axis=-2).sum(axis=-1) * num_seeds - num_images * num_seeds * units_PS.var(axis=-1)
    degrees = (num_seeds - 1) * (num_images - 1)
    return seeds_P, np.maximum(within_P, 0.0) / degrees / (num_seeds * num_images)


def unit_values(scores: PerImage) -> FloatArray:
    """Return the scores of each unit on each image (S, I), whose mean over images is the unit's value.

    A value is a ratio of sums, such as the error over all landmarks of all images. It is made linear in the images
    (the delta method): each image stands at the value plus what it moves the ratio by. Where all images have the same
    number of landmarks this is the image's own mean.

    Args:
        scores: complete; rows of one cluster are averaged.
    """
    counts_SI = scores.counts_SI
    value_S1 = scores.values_S()[:, None]
    moved_SI = (scores.sums_SI - value_S1 * counts_SI) / counts_SI.mean(axis=1, keepdims=True)
    values_SI = np.asarray(value_S1 + moved_SI, np.float64)
    return values_SI if scores.clusters_S is None else np.asarray(cluster_shares(scores.clusters_S).T @ values_SI)


def _t(degrees: ArrayLike, p: ArrayLike) -> FloatArray:
    """Return the quantile of Student's t that |t| exceeds with probability p."""
    tail = np.asarray(p, np.float64) / 2
    return np.asarray(-special.stdtrit(np.asarray(degrees, np.float64), tail), np.float64)
