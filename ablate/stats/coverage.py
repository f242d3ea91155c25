"""How often the 95 % intervals hold the truth in simulations, and what a report says of it.

S seeds, I test images.

An experiment draws S networks and I images from a model with known truth,
`score = truth + seed effect + image effect + effect of the seed on this image`, and checks whether the interval of
`ablate.stats.crossed` holds the truth. Seed effects are normal; image effects and what is particular to a seed on an
image are log-normal (shifted to mean 0), as skewed as radial errors are. The settings differ in the sizes of these
effects, in the number of images (100 where no other is given) and in the number estimated: the mean of one
initialisation, or the difference of two that share the image effects.
"""

from __future__ import annotations

EXPERIMENTS = 4_000

COVERAGE: dict[str, dict[int, float]] = {
    # mean; images matter, seeds hardly
    "images": {2: 0.9570, 3: 0.9530, 5: 0.9440, 10: 0.9425, 20: 0.9410},
    # mean; seeds and images matter alike
    "both": {2: 0.9467, 3: 0.9670, 5: 0.9600, 10: 0.9497, 20: 0.9483},
    # mean; seeds matter most, 250 images
    "seeds": {2: 0.9355, 3: 0.9497, 5: 0.9510, 10: 0.9483, 20: 0.9427},
    # mean; 50 images
    "small set": {2: 0.9565, 3: 0.9660, 5: 0.9580, 10: 0.9443, 20: 0.9407},
    # difference; small seed effects
    "difference": {2: 0.9545, 3: 0.9583, 5: 0.9503, 10: 0.9565, 20: 0.9455},
    # difference; the noise of single images half hides the seed effects
    "difference, hard": {2: 0.9435, 3: 0.9545, 5: 0.9503, 10: 0.9545, 20: 0.9483},
    # the same with paired seeds
    "paired, hard": {2: 0.8628, 3: 0.9113, 5: 0.9295, 10: 0.9450, 20: 0.9467},
    # difference; large seed effects
    "difference, seeds": {2: 0.9630, 3: 0.9595, 5: 0.9587, 10: 0.9530, 20: 0.9473},
}
"""Setting -> number of seeds -> share of 4 000 experiments whose interval held the truth (standard error 0.35 %).

Each interval is from 1 000 replicates; the generator is seeded with 0 for each entry."""

ENOUGH_SEEDS = 10
"""From this number of seeds on, every setting covers 95 +- 2 %."""


def coverage_note(num_seeds: int) -> str | None:
    """Return what a report must say about its intervals with this number of seeds; None if their 95 % hold.

    The note is about the simulated settings of `COVERAGE`, not about the run at hand, and about seeds only: intervals
    from a handful of test images were not simulated.

    Args:
        num_seeds: the smallest number of seeds behind the intervals shown.
    """
    if num_seeds >= ENOUGH_SEEDS:
        return None
    if num_seeds < 2:
        return (
            "With one seed the intervals are over test images only: they hold for these trained networks and say "
            "nothing about variation between trainings."
        )
    measured_at = max(seeds for seeds in next(iter(COVERAGE.values())) if seeds <= num_seeds)
    shares = [by_seeds[measured_at] for by_seeds in COVERAGE.values()]
    return (
        f"With {num_seeds} seeds read the 95 % intervals with care: at {measured_at} seeds they held the truth in "
        f"{100 * min(shares):.1f} % to {100 * max(shares):.1f} % of simulated experiments ({len(shares)} settings, "
        f"{EXPERIMENTS} experiments each); from {ENOUGH_SEEDS} seeds on in 93 % to 97 %."
    )
