"""Landmarks in new images, by the kept weights of a trial on every kind of network."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import small_network, tiny_trial

from ablate.predict import predict_folder
from ablate.space import NETWORKS
from ablate.stage.settings import Settings
from ablate.stage.task import data_in
from ablate.stage.trial import run_trial
from ablate.store import Store
from ablate.store.layout import RUN_FILE

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_of_network_finds_the_landmarks_of_its_data_set(kind: str, tmp_path: Path) -> None:
    network = small_network(kind)
    fields = network.model_dump(include={"kind", *network.fields})
    trial = tiny_trial(network=fields, image_size=32, shots=4)
    store = Store.open(tmp_path / "run")
    assert run_trial(trial, store, data_in(None), settings=Settings(keep_weights=True))["status"] == "finished"
    store.write(RUN_FILE, b"name: one\n")
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        grey = np.random.default_rng(number).integers(0, 255, (40, 30), dtype=np.uint8)
        Image.fromarray(grey).save(images / f"{number}.png")
    predict_folder(store, trial.trial_id, images, tmp_path / "found", overlays=False)
    rows = list(csv.DictReader((tmp_path / "found" / "predictions-long.csv").read_text().splitlines()))
    assert len(rows) == 2 * 12  # the landmarks of `synthetic`
    assert all(np.isfinite(float(row["x"])) for row in rows)
