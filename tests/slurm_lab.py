"""A Slurm cluster of a login node and some compute nodes on this machine, in namespaces of their own (root only)."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from runs import wait_until

PROGRAMS = ("unshare", "nsenter", "ip", "munged", "slurmctld", "slurmd", "sbatch", "sinfo")

CPUS, MEMORY_MB = 16, 64000
"""What Slurm believes that a compute node has, beside a GPU that is not there."""

INSIDE = Path("/mnt")
"""Where the nodes see the lab's folder; their /tmp is their own."""

INIT = r"""
set -euo pipefail
outside=$1 node=$2 cpus=$3 work=/mnt
mount --make-rprivate /
mount --bind "$outside" "$work"
held=()
for folder in CHECKOUT PYTHON; do  # what is needed and lies under /tmp is held while /tmp is covered
  case $folder in
    /tmp/*)
      mkdir -p "/run/held-$node$folder"
      mount --bind "$folder" "/run/held-$node$folder"
      held+=("$folder")
      ;;
  esac
done
mount -t tmpfs -o mode=1777,size=4g tmpfs /tmp
mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm
for folder in ${held[@]+"${held[@]}"}; do
  mkdir -p "$folder"
  mount --move "/run/held-$node$folder" "$folder"
done
hostname "$node"
ip link set lo up
echo $$ > "$work/lab/$node.inside"
"""

LOGIN = r"""
ip link add br0 type bridge
ip address add 10.77.0.1/24 dev br0
ip link set br0 up
number=0
for name in NODES; do
  number=$((number + 1))
  unshare --net --pid --mount --ipc --uts --fork --kill-child --mount-proc \
    bash "$work/lab/node.sh" "$work" "$name" "$cpus" > "$work/lab/$name.log" 2>&1 &
  until pid=$(pgrep --parent $!); do sleep 0.05; done
  until [ -s "$work/lab/$name.inside" ]; do sleep 0.05; done
  echo "$pid" > "$work/lab/$name.pid"
  ip link add "veth$number" type veth peer name eth0 netns "$pid"
  ip link set "veth$number" master br0 up
done
export SLURM_CONF=$work/lab/slurm.conf
munged --force --key-file="$work/lab/munge.key" --socket="$work/lab/munge.socket" --pid-file="$work/lab/munge.pid" \
  --log-file="$work/lab/munge.log" --seed-file="$work/lab/munge.seed"
slurmctld -c
touch "$work/lab/up"
exec sleep infinity
"""

NODE = r"""
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "10.77.0.1${node#node}/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1
until [ -e "$work/lab/up" ]; do sleep 0.05; done
export SLURM_CONF=$work/lab/slurm.conf
mkdir -p "$work/lab/spool-$node"
slurmd -c -D -N "$node"  # not by exec: the shell is the parent of orphans, and takes notice of their end
"""

CONFIGURATION = """\
ClusterName=lab
SlurmctldHost=login(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=WORK/lab/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=WORK/lab/state
SlurmdSpoolDir=WORK/lab/spool-%n
SlurmctldPidFile=WORK/lab/slurmctld.pid
SlurmdPidFile=WORK/lab/slurmd-%n.pid
SlurmctldLogFile=WORK/lab/slurmctld.log
SlurmdLogFile=WORK/lab/slurmd-%n.log
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
MinJobAge=300
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
"""


def reason_to_skip():
    """Return why no lab can be started here; None if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux: the lab lives in namespaces"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs Debian's slurm-wlm, munge and iproute2; not found: {', '.join(missing)}"
    allowed = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "true"], capture_output=True, check=False
    )
    return None if allowed.returncode == 0 else f"needs namespaces: {allowed.stderr.decode().strip()}"


class SlurmLab:
    """Slurm in namespaces: `login` with the controller, and `node1`, `node2`, ... with a daemon each.

    Every node has its own network, processes, /tmp and /dev/shm; the rest of the file system is shared. The nodes see
    `work` as /mnt, and their home folder is in it. All ends with `close`. Jobs in the partition `urgent` take nodes
    away from those in `main`, which are put into the queue again after a notice of 30 seconds.
    """

    def __init__(self, work, nodes=2):
        self.work = Path(work).resolve()
        self.home = self.work / "home"
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        lab = self.work / "lab"
        (lab / "state").mkdir(parents=True)
        self.home.mkdir()
        names = " ".join(self.nodes)
        partitions = (
            f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES PriorityTier=1 GraceTime=30\n"
            f"PartitionName=urgent Nodes={','.join(self.nodes)} PriorityTier=9 PreemptMode=off\n"
        )
        described = "".join(
            f"NodeName={name} NodeAddr=10.77.0.1{name.removeprefix('node')} CPUs={CPUS} RealMemory={MEMORY_MB} "
            f"Gres=gpu:1 State=UNKNOWN\n"
            for name in self.nodes
        )
        (lab / "slurm.conf").write_text(CONFIGURATION.replace("WORK", str(INSIDE)) + described + partitions)
        (lab / "gres.conf").write_text(f"NodeName={','.join(self.nodes)} Name=gpu File=/dev/null\n")
        (lab / "munge.key").write_bytes(os.urandom(1024))
        (lab / "munge.key").chmod(0o400)
        checkout = str(Path(__file__).resolve().parents[1])
        init = INIT.replace("CHECKOUT", shlex.quote(checkout)).replace("PYTHON", shlex.quote(sys.prefix))
        (lab / "node.sh").write_text(init + NODE)
        (lab / "login.sh").write_text(init + LOGIN.replace("NODES", names))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(INSIDE / "lab" / "slurm.conf"),
            "HOME": str(INSIDE / "home"),
        }
        with (lab / "login.log").open("wb") as log:
            self._init = subprocess.Popen(
                [
                    *(
                        "unshare",
                        "--net",
                        "--pid",
                        "--mount",
                        "--ipc",
                        "--uts",
                        "--fork",
                        "--kill-child",
                        "--mount-proc",
                    ),
                    *("bash", str(lab / "login.sh"), str(self.work), "login", str(CPUS)),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=self.environment,
            )
        try:
            wait_until(lambda: (lab / "up").exists() or self._init.poll() is not None, 60)
            children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
            self._login = int(children[0])
            ready = ["sinfo", "--noheader", "--states=idle", "--partition=main", "--format=%D"]
            wait_until(lambda: self.run(*ready).stdout.strip() == str(nodes), 60, every=0.3)
        except BaseException:
            self.close()
            raise

    def inside(self, path):
        """Return where the nodes see a file of `work`."""
        return INSIDE / Path(path).resolve().relative_to(self.work)

    def command(self, *words, cwd=None):
        """Return the words that run a command on the login node; `cwd` and the words are the nodes' paths."""
        inside = ["nsenter", f"--target={self._login}", "--net", "--pid", "--mount", "--ipc", "--uts"]
        # nsenter enters the mounts after the folder was looked up: it is entered anew there
        return [*inside, "sh", "-c", 'cd "$0" && exec "$@"', str(cwd or INSIDE), *map(str, words)]

    def run(self, *words, cwd=None, check=False, timeout=120, **environment):
        """Run a command on the login node."""
        return subprocess.run(
            self.command(*words, cwd=cwd),
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
            env=self.environment | environment,
        )

    def sbatch(self, *words, **environment):
        """Submit a job; return its id."""
        done = self.run("sbatch", "--parsable", *words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def jobs(self, *words):
        """Return the jobs in the queue: state, reason and node by id; array tasks one by one."""
        done = self.run("squeue", "--noheader", "--array", "--format=%i|%T|%r|%N", *words)
        rows = [line.split("|") for line in done.stdout.splitlines()]
        return {row[0]: tuple(row[1:]) for row in rows}

    def facts(self, job):
        """Return what Slurm knows of a job, by name."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return dict(word.partition("=")[::2] for word in words)

    def processes(self, node, pattern):
        """Return the command lines on a node that match a pattern."""
        pid = (self.work / "lab" / f"{node}.pid").read_text().strip()
        inside = self.command("nsenter", f"--target={pid}", "--pid", "--mount", "pgrep", "-a", "-f", pattern)
        done = subprocess.run(inside, capture_output=True, text=True, check=False, env=self.environment, timeout=60)
        return [line for line in done.stdout.splitlines() if "pgrep" not in line]

    def scratch(self, node):
        """Return what jobs have left in a node's /tmp."""
        pid = (self.work / "lab" / f"{node}.pid").read_text().strip()
        done = subprocess.run(
            self.command("nsenter", f"--target={pid}", "--mount", "sh", "-c", "ls -d /tmp/ablate-[0-9]* 2>/dev/null"),
            **{"capture_output": True, "text": True, "check": False, "env": self.environment, "timeout": 60},
        )
        return done.stdout.split()

    def close(self):
        """End everything in the lab."""
        self._init.kill()  # its children go with it; it takes no other signal
        self._init.wait()
