"""What every pre-training has, and files of weights to start from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ablate.space.spec import Positive, PositiveNumber, Spec

FILES_OF_WEIGHTS = ("weights", "file")
"""The fields of `pretrain` that name a file of weights; its path is no part of an identity, `weights_sha256` is."""

AFTER_TRAINING = ("steps", "transfer")
"""The fields of `pretrain` that say what of a training is fine-tuned, and are no part of what the training is."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits; raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identify(spec: Spec, field: str, given: str | None, expected: str | None) -> None:
    """Put the absolute path of the file that `field` names and its SHA-256 into a spec that has just been validated.

    Args:
        spec: has `field` and `weights_sha256`.
        field: one of `FILES_OF_WEIGHTS`.
        given: its value.
        expected: the value of `weights_sha256`.

    Raises:
        ValueError: the file cannot be read, or is another one than expected.
    """
    if given is None:
        return
    path = Path(given).expanduser().resolve()
    try:
        sha = sha256_of(path)
    except OSError as error:
        if expected:  # the identity is known; whoever loads the file reports that it is gone
            return
        raise ValueError(
            f"{field} must be a readable file; got '{given}' ({error.strerror}); give its path from the current folder"
        ) from error
    if expected not in (None, sha):
        raise ValueError(f"{field} '{given}' has changed: SHA-256 {sha}, expected {expected}")
    object.__setattr__(spec, field, str(path))
    object.__setattr__(spec, "weights_sha256", sha)


class StartingWeights(Spec):
    """A file of weights to start from, identified by its content."""

    weights: str | None = Field(None, description="file (.safetensors, .pth, .pt) with the weights to start from")
    weights_sha256: str | None = Field(None, description="SHA-256 of `weights`; filled in, checked when given")

    @model_validator(mode="after")
    def _hash_weights(self) -> Self:
        identify(self, "weights", self.weights, self.weights_sha256)
        return self


def _pretrain_seed(value: object) -> object:
    if isinstance(value, str):  # a trial has put its own seed in the place of `trial` before
        raise ValueError(f"pretrain.seed must be a whole number, or trial for the trial's seed; got {value!r}")
    return value


class Pretrain(StartingWeights):
    """Fields every pre-training has; the base of the specs that have a training run."""

    method: str
    dataset: str = Field("", description="data set whose images are used; default: the trial's own")
    images: Literal["all", "train", "unlabelled", "shots"] = Field(
        "all",
        description="which images: train, val and unlabelled together; the annotated ones of train; the unlabelled; or "
        "the trial's shots",
    )
    steps: Positive = Field(10_000, description="optimizer steps; the snapshot at this step is fine-tuned")
    seed: Annotated[int, BeforeValidator(_pretrain_seed), Field(ge=0)] = Field(
        0, description="seed of initial weights, data order, noise and views; given as trial: that of the trial"
    )
    lr: PositiveNumber = Field(1e-4, description="AdamW learning rate, constant after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    warmup: int = Field(0, ge=0, description="optimizer steps of linear learning-rate warm-up")
    batch_size: Positive = Field(
        4, description="images of one group: batch statistics and negatives are taken within it"
    )
    accumulate: Positive = Field(8, description="groups in one optimizer step")

    def as_trained(self) -> Self:
        """Return the fields of the same training with defaults where they make no difference to it."""
        return self

    def misfit(self, image_size: int) -> str | None:
        """Return why it cannot train on square images of this side in pixels, with the cure; None: it can."""
        return None
