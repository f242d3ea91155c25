"""The look at a node: its versions, hardware, store, data, disks and ports.

It travels by value, for it must also answer where Python finds another ablate, or none: the functions here use the
standard library alone, and import the rest where they need it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ablate.words import one_line


def look(question: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of this machine, by section; a section that fails holds its `error`."""
    facts: dict[str, Any] = {}
    for name, section in _SECTIONS.items():
        try:
            facts[name] = section(question)
        except Exception as error:
            facts[name] = {"error": _reason(error)}
    return facts


def _reason(error: BaseException) -> str:
    return one_line(error, 400) or type(error).__name__


def _versions(question: dict[str, Any]) -> dict[str, Any]:
    found = {"python": platform.python_version()}
    try:
        import ablate

        found["ablate"] = ablate.__version__
        folder = Path(ablate.__file__).parent
        code = hashlib.sha256()
        for path in sorted(folder.rglob("*.py")):
            code.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
        found["code"] = code.hexdigest()
    except Exception as error:
        found["ablate"] = f"not importable ({_reason(error)})"
    for name in ("ray", "torch", "pyarrow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


_TORCH = (
    "import json, torch; every = map(torch.cuda.get_device_properties, range(torch.cuda.device_count())); "
    "print(json.dumps([torch.__version__, torch.version.cuda or torch.version.hip, [[p.name, p.total_memory] "
    "for p in every]]))"
)


def _hardware(question: dict[str, Any]) -> dict[str, Any]:
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # absent, or `max`
            limits.append(int(Path(file).read_text()))
    affinity = getattr(os, "sched_getaffinity", None)
    found: dict[str, Any] = {
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count() or 1,
        "ram_bytes": min(limits),
        "expected_gpus": question["gpus"],
        "gpus": [],
    }
    if found["expected_gpus"] is None:
        found["expected_gpus"] = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if found["expected_gpus"]:
        # in a process of its own: this one was told not to see GPUs, and must not hold their memory
        hidden = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
        done = subprocess.run(
            [sys.executable, "-c", _TORCH],
            env={name: value for name, value in os.environ.items() if name not in hidden},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            found["torch_error"] = (done.stderr.strip().splitlines() or ["torch cannot be imported"])[-1][:400]
        else:
            found["torch"], found["torch_gpu_version"], found["gpus"] = json.loads(done.stdout.splitlines()[-1])
    return found


def _store(question: dict[str, Any]) -> dict[str, Any] | None:
    if question["out"] is None:
        return None
    from ablate.store import Store

    local = "://" not in question["out"]
    missing = [p for p in (Path(question["out"]), *Path(question["out"]).parents) if not p.exists()] if local else []
    store = Store.open(question["out"], patience_s=5.0)
    same = store.exists(question["marker"])
    if not same:
        for folder in missing:
            with suppress(OSError):  # somebody else uses it already
                folder.rmdir()
    return {"same": same}


def _data(question: dict[str, Any]) -> dict[str, Any]:
    if not question["names"]:
        return {}
    from ablate.datasets import dataset_fingerprint

    found = {}
    for name in question["names"]:
        try:
            found[name] = {"fingerprint": dataset_fingerprint(name, question["data"])}
        except Exception as error:
            found[name] = {"error": _reason(error)}
    return found


def _disks(question: dict[str, Any]) -> list[dict[str, Any]]:
    cache = os.environ.get("ABLATE_CACHE") or Path.home() / ".cache" / "ablate"
    places = [("cache", Path(cache).expanduser()), ("temporary files", Path(tempfile.gettempdir()))]
    if question["out"] is not None and "://" not in question["out"]:
        places.append(("store", Path(question["out"])))
    found = []
    for what, path in places:
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
        found.append({"what": what, "path": str(path), "free": free, "writable": os.access(there, os.W_OK)})
    return found


def _shared_memory(question: dict[str, Any]) -> int | None:
    return shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None


def _ports(question: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, why) of every port that is not reached."""

    def reach(target: tuple[str, str, int]) -> tuple[str, str] | None:
        what, host, port = target
        try:
            socket.create_connection((host, port), timeout=question["reach_s"]).close()
        except OSError as error:
            return f"{what} at {host}:{port}", _reason(error)
        return None

    if not question["targets"]:
        return []
    with ThreadPoolExecutor(32) as pool:
        return [missed for missed in pool.map(reach, question["targets"]) if missed is not None]


_SECTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "versions": _versions,
    "hardware": _hardware,
    "store": _store,
    "data": _data,
    "disks": _disks,
    "shared memory": _shared_memory,
    "ports": _ports,
}
