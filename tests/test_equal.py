"""Equal computing: what is not pre-trained fine-tunes for what the others spend on their pre-training."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_run import write_fake_run

from ablate.errors import InputError
from ablate.schedule.costs import default_costs, measured_steps, step_seconds
from ablate.space import Grid, Pretraining, Source, StepSeconds, TrialSpec, load_grid

UNET = "unet 8-16 1 middle, 32 px"


def text_of(equal: str, pretrain: str = "", **grid: str) -> str:
    """A search space of 5 shots in windows of 16 images: one optimizer step an epoch."""
    pretrain = pretrain or "[{method: ddpm, steps: 300}, {method: simclr, steps: 200}, {method: scratch}]"
    axes = {"shots": "5", "seed": "[0, 1]", "pretrain": pretrain} | grid
    lines = "".join(f"      {key}: {value}\n" for key, value in axes.items())
    return (
        f"name: x\n{f'equal: {equal}' if equal else 'description: none'}\n"
        "base: {dataset: synthetic, image_size: 32, network: {kind: unet, channels: [8, 16], layers_per_block: 1}}\n"
        f"blocks:\n  - grid:\n{lines}"
    )


def grid_of(equal: str, pretrain: str = "", measured: StepSeconds | None = None, **grid: str) -> Grid:
    return load_grid(Source.parse(text_of(equal, pretrain, **grid), "my.yaml"), (), measured)


def lengths(grid: Grid) -> dict[str, set[tuple[int | None, int | None]]]:
    found: dict[str, set[tuple[int | None, int | None]]] = {}
    for spec in grid.trials:
        found.setdefault(spec.method, set()).add((spec.finetune.epochs, spec.finetune.steps))
    return found


def measured(pretrain: dict[str, float], finetune: float) -> StepSeconds:
    def of_pretraining(pretraining: Pretraining) -> float:
        return pretrain[pretraining.fields.method]

    return StepSeconds(of_pretraining, lambda trial: finetune)


# --- steps ------------------------------------------------------------------------------------------


def test_epochs_are_the_default_and_change_nothing() -> None:
    assert grid_of("epochs").trials == grid_of("").trials
    assert lengths(grid_of("epochs"))["scratch"] == {(200, None)}


def test_by_steps_what_is_not_pretrained_gets_the_largest_pretraining_of_its_place() -> None:
    found = lengths(grid_of("steps"))
    assert found == {"ddpm": {(200, None)}, "simclr": {(200, None)}, "scratch": {(None, 200 + 300)}}


def test_a_length_in_steps_is_made_longer_in_steps() -> None:
    found = lengths(grid_of("steps", finetune="{steps: 1000}"))
    assert found == {"ddpm": {(None, 1000)}, "simclr": {(None, 1000)}, "scratch": {(None, 1300)}}


def test_places_of_other_networks_do_not_count() -> None:
    text = text_of("steps").replace(
        "blocks:\n",
        "blocks:\n  - grid: {shots: 5, network: {kind: encoder, encoder: resnet18}, finetune: {batch_size: 3},\n"
        "            pretrain: [{method: mocov3, steps: 900}, {method: imagenet}]}\n",
    )
    text = text.replace("network: {kind: unet, channels: [8, 16], layers_per_block: 1}}", "}", 1).replace(
        "      shots: 5\n", "      shots: 5\n      network: {kind: unet, channels: [8, 16]}\n"
    )
    found = lengths(load_grid(Source.parse(text, "my.yaml")))
    assert found["imagenet"] == {(None, 200 + 900)}
    assert found["scratch"] == {(None, 200 + 300)}


def test_divided_each_trial_is_charged_its_part_of_what_is_shared() -> None:
    # ddpm: two seeds share 300 steps; simclr: 200 steps
    assert lengths(grid_of("{by: steps, pretraining: divided}"))["scratch"] == {(None, 200 + 150)}
    several = "[{method: ddpm, steps: [100, 300]}, {method: scratch}]"
    # four trials share the first 100 steps, two of them the other 200: 25 + 100
    assert lengths(grid_of("{by: steps, pretraining: divided}", several))["scratch"] == {(None, 200 + 125)}
    assert lengths(grid_of("steps", several))["scratch"] == {(None, 200 + 300)}


def test_a_share_of_the_shots_that_validates_has_its_steps_in_both_phases() -> None:
    found = lengths(grid_of("steps", shots="20", validation="inside_shots"))  # 16 images are left: one step an epoch
    assert found["scratch"] == {(None, 200 + 150)}


def test_what_comes_out_is_an_ordinary_trial() -> None:
    (spec, _) = [spec for spec in grid_of("steps").trials if spec.method == "scratch"]
    data = spec.model_dump()
    data["finetune"] |= {"steps": 500, "epochs": None}
    assert TrialSpec.model_validate(data).trial_id == spec.trial_id


# --- seconds ----------------------------------------------------------------------------------------


def test_by_seconds_the_largest_pretraining_is_converted_into_steps() -> None:
    costs = "{by: seconds, costs: {ddpm: 0.5, simclr: 2.0, finetune: 0.25}}"
    # ddpm 300 * 0.5 = 150 s, simclr 200 * 2 = 400 s; 400 / 0.25 = 1600 steps
    assert lengths(grid_of(costs))["scratch"] == {(None, 200 + 1600)}


def test_more_words_go_before_fewer() -> None:
    costs = f"{{by: seconds, costs: {{ddpm: 0.5, simclr: 0.1, finetune: 0.25, 'ddpm, batch 4 x 8, {UNET}': 1.0}}}}"
    assert lengths(grid_of(costs))["scratch"] == {(None, 200 + 1200)}


def test_measured_seconds_are_rounded_and_recorded_so_that_the_record_gives_the_same_trials() -> None:
    found = grid_of("seconds", measured=measured({"ddpm": 0.123456, "simclr": 0.01}, 0.0333333))
    assert found.resolved["equal"] == {
        "by": "seconds",
        "pretraining": "whole",
        "costs": {
            f"ddpm, batch 4 x 8, {UNET}": 0.123,
            f"simclr, batch 4 x 8, {UNET}": 0.01,
            f"finetune, 5 shots of synthetic, batch 2 x 8, {UNET}": 0.0333,
        },
    }
    assert lengths(found)["scratch"] == {(None, 200 + int(300 * 0.123 / 0.0333))}
    again = load_grid(Source.parse(yaml.safe_dump(found.resolved, sort_keys=False), "again.yaml"))
    assert again.trials == found.trials
    assert again.resolved == found.resolved


def test_a_run_records_its_trials(tmp_path: Path) -> None:
    found = grid_of("seconds", measured=measured({"ddpm": 0.123456, "simclr": 0.01}, 0.0333333))
    rows = [{"trial_id": spec.trial_id, **spec.model_dump(mode="json")} for spec in found.trials]
    recorded = {"name": "x", "search_space": found.resolved, "sessions": [], "trials": rows}
    again = load_grid(Source.parse(yaml.safe_dump(recorded, sort_keys=False), "run.yaml"))
    assert again.trials == found.trials
    assert again.resolved == found.resolved


def test_a_step_more_costs_what_its_images_cost() -> None:
    spec = TrialSpec.model_validate({"dataset": "synthetic", "image_size": 32, "shots": 16})
    costs = default_costs(gpus_pretrain=0, gpus_finetune=0)
    one, two = (costs.finetune(spec.model_validate({**spec.model_dump(), "finetune": f})) for f in FEWER_AND_MORE)
    assert step_seconds(costs).finetune(spec) == pytest.approx((two - one) / 4000)


FEWER_AND_MORE: tuple[dict[str, Any], ...] = ({"steps": 4000}, {"steps": 8000})


# --- the command line -------------------------------------------------------------------------------


def test_plan_takes_the_seconds_of_a_run_and_prints_what_can_be_written_into_the_file(
    ablate: Any, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text_of("seconds"))
    run = tmp_path / "run"
    plain = load_grid(Source.parse(text_of("epochs"), "my.yaml"))
    store = write_fake_run(run, plain.trials)
    code, out, err = ablate("plan", "--grid", file, "--costs", run)
    assert (code, err) == (0, "")
    expected = load_grid(Source.parse(text_of("seconds"), "my.yaml"), (), measured_steps(store))
    for words, seconds in expected.resolved["equal"]["costs"].items():
        assert f"      {words}: {seconds:g}\n" in out
    assert "equal          seconds: what is not pre-trained fine-tunes for what others spend on theirs (whole)" in out
    (steps,) = {spec.finetune.steps for spec in expected.trials if spec.method == "scratch"}
    assert steps is not None
    assert steps > 200
    assert f"finetune_steps           None, {steps}\n" in out


def test_costs_without_a_search_space_by_seconds_are_refused(ablate: Any, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text_of("steps"))
    write_fake_run(tmp_path / "run", load_grid(Source.parse(text_of("epochs"), "my.yaml")).trials)
    code, _, err = ablate("run", "--grid", file, "--costs", tmp_path / "run", "--dry-run")
    assert code == 2
    assert "--costs must go with a search space that says equal: seconds; x does not" in err


@pytest.mark.parametrize(
    ("equal", "changes", "words"),
    [
        ("stepps", {}, ["my.yaml:2: equal", "epochs, steps, seconds", "'stepps'", "did you mean 'steps'"]),
        ("{by: steps, pretrainings: whole}", {}, ["my.yaml:2: equal", "'pretrainings'", "did you mean 'pretraining'"]),
        ("{by: epochs, pretraining: divided}", {}, ["equal.pretraining", "left out where by is epochs", "divided"]),
        ("{by: steps, pretraining: half}", {}, ["equal.pretraining", "whole, divided", "'half'"]),
        ("{by: steps, costs: {ddpm: 1.0}}", {}, ["equal.costs", "left out unless by is seconds", "steps"]),
        ("{by: seconds, costs: {ddpm: 0.0}}", {}, ["equal.costs", "above 0", "0.0"]),
        ("seconds", {}, ["my.yaml:2: equal", "'ddpm, batch 4 x 8, unet 8-16 1 middle, 32 px'", "--costs RUN"]),
        ("{by: seconds, costs: {ddmp: 1.0}}", {}, ["of 'ddpm, batch", "(equal.costs names ddmp)"]),
        ("steps", {"pretrain": "{method: scratch}"}, ["equal must be epochs where nothing is pre-trained", "steps"]),
        ("steps", {"shots": "all"}, ["finetune.steps where shots are all", "epochs 200"]),
        ("[steps]", {}, ["equal", "epochs, steps, seconds"]),
    ],
)
def test_a_bad_equal_is_refused_with_its_place_and_cure(equal: str, changes: dict[str, str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        grid_of(equal, **changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_all_shots_are_known_where_the_length_is_in_steps() -> None:
    assert lengths(grid_of("steps", shots="all", finetune="{steps: 1000}"))["scratch"] == {(None, 1300)}
