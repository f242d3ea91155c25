"""The memory of launches: a folder for each cluster under `~/.ablate/clusters`."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ablate.errors import InputError
from ablate.store.local_write import write_local

STATE = "state.json"


def clusters_folder() -> Path:
    """Return the folder that holds a folder for each cluster."""
    return Path("~/.ablate/clusters").expanduser()


class Memory:
    """The folder of one cluster, readable by its owner only; every file in it is complete or absent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = clusters_folder() / name

    @property
    def exists(self) -> bool:
        """Whether something is remembered: a launch that has not been taken down."""
        return (self.folder / STATE).is_file()

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Keep every other launch of this cluster on this machine out while the block runs.

        Raises:
            InputError: another launch is at it.
        """
        path = clusters_folder().parent / "locks" / self.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"the cluster {self.name} is being brought up by another launch on this machine; wait until its run "
                f"is shown, then watch it with ablate attach {self.name}"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def create(self) -> None:
        """Make the folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)

    def path(self, name: str) -> Path:
        """Return the path of a file of this cluster."""
        return self.folder / name

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file whole, with mode 0600."""
        self.create()
        self.path(name).parent.mkdir(mode=0o700, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        write_local(self.path(name), data, mode=0o600)
        return self.path(name)

    def token(self) -> str:
        """Return the cluster's token, and make it first if there is none."""
        path = self.path("token")
        if not path.is_file():
            self.write("token", secrets.token_hex(32))
        return path.read_text(encoding="utf-8").strip()

    def state(self) -> dict[str, Any]:
        """Return what is remembered of the launch; empty if there is none."""
        try:
            content = json.loads(self.path(STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InputError(f"{self.path(STATE)}: is damaged ({error}); delete it if the cluster is down") from error
        return dict(content)

    def remember(self, **values: Any) -> None:
        """Add values to what is remembered."""
        self.write(STATE, json.dumps(self.state() | values, indent=1))

    def forget(self) -> None:
        """Delete the folder: the cluster is down."""
        shutil.rmtree(self.folder, ignore_errors=True)
