"""A bench: its budget, its clock, its rows and tables, and every part of it on tiny trials in this process."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_fields, tiny_trial

from ablate.bench import ceilings, loops, parts, worker
from ablate.bench.device import WARM_UP, Device
from ablate.bench.images import noise
from ablate.bench.loops import LEAST, Clock
from ablate.bench.measuring import Budget, Part, processes_of, run_bench
from ablate.bench.rows import leading, rows_of
from ablate.bench.words import bench_lines
from ablate.bench.worker import Crew, Failed, Lost
from ablate.schedule.bench_file import read_bench, write_bench
from ablate.schedule.flops import forward_flops
from ablate.space import Grid, find_grid, load_grid
from ablate.stage.settings import Settings
from ablate.training import Interrupted, Progress

ROOT = Path(__file__).resolve().parents[1]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# --- the clock --------------------------------------------------------------------------------------


class TickingDevice:
    """A device whose clock goes on by what a step is said to take."""

    is_gpu, warm_up = False, WARM_UP

    def __init__(self, steps):
        self.moments = [sum(steps[: number + 1]) for number in range(len(steps))]

    def mark(self):
        return self.moments.pop(0)

    def seconds(self, marks):
        return [after - before for before, after in itertools.pairwise(marks)]

    def synchronize(self):
        pass


def test_the_first_steps_warm_up_and_the_mean_of_the_next_counts():
    clock = Clock(TickingDevice([0.0, 2.0, 4.0]), seconds=0.0)
    stops = [clock(Progress("pretrain", step, 100)) for step in range(1, WARM_UP + LEAST + 1)]
    assert stops == [False] * (WARM_UP + LEAST - 1) + [True]
    assert (clock.count, clock.each) == (2, 3.0)


def test_a_clock_starts_when_all_processes_are_ready():
    told = []
    clock = Clock(TickingDevice([1.0] * 9), seconds=0.0, ready=lambda: told.append(clock._done))
    while not clock(Progress("pretrain", 1, 100)):
        pass
    assert told == [WARM_UP]


# --- the budget -------------------------------------------------------------------------------------


class Time:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def spent(time, told, *, beyond=0.0):
    """Return what a part does that takes as long as it is told, and some more."""

    def measure(seconds, limit_s):
        told.append(seconds)
        time.now_s += seconds + beyond

    return measure


def test_the_time_is_shared_by_weight():
    time, told = Time(), []
    budget = Budget(12.0, time)
    listed = [Part(str(weight), weight, lambda: 0.0, spent(time, told)) for weight in (1.0, 2.0, 3.0)]
    assert budget.spend(listed, lambda text: None) == []
    assert told == pytest.approx([2.0, 4.0, 6.0])


def test_what_a_part_takes_beyond_is_kept_for_the_next():
    time, told = Time(), []
    listed = [Part("x", 1.0, lambda: 0.0, spent(time, told, beyond=1.0)) for _ in range(2)]
    Budget(12.0, time).spend(listed, lambda text: None)
    assert told == pytest.approx([6.0, 4.0])  # 7 of 12 are gone; of the 5 that are left 1 is kept
    assert time.now_s == pytest.approx(12.0)


def test_a_part_that_needs_too_much_is_left_out_and_told():
    time, told = Time(), []
    listed = [
        Part("small", 1.0, lambda: 2.0, spent(time, told)),
        Part("large", 1.0, lambda: 400.0, spent(time, told)),
        Part("never", 1.0, lambda: 0.0, spent(time, told), wanted=lambda: False),
    ]
    (out,) = Budget(30.0, time).spend(listed, lambda text: None)
    assert (out.what, out.why) == ("large", "it needs about 400 s, and 11 s were its share")


def test_a_part_that_fails_is_left_out_with_its_reason():
    def fail(seconds, limit_s):
        raise Failed("OutOfMemoryError: 3 GiB")

    (out,) = Budget(30.0, Time()).spend([Part("x", 1.0, lambda: 0.0, fail)], lambda text: None)
    assert (out.what, out.why) == ("x", "OutOfMemoryError: 3 GiB")


# --- rows -------------------------------------------------------------------------------------------


def test_the_rows_of_the_paper_are_its_methods_and_its_networks_with_each_number_of_landmarks():
    rows = rows_of(load_grid(find_grid("paper")).trials)
    assert [row.name for row in rows] == [
        "DDPM, reference 256 px",
        "MoCo v3, densenet161 256 px",
        "SimCLR v2, densenet161 256 px",
        "DINO, densenet161 256 px",
        *(f"fine-tuning, {k} landmarks, {net} 256 px" for net in ("reference", "densenet161") for k in (6, 19, 37)),
    ]
    # chest: windows of 16 images; 5, 10, 25 = 16 + 9, 50 = 3 * 16 + 2 and 195 = 12 * 16 + 3 shots
    assert [kind.images for kind in rows[4].kinds] == [2, 16]
    assert [kind.images for kind in rows[0].kinds] == [4 * 8]


def test_fine_tunings_that_differ_in_landmarks_alone_are_crowded_and_compared_once():
    rows = leading(rows_of(load_grid(find_grid("paper")).trials))
    assert [row.name for row in rows][4:] == [
        "fine-tuning, 37 landmarks, reference 256 px",
        "fine-tuning, 37 landmarks, densenet161 256 px",
    ]
    assert len(rows) == 6


def test_precisions_are_rows_of_their_own():
    rows = rows_of([tiny_trial("ddpm"), tiny_trial("ddpm", seed=1), tiny_trial("ddpm", precision="bf16")])
    assert [row.name for row in rows] == [
        "DDPM, unet 16 px",
        "DDPM, unet 16 px bf16",
        "fine-tuning, 12 landmarks, unet 16 px",
        "fine-tuning, 12 landmarks, unet 16 px bf16",
    ]


def test_operations_of_a_window_are_three_forward_passes_of_each_image():
    spec = tiny_trial(shots=7)  # windows of 4 and 3
    (row,) = rows_of([spec])
    whole = forward_flops(spec.network, 16).whole
    assert [(kind.images, kind.work.flops) for kind in row.kinds] == [(3, 9 * whole), (4, 12 * whole)]


@pytest.mark.parametrize(
    ("is_gpu", "places", "pretraining", "finetuning"),
    [
        (True, 16, [], [2, 4, 8]),
        (True, 4, [], [2, 4]),
        (False, 1, [], []),
        (False, 2, [2], [2]),
        (False, 6, [6], [2, 4, 6]),
    ],
)
def test_side_by_side_run_as_many_processes_as_a_run_would_start(is_gpu, places, pretraining, finetuning):
    first, second = rows_of([tiny_trial("ddpm")])
    assert processes_of(first, is_gpu, places) == pretraining
    assert processes_of(second, is_gpu, places) == finetuning


def test_noise_has_the_landmarks_and_the_sizes_that_are_asked_for():
    data = noise(tiny_trial(dataset="chest"), train=3, val=2, test=1)
    assert data.train.images_NHW.shape == (3, 16, 16)
    assert data.val.points_NK2.shape == (2, 6, 2)
    assert len(data.test.names) == 1


# --- every part, on tiny trials ---------------------------------------------------------------------


class NearCrew(Crew):
    """Does every task in this process, one for all that would run side by side."""

    def start(self, number):
        return 1.5

    def do(self, name, arguments, *, limit_s, processes=1):
        return [worker.TASKS[name](Device(Settings(device="cpu")), lambda: None, **arguments)] * processes


@pytest.fixture
def near(monkeypatch):
    from ablate.bench import measuring

    for name in ("SIDE", "COPIED"):
        monkeypatch.setattr(ceilings, name, {False: 64, True: 64})
    monkeypatch.setattr(measuring, "Crew", NearCrew)
    monkeypatch.setattr(measuring, "num_cores", lambda: 2)
    monkeypatch.setattr(measuring, "MOST_S", 0.05)


def bench_of(*trials, minutes=5.0):
    grid = Grid("tiny", "", trials, {})
    return run_bench(grid, minutes=minutes, settings=Settings(device="cpu"), say=lambda text: None)


def test_a_bench_measures_every_part_of_every_row(near, tmp_path):
    found = bench_of(*(tiny_trial("ddpm", shots=shots, pretrain={"timesteps": 4}) for shots in (4, 6)))
    assert found.left_out == ()
    assert [ceiling.name for ceiling in found.ceilings] == ["fp32", "bf16", "copy"]
    assert [row.trial.method for row in found.pretrain] == ["ddpm"]
    (row,) = found.finetune
    assert [step.images for step in row.steps] == [2, 4]
    assert row.epoch.seconds > 0
    for each in (*found.pretrain, row):
        assert [shared.processes for shared in each.shared] == [1, 2]
        assert each.rest_seconds is not None  # 0 where the steps measured alone took longer than the whole stage
        assert each.resumed.equal
        assert each.resumed.equal_deterministic
    step = row.steps[-1]
    assert step.sync_seconds == 0
    assert step.device_seconds + step.host_seconds == pytest.approx(step.seconds)
    write_bench(found, tmp_path / "bench.json")
    assert read_bench(tmp_path / "bench.json") == found
    text = "\n".join(bench_lines(found))
    for words in ("optimizer step", "epoch", "besides training", "to the bit", "images/s of processes at once"):
        assert words in text
    assert "left out" not in text


def test_an_encoder_is_measured_too(near):
    network = {"kind": "encoder", "encoder": "tu-test_resnet"}
    found = bench_of(tiny_trial("simclr", network=network, image_size=32, shots=6, finetune={"batch_size": 3}))
    assert found.left_out == ()
    assert [row.trial.method for row in found.pretrain] == ["simclr"]
    assert found.finetune[0].resumed.equal


def test_no_time_measures_nothing_and_says_so(near):
    found = bench_of(tiny_trial("ddpm"), minutes=1e-9)
    assert found.pretrain == found.finetune == ()
    text = "\n".join(bench_lines(found))
    assert "left out" in text
    assert "DDPM, unet 16 px: steps: it needs about" in text


def test_an_epoch_is_its_parts_and_what_they_leave_to_the_host():
    epoch = parts.time_epoch(tiny_trial(), Device(Settings(device="cpu")), 0.05)
    assert (epoch.shots, epoch.val_images) == (5, 20)
    named = epoch.training + epoch.validation + epoch.copying
    assert epoch.host == pytest.approx(max(0.0, epoch.seconds - named))


@pytest.mark.parametrize(("error", "equal"), [(0.0, True), (1e-7, False)])
def test_a_resumed_stage_that_ends_otherwise_is_found_out(error, equal):
    def attempt(state, report, checkpoint):
        done = 0 if state is None else state["step"]
        for step in range(done + 1, parts.RESUMED_STEPS + 1):
            if report(Progress("pretrain", step, parts.RESUMED_STEPS)):
                checkpoint.save(step, {"step": step})
                raise Interrupted
        return {"weight": torch.tensor(1.0) if state is None else torch.tensor(1.0 + error)}

    assert parts._ends_alike(attempt) is equal


# --- processes --------------------------------------------------------------------------------------


def test_processes_measure_side_by_side_and_tell_why_they_cannot():
    task = {"trial": tiny_trial(shots=4), "images": 4, "seconds": 0.1, "profile": False}
    with Crew(Settings(device="cpu")) as crew:
        assert crew.start(2) > 0
        answers = crew.do("steps", task, limit_s=120, processes=2)
        assert [count >= LEAST for count, *_ in answers] == [True, True]
        with pytest.raises(Failed, match=r"^KeyError: 'nothing'$"):
            crew.do("nothing", {}, limit_s=120)
        crew._members[0]._process.kill()
        with pytest.raises(Lost, match="its process ended with exit code -9"):
            crew.do("steps", task, limit_s=120)


@pytest.fixture
def without_ray(tmp_path):
    """The environment of a Python that finds no Ray."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('ray was asked for')\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


@pytest.mark.slow
def test_the_command_measures_without_ray(tmp_path, without_ray):
    space = {"name": "one", "base": tiny_fields(shots=4), "blocks": [{"grid": {"seed": [0]}}]}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(space))
    line = ["bench", "--grid", "one.yaml", "--minutes", "1", "--json", "bench.json", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", "from ablate.cli import main; main()", *line],
        env=without_ray,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("one on ")
    assert read_bench(tmp_path / "bench.json").grid == "one"


@pytest.mark.slow
def test_the_script_for_gpus_makes_one_file_without_a_gpu_and_without_ray(tmp_path, without_ray):
    out = tmp_path / "gpu.json"
    script = ROOT / "tests" / "benchmarks" / "gpu.sh"
    environment = {**without_ray, "PYTHON": sys.executable, "MINUTES": "4", "DEVICE": "cpu"}
    done = subprocess.run([script, out], env=environment, capture_output=True, text=True, check=False)
    steps = json.loads(out.read_text())["steps"]
    assert list(steps) == [
        "machine",
        *("recommended", "recommended-bf16", "recommended-launched", "paper", "matched", "cephalo-cpu"),
        "tests",
    ]
    assert {name: step["exit_code"] for name, step in steps.items()} == dict.fromkeys(steps, 0), done.stderr
    assert steps["cephalo-cpu"]["bench"]["format"] == "ablate bench"
    assert done.returncode == 0


def test_the_command_refuses_before_it_measures(ablate, tmp_path):
    code, _, err = ablate("bench", "--device", "cude")
    assert (code, err) == (2, "ablate: --device must be auto, cpu or cuda; got 'cude' (did you mean 'cuda'?)\n")
    code, _, err = ablate("bench", "--json", tmp_path / "none" / "b.json")
    assert code == 2
    assert "must be a file in a folder that exists" in err


# --- on a GPU ---------------------------------------------------------------------------------------


@pytest.mark.gpu
@GPU
def test_marks_of_a_gpu_lie_behind_the_work_before_them():
    device = Device(Settings(device="cuda"))
    one = torch.rand(4096, 4096, device="cuda")
    torch.mm(one, one)
    marks = [device.mark()]
    for _ in range(10):
        torch.mm(one, one)
    marks.append(device.mark())
    marks.append(device.mark())
    busy, idle = device.seconds(marks)
    assert busy > idle >= 0


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16", "copy"])
def test_a_gpu_has_its_ceilings(name):
    assert ceilings.measure(name, Device(Settings(device="cuda")), 0.2).value > 1e9


@pytest.mark.gpu
@GPU
def test_a_step_on_a_gpu_is_kernels_waiting_and_the_host():
    device = Device(Settings(device="cuda"))
    clock = Clock(device, 0.2, profile=True)
    device.reset_peak()
    loops.time_pretraining(tiny_trial("ddpm").pretraining, clock)
    assert clock.activity is not None
    assert 0 < clock.activity.device <= clock.each
    assert clock.activity.sync + clock.activity.host == pytest.approx(clock.each)
    assert device.peak_bytes() > 0


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("method", ["ddpm", "mocov3"])
def test_a_resumed_stage_equals_a_straight_one_in_deterministic_mode_on_a_gpu(method):
    with Crew(Settings(device="cuda")) as crew:
        task = {"trial": tiny_trial(method), "images": None, "seconds": 0.5}
        (found,) = crew.do("compare", task, limit_s=300)
        assert found.equal_deterministic


@pytest.mark.gpu
@GPU
def test_a_bench_measures_everything_on_a_gpu():
    grid = Grid("tiny", "", (tiny_trial("ddpm", shots=4),), {})
    found = run_bench(grid, minutes=2.0, settings=Settings(device="cuda"), say=lambda text: None)
    assert found.device.kind == "cuda"
    assert found.left_out == ()
