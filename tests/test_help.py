"""The help of every command, and what the shell completes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml
from fake_run import specs, write_fake_run
from runs import CLI

from ablate.cli import completion
from ablate.cli.app import app
from ablate.cli.shared import SHIPPED
from ablate.datasets.importing.formats import FORMATS
from ablate.errors import nearest
from ablate.report.literature import COLUMNS, METRIC_NAMES
from ablate.report.metrics import METRICS, RATES
from ablate.report.render import Format
from ablate.running.ray_tune import TRACKERS
from ablate.space import BUILT_IN_DATASETS, find_grid, load_grid, shipped_grids


def commands(group=None, words=("ablate",)):
    """Yield the words and the object of every command."""
    for name, command in (typer.main.get_command(app) if group is None else group).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_that_the_command_takes(ablate, words):
    code, out, _ = ablate(*words[1:], "--help")
    assert code == 0
    example = shlex.split(out.partition("Example:\n")[2].splitlines()[0])
    assert tuple(example[: len(words)]) == words
    known = COMMANDS[words].params + (COMMANDS["ablate", "run"].params if words[-1] == "launch" else [])
    options = {option for parameter in known for option in parameter.opts}
    assert {word for word in example if word.startswith("--")} <= options


def test_the_help_names_the_choices_there_are(ablate):
    assert set(SHIPPED) == set(shipped_grids())
    assert (*completion.METRICS,) == tuple(METRICS)
    assert completion.RATES == RATES

    def helped(*words):
        return " ".join(ablate(*words, "--help")[1].split()).replace("- ", "-")  # lines break behind hyphens too

    for command in ("plan", "run", "trial"):
        assert ", ".join(SHIPPED) in helped(command)
    assert ", ".join(METRICS) in helped("results")
    formats = helped("results").partition("--format <str> ")[2].partition(" [")[0]
    assert set(formats.replace(" or ", ", ").split(", ")) <= set(get_args(Format))
    assert f"{', '.join(list(FORMATS)[:-1])} or {list(FORMATS)[-1]}" in helped("data", "import")
    assert ", ".join(BUILT_IN_DATASETS) in helped("data", "check")
    assert {*COLUMNS, *METRIC_NAMES} <= set(re.findall(r"\w+", helped("reference", "add")))
    *some, last = TRACKERS
    assert f"{', '.join(some)} or {last}" in helped("run")


# --- completion -------------------------------------------------------------------------------------


def completed(line, folder, **environment):
    """Return what the shell offers at the end of a command line."""
    words = line.split(" ")
    asked = {"_ABLATE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        CLI, env={**os.environ, **asked, **environment}, cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run in `runs/one`, whose first trial's weights were kept, and a user's data set in `data/`."""
    folder = tmp_path_factory.mktemp("shell")
    trials = specs(methods=("ddpm", "scratch"), shots=(5, 10), seeds=(0,))
    store = write_fake_run(folder / "runs" / "one", trials, pictures=False, curves=False)
    described = yaml.safe_load(store.read("run.yaml"))
    described["data"]["cephalo"]["sdr_thresholds"] = [2, 2.5, 4]
    store.write("run.yaml", yaml.safe_dump(described).encode())
    store.write(f"trials/{trials[0].trial_id}/model.safetensors", b"weights")
    (folder / "data" / "mine").mkdir(parents=True)
    (folder / "data" / "mine" / "dataset.yaml").write_text("unit: px")
    (folder / "my.yaml").write_text("name: my")
    (folder / "notes.txt").write_text("")
    return folder, [trial.trial_id for trial in trials]


def test_search_spaces_complete_by_name_and_by_path(run):
    folder, _ = run
    assert completed("ablate run --grid c", folder) == ["cephalo-cpu", "cephalo-imagenet", "cross-domain"]
    assert completed("ablate plan --grid m", folder) == ["matched", "my.yaml"]
    assert completed("ablate plan --grid runs/one/r", folder) == ["runs/one/run.yaml"]


def test_data_sets_complete_with_the_users_own(run):
    folder, _ = run
    assert completed("ablate data check ", folder) == [*BUILT_IN_DATASETS, "mine"]
    (folder / "elsewhere" / "other").mkdir(parents=True, exist_ok=True)
    (folder / "elsewhere" / "other" / "dataset.yaml").write_text("unit: px")
    assert completed("ablate data preview o", folder, ABLATE_DATA="elsewhere") == ["other"]
    assert completed("ablate data prepare --data elsewhere o", folder) == ["other"]


def test_runs_and_their_metrics_complete(run):
    folder, _ = run
    assert completed("ablate status ", folder) == ["runs/one"]
    assert completed("ablate report runs/", folder) == ["runs/one"]
    assert completed("ablate results runs/one --metric mre_", folder) == ["mre_median", "mre_std"]
    assert completed("ablate results runs/one --metric sdr", folder) == ["sdr@2", "sdr@2.5", "sdr@4"]
    assert completed("ablate results runs/one --format g", folder) == ["github"]


def test_published_results_complete_by_the_names_that_a_run_keeps(run):
    folder, _ = run
    (folder / "runs" / "one" / "references").mkdir(exist_ok=True)
    for name in ("di-via.csv", "payer.csv"):
        (folder / "runs" / "one" / "references" / name).write_text("")
    assert completed("ablate reference remove ", folder) == ["runs/one"]
    assert completed("ablate reference remove runs/one ", folder) == ["di-via", "payer"]
    assert completed("ablate reference remove runs/one d", folder) == ["di-via"]


def test_ids_complete_of_a_run_and_of_a_search_space(run):
    folder, ids = run
    assert completed("ablate trial --out runs/one ", folder) == ids
    assert completed("ablate predict runs/one ", folder) == ids[:1]  # the others have no weights
    demo = [trial.trial_id for trial in load_grid(find_grid("demo")).trials]
    assert completed("ablate trial --grid demo ", folder) == demo
    assert completed(f"ablate trial --grid demo {demo[3][:5]}", folder) == [demo[3]]
    assert completed("ablate trial --grid nowhere ", folder) == []


@pytest.mark.parametrize("line", ["ablate trial --out runs/one ", "ablate results runs/one --metric m"])
def test_completion_imports_nothing_heavy(run, line):
    heavy = {"torch", "ray", "pandas", "pyarrow", "scipy", "matplotlib"}
    code = (
        "import atexit, os, sys\n"
        f"atexit.register(lambda: print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr))\n"
        "from ablate.cli import main; main()"
    )
    asked = {"_ABLATE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        cwd=run[0],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    assert done.stderr == "[]\n"


# --- what was meant ---------------------------------------------------------------------------------


def test_did_you_mean_never_offers_the_same_word():
    assert nearest("mre", ["mre", "mre_std"]) == ""
    assert nearest(5, iter(["5", "55"])) == ""
    assert nearest("mree", ["mre", "mre_std"]) == " (did you mean 'mre'?)"
