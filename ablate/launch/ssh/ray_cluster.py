"""The common part of launches on ssh machines and on clouds: files for each node, and the driver as a job of Ray."""

from __future__ import annotations

import io
import secrets
import shlex
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablate.launch.backend import CameUpWrongError, DriverState, LaunchRequest, LeftOverError, Say
from ablate.launch.memory import Memory
from ablate.launch.ssh.hosts import Host, SshError, Tunnel
from ablate.launch.ssh.ray_jobs import RayJobs, SilentError
from ablate.launch.ssh.wheel import build_wheel, constraints

ANSWER_S = 120
"""Time for the job server of a head that was started to answer."""

SAVE_S = 150
"""Time for a driver that is told to end to save its states; Ray kills it after RAY_JOB_STOP_WAIT_TIME_S, 120."""


class RayCluster(ABC):
    """A Ray cluster whose head is reached by ssh; see `Backend`."""

    several_machines = True

    def __init__(self, request: LaunchRequest, memory: Memory) -> None:
        self.request, self.memory, self.file = request, memory, request.file
        self._tunnel: tuple[str, Tunnel] | None = None

    # --- what differs ---

    @abstractmethod
    def head(self) -> Host:
        """Return the head; raise `SshError` while there is none."""

    @abstractmethod
    def bring_up(self, say: Say) -> None:
        """Start the head, and the workers that are to be there from the start; what is up stays up."""

    @abstractmethod
    def take_down(self, say: Say) -> list[str]:
        """End everything; return what is left, a line each."""

    # --- what is sent ---

    @property
    def node_folder(self) -> str:
        """The folder on every node that holds what was sent."""
        return f"~/.ablate/nodes/{self.memory.name}"

    @property
    def node_script(self) -> str:
        """The beginning of a command on a node."""
        return f"bash {self.node_folder}/node.sh"

    def port(self) -> int:
        """Return the first of the cluster's three fixed ports, below those of Ray's workers; the user may choose it."""
        return int(self._metadata().get("port", 6379))

    def identity(self) -> str:
        """Return what marks the processes of this cluster on its nodes."""
        known = self.memory.state().get("id")
        if known is None:
            known = secrets.token_hex(4)
            self.memory.remember(id=known)
        return str(known)

    def node_environment(self, wheel: str) -> str:
        """Return the settings of `node.sh`, as a shell reads them; `wheel` is the file's name."""
        settings = self._metadata()
        values = {
            "name": self.memory.name,
            "id": self.identity(),
            "environment": settings.get("environment", f"{self.node_folder}/env"),
            "python": settings.get("python", "python3"),
            "wheel": wheel,
            "extras": ",".join(["clusters", *self.extras()]),
            "port": self.port(),
            "ray_options": settings.get("ray_options", ""),
        }
        return "".join(f"{key}={shlex.quote(str(value))}\n" for key, value in values.items())

    def extras(self) -> list[str]:
        """Return the extras of the package that the nodes need beside `clusters`."""
        return []

    def shipment(self) -> dict[str, bytes]:
        """Return what every node gets, by file name: code, grid and token, never data."""
        name, wheel = build_wheel()
        return {
            name: wheel,
            "constraints.txt": constraints().encode(),
            "grid.yaml": self.request.grid_text.encode(),
            "token": self.memory.token().encode(),
            "node.env": self.node_environment(name).encode(),
            "node.sh": (Path(__file__).parent / "node.sh").read_bytes(),
        }

    def archive(self) -> bytes:
        """Return the shipment as a tar archive, its files readable by their owner only."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in self.shipment().items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o700 if name.endswith(".sh") else 0o600
                archive.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()

    def _metadata(self) -> dict[str, Any]:
        return dict(self.file.document.get("metadata") or {})

    # --- the driver ---

    def jobs(self) -> RayJobs:
        """Return the head's job server, behind the tunnel.

        Raises:
            SshError: the head does not answer.
        """
        head = self.head()
        if self._tunnel is None or self._tunnel[0] != head.address:
            self.close()
            self._tunnel = head.address, Tunnel(head, self.port() + 1)
        return RayJobs(self._tunnel[1].port(), self.memory.token())

    def close(self) -> None:
        """Close the tunnel."""
        if self._tunnel is not None:
            self._tunnel[1].close()
            self._tunnel = None

    def start(self, say: Say) -> None:
        """Bring the cluster up and start the driver; see `Backend`."""
        try:
            self.bring_up(say)
            self._start_driver(say)
        except (SshError, SilentError) as error:
            raise CameUpWrongError(str(error)) from error

    def answers(self) -> bool:
        """Return whether the head's job server answers."""
        try:
            self.jobs().nodes()
        except (SshError, SilentError):
            return False
        return True

    def wait_for_head(self) -> None:
        """Wait until the head's job server answers.

        Raises:
            CameUpWrongError: it does not.
        """
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                self.jobs().nodes()
                return
            except (SshError, SilentError) as error:
                if time.monotonic() > deadline:
                    raise CameUpWrongError(
                        f"the head {self.head().address} did not answer within {ANSWER_S} s ({error}); its log is "
                        f"{self.node_folder}/*-head.log there"
                    ) from error
            time.sleep(1)

    def _start_driver(self, say: Say) -> None:
        jobs, job = self.jobs(), self.memory.state().get("job")
        if job is not None and jobs.state(job).phase in ("waiting", "running"):
            say(f"the driver is at work, job {job}")
            return
        job = f"ablate-{secrets.token_hex(4)}"
        words = self.request.run_words(grid=f"{self.node_folder}/grid.yaml", address=None)
        quoted = " ".join(word if word.startswith("~/") else shlex.quote(word) for word in words)
        self.memory.remember(job=job)
        jobs.submit(job, f"{self.node_script} driver {quoted}")
        say(f"started the driver on {self.head().address}, job {job}")

    def driver(self) -> DriverState:
        """Return how the driver is; see `Backend`."""
        job = self.memory.state().get("job")
        if job is None:
            return DriverState("unknown", "no driver was started")
        try:
            return self.jobs().state(job)
        except SshError as error:
            return DriverState("unknown", str(error))

    def status(self) -> list[str]:
        """Return the nodes and the driver, a line each; see `Backend`."""
        try:
            nodes = self.jobs().nodes()
        except (SshError, SilentError) as error:
            return [f"head     does not answer: {error}"]
        lines = [f"driver   {self.driver()}"]
        for node in sorted(nodes, key=lambda node: (not node["is_head"], node["address"])):
            has = ", ".join(f"{node['resources'].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
            lines.append(f"{'head' if node['is_head'] else 'worker':<9}{node['address']:<24}{has}")
        return lines

    def logs(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines that the driver printed; see `Backend`."""
        job, shown = self.memory.state().get("job"), 0
        if job is None:
            return
        while True:
            state = self.driver()
            try:
                text = self.jobs().logs(job)
            except (SshError, SilentError) as error:
                if not follow:
                    yield f"the head does not answer: {error}"
                    return
                time.sleep(5)  # a cut line: the job goes on
                continue
            lines = text.splitlines()
            yield from lines[shown:]
            shown = len(lines)
            if not follow or state.phase == "ended":
                return
            time.sleep(2)

    def down(self, say: Say) -> None:
        """End the driver, once it has saved, and everything else; see `Backend`."""
        self._end_driver(say)
        self.close()
        left = self.take_down(say)
        if left:
            raise LeftOverError("; ".join(left))

    def _end_driver(self, say: Say) -> None:
        job = self.memory.state().get("job")
        try:
            jobs = self.jobs()
            if job is None or jobs.state(job).phase not in ("waiting", "running"):
                return
            say("telling the driver to save its stages' states and to end")
            jobs.stop(job)
            deadline = time.monotonic() + SAVE_S
            while time.monotonic() < deadline and jobs.state(job).phase in ("waiting", "running"):
                time.sleep(1)
        except (SshError, SilentError) as error:
            say(f"the driver cannot be told to end: {error}")
