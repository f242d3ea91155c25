"""The policy: what may start, what goes first, and what a failure releases."""

import random

import pytest

from ablate.schedule.policy import Policy
from ablate.schedule.stages import Costs, Stage
from ablate.space import TrialSpec, plan_of


def trial(method="ddpm", steps=100, shots=5, **pretrain):
    fields = {"method": method, **({} if method == "scratch" else {"steps": steps}), **pretrain}
    return TrialSpec.model_validate({"dataset": "synthetic", "shots": shots, "pretrain": fields})


COSTS = Costs(pretrain_step=lambda pretraining: 1.0, finetune=lambda spec: float(spec.shots))


def policy_of(trials, **options):
    return Policy(plan_of(trials), COSTS, **options)


def start(policy):
    stage = policy.next()
    if stage is not None:
        policy.started(stage)
    return stage


def test_a_finetuning_is_offered_only_once_its_snapshot_is_published():
    spec = trial()
    policy = policy_of([spec])
    pretrain = start(policy)
    assert pretrain == Stage("pretrain", spec.pretrain_key)
    assert start(policy) is None
    policy.publish(spec.pretrain_key, 100)
    assert start(policy) == Stage("finetune", spec.trial_id)  # while the pre-training has not ended
    policy.finish(pretrain)
    policy.finish(Stage("finetune", spec.trial_id))
    assert policy.is_over


def test_snapshots_in_passing_release_their_own_trials_only():
    short, long = trial(steps=50), trial(steps=100)
    policy = policy_of([short, long])
    start(policy)
    assert policy.pretraining(Stage("pretrain", short.pretrain_key))[1] == (50, 100)
    policy.publish(short.pretrain_key, 50)
    assert start(policy).name == short.trial_id
    assert start(policy) is None


def test_the_longest_remaining_chain_goes_first():
    # chains: pre-training 30 + 5, pre-training 10 + 50, scratch 40, scratch 3
    trials = [
        trial("scratch", shots=3),
        trial("ddpm", steps=30),
        trial("scratch", shots=40),
        trial("mocov3", steps=10, shots=50),
    ]
    policy = policy_of(trials)
    order = [start(policy).name for _ in range(4)]
    assert order == [trials[3].pretrain_key, trials[2].trial_id, trials[1].pretrain_key, trials[0].trial_id]


def test_the_chain_counts_from_the_newest_published_snapshot():
    short, long = trial(steps=90, shots=1), trial(steps=100, shots=1)
    policy = policy_of([short, long], published=[(short.pretrain_key, 90)])
    assert policy.chain_seconds(Stage("pretrain", long.pretrain_key)) == 10 + 1


def test_a_failed_pretraining_releases_its_waiting_trials_at_once():
    early, late, other = trial(steps=50), trial(steps=100), trial("scratch")
    policy = policy_of([early, late, other])
    pretrain = Stage("pretrain", early.pretrain_key)
    while (stage := start(policy)) is not None:
        assert stage in (pretrain, Stage("finetune", other.trial_id))
    policy.publish(early.pretrain_key, 50)
    assert policy.fail(pretrain, "loss is nan") == (late.trial_id,)
    assert "loss is nan" in policy.failures[Stage("finetune", late.trial_id)]
    assert start(policy) == Stage("finetune", early.trial_id)  # its snapshot was there before
    policy.finish(Stage("finetune", early.trial_id))
    policy.finish(Stage("finetune", other.trial_id))
    assert policy.is_over


def test_a_lost_snapshot_is_made_anew_and_its_trial_tried_again():
    spec = trial()
    policy = policy_of([spec], published=[(spec.pretrain_key, 100)])
    finetune = start(policy)
    assert finetune == Stage("finetune", spec.trial_id)
    policy.lose(finetune)
    pretrain = start(policy)
    assert pretrain == Stage("pretrain", spec.pretrain_key)
    assert start(policy) is None
    policy.publish(spec.pretrain_key, 100)
    policy.finish(pretrain)
    assert start(policy) == finetune


def test_asking_whether_it_is_over_changes_nothing():
    """The first of two trials finds their snapshot lost; the other waits for it as soon as work is asked for."""
    trials = [trial(shots=1), trial(shots=2)]
    policies = [policy_of(trials, published=[(trials[0].pretrain_key, 100)]) for _ in range(2)]
    for policy in policies:
        policy.lose(start(policy))
        assert policy.is_over is False
    asked, other = policies
    before = asked.dependents(Stage("pretrain", trials[0].pretrain_key))
    for _ in range(3):
        assert not asked.is_over
    assert asked.dependents(Stage("pretrain", trials[0].pretrain_key)) == before
    assert start(asked) == start(other) == Stage("pretrain", trials[0].pretrain_key)
    assert start(asked) is start(other) is None


def test_a_snapshot_lost_while_its_pretraining_runs_makes_it_run_again():
    first, second = trial(steps=50), trial(steps=100)
    policy = policy_of([first, second])
    pretrain = start(policy)
    policy.publish(first.pretrain_key, 50)
    finetune = start(policy)
    policy.lose(finetune)
    policy.publish(first.pretrain_key, 100)
    policy.finish(pretrain)
    assert policy.pretraining(pretrain)[1] == (50,)
    assert pretrain in {start(policy), start(policy)}


def test_what_is_done_is_not_planned_and_its_pretraining_not_run():
    spec = trial()
    assert policy_of([spec], done=[spec.trial_id]).is_over


def test_published_snapshots_need_no_pretraining():
    spec = trial()
    policy = policy_of([spec], published=[(spec.pretrain_key, 100)])
    assert start(policy) == Stage("finetune", spec.trial_id)
    assert start(policy) is None


def test_without_sharing_every_trial_is_one_whole_stage():
    trials = [trial(shots=1), trial(shots=2), trial("scratch", shots=3)]
    policy = policy_of(trials, share=False)
    stages = [start(policy) for _ in range(4)]
    assert {stage.kind for stage in stages[:3]} == {"trial"}
    assert stages[3] is None
    assert policy.chain_seconds(stages[0]) == 100 + 2


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_runs_every_trial_once_after_its_snapshot(seed):
    chance = random.Random(seed)
    trials = [
        trial(method, steps=steps, shots=shots)
        for method in ("ddpm", "mocov3", "dino")
        for steps in (10, 20)
        for shots in (1, 2, 3)
    ] + [trial("scratch", shots=shots) for shots in (1, 2, 3)]
    policy = policy_of(trials)
    running, published, ended, lost = [], set(), [], 0
    while not policy.is_over:
        stage = policy.next() if len(running) < 3 else None
        if stage is not None and chance.random() < 0.7:
            policy.started(stage)
            running.append(stage)
            if stage.kind == "finetune":
                needs = policy.needs(policy.trial(stage))
                assert needs is None or needs in published
        elif running:
            stage = running.pop(chance.randrange(len(running)))
            if stage.kind == "pretrain":
                for step in policy.pretraining(stage)[1]:
                    published.add((stage.name, step))
                    policy.publish(stage.name, step)
            elif policy.needs(policy.trial(stage)) and lost < 5 and chance.random() < 0.2:
                lost += 1
                published.discard(policy.needs(policy.trial(stage)))
                policy.lose(stage)
                continue
            else:
                ended.append(stage.name)
            policy.finish(stage)
    assert sorted(ended) == sorted(spec.trial_id for spec in trials)
