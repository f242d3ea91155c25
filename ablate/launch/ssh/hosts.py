"""Commands on other machines, and tunnels to them, through the user's own ssh."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ablate.errors import InputError

T = TypeVar("T")

CONNECT_S = 15
"""Time for a machine to answer."""


class SshError(Exception):
    """A machine did not answer, or a command on it failed; the message is one line and names the machine."""


@dataclass(frozen=True)
class Host:
    """A machine that is reached by ssh; what is not said here stands in the user's own ssh configuration."""

    address: str
    user: str | None = None
    key: Path | None = None
    known_hosts: Path | None = None  # of machines whose addresses were others' before, as in a cloud

    @property
    def destination(self) -> str:
        """The machine as a word for ssh."""
        return self.address if self.user is None else f"{self.user}@{self.address}"

    def words(self, *options: str) -> list[str]:
        """Return the ssh command up to the machine; it never asks anything."""
        settings = ["BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "ServerAliveInterval=10", "ServerAliveCountMax=3"]
        settings += ["StrictHostKeyChecking=accept-new", "LogLevel=ERROR"]
        if self.known_hosts is not None:
            settings.append(f"UserKnownHostsFile={self.known_hosts}")
        if self.key is not None:
            settings.append("IdentitiesOnly=yes")
        key = [] if self.key is None else ["-i", str(self.key)]
        return ["ssh", *(word for setting in settings for word in ("-o", setting)), *key, *options, self.destination]

    def run(self, command: str, *, stdin: bytes | None = None, timeout_s: float = 60) -> str:
        """Return what a command prints on the machine.

        Raises:
            SshError: no answer, or an exit code that is not 0; its first line with ERROR, else its last, says why.
        """
        try:
            done = subprocess.run(
                [*self.words(), command], input=stdin or b"", capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise SshError(f"{self.address}: did not end within {timeout_s:g} s: {command}") from None
        if done.returncode:
            reason = _reason((done.stderr + done.stdout).decode(errors="replace")) or f"exit code {done.returncode}"
            raise SshError(f"{self.address}: {'cannot be reached' if done.returncode == 255 else command}: {reason}")
        return done.stdout.decode(errors="replace")

    def send(self, archive: bytes, folder: str) -> None:
        """Unpack a tar archive into a folder of the machine that only its owner may read."""
        place = folder.replace("~", "$HOME", 1) if folder.startswith("~") else shlex.quote(folder)
        unpack = f"umask 077; mkdir -p {place} && tar -xf - -C {place}"
        self.run(unpack, stdin=archive, timeout_s=300)


def _reason(said: str) -> str | None:
    """Return the line of a command's output that tells why it failed; None if it said nothing."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else None)


def on_all(hosts: Sequence[Host], work: Callable[[Host], T]) -> dict[str, T | SshError]:
    """Do something on all machines at the same time; return results and errors by the machine's address."""

    def attempt(host: Host) -> T | SshError:
        try:
            return work(host)
        except SshError as error:
            return error

    with ThreadPoolExecutor(max(1, min(32, len(hosts)))) as pool:
        return dict(zip((host.address for host in hosts), pool.map(attempt, hosts), strict=True))


def require_usable_key(key: Path, *, agent_counts: bool, where: str) -> None:
    """Refuse a private key that is missing, or that asks for a passphrase nobody is there to type.

    Args:
        key: the private key.
        agent_counts: whether a key that ssh's agent holds will do.
        where: the place in the file that names it, for messages.
    """
    if not key.is_file():
        raise InputError(f"{where}: must be a private key of ssh; there is no file {key}; make one with ssh-keygen")
    tried = _tried("ssh-keygen", "-y", "-P", "", "-f", str(key))
    if tried.returncode == 0:
        return
    if "passphrase" not in tried.stderr.lower():
        raise InputError(f"{where}: {key} cannot be used as a private key: {tried.stderr.strip().splitlines()[-1]}")
    if agent_counts:
        fingerprint = _tried("ssh-keygen", "-lf", str(key)).stdout.split()
        if len(fingerprint) > 1 and fingerprint[1] in _tried("ssh-add", "-l").stdout:
            return
    cure = "add it to ssh's agent with ssh-add, or give a key without one" if agent_counts else "give a key without one"
    raise InputError(f"{where}: {key} has a passphrase, which nobody is there to type; {cure}")


def _tried(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of ssh's on this machine, which asks nothing."""
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


class Tunnel:
    """A port of this machine that leads to a port on another's loopback; it is opened again when it breaks.

    It ends with the process that opened it, however that ends: the other machine runs `cat`, whose input closes then.
    """

    def __init__(self, host: Host, port: int) -> None:
        self._host, self._remote = host, port
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def port(self) -> int:
        """Return the port of this machine.

        Raises:
            SshError: the machine does not answer.
        """
        if self._process is None or self._process.poll() is not None:
            self._open()
        return self._port

    def _open(self) -> None:
        self.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        forward = ("-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{self._port}:127.0.0.1:{self._remote}")
        self._process = subprocess.Popen(
            [*self._host.words(*forward), "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us, who close it
        )
        deadline = time.monotonic() + CONNECT_S + 5
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            time.sleep(0.1)
        process, self._process = self._process, None
        process.kill()
        said = process.communicate()[1].decode(errors="replace").strip().splitlines()
        raise SshError(f"{self._host.address}: cannot be reached: {said[-1] if said else 'no answer'}")

    def close(self) -> None:
        """End the tunnel."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
            self._process = None
