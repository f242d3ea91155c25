"""A list of machines that ssh reaches, made into a Ray cluster and left as it was found.

Ray's own launcher for such lists ends every Ray process of its user on each machine, and leaves workers running; here
each machine is started and stopped directly, and only what carries this cluster's mark is ended.
"""

from __future__ import annotations

import ipaddress
import shlex
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate.errors import InputError, nearest
from ablate.launch.backend import CameUpWrongError, Fleet, LaunchRequest, Say
from ablate.launch.memory import Memory
from ablate.launch.prices import fleet_of
from ablate.launch.ray_files import ray_check, refuse_written_by_launch, require_ray_options
from ablate.launch.ssh.hosts import Host, SshError, on_all, require_usable_key
from ablate.launch.ssh.ray_cluster import RayCluster
from ablate.launch.ssh.ray_jobs import SilentError
from ablate.words import counted

TOOLS = ("find", "flock", "ps", "setsid", "sha256sum", "tar")
"""What `node.sh` calls on a machine."""

PROVIDER_KEYS = ("type", "head_ip", "worker_ips")
"""What the section `provider` of a file may hold; Ray itself takes any other key, and panics over a missing one."""

JOIN_S = 120
"""Time for a worker that was started to join."""

TEND_S = 30
"""Time between two looks for machines that are missing."""

SETUP_S = 1800
"""Time for the environment of a machine to be made: PyTorch has some gigabytes."""


class SshBackend(RayCluster):
    """The machines of a Ray cluster file with provider `local`."""

    def __init__(self, request: LaunchRequest, memory: Memory) -> None:
        super().__init__(request, memory)
        self._tended = 0.0  # when machines were looked at last
        self._tending: threading.Thread | None = None

    def head(self) -> Host:
        """Return the head."""
        return self._host(self._provider()["head_ip"])

    def hosts(self) -> list[Host]:
        """Return all machines, the head first."""
        workers = self._provider().get("worker_ips") or []
        return [self._host(address) for address in [self._provider()["head_ip"], *workers]]

    def _all_hosts(self) -> list[Host]:
        """Return all machines, with those that an earlier launch of this cluster used and the file no longer names."""
        known = self.memory.state().get("machines", [])
        hosts = self.hosts()
        return [*hosts, *(self._host(address) for address in known if self._host(address) not in hosts)]

    def check(self) -> None:
        """Refuse a file that cannot work; see `Backend`."""
        file, provider = self.file, self._provider()
        file.require_edited()
        refuse_written_by_launch(file)
        for name in provider:
            if name not in PROVIDER_KEYS:
                file.refuse(
                    ("provider", name),
                    f"must be one of {', '.join(PROVIDER_KEYS)}; got '{name}'{nearest(name, PROVIDER_KEYS)}",
                )
        workers = provider.get("worker_ips") or []
        if not isinstance(workers, list):
            file.refuse(("provider", "worker_ips"), f"must be a list of addresses; got {workers!r}")
        seen: set[str] = set()
        for place, address in [("head_ip", provider.get("head_ip")), *(("worker_ips", item) for item in workers)]:
            if not isinstance(address, str) or not address.strip():
                file.refuse(("provider", place), f"must be an address that ssh reaches; got {address!r}")
            if address in seen:
                file.refuse(("provider", place), f"each machine must be named once; got {address} again")
            seen.add(address)
        ray_check(file, file.document)
        if key := self._key():
            require_usable_key(key, agent_counts=True, where=file.where(("auth", "ssh_private_key")))
        require_ray_options(file, self._metadata().get("ray_options", ""))
        port = self._metadata().get("port", 6379)
        if not isinstance(port, int) or not 1024 <= port <= 10_000:
            file.refuse(
                ("metadata", "port"),
                f"must be a whole number from 1024 to 10000 (Ray's workers are above); got {port!r}",
            )

    def fleet(self) -> Fleet:
        """Return the machines; what they have is a guess where the file does not say."""
        return fleet_of(self.file)

    def resolved(self) -> str:
        """Return the file as it is: a launch adds nothing to it."""
        return self.file.text

    def steps(self) -> list[str]:
        """Return what a launch does."""
        hosts = self.hosts()
        names = ", ".join(host.address for host in hosts)
        return [
            f"send the wheel of this version, the search space and a token to {self.node_folder} on {names}",
            f"make or update the Python environment {self._environment()} on each",
            "compare the versions of Python, Ray and ablate on all",
            f"start Ray on the head {hosts[0].address}, port {self.port()}, with the token, its dashboard on loopback",
            *(f"let {host.address} join, and join again whenever it was cut off" for host in hosts[1:]),
            f"open an ssh tunnel to the dashboard's port {self.port() + 1}, and start the driver as a Ray job",
            "show the run until it ends, write the report here",
            "end the cluster's processes on every machine, the head last, and verify that none is left",
        ]

    def account_commands(self) -> list[str]:
        """Return nothing: the machines are the user's."""
        return []

    def check_online(self, say: Say) -> None:
        """Refuse machines that ssh does not reach."""
        look = f"for tool in {' '.join(TOOLS)}; do command -v $tool >/dev/null || {{ echo no $tool; exit 1; }}; done"
        answers = on_all(self.hosts(), lambda host: host.run(f"bash -c {shlex.quote(look)}"))
        for host, answer in zip(self.hosts(), answers.values(), strict=True):
            if isinstance(answer, SshError):
                raise InputError(
                    f"{self.file.path}: {answer}; every machine must let you in by ssh without a question "
                    f"(try: ssh -o BatchMode=yes {host.destination} true), and have {', '.join(TOOLS)} and bash; mend "
                    "it, or take it off the list"
                )

    def bring_up(self, say: Say) -> None:
        """Send, set up, compare, start the head, then the others."""
        hosts, archive = self.hosts(), self.archive()
        say(f"sending {len(archive) / 1e6:.1f} MB to {counted(len(hosts), 'machine')}, and installing it there")
        self.memory.remember(machines=[host.address for host in self._all_hosts()])
        _require_same(_require(on_all(hosts, lambda host: self._set_up(host, archive))))
        head, workers = hosts[0], hosts[1:]
        if not self.answers():
            head.run(f"{self.node_script} stop", timeout_s=120)
            say(f"starting the head {head.address}")
            self._start(head, f"head {_ray_address(head)}")
        self.wait_for_head()
        _require(on_all(workers, lambda host: self._start(host, f"keep-worker {head.address} {_ray_address(host)}")))
        self._wait_for(workers, say)

    def _set_up(self, host: Host, archive: bytes) -> str:
        """Send and install what a machine needs; return its versions."""
        host.send(archive, self.node_folder)
        for command in [*self._commands("initialization_commands"), *self._commands("setup_commands")]:
            host.run(command, timeout_s=SETUP_S)
        host.run(f"{self.node_script} setup", timeout_s=SETUP_S)
        return host.run(f"{self.node_script} versions").strip()

    def _start(self, host: Host, words: str) -> None:
        try:
            host.run(f"{self.node_script} {words}", timeout_s=120)
        except SshError as error:
            tail = host.run(f"tail -n 3 {self.node_folder}/$(hostname)-*.log | tr '\\n' ' '")
            raise SshError(f"{error}; its log ends with: {tail.strip()[:300]}") from error

    def _wait_for(self, workers: Sequence[Host], say: Say) -> None:
        deadline, missing = time.monotonic() + JOIN_S, list(workers)
        while missing and time.monotonic() < deadline:
            missing = self._missing(missing)
            time.sleep(1 if missing else 0)
        if missing:
            raise CameUpWrongError(
                f"{', '.join(host.address for host in missing)} did not join the head within {JOIN_S} s; can it reach "
                f"port {self.port()} of {self.head().address}? Its log is {self.node_folder}/*-worker.log there"
            )
        say(f"the cluster is up, with {counted(len(workers) + 1, 'machine')}")

    def tend(self, say: Say) -> None:
        """Let machines join again that were started anew; in the background, as dead ones are slow to say so."""
        if time.monotonic() - self._tended < TEND_S or (self._tending is not None and self._tending.is_alive()):
            return
        self._tended = time.monotonic()
        try:
            missing = self._missing(self.hosts()[1:])
        except (SshError, SilentError):
            return

        def join() -> None:
            for address, answer in on_all(missing, self._join_again).items():
                if not isinstance(answer, SshError):
                    say(f"{address} was missing, and is asked to join again")

        if missing:
            self._tending = threading.Thread(target=join, daemon=True)
            self._tending.start()

    def _join_again(self, host: Host) -> None:
        self._set_up(host, self.archive())
        self._start(host, f"keep-worker {self.head().address} {_ray_address(host)}")

    def _missing(self, hosts: Sequence[Host]) -> list[Host]:
        present = {node["address"] for node in self.jobs().nodes()}
        return [host for host in hosts if host.address not in present and not present & set(_names(host))]

    def take_down(self, say: Say) -> list[str]:
        """Stop the workers, then the head; return what is left."""
        head = self.head()
        workers = [host for host in self._all_hosts() if host != head]
        left = []
        for group in (workers, [head]):
            for address, answer in on_all(group, self._stop).items():
                if isinstance(answer, SshError):
                    left.append(f"{answer}: what runs there is unknown; end it with {self.node_script} stop there")
                elif answer:
                    left.append(f"{address}: still runs {answer.splitlines()[0].strip()}")
        if not left:
            say(f"no process of the cluster is left on {', '.join(host.address for host in [head, *workers])}")
        return left

    def _stop(self, host: Host) -> str:
        script = f"{self.node_folder}/node.sh"
        return host.run(
            f"test -e {script} || exit 0; bash {script} stop && rm -f {self.node_folder}/token", timeout_s=120
        )

    # --- the file ---

    def _provider(self) -> dict[str, Any]:
        return dict(self.file.document["provider"])

    def _key(self) -> Path | None:
        key = (self.file.document.get("auth") or {}).get("ssh_private_key")
        return Path(key).expanduser() if key else None

    def _host(self, address: str) -> Host:
        return Host(address, (self.file.document.get("auth") or {}).get("ssh_user"), self._key())

    def _commands(self, key: str) -> list[str]:
        return [str(command) for command in self.file.document.get(key) or []]

    def _environment(self) -> str:
        return str(self._metadata().get("environment", f"{self.node_folder}/env"))


def _ray_address(host: Host) -> str:
    """Return the address under which a machine joins: its own if it is an IP address, else what Ray finds."""
    try:
        return str(ipaddress.ip_address(host.address))
    except ValueError:
        return '""'


def _names(host: Host) -> list[str]:
    """Return the IP addresses of a machine that is named."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host.address, None)]
    except OSError:
        return []


def _require(answers: dict[str, Any]) -> dict[str, Any]:
    for answer in answers.values():
        if isinstance(answer, SshError):
            raise CameUpWrongError(str(answer))
    return answers


def _require_same(versions: dict[str, str]) -> None:
    """Refuse machines whose versions differ; Ray would not let them join, or fail later."""
    head, *_ = versions
    for address, version in versions.items():
        if version != versions[head]:
            raise CameUpWrongError(
                f"{address} has {version}, the head {head} has {versions[head]}: all machines must have the same; "
                "delete the environment there and launch again, or name another python in the file's metadata"
            )
