"""The connection to the Ray cluster that a run uses."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray

from ablate.errors import InputError
from ablate.running.ray_tune.nodes import knock
from ablate.words import one_line


def _require_answer(address: str | None) -> None:
    """Refuse an address at which nothing listens: Ray itself would try for many minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # none, or `auto`, which Ray looks up on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({error}); start one with 'ray start --head', "
            "or leave --address out to run on this machine"
        ) from error


@contextmanager
def connected(address: str | None, say: Callable[[str], None] = lambda text: None) -> Iterator[Mapping[str, float]]:
    """Connect to the cluster at `address`, or start Ray on this machine for the time of the context.

    `say` is told before, which may take a minute on a busy machine. Yields the cluster's resources. Raises
    `InputError` if the cluster does not answer, or Ray does not start.
    """
    say("starting Ray on this machine" if address is None else f"connecting to the Ray cluster at {address}")
    _require_answer(address)
    if address is None:
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # Ray's 30 s are short on a busy machine
    logging.getLogger("ray").setLevel(logging.ERROR)  # its hints and warnings are about what we set on purpose
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise InputError(f"Ray does not start on this machine: {one_line(error)}") from error
        if knock(address) == "token":
            raise InputError(
                f"--address {address}: the cluster asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
                "the cluster's"
            ) from error
        raise InputError(
            f"--address must be the address of a running Ray cluster, such as auto or HOST:6379; got '{address}': "
            f"{one_line(error)}"
        ) from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
