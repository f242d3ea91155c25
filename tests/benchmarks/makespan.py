"""The time of a run over the shortest possible one: four pre-trainings, six fine-tunings each, two CPUs.

The lower bound comes from the stages' own measured times: it is the largest of the longest chain (a pre-training and
its longest fine-tuning), all work over the number of CPUs, and the best packing of the pre-trainings, which cannot be
divided. The target is at most 1.25. Run it as a script, on an idle machine.
Usage: python tests/benchmarks/makespan.py [SECONDS_OF_A_PRETRAINING]
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from runs import DATA, attempts, run
from tiny import tiny_trial

from ablate.pretrain import run_pretraining
from ablate.running import ray_tune
from ablate.store import Store

CPUS = 2
IMAGE_SIZE = 32


def trial(steps, key, seed):
    """Return one trial: `key` tells the pre-trainings apart."""
    fields = {"steps": steps, "seed": key, "batch_size": 16}
    return tiny_trial("simclr", image_size=IMAGE_SIZE, seed=seed, pretrain=fields, finetune={"epochs": 40}, shots=4)


def steps_taking(seconds):
    """Return how many pre-training steps take about `seconds` here."""
    torch.set_num_threads(1)
    pretraining, num_steps = trial(10, 0, 0).pretraining, 40
    images_NHW = DATA("synthetic", IMAGE_SIZE).train.images_NHW
    run_pretraining(pretraining, images_NHW, steps=3, publish=lambda step, tensors: None)
    begin = time.monotonic()
    run_pretraining(pretraining, images_NHW, steps=num_steps, publish=lambda step, tensors: None)
    return max(10, round(num_steps * seconds / (time.monotonic() - begin)))


def packing(seconds, num_bins):
    """Return the least possible largest sum when `seconds` are put into bins."""
    choices = itertools.product(range(num_bins), repeat=len(seconds))
    sums = (
        [sum(s for s, b in zip(seconds, chosen, strict=True) if b == n) for n in range(num_bins)] for chosen in choices
    )
    return min(max(one) for one in sums)


def main():
    wanted = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    steps = steps_taking(wanted)
    trials = [trial(steps, key, seed) for key in range(4) for seed in range(6)]
    print(f"4 pre-trainings of {steps} steps, 24 fine-tunings, {CPUS} CPUs", flush=True)
    schedule, spent = ray_tune.run_stages, []

    def timed(*args, **options):
        begin = time.monotonic()
        schedule(*args, **options)
        spent.append(time.monotonic() - begin)

    ray_tune.run_stages = timed
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        result, _ = run(folder, trials, checkpoint_minutes=5)
        whole = time.monotonic() - begin
        assert result.finished == len(trials), result
        store = Store.open(folder)
        before = {row["pretrain_key"]: row["seconds"] for row in attempts(store)}
        after = [(row["pretrain_key"], row["seconds"]) for row in attempts(store, "finetune")]
    chain = max(before[key] + seconds for key, seconds in after)
    work = (sum(before.values()) + sum(seconds for _, seconds in after)) / CPUS
    packed = packing(list(before.values()), CPUS)
    bound = max(chain, work, packed)
    print(f"pre-trainings {', '.join(f'{s:.1f}' for s in before.values())} s")
    print(f"fine-tunings {min(s for _, s in after):.1f} to {max(s for _, s in after):.1f} s")
    print(f"lower bound {bound:.1f} s: chain {chain:.1f}, work / CPUs {work:.1f}, packing {packed:.1f}")
    print(f"stages {spent[0]:.1f} s = {spent[0] / bound:.2f} x the bound, the start of the workers included")
    print(f"whole run {whole:.1f} s = {whole / bound:.2f} x the bound, the start of Ray included")


if __name__ == "__main__":
    main()
