"""How often the 95 % intervals hold the truth in simulations, and what a report says of it.

S seeds, I test images.

An experiment draws S networks and I images from a model with known truth,
`score = truth + seed effect + image effect + effect of the seed on this image`, and checks whether the interval holds
the truth. Seed effects are normal; image effects and what is particular to a seed on an image are log-normal (shifted
to mean 0), as skewed as radial errors are. The settings differ in the sizes of these effects, in the number of images
(100 where no other is given) and in the number estimated: the mean of one initialisation, or the difference of two that
share the image effects, with or without pairs of seeds. Where the seed effects of one of the two alone are log-normal,
which is in no setting, intervals of pairs hold the truth in 94 % (2 seeds) to 92 % (10).

`python tests/benchmarks/false_alarms.py` measures all of it again.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Measured: TypeAlias = Literal["mean", "unpaired", "paired", "efficiency"]
"""Intervals whose coverage was measured: the kinds of an `Estimate`, and those of label efficiencies."""

EXPERIMENTS = 4_000
EFFICIENCY_EXPERIMENTS = 2_000

COVERAGE: dict[Measured, dict[str, dict[int, float]]] = {
    "mean": {
        # images matter, seeds hardly
        "images": {2: 0.9570, 3: 0.9530, 5: 0.9440, 10: 0.9425, 20: 0.9410},
        # seeds and images matter alike
        "both": {2: 0.9467, 3: 0.9670, 5: 0.9600, 10: 0.9497, 20: 0.9483},
        # seeds matter most, 250 images
        "seeds": {2: 0.9355, 3: 0.9497, 5: 0.9510, 10: 0.9483, 20: 0.9427},
        # 50 images
        "small set": {2: 0.9565, 3: 0.9660, 5: 0.9580, 10: 0.9443, 20: 0.9407},
    },
    "unpaired": {
        # small seed effects
        "difference": {2: 0.9545, 3: 0.9583, 5: 0.9503, 10: 0.9565, 20: 0.9455},
        # the noise of single images half hides the seed effects
        "difference, hard": {2: 0.9435, 3: 0.9545, 5: 0.9503, 10: 0.9545, 20: 0.9483},
        # large seed effects
        "difference, seeds": {2: 0.9630, 3: 0.9595, 5: 0.9587, 10: 0.9530, 20: 0.9473},
    },
    "paired": {
        # no seed effects, the noise of single images alone
        "pairs, noise": {2: 0.9605, 3: 0.9595, 5: 0.9560, 10: 0.9547, 20: 0.9530},
        # small seed effects
        "pairs": {2: 0.9597, 3: 0.9585, 5: 0.9565, 10: 0.9627, 20: 0.9565},
        # seed effects that the noise of single images half hides
        "pairs, hard": {2: 0.9483, 3: 0.9515, 5: 0.9513, 10: 0.9570, 20: 0.9537},
        # large seed effects
        "pairs, seeds": {2: 0.9513, 3: 0.9475, 5: 0.9497, 10: 0.9485, 20: 0.9530},
        # seed effects are nearly all, 250 images
        "pairs, seeds most": {2: 0.9533, 3: 0.9475, 5: 0.9485, 10: 0.9465, 20: 0.9473},
        # initialisations differ on images, seeds hardly matter
        "pairs, images": {2: 0.9832, 3: 0.9740, 5: 0.9605, 10: 0.9507, 20: 0.9553},
        # initialisations differ on images, little else
        "pairs, images most": {2: 0.9868, 3: 0.9670, 5: 0.9513, 10: 0.9487, 20: 0.9535},
        # seeds and images matter alike
        "pairs, both": {2: 0.9855, 3: 0.9768, 5: 0.9610, 10: 0.9525, 20: 0.9535},
        # the same on 50 images
        "pairs, small set": {2: 0.9852, 3: 0.9770, 5: 0.9660, 10: 0.9525, 20: 0.9495},
        # draws matter most and help both, seed effects are log-normal
        "pairs, draws": {2: 0.9688, 3: 0.9725, 5: 0.9695, 10: 0.9540, 20: 0.9577},
    },
    "efficiency": {
        # reached halfway between two numbers of shots
        "middle": {2: 0.9835, 3: 0.9770, 5: 0.9700, 10: 0.9535, 20: 0.9565},
        # the same with large seed effects
        "middle, seeds": {2: 0.9980, 3: 0.9900, 5: 0.9785, 10: 0.9600, 20: 0.9565},
        # reached shortly before the most shots
        "near the most shots": {2: 0.9915, 3: 0.9825, 5: 0.9755, 10: 0.9615, 20: 0.9575},
        # reached shortly after the fewest
        "near the fewest shots": {2: 0.9885, 3: 0.9850, 5: 0.9795, 10: 0.9640, 20: 0.9605},
        # errors that hardly fall with the shots
        "flat curve": {2: 0.9975, 3: 0.9870, 5: 0.9785, 10: 0.9590, 20: 0.9575},
    },
}
"""Interval -> setting -> number of seeds -> share of experiments whose interval held the truth.

Of 4 000 experiments (standard error 0.35 %), of label efficiencies 2 000 (0.5 %). Bootstrap intervals are from 1 000
replicates; the generator is seeded with 0 for each entry."""

TUNED_CLAIMS: dict[int, dict[int, float]] = {
    8: {2: 0.155, 3: 0.323, 5: 0.447, 10: 0.553},
    16: {2: 0.074, 3: 0.125, 5: 0.206, 10: 0.283},
    32: {2: 0.053, 3: 0.074, 5: 0.091, 10: 0.160},
}
"""Configurations of a tuning -> number of seeds -> share of comparisons of two equal arms that claim a difference.

Each arm is tuned by itself and chooses another learning rate, a real difference that more seeds detect. Of 4 000
experiments (standard error at most 0.8 %), by `python tests/benchmarks/tuned_claims.py`."""

ENOUGH_REPEATS = 3
"""From this number of independent tunings on, which are the units then, 1.8 to 4.9 % of equal arms are claimed to
differ (the same script)."""

MOST_CLAIMS = 0.05
"""A difference of tuned arms is marked only where fewer equal arms than this are."""

ENOUGH_SEEDS = 10
"""From this number of seeds on, every setting of a mean or a difference covers 95 +- 2 %."""

_NAMES: dict[Measured, str] = {
    "mean": "95 % intervals",
    "unpaired": "95 % intervals of differences without pairs",
    "paired": "95 % intervals of paired differences",
    "efficiency": "95 % intervals of label efficiencies",
}


def tuned_claims(budget: int, num_seeds: int) -> float:
    """Return the share of equal arms that differ significantly after one tuning each, see `TUNED_CLAIMS`.

    Of a budget or a number of seeds that was not simulated the higher share of its neighbours.
    """
    by_seeds = TUNED_CLAIMS[max((known for known in TUNED_CLAIMS if known <= budget), default=min(TUNED_CLAIMS))]
    return by_seeds[min((known for known in by_seeds if known >= num_seeds), default=max(by_seeds))]


def coverage_note(num_seeds: int, interval: Measured = "mean") -> str:
    """Return what a report must say about its intervals with this number of seeds.

    The note is about the simulated settings of `COVERAGE`, not about the run at hand, and about seeds only: intervals
    from a handful of test images were not simulated.

    Args:
        num_seeds: the smallest number of seeds (or of what else the units are) behind the intervals shown.
        interval: which intervals.
    """
    if num_seeds < 2:
        return (
            "With one seed the intervals are over test images only: they hold for these trained networks and say "
            "nothing about variation between trainings."
        )
    settings = list(COVERAGE[interval].values())
    at = max(seeds for seeds in settings[0] if seeds <= num_seeds)
    shares = [100 * by_seeds[at] for by_seeds in settings]
    experiments = EFFICIENCY_EXPERIMENTS if interval == "efficiency" else EXPERIMENTS
    return (
        f"{_NAMES[interval]} with {at} seeds{'' if at == num_seeds else ' or more'} held the truth in "
        f"{min(shares):.1f} % to {max(shares):.1f} % of simulated experiments ({len(shares)} settings, {experiments} "
        "experiments each)."
    )
