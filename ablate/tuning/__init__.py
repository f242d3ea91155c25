"""Tuning: equal numbers of configurations for every arm and place, chosen by validation error, round after round.

Whoever runs, predicts or exports a tuning uses this room. It knows search spaces, the store and the tables; it needs
neither torch nor Ray, and is the only one that knows Optuna.
"""

from ablate.tuning.configuration import Configuration, Result
from ablate.tuning.course import Ask, Course, Over, Run, Segment
from ablate.tuning.records import (
    load_courses,
    metrics_of,
    read_configurations,
    read_result,
    result_folder,
    result_of,
    write_configurations,
    write_result,
)
from ablate.tuning.roles import FinalTrial, final_trials, roles_of

__all__ = [
    "Ask",
    "Configuration",
    "Course",
    "FinalTrial",
    "Over",
    "Result",
    "Run",
    "Segment",
    "final_trials",
    "load_courses",
    "metrics_of",
    "read_configurations",
    "read_result",
    "result_folder",
    "result_of",
    "roles_of",
    "write_configurations",
    "write_result",
]
