"""Experiment trackers, through Ray's own integrations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablate.errors import InputError, nearest


def _tensorboard(experiment: str) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    class Logger(TBXLoggerCallback):  # type: ignore[misc]
        """Writes each stage's events to its own folder under `experiment`, not to Ray's temporary files."""

        def log_trial_start(self, trial: Any) -> None:
            folder = Path(experiment) / f"{trial.config['kind']}-{trial.config['name']}"
            self._trial_writer[trial] = self._summary_writer_cls(str(folder), flush_secs=30)
            self._trial_result[trial] = {}

    return Logger()


def _mlflow(experiment: str) -> Any:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return MLflowLoggerCallback(experiment_name=experiment)  # the server is MLflow's own MLFLOW_TRACKING_URI


def _wandb(experiment: str) -> Any:
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=experiment)  # settings are W&B's own WANDB_... variables


TRACKERS: dict[str, Callable[[str], Any]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
"""Ray's integrations of experiment trackers; each takes an experiment's name, tensorboard a folder."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        InputError: with the choices or the cure.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--log must be one of {', '.join(TRACKERS)}; got '{name}'{nearest(name, TRACKERS)}")
        module = {"tensorboard": "tensorboardX"}.get(name, name)
        if importlib.util.find_spec(module) is None:
            raise InputError(f"--log {name} needs {module}, which is not installed; pip install 'ablate[{name}]'")
