"""The searcher between the policy and Ray Tune: whatever order reports come in, every trial ends exactly once."""

from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.utils import flatten_dict

from ablate.running.events import Watcher, Watchers
from ablate.running.ray_tune.demand import Nodes
from ablate.running.ray_tune.searcher import NOT_STARTED, StageSearcher
from ablate.schedule.fitting import Node, NodeType, Request, Shape
from ablate.schedule.machine import Machine
from ablate.schedule.policy import Policy
from ablate.schedule.stages import Costs, Stage
from ablate.space import TrialSpec, plan_of

COSTS = Costs(pretrain_step=lambda pretraining: 1.0, finetune=lambda spec: 1.0)


def trial(method, shots, steps=100):
    fields = {"method": method} if method == "scratch" else {"method": method, "steps": steps}
    return TrialSpec.model_validate({"dataset": "synthetic", "shots": shots, "pretrain": fields})


TRIALS = [
    trial("scratch", 5),
    trial("ddpm", 5, 50),
    trial("ddpm", 5, 100),
    trial("ddpm", 10, 100),
    trial("simclr", 5, 50),
]


class Kept(Watcher):
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.live, self.ends, self.released_trials, self.with_place = [], [], [], []
        self.metrics = []

    def started(self, stage):
        assert stage not in self.live, f"{stage} runs twice at a time"
        self.live.append(stage)

    def placed(self, stage):
        assert stage in self.live
        self.with_place.append(stage)

    def progressed(self, stage, progress):
        assert stage in self.live
        self.metrics.append(progress["metrics"])

    def ended(self, stage, result):
        self.live.remove(stage)
        self.metrics.append(result.metrics)
        self.ends.append((stage, result.outcome, result.error))

    def released(self, trial_id, reason):
        self.released_trials.append(trial_id)


class Tune:
    """Ray Tune as a searcher sees it: attempts by id, and reports of them, also of those that ended long ago."""

    def __init__(self, searcher):
        self.searcher, self.configs, self.snapshots, self.completed = searcher, {}, {}, set()

    def suggest(self):
        name = f"t{len(self.configs)}"
        config = self.searcher.suggest(name)
        if isinstance(config, dict):
            self.configs[name] = config
            self.snapshots[name] = [int(step) for step in config.get("snapshots", ())]
            return name
        return config

    def report(self, name, **result):
        self.searcher.on_trial_result(name, flatten_dict(result))

    def progress(self, name, saved):
        phase = "pretrain" if self.configs[name]["kind"] == "pretrain" else "finetune"
        self.report(name, phase=phase, step=saved, total=100, metrics={}, rate=None, published=None, saved=saved)

    def publish(self, name):
        if self.snapshots[name]:
            step = self.snapshots[name].pop(0)
            self.report(name, phase="pretrain", step=step, total=100, metrics={}, rate=None, published=step)

    def outcome(self, name, outcome, **more):
        steps = list(self.configs[name].get("snapshots", ()))
        self.report(name, outcome=outcome, error=None, snapshots=steps if outcome == "finished" else [], **more)

    def complete(self, name, *, error):
        self.searcher.on_trial_complete(name, result=None if error else {"metrics": {}}, error=error)
        self.completed.add(name)


def request(stage):
    return Request(1, 0.25 if stage.kind == "finetune" else 1)


def nodes(count, most=0):
    """Return nodes with a GPU each: as many as are there, of as many as there may be."""
    gpu = Shape(8, 1)
    growable = [NodeType("worker", gpu, most)] if most else ()
    return Nodes.of([Node(f"node{number}", "host", gpu) for number in range(count)], growable)


def machine(there):
    """Return what stages run on as the simulator sees it."""
    gpus = sum(count for _, count in there.present)
    return Machine(gpus, 1, 0.25) if gpus else None


def searcher_for(policy, watcher, there=None, stopped=lambda: False, **more):
    there = nodes(100) if there is None else there
    return StageSearcher(policy, watcher, stopped, request=request, nodes=lambda: there, machine=machine, **more)


ACTIONS = (
    "progress",
    "place",
    "publish",
    "finished",
    "failed",
    "interrupted",
    "again",
    "lost",
    "complete",
    "crash",
    "unknown",
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_order_of_reports_breaks_the_searcher_and_every_trial_ends_once(data):
    policy, watcher = Policy(plan_of(TRIALS), COSTS), Kept()
    there = data.draw(st.sampled_from([nodes(100), nodes(1), nodes(0, 2), nodes(1, 1), Nodes(nodes(1).present, None)]))
    now = [0.0]
    more = {"max_failures": data.draw(st.integers(0, 2)), "clock": lambda: now[0]}
    tune = Tune(searcher_for(policy, watcher, there, **more))
    for _ in range(data.draw(st.integers(0, 60))):
        now[0] += data.draw(st.sampled_from([0.0, 1.0, 20.0]))
        if data.draw(st.booleans()):
            live = tune.configs.keys() - tune.completed
            # where nothing is live, Tune would wait for many minutes for a stage
            assert tune.suggest() is not None or live
        if not tune.configs:
            continue
        name = data.draw(st.sampled_from(sorted(tune.configs)))  # also one that has ended: late and double reports
        action = data.draw(st.sampled_from(ACTIONS))
        if action == "place":
            tune.searcher.placed(name)
        elif action == "progress":
            tune.progress(name, data.draw(st.integers(0, 100)))
        elif action == "publish":
            tune.publish(name)
        elif action == "again":
            tune.outcome(name, "interrupted", again=True)
        elif action == "complete":
            tune.complete(name, error=False)
        elif action == "crash":
            tune.complete(name, error=True)
        elif action == "unknown":
            tune.searcher.on_trial_result("never seen", {"outcome": "finished"})
            tune.searcher.on_trial_complete("never seen", error=True)
        else:
            tune.outcome(name, action)
    # from here on everything goes well: the run must come to its end
    for _ in range(200):
        for name in list(tune.configs):
            if name not in tune.completed:
                tune.outcome(name, "finished")
                tune.complete(name, error=False)
        if tune.suggest() == "FINISHED":
            break
    else:
        raise AssertionError("the run does not end")
    assert watcher.live == []
    ended = [stage.name for stage, outcome, _ in watcher.ends if outcome == "finished" and stage.kind == "finetune"]
    failed = [stage.name for stage, outcome, _ in watcher.ends if outcome == "failed" and stage.kind == "finetune"]
    stopped = [stage.name for stage, outcome, _ in watcher.ends if outcome == "interrupted"]
    done = ended + failed + watcher.released_trials
    assert len(done) == len(set(done)), done
    waiting = {spec.trial_id for spec in TRIALS} - set(done)
    for name in waiting:  # only because its own stage, or its pre-training, was stopped with the run
        spec = next(spec for spec in TRIALS if spec.trial_id == name)
        assert name in stopped or spec.pretrain_key in stopped, (name, spec, watcher.ends)


def drive(max_failures):
    policy, watcher = Policy(plan_of([TRIALS[0]]), COSTS), Kept()
    return policy, watcher, Tune(searcher_for(policy, watcher, max_failures=max_failures))


def test_what_a_stage_measures_reaches_the_watcher_though_tune_flattens_it():
    _, watcher, tune = drive(max_failures=0)
    name = tune.suggest()
    tune.report(name, phase="finetune", step=1, total=2, metrics={"loss": 0.5}, rate=3.0, published=None)
    tune.report(name, outcome="finished", metrics={"mre": 2.25, "val_mre": 3.0}, published=None)
    assert watcher.metrics == [{"loss": 0.5}, {"mre": 2.25, "val_mre": 3.0}]


def test_losses_count_only_in_a_row_and_without_progress():
    policy, watcher, tune = drive(max_failures=1)
    stage = Stage("finetune", TRIALS[0].trial_id)
    for saved in range(1, 30):  # progress between any two losses: none counts
        name = tune.suggest()
        tune.progress(name, saved)
        tune.complete(name, error=True)
    assert {outcome for _, outcome, _ in watcher.ends} == {"interrupted"}
    tune.complete(tune.suggest(), error=True)  # the first without progress
    assert watcher.ends[-1][1] == "interrupted"
    tune.complete(tune.suggest(), error=True)
    assert watcher.ends[-1][1] == "failed"
    assert "lost 2 times in a row without progress; see --max-failures" in watcher.ends[-1][2]
    assert policy.failures.keys() == {stage}
    assert tune.suggest() == "FINISHED"


def test_an_attempt_that_starts_over_from_an_older_state_has_not_made_progress():
    _, watcher, tune = drive(max_failures=0)
    name = tune.suggest()
    tune.progress(name, 8)
    tune.complete(name, error=True)
    name = tune.suggest()
    tune.progress(name, 5)
    tune.complete(name, error=True)
    assert watcher.ends[-1][1] == "failed"


def test_a_node_that_leaves_never_counts():
    _, watcher, tune = drive(max_failures=0)
    for _ in range(20):
        name = tune.suggest()
        tune.outcome(name, "interrupted", again=True)
        tune.complete(name, error=True)  # the worker ends itself so that it gets no further stage
    assert [outcome for _, outcome, _ in watcher.ends] == ["interrupted"] * 20
    name = tune.suggest()
    tune.outcome(name, "finished")
    tune.complete(name, error=False)
    assert tune.suggest() == "FINISHED"


def test_no_more_is_offered_than_the_cluster_holds_at_its_largest_and_one_more():
    scratch = [TrialSpec.model_validate({**TRIALS[0].model_dump(), "seed": seed}) for seed in range(40)]
    for there, offered in ((nodes(0, 4), 17), (nodes(4), 17), (nodes(1), 5), (nodes(0, 16), 40)):
        tune = Tune(searcher_for(Policy(plan_of(scratch), COSTS), Kept(), there))
        while tune.suggest() is not None and len(tune.configs) < len(scratch):
            pass
        assert len(tune.configs) == offered


def test_a_fine_tuning_whose_pretraining_is_not_done_is_never_offered():
    policy = Policy(plan_of([trial("ddpm", shots, 100) for shots in (5, 10, 25)]), COSTS)
    tune = Tune(searcher_for(policy, Kept(), nodes(0, 16)))
    (name,) = [tune.suggest()]
    assert tune.configs[name]["kind"] == "pretrain"
    assert tune.suggest() is None
    tune.searcher.placed(name)
    assert tune.suggest() is None


def test_what_fits_where_a_pretraining_ends_is_not_offered_before_it_has_ended():
    now = [0.0]
    there = nodes(1, 4)
    policy = Policy(plan_of([trial("ddpm", shots, 100) for shots in (5, 10, 25)]), COSTS)
    tune = Tune(searcher_for(policy, Kept(), there, clock=lambda: now[0]))
    name = tune.suggest()
    tune.searcher.placed(name)
    tune.publish(name)  # the last snapshot: its GPU is free within moments, and no node is asked for meanwhile
    assert tune.suggest() is None
    tune.outcome(name, "finished")
    assert tune.suggest() is None
    tune.complete(name, error=False)
    assert tune.suggest() == "t1"


def test_a_pretraining_that_does_not_end_after_its_last_snapshot_holds_nothing_up_for_long():
    now = [0.0]
    policy = Policy(plan_of([trial("ddpm", shots, 100) for shots in (5, 10, 25)]), COSTS)
    tune = Tune(searcher_for(policy, Kept(), nodes(1, 4), clock=lambda: now[0]))
    name = tune.suggest()
    tune.publish(name)
    assert tune.suggest() is None
    now[0] += 60
    assert tune.suggest() == "t1"


def scratch(*shots):
    return [trial("scratch", count) for count in shots]


def test_nothing_smaller_is_offered_while_a_gpu_is_drained_for_a_whole_stage():
    """Five quarters fill one GPU and begin the other; then three of the first end, and each GPU holds one of them."""
    costs = Costs(pretrain_step=lambda pretraining: 1.0, finetune=lambda spec: float(spec.shots))
    policy = Policy(plan_of(scratch(5, 6, 7, 8, 9)), costs)
    tune = Tune(searcher_for(policy, Kept(), nodes(2)))
    names = [tune.suggest() for _ in range(5)]
    for name in names:
        tune.searcher.placed(name)
    for name in names[:3]:
        tune.outcome(name, "finished")
        tune.complete(name, error=False)
    policy.add([trial("ddpm", 50), *scratch(1)])
    whole = tune.suggest()
    assert tune.configs[whole]["kind"] == "pretrain"
    assert tune.suggest() is None  # though the quarter fits
    tune.outcome(names[4], "finished")
    tune.complete(names[4], error=False)
    tune.searcher.placed(whole)
    assert tune.configs[tune.suggest()]["kind"] == "finetune"


def test_on_a_cluster_that_may_grow_the_longest_chain_goes_first():
    trials = [trial("scratch", 5), trial("ddpm", 5, 100)]
    for there in (nodes(1, 4), Nodes(nodes(1).present, None)):
        tune = Tune(searcher_for(Policy(plan_of(trials), COSTS), Kept(), there))
        first = tune.suggest()
        tune.searcher.placed(first)
        assert [tune.configs[name]["kind"] for name in (first, tune.suggest())] == ["pretrain", "finetune"]


def test_what_waits_when_the_run_stops_has_lost_nothing():
    stop = []
    policy, watcher = Policy(plan_of([TRIALS[0]]), COSTS), Kept()
    tune = Tune(searcher_for(policy, watcher, nodes(0, 1), lambda: bool(stop), max_failures=0))
    name = tune.suggest()
    stop.append(True)
    tune.complete(name, error=False)  # withdrawn
    assert watcher.ends == [(Stage("finetune", TRIALS[0].trial_id), "interrupted", NOT_STARTED)]
    assert policy.failures == {}
    assert tune.suggest() == "FINISHED"


def test_every_watcher_is_told_everything():
    class All(Watcher):
        def __init__(self):
            self.told = []

        def __getattribute__(self, name):
            if name in vars(Watcher) and not name.startswith("_"):
                return lambda *what: self.told.append((name, *what))
            return super().__getattribute__(name)

    one, other = All(), All()
    watchers = Watchers(one, other)
    tune = Tune(searcher_for(Policy(plan_of(TRIALS[1:3]), COSTS), watchers))
    name = tune.suggest()
    tune.searcher.placed(name)
    watchers.tick()
    tune.progress(name, 1)
    tune.outcome(name, "failed")
    told = [told[0] for told in one.told]
    assert told == ["tick", "started", "placed", "tick", "progressed", *["released"] * 2, "ended"]
    assert {told[0] for told in one.told} == {name for name in vars(Watcher) if not name.startswith("_")}
    assert one.told == other.told
