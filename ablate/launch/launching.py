"""A launch from its checks to its report: the question, the start, the display, and the end of the cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from ablate.errors import InputError
from ablate.launch.backend import Backend, CameUpWrongError, DriverState, LaunchRequest, LeftOverError, Say
from ablate.launch.cluster_file import ClusterFile, find_cluster, parse_cluster
from ablate.launch.kinds import backend_of
from ablate.launch.memory import Memory, clusters_folder
from ablate.launch.outlook import outlook, rehearsal
from ablate.running.joining import CURE, joining_words
from ablate.space import Grid, load_grid
from ablate.space.files import Source
from ablate.store import Store, StoreAway
from ablate.store.addresses import absolute, is_remote, label_of, require_address, word_of
from ablate.store.lock import RunLock
from ablate.store.run_file import read_run_file

POLL_S = 5.0
"""Time between two looks at the driver."""

LOST_S = 180.0
"""Time after which a head that does not answer, and whose driver's lock is stale too, is lost."""

OFFLINE_S = 5.0
"""Time that the display waits for a store; this machine may be offline for hours, and the run goes on."""


def launch(
    request: LaunchRequest,
    console: Console,
    *,
    yes: bool,
    dry_run: bool,
    costs: str | None,
) -> int:
    """Launch a run; return the exit code.

    Args:
        request: what is to be launched.
        console: for the plan, the question and the display.
        yes: do not ask.
        dry_run: print the file as it will be used, the steps, time and cost, without credentials and network.
        costs: address of an earlier run whose stages tell how long stages take; None for estimates.

    Raises:
        InputError: something is wrong, and nothing was paid for.
    """
    say = _sayer(console)
    memory = Memory(request.file.name)
    backend = backend_of(request, memory)
    backend.check()
    _check_request(request, backend)
    for line in outlook(request, backend, costs):
        say(line)
    if dry_run:
        for line in rehearsal(request, backend):
            say(line)
        return 0
    if not yes and not (sys.stdin.isatty() and console.is_terminal):
        raise InputError("--yes must be given where there is no terminal to answer on")
    _check_memory(memory, request)
    store = Store.open(request.out)
    _check_joining(store, request)
    _check_data(request, say)
    backend.check_online(say)
    if not yes and console.input("Launch it? [y/N] ", markup=False).strip().lower() not in ("y", "yes"):
        say("nothing was started")
        return 2
    with memory.launching():
        _check_memory(memory, request)  # again: another launch may have been here since
        _wait_for_lock(store, memory, say)
        _remember(memory, request)
        try:
            backend.start(say)
        except (CameUpWrongError, KeyboardInterrupt) as error:
            say(f"ablate: {error}" if str(error) else "interrupted: everything is taken down")
            return 130 if _take_down(backend, memory, say) == 0 and isinstance(error, KeyboardInterrupt) else 6
    return _follow(backend, memory, store, console, keep=request.keep)


def attach(word: str, console: Console) -> int:
    """Go on watching a launch that this user started on this machine; return its exit code as `launch` does."""
    memory = recall(word)
    backend = restored(memory)
    store = Store.open(memory.state()["out"], writable=False)
    return _follow(backend, memory, store, console, keep=bool(memory.state().get("keep")))


def cluster_status(word: str) -> list[str]:
    """Return the machines and the driver of a launch, a line each."""
    memory = recall(word)
    state = memory.state()
    began = f"launched {state.get('started', '?')}: grid {state['grid']}, out {word_of(state['out'])}"
    return [f"{memory.name} {began}", *restored(memory).status()]


def cluster_logs(word: str, *, follow: bool) -> Iterator[str]:
    """Yield what the driver of a launch printed."""
    yield from restored(recall(word)).logs(follow=follow)


def cluster_down(word: str, console: Console) -> int:
    """Take a launch down, after its driver has saved; return 0, or 6 if something is left."""
    memory = recall(word)
    return _take_down(restored(memory), memory, _sayer(console))


# --- what is looked at first ------------------------------------------------------------------------


def request_for(
    file: ClusterFile,
    grid: Grid,
    source: Source,
    *,
    out: str | None,
    arguments: tuple[str, ...],
    options: Mapping[str, Any],
    keep: bool,
) -> LaunchRequest:
    """Return the request to launch `grid`, read from `source`, with the other options of `ablate run`."""
    if out is None:
        raise InputError("--out must be given for a launch: an s3:// or gs:// address, or a folder that machines share")
    if options.get("address") is not None:
        raise InputError(f"--address must be left out of a launch, which makes its own; got {options['address']}")
    text = Path(source.name).read_text(encoding="utf-8")
    return LaunchRequest(file, grid, text, absolute(out), options.get("data") or None, arguments, options, keep)


def _check_request(request: LaunchRequest, backend: Backend) -> None:
    for option, address in (("--out", request.out), ("--data", request.data)):
        if address is None:
            continue
        require_address(address, option)
        if is_remote(address) and "@" in urlsplit(address).netloc.replace("anonymous@", ""):
            raise InputError(
                f"{option} must hold no credentials: other users of the machines could read them; got "
                f"{label_of(address)} with some; give the machines a profile, a service account or ~/.aws/credentials"
            )
    if backend.several_machines and not is_remote(request.out):
        raise InputError(
            f"--out must be an address that all machines reach, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; got the "
            f"folder {request.out}, which the others do not have; on one machine use ablate run"
        )


def _check_memory(memory: Memory, request: LaunchRequest) -> None:
    state = memory.state()
    if state and state["out"] != request.out:
        raise InputError(
            f"{request.file.path}: the cluster {memory.name} is in use for {label_of(state['out'])} since "
            f"{state['started']}; watch it with ablate attach {memory.name}, take it down with ablate cluster "
            f"down {memory.name}, or give the cluster another name in the file"
        )


def _check_joining(store: Store, request: LaunchRequest) -> None:
    """Refuse here what the driver, which nobody can answer, would refuse once the cluster is paid for."""
    words = joining_words(read_run_file(store), request.grid, store)
    if words is not None and not request.options.get("extend"):
        raise InputError(f"{words}; {CURE}")


def _check_data(request: LaunchRequest, say: Say) -> None:
    """Look at the data, where this machine can: at an address, or generated."""
    from ablate.running.checks import check_trials

    named = (name for trial in request.grid.trials for name in (trial.dataset, _pretrain_data(trial)))
    needed = set(named) - {None, "synthetic"}
    if request.data is None and needed and request.file.kind != "slurm":
        raise InputError(
            f"--data must be given: the machines need the data sets {', '.join(sorted(map(str, needed)))}; upload them "
            "to a bucket and give its address (data are never sent), or give a folder that every machine has"
        )
    if request.data is None or is_remote(request.data) or request.file.kind == "slurm":
        check_trials(request.grid.trials, request.data, say)


def _pretrain_data(trial: Any) -> str | None:
    return getattr(trial.pretrain, "dataset", None)


def _wait_for_lock(store: Store, memory: Memory, say: Say) -> None:
    """Wait until the lock of a driver that was lost with its head is stale; refuse if another driver is at work."""
    lock = RunLock(store)
    owner = lock.owner()
    if owner is None or lock.is_gone(owner):
        return
    if memory.exists:
        backend = restored(memory)
        if backend.driver().phase in ("waiting", "running"):
            return  # it is ours, and launching again goes on with it
        say(f"the lost driver on {owner.host} was at work until just now; waiting until its lock is stale")
        deadline = time.monotonic() + 3 * lock.stale_s
        while time.monotonic() < deadline:
            owner = lock.owner()
            if owner is None or lock.is_gone(owner):
                return
            time.sleep(2)
    assert owner is not None
    raise InputError(
        f"{store.label}: a run may have one driver at a time, and one is at work: host {owner.host}, pid {owner.pid}; "
        f"wait for its end, stop it with ablate stop {store.word}, or give another --out"
    )


# --- what is remembered -----------------------------------------------------------------------------


def _remember(memory: Memory, request: LaunchRequest) -> None:
    memory.write(f"file{request.file.path.suffix}", request.file.text)
    memory.write("grid.yaml", request.grid_text)
    memory.remember(
        file=str(request.file.path.resolve()),
        suffix=request.file.path.suffix,
        grid=request.grid.name,
        overrides=list(request.options.get("set_") or ()),
        out=request.out,
        data=request.data,
        arguments=list(request.arguments),
        keep=request.keep,
        started=memory.state().get("started", datetime.now(UTC).isoformat(timespec="seconds")),
    )


def recall(word: str) -> Memory:
    """Return the memory of a launch, by its cluster file or its cluster's name.

    Raises:
        InputError: nothing is remembered under it.
    """
    by_name = Memory(word) if "/" not in word and word else None
    memory = by_name if by_name is not None and by_name.exists else Memory(find_cluster(word).name)
    if not memory.exists:
        known = sorted(path.name for path in clusters_folder().glob("*") if (path / "state.json").is_file())
        raise InputError(
            f"{word}: no launch of the cluster {memory.name} is remembered on this machine; "
            + (f"there is {', '.join(known)}" if known else "start one with ablate launch")
        )
    return memory


def restored(memory: Memory) -> Backend:
    """Return the backend of a launch that is remembered."""
    state = memory.state()
    file = parse_cluster(Path(state["file"]), memory.path(f"file{state['suffix']}").read_text(encoding="utf-8"))
    source = memory.path("grid.yaml")
    text = source.read_text(encoding="utf-8")
    grid = load_grid(Source.parse(text, str(source)), state["overrides"])
    arguments = tuple(state["arguments"])
    request = LaunchRequest(file, grid, text, state["out"], state["data"], arguments, {}, state["keep"])
    return backend_of(request, memory)


# --- while it runs, and after -----------------------------------------------------------------------


def _follow(backend: Backend, memory: Memory, store: Store, console: Console, *, keep: bool) -> int:
    """Show the run until its driver has ended, fetch the report, and take the cluster down."""
    say = _sayer(console)
    try:
        state = _show(backend, memory, store, console, say)
    except KeyboardInterrupt:
        if memory.exists:
            say(
                f"the run goes on without you; ablate attach {memory.name} shows it again, ablate stop {store.word} "
                "ends it"
            )
        return 130
    if not memory.exists:
        say(f"the cluster {memory.name} was taken down by another command; launch again to go on")
        return 5
    if state is None:
        say(
            f"ablate: the head is lost: neither it nor its driver gave a sign for {LOST_S:.0f} s; taking down what is "
            "left; all states are saved; launch again to go on"
        )
        _take_down(backend, memory, say)
        return 6
    code = 1 if state.exit_code is None else state.exit_code
    if code not in (0, 1):
        last = [line for line in backend.logs(follow=False) if line.strip()][-1:]
        say(f"the driver ended with exit code {code}" + (f": {last[0]}" if last else ""))
    _report(memory, say)
    if keep:
        say(f"the cluster stays up, and costs, until: ablate cluster down {memory.name}")
        return code
    return _take_down(backend, memory, say) or code


def _show(backend: Backend, memory: Memory, store: Store, console: Console, say: Say) -> DriverState | None:
    """Show the run until its driver has ended, or another command has taken the cluster down.

    Returns how the driver ended, or None if the head is lost.
    """
    from ablate.running.watching import show_run

    view = Store.connect(store.address, patience_s=OFFLINE_S)
    ended: list[DriverState | None] = []
    silent_since: list[float] = []
    looked, caption = [0.0], [""]

    def who() -> str | None:
        if time.monotonic() - looked[0] < POLL_S:
            return caption[0]
        looked[0] = time.monotonic()
        if not memory.exists:
            ended.append(DriverState("ended"))
            return None
        backend.tend(say)
        state = backend.driver()
        if state.phase == "ended":
            ended.append(state)
            return None
        if state.phase != "unknown":
            silent_since.clear()
        elif not silent_since:
            silent_since.append(time.monotonic())
        elif time.monotonic() - silent_since[0] > LOST_S and _is_stale(view):
            ended.append(None)
            return None
        words = {"waiting": "the driver waits", "running": "the driver runs", "unknown": "the head does not answer"}
        caption[0] = words[state.phase] + (f" ({state.detail})" if state.detail and state.phase != "running" else "")
        return caption[0]

    while not ended:
        try:
            show_run(view, console, who)
        except StoreAway:
            time.sleep(POLL_S)  # this machine may be offline; the run goes on
    return ended[0]


def _is_stale(store: Store) -> bool:
    """Return whether the store can be reached, and no driver is at work there."""
    lock = RunLock(store)
    try:
        owner = lock.owner()
        return owner is None or lock.is_gone(owner)
    except StoreAway:
        return False


def _report(memory: Memory, say: Say) -> None:
    """Write the report on this machine, and print the results."""
    from ablate.report import write_report
    from ablate.report.pivot import pivot, render
    from ablate.report.run_data import read_trials
    from ablate.store.layout import RUN_FILE
    from ablate.tables import trial_status

    store = Store.open(memory.state()["out"], writable=False)
    if not store.exists(RUN_FILE) or not trial_status(store):
        say(f"{store.label}: no trial has ended, there is nothing to report")
        return
    folder = Path("reports") / memory.name
    for line in ["", render(pivot(read_trials(store)), "plain"), *write_report(store, str(folder)).lines()]:
        say(line)


def _take_down(backend: Backend, memory: Memory, say: Say) -> int:
    """Take everything down and forget the launch; return 0, or 6 if something is left, which stays remembered."""
    try:
        backend.down(say)
    except LeftOverError as error:
        say(f"ablate: not everything could be taken down: {error}; try again: ablate cluster down {memory.name}")
        return LeftOverError.exit_code
    memory.forget()
    say("everything is taken down")
    return 0


def _sayer(console: Console) -> Say:
    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    return say
