"""Statistics of a comparison: pure functions on arrays; each docstring says what its number tells and what it does not.

- `samples`: the scores of each network on each image; mean and standard deviation over seeds
- `bootstrap`: 95 % intervals of means and of differences
- `resamples`, `crossed`: the counts behind them, and the method
- `curves`: SDR curves, landmarks
- `coverage`: how often these intervals hold the truth in simulations
- `two_way`: intervals of paired differences, and p-values
- `comparison`: all pairs with Holm's correction, the best and its peers; Wilcoxon's test over images
- `ranks`: average ranks, Friedman, Nemenyi
- `efficiency`: annotated images needed to reach the same error
- `selection`: choices made on the validation set
"""

from ablate.stats.bootstrap import Seeds, crossed_bootstrap, paired_difference, paired_differences
from ablate.stats.budgets import best_so_far, expected_best
from ablate.stats.comparison import (
    INTERVAL_CAPTION,
    WILCOXON_CAPTION,
    Best,
    Comparison,
    SignedRank,
    adjust_family,
    best_of,
    compare_pairs,
    holm,
    signed_rank,
)
from ablate.stats.coverage import ENOUGH_REPEATS, MOST_CLAIMS, coverage_note, tuned_claims
from ablate.stats.crossed import Estimate
from ablate.stats.curves import Curve, landmark_curve, sdr_curve
from ablate.stats.efficiency import LabelEfficiency, Shots, label_efficiency
from ablate.stats.ranks import (
    BLOCKS_CAPTION,
    RANKS_CAPTION,
    RankComparison,
    compare_ranks,
    nemenyi_critical_difference,
    nemenyi_q,
)
from ablate.stats.resamples import NUM_RESAMPLES, Resamples
from ablate.stats.samples import PerImage, SeedSummary, error_sums, hit_sums, image_means, over_seeds
from ablate.stats.selection import Selection, select_by_validation

__all__ = [
    "BLOCKS_CAPTION",
    "ENOUGH_REPEATS",
    "INTERVAL_CAPTION",
    "MOST_CLAIMS",
    "NUM_RESAMPLES",
    "RANKS_CAPTION",
    "WILCOXON_CAPTION",
    "Best",
    "Comparison",
    "Curve",
    "Estimate",
    "LabelEfficiency",
    "PerImage",
    "RankComparison",
    "Resamples",
    "SeedSummary",
    "Seeds",
    "Selection",
    "Shots",
    "SignedRank",
    "adjust_family",
    "best_of",
    "best_so_far",
    "compare_pairs",
    "compare_ranks",
    "coverage_note",
    "crossed_bootstrap",
    "error_sums",
    "expected_best",
    "hit_sums",
    "holm",
    "image_means",
    "label_efficiency",
    "landmark_curve",
    "nemenyi_critical_difference",
    "nemenyi_q",
    "over_seeds",
    "paired_difference",
    "paired_differences",
    "sdr_curve",
    "select_by_validation",
    "signed_rank",
    "tuned_claims",
]
