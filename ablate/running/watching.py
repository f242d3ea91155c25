"""Looking at a run, and stopping it, from any machine that reaches its store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ablate.running.display import PLAIN_SECONDS
from ablate.running.picture import Picture
from ablate.running.supervision import read_picture
from ablate.store import Store
from ablate.store.lock import RunLock
from ablate.store.owner import Owner
from ablate.store.stopping import STOP_COMMAND, request_stop

REFRESH_SECONDS = 2.0


def stop_run(store: Store, *, wait: bool) -> Iterator[str]:
    """Ask the driver of a run to save and end; yield what is to say. With `wait`, go on until it has ended.

    Raises:
        StoreTrouble: the store does not take the request.
    """
    lock = RunLock(store)
    owner = lock.owner()
    if owner is None or lock.is_gone(owner):
        yield f"{store.label}: no driver is at work, there is nothing to stop"
        return
    request_stop(store, owner.token, STOP_COMMAND)
    yield (
        f"{store.label}: asked the driver on {owner.host} (pid {owner.pid}) to save the running stages' states and to "
        "end; it hears within seconds, and ends once the states are saved"
    )
    if wait:
        while _is_at_work(lock, owner):
            time.sleep(REFRESH_SECONDS)
        yield "the run has ended; start the same command again to go on"


def _is_at_work(lock: RunLock, owner: Owner) -> bool:
    now = lock.owner()
    return now is not None and now.token == owner.token and not lock.is_gone(now)


def watch_run(store: Store, console: Console) -> None:
    """Show a run's live display, read from its store, until its driver ends; Ctrl-C leaves the run alone."""
    lock = RunLock(store)
    owner = lock.owner()
    if owner is None:
        return

    def who() -> str | None:
        return f"driver on {owner.host}, pid {owner.pid}" if _is_at_work(lock, owner) else None

    try:
        show_run(store, console, who)
    except KeyboardInterrupt:
        console.print("the run goes on")


def show_run(store: Store, console: Console, who: Callable[[], str | None]) -> None:
    """Show a run's live display, read from its store.

    Args:
        store: of the run.
        console: a terminal is drawn on, another output gets lines from time to time.
        who: asked again and again; returns who is at work, for the line below the display, and None when it is over.
    """
    (_draw if console.is_terminal else _print)(store, console, who)


def _draw(store: Store, console: Console, who: Callable[[], str | None]) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (caption := who()) is not None:
            picture = read_picture(store)
            drawn = [] if picture is None else [picture]
            live.update(Group(*drawn, Text(_aged(caption, picture), style="dim")), refresh=True)
            time.sleep(REFRESH_SECONDS)


def _print(store: Store, console: Console, who: Callable[[], str | None]) -> None:
    last = 0.0
    while (caption := who()) is not None:
        picture = read_picture(store)
        if picture is not None and picture.at - last >= PLAIN_SECONDS:
            last = picture.at
            for line in [*picture.lines(), _aged(caption, picture)]:
                console.print(line, soft_wrap=True)
        time.sleep(REFRESH_SECONDS)


def _aged(caption: str, picture: Picture | None) -> str:
    """Say whose display it is and how old."""
    if picture is None:
        return f"{caption}: nothing to see yet"
    return f"{caption}, as of {max(0.0, time.time() - picture.at):.0f} s ago"
