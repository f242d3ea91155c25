"""Findings from the facts of a node: green, or red with the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ablate.doctor.report import Finding
from ablate.schedule.fitting import Shape

MOST_SKEW_S = 5.0
"""Locks and leases compare the clocks of machines; they wait for many times this long."""

LEAST_DISK_BYTES = 2e9
LEAST_SHARED_MEMORY_BYTES = 512e6
"""Ray keeps objects there, and falls back to the disk; Docker's default is 64 MB."""


NEED_ABLATE = ("store", "data")
"""Sections that are left out where ablate cannot be imported."""


def judge(facts: Mapping[str, Any], driver: Mapping[str, Any], shape: Shape | None) -> Iterator[Finding]:
    """Yield what the facts of a node mean, beside those of the driver's machine; `shape` is what Ray counts there."""
    importable = "code" in facts["versions"]
    for name, judgement in _JUDGES.items():
        section = facts[name]
        if section is None or (name in NEED_ABLATE and not importable):
            continue
        failed = isinstance(section, dict) and set(section) == {"error"}
        if failed and name != "store":
            yield Finding(name, "red", f"cannot be examined: {section['error']}", "mend that on the node")
        else:
            yield from judgement(section, driver.get(name), shape)


def _judge_versions(found: Mapping[str, str], ours: Mapping[str, str], shape: Shape | None) -> Iterator[Finding]:
    others = [  # 2.6.0+cu124 and 2.6.0+cpu are the same version, built for other hardware
        f"{name} {found[name]}, the driver's is {ours[name]}"
        for name in ("python", "ablate", "ray", "torch", "pyarrow")
        if found[name].partition("+")[0] != ours[name].partition("+")[0] or "missing" in (found[name], ours[name])
    ]
    if not others and found.get("code") != ours.get("code"):
        others = [f"ablate {found['ablate']}, but its code differs from the driver's"]
    if others:
        yield Finding("versions", "red", "; ".join(others), "install the driver's versions there")
    else:
        names = ("python", "ablate", "ray", "torch", "pyarrow")
        yield Finding("versions", "ok", ", ".join(f"{name} {found[name]}" for name in names))


def _judge_hardware(found: Mapping[str, Any], ours: object, shape: Shape | None) -> Iterator[Finding]:
    gpus, expected = found["gpus"], found["expected_gpus"]
    kinds = dict.fromkeys(f"{name}, {size / 1e9:.0f} GB" for name, size in gpus)
    every = [f"{name}, {size / 1e9:.0f} GB" for name, size in gpus]
    words = " and ".join(f"{every.count(kind)} x {kind}" for kind in kinds) or "none"
    if "torch_error" in found:
        yield Finding(
            "GPUs", "red", f"torch cannot be used: {found['torch_error']}", "install torch for this hardware there"
        )
    elif len(gpus) < expected:
        built = f"built for {found['torch_gpu_version']}" if found["torch_gpu_version"] else "built without GPU support"
        counts = "Ray counts" if shape is not None else "there must be"
        yield Finding(
            "GPUs",
            "red",
            f"{counts} {expected:g}, torch {found['torch']} ({built}) sees {len(gpus)}",
            "install the torch that fits the node's driver, or start the node with the GPUs that it has",
        )
    else:
        yield Finding("GPUs", "ok", words)
    text = f"{found['cores']} cores, {found['ram_bytes'] / 1e9:.0f} GB of RAM"
    if shape is not None and shape.cpus > found["cores"]:
        yield Finding(
            "cores and RAM", "note", f"{text}; Ray counts {shape.cpus:g} CPUs", "stages there will share cores"
        )
    else:
        yield Finding("cores and RAM", "ok", text)


def _judge_store(found: Mapping[str, Any], ours: Mapping[str, Any] | None, shape: Shape | None) -> Iterator[Finding]:
    if "error" in found:
        yield Finding("store", "red", found["error"], "every node must write there")
    elif not found["same"]:
        yield Finding(
            "store",
            "red",
            "writable, but not the driver's: what the driver wrote is not there",
            "mount the same folder on every node, or give --out an s3:// or gs:// address",
        )
    else:
        yield Finding("store", "ok", "writable" if shape is None else "writable, and the driver's")


def _judge_data(found: Mapping[str, Any], ours: Mapping[str, Any], shape: Shape | None) -> Iterator[Finding]:
    same = []
    for name, entry in found.items():
        if "error" in ours[name]:
            continue  # said once, of the driver's: see `judge_own_data`
        if "error" in entry:
            yield Finding("data", "red", f"{name}: {entry['error']}", "every node must find the data under this --data")
        elif entry == ours[name]:
            same.append(f"{name} ({entry['fingerprint']})")
        else:
            yield Finding(
                "data",
                "red",
                f"{name} is not the driver's: {entry['fingerprint']}, not {ours[name]['fingerprint']}",
                "copy the driver's there, mount the same folder, or give --data an s3:// address",
            )
    if same:
        yield Finding("data", "ok", ", ".join(same))


def judge_own_data(found: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with data sets on the driver's machine."""
    for name, entry in found.items():
        if isinstance(entry, dict) and "error" in entry:
            yield Finding("data", "red", entry["error"], f"ablate data check {name} tells all")


def _judge_disks(found: Sequence[Mapping[str, Any]], ours: object, shape: Shape | None) -> Iterator[Finding]:
    good = []
    cures = {"cache": "set ABLATE_CACHE to another disk", "temporary files": "set TMPDIR to another disk"}
    for place in found:
        cure = cures.get(place["what"], "give --out another place")
        where = f"{place['what']} in {place['path']}"
        if not place["writable"] and place["what"] != "store":  # of the store the check of that name says it
            yield Finding("disk", "red", f"{where} cannot be written", cure)
        elif place["free"] < LEAST_DISK_BYTES:
            text = f"{where} have" if place["what"].endswith("s") else f"{where} has"
            yield Finding(
                "disk", "red", f"{text} {place['free'] / 1e9:.2f} GB free, less than 2", f"free some, or {cure}"
            )
        else:
            good.append(place["what"])
    if good:
        yield Finding("disk", "ok", f"more than 2 GB free for {', '.join(good)}")


def _judge_shared_memory(total: int, ours: object, shape: Shape | None) -> Iterator[Finding]:
    if total < LEAST_SHARED_MEMORY_BYTES:
        yield Finding(
            "shared memory",
            "red",
            f"/dev/shm has {total / 1e6:.0f} MB, less than 512",
            "docker run --shm-size=2g, or in Kubernetes an emptyDir of medium Memory at /dev/shm",
        )
    else:
        yield Finding("shared memory", "ok", "/dev/shm has more than 512 MB")


def _judge_ports(missed: Sequence[tuple[str, str]], ours: object, shape: Shape | None) -> Iterator[Finding]:
    for what, why in missed:
        yield Finding(
            "ports", "red", f"does not reach the {what}: {why}", "open all TCP ports between the cluster's nodes"
        )
    if not missed and shape is not None:
        yield Finding("ports", "ok", "reaches every other node and the head")


_JUDGES: Mapping[str, Callable[[Any, Any, Shape | None], Iterator[Finding]]] = {
    "versions": _judge_versions,
    "hardware": _judge_hardware,
    "store": _judge_store,
    "data": _judge_data,
    "disks": _judge_disks,
    "shared memory": _judge_shared_memory,
    "ports": _judge_ports,
}


def judge_clock(skew_s: float, round_trip_s: float) -> Finding:
    """Return what it means that a node's clock is so far ahead of the driver's, read within a round trip."""
    if abs(skew_s) - round_trip_s / 2 > MOST_SKEW_S:
        side = "ahead of" if skew_s > 0 else "behind"
        return Finding(
            "clock",
            "red",
            f"{abs(skew_s):.1f} s {side} the driver's; locks and leases compare clocks",
            "set it, as chrony or another NTP client does",
        )
    return Finding("clock", "ok", f"within {MOST_SKEW_S:g} s of the driver's")


def judge_doors(doors: Mapping[str, tuple[bool, Sequence[str]]], *, is_open: bool) -> Iterator[tuple[str, Finding]]:
    """Yield what a cluster's doors mean, by place.

    Args:
        doors: whether Ray asks for a token, and what listens beyond the machine, by the node's name, the head first.
        is_open: whether the cluster lets in who has no token.
    """
    cure = "start every node with RAY_AUTH_MODE=token and the same token ('ray get-auth-token --generate')"
    head_asks = next((asks for asks, _ in doors.values()), not is_open)
    for name, (asks, wide) in doors.items():
        if asks != head_asks:
            words = "asks for a token, the head does not" if asks else "asks for no token, the head does"
            yield name, Finding("tokens", "red", words, cure)
        elif is_open and wide:
            text = f"no token is asked for, and others can reach {', '.join(wide)}: who does may run anything there"
            yield name, Finding("tokens", "red", text, cure)
    if not is_open:
        yield "", Finding("tokens", "ok", "the cluster asks for a token")
    elif not any(wide for _, wide in doors.values()):
        yield "", Finding("tokens", "ok", "no token is asked for, and nothing listens beyond the machine")
