"""How something that the user gave is refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something the user gave cannot be used: the message says where, the rule, the value and the cure."""


def nearest(value: object, choices: Iterable[str], *, cutoff: float = 0.55) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `choices`, if it is as alike as `cutoff`; else an empty string.

    Where `value` is one of the choices there is nothing to say.
    """
    names = list(choices)
    close = [] if str(value) in names else difflib.get_close_matches(str(value), names, n=1, cutoff=cutoff)
    return f" (did you mean '{close[0]}'?)" if close else ""
