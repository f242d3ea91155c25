"""The command line: what it prints, and what it refuses with which words before any training starts."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import typer
import yaml
from fake_run import specs, write_fake_run
from PIL import Image
from tiny import tiny_fields, tiny_trial

from ablate import __version__, tables
from ablate.cli.app import app
from ablate.running.driver import RunResult
from ablate.running.options import Options
from ablate.space import METHODS, Source, TrialSpec, load_grid
from ablate.store import Store
from ablate.store.lock import RunLock


def write_grid(path, **changes):
    """Write a search space of one tiny trial, with fields replaced by dotted names."""
    fields = tiny_fields("ddpm")
    for name, value in changes.items():
        node = fields
        *parents, last = name.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    path.write_text(yaml.safe_dump({"name": "tiny", "blocks": [{"grid": fields}]}))
    return path


def plan_of_one(grid):
    """Return what `ablate run` prints first of a search space of one trial of DDPM."""
    (trial,) = load_grid(Source.parse(grid.read_text(), "grid")).trials
    return (
        "tiny\n"
        "  trials         1\n"
        "  pre-trainings  1 for 1 trial: sharing saves 0 pre-trainings, 0 of 6 optimizer steps\n"
        f"    {trial.pretrain_key}  DDPM T=500, 6 steps on {trial.dataset}, unet, 1 trial\n"
        "  axes\n"
        f"{checking(1)}"
    )


def checking(trials):
    """Return the line that `ablate run` prints after the plan, before it imports what takes seconds."""
    return f"checking {trials} trial{'s' * (trials > 1)}: data sets, networks, weights\n"


def write_dataset(folder, *, images=6, points="3,4,5,6"):
    """Write a user's data set of noise images."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,x0,y0,x1,y1"]
    for number in range(images):
        grey = np.random.default_rng(number).integers(0, 255, (20, 16), dtype=np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,{points}")
    (folder / "landmarks.csv").write_text("\n".join(rows) + "\n")
    splits = {"train": images - 3, "val": 1, "test": 2}
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"unit": "px", "splits": splits}))
    return folder


def size_of(path):
    with Image.open(path) as image:
        return image.size


def assert_refused(outcome, message, *, out=""):
    """The command has printed `out`, and then one message, unwrapped."""
    assert outcome == (2, out, f"ablate: {message}\n")


def without_rates(text):
    """Return an output with the loss and the speed of training as N."""
    return re.sub(r"(?<=loss )[\d.]+|[\d.]+(?= images/s)", "N", text)


def trained(spec, run, phases=("finetune  1/1",)):
    """Return what `ablate trial` prints of a trial that it has run, with `without_rates`."""
    from ablate.running.naming import Names

    (row,) = tables.read_table(Store.open(run), "trials").to_pylist()
    lines = [
        f"trial {spec.trial_id}: {Names([spec]).trial(spec)}",
        *(f"{phase}  loss N  N images/s" for phase in phases),
    ]
    found = f"MRE {row['mre']:.3f} {row['unit']}, median {row['mre_median']:.3f} {row['unit']}"
    return "\n".join([*lines, f"{found}, best epoch {row['best_epoch']}"]) + "\n"


# --- what it prints


COMMANDS = [
    *("grids", "plan", "bench", "run", "trial", "launch", "attach", "status", "stop", "doctor", "results", "report"),
    *("predict", "clean", "data", "cluster", "tune", "reference"),
]


def listed(text, title):
    """Return the first words of the lines below a title of a help."""
    return re.findall(r"^  (\S+)  ", text.partition(f"{title}:\n")[2].partition("\n\n")[0], re.MULTILINE)


def test_help_names_every_command(ablate):
    code, out, err = ablate("--help")
    assert (code, err) == (0, "")
    assert out.startswith(
        "Usage: ablate [OPTIONS] COMMAND [ARGS]...\n\n"
        "  Distributed ablations of few-shot landmark detection in X-ray images.\n\n"
    )
    assert listed(out, "Commands") == COMMANDS
    assert listed(ablate("data", "--help")[1], "Commands") == ["import", "check", "preview", "prepare"]
    assert listed(ablate("cluster", "--help")[1], "Commands") == ["status", "logs", "down"]
    assert listed(ablate("tune", "--help")[1], "Commands") == ["export"]
    assert listed(ablate("reference", "--help")[1], "Commands") == ["add", "list", "remove"]


def test_the_package_runs_as_a_module_too(ablate):
    done = subprocess.run([sys.executable, "-m", "ablate.cli", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == ablate("--help")[1]
    assert ablate("--version") == (0, f"ablate {__version__}\n", "")


def test_help_imports_nothing_heavy():
    heavy = {"torch", "ray", "pandas", "pyarrow", "numpy", "rich", "pydantic", "yaml"}
    code = f"import sys; import ablate.cli.app; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_imported_before_the_start_is_next_to_nothing():
    code = "import sys; import ablate.cli; print(sorted(n for n in sys.modules if n.startswith(('ablate.', 'typer'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['ablate.cli', 'ablate.cli.entry', 'ablate.cli.interrupts']\n"


def test_the_defaults_of_run_are_those_of_options(ablate):
    command = typer.main.get_command(app).commands["run"]
    defaults = {parameter.name: parameter.default for parameter in command.params}
    assert defaults.pop("no_share") == (not Options.share)
    assert (defaults.pop("log"), Options.log) == (None, ())  # both of nothing
    assert defaults.pop("data") == Options.data_dir
    for name in ("grid", "out", "set_", "costs", "dry_run"):  # not of how a run goes
        del defaults[name]
    others = {"out", "data_dir", "share", "log"}
    assert defaults == {field.name: field.default for field in dataclasses.fields(Options) if field.name not in others}
    shown = ("cpus_per_stage", "deterministic", "cuda_graphs", "max_failures", "store_patience", "checkpoint_minutes")
    found = re.findall(r"\[default: ([^;\]]*)", ablate("run", "--help")[1])
    values = {name: getattr(Options, name) for name in shown}
    switched = {True: "", False: "no-"}
    words = [
        switched[value] + name.replace("_", "-") if isinstance(value, bool) else str(value)
        for name, value in values.items()
    ]
    found.remove("no-compile")  # of `compiled`
    assert found == words


def test_the_help_of_run_lists_the_exit_codes(ablate):
    code, out, _ = ablate("run", "--help")
    assert code == 0
    assert out.endswith(
        "  Exit codes:\n"
        "    0         done\n"
        "    1         some trials failed, or the store is full or refuses files\n"
        "    2         refused before any compute: bad input, bad environment\n"
        "    3         the store stayed away for longer than --store-patience\n"
        "    4         another driver has taken the run over, because this one seemed\n"
        "              to be gone\n"
        "    5         stopped by `ablate stop`\n"
        "    130, 143  interrupted by SIGINT (Ctrl-C) or SIGTERM, every state saved\n"
        "  After every one but 2 the same command goes on with what is left.\n"
    )


def test_grids_lists_every_shipped_search_space(ablate):
    assert ablate("grids") == (
        0,
        "authors-checkpoints  180 trials  The checkpoints that the paper's authors published, fine-tuned on chest, "
        "cephalo and hand\n"
        "cephalo-cpu          24 trials  DDPM, MoCo v3, SimCLR v2 and scratch on one small U-Net with "
        "real cephalograms "
        "at 64 x 64\n"
        "cephalo-imagenet     12 trials  ImageNet weights against scratch on EfficientNet-Lite0 with real cephalograms "
        "at 64 x 64\n"
        "cross-domain        144 trials  Pre-training on one data set and fine-tuning on another, DDPM and MoCo v3\n"
        "demo                 24 trials  Four initialisations on generated 32 x 32 radiographs, few shots and many\n"
        "label-efficiency    200 trials  Error against the number of annotated cephalograms for every family of "
        "initialisation\n"
        "matched             240 trials  Initialisations on one and the same network, a U-Net, an ImageNet encoder, "
        "the spatial-configuration network\n"
        "paper               270 trials  The authors' profile on chest, cephalo and hand over the number of shots\n"
        "recommended         270 trials  Our profile on chest, cephalo and hand over the number of shots\n"
        "scn-cpu               6 trials  The spatial-configuration network from scratch with real cephalograms at "
        "64 x 64\n"
        "timesteps           144 trials  DDPM timesteps against pre-training steps on cephalograms with "
        "10 and 50 shots\n"
        "tuned                18 trials  DDPM, SimCLR v2 and scratch on one small U-Net, tuned with equal budgets, "
        "with real cephalograms at 64 x 64\n"
        "tuned-paper          60 trials  DDPM, self-supervision and scratch on one U-Net at 256 x 256, each tuned "
        "three times with equal budgets\n"
        "why-ddpm            114 trials  DDPM against a denoising autoencoder, masked images, its encoder alone, and "
        "other timesteps and noise\n"
        "why-ddpm-cpu         72 trials  DDPM against its controls, on a small U-Net and on a strong network, tuned, "
        "with real cephalograms at 64 x 64\n",
        "",
    )


def test_plan_counts_what_sharing_saves(ablate):
    # 144 trials, 4 values of T: each pre-training goes to 16 000 steps once instead of 36 times to 48 000 / 6
    snapshots = "snapshots at 2000, 4000, 6000, 8000, 12000, 16000"
    assert ablate("plan", "--grid", "timesteps") == (
        0,
        "timesteps: DDPM timesteps against pre-training steps on cephalograms with 10 and 50 shots\n"
        "  trials         144\n"
        "  pre-trainings  4 for 144 trials: sharing saves 140 pre-trainings, 1,088,000 of 1,152,000 optimizer steps\n"
        f"    a6e75f98a0ba  DDPM T=100, 16000 steps on cephalo, unet, 36 trials; {snapshots}\n"
        f"    dbe34c3692a3  DDPM T=250, 16000 steps on cephalo, unet, 36 trials; {snapshots}\n"
        f"    db7a83545ee0  DDPM T=500, 16000 steps on cephalo, unet, 36 trials; {snapshots}\n"
        f"    9d8279aafbfd  DDPM T=1000, 16000 steps on cephalo, unet, 36 trials; {snapshots}\n"
        "  axes\n"
        "    shots                    10, 50\n"
        "    seed                     0, 1, 2\n"
        "    pretrain_steps           2000, 4000, 6000, 8000, 12000, 16000\n"
        "    pretrain_timesteps       100, 250, 500, 1000\n",
        "",
    )


def test_dry_run_prints_the_plan_checks_and_leaves_nothing(ablate, tmp_path, monkeypatch):
    monkeypatch.setattr("ablate.stage.machine.bf16_speed", lambda: 1.0)
    outcome = ablate("run", "--grid", "demo", "--dry-run", "--out", tmp_path / "new" / "run")
    assert outcome == (
        0,
        "demo: Four initialisations on generated 32 x 32 radiographs, few shots and many\n"
        "  trials         24\n"
        "  pre-trainings  3 for 18 trials: sharing saves 15 pre-trainings, 2,250 of 2,700 optimizer steps\n"
        "    17c2cd655343  DDPM T=100, 150 steps on synthetic, unet, 6 trials\n"
        "    9ff635fa199b  SimCLR, 150 steps on synthetic, unet, 6 trials\n"
        "    4481618a51de  MoCo v3, 150 steps on synthetic, unet, 6 trials\n"
        "  axes\n"
        "    shots                    4, 12, 32\n"
        "    seed                     0, 1\n"
        "    pretrain_method          DDPM, SimCLR, MoCo v3, scratch\n"
        f"{checking(24)}"
        "preparing synthetic at 32 x 32 pixels\n"
        "starting Ray on this machine\n"
        "checked: 24 trials to run, 0 done before; nothing was started\n",
        "",
    )
    assert list(tmp_path.iterdir()) == []


def test_the_first_words_of_a_run_come_before_what_takes_long_to_import(tmp_path):
    grid = write_grid(tmp_path / "grid.yaml")
    code = "import sys; sys.modules['ablate.running.driver'] = None; from ablate.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "--grid", grid, "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == plan_of_one(grid)


def test_the_status_of_a_run_has_its_data_sets_and_every_trial_with_its_id(ablate, tmp_path):
    trials = specs(datasets=("cephalo", "hand"), methods=("ddpm", "scratch"), shots=(5,), seeds=(0, 1))
    store = write_fake_run(tmp_path / "run", trials, failed=[1], missing=[2, 7], pictures=False, curves=False)
    errors = {row["trial_id"]: row["mre"] for row in tables.read_table(store, "trials").to_pylist()}
    words = [
        f"{method}, {dataset}, seed {seed}"
        for dataset in ("cephalo", "hand")
        for method in ("DDPM", "scratch")
        for seed in (0, 1)
    ]
    states = ["finished", "failed", "open", "finished", "finished", "finished", "finished", "open"]
    listed = [
        f"  {state:<11} {trial.trial_id}  "
        + (f"MRE {errors[trial.trial_id]:.2f} mm " if state == "finished" else " " * 12)
        + f"  {name}"
        for trial, state, name in zip(trials, states, words, strict=True)
    ]
    code, out, err = ablate("status", tmp_path / "run")
    assert (code, err) == (0, "")
    assert out.splitlines()[:12] == [
        f"{tmp_path / 'run'}: no driver is at work",
        "data sets      cephalo: 50 training, 10 validation, 12 test images, 5 landmarks, errors in mm",
        "               hand: 50 training, 10 validation, 12 test images, 5 landmarks, errors in mm",
        "trials         8: 5 finished, 1 failed, 2 open",
        *listed,
    ]


def test_many_trials_are_listed_on_request_only(ablate, tmp_path):
    trials = specs(methods=("scratch",), shots=(5,), seeds=range(45))
    write_fake_run(tmp_path / "run", trials, missing=range(45), pictures=False, curves=False)
    ids = [trial.trial_id for trial in trials]
    _, some, _ = ablate("status", tmp_path / "run")
    assert [line.split()[1] for line in some.splitlines() if line.startswith("  open")] == ids[:40]
    assert "  and 5 trials more: --trials lists them\n" in some
    _, every, _ = ablate("status", tmp_path / "run", "--trials")
    assert [line.split()[1] for line in every.splitlines() if line.startswith("  open")] == ids


@pytest.mark.parametrize(
    ("missing", "failed", "table"),
    [
        (range(1, 6), [], True),
        (range(6), [], False),
        (range(1, 6), [0], False),
    ],
    ids=["one", "none", "failed"],
)
def test_after_an_early_end_the_table_holds_what_has_finished(ablate, tmp_path, monkeypatch, missing, failed, table):
    fields = [{**tiny_fields(method), "shots": 3, "seed": seed} for seed in (0, 1, 2) for method in ("scratch", "ddpm")]
    trials = [TrialSpec.model_validate(each) for each in fields]
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"name": "tiny", "blocks": [{"grid": each} for each in fields]}))
    store = write_fake_run(tmp_path / "run", trials, missing=missing, failed=failed, pictures=False, curves=False)
    result = RunResult(130, 6 - len(missing) - len(failed), len(failed), len(missing))
    monkeypatch.setattr("ablate.running.driver.run_grid", lambda *arguments: result)
    code, out, _ = ablate("run", "--grid", grid, "--out", tmp_path / "run")
    assert code == 130
    _, _, after = out.partition(checking(6))
    assert "–" not in after
    assert "missing" not in after
    shown, _, _ = after.partition(f"{result.finished} trials finished, {result.failed} failed, {result.missing} open\n")
    if not table:
        assert shown == "\n"
        return
    (row,) = tables.read_table(store, "trials").to_pylist()
    caption, _, header, line, *rest = shown.strip().splitlines()
    assert caption.startswith("MRE (mm) by initialisation and shots")
    assert header.split() == ["initialisation", "3"]
    assert line.split() == ["scratch", f"{row['mre']:.2f}"]
    assert rest == []


# --- one trial, and what is read from it


def test_a_trial_from_the_shell_and_what_follows(ablate, tmp_path):
    grid = write_grid(tmp_path / "grid.yaml", pretrain={"method": "scratch"})
    (spec,) = load_grid(Source.parse(grid.read_text(), "grid")).trials
    run = tmp_path / "run"
    code, out, err = ablate("trial", spec.trial_id, "--grid", grid, "--out", run, "--keep-weights")
    assert (code, without_rates(out), err) == (0, trained(spec, run, ("finetune  1/2",)), "")
    store = Store.open(run)
    assert tables.trial_status(store) == {spec.trial_id: "finished"}

    images, found = tmp_path / "new", tmp_path / "found"
    images.mkdir()
    for number, (width, height) in enumerate([(30, 40), (64, 16)]):
        Image.fromarray(np.zeros((height, width), np.uint8) + np.arange(width, dtype=np.uint8)).save(
            images / f"{number}.png"
        )
    assert ablate("predict", run, spec.trial_id, images, "--out", found) == (
        0,
        f"{found}/predictions.csv: 12 landmarks in 2 images\n{found}/predictions-long.csv: a row for each landmark\n"
        f"{found}: 2 overlays, one PNG for each image\n",
        "",
    )
    lines = (found / "predictions.csv").read_text().splitlines()
    points = [f"{axis}{number}" for number in range(12) for axis in "xy"]
    assert lines[0] == ",".join(["image", *points, *(f"confidence{number}" for number in range(12))])
    assert [line.split(",")[0] for line in lines[1:]] == ["0.png", "1.png"]
    wide = lines[1].split(",")
    assert len(wide) == 1 + 3 * 12
    assert all(0 <= float(share) <= 1 for share in wide[25:])
    rows = [line.split(",") for line in (found / "predictions-long.csv").read_text().splitlines()]
    assert rows[0] == ["image", "landmark", "name", "x", "y", "confidence"]
    assert rows[1] == ["0.png", "0", "0", *wide[1:3], wide[25]]
    assert len(rows) == 1 + 2 * 12
    assert sorted(path.name for path in found.glob("*.png")) == ["0.png", "1.png"]
    assert size_of(found / "1.png") == (64, 16)

    (row,) = tables.read_table(store, "trials").to_pylist()
    (constant,) = tables.read_table(store, "baselines").to_pylist()
    table = f"metric,unit,pretrain_method,shots,mean,sd,n,failed,missing\nmre,mm,scratch,3,{row['mre']},,1,0,0\n"
    table += f"mre,mm,mean_shape,3,{constant['mre']},,1,0,0\n\n"
    assert ablate("results", run, "--format", "csv") == (0, table, "")


def test_predict_without_kept_weights_says_how_to_keep_them(ablate, tmp_path):
    grid = write_grid(tmp_path / "grid.yaml", pretrain={"method": "scratch"}, finetune__epochs=1)
    (spec,) = load_grid(Source.parse(grid.read_text(), "grid")).trials
    run = tmp_path / "run"
    code, out, err = ablate("trial", spec.trial_id, "--grid", grid, "--out", run)
    assert (code, without_rates(out), err) == (0, trained(spec, run), "")
    (tmp_path / "image.png").write_bytes(b"")
    assert_refused(
        ablate("predict", run, spec.trial_id, tmp_path),
        f"trial {spec.trial_id} of {run} has no weights: run it with --keep-weights (in a new --out, or after deleting "
        "its row), then predict",
    )
    assert_refused(
        ablate("predict", run, "0" * 12, tmp_path),
        f"TRIAL_ID must be a finished trial of {run}, which has 1; got '000000000000'; `ablate status` "
        "and `ablate plan "
        "--trials` list them",
    )


def test_a_trial_of_a_run_on_an_object_store_is_found_by_its_id(ablate, tmp_path, s3_address):
    spec = tiny_trial(finetune={"epochs": 1})
    file = tmp_path / "trial.yaml"
    file.write_text(yaml.safe_dump(json.loads(spec.model_dump_json())))
    assert_refused(
        ablate("trial", spec.trial_id, "--out", s3_address),
        f"{s3_address.partition('?')[0]}: there is no run here; give the folder that --out named",
    )
    first = ablate("trial", file, "--out", s3_address)
    assert (first[0], without_rates(first[1]), first[2]) == (0, trained(spec, s3_address), "")
    code, out, err = ablate("trial", spec.trial_id, "--out", s3_address)
    assert (code, without_rates(out), err) == (0, trained(spec, s3_address), "")
    wrong = spec.trial_id[:-1]
    assert_refused(
        ablate("trial", wrong, "--out", s3_address),
        f"TRIAL must be a YAML file or the id of a trial in the run {s3_address.partition('?')[0]}; got '{wrong}' "
        f"(did you mean '{spec.trial_id}'?); ablate plan --trials lists a search space's ids",
    )


# --- what it refuses

BOTH = pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry-run"])
"""What `ablate run` refuses, `--dry-run` refuses too, in the same words."""


DDPM_FIELDS = (
    "accumulate, augment, batch_size, beta_schedule, betas, clip, clip_on, dataset, ema, ema_ramp, epoch_end, images, "
    "loss, lr, method, seed, steps, timesteps, transfer, warmup, weight_decay, weights"
)
METHOD_NAMES = ", ".join(METHODS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pretrain__timestps": 5},
            "GRID:28: blocks[0].grid.pretrain.timestps: method ddpm has no field 'timestps'; it has "
            f"{DDPM_FIELDS} (did you mean 'timesteps'?)",
        ),
        (
            {"finetune__epochs": "many"},
            "GRID:9: blocks[0].grid.finetune.epochs: epochs must be a whole number; got 'many'",
        ),
        (
            {"pretrain__method": "ddmp"},
            f"GRID:23: blocks[0].grid.pretrain.accumulate: pretrain.method must be one of {METHOD_NAMES}; got 'ddmp' "
            "(did you mean 'ddpm'?)",
        ),
        (
            {"pretrain__method": "imagenet"},
            "GRID:23: blocks[0].grid.pretrain.accumulate: method imagenet has no field 'accumulate'; it has method, "
            "weights",
        ),
        (
            {"network__kind": "encoder", "image_size": 32},
            "GRID:20: blocks[0].grid.network.kind: network.kind must be unet, reference or scn "
            "for pretrain.method ddpm; "
            "got 'encoder'; leave it out to take the method's own",
        ),
    ],
)
def test_a_search_space_that_cannot_be_expanded_is_refused(ablate, tmp_path, changes, message):
    grid = write_grid(tmp_path / "grid.yaml", **changes)
    assert_refused(ablate("run", "--grid", grid, "--out", tmp_path / "run"), message.replace("GRID", str(grid)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "sinthetic"},
            "dataset must be one of chest, cephalo, hand, synthetic or a folder with dataset.yaml in DATA (found: "
            "none); got 'sinthetic' (did you mean 'synthetic'?)",
        ),
        (
            {"shots": 131},
            "shots must be at most 130, the number of annotated training images of synthetic; got 131; lower it or say "
            "all",
        ),
        (
            {"network__channels": [7, 16]},
            "network.channels must start with an even number, for the time embedding; got 7",
        ),
    ],
)
@BOTH
def test_a_search_space_that_cannot_run_is_refused(ablate, tmp_path, changes, message, dry):
    grid = write_grid(tmp_path / "grid.yaml", **changes)
    outcome = ablate("run", "--grid", grid, "--data", tmp_path / "data", "--out", tmp_path / "run", *dry)
    assert_refused(outcome, message.replace("DATA", str(tmp_path / "data")), out=plan_of_one(grid))
    assert not list((tmp_path / "run").glob("tables/*"))


def test_imagenet_without_network_and_file_is_refused_with_the_cure(tmp_path):
    fields = {
        "dataset": "synthetic",
        "image_size": 32,
        "pretrain": {"method": "imagenet"},
        "shots": 4,
        "network": {"encoder": "resnet18"},
        "finetune": {"batch_size": 4},
    }
    grid, cache = tmp_path / "grid.yaml", tmp_path / "hub"
    grid.write_text(yaml.safe_dump({"name": "x", "blocks": [{"grid": fields}]}))
    done = subprocess.run(  # a process of its own: the library reads its environment once
        [sys.executable, "-m", "ablate.cli", "run", "--grid", grid, "--out", tmp_path / "run"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    message, reason = re.subn(r"(?<=downloaded \().*(?=\); give pretrain.weights)", "REASON", done.stderr)
    plan = "x\n  trials         1\n  pre-trainings  none\n  axes\n"
    assert (done.returncode, done.stdout) == (2, plan + checking(1))
    assert (message, reason) == (
        "ablate: pretrain.method imagenet: the ImageNet weights of resnet18 (smp-hub/resnet18.imagenet) are neither in "
        f"the cache {cache} nor can they be downloaded (REASON); give pretrain.weights: FILE with the "
        "encoder's weights, "
        'or on a machine with a network run python -c "import segmentation_models_pytorch as s; '
        "s.encoders.get_encoder('resnet18', weights='imagenet')\" and copy its cache folder "
        "models--smp-hub--resnet18.imagenet into that cache (HF_HUB_CACHE names another)\n",
        1,
    )


def damage_missing(folder):
    (folder / "images" / "2.png").unlink()
    return f"{folder}/landmarks.csv:4: image '2.png' is not in {folder}/images; add the image or remove its label"


def damage_corrupt(folder):
    (folder / "images" / "2.png").write_bytes(b"not an image")
    return (
        f"{folder}/images/2.png: must be a complete image file; it cannot be decoded (cannot identify image file "
        "'2.png'); replace the file, or remove it together with its label"
    )


def damage_truncated(folder):
    path = folder / "images" / "2.png"
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(data, "JPEG")
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    with pytest.raises(OSError, match="truncated") as error, Image.open(path) as image:
        image.load()
    return (
        f"{folder}/images/2.png: must be a complete image file; it cannot be decoded ({error.value}); replace the "
        "file, or remove it together with its label"
    )


def damage_too_few_points(folder):
    path = folder / "landmarks.csv"
    lines = path.read_text().splitlines()
    lines[3] = "2.png,3,4"
    path.write_text("\n".join(lines) + "\n")
    return (
        f"{folder}/landmarks.csv:4: must have 5 columns (2 landmarks) as the header; got 3, too few "
        "(image 2.png); leave "
        "both fields of a landmark empty if it is not annotated"
    )


def damage_empty(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    return (
        f"{folder}/images: must hold at least one image (png, jpg, jpeg, tif, tiff, bmp, dcm); found "
        "none; put them there"
    )


@pytest.mark.parametrize(
    "damage", [damage_missing, damage_corrupt, damage_truncated, damage_too_few_points, damage_empty]
)
@BOTH
def test_damaged_data_is_refused_before_training(ablate, tmp_path, damage, dry):
    message = damage(write_dataset(tmp_path / "data" / "mine"))
    grid = write_grid(tmp_path / "grid.yaml", dataset="mine", shots=2)
    outcome = ablate("run", "--grid", grid, "--data", tmp_path / "data", "--out", tmp_path / "run", *dry)
    decoded = "preparing mine at 16 x 16 pixels\n" if damage is damage_truncated else ""  # nothing else shows it
    assert_refused(outcome, message, out=plan_of_one(grid) + decoded)
    assert not list((tmp_path / "run").glob("tables/*"))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("FOLDER/file", "FOLDER/file: a store must be a folder, and this is a file; give another folder"),
        (
            "/proc/nowhere/run",
            "/proc/nowhere/run: cannot be used as a store: No such file or directory; give --out a folder that you may "
            "write to",
        ),
        ("ftp://host/run", "--out must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; got 'ftp://host/run'"),
    ],
)
@BOTH
def test_an_out_that_cannot_be_written_is_refused(ablate, tmp_path, out, message, dry):
    (tmp_path / "file").write_text("")
    grid = write_grid(tmp_path / "grid.yaml")
    out, message = (text.replace("FOLDER", str(tmp_path)) for text in (out, message))
    assert_refused(ablate("run", "--grid", grid, "--out", out, *dry), message, out=plan_of_one(grid))


PREPARING = "preparing synthetic at 16 x 16 pixels\n"


@BOTH
def test_a_gpu_that_is_not_there_is_refused(ablate, tmp_path, dry):
    grid = write_grid(tmp_path / "grid.yaml")
    code, out, err = ablate("run", "--grid", grid, "--out", tmp_path / "run", "--gpus-per-pretrain", "64", *dry)
    assert_refused(
        (code, out, re.sub(r"present \([^)]*\)", "present (HERE)", err)),
        "--gpus-per-pretrain must be at most 0: a stage runs on one node, and no node of this machine "
        "has 64 GPUs and 1 "
        "CPU: present (HERE); got 64; leave it out to compute on the CPU where there is no GPU",
        out=plan_of_one(grid) + PREPARING + "starting Ray on this machine\n",
    )


@pytest.mark.parametrize("command", ["status", "results", "report", "clean"])
def test_a_run_that_is_none_is_refused(ablate, tmp_path, command):
    run = tmp_path / "nowhere"
    assert_refused(ablate(command, run), f"{run}: there is no run here; give the folder that --out named")


def test_an_unknown_grid_or_override_is_refused(ablate, tmp_path):
    assert_refused(
        ablate("plan", "--grid", "papr"),
        "--grid must be one of authors-checkpoints, cephalo-cpu, cephalo-imagenet, cross-domain, demo, "
        "label-efficiency, matched, paper, recommended, scn-cpu, timesteps, tuned, tuned-paper, why-ddpm, "
        "why-ddpm-cpu or the path "
        "of a search-space file; got 'papr' (did you mean 'paper'?)",
    )
    assert_refused(
        ablate("plan", "--grid", "paper", "--set", "finetune.epohs=3"),
        "--set finetune.epohs=3: unknown key 'epohs'; known: accumulate, augment, batch_size, epochs, heat_scale, "
        "loss, lr, patience, plateau_factor, plateau_patience, schedule, sigma, sigma_penalty, steps, target, "
        "timestep, validate_every, warmup, weight_decay (did you mean 'epochs'?)",
    )
    assert_refused(
        ablate("trial", "0" * 12, "--grid", "demo", "--out", tmp_path),
        "TRIAL must be a YAML file or the id of a trial in search space demo; got '000000000000'; ablate plan --trials "
        "lists a search space's ids",
    )


def checked(name, folder, *, images, splits, width, height, pairs, lines=(), landmarks=2, scale="1 px per pixel"):
    """Return what `ablate data check` prints."""
    facts = {
        "data set": f"{name} ({folder})",
        "images": f"{images} annotated, 0 unlabelled",
        "splits": "train {}, val {}, test {}".format(*splits),
        "landmarks": f"{landmarks} per image, 0 not annotated",
        "image width": f"{width} px",
        "image height": f"{height} px",
        "scale": scale,
        "unreadable": "none",
        "landmarks outside their image": 0,
        "radiographs that occur twice": pairs,
    }
    return "\n".join([*(f"{fact:<31}{value}" for fact, value in facts.items()), *lines]) + "\n"


def test_data_check_finds_the_listed_duplicates(ablate, xray_data):
    rows = [line.split(",") for line in (xray_data / "cephalo" / "duplicate_pairs.csv").read_text().split()[1:]]

    def split_of(name):
        return "train" if int(name[:3]) <= 130 else "val" if int(name[:3]) <= 150 else "test"

    pairs = sorted(sorted(pair[:2]) for pair in rows)
    assert sum(int(left[:3]) <= 150 < int(right[:3]) for left, right in pairs) == 20
    lines = [f"  {left} ({split_of(left)}) = {right} ({split_of(right)})" for left, right in pairs]
    mirrored = (
        "warning: 1 radiograph may be mirrored, by the correlation with the mirrored mean image against that with the "
        "mean: 322.jpg (0.93 against 0.05); look at them, and mirror picture and landmarks, or leave them out"
    )
    warning = (
        "warning: 20 radiographs occur in two splits, listed above; with exclude_duplicates: true, test "
        "images that also "
        "occur in train or val are left out of the evaluation"
    )
    expected = checked(
        *("cephalo", xray_data / "cephalo"),
        **{"images": 400, "splits": (130, 20, 250), "width": 413, "height": 512, "landmarks": 19},
        scale="0.4685 to 0.4688 mm per pixel",
        pairs="23 pairs, 20 of them in two splits",
        lines=[*lines, mirrored, warning],
    )
    assert ablate("data", "check", "cephalo", "--data", xray_data) == (0, expected, "")


def test_data_check_of_a_broken_set_says_everything_and_exits_2(ablate, tmp_path):
    folder = write_dataset(tmp_path / "mine")
    missing = damage_missing(folder)
    (folder / "images" / "4.png").write_bytes(b"nothing")
    causes = [
        f"error: {folder}/images/4.png: must be a complete image file; it cannot be decoded (cannot identify image "
        "file '4.png'); replace the file, or remove it together with its label",
        f"error: {missing}",
        "error: mine: splits train 3, val 1, test 2 need exactly 6 annotated images; found 4; change splits in "
        "dataset.yaml, or leave test out for the rest",
    ]
    found = checked(
        *("mine", folder),
        **{"images": 4, "splits": (0, 0, 0), "width": 16, "height": 20},
        pairs="0 pairs, 0 of them in two splits",
        lines=[],
    )
    expected = "\n".join([*causes, found])
    assert ablate("data", "check", "mine", "--data", tmp_path) == (2, expected, "")


def test_preview_and_prepare_write_their_files(ablate, tmp_path, monkeypatch):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    write_dataset(tmp_path / "data" / "mine")
    sheet = tmp_path / "sheet.png"
    assert ablate("data", "preview", "mine", "--data", tmp_path / "data", "--out", sheet) == (0, f"{sheet}\n", "")
    assert size_of(sheet)[0] > 100
    code, out, err = ablate("data", "prepare", "mine", "--data", tmp_path / "data", "--image-size", "32")
    (prepared,) = (tmp_path / "cache").glob("mine-32-*.npz")
    assert (code, out, err) == (0, f"{prepared}\n", "")


def test_a_spec_file_runs_like_the_same_trial_of_a_grid(ablate, tmp_path):
    spec = tiny_trial(finetune={"epochs": 1})
    file = tmp_path / "trial.yaml"
    file.write_text(yaml.safe_dump(json.loads(spec.model_dump_json())))
    code, out, err = ablate("trial", file, "--out", tmp_path / "run")
    assert (code, without_rates(out), err) == (0, trained(spec, tmp_path / "run"), "")
    assert tables.trial_status(Store.open(tmp_path / "run")) == {spec.trial_id: "finished"}


def test_a_folder_that_is_no_run_is_left_alone(ablate, tmp_path):
    write_dataset(tmp_path / "mine")
    for command in ("status", "results", "report", "clean"):
        assert_refused(
            ablate(command, tmp_path),
            f"{tmp_path}: there is no run here (no run.yaml); give the folder that --out named",
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@BOTH
def test_a_cluster_that_does_not_answer_is_refused(ablate, tmp_path, dry):
    grid = write_grid(tmp_path / "grid.yaml")
    assert_refused(
        ablate("run", "--grid", grid, "--out", tmp_path / "run", "--address", "127.0.0.1:1", *dry),
        "--address 127.0.0.1:1: no Ray cluster answers there ([Errno 111] Connection refused); start "
        "one with 'ray start "
        "--head', or leave --address out to run on this machine",
        out=plan_of_one(grid) + PREPARING + "connecting to the Ray cluster at 127.0.0.1:1\n",
    )


def test_a_cluster_that_is_yet_to_come_is_left_out_of_a_dry_run(ablate, tmp_path):
    grid = write_grid(tmp_path / "grid.yaml")
    later = ("run", "--grid", grid, "--out", tmp_path / "run", "--address", "later", "--gpus-per-pretrain", "64")
    checked = "checked: 1 trial to run, 0 done before; nothing was started\n"
    with RunLock(Store.open(tmp_path / "run")):  # who is at work now says nothing about later
        assert ablate(*later, "--dry-run") == (0, plan_of_one(grid) + PREPARING + checked, "")
    assert_refused(
        ablate(*later),
        "--address later must go with --dry-run; give the address of a running Ray cluster",
        out=plan_of_one(grid),
    )


def test_a_picture_in_two_splits_with_different_labels_is_found(ablate, tmp_path):
    folder = write_dataset(tmp_path / "mine")
    grey = np.random.default_rng(7).integers(0, 255, (60, 50), dtype=np.uint8)
    for name in ("0.png", "5.png"):
        Image.fromarray(grey).save(folder / "images" / name)
    path = folder / "landmarks.csv"
    path.write_text(path.read_text().replace("5.png,3,4,5,6", "5.png,40,50,45,55"))
    expected = checked(
        *("mine", folder),
        **{"images": 6, "splits": (3, 1, 2), "width": "16 to 50", "height": "20 to 60"},
        pairs="1 pair, 1 of them in two splits",
        lines=[
            "  0.png (train) = 5.png (test)",
            "warning: 0.png and 5.png are the same picture, but their landmarks lie 110% of the side apart: one of the "
            "labels is wrong",
            "warning: 1 radiographs occur in two splits, listed above; with exclude_duplicates: true, test images that "
            "also occur in train or val are left out of the evaluation",
        ],
    )
    assert ablate("data", "check", "mine", "--data", tmp_path) == (0, expected, "")


def test_what_is_odd_in_the_data_is_said_before_a_run(ablate, tmp_path):
    folder = write_dataset(tmp_path / "data" / "mine", points="3,4,500,600")
    file = tmp_path / "trial.yaml"
    spec = tiny_trial(dataset="mine", shots=2, finetune={"epochs": 1})
    file.write_text(yaml.safe_dump(json.loads(spec.model_dump_json())))
    code, out, err = ablate("trial", file, "--data", folder.parent, "--out", tmp_path / "run")
    warning = (
        "warning: mine: 6 landmarks lie outside their image, the first: 0.png landmark 1 at (500.0, 600.0) of 16 x 20\n"
    )
    assert (code, without_rates(out), err) == (0, warning + trained(spec, tmp_path / "run"), "")


# --- places that are not there ----------------------------------------------------------------------


class RefusesUnsigned(BaseHTTPRequestHandler):
    """An S3 server that refuses every request, as real ones do without credentials."""

    def refuse(self):
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

    def log_message(self, *arguments):
        """Print nothing."""


@pytest.fixture
def forbidding():
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusesUnsigned) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("option", ["--out", "--data"])
def test_a_bucket_that_is_not_there_and_missing_credentials_are_refused(
    ablate, tmp_path, s3_server, forbidding, monkeypatch, option
):
    grid = tmp_path / "grid.yaml"
    base = {name: value for name, value in tiny_fields().items() if name not in ("shots", "pretrain")}
    name = "synthetic" if option == "--out" else "mine"
    grid.write_text(
        yaml.safe_dump({"name": "tiny", "base": base | {"dataset": name}, "blocks": [{"grid": {"shots": [2]}}]})
    )
    places = {"--out": str(tmp_path / "run"), "--data": str(tmp_path)}

    def refused(address, problem):
        chosen = places | {option: address}
        code, out, err = ablate("run", "--grid", grid, *[word for pair in chosen.items() for word in pair])
        plan = f"tiny\n  trials         1\n  pre-trainings  none\n  axes\n{checking(1)}"
        use = {"--out": "store", "--data": "folder of data"}[option]
        message, problems = re.subn(rf"(?<=as a {use}: ).*(?=; check)", "PROBLEM", err)
        assert (code, out, message, problems) == (
            2,
            plan,
            f"ablate: {address.partition('?')[0]}: cannot be used as a {use}: PROBLEM; check the bucket's name, the "
            "endpoint, the region and the credentials in the environment\n",
            1,
        )
        assert problem in err  # in pyarrow's words

    refused(f"s3://no-such-bucket-here/place?endpoint_override={s3_server}", "The specified bucket does not exist")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    refused(f"s3://bucket1/place?endpoint_override={forbidding}", "ACCESS_DENIED")


def test_a_data_address_without_the_data_set_is_refused(ablate, tmp_path, s3_address):
    fields = tiny_fields(dataset="mine", shots=2)
    spec = tmp_path / "trial.yaml"
    spec.write_text(yaml.safe_dump(fields))
    assert_refused(
        ablate("trial", spec, "--data", s3_address, "--out", tmp_path / "run"),
        "dataset must be one of chest, cephalo, hand, synthetic or a folder with dataset.yaml in "
        f"{s3_address.partition('?')[0]} (found: none); got 'mine'",
    )
