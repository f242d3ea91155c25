"""How long a fine-tuning is, in optimizer steps, and how many of its shots validate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ablate.space.finetuning import FinetuneSpec
from ablate.space.trial import TrialSpec

MOST_SPANS = 200
"""Spans of a fine-tuning whose length is given in steps: as many as the default 200 epochs."""


@dataclass(frozen=True)
class Length:
    """A training on some images in optimizer steps; each sees a window of batch_size * accumulate of them, or the rest.

    A pass over the images (an epoch) is a whole number of windows.
    """

    num_images: int
    window_size: int  # most images of an optimizer step
    total: int  # optimizer steps, where nothing ends the training earlier
    span: int  # optimizer steps of an epoch or, where the length is given in steps, of one of up to 200 equal parts
    validate_every: int = 1  # spans from one validation to the next

    @classmethod
    def of(cls, spec: FinetuneSpec, num_images: int) -> Length:
        """Return the length of a fine-tuning on `num_images` images.

        It falls into spans: epochs or, where it is given in steps, at most `MOST_SPANS` parts of equally many, so that
        what counts spans (`patience`, `plateau_patience`) is a share of the length whatever the number of images.
        There is a validation after every `validate_every` spans, and one at the end.
        """
        window_size = spec.batch_size * spec.accumulate
        num_windows = math.ceil(num_images / window_size)
        if spec.steps is not None:
            total, span = spec.steps, math.ceil(spec.steps / MOST_SPANS)
        else:
            assert spec.epochs is not None
            total, span = spec.epochs * num_windows, num_windows
        return cls(num_images, window_size, total, span, spec.validate_every)

    @property
    def every(self) -> int:
        """Optimizer steps from one validation to the next."""
        return self.span * self.validate_every

    @property
    def num_windows(self) -> int:
        """Optimizer steps of one pass over the images."""
        return math.ceil(self.num_images / self.window_size)

    @property
    def num_validations(self) -> int:
        """Validations of the whole training; the last is after its last step."""
        return math.ceil(self.total / self.every)

    def validation_after(self, share: float) -> int:
        """Return the optimizer steps of the first validation at or after a share of the whole training."""
        return min(math.ceil(math.ceil(share * self.total) / self.every) * self.every, self.total)

    def images_until(self, step: int) -> int:
        """Return how many images the first `step` optimizer steps see, an image counting as often as it is seen."""
        passes, windows = divmod(step, self.num_windows)
        return passes * self.num_images + min(windows * self.window_size, self.num_images)

    def passes(self, step: int) -> int:
        """Return the number of passes over the images that `step` optimizer steps have begun."""
        return math.ceil(step / self.num_windows)


def num_held_out(trial: TrialSpec, num_shots: int) -> int:
    """Return how many of a trial's shots validate instead of being trained on at first: at least one, never all.

    Args:
        trial: the trial.
        num_shots: its shots, as a number; at least 2 where a share of them validates.
    """
    if trial.validation != "inside_shots":
        return 0
    return min(max(round(trial.validation_share * num_shots), 1), num_shots - 1)
