"""What a budget of configurations brings.

N configurations, in the order in which they were tried.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ablate.stats.samples import FloatArray


def best_so_far(values_N: ArrayLike) -> FloatArray:
    """Return the least value of the first 1, 2, ..., N configurations; NaN before the first that has one.

    Args:
        values_N: validation errors; NaN for a configuration without a value.
    """
    found: FloatArray = np.fmin.accumulate(np.asarray(values_N, dtype=np.float64))
    return found


def expected_best(values_N: ArrayLike) -> FloatArray:
    """Return the expected least value of 1, 2, ..., N configurations that are drawn at random.

    Dodge et al. 2019 ("Show your work", section 3) estimate it from N independent draws as if they were drawn with
    replacement, which is biased; this is the unbiased estimator of Tang et al. 2020 ("Showing your work doesn't always
    work", section 3), the mean over all subsets of n of the N draws. Without replacement, the i-th smallest of N is the
    least of n in C(N - i, n - 1) of C(N, n) subsets.

    Args:
        values_N: validation errors of independent draws; one that failed is infinitely bad, or NaN.
    """
    values = np.asarray(values_N, dtype=np.float64)
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    count = len(ordered)
    found = np.empty(count)
    for size in range(1, count + 1):
        weights = np.array([math.comb(count - i, size - 1) for i in range(1, count + 1)]) / math.comb(count, size)
        present = weights > 0
        found[size - 1] = float(np.dot(weights[present], ordered[present]))
    return found
