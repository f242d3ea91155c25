"""Workers and nodes are taken away, with notice and without: no trial fails, and little is done again."""

import itertools
import os
import random
import signal
import sys
import time

import pytest
from machines import Machines
from runs import attempts, driver, spans, status_of, undisturbed, wait_until, workers_at_work, write_grid
from same_tables import compare
from tiny import tiny_trial

from ablate.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

SEED = int(os.environ.get("ABLATE_CHAOS_SEED", "0"))


def pretrain(method, steps):
    more = {"timesteps": 20} if method == "ddpm" else {}
    return tiny_trial(method, pretrain={"steps": steps, **more}).pretrain.model_dump(mode="json")


def all_attempts(store, trials):
    """Yield the attempts at every stage, in their order."""
    for key in {trial.pretrain_key for trial in trials} - {None}:
        yield attempts(store, pretrain_key=key)
    for trial in trials:
        yield attempts(store, "finetune", trial_id=trial.trial_id)


def most_redone(store, trials):
    """Return the most steps that any attempt did again."""
    most = 0
    for rows in all_attempts(store, trials):
        for (_, reached), (start, _) in itertools.pairwise(spans(rows)):
            most = max(most, reached - start)
    return most


def outcomes(store, trials):
    return [row["outcome"] for rows in all_attempts(store, trials) for row in rows]


def check(store, trials, folder):
    assert status_of(store) == {trial.trial_id: "finished" for trial in trials}
    assert compare(store, undisturbed(folder, list(trials))) == []


def test_a_worker_that_gets_sigterm_saves_its_state_and_is_replaced(tmp_path):
    grid, trials = write_grid(
        tmp_path / "grid.yaml",
        [{"seed": [0, 1], "pretrain": pretrain("simclr", 100)}],
        "simclr",
        finetune={"epochs": 20},
    )
    store = Store.open(tmp_path / "run")
    (key,) = {trial.pretrain_key for trial in trials}
    with driver(grid, store.address, "--max-failures", "0") as process:
        wait_until(lambda: (store.newest(f"pretrained/{key}/state") or 0) >= 5 or process.poll() is not None)
        (worker,) = workers_at_work(process.pid)
        os.kill(worker, signal.SIGTERM)
        text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert "the worker got SIGTERM" in text
    assert "Traceback" not in text
    first, second = attempts(store)
    assert (first["outcome"], second["outcome"]) == ("interrupted", "finished")
    assert second["from_step"] == first["to_step"]  # nothing is done again
    check(store, trials, tmp_path / "alone")


@pytest.mark.slow
def test_a_drained_node_is_left_with_the_states_saved_and_counts_as_no_failure(tmp_path):
    grid, trials = write_grid(
        tmp_path / "grid.yaml",
        [{"seed": [0, 1], "pretrain": pretrain("simclr", 150)}],
        "simclr",
        finetune={"epochs": 20},
    )
    store = Store.open(tmp_path / "run")
    (key,) = {trial.pretrain_key for trial in trials}
    machines = Machines()
    try:
        with driver(grid, store.address, "--address", machines.address, "--max-failures", "0") as process:
            wait_until(lambda: (store.newest(f"pretrained/{key}/state") or 0) >= 5 or process.poll() is not None)
            assert process.poll() is None, process.stdout.read()
            (number,) = [number for number in range(2) if machines.workers_of(number)]
            machines.drain_node(number, 15)
            text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    finally:
        machines.shutdown()
    assert "its node is drained and goes away in" in text
    assert "Traceback" not in text
    first, second = attempts(store)
    assert (first["outcome"], second["outcome"]) == ("interrupted", "finished")
    assert second["from_step"] == first["to_step"]
    check(store, trials, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_preemptions_of_all_kinds_fail_no_trial_with_one_failure_allowed(tmp_path):
    chance = random.Random(SEED)
    blocks = [
        {
            "seed": list(range(9)),
            "pretrain": [pretrain(method, steps) for method in ("ddpm", "simclr") for steps in (200, 400)],
        }
    ]
    grid, trials = write_grid(tmp_path / "grid.yaml", blocks, "ddpm", finetune={"epochs": 80})
    store = Store.open(tmp_path / "run")
    done = {"worker": 0, "drain": 0, "kill": 0}
    kinds = itertools.cycle(["worker", "drain", "kill"])
    began = time.monotonic()
    machines = Machines()

    def saved():
        """Return the newest state of every stage: what tells that it has come further."""
        return {path.rpartition("/step_")[0]: path for path in sorted(store.sizes()) if "/state/step_" in path}

    try:
        with driver(grid, store.address, "--address", machines.address, "--max-failures", "1") as process:
            while sum(done.values()) < 20:
                before = saved()
                # every stage that runs has come further, so that no loss follows another without progress
                wait_until(
                    lambda before=before: (
                        sum(before.get(home) != path for home, path in saved().items()) >= 2
                        or process.poll() is not None
                    ),
                    300,
                )
                assert process.poll() is None, (done, process.stdout.read())
                time.sleep(chance.uniform(0, 1))
                busy = [number for number in range(2) if machines.workers_of(number)]
                if not busy:
                    continue
                number, kind = chance.choice(busy), next(kinds)
                if kind == "worker":
                    if not machines.terminate_worker(number):
                        continue
                elif kind == "drain":
                    machines.drain_node(number, 10)
                else:
                    machines.kill_node(number)
                done[kind] += 1
            text, _ = process.communicate(timeout=1500)
        assert process.returncode == 0, text
    finally:
        machines.shutdown()
    assert "Traceback" not in text
    found = outcomes(store, trials)
    assert "failed" not in found
    assert most_redone(store, trials) <= 1  # every step is saved, at most one behind
    check(store, trials, tmp_path / "alone")
    counts = {outcome: found.count(outcome) for outcome in sorted(set(found))}
    print(f"\n{done} in {time.monotonic() - began:.0f} s: {counts}, most done again {most_redone(store, trials)} steps")
