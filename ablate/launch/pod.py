"""The preStop hook of a Ray cluster's pods, so that nothing is lost when Kubernetes ends one.

`python -m ablate.launch.pod 50` is the preStop hook of clusters/kuberay.yaml, with its seconds. Kubernetes sends
SIGTERM to the first process of a container only, and that is a shell which does not hand it on. So a pod with a driver
ends the driver, which saves every stage's state; any other pod tells Ray that its node goes away, as `ray drain-node`
does: its stages save and go on elsewhere, and nothing more starts there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablate.words import one_line

PROC = Path("/proc")


def processes(proc: Path = PROC) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the command line of every process that this pod sees, but for zombies and this process."""
    for folder in sorted(proc.iterdir()):
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or belongs to somebody else
            continue
        if words != [b""]:
            yield int(folder.name), [os.fsdecode(word) for word in words]


def is_driver(words: Sequence[str]) -> bool:
    """Return whether this is the command line of `ablate run`, started by Python."""
    names = [Path(word).name for word in words[:3]]
    return names[1:3] == ["ablate", "run"] and names[0].startswith("python")


def raylet_node(words: Sequence[str]) -> str | None:
    """Return the id of the node, if this is the command line of its raylet."""
    if Path(words[0]).name != "raylet":
        return None
    return next((word.partition("=")[2] for word in words if word.startswith("--node_id=")), None)


def leave(seconds: int, proc: Path = PROC) -> str:
    """Let what runs in this pod save its state; return in one line what was done, after `seconds` at most."""
    deadline = time.monotonic() + seconds
    found = list(processes(proc))
    drivers = [number for number, words in found if is_driver(words)]
    if drivers:
        for number in drivers:
            os.kill(number, signal.SIGTERM)
        gone = _wait_until_gone(drivers, deadline, proc)
        return "the driver has saved and ended" if gone else f"the driver still runs after {seconds} s"
    if any(Path(words[0]).name == "gcs_server" for _, words in found):
        return "a head without a driver: nothing to save"
    raylets = {number: node for number, words in found if (node := raylet_node(words)) is not None}
    for node in raylets.values():
        done = _drain(node, seconds)
        if done.returncode:
            return f"the node could not be drained: {one_line(done.stdout)[-400:]}"
    # A drained node ends by itself once its last stage has ended.
    gone = _wait_until_gone(list(raylets), deadline, proc)
    return "the node is drained and has ended" if gone else f"a stage still runs after {seconds} s"


def _drain(node: str, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("ray", "drain-node", "--address", os.environ.get("RAY_ADDRESS", "auto"), "--node-id", node),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "Kubernetes takes the pod back"),
            *("--deadline-remaining-seconds", str(seconds)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _wait_until_gone(numbers: Sequence[int], deadline: float, proc: Path) -> bool:
    while True:
        there = {number for number, _ in processes(proc)}
        if not there & set(numbers):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def main(arguments: Sequence[str]) -> None:
    """Run the hook, with its seconds as the only argument; what it did goes where `kubectl logs` finds it."""
    line = f"before the end of this pod: {leave(int(arguments[0]))}"
    try:
        (PROC / "1" / "fd" / "1").write_text(f"{line}\n", encoding="utf-8")
    except OSError:  # another user's
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
