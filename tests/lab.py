"""Several ssh hosts on this machine, in network, process and mount namespaces of their own; needs root and Linux.

The hosts 10.77.0.11, .12, ... and "the laptop" 10.77.0.1 share the file system but for the home of their user, /tmp/ray
and /dev/shm. Nothing in the lab sees a process or a port outside it, and all of it ends with its first process.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from runs import wait_until

HOME = str(Path.home())

NEEDED = ("setpriv", "unshare", "nsenter", "ip", "ssh", "sshd", "ssh-keygen", "mount")

SETUP = r"""
set -eu
lab=$1; hosts=$2
mount --make-rprivate /
own() {  # NAME: the mounts that are a machine's own
  mkdir -p "$lab/own/$1"; mount -t tmpfs -o size=3g tmpfs "$lab/own/$1"
  mkdir "$lab/own/$1/up" "$lab/own/$1/work" "$lab/own/$1/ray"  # over the home: Python itself may lie below it
  mount -t overlay overlay -o "lowerdir=$HOME,upperdir=$lab/own/$1/up,workdir=$lab/own/$1/work" "$HOME"
  rm -rf ~/.ssh ~/.aws ~/.ablate ~/.ray
  mkdir -p /tmp/ray; mount --bind "$lab/own/$1/ray" /tmp/ray; chmod 1777 /tmp/ray
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  hostname "$1"; cd /
}
if [ "$hosts" = host ]; then
  i=$3; own "host$i"
  mkdir -p ~/.ssh /run/sshd; chmod 700 ~/.ssh; cp "$lab/id.pub" ~/.ssh/authorized_keys
  until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
  ip link set eth0 address "02:00:0a:4d:00:1$i"  # the same after a restart: neighbours remember it
  ip link set lo up; ip addr add "10.77.0.1$i/24" dev eth0; ip link set eth0 up; ip route add default via 10.77.0.1
  touch "$lab/host$i.up"
  exec "$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f "$lab/sshd_config" 2>>"$lab/host$i.log"
fi
if [ "$hosts" = add ]; then
  i=$3; rm -f "$lab/host$i.up"; ip link del "v$i" 2>/dev/null || true
  spaces="--net --pid --mount --ipc --uts"
  setsid unshare $spaces --fork --kill-child --mount-proc bash "$0" "$lab" host "$i" </dev/null &
  outer=$!
  until pid=$(pgrep -P $outer); do sleep 0.05; done
  until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
  ip link add "v$i" type veth peer name eth0 netns "$pid"; ip link set "v$i" master br0 up
  until [ -e "$lab/host$i.up" ]; do sleep 0.05; done
  echo "$pid" >"$lab/host$i.pid"
  exit
fi
own laptop
ip link set lo up; ip link add br0 type bridge; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up
ip route add default via 10.77.0.1 2>/dev/null || true
touch "$lab/ready"
exec sleep infinity
"""

SSHD = """
Port 22
HostKey {lab}/hostkey
AuthorizedKeysFile .ssh/authorized_keys
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM no
PidFile none
MaxSessions 50
MaxStartups 50
Subsystem sftp internal-sftp
"""


def missing():
    """Return why no lab can be started here; None if one can."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "needs Linux and root, for namespaces"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    lacking = [name for name in NEEDED if shutil.which(name, path=path) is None]
    return f"needs {', '.join(lacking)} (Debian: openssh-server iproute2 util-linux)" if lacking else None


class Lab:
    """Hosts that ssh reaches; `with Lab(folder, 3) as lab: ...`."""

    def __init__(self, folder, hosts):
        self.folder, self.hosts, self.started = Path(folder), range(1, hosts + 1), []

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "lab.sh").write_text(SETUP)
        (self.folder / "sshd_config").write_text(SSHD.format(lab=self.folder))
        for name in ("id", "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)
        spaces = ["--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        command = ["bash", self.folder / "lab.sh", self.folder, str(len(self.hosts))]
        self.process = subprocess.Popen(
            ["unshare", *spaces, *command], stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_until(lambda: (self.folder / "ready").exists() or self.process.poll() is not None)
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            self.init = int(children.read_text().split()[0])
            for number in self.hosts:
                self.start_host(number)
            ssh = (
                f"Host 10.77.0.*\n  IdentityFile {self.folder}/id\n  UserKnownHostsFile ~/.ssh/known_hosts\n"
                "  StrictHostKeyChecking accept-new\n  User root\n"
            )
            self.laptop("mkdir -p -m 700 ~/.ssh; cat > ~/.ssh/config", input=ssh)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for process in self.started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self.folder / "own", ignore_errors=True)

    # --- the laptop ---

    def words(self, *command, **environment):
        """Return a command that runs on the laptop, in its home."""
        variables = [f"{name}={value}" for name, value in {"HOME": HOME, **environment}.items()]
        return ["nsenter", "-t", str(self.init), "-a", f"-w{HOME}", "env", *variables, *map(str, command)]

    def laptop(self, script, *, check=True, timeout=300, input=None):
        """Run a shell script on the laptop; return what it prints."""
        done = subprocess.run(
            self.words("bash", "-c", script), capture_output=True, text=True, timeout=timeout, check=False, input=input
        )
        if check and done.returncode:
            raise AssertionError(f"{script}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def start(self, *command, output=subprocess.PIPE, **environment):
        """Start a process on the laptop; return it, its output piped or written to an open file."""
        process = subprocess.Popen(
            self.words(*command, **environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    # --- the hosts ---

    def address(self, number):
        return f"10.77.0.1{number}"

    def on(self, number, script, *, check=True, timeout=300):
        """Run a shell script on a host, not by ssh; return what it prints."""
        quoted = script.replace("'", "'\\''")
        inner = f"nsenter -t $(cat {self.folder}/host{number}.pid) -a -w{HOME} env HOME={HOME} bash -c '{quoted}'"
        return self.laptop(inner, check=check, timeout=timeout)

    def start_host(self, number):
        """Switch a host on, with an empty home."""
        self.laptop(f"bash {self.folder}/lab.sh {self.folder} add {number} >/dev/null 2>&1")

    def kill_host(self, number):
        """Switch a host off: all its processes, its disks in memory and its network are gone at once."""
        self.laptop(f"kill -9 $(cat {self.folder}/host{number}.pid)")

    def cut(self, number):
        """Pull a host's network cable."""
        self.laptop(f"ip link set v{number} down")

    def mend(self, number):
        """Plug the cable in again."""
        self.laptop(f"ip link set v{number} up")

    def processes(self, number):
        """Return the command lines of a host, but for ssh's and kernel's."""
        lines = self.on(number, "ps -wweo pid,args --no-headers").splitlines()
        return [line for line in lines if not any(word in line for word in ("sshd", "ps -wweo", "bash -c ps"))]
