"""The functions for notebooks."""

import pytest
from tiny import tiny_fields

import ablate
from ablate import tables
from ablate.store import Store


def test_a_notebooks_way_from_a_grid_to_frames(tmp_path):
    import yaml

    file = tmp_path / "tiny.yaml"
    file.write_text(
        yaml.safe_dump(
            {"name": "tiny", "blocks": [{"grid": tiny_fields("ddpm", shots=[2, 3], pretrain={"steps": 10})}]}
        )
    )
    grid = ablate.load_grid(file, ["seed=1"])
    plan = ablate.plan(grid)
    assert len(plan.trials) == 2
    assert len(plan.pretrainings) == 1
    outcome = ablate.run(grid, out=tmp_path / "run", data=tmp_path)
    assert (outcome.exit_code, outcome.finished) == (0, 2)
    found = ablate.read_results(tmp_path / "run")
    assert sorted(found.trials["shots"]) == [2, 3]
    assert found.errors.groupby("trial_id")["error"].mean().to_dict() == pytest.approx(
        dict(zip(found.trials["trial_id"], found.trials["mre"], strict=True))
    )
    assert set(found.curves["phase"]) == {"pretrain", "finetune"}
    assert sorted(found.stages["kind"]) == ["finetune", "finetune", "pretrain"]
    assert tables.trial_status(Store.open(tmp_path / "run")).keys() == set(found.trials["trial_id"])


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ablate.InputError, match="there is no run here"):
        ablate.read_results(tmp_path / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ablate.nonsense  # noqa: B018
