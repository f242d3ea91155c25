"""What the statistics of a report are worth: coverage of its intervals, and marks in tables of equal initialisations.

Run it by `python tests/benchmarks/false_alarms.py`: it prints (a) how often each kind of interval holds the truth, (b)
how often a table of six equal initialisations marks a difference, beside what uncorrected intervals and Wilcoxon's test
over images would have marked, and (c) how often the interval of a label efficiency holds the truth. The constants of
`ablate.stats.coverage` are its numbers. The exit code is 1 if marks are above 5 % by more than two Monte-Carlo standard
errors.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from coverage_simulation import SETTINGS, measure_coverage, measure_false_alarms
from efficiency_simulation import EFFICIENCY_SETTINGS, measure_efficiency_coverage

EQUAL = ("difference", "difference, seeds", "pairs, hard", "pairs, seeds", "pairs, draws")
"""Settings of the second table; in all of them initialisations that are equal on every image are to be told apart."""


def main() -> int:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=4000, help="for each coverage")
    parser.add_argument("--tables", type=int, default=1000, help="for each rate of marked tables")
    parser.add_argument("--columns", type=int, nargs="*", default=[1, 3], help="numbers of shots in a table")
    parser.add_argument("--only", choices=("coverage", "marks", "efficiency"), help="one of the three tables")
    arguments = parser.parse_args()
    if arguments.only in (None, "coverage"):
        _print_coverage(arguments.experiments)
    if arguments.only in (None, "efficiency"):
        _print_efficiency(arguments.experiments)
    return int(_print_marks(arguments.tables, arguments.columns)) if arguments.only in (None, "marks") else 0


def _print_coverage(experiments: int) -> None:
    print(f"coverage of 95 % intervals (%), {experiments} experiments each")
    print(f"{'kind':9} {'setting':72}" + "".join(f"{n:>7}" for n in (2, 3, 5, 10, 20)))
    for setting in SETTINGS.values():
        shares = (
            measure_coverage(setting, n, np.random.default_rng(0), num_experiments=experiments)
            for n in (2, 3, 5, 10, 20)
        )
        print(f"{setting.kind:9} {setting.what:72}" + "".join(f"{100 * s:7.1f}" for s in shares), flush=True)


def _print_efficiency(experiments: int) -> None:
    print(f"coverage of the 95 % intervals of label efficiencies (%), {experiments} experiments each")
    for name, setting in EFFICIENCY_SETTINGS.items():
        shares = (
            measure_efficiency_coverage(setting, n, np.random.default_rng(0), num_experiments=experiments)
            for n in (2, 3, 5, 10, 20)
        )
        print(f"{name:40}" + "".join(f"{100 * s:7.1f}" for s in shares), flush=True)


def _print_marks(tables: int, columns: list[int]) -> bool:
    """Print the second table and return whether a rate is too high."""
    most = 0.05 + 2 * math.sqrt(0.05 * 0.95 / tables)
    print(f"tables of six equal initialisations with a mark (%), {tables} tables each; at most {100 * most:.1f}")
    print(f"{'setting':20} columns seeds   star no dagger  ranks   uncorrected  Wilcoxon (one pair)")
    wrong = False
    for name in EQUAL:
        for num_columns in columns:
            for num_seeds in (1, 2, 3, 5):
                rates = measure_false_alarms(
                    SETTINGS[name], num_seeds, np.random.default_rng(1), num_experiments=tables, num_columns=num_columns
                )
                wrong |= max(rates.marked, rates.worse, rates.ranked) > most
                print(
                    f"{name:20} {num_columns:7} {num_seeds:5} {100 * rates.marked:6.1f} {100 * rates.worse:9.1f} "
                    f"{100 * rates.ranked:6.1f} {100 * rates.uncorrected:13.1f} {100 * rates.wilcoxon:9.1f}",
                    flush=True,
                )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
