"""A wheel of the installed version, made of its files as they are, also where it is installed from a checkout."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

from ablate import __version__
from ablate.space.files import shipped_folder

_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in the wheel: the same files give the same bytes


def build_wheel() -> tuple[str, bytes]:
    """Return the name and the content of a wheel of this version; the format is PEP 427."""
    from ablate.revision import REVISION, git_revision

    package = Path(__file__).parents[2]
    files = {f"ablate/{path.relative_to(package).as_posix()}": path.read_bytes() for path in _files(package)}
    for folder in ("search_spaces", "clusters"):
        source = shipped_folder(folder)
        files |= {
            f"ablate/{folder}/{path.relative_to(source).as_posix()}": path.read_bytes() for path in _files(source)
        }
    files["ablate/" + REVISION] = (git_revision() or "").encode()
    about = f"ablate-{__version__}.dist-info"
    distribution = metadata.distribution("ablate")
    files |= {
        f"{about}/METADATA": _described(distribution).encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: ablate\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": (distribution.read_text("entry_points.txt") or "").encode(),
    }
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{about}/RECORD"] = "\n".join([*rows, f"{about}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return f"ablate-{__version__}-py3-none-any.whl", buffer.getvalue()


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in found if path.suffix not in (".pyc", ".so"))


def _described(distribution: metadata.Distribution) -> str:
    """Return the metadata with the version that the files have: a checkout may be newer than its installation."""
    lines = (distribution.read_text("METADATA") or "").splitlines()
    end = lines.index("") if "" in lines else len(lines)
    return "\n".join(f"Version: {__version__}" if line.startswith("Version: ") else line for line in lines[:end]) + "\n"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def constraints() -> str:
    """Return pip constraints that pin what the package directly needs to the versions installed here."""
    pins = set()
    for requirement in metadata.requires("ablate") or ():
        if "extra ==" in requirement:
            continue
        name = requirement.split(";")[0].split("[")[0]
        for mark in "<>=!~ ":
            name = name.split(mark)[0]
        pins.add(f"{name}=={metadata.version(name).split('+')[0]}")  # +cpu, +cu128: which build is the machine's matter
    return "\n".join(sorted(pins)) + "\n"
