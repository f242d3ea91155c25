"""The interface between a launch and a kind of cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from ablate.launch.cluster_file import ClusterFile
from ablate.schedule.fitting import Shape
from ablate.space import Grid

Say: TypeAlias = Callable[[str], None]
"""Prints a line."""


class CameUpWrongError(Exception):
    """A cluster came up in a way that no run can use; the message is one line: what, where, the cure."""

    exit_code = 6


class LeftOverError(Exception):
    """Something of a cluster could not be taken down; the message says what, where, and how to end it by hand."""

    exit_code = 6


@dataclass(frozen=True)
class LaunchRequest:
    """What is to be launched."""

    file: ClusterFile
    grid: Grid
    grid_text: str  # the search-space file, as it is sent
    out: str  # address of the store, or an absolute folder
    data: str | None  # as given: an address, or a folder that every node has
    arguments: tuple[str, ...]  # of `ablate run`, as given, without --grid and --out; with --set, --data and the rest
    options: Mapping[str, Any] = field(default_factory=dict)  # of `ablate run` by name, parsed: cpus_per_stage, ...
    keep: bool = False

    def run_words(self, *, grid: str, address: str | None = "auto", out: str | None = None) -> list[str]:
        """Return the command that a driver on the cluster is: `ablate run --grid ... --out ...`.

        Args:
            grid: path of the search-space file there.
            address: of the Ray cluster; None for none.
            out: the store, if another word than the user's stands for it there.
        """
        where = ["--address", address] if address is not None else []
        return ["run", "--grid", grid, "--out", out or self.out, *where, *self.arguments]


@dataclass(frozen=True)
class MachineType:
    """A type of machine of a cluster."""

    name: str
    shape: Shape
    max_count: int
    price_per_hour: float | None = None  # of one machine, in the file's currency; None: the file does not say
    spot: bool = False
    min_count: int = 0  # of them, those that are there from the first minute to the last


@dataclass(frozen=True)
class Fleet:
    """The machines of a cluster, at most."""

    workers: tuple[MachineType, ...]  # what stages run on
    head: MachineType | None = None  # runs the driver and no stage, from the first minute to the last
    currency: str = "USD"
    interruptions_per_hour: float = 0.0  # of one spot machine, expected
    max_workers: int | None = None  # of all types together, at a time
    idle_minutes: float = 5.0  # after which a machine without work is given back
    prices_from: str = ""  # source and date of the prices
    queue_minutes: float = 0.0  # from the request for a machine to its first stage
    is_guess: bool = False  # the shapes are not written in the file, and were not looked up


@dataclass(frozen=True)
class DriverState:
    """How the driver on a cluster is."""

    phase: Literal["waiting", "running", "ended", "unknown"]
    detail: str = ""  # one line: why it waits, why nothing is known
    exit_code: int | None = None  # of a driver that ended, where it is known

    def __str__(self) -> str:
        code = "" if self.exit_code is None else f" with exit code {self.exit_code}"
        return f"{self.phase}{code}" + (f": {self.detail}" if self.detail else "")


class Backend(Protocol):
    """One kind of cluster; made from a request and the cluster's memory, and holds no state beside them."""

    several_machines: bool
    """Whether stages may run on more than one machine, so that --out must be reachable from all."""

    def check(self) -> None:
        """Refuse with `InputError` what is wrong in the file or the request; without network and credentials."""

    def fleet(self) -> Fleet:
        """Return the machines, for the prediction."""

    def resolved(self) -> str:
        """Return the file as it will be used: the user's, with what a launch adds."""

    def steps(self) -> list[str]:
        """Return what a launch does, a line for each step, in order."""

    def account_commands(self) -> list[str]:
        """Return the commands that a user types once, before the first launch; none where nothing is to be set up."""

    def check_online(self, say: Say) -> None:
        """Refuse with `InputError` what cannot work: no client, no credentials, no answer. Nothing is paid for yet."""

    def start(self, say: Say) -> None:
        """Bring the cluster up and start the driver, or go on with what is up.

        Raises:
            CameUpWrongError: then the caller takes everything down.
        """

    def driver(self) -> DriverState:
        """Return how the driver is; never raises for a cluster that does not answer."""

    def tend(self, say: Say) -> None:
        """Mend what can be mended while the run goes on, such as a machine that was started anew; never raises."""

    def status(self) -> list[str]:
        """Return the cluster's machines and its driver, a line each."""

    def logs(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines that the driver printed; with `follow`, until it ends."""

    def down(self, say: Say) -> None:
        """End the driver and everything else of the cluster, and verify it.

        Raises:
            LeftOverError: something is left.
        """
