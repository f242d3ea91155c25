"""Cluster files: their path, the kind of cluster that they describe, and their lines that are still to be edited."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from ablate.errors import InputError, nearest
from ablate.space.files import Place, Source, shipped_folder

Kind: TypeAlias = Literal["ssh", "aws", "gcp", "azure", "slurm", "kubernetes", "skypilot"]

PROVIDERS: dict[str, Kind] = {"local": "ssh", "aws": "aws", "gcp": "gcp", "azure": "azure"}
"""The kind of cluster by the provider that a Ray cluster file names."""

MARK = re.compile(r"EDIT-[A-Z0-9-]+")
"""What stands in a shipped file where only its user knows the value: `EDIT-PROJECT`, `EDIT-BUCKET`."""


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file as it was read."""

    path: Path
    text: str
    kind: Kind
    source: Source | None  # of YAML files

    @property
    def document(self) -> dict[str, Any]:
        """The content of a YAML file."""
        assert self.source is not None
        return dict(self.source.value)

    @property
    def name(self) -> str:
        """The cluster's name: letters, digits and hyphens."""
        if self.kind == "slurm":
            found = re.search(r"^#SBATCH +--job-name[ =](\S+)", self.text, re.MULTILINE)
            return found.group(1) if found else self.path.stem
        if self.kind == "kubernetes":
            return str(self.document.get("metadata", {}).get("name", self.path.stem))
        return str(self.document.get("cluster_name", self.document.get("name", self.path.stem)))

    def where(self, place: Place) -> str:
        """Return the place of something in the file, for messages: `FILE:LINE: KEY.KEY`; `FILE` for a batch script."""
        return str(self.path) if self.source is None else self.source.where(place)

    def refuse(self, place: Place, problem: str) -> NoReturn:
        """Raise `InputError` with the file, the line and the place in it."""
        raise InputError(f"{self.where(place)}: {problem}")

    def require_edited(self) -> None:
        """Refuse a file with marks in it that are still to be replaced; comments do not count."""
        for number, line in enumerate(self.text.splitlines(), start=1):
            code = line if line.startswith("#SBATCH") else re.sub(r"(^|\s)#.*", "", line)
            found = MARK.search(code)
            if found:
                raise InputError(
                    f"{self.path}:{number}: {found.group()} must be replaced by a value of yours; got "
                    f"'{line.strip()}'; copy the file, and edit every line with EDIT- in it"
                )


def shipped_clusters() -> dict[str, Path]:
    """Return the shipped cluster files by name."""
    folder = shipped_folder("clusters")
    return {path.name: path for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.sbatch")])}


def find_cluster(name: str) -> ClusterFile:
    """Return the cluster file at the path `name`, else the shipped one of this name.

    Raises:
        InputError: there is none, or it is not a cluster file.
    """
    path = Path(name).expanduser()
    shipped = shipped_clusters()
    if not path.is_file():
        found = shipped.get(path.name) if path.parent in (Path(), Path("clusters")) else None
        if found is None:
            raise InputError(
                f"FILE must be the path of a cluster file, or one of {', '.join(shipped)}; "
                f"got '{name}'{nearest(path.name, shipped)}"
            )
        path = found
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a cluster file must be readable UTF-8 text; {error}") from error
    return parse_cluster(path, text)


def parse_cluster(path: Path, text: str) -> ClusterFile:
    """Return the cluster file with this text; raise `InputError` if it is none."""
    if path.suffix in (".sbatch", ".sh"):
        if "#SBATCH" not in text:
            raise InputError(f"{path}: a batch script must have #SBATCH lines; copy clusters/slurm.sbatch and edit it")
        return ClusterFile(path, text, "slurm", None)
    source = Source.parse(text, str(path))
    content = source.value
    if not isinstance(content, dict):
        raise InputError(f"{path}: a cluster file must be a YAML mapping, as clusters/ssh.yaml is; got {content!r:.60}")
    if content.get("kind") == "RayJob":
        return ClusterFile(path, text, "kubernetes", source)
    provider = content.get("provider")
    if isinstance(provider, dict):
        kind = PROVIDERS.get(str(provider.get("type")))
        if kind is None:
            source.refuse(
                ("provider", "type"),
                f"must be one of {', '.join(PROVIDERS)}; got '{provider.get('type')}'"
                f"{nearest(provider.get('type'), PROVIDERS)}",
            )
        _require_name(source, content)
        return ClusterFile(path, text, kind, source)
    if "resources" in content and "run" in content:
        return ClusterFile(path, text, "skypilot", source)
    raise InputError(
        f"{path}: a cluster file must be a Ray cluster file (with provider), a RayJob of KubeRay, a SkyPilot task or a "
        f"batch script of Slurm; got the keys {', '.join(map(str, content)) or 'none'}"
    )


def _require_name(source: Source, content: dict[str, Any]) -> None:
    name = content.get("cluster_name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9](-?[a-z0-9])*", name) or len(name) > 40:
        source.refuse(
            ("cluster_name",),
            f"must be at most 40 lower-case letters and digits, with single hyphens between them; got '{name}'",
        )
