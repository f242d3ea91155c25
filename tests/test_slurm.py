"""Runs on Slurm: the shipped batch scripts do what they say on a controller and two nodes, and a launch drives them."""

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import CLI, status_of, undisturbed, wait_until, write_grid
from same_tables import compare
from slurm_lab import SlurmLab, reason_to_skip
from tiny import tiny_trial

from ablate.errors import InputError
from ablate.launch.backend import LaunchRequest
from ablate.launch.cluster_file import parse_cluster, shipped_clusters
from ablate.launch.memory import Memory
from ablate.launch.slurm.backend import SlurmBackend
from ablate.launch.slurm.batch_script import BatchScript, seconds_of
from ablate.schedule.fitting import Shape
from ablate.space import Grid
from ablate.store import Store

SCRIPTS = ("slurm.sbatch", "slurm-elastic.sbatch")

EDITED = {
    "EDIT-PARTITION": "main",
    "EDIT-GPU-PARTITION": "main",
    "EDIT-ENVIRONMENT/bin/activate": f"{sys.prefix}/bin/activate",
}


def text_of(name, **changes):
    """Return a shipped script with its marks edited, and options of sbatch changed: `time="2"`, `array="1-2"`."""
    text = shipped_clusters()[name].read_text(encoding="utf-8")
    for mark, value in EDITED.items():
        text = text.replace(mark, value)
    for option, value in changes.items():
        name = f"--{option.replace('_', '-')}"
        text, count = re.subn(rf"^(#SBATCH |  ){name}=\S+", rf"\g<1>{name}={value}", text, flags=re.MULTILINE)
        assert count, option
    return text


def backend_for(text, name="slurm.sbatch", out="/scratch/me/run", data=None, memory="ablate", **options):
    file = parse_cluster(Path(name), text)
    request = LaunchRequest(file, Grid("tiny", "", (), {}), "name: tiny\n", out, data, ("--keep-weights",), options)
    return SlurmBackend(request, Memory(memory))


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_shipped_script_is_refused_until_its_marks_are_edited(name):
    file = parse_cluster(shipped_clusters()[name], shipped_clusters()[name].read_text(encoding="utf-8"))
    with pytest.raises(InputError, match=rf"{name}:\d+: EDIT-PARTITION must be replaced"):
        BatchScript(file).check()
    backend_for(text_of(name), name).check()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_that_bash_understands_before_and_after_a_launch_has_added_to_it(name):
    resolved = backend_for(text_of(name), name, memory="o'clock").resolved()
    for text in (text_of(name), resolved):
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    before, _, after = resolved.partition("\nABLATE_FOLDER=")
    assert "\n#SBATCH" not in after
    assert not [line for line in before.splitlines() if line and not line.startswith("#")]  # Slurm reads so far


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends_nobody_elses_ray_and_shows_no_token(name):
    text = text_of(name)
    assert not re.search(r"^[^#]*\bray stop\b", text, re.MULTILINE)
    assert "killall" not in text
    assert "RAY_AUTH_MODE=token" in text
    assert not re.search(r"RAY_AUTH_TOKEN=|--token", text)
    assert "--include-dashboard=false" in text


def test_the_machines_of_a_script_are_known_from_its_lines():
    fleet = backend_for(text_of("slurm.sbatch", nodes="2", gres="gpu:a100:4", cpus_per_task="32")).fleet()
    (worker,) = fleet.workers
    assert (worker.shape, worker.max_count, fleet.head) == (Shape(32, 4, frozenset(["A100"])), 2, None)
    elastic = backend_for(text_of("slurm-elastic.sbatch", array="1-12"), "slurm-elastic.sbatch").fleet()
    (worker,) = elastic.workers
    assert (worker.shape.gpus, worker.max_count) == (1, 12)
    assert elastic.head is not None
    assert elastic.head.shape.gpus == 0


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        ("--gres=gpu:2", (2, None)),
        ("--gres=gpu", (1, None)),
        ("--gres=gpu:h100:2", (2, "H100")),
        ("--gres=nvme:1,gpu:2", (2, None)),
        ("--gpus-per-node=a100:3", (3, "A100")),
        ("--gpus 4", (2, None)),  # of both nodes
        ("-G 4", (2, None)),
        ("--mem=8G", (0, None)),
    ],
)
def test_gpus_are_found_in_every_form_that_slurm_has(words, gpus):
    text = text_of("slurm.sbatch", nodes="2").replace("--gres=gpu:1", words)
    (worker,) = backend_for(text).fleet().workers
    assert (worker.shape.gpus, next(iter(worker.shape.accelerator_types), None)) == gpus


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("08:00:00", 28800),
        ("2-12", 216000),
        ("2-12:30", 217800),
        ("1-00:00:01", 86401),
        ("UNLIMITED", float("inf")),
        ("8h", None),
        ("", None),
    ],
)
def test_time_limits_mean_what_they_mean_to_slurm(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("slurm.sbatch", "--time=08:00:00", "--time=8h", r":\d+: --time must be minutes, .* got '8h'"),
        ("slurm.sbatch", "#SBATCH --time", "# --time", "#SBATCH lines must have --time"),
        ("slurm.sbatch", "#SBATCH --requeue", "#", "#SBATCH lines must have --requeue"),
        ("slurm.sbatch", "#SBATCH --signal", "#", "#SBATCH lines must have --signal"),
        ("slurm.sbatch", "B:TERM@180", "TERM@180", "--signal must be B:TERM@SECONDS"),
        ("slurm.sbatch", "--time=08:00:00", "--time=3", "--signal must be more than a minute below --time"),
        ("slurm.sbatch", "--open-mode=append", "--open-mode=truncate", "--open-mode must be append"),
        ("slurm.sbatch", "--nodes=1", "--nodes=1-4", "--nodes must be a positive whole number"),
        ("slurm.sbatch", "--ntasks-per-node=1", "--ntasks-per-node=4", "--ntasks-per-node must be one task"),
        ("slurm.sbatch", "--gres=gpu:1", "--gres=gpu:many:few", "--gres must be a number of GPUs"),
        ("slurm.sbatch", "--job-name=ablate", "--job-name=../up", "--job-name must be letters"),
        ("slurm.sbatch", "#SBATCH --requeue", "true\n#SBATCH --requeue", "must stand before the first command"),
        ("slurm.sbatch", "ABLATE_FOLDER", "FOLDER", "must be a copy of clusters/slurm.sbatch"),
        ("slurm-elastic.sbatch", "--array=1-8", "--array=0-7%4", "--array must be 1-N"),
        ("slurm-elastic.sbatch", "  --time=04:00:00\n", "", "WORKERS must have --time"),
        ("slurm-elastic.sbatch", "--nodes=1", "--nodes=2", "--nodes must be 1"),
    ],
)
def test_a_script_that_cannot_work_is_refused_with_its_line(name, old, new, message):
    text = text_of(name)
    assert old in text
    with pytest.raises(InputError, match=message):
        backend_for(text.replace(old, new), name).check()


@pytest.mark.parametrize("folder", ["/tmp/run", "/dev/shm/run", "runs/one"])
def test_a_store_that_nodes_do_not_share_is_refused(folder):
    with pytest.raises(InputError, match="--out must be an address, or an absolute folder on a file system"):
        backend_for(text_of("slurm.sbatch"), out=folder).check()
    for shared in ("/scratch/me/run", "s3://bucket/run"):
        backend_for(text_of("slurm.sbatch"), out=shared).check()


def test_data_that_nodes_do_not_share_are_refused():
    with pytest.raises(InputError, match="--data must be an address, or an absolute folder"):
        backend_for(text_of("slurm.sbatch"), data="/tmp/data").check()


def test_a_machine_without_slurm_is_refused_before_anything_is_submitted(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="must be made on a login node of its cluster; got a machine without sbatch"):
        backend_for(text_of("slurm.sbatch")).check_online(print)


RUN_BY = {
    "slurm.sbatch": [
        "the job runs the driver on its node",
        "before its time limit it saves, goes back into the queue and goes on, until the grid is done",
    ],
    "slurm-elastic.sbatch": [
        "the job starts a Ray head without GPUs, with a token of its own, and the driver once a worker joins",
        "it submits an array of up to 8 workers with 1 GPU and 8 CPUs each, which join and leave as the queue lets "
        "them",
        "at its time limit each saves and goes back into the queue, until the grid is done",
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_steps_of_a_launch_name_the_command_and_the_run(name):
    backend = backend_for(text_of(name), name)
    folder = Memory("ablate").folder
    assert backend.steps() == [
        f"ask Slurm whether it would take the job (sbatch --test-only {name})",
        f"write the script, the search space and a token to {folder}, for this user only",
        f"submit it: sbatch --parsable {folder}/job.sbatch --grid {folder}/grid.yaml --out /scratch/me/run "
        "--keep-weights",
        *RUN_BY[name],
        "show the run until it ends, write the report here",
        "cancel what is left in the queue, and verify that nothing is",
    ]
    assert backend.account_commands() == []


def test_nothing_is_known_of_a_driver_while_slurm_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    state = backend_for(text_of("slurm.sbatch")).driver()
    assert state.phase == "unknown"
    assert "Slurm does not answer" in state.detail


# --- a controller and two nodes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    lab = SlurmLab(tmp_path_factory.mktemp("slurm"))
    yield lab
    lab.close()


@pytest.fixture
def place(lab, request):
    """A folder of the test's own that all nodes see; nothing is left in the queue afterwards."""
    folder = lab.work / re.sub(r"\W+", "-", request.node.name)[:40]
    folder.mkdir()
    yield folder
    lab.run("scancel", "--user=root")
    wait_until(lambda: not lab.jobs(), 60, every=0.5)


def pretrain(steps, **fields):
    return tiny_trial("simclr", pretrain={"steps": steps, **fields}).pretrain.model_dump(mode="json")


def write_script(folder, name, **changes):
    path = folder / name
    path.write_text(text_of(name, **{"cpus_per_task": "1", "mem": "4G", **changes}), encoding="utf-8")
    return path


def read_more(process):
    """Return what a process has printed since the last time, without waiting for more."""
    ready, _, _ = select.select([process.stdout], [], [], 0)
    return os.read(process.stdout.fileno(), 65536).decode() if ready else ""


class Case:
    """A script, a grid and a store in a folder, with the words for a launch by the nodes' paths."""

    def __init__(self, lab, folder, name, trials, **changes):
        self.lab, self.folder = lab, folder
        self.script = write_script(folder, name, **changes)
        self.grid, self.trials = write_grid(folder / "grid.yaml", *trials)
        self.store = Store.open(folder / "run")
        self.out = lab.inside(folder) / "run"
        self.run_words = ["--grid", lab.inside(self.grid), "--out", self.out, "--checkpoint-minutes", "0.1"]

    def submit(self, **environment):
        return self.lab.run(
            *("sbatch", "--parsable", self.lab.inside(self.script), *self.run_words),
            cwd=self.lab.inside(self.folder),
            check=True,
            **environment,
        ).stdout.strip()

    def ablate(self, *words, **more):
        return self.lab.run(*CLI, *words, cwd=self.lab.inside(self.folder), **more)

    def launch(self):
        words = ["launch", self.lab.inside(self.script), *self.run_words, "--yes"]
        return self.ablate(*words, timeout=600)

    def launching(self, **environment):
        """Start a launch, and leave it running."""
        words = [*CLI, "launch", self.lab.inside(self.script), *self.run_words, "--yes"]
        return subprocess.Popen(
            self.lab.command("env", "--default-signal=INT", *words, cwd=self.lab.inside(self.folder)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=self.lab.environment | environment,
        )

    def activate(self, text):
        """Let the script activate another environment than the tests'."""
        (self.folder / "activate").write_text(text)
        other = f"{self.lab.inside(self.folder)}/activate"
        self.script.write_text(self.script.read_text().replace(f"{sys.prefix}/bin/activate", other))

    def log(self, *, workers=False):
        """What the job printed, or its workers did."""
        paths = [path for path in sorted(self.folder.glob("*.log")) if ("-workers-" in path.name) == workers]
        return "\n".join(path.read_text(errors="replace") for path in paths)

    def arrays(self):
        """The arrays of which a worker has joined."""
        logs = [path for path in self.folder.glob("*-workers-*.log") if ": joined" in path.read_text(errors="replace")]
        return {re.search(r"-(\d+)_\d+\.log$", path.name).group(1) for path in logs}

    def step(self):
        """The steps in the newest states of the pre-trainings."""
        keys = {trial.pretrain_key for trial in self.trials}
        return sum(self.store.newest(f"pretrained/{key}/state") or 0 for key in keys)

    def check(self):
        assert status_of(self.store) == {trial.trial_id: "finished" for trial in self.trials}, self.log()
        assert compare(self.store, undisturbed(self.folder / "alone", list(self.trials))) == []

    def processes(self):
        """What is left of Ray and of runs on the nodes."""
        return [line for node in self.lab.nodes for line in self.lab.processes(node, "ray|ablate")]


def test_a_job_whose_environment_lacks_ablate_says_so_and_is_taken_down(lab, place):
    case = Case(lab, place, "slurm.sbatch", ([{"shots": 2}], "scratch"), job_name="bare")
    case.activate("PATH=/usr/bin:/bin\n")
    done = case.launch()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ablate is not found; install it into the environment" in done.stdout
    assert not lab.jobs()
    assert not (lab.home / ".ablate" / "clusters" / "bare").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("--gres=gpu:1", "--gres=gpu:9", "Slurm must take the workers; it says: "),
        pytest.param(
            *("#SBATCH --partition=main", "#SBATCH --partition=nowhere", "Slurm must take the job; it says: .*nowhere"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_slurm_itself_is_asked_before_anything_is_submitted(old, new, message, lab, place):
    case = Case(lab, place, "slurm-elastic.sbatch", ([{"shots": 2}], "scratch"))
    case.script.write_text(case.script.read_text().replace(old, new))
    done = case.launch()
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert not lab.jobs()


@pytest.mark.slow
def test_a_rehearsal_shows_the_script_with_the_launchs_folder_and_submits_nothing(lab, place):
    case = Case(lab, place, "slurm-elastic.sbatch", ([{"shots": 2}], "scratch"), job_name="rehearsed")
    dry = case.ablate("launch", lab.inside(case.script), *case.run_words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "\nABLATE_FOLDER=/mnt/home/.ablate/clusters/rehearsed" in dry.stdout
    assert "submits an array of up to 8 workers with 1 GPU and 1 CPU each" in dry.stdout
    assert not lab.jobs()
    assert not (lab.home / ".ablate" / "clusters" / "rehearsed").exists()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_launch_with_a_limit_shorter_than_the_run_goes_on_until_it_is_done(lab, place):
    case = Case(
        *(lab, place, "slurm.sbatch", ([{"seed": [0, 1], "pretrain": pretrain(5000)}], "simclr")),
        **{"time": "30", "signal": "B:TERM@60"},
    )
    watching = case.launching()
    wait_until(lambda: case.step() > 50 or watching.poll() is not None, 300, every=0.2)
    (job,) = lab.jobs()
    lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=2", check=True)  # the run is not done before it
    wait_until(lambda: lab.jobs()[job][0] == "PENDING", 300, every=0.5)
    lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=30", check=True)
    text, _ = watching.communicate(timeout=1200)
    assert watching.returncode == 0, text
    assert "everything is taken down" in text
    assert case.log().count("every state is saved; the job goes back into the queue") == 1
    assert lab.facts(job)["Restarts"] == "1"
    assert not lab.jobs()
    assert not case.processes()
    case.check()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_become_one_cluster_stop_when_asked_and_go_on_when_submitted_again(lab, place):
    case = Case(
        *(lab, place, "slurm.sbatch", ([{"seed": [0, 1], "pretrain": pretrain(400)}], "simclr")),
        nodes="2",
    )
    job = case.submit()
    wait_until(lambda: case.step() > 10, 300, every=0.5)
    folder = lab.home / ".ablate" / "slurm" / job
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    token = (folder / "token").read_text()
    everything = [line for node in lab.nodes for line in lab.processes(node, ".")]
    assert any("ray start --address" in line for line in everything)
    assert not any(token in line for line in everything)
    stopped = case.ablate("stop", case.out, "--wait")
    assert "asked the driver on node" in stopped.stdout, stopped.stdout + stopped.stderr
    wait_until(lambda: not lab.jobs(), 60, every=0.5)
    facts = lab.facts(job)
    assert (facts["ExitCode"], facts["Restarts"]) == ("5:0", "0")
    assert not folder.exists()
    assert not case.processes()
    assert [lab.scratch(node) for node in lab.nodes] == [[], []]
    case.submit()
    wait_until(lambda: not lab.jobs(), 600, every=1)
    case.check()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_that_is_preempted_with_notice_saves_and_goes_on(lab, place):
    case = Case(
        *(lab, place, "slurm.sbatch", ([{"seed": [0, 1], "pretrain": pretrain(600)}], "simclr")),
        **{"job_name": "preempted", "cpus_per_task": "1"},
    )
    case.submit()
    wait_until(lambda: case.step() > 50, 300, every=0.5)
    urgent = lab.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 5"
    ).stdout.strip()
    wait_until(lambda: "told to leave" in case.log(), 60, every=0.5)
    wait_until(lambda: lab.jobs().get(urgent, ("",))[0] == "RUNNING", 300, every=0.5)
    wait_until(lambda: not lab.jobs(), 600, every=1)
    assert case.log().count("ablate run --grid") == 2
    case.check()


def interrupt(launching):
    """Press Ctrl-C at a launch: not at nsenter before it, which would end without waiting for it."""
    (inside,) = Path(f"/proc/{launching.pid}/task/{launching.pid}/children").read_text().split()
    os.kill(int(inside), signal.SIGINT)


@pytest.mark.slow
def test_a_launch_that_nobody_watches_goes_on_is_attached_to_and_taken_down_with_its_states_saved(lab, place):
    case = Case(
        *(lab, place, "slurm.sbatch", ([{"seed": [0, 1], "pretrain": pretrain(100000)}], "simclr")),
        job_name="long",
    )
    watching = case.launching()
    wait_until(lambda: case.step() > 10 or watching.poll() is not None, 300, every=0.5)
    (job,) = lab.jobs()
    interrupt(watching)
    text, _ = watching.communicate(timeout=60)
    assert watching.returncode == 130, text
    status = case.ablate("cluster", "status", "long")
    assert re.search(rf"driver   running: job {job} running on node\d", status.stdout), status.stdout + status.stderr
    logs = case.ablate("cluster", "logs", "long")
    assert "ablate run --grid /mnt/home/.ablate/clusters/long/grid.yaml" in logs.stdout
    again = case.launching()  # goes on with the job that is there
    wait_until(lambda: re.search(rf"goes on with job {job} running", read_more(again)), 120, every=0.5)
    interrupt(again)
    again.communicate(timeout=60)
    assert list(lab.jobs()) == [job]
    down = case.ablate("cluster", "down", "long")
    assert down.returncode == 0, down.stdout + down.stderr
    assert "everything is taken down" in down.stdout
    assert not lab.jobs()
    assert "interrupted, every state is saved" in case.log()
    assert "goes back into the queue" not in case.log()
    assert not case.processes()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_workers_that_come_late_are_cancelled_and_come_back_give_the_same_tables(lab, place):
    blocks = [{"seed": [0, 1], "pretrain": [pretrain(4000), pretrain(4000, batch_size=2)]}]
    case = Case(lab, place, "slurm-elastic.sbatch", (blocks, "simclr"), array="1-2", time="60")
    busy = lab.run("sbatch", "--parsable", "--nodes=2", "--gres=gpu:1", "--wrap=sleep 30").stdout.strip()
    head = case.submit()
    wait_until(lambda: "waiting for the first worker" in case.log(), 60, every=0.5)
    waiting = [state for job, (state, *_) in lab.jobs().items() if "_" in job]
    assert waiting == ["PENDING", "PENDING"]  # they come late: the cards are another's
    assert busy in lab.jobs()

    def task_at_work():
        for node in lab.nodes:
            if any("ray::" in line and "train" in line for line in lab.processes(node, "ray::")):
                return next((job for job, row in lab.jobs().items() if "_" in job and row[2] == node), None)
        return None

    wait_until(lambda: case.step() > 50, 300, every=0.5)
    cancelled = wait_until(task_at_work, 60)
    lab.run("scancel", cancelled, check=True)  # without notice, and for good: the head asks for another
    wait_until(lambda: len(case.arrays()) == 2, 300, every=0.5)
    before = case.step()
    wait_until(lambda: case.step() > before + 50, 300, every=0.5)
    leaving = wait_until(task_at_work, 60)
    lab.run("scancel", "--batch", "--signal=TERM", leaving, check=True)  # as before its time limit
    wait_until(lambda: "the stages have left" in case.log(workers=True), 300, every=0.5)
    wait_until(lambda: not lab.jobs(), 1200, every=1)
    assert lab.facts(head)["ExitCode"] == "0:0"
    assert case.log().count("ablate run --grid") == 1
    assert "its node is drained" in case.log()
    assert case.log(workers=True).count(": joined") >= 4
    assert not case.processes()
    case.check()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_head_that_is_moved_finds_its_workers_again_and_a_stop_ends_them_all(lab, place):
    case = Case(
        *(lab, place, "slurm-elastic.sbatch", ([{"seed": [0, 1], "pretrain": pretrain(100000)}], "simclr")),
        **{"array": "1-2", "job_name": "moved"},
    )
    watching = case.launching(ABLATE_IDLE_SECONDS="60")
    wait_until(lambda: case.step() > 10, 300, every=0.5)
    (head,) = [job for job in lab.jobs() if "_" not in job]
    wait_until(lambda: "no work for 60 seconds" in case.log(workers=True), 300, every=0.5)
    wait_until(lambda: sum("_" in job for job in lab.jobs()) == 1, 60, every=0.5)  # one card is given back
    lab.run("scancel", "--batch", "--signal=TERM", head, check=True)  # as before its time limit
    wait_until(lambda: case.log().count("ablate run --grid") == 2, 300, every=0.5)
    before = case.step()
    wait_until(lambda: case.step() > before + 10, 300, every=0.5)
    status = case.ablate("cluster", "status", "moved").stdout
    assert "driver   running" in status, status
    assert re.search(r"queue    job \d+_\d running on node", status), status
    stopped = case.ablate("stop", case.out, "--wait")
    assert "asked the driver on node" in stopped.stdout, stopped.stdout + stopped.stderr
    text, _ = watching.communicate(timeout=120)
    assert watching.returncode == 5, text
    assert not lab.jobs()
    facts = lab.facts(head)
    assert (facts["ExitCode"], facts["Restarts"]) == ("5:0", "1")
    assert not (lab.home / ".ablate" / "clusters" / "moved").exists()
    assert not case.processes()


@pytest.mark.slow
def test_a_store_that_stays_away_is_waited_for_in_the_queue_three_times(lab, place):
    case = Case(lab, place, "slurm.sbatch", ([{"shots": 2}], "scratch"))
    (place / "bin").mkdir()
    (place / "bin" / "ablate").write_text("#!/bin/sh\nexit 3\n")  # as a driver does whose store stays away
    (place / "bin" / "ablate").chmod(0o755)
    case.activate(f"PATH={lab.inside(place)}/bin:$PATH\n")
    job = case.submit()
    wait_until(lambda: not lab.jobs(), 180, every=1)
    facts = lab.facts(job)
    assert (facts["ExitCode"], facts["Restarts"]) == ("3:0", "3")


@pytest.mark.slow
def test_workers_that_cannot_join_end_the_run_with_that_word(lab, place):
    case = Case(lab, place, "slurm-elastic.sbatch", ([{"shots": 2}], "scratch"), array="1-2")
    case.activate(f'if [ "${{1:-}}" = --worker ]; then PATH=/usr/bin:/bin; else source {sys.prefix}/bin/activate; fi\n')
    job = case.submit()
    wait_until(lambda: not lab.jobs(), 120, every=1)
    assert lab.facts(job)["ExitCode"] == "6:0"
    assert "no worker could join, and none is left in the queue" in case.log()
    assert "ablate is not found" in case.log(workers=True)
