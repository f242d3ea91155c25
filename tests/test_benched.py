"""Costs by a bench: hand-worked seconds, what was not measured, and files that are refused."""

import json

import pytest
from tiny import tiny_trial

from ablate import tables
from ablate.datasets import DATASETS, require_dataset
from ablate.errors import InputError
from ablate.running.plan_words import benched_lines
from ablate.schedule.bench_file import (
    Bench,
    BenchDevice,
    Epoch,
    FinetuneRow,
    PretrainRow,
    Shared,
    StepTimes,
    read_bench,
    write_bench,
)
from ablate.schedule.benched import (
    NUM_LANDMARKS,
    Crowd,
    bench_costs,
    best_processes,
    finetune_seconds,
    not_measured,
    require_device,
    slowdown,
    window_seconds,
)
from ablate.schedule.costs import measured_costs
from ablate.schedule.flops import forward_flops
from ablate.store import Store

ALONE = Crowd(1, 1)


def step(images, seconds, flops=1e9):
    return StepTimes(images=images, seconds=seconds, count=10, flops=flops, peak_memory_bytes=1)


def shared(**seconds):
    """Return steps of 8 images in so many processes: `_2=0.3`."""
    return tuple(Shared(processes=int(name[1:]), seconds=value, images=8) for name, value in seconds.items())


PRETRAINED = tiny_trial("ddpm", pretrain={"steps": 100})


def bench(*, kind="cpu", pretrain=None, finetune=None, cores=2):
    """Return a bench with a row of each phase: 0.2 s a step of pre-training, fine-tuning as `worked_out` says."""
    if pretrain is None:
        pretrain = [PretrainRow(trial=PRETRAINED, step=step(4, 0.2), shared=shared(_1=0.2, _2=0.3), rest_seconds=10.0)]
    if finetune is None:
        finetune = [
            FinetuneRow(
                trial=PRETRAINED,
                steps=(step(2, 0.1), step(4, 0.14)),
                val_image_seconds=0.01,
                test_image_seconds=0.02,
                shared=shared(_1=0.14, _2=0.28),
                rest_seconds=3.0,
            )
        ]
    device = BenchDevice(kind=kind, name="x", count=1, memory_bytes=1, cores=cores, threads=1, busy_cores=0.0)
    return Bench(
        grid="tiny",
        written_at="2026-01-01T00:00:00+00:00",
        seconds=300.0,
        ablate_version="0",
        torch_version="0",
        git_revision=None,
        device=device,
        process_seconds=4.0,
        pretrain=tuple(pretrain),
        finetune=tuple(finetune),
    )


# --- parts ------------------------------------------------------------------------------------------


def test_a_window_lies_on_the_line_through_the_two_that_were_measured():
    steps = (step(2, 0.1), step(8, 0.22))  # 0.06 s and 0.02 s an image
    assert [window_seconds(steps, images) for images in (2, 5, 8, 10)] == pytest.approx([0.1, 0.16, 0.22, 0.26])
    assert window_seconds(steps, 1) == pytest.approx(0.08)
    assert window_seconds([step(4, 0.2)], 2) == pytest.approx(0.1)
    noisy = (step(2, 0.3), step(8, 0.2))  # a larger one never takes less
    assert window_seconds(noisy, 8) == pytest.approx(0.3)


def test_processes_between_those_that_were_measured_are_interpolated_and_more_take_turns():
    known = shared(_1=0.1, _2=0.12, _4=0.2)
    assert [slowdown(known, number) for number in (1, 2, 3, 4, 8)] == pytest.approx([1.0, 1.2, 1.6, 2.0, 4.0])


def test_as_few_processes_are_advised_as_come_within_three_percent_of_the_most():
    assert best_processes(shared(_1=0.1, _2=0.11, _4=0.2, _8=0.395)) == 4  # 80, 145, 160 and 162 images/s
    assert best_processes(shared(_1=0.1, _2=0.2)) == 1


def test_a_crowd_is_what_the_shares_of_a_gpu_or_the_places_of_a_cpu_hold():
    assert Crowd.of(gpus_pretrain=1.0, gpus_finetune=0.25, slots=None, most=16) == Crowd(1, 4)
    assert Crowd.of(gpus_pretrain=0.0, gpus_finetune=0.0, slots=64, most=2) == Crowd(2, 2)
    assert Crowd.of(gpus_pretrain=0.0, gpus_finetune=0.0, slots=1, most=2) == Crowd(1, 1)


def test_landmarks_are_those_of_the_data_sets():
    known = {name: row.num_landmarks for name, row in DATASETS.items()}
    assert known | {"synthetic": require_dataset("synthetic", None).num_landmarks} == NUM_LANDMARKS


# --- stages -----------------------------------------------------------------------------------------


def test_a_pretraining_is_its_steps_and_the_rest_of_its_stage_spread_over_them():
    costs = bench_costs(bench(), ALONE)
    assert 100 * costs.pretrain_step(PRETRAINED.pretraining) == pytest.approx(100 * 0.2 + 10)
    shorter = tiny_trial("ddpm", pretrain={"steps": 50})
    assert 50 * costs.pretrain_step(shorter.pretraining) == pytest.approx(50 * 0.2 + 10)


def test_processes_side_by_side_slow_one_another():
    costs = bench_costs(bench(), Crowd(2, 2))
    assert 100 * costs.pretrain_step(PRETRAINED.pretraining) == pytest.approx(1.5 * (100 * 0.2 + 10))
    assert costs.finetune(PRETRAINED) == pytest.approx(2 * bench_costs(bench(), ALONE).finetune(PRETRAINED))


def worked_out(epochs, *windows, validations):
    """Return the seconds of a fine-tuning on generated radiographs, of which 20 validate and 100 are tested."""
    seconds = {2: 0.1, 3: 0.12, 4: 0.14}
    judged = validations * 20 * 0.01 + 20 * 0.02 if validations else 0
    return epochs * sum(seconds[images] for images in windows) + judged + 100 * 0.02 + 3


def test_a_finetuning_is_its_windows_its_validations_its_test_images_and_the_rest():
    costs = bench_costs(bench(), ALONE)
    seven = tiny_trial(shots=7, finetune={"epochs": 10})  # windows of 2 x 2 images
    assert costs.finetune(seven) == pytest.approx(worked_out(10, 4, 3, validations=10))
    rarely = tiny_trial(shots=4, finetune={"epochs": 10, "validate_every": 5})
    assert costs.finetune(rarely) == pytest.approx(worked_out(10, 4, validations=2))
    never = tiny_trial(shots=4, validation="none", finetune={"epochs": 10, "schedule": "constant"})
    assert costs.finetune(never) == pytest.approx(worked_out(10, 4, validations=0))


def test_shots_that_validate_train_in_a_second_phase_of_as_many_steps():
    spec = tiny_trial(shots=5, validation="inside_shots", finetune={"epochs": 10})  # 4 and 1; then 10 steps on 5
    row = bench().finetune[0]
    # the line of 0.06 s and 0.02 s an image gives 0.08 s for a window of one
    assert finetune_seconds(row, spec) == pytest.approx(10 * 0.14 + 10 * 0.01 + 5 * (0.14 + 0.08) + 101 * 0.02)


def test_copying_the_best_weights_counts_with_every_validation():
    epoch = Epoch(shots=5, val_images=20, seconds=1.0, training=0.2, validation=0.2, decoding=0.1, copying=0.05)
    copied = bench(finetune=[bench().finetune[0].model_copy(update={"epoch": epoch})])
    spec = tiny_trial(shots=4, finetune={"epochs": 10})
    without, with_copies = (bench_costs(found, ALONE).finetune(spec) for found in (bench(), copied))
    assert with_copies == pytest.approx(without + 10 * 0.05)


# --- what was not measured --------------------------------------------------------------------------


def test_another_network_takes_the_rate_of_the_most_similar_by_its_operations():
    wide = tiny_trial("ddpm", pretrain={"steps": 100}, network={"channels": [16, 32], "layers_per_block": 1})
    small, large = (forward_flops(spec.network, 16).whole for spec in (PRETRAINED, wide))
    row = PretrainRow(trial=PRETRAINED, step=step(4, 0.2))
    costs = bench_costs(bench(pretrain=[row]), ALONE)
    assert costs.pretrain_step(wide.pretraining) == pytest.approx(0.2 * large / small)
    trained = costs.finetune(PRETRAINED) - 3
    assert costs.finetune(wide) == pytest.approx(trained * large / small + 3)
    assert not_measured(bench(), [PRETRAINED]) == []
    assert not_measured(bench(), [wide, wide]) == [
        "pre-training by ddpm of unet at 16 px in fp32",
        "fine-tuning of unet at 16 px in fp32, 12 landmarks",
    ]


def test_another_precision_is_another_row():
    half = tiny_trial("ddpm", precision="bf16", pretrain={"steps": 100})
    rows = [
        PretrainRow(trial=PRETRAINED, step=step(4, 0.2)),
        PretrainRow(trial=half, step=step(4, 0.05)),
    ]
    costs = bench_costs(bench(pretrain=rows), ALONE)
    assert costs.pretrain_step(PRETRAINED.pretraining) == pytest.approx(0.2)
    assert costs.pretrain_step(half.pretraining) == pytest.approx(0.05)
    assert len(not_measured(bench(), [half])) == 2


def test_where_no_process_was_measured_beside_another_a_gpu_is_taken_in_turns_and_cores_are_not_shared():
    row = PretrainRow(trial=PRETRAINED, step=step(4, 0.2))
    rows = [bench().finetune[0].model_copy(update={"shared": ()})]
    for kind, times in (("cuda", 4.0), ("cpu", 1.0)):
        found = bench(kind=kind, pretrain=[row], finetune=rows)
        alone, crowded = (bench_costs(found, crowd).finetune(PRETRAINED) for crowd in (ALONE, Crowd(1, 4)))
        assert crowded == pytest.approx(times * alone)


def test_a_bench_without_a_phase_says_that_it_cannot_tell():
    with pytest.raises(InputError, match="--bench must hold a row of pre-training for this plan"):
        bench_costs(bench(pretrain=[]), ALONE).pretrain_step(PRETRAINED.pretraining)


def test_finished_stages_go_before_the_bench(tmp_path):
    store = Store.open(tmp_path / "run")
    row = tables.blank("trials") | tables.spec_columns(PRETRAINED) | {"status": "finished"}
    tables.write_rows(store, "trials", PRETRAINED.trial_id, [row])
    stage = {"kind": "pretrain", "pretrain_key": PRETRAINED.pretrain_key, "from_step": 0, "to_step": 100}
    attempt = tables.blank("stages") | stage | {"seconds": 60.0, "gpus": 0.0, "outcome": "finished"}
    tables.write_rows(store, "stages", tables.stage_part("pretrain", PRETRAINED.pretrain_key, "a"), [attempt])

    def by_bench(*, gpus_pretrain, gpus_finetune):
        return bench_costs(bench(), ALONE)

    costs = measured_costs(store, gpus_pretrain=0, gpus_finetune=0, expected=by_bench)
    assert 100 * costs.pretrain_step(PRETRAINED.pretraining) == pytest.approx(60)  # 30 by the bench
    usual = bench_costs(bench(), ALONE)
    assert costs.finetune(PRETRAINED) == pytest.approx(2 * usual.finetune(PRETRAINED))  # as slow as what was seen


# --- files and the command --------------------------------------------------------------------------


def test_a_file_holds_all_that_was_measured(tmp_path):
    write_bench(bench(), tmp_path / "b.json")
    assert read_bench(tmp_path / "b.json") == bench()


def damaged(change):
    content = json.loads(bench().model_dump_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is none"),
        ('{"format": "else"}', "is none"),
        (damaged(lambda content: content.update(version=2)), "has version 2, this ablate reads 1"),
        (damaged(lambda content: content["device"].pop("cores")), "is not as it was written: device.cores: Field req"),
        (damaged(lambda content: content["pretrain"][0].update(trial={"dataset": "x"})), "a method that trains"),
        (damaged(lambda content: content.update(pretrain=[], finetune=[])), "has no row"),
    ],
)
def test_what_is_no_bench_is_refused_with_the_cure(tmp_path, text, message):
    path = tmp_path / "b.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="ablate bench") as refusal:
        read_bench(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_bench_of_a_cpu_says_nothing_about_a_gpu():
    require_device(bench(), gpus=False)
    with pytest.raises(InputError, match=r"--bench must be a bench on a GPU; it is one of a CPU \(x\)"):
        require_device(bench(), gpus=True)
    with pytest.raises(InputError, match="--bench must be a bench without a GPU"):
        require_device(bench(kind="cuda"), gpus=False)


def test_a_plan_tells_when_a_run_ends_and_what_was_not_measured(ablate, tmp_path):
    write_bench(bench(), tmp_path / "b.json")
    code, out, err = ablate("plan", "--grid", "demo", "--bench", tmp_path / "b.json")
    assert (code, err) == (0, "")
    assert f"2 slots; times measured by {tmp_path}/b.json on x, 2 cores, 1 thread a stage" in out
    assert "go into checks and the start of Ray and its workers" in out
    assert "pre-training by simclr of unet at 32 px in bf16" in out
    code, _, err = ablate("plan", "--grid", "demo", "--gpus", "1", "--bench", tmp_path / "b.json")
    assert code == 2
    assert "--bench must be a bench on a GPU" in err


def test_the_end_of_a_run_is_its_start_and_its_makespan():
    class Forecast:
        class schedule:  # noqa: N801
            makespan_s = 100.0

    (line,) = benched_lines(Forecast, 20.0, [])
    assert "a run takes 0:02:00: about 20 s go into checks" in line
