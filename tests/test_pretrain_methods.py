"""Each method's loss, moving averages, noise and views against values worked by hand or by plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ablate.network.unet import UNet
from ablate.pretrain import build_method
from ablate.pretrain.contrastive import info_nce, info_nce_with_queue, nt_xent
from ablate.pretrain.crops import local_size
from ablate.pretrain.ddpm import Ddpm, NoiseSchedule, strips
from ablate.pretrain.dino import Dino
from ablate.pretrain.heads import barlow_twins_loss, negative_cosine
from ablate.pretrain.mocov2 import MocoV2
from ablate.pretrain.simsiam import Simsiam
from ablate.pretrain.swav import Swav
from ablate.pretrain.views import NUM_DRAWS, View, render_views
from ablate.pretrain.whole import WeightAverage
from ablate.space import DdpmSpec, Pretraining, TrialSpec
from ablate.training import seeded

torch.set_num_threads(1)

SMALL = {"hidden_dim": 16, "projection_dim": 8}


def make(method: str, **fields: Any) -> Pretraining:
    network = {"kind": "unet", "channels": (8, 16), "layers_per_block": 1}
    trial = {"dataset": "synthetic", "image_size": 32, "network": network, "pretrain": {"method": method, **fields}}
    pretraining = TrialSpec.model_validate(trial).pretraining
    assert pretraining is not None
    return pretraining


def vectors(num: int, dim: int, seed: int) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


def softmax_loss(similarities: list[float], positive: int, temperature: float) -> float:
    powers = [math.exp(value / temperature) for value in similarities]
    return -math.log(powers[positive] / sum(powers))


# --- contrastive losses -----------------------------------------------------------------------------


def test_info_nce_is_mocov3s_sum_over_queries_and_keys() -> None:
    queries, keys = vectors(4, 3, 0), vectors(4, 3, 1)
    terms = [softmax_loss([cosine(query, key) for key in keys], i, 0.3) for i, query in enumerate(queries)]
    assert float(info_nce(queries, keys, 0.3)) == pytest.approx(2 * 0.3 * np.mean(terms), rel=1e-12)


def test_info_nce_with_a_queue_sets_the_own_key_against_the_queue_only() -> None:
    queries, keys, queue = vectors(4, 3, 0), vectors(4, 3, 1), torch.nn.functional.normalize(vectors(5, 3, 2))
    terms = [
        softmax_loss([cosine(query, key), *(cosine(query, old) for old in queue)], 0, 0.2)
        for query, key in zip(queries, keys, strict=True)
    ]
    assert float(info_nce_with_queue(queries, keys, queue, 0.2)) == pytest.approx(np.mean(terms), rel=1e-12)


def test_nt_xent_counts_both_views_of_the_other_images_as_negatives() -> None:
    first, second = vectors(3, 4, 0), vectors(3, 4, 1)
    views = [*first, *second]
    terms = []
    for i, view in enumerate(views):
        others = [j for j in range(6) if j != i]
        terms.append(softmax_loss([cosine(view, views[j]) for j in others], others.index((i + 3) % 6), 0.5))
    assert float(nt_xent(first, second, 0.5)) == pytest.approx(np.mean(terms), rel=1e-12)


def test_barlow_twins_drives_the_cross_correlation_to_the_identity() -> None:
    first, second = vectors(6, 3, 0).numpy(), vectors(6, 3, 1).numpy()

    def standardised(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)

    correlation = standardised(first).T @ standardised(second) / 6
    expected = sum(
        (1 - correlation[i, i]) ** 2 if i == j else 0.01 * correlation[i, j] ** 2 for i in range(3) for j in range(3)
    )
    loss = barlow_twins_loss(0.01)(torch.from_numpy(first), torch.from_numpy(second))
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_negative_cosine_by_hand() -> None:
    first, second = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [3.0, 4.0]])
    assert float(negative_cosine()(first, second)) == pytest.approx(-(math.sqrt(0.5) + 1) / 2)


@pytest.mark.parametrize("method", ["mocov3", "byol", "simsiam"])
def test_symmetric_methods_do_not_care_which_view_is_first(method: str) -> None:
    built = build_method(make(method, **SMALL)).train()
    first, second = torch.rand(2, 4, 1, 32, 32)
    torch.testing.assert_close(built.loss(first, second), built.loss(second, first))


def test_simsiam_regresses_projections_through_which_no_gradient_flows() -> None:
    built = build_method(make("simsiam", **SMALL, predictor_dim=4)).train()
    assert isinstance(built, Simsiam)
    views = torch.rand(2, 4, 1, 32, 32)
    projections = [built.projector(built.network.features(view)) for view in views]
    targets = [projection.detach().clone() for projection in projections]
    predicted = [built.predictor(projection) for projection in projections]
    cosines = [F.cosine_similarity(predicted[i], targets[1 - i]).mean() for i in (0, 1)]
    expected = -(cosines[0] + cosines[1]) / 2
    loss = built.loss(*views)
    torch.testing.assert_close(loss, expected)
    weight = built.projector.get_submodule("layers.0").weight
    torch.testing.assert_close(torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight))


def test_heads_have_the_layers_of_their_papers() -> None:
    def layers(method: str, name: str) -> list[str]:
        module = build_method(make(method, **SMALL)).get_submodule(name)
        return [type(layer).__name__ for layer in module.get_submodule("layers").children()]

    two_layers = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert layers("mocov2", "projector") == ["Linear", "ReLU", "Linear"]
    assert layers("mocov3", "projector") == layers("mocov3", "predictor") == [*two_layers, "BatchNorm1d"]
    assert layers("simclr", "projector") == [*two_layers, "BatchNorm1d"]
    assert layers("simclrv2", "projector") == [*two_layers, "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert layers("byol", "projector") == layers("byol", "predictor") == two_layers
    assert layers("barlow_twins", "projector") == [*two_layers, "BatchNorm1d", "ReLU", "Linear"]
    assert layers("swav", "projector") == layers("simsiam", "predictor") == two_layers
    assert layers("simsiam", "projector") == [*two_layers, "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    linear = build_method(make("mocov1", projection_dim=8)).get_submodule("projector")
    assert isinstance(linear, torch.nn.Linear)
    assert linear.weight.shape == (8, 16)


# --- momentum branch, queue, centre -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "branch"), [("mocov3", "keys"), ("mocov2", "keys"), ("mocov1", "keys"), ("byol", "target")]
)
def test_momentum_branch_starts_equal_and_moves_by_one_minus_the_momentum(method: str, branch: str) -> None:
    built = build_method(make(method, momentum=0.75, **(SMALL if method != "mocov1" else {"projection_dim": 8})))
    own, other = (dict(built.get_submodule(name).named_parameters()) for name in (f"{branch}.network", "network"))
    assert all(torch.equal(own[name], other[name]) for name in other)
    assert not any(parameter.requires_grad for parameter in built.get_submodule(branch).parameters())
    built.loss(*built.prepare(torch.rand(4, 1, 32, 32), seeded("cpu", 0), 1))
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter += 1
    before = {name: tensor.clone() for name, tensor in own.items()}
    built.after_step(1)
    for name in own:
        torch.testing.assert_close(own[name], before[name] + 0.25)


def test_queue_holds_the_newest_keys_in_turn() -> None:
    built = build_method(make("mocov2", queue=5, **SMALL))
    assert isinstance(built, MocoV2)
    views = torch.rand(2, 4, 1, 32, 32)
    initial = built.queue.clone()
    torch.testing.assert_close(initial.norm(dim=1), torch.ones(5))
    keys = torch.nn.functional.normalize(built.keys(views[1]))
    for part in (slice(0, 2), slice(2, 4)):  # two forward passes of one step see the same queue
        built.loss(views[0, part], views[1, part])
        assert torch.equal(built.queue, initial)
    built.after_step(1)
    torch.testing.assert_close(built.queue[:4], keys)
    assert torch.equal(built.queue[4], initial[4])
    keys = torch.nn.functional.normalize(built.keys(views[0]))
    built.loss(views[1], views[0])
    built.after_step(2)
    torch.testing.assert_close(built.queue[[4, 0, 1, 2]], keys)
    assert int(built.next_slot) == 3


def test_more_keys_than_the_queue_holds_leave_the_newest() -> None:
    built = build_method(make("mocov2", queue=3, **SMALL))
    assert isinstance(built, MocoV2)
    views = torch.rand(2, 4, 1, 32, 32)
    keys = torch.nn.functional.normalize(built.keys(views[1]))
    built.loss(views[0], views[1])
    built.after_step(1)
    torch.testing.assert_close(built.queue, keys[1:])


SWAV = {"hidden_dim": 16, "projection_dim": 8, "prototypes": 6, "local_crops": 1}


def swav(**fields: Any) -> Swav:
    built = build_method(make("swav", **{**SWAV, **fields})).train()
    assert isinstance(built, Swav)
    return built


def codes(similarities: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Share N images out over P prototypes: rows of the result are images and sum to 1."""
    shares = np.exp(similarities / epsilon)
    for _ in range(iterations):
        shares /= shares.sum(0) * shares.shape[1]
        shares /= shares.sum(1, keepdims=True) * shares.shape[0]
    return shares * shares.shape[0]


@pytest.mark.parametrize("queue", [0, 5])
def test_swav_predicts_each_global_crops_code_from_the_other_crops(queue: int) -> None:
    built = swav(queue=queue, temperature=0.3, epsilon=0.2, sinkhorn_iterations=4).eval()  # batch statistics are fixed
    crops = built.prepare(torch.rand(3, 1, 32, 32), seeded("cpu", 0), 1)
    assert [tuple(crop.shape) for crop in crops] == [(3, 1, 32, 32)] * 2 + [(3, 1, 14, 14)]
    with torch.no_grad():
        prototypes = built.prototypes.weight.double()
        projections = [F.normalize(built.projector(built.network.features(crop))).double() for crop in crops]
        scores = [projection @ prototypes.T for projection in projections]
        terms = []
        for i in range(2):
            together = torch.cat((scores[i], built.queue[i].double() @ prototypes.T))
            code = torch.from_numpy(codes(together.numpy(), 0.2, 4)[:3])
            assert code.sum(1).tolist() == pytest.approx([1, 1, 1])
            terms += [-(code * (scores[j] / 0.3).log_softmax(1)).sum(1).mean() for j in range(3) if j != i]
        assert len(terms) == 4
        assert float(built.loss(*crops)) == pytest.approx(float(sum(terms)) / 4, rel=1e-5)


def test_few_images_cannot_be_shared_out_over_many_prototypes() -> None:
    """Whatever 4 images show, each has to take 750 of 3 000 prototypes; beside a queue it takes a few."""
    similarities = np.random.default_rng(0).normal(0, 128**-0.5, (4 + 384, 3000))
    alone, beside = codes(similarities[:4], 0.05, 3), codes(similarities[:, :300], 0.05, 3)[:4]
    spread = [np.exp(-(code * np.log(code)).sum(1)) for code in (alone, beside)]  # prototypes that an image takes
    assert all(number > 750 for number in spread[0])
    assert all(number < 150 for number in spread[1])


def test_swavs_prototypes_have_unit_length_before_each_step() -> None:
    built = swav()
    crops = built.prepare(torch.rand(4, 1, 32, 32), seeded("cpu", 0), 1)
    optimizer = torch.optim.SGD(built.parameters(), lr=1.0)
    for step in (1, 2):
        torch.testing.assert_close(built.prototypes.weight.norm(dim=1), torch.ones(6))
        optimizer.zero_grad()
        built.loss(*crops).backward()
        optimizer.step()
        assert (built.prototypes.weight.norm(dim=1) - 1).abs().max() > 1e-4
        built.after_step(step)


def test_swavs_queue_holds_the_newest_projections_of_both_global_crops() -> None:
    built = swav(queue=5).eval()
    crops = built.prepare(torch.rand(4, 1, 32, 32), seeded("cpu", 0), 1)
    initial = built.queue.clone()
    for part in (slice(0, 2), slice(2, 4)):
        built.loss(*(crop[part] for crop in crops))
        assert torch.equal(built.queue, initial)
    built.after_step(1)
    projections = [F.normalize(built.projector(built.network.features(crop))) for crop in crops[:2]]
    torch.testing.assert_close(built.queue[:, :4], torch.stack(projections))
    assert torch.equal(built.queue[:, 4], initial[:, 4])
    assert int(built.next_slot) == 4


DINO = {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 6, "local_crops": 2}


def dino(**fields: Any) -> Dino:
    built = build_method(make("dino", **{**DINO, **fields})).train()
    assert isinstance(built, Dino)
    return built


def test_dino_is_the_cross_entropy_of_all_pairs_of_different_crops() -> None:
    built = dino(student_temperature=0.2, teacher_temperature=0.1).eval()  # so that batch statistics are fixed
    built.center.copy_(torch.linspace(-0.2, 0.2, 6))
    crops = built.prepare(torch.rand(3, 1, 32, 32), seeded("cpu", 0), 1)
    assert [tuple(crop.shape) for crop in crops] == [(3, 1, 32, 32)] * 2 + [(3, 1, 14, 14)] * 2
    with torch.no_grad():
        teacher = [built.teacher(crop) for crop in crops[:2]]
        student = [built.projector(built.network.features(crop)) for crop in crops]
        terms = [
            -(((teacher[t] - built.center[0]) / 0.1).softmax(1) * (student[s] / 0.2).log_softmax(1)).sum(1).mean()
            for t in range(2)
            for s in range(4)
            if t != s
        ]
        assert len(terms) == 6
        assert float(built.loss(*crops)) == pytest.approx(float(sum(terms)) / 6, rel=1e-5)


def test_dino_centre_moves_once_per_step_by_the_mean_of_all_its_forward_passes() -> None:
    built = dino(center_momentum=0.75)
    crops = built.prepare(torch.rand(4, 1, 32, 32), seeded("cpu", 0), 1)
    built.center.fill_(0.5)
    outputs = []
    hook = built.teacher.register_forward_hook(lambda *call: outputs.append(call[-1]))
    for part in (slice(0, 2), slice(2, 4)):
        built.loss(*(crop[part] for crop in crops))
        assert torch.equal(built.center, torch.full((1, 1, 6), 0.5))
    hook.remove()
    built.after_step(1)
    assert [len(output) for output in outputs] == [4, 4]  # two images, two global crops
    torch.testing.assert_close(built.center[0, 0], 0.75 * 0.5 + 0.25 * torch.cat(outputs).mean(0))


def test_dino_needs_no_local_crops() -> None:
    built = dino(local_crops=0)
    crops = built.prepare(torch.rand(4, 1, 32, 32), seeded("cpu", 0), 1)
    assert len(crops) == 2
    built.loss(*crops).backward()


@pytest.mark.parametrize(
    ("image_size", "stride", "expected"),
    [(224, 32, 96), (224, 8, 96), (256, 32, 96), (256, 8, 112), (64, 4, 28), (64, 32, 64), (32, 32, 32)],
)
def test_local_crops_survive_the_encoders_stride(image_size: int, stride: int, expected: int) -> None:
    assert local_size(image_size, stride) == expected


# --- diffusion --------------------------------------------------------------------------------------


def schedule(**fields: Any) -> NoiseSchedule:
    return NoiseSchedule(DdpmSpec(**fields))


def test_linear_schedule_runs_from_1e_4_to_0_02() -> None:
    betas = schedule(timesteps=500).betas
    assert len(betas) == 500
    assert betas[[0, 1, 499]].tolist() == pytest.approx([1e-4, 1e-4 + 0.0199 / 499, 0.02], rel=1e-5)


def test_quadratic_and_sigmoid_schedules_by_hand() -> None:
    middle = ((0.01 + math.sqrt(0.02)) / 2) ** 2
    assert schedule(timesteps=3, beta_schedule="quadratic").betas.tolist() == pytest.approx([1e-4, middle, 0.02])
    low, high = (1 / (1 + math.exp(x)) * 0.0199 + 1e-4 for x in (6, -6))
    expected = [low, 0.01005, high]
    assert schedule(timesteps=3, beta_schedule="sigmoid").betas.tolist() == pytest.approx(expected, rel=1e-5)


def test_cosine_schedule_by_hand() -> None:
    def left(share: float) -> float:  # of the image, Nichol and Dhariwal 2021, eq. 17
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [1 - left(1 / 3) / left(0), 1 - left(2 / 3) / left(1 / 3), 0.999]
    assert schedule(timesteps=3, beta_schedule="cosine").betas.tolist() == pytest.approx(expected, rel=1e-5)


def test_noised_image_keeps_the_root_of_the_product_of_all_alphas() -> None:
    image, noise = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), -2.0)
    kept = (1 - 1e-4) * (1 - 0.01005)
    noised = schedule(timesteps=3).add_noise(image, noise, torch.tensor([1]))
    torch.testing.assert_close(noised, torch.full_like(noised, math.sqrt(kept) * 0.5 - 2 * math.sqrt(1 - kept)))


def test_timesteps_are_drawn_from_one_to_the_last() -> None:
    built = build_method(make("ddpm", timesteps=4))
    _, _, timesteps = built.prepare(torch.rand(200, 1, 8, 8), seeded("cpu", 0), 1)
    assert set(timesteps.tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("l2", (0.5**2 + 3**2) / 2), ("l1", (0.5 + 3) / 2), ("huber", (0.5 * 0.5**2 + (3 - 0.5)) / 2)],
)
def test_ddpm_losses_by_hand(loss: str, expected: float) -> None:
    built = build_method(make("ddpm", timesteps=4, loss=loss))
    assert isinstance(built, Ddpm)
    assert float(built.distance(torch.tensor([0.5, -3.0]), torch.zeros(2))) == pytest.approx(expected)


def test_ddpm_scales_images_and_predicts_the_noise_it_added() -> None:
    built = build_method(make("ddpm", timesteps=4))
    assert isinstance(built, Ddpm)
    assert isinstance(built.network, UNet)
    images = torch.rand(2, 1, 32, 32)
    scaled, noise, timesteps = built.prepare(images, seeded("cpu", 0), 1)
    torch.testing.assert_close(scaled, images * 2 - 1)
    predicted = built.network.denoise(built.schedule.add_noise(scaled, noise, timesteps), timesteps)
    torch.testing.assert_close(built.loss(scaled, noise, timesteps), (predicted - noise).square().mean())


def test_average_of_weights_follows_the_documented_decay() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(layer, 0.3)
    expected = layer.weight.item()
    for step in range(1, 8):
        with torch.no_grad():
            layer.weight += step
        average.follow(layer)
        decay = 0.0 if step == 1 else min(0.3, step / (9 + step))
        expected = decay * expected + (1 - decay) * layer.weight.item()
        assert average.tensors(layer)["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_strips_go_from_the_image_to_noise_and_back_to_a_sample() -> None:
    pretraining = make("ddpm", timesteps=20)
    image = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    tensors = build_method(pretraining).snapshot()
    first, second = (strips(pretraining, tensors, image, num_pictures=5) for _ in "12")
    assert first.timesteps == (0, 5, 10, 14, 19)
    assert first.noising_NHW.shape == first.sampling_NHW.shape == (5, 32, 32)
    assert first.noising_NHW.dtype == first.sampling_NHW.dtype == np.uint8
    np.testing.assert_allclose(first.noising_NHW[0], image, atol=1)
    distance = np.abs(first.noising_NHW.astype(float) - image).mean((1, 2))
    assert np.all(np.diff(distance) > 0)
    assert np.array_equal(first.sampling_NHW, second.sampling_NHW)
    assert not np.array_equal(
        first.sampling_NHW, strips(pretraining, tensors, image, num_pictures=5, seed=1).sampling_NHW
    )


def test_strips_of_another_method_are_refused() -> None:
    pretraining = make("mocov3", **SMALL)
    with pytest.raises(ValueError, match="strips show what a ddpm pre-training does; got mocov3"):
        strips(pretraining, build_method(pretraining).snapshot(), np.zeros((32, 32), np.uint8))


# --- views ------------------------------------------------------------------------------------------

AREA, ASPECT, LEFT, TOP, FLIP, JITTER, BRIGHTNESS, CONTRAST, GAMMA, BLUR, SIGMA = range(NUM_DRAWS)
PLAIN = {AREA: 1.0, ASPECT: 0.5, LEFT: 0.5, TOP: 0.5, FLIP: 0.9, JITTER: 0.9, BLUR: 0.9}


def rendered(images: Tensor, view: View, **_: Any) -> Any:
    def with_draws(changes: dict[int, float]) -> Tensor:
        draws = torch.full((len(images), NUM_DRAWS), 0.5)
        for column, value in {**PLAIN, **changes}.items():
            draws[:, column] = value
        return render_views(images, draws, view)

    return with_draws


IMAGES = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2


def test_view_of_the_whole_image_is_the_image_and_a_flip_mirrors_it() -> None:
    view = rendered(IMAGES, View(size=16, min_area=0.2))
    torch.testing.assert_close(view({}), IMAGES, atol=1e-5, rtol=0)
    torch.testing.assert_close(view({FLIP: 0.1}), IMAGES.flip(3), atol=1e-5, rtol=0)


def test_crop_of_a_quarter_shows_the_corner_it_was_drawn_for() -> None:
    smooth = torch.arange(16.0)[None, None, :, None] / 16 + torch.arange(16.0)[None, None, None] / 64
    view = rendered(smooth, View(size=16, min_area=0.25))
    right_top = view({AREA: 0.0, LEFT: 1.0, TOP: 0.0})
    # The rectangle covers columns 8..15 and rows 0..7; output pixel 3 looks at (3 + 0.5) / 2 - 0.5 = 1.25 within it.
    assert float(right_top[0, 0, 3, 3]) == pytest.approx(1.25 / 16 + (8 + 1.25) / 64, abs=1e-5)
    assert float(right_top[0, 0, 12, 3]) == pytest.approx(5.75 / 16 + (8 + 1.25) / 64, abs=1e-5)


def test_aspect_makes_a_crop_wider_than_high_within_the_same_area() -> None:
    ramp = torch.arange(16.0)[None, None, None].expand(1, 1, 16, 16) / 16
    view = rendered(ramp, View(size=16, min_area=0.25))
    row = view({AREA: 0.0, ASPECT: 1.0})[0, 0, 8]
    # width = sqrt(0.25 * 4/3) of 16 pixels, so neighbouring pixels of the view are sqrt(1/3) pixels apart
    assert float(row[9] - row[8]) * 16 == pytest.approx(math.sqrt(1 / 3), abs=1e-5)


def test_jitter_by_hand() -> None:
    view = rendered(IMAGES, View(size=16, min_area=1.0))
    brighter = (IMAGES * 1.2).clamp(0, 1)
    torch.testing.assert_close(view({JITTER: 0.0, BRIGHTNESS: 0.75}), brighter, atol=1e-5, rtol=0)
    mean = IMAGES.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(view({JITTER: 0.0, CONTRAST: 0.0}), mean + (IMAGES - mean) * 0.6, atol=1e-5, rtol=0)
    torch.testing.assert_close(view({JITTER: 0.0, GAMMA: 1.0}), IMAGES ** math.exp(0.4), atol=1e-5, rtol=0)


def test_blur_is_a_gaussian_of_the_drawn_width() -> None:
    view = View(size=16, min_area=1.0, blur_sigma=(0.5 * 14, 1.5 * 14))  # 0.5 to 1.5 px at 16 px
    blurred = rendered(IMAGES, view)({BLUR: 0.0, SIGMA: 0.2})
    for image, result in zip(IMAGES[:, 0], blurred[:, 0], strict=True):
        expected = gaussian_filter(image.numpy(), 0.7, mode="nearest", radius=1)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_a_views_draws_belong_to_its_own_image() -> None:
    draws = torch.rand(2, NUM_DRAWS, generator=torch.Generator().manual_seed(3))
    draws[:, [JITTER, BLUR]] = 0.0
    view = View(size=16, min_area=0.2)
    together = render_views(IMAGES, draws, view)
    apart = torch.cat([render_views(IMAGES[i : i + 1], draws[i : i + 1], view) for i in range(2)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)


def test_views_stay_within_the_range_of_images_at_any_size() -> None:
    for size in (6, 16, 40):
        draws = torch.rand(64, NUM_DRAWS, generator=torch.Generator().manual_seed(size))
        views = render_views(torch.rand(64, 1, 16, 16), draws, View(size=size, min_area=0.05))
        assert views.shape == (64, 1, size, size)
        assert float(views.min()) >= 0
        assert float(views.max()) <= 1 + 1e-6
