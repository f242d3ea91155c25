"""What numbers of diffusion timesteps mean: the share of the image's variance that is left after the last of them.

Without `betas: matched` more timesteps end with more noise, so that an axis of timesteps is one of noise too, and says
so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from ablate.report.grouping import plain
from ablate.space import signal_left

TIMESTEPS = "pretrain_timesteps"
"""The field of an axis that says what is left at each of its values."""

LEVEL_FIELDS = (TIMESTEPS, "pretrain_betas", "pretrain_beta_schedule")
"""The columns of trials that say what is left."""


@dataclass(frozen=True)
class NoiseLevels:
    """What is left after the last timestep of some trials, in words."""

    left: Mapping[tuple[int, str], tuple[str, ...]]  # by timesteps and `betas`; of one schedule or several

    @classmethod
    def of(cls, trials: pd.DataFrame) -> NoiseLevels:
        """Return the levels of those of some trials that have timesteps."""
        rows = zip(*([plain(value) for value in trials[name]] for name in LEVEL_FIELDS), strict=True)
        left: dict[tuple[int, str], dict[str, None]] = {}
        for timesteps, betas, schedule in sorted({row for row in rows if None not in row}):
            share = signal_left(schedule, timesteps, betas)
            left.setdefault((timesteps, betas), {})[f"{share:.2f}" if share >= 0.1 else f"{share:.1g}"] = None
        return cls({key: tuple(texts) for key, texts in left.items()})

    @property
    def matched(self) -> str:
        """What matched betas leave, which is the same at any number of timesteps, beside fixed ones; else empty."""
        kinds = {betas for _, betas in self.left}
        found = [text for (_, betas), texts in self.left.items() if betas == "matched" for text in texts]
        return f"; betas matched: {', '.join(dict.fromkeys(found))}" if len(kinds) > 1 else ""

    @property
    def title(self) -> str:
        """What an axis with `label` is called."""
        return f"timesteps T (signal left at T{self.matched})"

    @property
    def note(self) -> str:
        """What `label` has in parentheses, in a sentence."""
        return f"In parentheses the share of the image's variance that is left after the last timestep{self.matched}."

    def label(self, timesteps: int) -> str:
        """Return a number of timesteps with what fixed betas leave, or matched ones where all are: `100 (0.36)`."""
        left = self.left.get((timesteps, "fixed")) or self.left.get((timesteps, "matched"))
        return f"{timesteps} ({', '.join(left)})" if left else str(timesteps)
