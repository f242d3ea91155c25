"""The task for SkyPilot: what it says, what its command does, and what a launch answers.

Nothing here talks to SkyPilot's server or to a cloud.
"""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from ablate import __version__
from ablate.errors import InputError
from ablate.launch.backend import LaunchRequest
from ablate.launch.cluster_file import parse_cluster, shipped_clusters
from ablate.launch.skypilot import command, explain
from ablate.space import find_grid, load_grid, shipped_grids

SHIPPED = shipped_clusters()["skypilot.yaml"].read_text(encoding="utf-8")
EDITED = SHIPPED.replace("EDIT-GPU:1", "L4:1").replace("EDIT-FOLDER-OF-THE-WHEEL", "dist")


def request(*, text=EDITED, path="mine.yaml", out="s3://bucket/run", arguments=(), grid_text=None):
    grid_text = grid_text or shipped_grids()["demo"].read_text(encoding="utf-8")
    grid = load_grid(find_grid("demo"))
    return LaunchRequest(parse_cluster(Path(path), text), grid, grid_text, out, None, tuple(arguments))


def test_a_lost_machine_and_a_driver_that_saved_go_on_and_a_stopped_one_does_not():
    task = yaml.safe_load(EDITED)
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [143]
    assert recovery["max_restarts_on_errors"] == 0
    assert task["resources"]["use_spot"] is True
    assert task["num_nodes"] == 1


def test_versions_in_the_task_are_those_that_are_installed():
    setup = yaml.safe_load(EDITED)["setup"]
    assert f"ray=={version('ray')} " in setup
    assert f"/ablate-{__version__}-py3-none-any.whl" in setup


def test_marks_are_refused_with_their_line():
    with pytest.raises(InputError, match=r"mine.yaml:15: EDIT-GPU must be replaced"):
        explain(request(text=SHIPPED))


def test_sky_itself_takes_the_task():
    sky = pytest.importorskip("sky", reason="needs SkyPilot, which is no dependency")
    from sky.utils import common_utils, schemas

    task = yaml.safe_load(EDITED)
    common_utils.validate_schema(task, schemas.get_task_schema(), "")
    common_utils.validate_schema(task["resources"], schemas.get_resources_schema(), "")
    wrong = {**task["resources"], "use_spott": True}
    with pytest.raises(ValueError, match="use_spott"):
        common_utils.validate_schema(wrong, schemas.get_resources_schema(), "")
    assert sky.Task.from_yaml_config(task, env_overrides=[("ABLATE_OUT", "s3://b/x")]).envs["ABLATE_GRID"] == "paper"


def test_the_task_has_only_fields_that_sky_0_14_has():
    known = {"name", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
    resources = {"infra", "accelerators", "cpus", "memory", "disk_size", "use_spot", "job_recovery"}
    task = yaml.safe_load(EDITED)
    assert set(task) <= known
    assert set(task["resources"]) <= resources


def run_task(tmp_path, environment):
    """Run the task's own command with a stand-in for ablate that prints its words and exits with 5."""
    folder = tmp_path / "ablate" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text('PATH="$HOME/ablate/bin:$PATH"\n')
    script = folder / "ablate"
    script.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexit 5\n')
    script.chmod(0o755)
    return subprocess.run(
        ["bash", "-c", yaml.safe_load(EDITED)["run"]],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_keeps_every_word_and_its_exit_code(tmp_path):
    options = "--set 'description=a $HOME b' --keep-weights"
    done = run_task(tmp_path, {"ABLATE_OUT": "s3://b/a b", "ABLATE_GRID": "paper", "ABLATE_OPTIONS": options})
    assert done.stdout.splitlines() == [
        *("run", "--grid", "paper", "--out", "s3://b/a b"),
        *("--set", "description=a $HOME b", "--keep-weights"),
    ]
    assert done.returncode == 5


def test_a_search_space_travels_as_its_text(tmp_path):
    text = "name: x\ndescription: \"costs $5, 'so'\"\n"
    done = run_task(tmp_path, {"ABLATE_OUT": "s3://b/x", "ABLATE_GRID": text, "ABLATE_OPTIONS": ""})
    assert done.stdout.splitlines()[2] == str(tmp_path / "grid.yaml")
    assert yaml.safe_load((tmp_path / "grid.yaml").read_text()) == yaml.safe_load(text)


def test_a_launch_answers_with_the_command_to_type(tmp_path):
    """A shell that expands the command gives `sky` the words that were meant."""
    asked = request(arguments=("--set", "seeds=[0, 1]"), path="my file.yaml")
    assert command(asked) in explain(asked)
    sky = tmp_path / "sky"
    sky.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    sky.chmod(0o755)
    printed = subprocess.run(
        ["bash", "-c", command(asked)],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.splitlines() == [
        *("jobs", "launch", "-n", "ablate"),
        *("--env", "ABLATE_OUT=s3://bucket/run", "--env", "ABLATE_GRID=demo"),
        *("--env", "ABLATE_OPTIONS=--set 'seeds=[0, 1]'", "my file.yaml"),
    ]


def test_a_search_space_of_ones_own_is_told_to_go_as_text():
    assert 'ABLATE_GRID="$(cat GRID.yaml)"' in command(request(grid_text="name: other\n"))


def test_a_folder_is_refused_as_store():
    with pytest.raises(InputError, match="--out must be an s3:// or gs:// address"):
        explain(request(out="/tmp/run"))
