"""The processor time of a shipped search space by parts of its stages, against fp32 with a validation in every epoch.

A few optimizer steps of each pre-training, a few epochs at each number of shots and one evaluation are timed on one
thread, either way in turn, and added up for the whole search space; the time of loading and writing is left out. That
takes minutes where `shipped.py`, which runs everything and compares errors, takes an hour.
Usage: python tests/benchmarks/shipped_stages.py GRID DATA [PAIRS]
"""

import statistics
import sys
import time
from collections import Counter

import numpy as np
import torch

from ablate.finetune import finetune
from ablate.network.evaluation import evaluate
from ablate.pretrain import run_pretraining
from ablate.space import find_grid, load_grid
from ablate.stage.inputs import initial_network, pretraining_images
from ablate.stage.task import data_in
from ablate.training import silent

STEPS, EPOCHS, UNTIMED = 6, 12, 2
PLAIN = ["precision=fp32", "finetune.validate_every=1"]


class Clock:
    """The processor time after each step or epoch that a loop reports; its checkpoints are never due."""

    def __init__(self):
        self.seen = {}

    def __call__(self, progress):
        """Note the time of the last report of a step."""
        self.seen[progress.step] = time.process_time()
        return False

    def per_unit(self, last):
        """Seconds of a step or epoch, without the first ones."""
        return (self.seen[last] - self.seen[UNTIMED]) / (last - UNTIMED)

    def due(self):
        """Never."""
        return False


def parts(trials, data):
    """Yield each part of a search space as (name, seconds of one unit, units)."""
    trained = {trial.pretrain_key: trial.pretraining for trial in trials if trial.pretraining is not None}
    for pretraining in trained.values():
        images = pretraining_images(pretraining, data(pretraining.fields.dataset, pretraining.image_size))
        clock = Clock()
        run_pretraining(pretraining, images, steps=STEPS, publish=lambda *_: None, report=clock)
        yield f"step of {pretraining.fields.method}", clock.per_unit(STEPS), pretraining.fields.steps
    counts = Counter(trial.shots for trial in trials)
    scratch = {trial.shots: trial for trial in trials if trial.method == "scratch"}
    for shots, trial in scratch.items():
        dataset, clock = data(trial.dataset, trial.image_size), Clock()
        epochs = UNTIMED * trial.finetune.validate_every + EPOCHS
        fields = trial.model_dump()
        short = type(trial).model_validate(fields | {"finetune": fields["finetune"] | {"epochs": epochs}})
        network, _ = initial_network(trial, dataset.num_landmarks, None, None)
        finetune(short, network, dataset, device="cpu", state=None, checkpoint=clock, report=clock)
        yield f"epoch of {shots} shots", clock.per_unit(epochs), counts[shots] * trial.finetune.epochs
    start = time.process_time()
    evaluate(network, trial, dataset.test, dataset, device="cpu", report=silent)
    yield "evaluation", time.process_time() - start, len(trials)


def main(grid, folder, num_pairs=1):
    """Print the parts either way, and the ratio of the whole."""
    torch.set_num_threads(1)
    data = data_in(folder)
    sides = {"plain": load_grid(find_grid(grid), PLAIN).trials, "shipped": load_grid(find_grid(grid)).trials}
    wholes = {name: [] for name in sides}
    for _ in range(num_pairs):
        for name, trials in sides.items():
            found = list(parts(trials, data))
            wholes[name].append(sum(seconds * units for _, seconds, units in found))
            words = ", ".join(f"{part} {seconds:.3f}" for part, seconds, _ in found)
            print(f"{name:<8} {wholes[name][-1]:7.0f} s in all; s: {words}", flush=True)
    ratios = np.array(wholes["plain"]) / np.array(wholes["shipped"])
    print(f"{statistics.median(ratios):.2f} times as fast (median of {num_pairs} pairs)")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
