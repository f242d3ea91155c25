"""Errors of pydantic as this package words them: the rule, the value, the choices and the nearest of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from ablate.errors import nearest
from ablate.space.files import Place, place_text

_WORDINGS = (
    ("^(Input|Value) should be ", ""),
    ("^(Tuple|Value) should (have .*) after validation.*", r"\2"),
    ("^a valid (dictionary|mapping).*", "a mapping of fields"),
    ("^a valid integer$", "a whole number"),
    ("^a valid tuple$", "a list"),
    ("^a valid ", "a "),
    ("^a string$", "text"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("greater than", "above"),
    ("less than", "below"),
)
"""Wordings of pydantic and ours, applied in order."""


def explain(error: Mapping[str, Any], beside: Mapping[str, Any], owner: str | None = None) -> tuple[Place, str]:
    """Return the place of the field at fault and a message of one line with the rule, the value and the cure.

    Args:
        error: one problem, as pydantic's `ValidationError.errors()` lists them.
        beside: the fields that can stand where the problem is, each with its annotation.
        owner: whose fields these are, where that is worth saying: `method ddpm`.
    """
    place: Place = tuple(error["loc"])
    kind, value = error["type"], error.get("input")
    if kind == "value_error":  # from a validator of this package, which words its message itself
        message = str(error["ctx"]["error"])
        named = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)*)(?: \S+)? (?:must|needs)", message)
        return place or (tuple(named[1].split(".")) if named else ()), message
    if kind == "extra_forbidden":
        key, known = str(place[-1]), sorted(beside)
        said = f"{owner} has no field {key!r}; it has" if owner else f"unknown key {key!r}; known:"
        return place, f"{said} {', '.join(known)}{nearest(key, known)}"
    if kind == "missing":
        annotation = beside.get(str(place[-1]))
        choices = get_args(annotation) if get_origin(annotation) is Literal else ()
        return place, f"{place_text(place)} is required{': ' + ' or '.join(map(str, choices)) if choices else ''}"
    name = next((part for part in reversed(place) if isinstance(part, str) and not part.isdigit()), "value")
    if kind == "literal_error":
        choices = tuple(re.findall(r"'([^']*)'", str(error["ctx"]["expected"])))
        return place, f"{name} must be one of {', '.join(choices)}; got {value!r}{nearest(value, choices)}"
    rule = str(error["msg"])
    for theirs, ours in _WORDINGS:
        rule = re.sub(theirs, ours, rule)
    return place, f"{name} must {'' if rule.startswith('have ') else 'be '}{rule}; got {value!r}"
