"""What the spatial-configuration network reaches from scratch on the first cephalograms. Run it as a script.

The trials are those of the search space `scn-cpu`, or of another one, each fine-tuned on one thread and evaluated on
all 250 test images. Printed for each are the MRE, that without the test image that is mirrored, the MRE on the
validation images, and the processor seconds of fine-tuning with its validations; then their means for each number of
shots.
Usage: python tests/benchmarks/scn.py --data DATA [--shots 10 25] [--seeds 0 1 2] [--grid NAME] [--set FIELD=VALUE ...]
"""

import argparse
import sys
import time

import numpy as np
import torch

from ablate.datasets import load_dataset
from ablate.finetune import finetune
from ablate.network.building import build_network, count_parameters
from ablate.network.evaluation import evaluate
from ablate.space import find_grid, load_grid
from ablate.training import silent

MIRRORED = "322.jpg"
LINE = "{:5}  {:>4}  {:5.3f}  {:15.3f}  {:7.3f}  {:7.1f}  {:10g}"


class Never:
    """Checkpoints are never due."""

    def due(self):
        """Return False."""
        return False

    def save(self, step, state):
        """Never called."""
        raise AssertionError("no checkpoint was due")


def measured(spec, data):
    """Fine-tune and evaluate a trial; return its MRE, that without the mirrored image, val_mre, seconds, best epoch."""
    network = build_network(
        spec.network,
        num_outputs=data.num_landmarks,
        image_size=spec.image_size,
        seed=spec.seed,
        precision=spec.precision,
    )
    started = time.process_time()
    outcome = finetune(spec, network, data, device="cpu", state=None, checkpoint=Never(), report=silent)
    seconds = time.process_time() - started
    network.load_state_dict(outcome.best_state)
    found = evaluate(network, spec, data.test, data, device="cpu", report=silent)
    others = np.array([name != MIRRORED for name in found.split.names])
    val_mre = np.nan if outcome.val_mre is None else outcome.val_mre
    return found.summary.mre, float(np.nanmean(found.errors_NK[others])), val_mre, seconds, outcome.best_epoch


def main(arguments):
    """Print one line for each trial and one for each number of shots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--grid", default="scn-cpu")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    trials = [
        trial
        for trial in load_grid(find_grid(options.grid), options.set).trials
        if trial.shots in options.shots and trial.seed in options.seeds and trial.method == "scratch"
    ]
    data = load_dataset(trials[0].dataset, options.data, trials[0].image_size)
    network, size = trials[0].network, trials[0].image_size
    built = build_network(network, num_outputs=data.num_landmarks, image_size=size, seed=0)
    print(f"{network.label}, {count_parameters(built):,} parameters, {size} px, {len(data.test.names)} test images")
    print(f"shots  seed    MRE  without {MIRRORED}  val MRE  seconds  best epoch")
    for shots in dict.fromkeys(trial.shots for trial in trials):
        rows = []
        for spec in (trial for trial in trials if trial.shots == shots):
            rows.append(measured(spec, data))
            print(LINE.format(shots, spec.seed, *rows[-1]), flush=True)
        print(LINE.format(shots, "mean", *np.mean(rows, axis=0)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
