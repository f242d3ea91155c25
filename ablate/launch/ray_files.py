"""Ray cluster files as Ray itself checks them."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

from ablate.errors import InputError
from ablate.launch.cluster_file import ClusterFile
from ablate.words import one_line

WRITTEN_BY_LAUNCH = ("head_start_ray_commands", "worker_start_ray_commands")
"""Keys that a file must leave to the launch: they decide who can talk to the cluster."""


def ray_check(file: ClusterFile, document: dict[str, Any]) -> None:
    """Refuse a cluster file that Ray would refuse.

    Args:
        file: the file, for messages.
        document: its content, complete.

    Raises:
        InputError: with Ray's reason, or that its client is not installed.
    """
    try:
        import click
        import jsonschema
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError as error:
        raise InputError(f'ablate launch needs the client of Ray: pip install "ablate[clusters]" ({error})') from error
    try:
        validate_config(prepare_config(copy.deepcopy(document)))
    except jsonschema.ValidationError as error:
        file.refuse(tuple(error.absolute_path), f"Ray refuses it: {one_line(error.message, 300)}")
    except (click.ClickException, ValueError, KeyError, TypeError, RuntimeError) as error:
        said = error.message if isinstance(error, click.ClickException) else error
        raise InputError(f"{file.path}: Ray refuses the file: {one_line(said, 300)}") from error


def require_ray_options(file: ClusterFile, options: object) -> None:
    """Refuse options that `ray start` does not know, or whose values it does not take.

    Args:
        file: the file, for messages.
        options: `metadata.ray_options`, as a shell splits them.
    """
    import click
    from ray.scripts.scripts import start

    try:
        start.make_context("ray start", shlex.split(str(options)))
    except (click.UsageError, ValueError) as error:
        said = error.format_message() if isinstance(error, click.UsageError) else error
        file.refuse(
            ("metadata", "ray_options"),
            f"must be options of ray start, such as --num-gpus=1; got '{options}' ({one_line(said, 200)})",
        )


def refuse_written_by_launch(file: ClusterFile) -> None:
    """Refuse a file that starts Ray itself."""
    for key in WRITTEN_BY_LAUNCH:
        if key in file.document:
            file.refuse((key,), "must be left out: a launch starts Ray itself, with a token and closed to others")


def head_of(path: Path) -> tuple[str, str, str]:
    """Return address, user and private key of the head of a cluster that Ray's launcher has brought up.

    Args:
        path: the file that was given to `ray up`.
    """
    import yaml
    from ray.autoscaler._private.commands import _bootstrap_config, get_head_node_ip

    config = _bootstrap_config(yaml.safe_load(path.read_text(encoding="utf-8")), no_config_cache=True)
    auth = config["auth"]
    return get_head_node_ip(str(path)), str(auth["ssh_user"]), str(auth["ssh_private_key"])
