"""Batch scripts of Slurm: the resources that their lines ask for, and the lines that a launch needs."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from ablate.errors import InputError
from ablate.launch.backend import Fleet, MachineType
from ablate.launch.cluster_file import ClusterFile
from ablate.schedule.fitting import Shape

FOLDER_VARIABLE = "ABLATE_FOLDER"
"""Names, in the script, the folder in which a launch and its job leave each other word."""

SHORT = {
    "-A": "--account",
    "-a": "--array",
    "-c": "--cpus-per-task",
    "-G": "--gpus",
    "-J": "--job-name",
    "-N": "--nodes",
    "-n": "--ntasks",
    "-o": "--output",
    "-p": "--partition",
    "-t": "--time",
}
"""Short options of sbatch that matter here."""

FLAGS = {"--requeue", "--no-requeue", "--exclusive", "--contiguous", "--overcommit", "--oversubscribe", "--spread-job"}
"""Options of sbatch without a value, of those with one in the next word."""

NEEDED = {
    "--time": "the time limit, such as --time=08:00:00",
    "--signal": "when the states are saved, --signal=B:TERM@180: seconds before the limit",
    "--requeue": "the job goes back into the queue at its time limit",
    "--open-mode": "--open-mode=append: or what was printed is lost when the job starts again",
}
"""Options that a job must have, and what for."""

NEEDED_BY_WORKERS = {
    "--array": "how many workers there may be, --array=1-8",
    "--time": NEEDED["--time"],
    "--signal": NEEDED["--signal"],
}
"""Options that the workers of an elastic script must have; the script adds the rest."""

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_GPUS = re.compile(r"(?:(?P<kind>[A-Za-z][\w-]*)(?::|$))?(?P<count>\d+)?")
_SIGNAL = re.compile(r"R?BR?:(?:SIG)?(?:TERM|15)@(?P<seconds>\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Option:
    """An option of sbatch in a script."""

    name: str
    value: str  # empty for a flag
    line: int


class BatchScript:
    """A copy of `slurm.sbatch` or `slurm-elastic.sbatch`."""

    def __init__(self, file: ClusterFile) -> None:
        self.file = file
        self.job = {option.name: option for option in self._sbatch_lines()}
        found = re.search(r"^WORKERS=\(\s*\n(.*?)^\)", file.text, re.MULTILINE | re.DOTALL)
        self.is_elastic = found is not None
        self.workers: Mapping[str, Option] = {}
        if found is not None:
            first = file.text.count("\n", 0, found.start(1)) + 1
            lines = enumerate(found.group(1).splitlines(), start=first)
            self.workers = {option.name: option for number, line in lines for option in _options(line, number)}

    def check(self) -> None:
        """Refuse what no launch can use.

        Raises:
            InputError: with the line, the rule, the value and the cure.
        """
        self.file.require_edited()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", self.file.name):
            self._refuse(self.job["--job-name"], "letters, digits, hyphens, dots and underscores", "ablate")
        if FOLDER_VARIABLE not in self.file.text:
            raise InputError(
                f"{self.file.path}: a batch script for a launch must be a copy of clusters/slurm.sbatch or "
                f"clusters/slurm-elastic.sbatch, which save, go back into the queue and go on; got one without "
                f"{FOLDER_VARIABLE}"
            )
        for option in self._late_lines():
            raise InputError(
                f"{self.file.path}:{option.line}: #SBATCH lines must stand before the first command, for Slurm reads "
                f"no further; got {option.name}; move it up"
            )
        self._require(self.job, NEEDED, "#SBATCH lines")
        if "--array" in self.job:
            self._refuse(self.job["--array"], "left out of the #SBATCH lines: a run has one driver", "a single job")
        if self.number(self.job, "--ntasks-per-node") > 1 or self.number(self.job, "--ntasks") > self.nodes:
            name = "--ntasks-per-node" if "--ntasks-per-node" in self.job else "--ntasks"
            self._refuse(
                self.job[name], "one task for each node, which starts the rest", "--cpus-per-task for more cores"
            )
        if self.is_elastic:
            self._require(self.workers, NEEDED_BY_WORKERS, "WORKERS")
            if self.nodes > 1:
                self._refuse(self.job["--nodes"], "1: the head needs no more", "more workers by --array")
            self.num_workers()
        for options in (self.job, self.workers):
            self._check_times(options)
            self._gpus(options)

    @property
    def nodes(self) -> int:
        """The nodes of the job."""
        return self.number(self.job, "--nodes")

    def num_workers(self) -> int:
        """Return the most workers of an elastic script; raise `InputError` unless the array is `1-N`."""
        option = self.workers["--array"]
        found = re.fullmatch(r"1-([1-9]\d*)", option.value)
        if found is None:
            self._refuse(option, "1-N, with N the most workers", "--array=1-8")
        return int(found.group(1))

    def number(self, options: Mapping[str, Option], name: str, default: int = 1) -> int:
        """Return an option that is a positive whole number; raise `InputError` if it is none."""
        if name not in options:
            return default
        if not re.fullmatch(r"[1-9]\d*", options[name].value):
            self._refuse(options[name], "a positive whole number", f"{name}={default}")
        return int(options[name].value)

    def fleet(self, accelerator_type: str | None) -> Fleet:
        """Return the machines; `accelerator_type` is what the run asks for, where the script names no type."""
        head = MachineType("head", Shape(self.number(self.job, "--cpus-per-task")), 1) if self.is_elastic else None
        options = self.workers if self.is_elastic else self.job
        gpus, kind = self._gpus(options)
        kinds = [name for name in (kind or accelerator_type,) if name is not None and gpus]
        shape = Shape(self.number(options, "--cpus-per-task"), gpus, frozenset(kinds))
        count = self.num_workers() if self.is_elastic else self.nodes
        if self.is_elastic:
            worker = MachineType("worker", shape, count)
        else:
            worker = MachineType("node", shape, count, min_count=count)
        return Fleet((worker,), head, is_guess="--cpus-per-task" not in options)

    def with_folder(self, folder: str) -> str:
        """Return the text with the launch's folder set, before its first command."""
        lines = self.file.text.splitlines(keepends=True)
        at = self._num_head_lines()
        added = f"{FOLDER_VARIABLE}={shlex.quote(folder)}  # added by ablate launch\n\n"
        return "".join([*lines[:at], added, *lines[at:]])

    def worker_words(self) -> list[str]:
        """Return the options of the workers as words for sbatch."""
        return [option.name + (f"={option.value}" if option.value else "") for option in self.workers.values()]

    # --- lines

    def _num_head_lines(self) -> int:
        """Return how many lines stand before the first command: those that sbatch reads."""
        lines = self.file.text.splitlines()
        return next((at for at, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))

    def _sbatch_lines(self) -> Iterator[Option]:
        for number, line in enumerate(self.file.text.splitlines()[: self._num_head_lines()], start=1):
            if line.startswith("#SBATCH"):
                yield from _options(line.removeprefix("#SBATCH"), number)

    def _late_lines(self) -> Iterator[Option]:
        begin = self._num_head_lines()
        for number, line in enumerate(self.file.text.splitlines()[begin:], start=begin + 1):
            if line.startswith("#SBATCH"):
                yield from _options(line.removeprefix("#SBATCH"), number)

    def _require(self, options: Mapping[str, Option], needed: Mapping[str, str], where: str) -> None:
        for name, words in needed.items():
            if name not in options:
                raise InputError(f"{self.file.path}: {where} must have {name} ({words}); got none; add it")

    def _check_times(self, options: Mapping[str, Option]) -> None:
        if not options:
            return
        limit = seconds_of(options["--time"].value)
        if limit is None:
            self._refuse(options["--time"], "minutes, HH:MM:SS or DAYS-HH:MM:SS", "--time=08:00:00")
        told = _SIGNAL.fullmatch(options["--signal"].value)
        if told is None:
            self._refuse(options["--signal"], "B:TERM@SECONDS: TERM to the script itself", "--signal=B:TERM@180")
        if int(told["seconds"]) + 60 >= limit:
            self._refuse(options["--signal"], "more than a minute below --time", "fewer seconds, or a longer --time")
        if "--open-mode" in options and options["--open-mode"].value != "append":
            self._refuse(options["--open-mode"], "append", "--open-mode=append")

    def _gpus(self, options: Mapping[str, Option]) -> tuple[int, str | None]:
        """Return the GPUs of a node, and their type as Ray writes it, if it is named."""
        for name in ("--gpus-per-node", "--gpus-per-task", "--gres", "--gpus"):
            if name not in options:
                continue
            option = options[name]
            asked = [
                word for word in option.value.split(",") if name != "--gres" or re.match(r"(gres[:/])?gpu\b", word)
            ]
            if not asked:
                continue
            found = _GPUS.fullmatch(re.sub(r"^(gres[:/])?gpu(:|$)", "", asked[0]))
            if found is None or len(asked) > 1:
                self._refuse(option, "a number of GPUs, or TYPE:NUMBER", "--gres=gpu:1")
            kind, total = found["kind"], int(found["count"] or 1)
            if name == "--gpus":  # of all nodes
                total = math.ceil(total / (1 if options is self.workers else self.nodes))
            return total, kind and kind.upper()
        return 0, None

    def _refuse(self, option: Option, rule: str, cure: str) -> NoReturn:
        raise InputError(
            f"{self.file.path}:{option.line}: {option.name} must be {rule}; got '{option.value}'; give {cure}"
        )


def _options(text: str, line: int) -> Iterator[Option]:
    """Yield the options that stand in a line, in any form that sbatch takes."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            name, value, equals = SHORT.get(word[:2], word[:2]), word[2:], word[2:]
        if not equals and words and not words[0].startswith("-") and name not in FLAGS:
            value = words.pop(0)
        yield Option(name, value, line)


def seconds_of(text: str) -> float | None:
    """Return a time limit in seconds, infinite for none; None if Slurm would not understand it."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    parts = [int(part) for part in found.group("first", "second", "third") if part is not None]
    if found["days"] is not None:  # then the first is hours
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)
