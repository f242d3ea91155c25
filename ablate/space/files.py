"""Search-space files: where they lie, and the YAML reader that names the line of a mistake."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from ablate.errors import InputError, nearest


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-3` is a number and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key_node.value}' twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {first: list(rows) for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)

Place: TypeAlias = tuple[str | int, ...]


def place_text(place: Place) -> str:
    """Write a place in a file: `blocks[0].grid.pretrain[1].steps`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.lstrip(".")


@dataclass(frozen=True)
class Source:
    """A parsed YAML text that can name the line of a place in it."""

    name: str
    value: Any
    root: yaml.Node | None = field(compare=False)

    @classmethod
    def parse(cls, text: str, name: str) -> Source:
        """Parse YAML text; raise `InputError` with its line if it is none."""
        try:
            loader = _Loader(text)
            try:
                root = loader.get_single_node()
                value = loader.construct_document(root) if root is not None else None
            finally:
                loader.dispose()
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{name}:{mark.line + 1}" if mark else name
            raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
        return cls(name, value, root)

    def where(self, place: Place) -> str:
        """Return `file:line: place` for the longest part of `place` that stands in the file."""
        node, line = self.root, None
        for part in place:
            if isinstance(node, yaml.MappingNode):
                pairs = reversed(node.value)  # merged keys come first, and do not count where the mapping has its own
                pair = next((pair for pair in pairs if pair[0].value == part), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line
            else:
                break
        return f"{self.name}{'' if line is None else f':{line + 1}'}: {place_text(place)}"

    def refuse(self, place: Place, problem: str) -> NoReturn:
        """Raise `InputError` for a place in this file."""
        raise InputError(f"{self.where(place)}: {problem}")


def shipped_folder(name: str) -> Path:
    """Return the folder `search_spaces` or `clusters`: inside the installed package, else the checkout."""
    package = Path(__file__).parents[1]
    return next((folder for folder in (package / name, package.parent / name) if folder.is_dir()), package / name)


def shipped_grids() -> dict[str, Path]:
    """Return the shipped search spaces by name."""
    return {
        path.stem: path for path in sorted(shipped_folder("search_spaces").glob("*.yaml"), key=lambda path: path.stem)
    }


def find_grid(name: str) -> Source:
    """Return the search space called `name` among the shipped ones, or read the file `name`."""
    shipped = shipped_grids()
    path = shipped.get(name, Path(name).expanduser())
    if not path.is_file():
        raise InputError(
            f"--grid must be one of {', '.join(shipped)} or the path of a search-space file; "
            f"got '{name}'{nearest(name, shipped)}"
        )
    try:
        return Source.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a search space must be readable UTF-8 text; {error}") from error
