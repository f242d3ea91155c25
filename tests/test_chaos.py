"""Workers, nodes and drivers are killed at random: the tables end as if nothing had happened."""

import contextlib
import itertools
import os
import random
import signal
import sys
import threading
import time

import pytest
from machines import Machines
from runs import attempts, driver, spans, status_of, undisturbed, wait_until, write_grid
from same_tables import compare, unreadable_parts
from tiny import tiny_trial

from ablate import tables
from ablate.store import Store, step_name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

KILLS = 20
STEPS = (30, 60)
METHODS = ("ddpm", "simclr", "byol", "barlow_twins")
SEED = int(os.environ.get("ABLATE_CHAOS_SEED", "0"))


class Reader(threading.Thread):
    """Reads every table again and again while the run goes on, and keeps what it should not have seen."""

    def __init__(self, store):
        super().__init__(daemon=True)
        self.store, self.over, self.rounds, self.wrong = store, threading.Event(), 0, []

    def run(self):
        while not self.over.wait(0.1):
            with contextlib.suppress(FileNotFoundError):  # a part was replaced between listing and reading
                self.wrong += [f"{path}: {reason}" for path, reason in unreadable_parts(self.store).items()]
                if self.wrong:
                    return
                names = tables.read_table(self.store, "trials", ["trial_id"])["trial_id"].to_pylist()
                self.wrong += [f"{name} is there twice" for name in set(names) if names.count(name) > 1]
            self.rounds += 1


def states_in(store):
    """Return all that tells of progress: every training state and every row of the tables."""
    sizes = store.sizes()
    return {path for path in sizes if "/state/step_" in path or path.startswith("tables/")}


def test_random_kills_change_no_bit_of_the_tables(tmp_path):
    chance = random.Random(SEED)
    blocks = [
        {
            "seed": [0, 1, 2],
            "pretrain": [
                tiny_trial(
                    method, pretrain={"steps": steps, **({"timesteps": 20} if method == "ddpm" else {})}
                ).pretrain.model_dump(mode="json")
                for method in METHODS
                for steps in STEPS
            ],
        }
    ]
    grid, trials = write_grid(tmp_path / "grid.yaml", blocks, "ddpm", finetune={"epochs": 20})
    keys = {trial.pretrain_key for trial in trials}
    assert (len(trials), len(keys)) == (24, 4)
    store = Store.open(tmp_path / "run")
    reader = Reader(store)
    reader.start()
    kills = {"worker": 0, "node": 0, "driver": 0}
    machines = Machines()
    begin = time.monotonic()
    try:
        while sum(kills.values()) < KILLS or min(kills.values()) < 3:
            seen = states_in(store)
            with driver(grid, store.address, "--address", machines.address, "--max-failures", "1000") as process:
                while True:
                    wait_until(lambda seen=seen: states_in(store) - seen or process.poll() is not None, 300)
                    assert process.poll() is None, (kills, process.stdout.read())
                    time.sleep(chance.uniform(0, 2))
                    kind = chance.choices(list(kills), [5, 2, 3])[0]
                    kills[kind] += 1
                    seen = states_in(store)
                    if kind == "driver":
                        os.kill(process.pid, signal.SIGKILL)
                        break
                    if kind == "node":
                        machines.kill_node(chance.randrange(2))
                    else:
                        for pid in machines.workers()[: chance.randrange(1, 3)]:
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)
        with driver(grid, store.address, "--address", machines.address) as process:
            text, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, text
    finally:
        machines.shutdown()
        reader.over.set()
        reader.join()
    seconds = time.monotonic() - begin

    assert reader.wrong == []
    assert status_of(store) == {trial.trial_id: "finished" for trial in trials}
    assert len(tables.read_table(store, "trials")) == len(trials)
    assert compare(store, undisturbed(tmp_path / "alone", trials)) == []
    lost, redone = 0, 0
    for kind, names in (("pretrain", keys), ("finetune", {trial.trial_id for trial in trials})):
        for name in names:
            rows = attempts(store, kind, **{"pretrain_key" if kind == "pretrain" else "trial_id": name})
            lost += sum(row["outcome"] == "running" for row in rows)
            assert {row["outcome"] for row in rows} <= {"running", "finished"}
            steps = spans(rows)
            for (_, reached), (start, _) in itertools.pairwise(steps):
                redone += max(reached - start, 0)
                assert start >= reached - 1, (kind, name, steps)  # every step is saved, at most one behind
            if kind == "pretrain":
                assert (steps[0][0], steps[-1][1]) == (0, max(STEPS)), steps
                snapshots = [n for n in store.list(f"pretrained/{name}") if n.startswith("step_")]
                assert snapshots == [step_name(step) for step in STEPS]
                assert store.list(f"pretrained/{name}/state") == [step_name(max(STEPS))]
    print(
        f"\n{kills} in {seconds:.0f} s: {lost} attempts lost, {redone} recorded steps done again, "
        f"{reader.rounds} rounds of reading"
    )
