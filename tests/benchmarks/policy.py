"""The time that the plan of 10 000 trials and each decision of the policy take. Run it as a script.

The targets are under 2 s for plan and policy together, and under 1 ms for each decision.
"""

import statistics
import time

from ablate.schedule.costs import default_costs
from ablate.schedule.policy import Policy
from ablate.schedule.simulate import Machine, simulate
from ablate.space import Source, load_grid, plan_of

SEARCH_SPACE = """
name: ten-thousand
base: {image_size: 256, finetune: {batch_size: 2, accumulate: 8, epochs: 200, schedule: plateau}}
blocks:
  - grid:
      dataset: [chest, cephalo, hand]
      shots: [1, 2, 3, 5, 7, 10, 15, 25, 50, all]
      seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
      pretrain:
        - {method: ddpm, timesteps: [100, 250, 500, 1000], steps: [2000, 4000, 6000, 8000]}
        - {method: [mocov3, simclrv2, dino, byol], steps: [2000, 4000, 6000, 8000]}
        - {method: imagenet}
        - {method: scratch}
"""


class Timed(Policy):
    """A policy that notes how long each of its answers takes."""

    def __init__(self, *args, **options):
        self.seconds = {"next": [], "started": [], "publish": [], "finish": []}
        super().__init__(*args, **options)

    def _time(self, name, *args):
        start = time.perf_counter()
        answer = getattr(super(), name)(*args)
        self.seconds[name].append(time.perf_counter() - start)
        return answer

    def next(self):
        return self._time("next")

    def started(self, stage):
        return self._time("started", stage)

    def publish(self, key, step):
        return self._time("publish", key, step)

    def finish(self, stage):
        return self._time("finish", stage)


def main():
    start = time.perf_counter()
    grid = load_grid(Source.parse(SEARCH_SPACE, "ten-thousand.yaml"))
    loaded = time.perf_counter()
    plan = plan_of(grid.trials)
    planned = time.perf_counter()
    policy = Timed(plan, default_costs())
    made = time.perf_counter()
    print(f"{len(plan.trials)} trials, {len(plan.pretrainings)} pre-trainings")
    print(f"load_grid  {loaded - start:6.3f} s")
    print(f"plan_of    {planned - loaded:6.3f} s")
    print(
        f"Policy     {made - planned:6.3f} s; with plan_of {made - loaded:.3f} s, with load_grid {made - start:.3f} s"
    )
    simulate(policy, Machine(64))
    for name, seconds in policy.seconds.items():
        times = sorted(1e3 * value for value in seconds)
        tail = times[int(0.99 * len(times))]
        print(
            f"{name:<10} {statistics.median(times):6.4f} ms median, {tail:.4f} ms 99 %, {times[-1]:.4f} ms most, "
            f"of {len(times)} calls"
        )


if __name__ == "__main__":
    main()
