"""Self-supervision as the authors' published code does it, and as it is done by default: both settings of every field.

The authors are Di Via, Odone and Pastore (arXiv 2407.18125); their numbers are facts read from their code.
"""

import dataclasses
import math
from typing import Any

import pytest
import segmentation_models_pytorch.encoders as encoders
import torch
from pydantic import ValidationError
from test_groups import after_a_step
from test_passes import FakeCard
from test_pretrain import Recorder, assert_same_state, make, run
from torch import Tensor, nn

from ablate.pretrain import build_method
from ablate.pretrain.base import SelfSupervision, WithMomentum
from ablate.pretrain.loop import backward
from ablate.pretrain.views import NUM_DRAWS, View, random_view, render_views
from ablate.report.grouping import value_label
from ablate.space import METHODS, DinoSpec, Momentum, SelfSupervised, SwavSpec, TrialSpec
from ablate.training import Interrupted, PassSize, seeded, unpack

torch.set_num_threads(1)

SMALL_DINO = {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 16, "local_crops": 2}
WITH_MOMENTUM = [name for name, row in METHODS.items() if issubclass(row.spec, Momentum)]
IN_VIEWS = [name for name, row in METHODS.items() if issubclass(row.spec, SelfSupervised)]


def built(method: str, kind: str = "unet", **fields: Any) -> SelfSupervision[Any]:
    found = build_method(make(method, kind, **fields)).train()
    assert isinstance(found, SelfSupervision)
    return found


def images(num_images: int, size: int = 32) -> Tensor:
    return torch.rand(num_images, 1, size, size, generator=torch.Generator().manual_seed(0))


def layers(head: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in head.get_submodule("layers").children()]


# --- when the momentum encoder moves ----------------------------------------------------------------


def distances(method: str, update: str, **fields: Any) -> tuple[list[float], float]:
    """Return how far a momentum encoder is behind at each of the eight passes of a step, and after the step.

    The trained weights stand still, one ahead of it.
    """
    found = built(method, batch_size=2, accumulate=8, momentum_update=update, **fields)
    assert isinstance(found, WithMomentum)
    own, other = (next(iter(module.network.parameters())).detach() for module in (found.branch, found))
    start = own.clone()
    with torch.no_grad():
        for parameter in found.network.parameters():
            parameter += 1
    seen = list[float]()
    found.branch.register_forward_pre_hook(lambda *call: seen.append(float((other - own).mean())))
    backward(found, images(16), seeded("cpu", 0), 1)
    found.after_step(1)
    torch.testing.assert_close(own, start + (1 - (other - own).mean()))
    return list(dict.fromkeys(seen)), float((other - own).mean())


def test_every_method_with_a_momentum_encoder_has_the_choice() -> None:
    assert WITH_MOMENTUM == ["mocov3", "mocov2", "mocov1", "dino", "byol"]


@pytest.mark.parametrize(("method", "momentum"), [("mocov2", 0.999), ("mocov3", 0.999), ("byol", 0.996)])
def test_after_eight_passes_of_a_step_0992_or_0968_of_the_old_weights_remain(method: str, momentum: float) -> None:
    by_pass, after = distances(method, "pass", momentum=momentum)
    assert by_pass == pytest.approx([momentum**number for number in range(1, 9)], abs=1e-5)
    assert after == pytest.approx({0.999: 0.99203, 0.996: 0.96844}[momentum], abs=1e-5)
    by_step, after = distances(method, "step", momentum=momentum)
    assert by_step == pytest.approx([1.0])
    assert after == pytest.approx(momentum, abs=1e-5)


@pytest.mark.parametrize(("method", "fields"), [("mocov1", {}), ("dino", {}), ("mocov3", {"negatives": "step"})])
def test_it_moves_once_for_each_group_also_of_other_methods_and_where_passes_are_made_twice(
    method: str, fields: dict[str, Any]
) -> None:
    by_pass, after = distances(method, "pass", momentum=0.9, **fields)
    assert by_pass == pytest.approx([0.9**number for number in range(1, 9)], rel=1e-4)
    assert after == pytest.approx(0.9**8, rel=1e-4)


@pytest.mark.parametrize("method", WITH_MOMENTUM)
def test_moving_by_groups_does_not_depend_on_what_a_pass_could_hold(method: str) -> None:
    pretraining = make(method, "encoder", batch_size=2, accumulate=4, momentum_update="pass")
    one, four = after_a_step(pretraining, 1), after_a_step(pretraining, 4)
    assert [name for name in one if not torch.equal(one[name], four[name])] == []
    recorder = Recorder()
    with FakeCard(1e9) as card:
        run(pretraining, recorder, steps=1, passes=PassSize(card=card))
    assert card.num_measured == 0
    assert unpack(recorder.states[1])["groups"] == 1


@pytest.mark.parametrize("method", ["mocov2", "mocov3", "dino"])
def test_moving_by_groups_and_interrupted_it_ends_as_if_it_had_run_through(method: str) -> None:
    pretraining = make(method, "encoder", momentum_update="pass", momentum=0.5)
    through, first, second = Recorder(), Recorder(stop_at=1), Recorder()
    run(pretraining, through, steps=2)
    with pytest.raises(Interrupted):
        run(pretraining, first, steps=2)
    run(pretraining, second, steps=2, state=unpack(first.states[1]))
    assert_same_state(second.states[2], through.states[2])


# --- heads ------------------------------------------------------------------------------------------

TWO_LAYERS = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
THREE_LAYERS = ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]


def test_mocov3_projects_in_three_layers_and_predicts_without_batch_norm_at_the_end() -> None:
    ours, theirs = built("mocov3"), built("mocov3", projector_layers=3, predictor_norm=False)
    heads = [[layers(found.get_submodule(name)) for name in ("projector", "predictor")] for found in (ours, theirs)]
    assert heads == [[[*TWO_LAYERS, "BatchNorm1d"]] * 2, [THREE_LAYERS, TWO_LAYERS]]
    assert layers(theirs.get_submodule("keys.head")) == THREE_LAYERS
    theirs.loss(*theirs.prepare(images(4), seeded("cpu", 0), 1)).backward()


HIDDEN = [name for name in IN_VIEWS if "hidden_dim" in METHODS[name].spec.model_fields]


def test_every_method_but_mocov1_has_hidden_layers() -> None:
    assert set(IN_VIEWS) - set(HIDDEN) == {"mocov1"}


@pytest.mark.parametrize("method", HIDDEN)
def test_hidden_layers_are_as_wide_as_the_features_where_that_is_asked_for(method: str) -> None:
    found = built(method, hidden_dim="features")
    assert found.spec.hidden_dim == 0
    assert found.network.feature_dim == 16
    assert found.get_submodule("projector.layers.0").get_parameter("weight").shape == (16, 16)
    assert built(method, hidden_dim=24).get_submodule("projector.layers.0").get_parameter("weight").shape == (24, 16)


def test_the_features_of_densenet161_are_2208_wide() -> None:
    assert encoders.encoders["densenet161"]["params"]["out_channels"][-1] == 2208


def test_features_as_a_width_are_read_again_and_other_words_are_refused() -> None:
    trial = {"dataset": "synthetic", "pretrain": {"method": "simclrv2", "hidden_dim": "features"}}
    spec = TrialSpec.model_validate(trial)
    assert TrialSpec.model_validate(spec.model_dump()) == spec
    assert spec.trial_id != TrialSpec.model_validate({**trial, "pretrain": {"method": "simclrv2"}}).trial_id
    assert value_label("pretrain_hidden_dim", 0) == "features"
    assert value_label("pretrain_hidden_dim", 512) == "512"
    with pytest.raises(ValidationError, match=r"must be a whole number, or features for .*; got 'feature'"):
        TrialSpec.model_validate({**trial, "pretrain": {"method": "simclrv2", "hidden_dim": "feature"}})


def test_simclrs_head_is_with_batch_norm_or_without() -> None:
    assert layers(built("simclr").get_submodule("projector")) == [*TWO_LAYERS, "BatchNorm1d"]
    assert layers(built("simclr", head_norm=False).get_submodule("projector")) == ["Linear", "ReLU", "Linear"]


def test_dinos_heads_are_with_batch_norm_or_without() -> None:
    for norm, expected in ((True, 2), (False, 0)):
        found = built("dino", head_norm=norm, **SMALL_DINO)
        for head in ("projector", "teacher.head"):
            norms = [one for one in found.get_submodule(head).modules() if isinstance(one, nn.BatchNorm1d)]
            assert len(norms) == expected


def test_widths_temperatures_queue_and_centre_of_the_authors_are_taken() -> None:
    moco: Any = built("mocov2", temperature=0.07, queue=65_536)
    assert moco.queue.shape == (65_536, 8)
    dino: Any = built("dino", prototypes=256, teacher_temperature=0.5, center_momentum=0.5)
    assert dino.center.shape == (1, 1, 256)
    dino.center.fill_(1.0)
    dino.leave(torch.zeros(256), torch.ones(1))
    dino.after_step(1)
    torch.testing.assert_close(dino.center, torch.full((1, 1, 256), 0.5))


@pytest.mark.parametrize("snapshot", ["teacher", "student"])
def test_dinos_snapshot_is_the_teachers_encoder_or_the_students(snapshot: str) -> None:
    recorder = Recorder()
    run(make("dino", "encoder", snapshot=snapshot), recorder, steps=2, snapshots=[2])
    state = unpack(recorder.states[2])["method"]
    prefix = {"teacher": "teacher.network.", "student": "network."}[snapshot]
    for name, tensor in recorder.snapshots[2].items():
        assert torch.equal(tensor, state[prefix + name])
    assert any(not torch.equal(state["network." + n], state["teacher.network." + n]) for n in recorder.snapshots[2])


# --- views ------------------------------------------------------------------------------------------


def views_of(method: str, **fields: Any) -> tuple[View, ...]:
    return built(method, **fields).views


def test_smallest_crops_are_the_authors_where_they_are_given() -> None:
    assert [view.min_area for view in views_of("mocov3")] == [0.2, 0.2]
    assert [view.min_area for view in views_of("mocov3", min_crop=0.08)] == [0.08, 0.08]


def test_dinos_local_crops_show_5_percent_to_all_of_the_image_or_a_part_of_its_global_crops() -> None:
    def areas(**fields: Any) -> list[tuple[float, float]]:
        return [(view.min_area, view.max_area) for view in views_of("dino", **SMALL_DINO, **fields)]

    assert areas() == [(0.2, 1)] * 2 + [(0.2 / 8, 0.2)] * 2
    assert areas(min_crop=0.04, local_min_crop=0.05, local_max_crop=1.0) == [(0.04, 1)] * 2 + [(0.05, 1)] * 2
    assert areas(local_max_crop=0.3) == [(0.2, 1)] * 2 + [(0.2 / 8, 0.3)] * 2


def test_local_crops_of_swav_are_by_default_those_of_its_paper_at_its_smallest_global_crop() -> None:
    assert SwavSpec(min_crop=0.14).local_areas == pytest.approx((0.05, 0.14))
    assert DinoSpec(min_crop=0.4).local_areas == pytest.approx((0.05, 0.4))


def test_local_crops_of_no_size_are_refused() -> None:
    fields = {"method": "dino", "local_min_crop": 0.3}
    told = (
        r"pretrain\.local_min_crop must be at most pretrain\.local_max_crop; got 0\.3 and 0\.2; give both, or neither "
        r"for 0\.125 \* min_crop and min_crop"
    )
    with pytest.raises(ValidationError, match=told):
        TrialSpec.model_validate({"dataset": "synthetic", "pretrain": fields})


def test_local_crops_have_three_sevenths_of_the_side() -> None:
    found = built("dino", "unet", network={"kind": "unet", "channels": (8, 16)}, **SMALL_DINO)
    assert [view.size for view in found.views] == [32, 32, 14, 14]  # 13.7, a multiple of the stride of 2


@pytest.mark.parametrize("method", IN_VIEWS)
def test_jitter_has_the_strength_that_is_asked_for(method: str) -> None:
    for fields, strength in (({}, 0.4), ({"jitter": 0.8}, 0.8)):
        for view in views_of(method, **fields):
            assert (view.brightness, view.contrast, view.log_gamma) == (strength,) * 3


def test_solarising_inverts_from_a_half_on() -> None:
    image = torch.tensor([[0.2, 0.49], [0.5, 0.9]])[None, None]
    draws = torch.full((2, NUM_DRAWS + 1), 0.5)
    draws[:, [0, 4, 5, 9]] = torch.tensor([1.0, 0.9, 0.9, 0.9])  # all of the image, no flip, no jitter, no blur
    draws[:, NUM_DRAWS] = torch.tensor([0.19, 0.2])
    view = View(2, min_area=0.2, solarize_probability=0.2)
    solarised, kept = render_views(image.expand(2, -1, -1, -1), draws, view)
    torch.testing.assert_close(solarised, torch.tensor([[0.2, 0.49], [0.5, 0.1]])[None])
    torch.testing.assert_close(kept, image[0])


@pytest.mark.parametrize(("method", "num_views"), [("mocov3", 2), ("dino", 4), ("simclr", 2)])
def test_a_fifth_of_the_second_views_is_solarised_or_none(method: str, num_views: int) -> None:
    plain, theirs = views_of(method), views_of(method, solarize=0.2)
    assert [view.solarize_probability for view in plain] == [0.0] * num_views
    assert [view.solarize_probability for view in theirs] == [0.0, 0.2] + [0.0] * (num_views - 2)
    batch = images(500, 8) * 0.2 + 0.7  # light: what solarising makes of it is dark
    still = dataclasses.replace(theirs[1], size=8, jitter_probability=0.0)
    dark = [
        float((random_view(batch, view, seeded("cpu", 0)).mean((1, 2, 3)) < 0.5).double().mean())
        for view in (dataclasses.replace(still, solarize_probability=0.0), still)
    ]
    assert dark[0] == 0
    assert dark[1] == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 500))


def test_first_views_are_the_same_whether_second_ones_are_solarised_or_not() -> None:
    plain, solarised = (built("mocov3", solarize=share) for share in (0.0, 0.5))
    views = [found.prepare(images(8), seeded("cpu", 0), 1) for found in (plain, solarised)]
    assert torch.equal(views[0][0], views[1][0])
    changed = [not torch.equal(*pair) for pair in zip(views[0][1], views[1][1], strict=True)]
    assert 0 < sum(changed) < 8


@pytest.mark.parametrize("method", ["mocov3", "dino", "swav"])
def test_views_are_drawn_for_each_image_or_for_each_group(method: str) -> None:
    batch = images(1).expand(8, -1, -1, -1)  # the same image eight times: what differs is drawn
    for setting, expected in (("image", 8), ("pass", 2)):
        found = built(method, views=setting, batch_size=4, accumulate=2)
        for view in found.prepare(batch, seeded("cpu", 0), 1):
            assert len(torch.unique(view.flatten(1), dim=0)) == expected
            assert (setting == "pass") == torch.equal(view[0], view[3])


def test_views_of_a_last_group_that_is_not_full_are_drawn_too() -> None:
    view = View(size=8, min_area=0.2)
    batch = images(1, 8).expand(5, -1, -1, -1)
    views = random_view(batch, view, seeded("cpu", 0), drawn_for=4)
    assert len(views) == 5
    assert len(torch.unique(views.flatten(1), dim=0)) == 2


# --- the loss's factor ------------------------------------------------------------------------------


def test_a_loss_of_twice_the_size_makes_the_same_update() -> None:
    """So BYOL's factor needs no field: AdamW goes by the direction of a gradient."""
    weights = []
    for factor in (1.0, 2.0):
        layer = nn.Linear(3, 1, bias=False)
        nn.init.constant_(layer.weight, 0.5)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            (factor * layer(torch.tensor([[1.0, -2.0, 3.0]])).sin().sum()).backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
