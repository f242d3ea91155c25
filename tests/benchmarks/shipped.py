"""A shipped search space as it is against the same in fp32 with a validation after every epoch. Run it as a script.

Each way is a whole run, and pairs alternate. Printed are the seconds of the command, the seconds that its stages took
together, the ratio of each (median of the pairs), and how the error differs, paired by shots, seed and initialisation
(mean and 95 % interval of a t distribution over the trials).
Usage: python tests/benchmarks/shipped.py GRID [PAIRS] [--before CHECKOUT] [options of `ablate run`]

With --before the other side of the pair is the code in another checkout, as its own file of the search space says.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

from ablate import read_results, tables
from ablate.store import Store

ROOT = Path(__file__).parents[2]
PLAIN = ("--set", "precision=fp32", "--set", "finetune.validate_every=1")
ARM = ["pretrain_method", "shots", "seed"]


def run(checkout, grid, options, out):
    """Run a search space by the code of a checkout; return its seconds, those of its stages, and its errors."""
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ablate", "run", "--grid", grid, "--out", str(out), *options],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    whole_s = time.monotonic() - start
    stages = tables.read_table(Store.open(str(out), writable=False), "stages", ["seconds"])
    errors = read_results(str(out)).trials.set_index(ARM)["mre"]
    return whole_s, sum(stages["seconds"].to_pylist()), errors


def main(grid, num_pairs, before, options):
    """Print the ratios of pairs, and the difference of errors."""
    sides = {"before": (before or ROOT, [*(() if before else PLAIN), *options]), "now": (ROOT, options)}
    found = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(num_pairs):
            for name, (checkout, given) in sides.items():
                found[name].append(run(checkout, grid, given, Path(folder) / f"{name}{pair}"))
                whole_s, stages_s, _ = found[name][-1]
                print(f"{grid} {name:<6} {whole_s:7.1f} s, stages together {stages_s:8.1f} s", flush=True)
    for place, what in enumerate(("command", "stages")):
        ratios = [old[place] / new[place] for old, new in zip(found["before"], found["now"], strict=True)]
        print(
            f"{what}: {statistics.median(ratios):.2f} times as fast (median of {num_pairs}: {min(ratios):.2f} to "
            f"{max(ratios):.2f})"
        )
    difference = (found["now"][0][2] - found["before"][0][2]).to_numpy()
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
    mean = found["before"][0][2].mean()
    print(f"MRE now - before: {difference.mean():+.3f} ± {half:.3f} of {mean:.3f} mm, over {len(difference)} trials")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    earlier = None
    if "--before" in arguments:
        place = arguments.index("--before")
        earlier = Path(arguments[place + 1]).resolve()
        del arguments[place : place + 2]
    pairs = int(arguments.pop(1)) if len(arguments) > 1 and arguments[1].isdigit() else 1
    main(arguments[0], pairs, earlier, arguments[1:])
