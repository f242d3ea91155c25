"""Noise schedules of DDPM in closed form: the noise that each timestep adds, and what is left of the image at the end.

They are those of `ablate.pretrain.ddpm` without torch, for whoever plans or reports.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, TypeAlias

BetaSchedule: TypeAlias = Literal["linear", "cosine", "cosine_clamped", "quadratic", "sigmoid"]

FIRST_BETA, LAST_BETA = 1e-4, 0.02  # Ho et al. 2020, section 4; of all schedules but the cosines, whatever T is

COSINE_LIMITS = {"cosine": (0.0, 0.999), "cosine_clamped": (1e-4, 0.9999)}
"""Smallest and largest beta of the cosine schedule: as published (Nichol and Dhariwal 2021, section 3.2), and as the
authors of the paper clamp it."""

MATCHED_TIMESTEPS = 500
"""The number of timesteps (the paper's) whose noise `betas: matched` gives to any other number of them."""


def fixed_betas(schedule: BetaSchedule, timesteps: int) -> list[float]:
    """Return the variance of the noise that each of `timesteps` adds, by a schedule as it was published."""
    shares = [step / (timesteps - 1) for step in range(timesteps)]
    if schedule == "linear":
        return [_between(FIRST_BETA, LAST_BETA, share) for share in shares]
    if schedule == "quadratic":
        return [_between(FIRST_BETA**0.5, LAST_BETA**0.5, share) ** 2 for share in shares]
    if schedule == "sigmoid":
        return [_between(FIRST_BETA, LAST_BETA, 1 / (1 + math.exp(6 - 12 * share))) for share in shares]
    least, most = COSINE_LIMITS[schedule]
    left = [math.cos((step / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(timesteps + 1)]
    return [max(min(1 - after / before, most), least) for before, after in itertools.pairwise(left)]


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def matched_betas(schedule: BetaSchedule, timesteps: int) -> list[float]:
    """Return betas with which `timesteps` go the way of 500: after a share of them as much noise as there.

    Betas themselves cannot be scaled by 500 / T: with few timesteps they would be above 1. What is left of the image's
    variance falls from 1 to the same end along the same curve of the share t / T instead; between two of the 500
    timesteps its logarithm is a straight line, as if the noise of a timestep came evenly.
    """
    logs = [0.0, *itertools.accumulate(math.log1p(-beta) for beta in fixed_betas(schedule, MATCHED_TIMESTEPS))]

    def log_left(step: int) -> float:
        place, rest = divmod(step * MATCHED_TIMESTEPS, timesteps)
        return _between(logs[place], logs[place + 1], rest / timesteps) if rest else logs[place]

    return [-math.expm1(log_left(step + 1) - log_left(step)) for step in range(timesteps)]


def signal_left(schedule: BetaSchedule, timesteps: int, betas: Literal["fixed", "matched"]) -> float:
    """Return the share of an image's variance that is left after the last timestep: alpha bar of T."""
    made = matched_betas if betas == "matched" else fixed_betas
    return math.prod(1 - beta for beta in made(schedule, timesteps))
