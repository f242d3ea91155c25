"""Ray: how stages become Ray Tune trials, on this machine or on a cluster. The only room that knows Ray."""

import os

# Read by Ray when it is imported: our own display, no files per trial, and our own signal handling.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a stage without a GPU is told so by `device`
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "30")

from ablate.running.ray_tune.cluster import connected
from ablate.running.ray_tune.searcher import StageSearcher
from ablate.running.ray_tune.spot_watch import SpotWatch
from ablate.running.ray_tune.stages import Stock, run_stages
from ablate.running.ray_tune.trackers import TRACKERS, check_trackers
from ablate.running.ray_tune.worker import Job

__all__ = [
    "TRACKERS",
    "Job",
    "SpotWatch",
    "StageSearcher",
    "Stock",
    "check_trackers",
    "connected",
    "run_stages",
]
