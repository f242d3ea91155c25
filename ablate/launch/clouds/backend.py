"""A cluster on a cloud, which Ray's own launcher brings up: a head, and workers that come and go with the demand."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from ablate.errors import InputError
from ablate.launch.backend import CameUpWrongError, Fleet, Say
from ablate.launch.clouds.access import access_steps, account_commands, prepare_access, verify_access, verify_down
from ablate.launch.clouds.check import offline_check
from ablate.launch.prices import fleet_of
from ablate.launch.ray_files import head_of, ray_check
from ablate.launch.ssh.hosts import Host, SshError, require_usable_key
from ablate.launch.ssh.ray_cluster import RayCluster
from ablate.store.addresses import is_remote

UP_S = 3600
"""Time for Ray to bring the head up: a machine, and an environment with PyTorch on it."""

GONE_S = 600
"""Time for machines that were told to end to be gone."""


class CloudBackend(RayCluster):
    """The machines of a Ray cluster file with provider `aws`, `gcp` or `azure`."""

    def document(self) -> dict[str, Any]:
        """Return the file with what a launch adds: what is sent, the environment, and how Ray starts."""
        document = copy.deepcopy(self.file.document)
        script = self.node_script
        document["file_mounts"] = {
            **(document.get("file_mounts") or {}),
            self.node_folder: str(self.memory.path("ship")),
        }
        for key in ("initialization_commands", "head_setup_commands", "worker_setup_commands"):
            document.setdefault(key, [])  # or Ray's own defaults would come in
        document["available_node_types"][document["head_node_type"]].setdefault("max_workers", 0)  # or Ray warns of it
        document["setup_commands"] = [*(document.get("setup_commands") or []), f"{script} setup"]
        document["head_start_ray_commands"] = [
            f"{script} stop",
            f'{script} head "" --autoscaling-config=~/ray_bootstrap_config.yaml',
        ]
        document["worker_start_ray_commands"] = [f"{script} stop", f"{script} worker $RAY_HEAD_IP"]
        return document

    def extras(self) -> list[str]:
        """Return the extra with the cloud's client, which the head's autoscaler needs."""
        return [self.file.kind]

    def check(self) -> None:
        """Refuse a file that cannot work; see `Backend`."""
        offline_check(self.file)
        ray_check(self.file, self.document())
        key = (self.file.document.get("auth") or {}).get("ssh_private_key")
        if key:
            where = self.file.where(("auth", "ssh_private_key"))
            require_usable_key(Path(key).expanduser(), agent_counts=False, where=where)
        if self.request.data is not None and not is_remote(self.request.data):
            raise InputError(
                f"--data must be an s3:// or gs:// address that the machines reach; got the folder {self.request.data}"
            )

    def fleet(self) -> Fleet:
        """Return the machines."""
        return fleet_of(self.file)

    def resolved(self) -> str:
        """Return the file as Ray gets it, without what only the cloud knows."""
        return yaml.safe_dump(self.document(), sort_keys=False, width=120)

    def steps(self) -> list[str]:
        """Return what a launch does."""
        document = self.document()
        return [
            *access_steps(document),
            f"bring the head up with 'ray up', and send it the wheel of this version, the search space and a token in "
            f"{self.node_folder}; it sends them on to the workers that it starts",
            f"start Ray on the head, port {self.port()}, with the token, its dashboard on loopback; make sure that "
            "nothing lets others in",
            f"open an ssh tunnel to the dashboard's port {self.port() + 1}, and start the driver as a Ray job",
            "show the run until it ends, write the report here",
            "tell the driver to save, if it is still at work; 'ray down'; ask the cloud whether anything is left",
        ]

    def account_commands(self) -> list[str]:
        """Return the commands that set the account up once."""
        return account_commands(self.file.document)

    def check_online(self, say: Say) -> None:
        """Close the ports, look for roles and the image; the completed document is kept, as a new one is a new head."""
        up = self.memory.exists and self.memory.path("cluster.yaml").is_file()  # else it is of a launch that never was
        document = self._kept() if up else self.document()
        prepare_access(self.file, document, say)
        self.memory.write("cluster.yaml", yaml.safe_dump(document, sort_keys=False))

    def head(self) -> Host:
        """Return the head as the launch found it."""
        known = self.memory.state().get("head")
        if known is None:
            raise SshError("no head is up")
        return Host(known["address"], known["user"], Path(known["key"]), self.memory.path("known_hosts"))

    def bring_up(self, say: Say) -> None:
        """Bring the head up with Ray's launcher, unless it answers."""
        if self.answers():
            say(f"the head {self.head().address} is up")
            return
        self._write_shipment()
        say(f"bringing the head up; what Ray says is in {self.memory.path('up.log')}")
        self._ray("up", "--no-config-cache", timeout_s=UP_S)
        address, user, key = head_of(self.memory.path("cluster.yaml"))
        self.memory.remember(head={"address": address, "user": user, "key": key})
        open_to_others = verify_access(self.file, self._kept())
        if open_to_others:
            raise CameUpWrongError("; ".join(open_to_others))
        self.wait_for_head()
        say(f"the head {address} is up; workers come when stages wait for them")

    def _write_shipment(self) -> None:
        for name, data in self.shipment().items():
            self.memory.write(f"ship/{name}", data)

    def _kept(self) -> dict[str, Any]:
        return dict(yaml.safe_load(self.memory.path("cluster.yaml").read_text(encoding="utf-8")))

    def _ray(self, command: str, *options: str, timeout_s: float) -> None:
        """Run a command of Ray's launcher on the kept document; its output goes into a log."""
        path = self.memory.path(f"{command}.log")
        words = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            command,
            "-y",
            *options,
            str(self.memory.path("cluster.yaml")),
        ]
        with path.open("ab") as log:
            try:
                done = subprocess.run(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise CameUpWrongError(
                    f"'ray {command}' did not end within {timeout_s:g} s; its log is {path}"
                ) from None
        if done.returncode:
            said = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise CameUpWrongError(f"'ray {command}' failed: {said[-1].strip()[:300]}; its log is {path}")

    def tend(self, say: Say) -> None:
        """Do nothing: Ray's autoscaler on the head replaces machines."""

    def take_down(self, say: Say) -> list[str]:
        """Let Ray end all machines, and ask the cloud whether one is left."""
        if not self.memory.path("cluster.yaml").is_file():
            return []
        document, trouble = self._kept(), []
        try:
            self._ray("down", timeout_s=UP_S)
        except CameUpWrongError as error:
            trouble = [str(error)]
        deadline = time.monotonic() + GONE_S
        try:
            while left := verify_down(self.file, document):
                if time.monotonic() > deadline:
                    return [*trouble, *left]
                time.sleep(10)
        except InputError as error:
            return [*trouble, f"the cloud cannot be asked what is left: {error}"]
        say("the cloud has no machine of this cluster any more")
        return []
