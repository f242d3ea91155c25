"""What the policy takes, and what it is worth. Run it as a script.

First the time of the plan of 10 000 trials and of each decision. The targets are under 2 s for plan and policy
together, and under 1 ms for each decision but those that plan the order of all stages, of which there are few.

Then the makespans of random plans, with the order that is planned and with the longest chain first: of at most 8 stages
over the least, of at least 20 stages for each GPU over a lower bound. The target is at most 1.1.
Usage: python tests/benchmarks/policy.py [PLANS_OF_EACH_SIZE]
"""

import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from schedule_oracle import lower_bound, optimum, random_case, works_of

from ablate.schedule.costs import default_costs
from ablate.schedule.machine import Machine
from ablate.schedule.policy import Policy
from ablate.schedule.simulate import simulate
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


def makespan_s(case, **how):
    plan, costs, machine = case
    return simulate(Policy(plan, costs), machine, **how).makespan_s


def print_ratios(words, cases, least_s):
    """Print how far both orders are from the least makespan, or from a bound of it."""
    ratios = {"planned": [], "longest chain": []}
    for case in cases:
        planned_s, chain_s = makespan_s(case), makespan_s(case, looks_ahead=False)
        least = least_s(*works_of(*case), min(planned_s, chain_s) + 1e-9)
        ratios["planned"].append(planned_s / least)
        ratios["longest chain"].append(chain_s / least)
    for name, values in ratios.items():
        beyond = sum(value > 1.1 + 1e-6 for value in values)
        print(f"{words}, {name:<13} {statistics.mean(values):.4f} mean, {max(values):.4f} most, {beyond} above 1.1")


def ratios(num_plans):
    """Compare the orders on random plans on 1 to 8 GPUs."""
    draw = random.Random(1)
    few = [random_case(draw, draw.randint(2, 8), draw.choice((1, 1, 2, 2, 3, 4, 8))) for _ in range(num_plans)]
    print_ratios(f"{num_plans} plans of at most 8 stages over the least", few, optimum)
    many = []
    for _ in range(num_plans):
        gpus = draw.randint(1, 8)
        many.append(random_case(draw, 20 * gpus + draw.choice((0, 0, 3, 5 * gpus, 10 * gpus)), gpus))
    words = f"{num_plans} plans of 20 to 30 stages for each GPU over a lower bound"
    print_ratios(words, many, lambda works, num_gpus, known: lower_bound(works, num_gpus))


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
    ratios(int(sys.argv[1]) if len(sys.argv) > 1 else 200)


if __name__ == "__main__":
    main()
