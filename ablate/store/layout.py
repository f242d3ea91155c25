"""The paths of a run directory, relative to its store; every path is spelled here, once.

    run.yaml                          what the run is about
    pretrained/KEY/step_N/            a snapshot of a shared pre-training: model.safetensors and its manifest
    pretrained/KEY/state/step_N/      the training state of that pre-training
    pretrained/KEY/log.txt            its log
    trials/ID/                        a trial's weights where they are kept: model.safetensors, spec.json, manifest
    trials/ID/state/step_N/           the training state of its fine-tuning
    trials/ID/pretrained/             a pre-training of the trial's own, laid out as pretrained/KEY
    trials/ID/log.txt                 its log
    starts/NAME-CONTENT/              a starting point of one's own: model.safetensors, order.json and its manifest
    tuning/ID/                        a tuning trial: results/at_SHARE, state/step_N and log.txt
    tables/NAME/PART.parquet          rows of a table
    pictures/DATASET/                 thumbnails of the test radiographs: IMAGE.jpg and index.json
    pictures/ddpm/KEY.png             noising and sampling of a DDPM
    report/                           tables, figures and the page
    references/NAME.csv               published results that tables and figures show beside the run's own
    tensorboard/                      event files, where they are asked for
    .ablate/                          control files of the driver: its lock, requests to stop, its progress

What an artifact's folder holds beside its files, `manifest.json`, is defined in `ablate.store.manifest`.
"""

from __future__ import annotations

import hashlib
import re

from ablate.store.manifest import step_name

RUN_FILE = "run.yaml"
"""What the run is about, on which data, and by which versions."""

PRETRAINED = "pretrained"
"""Holds a folder for each shared pre-training; within a trial's folder, the trial's own pre-training."""

TRIALS = "trials"
"""Holds a folder for each trial."""

TUNING = "tuning"
"""Holds a folder for each trial by which configurations are judged."""

TABLES = "tables"
"""Holds a folder of part files for each table."""

PICTURES = "pictures"
"""Holds a folder of thumbnails for each data set, and the strips of DDPMs."""

REPORT = "report"
"""Holds the report, unless it is written elsewhere."""

REFERENCES = "references"
"""Holds published results, as CSV files."""

TENSORBOARD = "tensorboard"
"""Holds tensorboard's event files."""

STATE = "state"
"""Within a stage's folder: holds its training states, a step folder each."""

LOG = "log.txt"
"""Within a stage's folder: its log."""

MODEL = "model.safetensors"
"""Within an artifact's folder: the tensors of a snapshot, or a trial's weights."""

STARTS = "starts"
"""Holds a folder for each starting point of one's own."""

ORDER = "order.json"
"""Within the folder of a starting point: the order of its tensors, and in which container of their file they were."""

SPEC = "spec.json"
"""Within a trial's folder: the trial that the weights beside it belong to."""

STRIPS = f"{PICTURES}/ddpm"
"""Holds the strips of DDPMs."""

INDEX = "index.json"
"""Within a data set's folder of thumbnails: their sizes; written last."""

CONTROL = ".ablate"
"""Holds the lock, the stop requests and the progress; hidden, so that it counts among nobody's files."""

LOCK = f"{CONTROL}/lock.json"
"""The run's lock."""

GUARD = f"{CONTROL}/guard"
"""An empty file, locked by the operating system while the run's lock is looked at and written."""

PROGRESS = f"{CONTROL}/progress.json"
"""What the driver's display shows."""


def pretrained_folder(key: str, trial_id: str | None = None) -> str:
    """Return where a pre-training's artifacts lie: shared by all trials, or one trial's own."""
    return f"{PRETRAINED}/{key}" if trial_id is None else f"{trial_folder(trial_id)}/{PRETRAINED}"


def start_folder(name: str, content: str) -> str:
    """Return where a starting point lies, by its name and by what identifies its content."""
    plain = re.sub(r"[^\w.+-]", "_", name)
    return f"{STARTS}/{plain}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def trial_folder(trial_id: str) -> str:
    """Return where a trial's artifacts lie."""
    return f"{TRIALS}/{trial_id}"


def tuning_folder(trial_id: str) -> str:
    """Return where a tuning trial's artifacts lie."""
    return f"{TUNING}/{trial_id}"


def state_folder(home: str) -> str:
    """Return where the training states of the stage in the folder `home` lie."""
    return f"{home}/{STATE}"


def step_folder(folder: str, step: int) -> str:
    """Return the artifact of one step: a snapshot in a pre-training's folder, a state in a `state_folder`."""
    return f"{folder}/{step_name(step)}"


def log_file(home: str) -> str:
    """Return the log of the stage in the folder `home`."""
    return f"{home}/{LOG}"


def table_folder(table: str) -> str:
    """Return the folder of a table's part files."""
    return f"{TABLES}/{table}"


def part_file(table: str, part: str) -> str:
    """Return one part file of a table."""
    return f"{table_folder(table)}/{part}.parquet"


def thumbnail_folder(dataset: str) -> str:
    """Return the folder of a data set's thumbnails."""
    return f"{PICTURES}/{dataset}"


def thumbnail_index(dataset: str) -> str:
    """Return the file that lists a data set's thumbnails."""
    return f"{thumbnail_folder(dataset)}/{INDEX}"


def thumbnail_file(dataset: str, image: str) -> str:
    """Return the thumbnail of the radiograph `image`, named by its file."""
    return f"{thumbnail_folder(dataset)}/{image}.jpg"


def strips_file(key: str) -> str:
    """Return the strips of the DDPM pre-training `key`."""
    return f"{STRIPS}/{key}.png"


def reference_file(name: str) -> str:
    """Return a file of published results, by its name without the ending."""
    return f"{REFERENCES}/{name}.csv"


def stop_request(run_token: str) -> str:
    """Return the request to stop for the driver `run_token`."""
    return f"{CONTROL}/stop-{run_token}"


def probe_file(token: str) -> str:
    """Return a small object by which the conditional writes of a store are tried."""
    return f"{CONTROL}/probe-{token}"
