"""Flower's own processes, started with what fedpress changes in them; tests/test_flower_doors.py lists what it touches.

What an operator asks of a SuperLink is in `control`. Each function imports what its process needs, and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def run_superlink(guards: tuple[Any, ...]) -> None:
    """Be `flower-superlink`, with Starlette middleware in front of its routes; its arguments are this process's."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink

    extensions.get_middleware = lambda: guards
    sys.argv[0] = "flower-superlink"  # the name that Flower looks for
    flower_superlink()


def run_supernode(repair: Callable[[Callable[..., int | None]], Callable[..., int | None]]) -> None:
    """Be `flower-supernode`, with another way to fetch an order; its arguments are this process's."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    start_client_internal._pull_and_store_message = repair(start_client_internal._pull_and_store_message)
    sys.argv[0] = "flower-supernode"
    flower_supernode()


def run_ended() -> type[BaseException]:
    """Return what Flower raises where a run has ended meanwhile."""
    from flwr.supercore.run import RunNotRunningException

    return RunNotRunningException
