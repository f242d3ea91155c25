"""Experiment trackers get what the stages report, through Ray's own integrations."""

import pytest
from runs import run
from tiny import tiny_trial

from ablate import tables
from ablate.errors import InputError
from ablate.running.ray_tune import trackers
from ablate.store import Store


def test_an_unknown_or_missing_tracker_is_refused_with_the_cure(monkeypatch):
    with pytest.raises(InputError, match="did you mean 'mlflow'"):
        trackers.check_trackers(["mlfow"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ablate\[wandb\]'"):
        trackers.check_trackers(["wandb"])


@pytest.mark.filterwarnings("default")  # the trackers' own
def test_mlflow_and_tensorboard_get_every_trials_error(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'ablate[mlflow]'")
    tracking = (
        f"sqlite:///{tmp_path}/mlflow.db" if not hasattr(mlflow.store, "tracking") else (tmp_path / "ml").as_uri()
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trials = [tiny_trial(shots=2), tiny_trial(shots=3)]
    result, _ = run(tmp_path / "run", trials, log=("mlflow", "tensorboard"))
    assert result.exit_code == 0
    expected = sorted(tables.read_frame(Store.open(tmp_path / "run"), "trials")["mre"])

    client = mlflow.MlflowClient(tracking)
    experiment = client.get_experiment_by_name("ablate-tiny")
    logged = client.search_runs([experiment.experiment_id])
    assert sorted(entry.data.metrics["metrics/mre"] for entry in logged) == pytest.approx(expected)
    assert {entry.data.params["name"] for entry in logged} == {trial.trial_id for trial in trials}
    assert {entry.info.status for entry in logged} == {"FINISHED"}

    folders = sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert folders == sorted(f"finetune-{trial.trial_id}" for trial in trials)
    for folder in folders:
        (events,) = (tmp_path / "run" / "tensorboard" / folder).glob("events.out.tfevents.*")
        assert b"metrics/mre" in events.read_bytes()
