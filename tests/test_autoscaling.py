"""A run on a cluster that grows from nothing by Ray's autoscaler: what it asks for, gets, and gives back."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from fake_cluster import FakeCluster
from runs import CLI, driver, status_of, undisturbed, wait_until, write_grid
from same_tables import compare
from tiny import tiny_trial

from ablate.running.supervision import read_picture
from ablate.store import Store

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PRETRAIN = tiny_trial("simclr", pretrain={"steps": 150}).pretrain.model_dump(mode="json")
LONG = [{"seed": 7, "finetune": {"epochs": 1000}, "pretrain": PRETRAIN}]
MIDDLE = [{"seed": [4, 5, 6], "finetune": {"epochs": 100}, "pretrain": PRETRAIN}]
SHORT = [{"seed": [0, 1, 2, 3], "finetune": {"epochs": 20}, "pretrain": PRETRAIN}]
"""The longest start first: the long one and the middle ones share a node, and the short ones get another."""


class Progress:
    """How far a run was, by its store, looked at again and again: what could start at any time follows from it."""

    def __init__(self, store, trials):
        (self.key,) = {trial.pretrain_key for trial in trials}
        self.store, self.trials = store, trials
        self.looks = []  # (seconds since 1970 before and after the look, trials not finished, snapshot published)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()

    def _look(self):
        while not self._over.wait(0.2):
            before = time.time()
            left = len(self.trials) - sum(state == "finished" for state in status_of(self.store).values())
            published = self.store.exists(f"pretrained/{self.key}/step_000150/manifest.json")
            self.looks.append((before, time.time(), left, published))

    def could_start(self, at):
        """Return how many stages could have started, at most, by the last look before and the next one after."""
        left = [left for _, after, left, _ in self.looks if after <= at]
        published = [published for before, _, _, published in self.looks if before >= at]
        left_most = left[-1] if left else len(self.trials)
        return left_most if not published or published[0] else 1


def changes(samples, began):
    """Return when the number of nodes or of waiting stages changed: (seconds, nodes, stages)."""
    found = []
    for sample in samples:
        if not found or found[-1][1:] != (sample.nodes, len(sample.groups)):
            found.append((round(sample.at - began, 1), sample.nodes, len(sample.groups)))
    return found


def test_a_run_from_no_node_asks_for_what_could_start_packs_shares_and_gives_nodes_back(tmp_path):
    grid, trials = write_grid(tmp_path / "grid.yaml", [*SHORT, *MIDDLE, *LONG], "simclr")
    store = Store.open(tmp_path / "run")
    with FakeCluster(max_nodes=8, cpus=8, gpus=1, idle_s=15) as cluster, Progress(store, trials) as progress:
        began = time.time()
        with driver(grid, store.address, "--address", cluster.address, **cluster.environment) as process:
            text, _ = process.communicate(timeout=500)
        ended = time.time()
        assert process.returncode == 0, text
        wait_until(lambda: cluster.samples[-1].nodes == 0, 90)
        samples = [sample for sample in cluster.samples if sample.at >= began]
    print(f"\nran {ended - began:.0f} s; (seconds, nodes, stages that wait): {changes(samples, began)}")
    asked = [sample for sample in samples if sample.groups]
    assert asked[0].groups == (1.0,)  # the pre-training alone: nothing else could start
    assert all(len(sample.groups) <= progress.could_start(sample.at) for sample in asked)
    assert not any(sample.tasks for sample in samples)
    # eight quarters fill two GPUs, though each node has CPUs for all of them
    assert max(sum(sample.groups) for sample in asked) <= 2
    assert max(sample.busy for sample in samples) == 2
    assert next(sample.nodes for sample in samples if sample.nodes) == 1
    assert max(sample.nodes for sample in samples) == 2
    # one fine-tuning takes much longer: the other node goes while that is at work, and the last one after it
    assert [sample.nodes for sample in samples if sample.at < ended][-1] == 1
    assert samples[-1].nodes == 0
    assert status_of(store) == {trial.trial_id: "finished" for trial in trials}
    assert compare(store, undisturbed(tmp_path / "alone", list(trials))) == []
    assert "Traceback" not in text


def test_what_waits_for_a_node_that_does_not_come_is_shown_and_withdrawn_when_the_run_stops(tmp_path):
    grid, _ = write_grid(tmp_path / "grid.yaml", SHORT, "simclr")
    store = Store.open(tmp_path / "run")
    line = "1 pre-training waits for a node with a GPU (the cluster has 0 and may grow to 4), for 0:00:"
    with FakeCluster(max_nodes=4, sold_out=True) as cluster:
        with driver(grid, store.address, "--address", cluster.address, **cluster.environment) as process:
            wait_until(lambda: process.poll() is not None or ((picture := read_picture(store)) and picture.waits))
            assert process.poll() is None, process.stdout.read()
            waits = read_picture(store).waits
            plain = subprocess.Popen([*CLI, "status", store.address, "--watch"], stdout=subprocess.PIPE, text=True)
            time.sleep(30)  # the driver prints where it is this often
            process.send_signal(signal.SIGTERM)
            text, _ = process.communicate(timeout=30)
            seen, _ = plain.communicate(timeout=60)
        wait_until(lambda: not cluster.samples[-1].groups, 10)
    assert process.returncode == 143, text
    assert any(wait.startswith(line) for wait in waits), waits
    assert line in text
    assert line in seen
    assert "4 fine-tunings wait for what 1 pre-training will publish" in seen
    assert "interrupted  pretrain" not in text  # it had not started
    assert "Traceback" not in text
