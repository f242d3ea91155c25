"""`kubectl`, for one namespace of one cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ablate.words import one_line


class KubectlError(Exception):
    """`kubectl` has failed; the message is what it said, in one line."""


@dataclass(frozen=True)
class Kubectl:
    """`kubectl`, for one namespace of one cluster."""

    context: str
    namespace: str

    def words(self, *words: str) -> list[str]:
        """Return a command line."""
        return ["kubectl", f"--context={self.context}", f"--namespace={self.namespace}", *words]

    def __call__(self, *words: str, given: str | None = None, timeout_s: float = 60) -> str:
        """Run a command, with `given` as its input, and return what it printed; raise `KubectlError` if it fails."""
        return run(self.words(*words), given=given, timeout_s=timeout_s)

    def items(self, *words: str) -> list[dict[str, Any]]:
        """Return the objects that `kubectl get` lists."""
        return list(json.loads(self("get", "--request-timeout=20s", "-o", "json", *words))["items"])


def run(words: Sequence[str], *, given: str | None = None, timeout_s: float = 60) -> str:
    """Run a command line, with `given` as its input, and return what it printed; raise `KubectlError` if it fails."""
    try:
        done = subprocess.run(words, input=given or "", capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise KubectlError("kubectl is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise KubectlError(f"no answer within {timeout_s:g} s") from error
    if done.returncode:
        raise KubectlError(one_line(done.stderr)[-500:] or one_line(done.stdout)[-500:] or "no reason given")
    return done.stdout
