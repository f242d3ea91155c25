"""The time that scheduling takes: stages that do nothing go through the real tuner. Run it as a script.

The target is under 0.15 s a stage over 1 000 stages on two CPU cores, the start of the workers included.
Usage: python tests/benchmarks/overhead.py [STAGES]
"""

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import tiny_trial

from ablate.running import ray_tune
from ablate.running.events import Watcher
from ablate.running.resources import Resources
from ablate.schedule.costs import default_costs
from ablate.schedule.fitting import NodeType, Shape
from ablate.schedule.policy import Policy
from ablate.space import plan_of
from ablate.stage.settings import Settings

GROWABLE = (NodeType("worker", Shape(8), 4),)
"""Nodes that could come and never do: more stages wait meanwhile."""


def nothing(config, job):
    """Report that the stage is done."""
    from ray import tune

    tune.report({"outcome": "finished", "error": None, "snapshots": [], "published": None})


class Counting(Watcher):
    """A watcher that counts how stages end."""

    def __init__(self):
        self.outcomes = {}

    def ended(self, stage, result):
        self.outcomes[result.outcome] = self.outcomes.get(result.outcome, 0) + 1


def measure(num_stages, growable):
    """Return the seconds that `num_stages` empty stages take here, where `growable` nodes may come."""
    trials = [tiny_trial(seed=seed) for seed in range(num_stages)]
    policy, watcher = Policy(plan_of(trials), default_costs()), Counting()
    job = ray_tune.Job("", None, "", Settings())
    begin = time.monotonic()
    stock = ray_tune.Stock(growable)
    ray_tune.run_stages(policy, job, Resources(), watcher, stopped=lambda: False, stock=stock, perform=nothing)
    seconds = time.monotonic() - begin
    assert watcher.outcomes == {"finished": num_stages}, watcher.outcomes
    return seconds


def main():
    num_stages = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    begin = time.monotonic()
    with ray_tune.connected(None) as present:
        print(f"Ray started in {time.monotonic() - begin:.1f} s with {present.get('CPU', 0):g} CPUs")
        for words, growable in (("this machine", ()), ("as on a cluster that may grow", GROWABLE)):
            seconds = measure(num_stages, growable)
            print(f"{num_stages} stages, {words}: {seconds:.1f} s, {seconds / num_stages:.3f} s a stage", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"driver: at most {peak:.0f} MB")


if __name__ == "__main__":
    main()
