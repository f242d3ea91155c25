"""Which annotated images a trial sees: its shots, those of them that validate at first, and the validation images."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch

from ablate.errors import InputError
from ablate.network.building import build_network
from ablate.space import NetworkSpec, Selection, TrialSpec, num_held_out
from ablate.training import seed_of


def select_shots(selection: Selection, num_train: int, *, dataset: str) -> np.ndarray:
    """Return the ascending indices of the annotated training images that are the shots.

    Without a draw they are the first by file name (paper). Fewer shots of a draw are a part of more.

    Args:
        selection: which shots.
        num_train: annotated training images.
        dataset: name of the data set, for the message.

    Raises:
        InputError: there are fewer annotated training images than shots.
    """
    if selection.shots == "all":
        return np.arange(num_train)
    if selection.shots > num_train:
        raise InputError(
            f"shots must be at most {num_train}, the number of annotated training images of {dataset}; "
            f"got {selection.shots}; lower it or say all"
        )
    if selection.draw is None:
        return np.arange(selection.shots)
    order: np.ndarray = np.random.default_rng(seed_of(selection.draw, "shots")).permutation(num_train)
    return np.sort(order[: selection.shots])


class Shots(NamedTuple):
    """A trial's shots as ascending indices of the annotated training images."""

    all: np.ndarray
    first: np.ndarray  # trained on in the first phase: all that are not held out
    held_out: np.ndarray  # validate in the first phase; none unless the trial says so

    @classmethod
    def of(cls, spec: TrialSpec, num_train: int) -> Shots:
        """Return the shots of a trial; those held out are drawn by its seed, so that equal seeds of arms are paired.

        Args:
            spec: the trial.
            num_train: annotated training images.

        Raises:
            InputError: there are fewer training images than shots, or a share of a single one was to validate.
        """
        shots = select_shots(spec.selection, num_train, dataset=spec.dataset)
        if spec.validation == "inside_shots" and len(shots) < 2:
            raise InputError(
                f"validation must be full or none where there is one shot; got inside_shots for shots {spec.shots} of "
                f"{spec.dataset}, which are {len(shots)}"
            )
        order = np.random.default_rng(seed_of(spec.seed, "validation")).permutation(len(shots))
        held_out = np.sort(order[: num_held_out(spec, len(shots))])
        return cls(shots, np.delete(shots, held_out), shots[held_out])


Annotated = tuple[Literal["train", "val"], int]
"""An annotated image: its split, and its place there."""


def annotated_images(spec: TrialSpec, num_train: int, num_val: int) -> frozenset[Annotated]:
    """Return the annotated images that a trial sees: its shots, and the validation images where they validate.

    Args:
        spec: the trial.
        num_train: annotated training images.
        num_val: validation images.
    """
    shots = select_shots(spec.selection, num_train, dataset=spec.dataset)
    val = range(num_val if spec.validation == "full" else 0)
    return frozenset([*(("train", int(index)) for index in shots), *(("val", index) for index in val)])


def num_labels(trials: Iterable[TrialSpec], num_train: int, num_val: int) -> int:
    """Return how many annotated images trials of one data set see together, an image that several see counting once.

    Args:
        trials: a trial, and the trials by which its settings were chosen.
        num_train: annotated training images.
        num_val: validation images.
    """
    return len(frozenset[Annotated]().union(*(annotated_images(spec, num_train, num_val) for spec in trials)))


def check_finetune(spec: TrialSpec, num_train: int) -> None:
    """Refuse what would only fail once fine-tuning runs; needs no memory for weights.

    Raises:
        InputError: too few training images for `shots`; or a forward pass would hold a single image whose
            deepest feature map is one pixel, from which batch normalisation can estimate nothing.
    """
    shots = Shots.of(spec, num_train)
    for num_images in dict.fromkeys((len(shots.all), len(shots.first))):
        batch_size = min(spec.finetune.batch_size, num_images)
        alone = batch_size == 1 or num_images % batch_size == 1
        if alone and not _takes_one_image(spec.network, spec.image_size):
            held_out = f", {len(shots.held_out)} of them held out" if num_images < len(shots.all) else ""
            raise InputError(
                f"finetune.batch_size {spec.finetune.batch_size} leaves one of {num_images} images (shots "
                f"{spec.shots}{held_out}) alone in a forward pass, and at image_size {spec.image_size} the batch "
                f"normalisation of {spec.network.label} needs at least two; choose a batch_size that does not leave a "
                f"single image, or an image_size of at least {2 * spec.image_size}"
            )


@functools.lru_cache(maxsize=64)
def _takes_one_image(network: NetworkSpec, image_size: int) -> bool:
    with torch.device("meta"):
        built = build_network(network, num_outputs=2, image_size=image_size, seed=0).train()
        try:
            built(torch.empty(1, 1, image_size, image_size))
        except ValueError:  # torch: Expected more than 1 value per channel when training
            return False
    return True
