"""What does scheduling cost? Runs stages that do nothing through the real tuner. Run it as a script.

Wanted: under 0.15 s a stage over 1 000 stages on two CPU cores, the start of the workers included.
Usage: python tests/benchmarks/overhead.py [STAGES]
"""

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import tiny_trial

from ablate.running import ray_tune
from ablate.schedule.costs import default_costs
from ablate.schedule.policy import Policy
from ablate.space import plan_of
from ablate.stage.settings import Settings


def nothing(config, job):
    """Report that the stage is done."""
    from ray import tune

    tune.report({"outcome": "finished", "error": None, "snapshots": [], "published": None})


class Counting:
    """A watcher that counts how stages end."""

    def __init__(self):
        self.outcomes = {}

    def started(self, stage):
        pass

    def progressed(self, stage, progress):
        pass

    def ended(self, stage, outcome, error, trouble):
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def released(self, trial_id, reason):
        pass


def measure(num_stages, *, may_grow):
    """Return the seconds that `num_stages` empty stages take."""
    trials = [tiny_trial(seed=seed) for seed in range(num_stages)]
    policy, watcher = Policy(plan_of(trials), default_costs()), Counting()
    job = ray_tune.Job("", None, "", Settings())
    begin = time.monotonic()
    ray_tune.run_stages(
        policy, job, ray_tune.Resources(), watcher, stopped=lambda: False, may_grow=may_grow, work=nothing
    )
    seconds = time.monotonic() - begin
    assert watcher.outcomes == {"finished": num_stages}, watcher.outcomes
    return seconds


def main():
    num_stages = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    begin = time.monotonic()
    with ray_tune.connected(None) as present:
        print(f"Ray started in {time.monotonic() - begin:.1f} s with {present.get('CPU', 0):g} CPUs")
        for words, may_grow in (("this machine", False), ("as on a cluster that may grow", True)):
            seconds = measure(num_stages, may_grow=may_grow)
            print(f"{num_stages} stages, {words}: {seconds:.1f} s, {seconds / num_stages:.3f} s a stage", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"driver: at most {peak:.0f} MB")


if __name__ == "__main__":
    main()
