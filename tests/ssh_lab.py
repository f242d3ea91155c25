"""A laptop, ssh hosts that can take a launch, and an object store at the laptop's end; and launches in it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from lab import Lab
from runs import wait_until

ROOT = Path(__file__).resolve().parents[1]
CLI = "from ablate.cli import main; main()"
STORE = "http://10.77.0.1:5000"


class SshLab(Lab):
    """Hosts with credentials for the store and the parts of an environment; `clusters/ssh.yaml` is edited for them."""

    def __init__(self, folder, machines, *, strangers=0):
        super().__init__(folder, machines + strangers)
        self.machines = list(range(1, machines + 1))

    def __enter__(self):
        super().__enter__()
        try:
            self._link_packages()
            self.credentials = "mkdir -p ~/.aws; printf '[default]\\naws_access_key_id=a\\naws_secret_access_key=b\\n"
            self.credentials += "region=us-east-1\\n' > ~/.aws/credentials"
            self.laptop(self.credentials)
            self.start_store()
            make = "import boto3; boto3.client('s3', region_name='us-east-1').create_bucket(Bucket='runs')"
            self.python(make, AWS_ENDPOINT_URL=STORE)
            for number in self.machines:
                self.furnish(number)
            self.file = self.folder / "lab.yaml"
            self.file.write_text(self.edited())
        except BaseException:
            self.__exit__()
            raise
        return self

    def _link_packages(self):
        """Make a folder of this environment's packages, but for ablate: what pip finds there it need not fetch."""
        packages = self.folder / "packages"
        packages.mkdir()
        for place in {Path(path) for path in sys.path if path.endswith("site-packages")}:
            for entry in place.iterdir():
                if "ablate" not in entry.name and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)

    def furnish(self, number):
        """Give a host credentials, and an environment in which all is there but ablate."""
        env = "$HOME/.ablate/nodes/ablate-ssh/env"
        site = f"{env}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        base = Path(sys.executable).resolve()
        self.on(number, f"{self.credentials}; mkdir -p ~/.ablate/nodes/ablate-ssh; {base} -m venv --without-pip {env}")
        self.on(number, f"echo {self.folder}/packages > {site}/packages.pth")

    def edited(self, **changes):
        """Return the text of the shipped file with its marked lines edited for this lab."""
        first, *others = [self.address(number) for number in self.machines]
        text = (ROOT / "clusters" / "ssh.yaml").read_text()
        text = text.replace("EDIT-ADDRESS-OF-THE-FIRST", first).replace("EDIT-USER", "root")
        text = re.sub(r"\[EDIT-ADDRESS[^]]*\]", json.dumps(others), text)
        text = text.replace("  # ray_options: --num-gpus=1", "  ray_options: --num-cpus=1")
        for old, new in changes.items():
            text = text.replace(old, new)
        return text

    def start_store(self):
        """Start an S3 server on the laptop."""
        with (self.folder / "store.log").open("a") as log:
            self.server = self.start(sys.executable, "-m", "moto.server", "-H", "10.77.0.1", "-p", "5000", output=log)
        self.laptop(
            "for i in $(seq 600); do (echo > /dev/tcp/10.77.0.1/5000) 2>/dev/null && exit; sleep 0.1; done; exit 1"
        )

    def python(self, code, **environment):
        """Run Python on the laptop; return what it prints."""
        words = self.words(sys.executable, "-c", textwrap.dedent(code), PYTHONPATH=str(ROOT), **environment)
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ablate(self, *words, **environment):
        """Start a command of ablate on the laptop; return it as a `Talk`."""
        command = [sys.executable, "-u", "-c", CLI, *map(str, words)]
        return Talk(self.start(*command, PYTHONPATH=str(ROOT), **environment))

    def tables(self, out, folder):
        """Copy a run's tables from the store to a folder."""
        self.python(
            f"""
            from pathlib import Path
            from ablate.store import Store
            store = Store.open({out!r}, writable=False)
            for table in ("trials", "errors", "curves", "stages"):
                for name in store.list(f"tables/{{table}}"):
                    path = Path({str(folder)!r}) / "tables" / table / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(store.read(f"tables/{{table}}/{{name}}"))
            """
        )

    def wait_for_stages(self, out, seconds=300):
        """Wait until a run has saved something."""
        code = f"from ablate.store import Store; print(Store.open({out!r}, writable=False).list('tables/stages'))"
        wait_until(lambda: self.python(code).strip() != "[]", seconds)

    def start_proxy(self):
        """Start a proxy before the store on the laptop; return its port."""
        code = "import time, proxy; proxy.Proxy(('10.77.0.1', 5000), host='10.77.0.1', port=5001); time.sleep(10**6)"
        self.way = self.start(sys.executable, "-c", code, output=subprocess.DEVNULL, PYTHONPATH=str(ROOT / "tests"))
        self.laptop(
            "for i in $(seq 300); do (echo > /dev/tcp/10.77.0.1/5001) 2>/dev/null && exit; sleep 0.1; done; exit 1"
        )
        return 5001

    def stop_proxy(self):
        """Kill the proxy."""
        self.laptop("kill -9 $(pgrep -f 'port=5001')", check=False)
        self.way.wait()

    def kill_process(self, number, words):
        """Kill one process of a host whose command line holds `words`; return whether there was one."""
        pids = [line.split()[0] for line in self.processes(number) if words in line]
        return bool(pids) and self.on(number, f"kill -9 {pids[0]} && echo killed", check=False).strip() == "killed"

    def rayish(self, number):
        """Return the processes of a host that a launch may have started."""
        words = ("ray", "ablate", "gcs_server", "node.sh")
        return [line for line in self.processes(number) if any(word in line for word in words)]

    def tunnels(self):
        """Return how many ssh connections forward a port on the laptop, and how many sessions of ssh the head has."""
        laptop = self.laptop("ps -wweo args --no-headers | grep -c '^ssh .* -L '", check=False)
        return int(laptop), int(self.on(1, "ps -wweo args --no-headers | grep -c '^sshd: root@notty'", check=False))


class Talk:
    """A command and what it has said so far."""

    def __init__(self, process):
        self.process, self.said = process, []
        os.set_blocking(process.stdout.fileno(), False)

    def hear(self):
        """Read what is there."""
        while line := self.process.stdout.readline():
            self.said.append(line.rstrip("\n"))
        return self.said

    def until(self, text, seconds=300):
        """Wait until a line holds `text`; fail if the command ends before."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in self.hear()):
            ended = self.process.poll() is not None
            if (ended and not any(text in line for line in self.hear())) or time.monotonic() > deadline:
                raise AssertionError(
                    f"'{text}' was not said (exit code {self.process.poll()}):\n" + "\n".join(self.said)
                )
            time.sleep(0.1)

    def end(self, seconds=600):
        """Wait for the command's end; return its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.hear()
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"did not end within {seconds} s:\n" + "\n".join(self.said))
            time.sleep(0.1)
        self.hear()
        return self.process.returncode

    def kill(self):
        """Kill the command, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
