"""Flower's own processes with fedpress's changes; tests/test_flower_doors.py lists the internals that are touched.

The client of a SuperLink's Control API is in `control`. Each function imports only what its process needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def run_superlink(guards: tuple[Any, ...]) -> None:
    """Run `flower-superlink` with this process's arguments, and Starlette middleware in front of its routes."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink

    extensions.get_middleware = lambda: guards
    sys.argv[0] = "flower-superlink"  # Flower finds its processes by this name
    flower_superlink()


def run_supernode(repair: Callable[[Callable[..., int | None]], Callable[..., int | None]]) -> None:
    """Run `flower-supernode` with this process's arguments; `repair` wraps its function that fetches a message."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    start_client_internal._pull_and_store_message = repair(start_client_internal._pull_and_store_message)
    sys.argv[0] = "flower-supernode"
    flower_supernode()


def run_ended() -> type[BaseException]:
    """Return the exception that Flower raises where the run of a message has ended."""
    from flwr.supercore.run import RunNotRunningException

    return RunNotRunningException
