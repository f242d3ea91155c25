"""The contract of every pre-training method on each of its networks, and the one loop that trains them."""

import functools
import typing
from typing import Any

import numpy as np
import pytest
import torch
from tiny import small_network

from ablate.network.building import build_network
from ablate.pretrain import PretrainingMethod, build_method, run_pretraining
from ablate.pretrain.base import MomentumBranch
from ablate.pretrain.loop import backward, learning_rate
from ablate.space import METHODS, Pretraining, SelfSupervised, TrialSpec, WholeNetwork
from ablate.training import Diverged, Interrupted, Progress, State, pack, seeded, unpack

torch.set_num_threads(1)

SIZE, STEPS = 32, 3

SMALL = {"hidden_dim": 16, "projection_dim": 8}
FIELDS: dict[str, dict[str, Any]] = {
    "ddpm": {"timesteps": 20},
    "mocov3": SMALL,
    "mocov2": {**SMALL, "queue": 12},  # smaller than two steps' keys: it turns over
    "mocov1": {"projection_dim": 8, "queue": 12},
    "simclr": SMALL,
    "simclrv2": SMALL,
    "dino": {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 16, "local_crops": 2},
    "swav": {**SMALL, "prototypes": 6, "queue": 12, "local_crops": 2},
    "byol": SMALL,
    "simsiam": {**SMALL, "predictor_dim": 8},
    "barlow_twins": SMALL,
}
ROWS = [(name, kind) for name, method in METHODS.items() if method.code for kind in method.networks]
EVERY_METHOD = pytest.mark.parametrize(("method", "kind"), ROWS, ids=[f"{name}-{kind}" for name, kind in ROWS])
LONG_RUN = pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] if kind == "reference" and name != "ddpm" else [])
        for name, kind in ROWS
    ],
    ids=[f"{name}-{kind}" for name, kind in ROWS],
)
"""The same, for what takes seconds on the reference network: by default it runs there with DDPM alone."""
IN_VIEWS = [row for row in ROWS if issubclass(METHODS[row[0]].spec, SelfSupervised)]
SELF_SUPERVISED = pytest.mark.parametrize(("method", "kind"), IN_VIEWS, ids=lambda value: value)
SAMPLES = np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE), dtype=np.uint8)


def make(method: str, kind: str, **fields: Any) -> Pretraining:
    network = fields.pop("network", small_network(kind))
    fields = {"batch_size": 4, "accumulate": 2, "lr": 3e-3, "steps": STEPS, **FIELDS.get(method, {}), **fields}
    trial = {"dataset": "synthetic", "image_size": SIZE, "network": network, "pretrain": {"method": method, **fields}}
    pretraining = TrialSpec.model_validate(trial).pretraining
    assert pretraining is not None
    return pretraining


class Recorder:
    """Keeps what a loop publishes, saves and reports, in order; asks it to stop after a step."""

    def __init__(self, stop_at: int | None = None, save_at: tuple[int, ...] = ()) -> None:
        self.stop_at, self.save_at = stop_at, save_at
        self.step = 0
        self.events: list[tuple[str, int]] = []
        self.states: dict[int, dict[str, bytes]] = {}
        self.snapshots: dict[int, dict[str, torch.Tensor]] = {}
        self.progress: list[Progress] = []

    def due(self) -> bool:
        self.step += 1
        return self.step in self.save_at

    def save(self, step: int, state: State) -> None:
        self.events.append(("save", step))
        self.states[step] = pack(state)

    def publish(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        self.events.append(("publish", step))
        self.snapshots[step] = tensors

    def report(self, progress: Progress) -> bool:
        self.events.append(("report", progress.step))
        self.progress.append(progress)
        return progress.step == self.stop_at


def run(pretraining: Pretraining, recorder: Recorder, steps: int = STEPS, **options: Any) -> list[tuple[int, float]]:
    curve = run_pretraining(
        pretraining,
        options.pop("images", SAMPLES),
        steps=steps,
        publish=recorder.publish,
        checkpoint=recorder,
        report=recorder.report,
        **options,
    )
    return [(point.step, point.value) for point in curve]


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_same_state(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    one, two = unpack(first), unpack(second)
    for state in (one, two):
        del state["seconds"]
        state["curve"] = [row[:-1] for row in state["curve"]]
    assert pack(one) == pack(two)


# --- every method -----------------------------------------------------------------------------------


def spec_of(method: type) -> type | None:
    """Return the class of fields that a method is declared with: `DdpmSpec` of a `PretrainingMethod[DdpmSpec]`."""
    for base in method.__mro__:
        for generic in getattr(base, "__orig_bases__", ()):
            if (arguments := typing.get_args(generic)) and isinstance(arguments[0], type):
                return arguments[0]
    return None


@EVERY_METHOD
def test_fields_are_of_the_class_that_the_method_is_declared_with(method: str, kind: str) -> None:
    built = build_method(make(method, kind))
    declared = spec_of(type(built))
    assert declared is not None
    assert issubclass(METHODS[method].spec, declared)
    assert built.spec == make(method, kind).fields


@LONG_RUN
def test_loss_falls_on_fixed_views_of_16_images(method: str, kind: str) -> None:
    built = build_method(make(method, kind, batch_size=16, accumulate=1)).train()
    optimizer = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad], lr=3e-3)
    images = torch.from_numpy(SAMPLES[np.arange(16) % 11])[:, None].float() / 255
    prepared = built.prepare(images, seeded("cpu", 0), 1)
    losses = []
    for step in range(1, 16):
        optimizer.zero_grad()
        loss = built.loss(*prepared)
        loss.backward()
        optimizer.step()
        built.after_step(step)
        losses.append(loss.item())
    # The first step fills MoCo v2's queue: before it, negatives are random vectors, not keys.
    told = (
        f"losses of 15 steps at learning rate 3e-3: {', '.join(f'{loss:.3f}' for loss in losses)}; a network without "
        "normalisation layers may learn too slowly for this, one with too few channels may not settle"
    )
    assert losses[-1] < losses[1] - 0.01, told
    assert min(losses[1:]) in losses[-4:], told


@functools.cache
def through(method: str, kind: str) -> Recorder:
    """An undisturbed run with its snapshots, made once for all tests that compare with it."""
    recorder = Recorder()
    run(make(method, kind), recorder, snapshots=[2, STEPS])
    return recorder


@EVERY_METHOD
def test_fine_tuning_starts_from_the_very_weights_of_the_snapshot(method: str, kind: str) -> None:
    snapshot = through(method, kind).snapshots[STEPS]
    network = build_network(make(method, kind).network, num_outputs=3, image_size=SIZE, seed=5)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    new = network.load_initial(snapshot)
    held = network.state_dict()
    loaded = {name: tensor for name, tensor in snapshot.items() if name not in network.output_names()}
    assert_equal(loaded, {name: held[name] for name in loaded})
    assert held.keys() - loaded.keys() == set(new)
    assert any(not torch.equal(held[name], fresh[name]) for name in loaded)
    if (method, kind) in IN_VIEWS:
        assert loaded.keys() == network.encoder_state().keys()


@EVERY_METHOD
def test_snapshot_is_what_the_trained_network_holds(method: str, kind: str) -> None:
    state = unpack(through(method, kind).states[STEPS])["method"]
    if issubclass(METHODS[method].spec, WholeNetwork):  # averaged weights; these networks have no other tensors
        names = [name for name in state if name.startswith("network.")]
        averages = state["average._extra_state"]["shadow_params"]
        expected = dict(zip([name.removeprefix("network.") for name in names], averages, strict=True))
    else:
        prefix = "teacher.network." if method == "dino" else "network."
        expected = {name.removeprefix(prefix): item for name, item in state.items() if name.startswith(prefix)}
    assert_equal(through(method, kind).snapshots[STEPS], expected)


@LONG_RUN
def test_interrupted_after_any_step_it_ends_as_if_it_had_run_through(method: str, kind: str) -> None:
    for stop_at in range(1, STEPS):
        first, second = Recorder(stop_at), Recorder()
        with pytest.raises(Interrupted):
            run(make(method, kind), first, snapshots=[2, STEPS])
        assert list(first.states) == [stop_at]
        torch.rand(5)
        missing = [step for step in (2, STEPS) if step not in first.snapshots]
        run(make(method, kind), second, snapshots=missing, state=unpack(first.states[stop_at]))
        assert_same_state(second.states[STEPS], through(method, kind).states[STEPS])
        for step, snapshot in {**first.snapshots, **second.snapshots}.items():
            assert_equal(snapshot, through(method, kind).snapshots[step])


@EVERY_METHOD
def test_snapshot_in_passing_equals_one_trained_to_that_step_and_no_further(method: str, kind: str) -> None:
    short = Recorder()
    run(make(method, kind, steps=2), short, steps=2, snapshots=[2])
    assert_equal(through(method, kind).snapshots[2], short.snapshots[2])
    run(make(method, kind, steps=STEPS), short, snapshots=[STEPS], state=unpack(short.states[2]))
    assert_equal(through(method, kind).snapshots[STEPS], short.snapshots[STEPS])


@EVERY_METHOD
def test_another_seed_gives_other_weights(method: str, kind: str) -> None:
    other = build_method(make(method, kind, seed=1)).state_dict()
    same = build_method(make(method, kind)).state_dict()
    weights = {name: item for name, item in other.items() if isinstance(item, torch.Tensor) and item.ndim > 1}
    equal = {name for name, item in weights.items() if torch.equal(item, same[name])}
    assert equal == {name for name, item in weights.items() if (item == item.flatten()[0]).all()}  # such as a centre


@SELF_SUPERVISED
def test_every_weight_of_the_encoder_receives_a_gradient(method: str, kind: str) -> None:
    built = build_method(make(method, kind)).train()
    images = torch.from_numpy(SAMPLES[:8])[:, None].float() / 255
    optimizer = torch.optim.AdamW(built.network.parameters())
    for step in (1, 2):  # residual branches may start with a factor of zero, and so without a gradient
        optimizer.zero_grad()
        backward(built, images, seeded("cpu", 0), step)
        optimizer.step()
    parameters = dict(built.network.named_parameters())
    assert parameters.keys() <= built.network.encoder_state().keys()
    idle = [
        name for name, item in parameters.items() if item.grad is None or (item.ndim > 1 and not item.grad.abs().sum())
    ]
    assert idle == []


@EVERY_METHOD
def test_moving_averages_queue_and_centre_are_in_the_state(method: str, kind: str) -> None:
    names = unpack(through(method, kind).states[STEPS])["method"].keys()
    modules = build_method(make(method, kind)).named_modules()
    branches = {name for name, module in modules if isinstance(module, MomentumBranch)}
    assert bool(branches) or method not in ("mocov1", "mocov2", "mocov3", "byol", "dino")
    assert all(any(name.startswith(f"{branch}.") for name in names) for branch in branches)
    held = {**dict.fromkeys(("mocov1", "mocov2", "swav"), "queue"), "dino": "cross_entropy.center"}
    assert method not in held or held[method] in names
    assert ("average._extra_state" in names) == issubclass(METHODS[method].spec, WholeNetwork)


# --- the loop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_ddpm_loss_and_gradient_of_2_x_8_images_equal_those_of_16(loss: str) -> None:
    images = torch.from_numpy(SAMPLES[np.arange(16) % 11])[:, None].float() / 255
    results = []
    for batch_size, accumulate in ((8, 2), (16, 1)):
        built = build_method(make("ddpm", "unet", batch_size=batch_size, accumulate=accumulate, loss=loss))
        value = backward(built, images, seeded("cpu", 0, "draws", 1), 1)
        results.append((float(value), {name: item.grad for name, item in built.network.named_parameters()}))
    (two_eights, gradients), (sixteen, expected) = results
    assert two_eights == pytest.approx(sixteen, abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5)


@EVERY_METHOD
def test_draws_of_a_step_do_not_depend_on_its_division(method: str, kind: str) -> None:
    images = torch.from_numpy(SAMPLES[:8])[:, None].float() / 255
    two, one = (build_method(make(method, kind, batch_size=size, accumulate=8 // size)) for size in (4, 8))
    prepared = (built.prepare(images, seeded("cpu", 1), 1) for built in (two, one))
    for first, second in zip(*prepared, strict=True):
        assert torch.equal(first, second)
        assert len(first) == 8


def test_snapshot_is_published_before_its_state_is_saved_and_reported_after() -> None:
    recorder = Recorder(save_at=(2, 3))
    run(make("ddpm", "unet"), recorder, steps=4, snapshots=[2, 4])
    assert recorder.events == [
        ("report", 1),
        *[("publish", 2), ("save", 2), ("report", 2)],
        *[("save", 3), ("report", 3)],
        *[("publish", 4), ("report", 4), ("save", 4)],
    ]
    assert [progress.published for progress in recorder.progress] == [None, 2, None, 4]
    assert all(progress.phase == "pretrain" and progress.total == 4 for progress in recorder.progress)


def test_stopped_after_the_last_step_it_has_finished() -> None:
    recorder = Recorder(stop_at=STEPS)
    run(make("ddpm", "unet"), recorder)
    assert list(recorder.states) == [STEPS]


def test_snapshot_at_the_states_own_step_is_published_and_an_earlier_one_is_lost() -> None:
    recorder, later = Recorder(), Recorder()
    run(make("ddpm", "unet"), recorder, steps=2, snapshots=[2])
    run(make("ddpm", "unet"), later, steps=2, snapshots=[2], state=unpack(recorder.states[2]))
    assert later.events == [("publish", 2), ("report", 2)]
    assert_equal(later.snapshots[2], recorder.snapshots[2])
    with pytest.raises(ValueError, match=r"snapshots at steps \[1\] lie before the state at step 2"):
        run(make("ddpm", "unet"), later, snapshots=[1, 4], state=unpack(recorder.states[2]))


def test_curve_is_the_mean_loss_of_every_ten_steps_also_across_an_interruption() -> None:
    pretraining, recorder = make("ddpm", "unet", batch_size=2, accumulate=1), Recorder()
    curve = run(pretraining, recorder, steps=23)
    losses = [progress.metrics["loss"] for progress in recorder.progress]
    assert [step for step, _ in curve] == [10, 20]
    assert [value for _, value in curve] == pytest.approx([np.mean(losses[:10]), np.mean(losses[10:20])], rel=1e-12)
    stopped = Recorder(stop_at=14)
    with pytest.raises(Interrupted):
        run(pretraining, stopped, steps=23)
    assert run(pretraining, Recorder(), steps=23, state=unpack(stopped.states[14])) == curve


def test_seconds_go_on_from_the_state() -> None:
    recorder, later = Recorder(), Recorder()
    run(make("ddpm", "unet"), recorder, steps=2)
    run(make("ddpm", "unet"), later, steps=3, state={**unpack(recorder.states[2]), "seconds": 1000.0})
    assert unpack(later.states[3])["seconds"] > 1000


def test_every_image_is_seen_once_per_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None], (8, SIZE, SIZE))
    seen: list[torch.Tensor] = []
    pretraining = make("ddpm", "unet")
    original = type(build_method(pretraining)).prepare

    def spy(
        self: PretrainingMethod[Any], images_B1HW: torch.Tensor, generator: torch.Generator, step: int
    ) -> tuple[torch.Tensor, ...]:
        seen.append((images_B1HW[:, 0, 0, 0] * 255).round())
        return original(self, images_B1HW, generator, step)

    monkeypatch.setattr(type(build_method(pretraining)), "prepare", spy)
    run(pretraining, Recorder(), steps=3, images=images.copy())
    assert [sorted(step.tolist()) for step in seen] == [list(range(8))] * 3
    assert not torch.equal(seen[0], seen[1])


def test_learning_rate_rises_for_the_warm_up_and_is_constant_after_it() -> None:
    pretraining = make("ddpm", "unet", lr=1e-2, warmup=4)
    assert [learning_rate(pretraining, step) for step in (1, 2, 4, 5, 1000)] == pytest.approx(
        [2.5e-3, 5e-3, 1e-2, 1e-2, 1e-2]
    )
    assert learning_rate(make("ddpm", "unet", lr=1e-2), 1) == 1e-2


def test_a_loss_that_is_no_number_stops_before_the_weights_change() -> None:
    recorder = Recorder(save_at=(1, 2, 3))
    with pytest.raises(Diverged, match=r"loss of ddpm is (nan|inf) at step \d: lower pretrain\.lr \(now 1e\+30\)"):
        run(make("ddpm", "unet", lr=1e30), recorder)
    assert recorder.events[-1][0] in ("report", "publish")
    assert all(np.isfinite(progress.metrics["loss"]) for progress in recorder.progress)


def test_stochastic_depth_is_the_same_after_an_interruption() -> None:
    pretraining = make("simclr", "encoder", network={"kind": "encoder", "encoder": "mit_b0"}, accumulate=1)
    complete, first, second = Recorder(), Recorder(stop_at=1), Recorder()
    run(pretraining, complete, steps=2)
    with pytest.raises(Interrupted):
        run(pretraining, first, steps=2)
    torch.rand(5)
    run(pretraining, second, steps=2, state=unpack(first.states[1]))
    assert_same_state(second.states[2], complete.states[2])


def test_weights_of_an_earlier_snapshot_are_where_training_starts(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    recorder = Recorder()
    run(make("ddpm", "unet"), recorder, snapshots=[STEPS])
    snapshot = recorder.snapshots[STEPS]
    save_file(snapshot, tmp_path / "a.safetensors")
    assert_equal(build_method(make("ddpm", "unet", weights=str(tmp_path / "a.safetensors"))).snapshot(), snapshot)
    started = build_method(make("dino", "unet", weights=str(tmp_path / "a.safetensors"))).snapshot()
    assert_equal(started, {name: snapshot[name] for name in started})
