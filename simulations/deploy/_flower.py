"""Flower's own processes with fedpress's changes; tests/test_flower_doors.py lists the internals that are touched.

The client of a SuperLink's Control API is in `control`. Each function imports only what its process needs.
"""

from __future__ import annotations

import base64
import datetime
import functools
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any


class Authority:
    """What a SuperLink knows of nodes and tasks, as `admission.Authority`; each method imports Flower, which runs."""

    def claimed_key(self, headers: Mapping[str, str]) -> bytes | None:
        """Return the public key (PEM) that the headers name; None: they name none."""
        from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

        try:
            return base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        except (KeyError, ValueError):
            return None

    def is_signed(self, headers: Mapping[str, str]) -> bool:
        """Return whether the key's owner has signed the present time, as Flower's `authenticate_node` does."""
        from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
        from flwr.supercore.constant import FLEET_HTTP_SIGNATURE_HEADER
        from flwr.supercore.date import now
        from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

        try:
            time, key = headers[TIMESTAMP_HEADER], self.claimed_key(headers)
            age = (now() - datetime.datetime.fromisoformat(time)).total_seconds()
            signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            if key is None or not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
                return False
            return bool(verify_signature(bytes_to_public_key(key), time.encode("ascii"), signature))
        except Exception:  # cryptography has a class for each fault of a stranger's key
            return False

    def is_registered(self, scope: Any, key: bytes) -> bool:
        """Return whether a public key is that of a registered node."""
        return scope["app"].state.linkstate_factory.state().get_node_id_by_public_key(key) is not None

    def is_task(self, scope: Any, headers: Mapping[str, str]) -> bool:
        """Return whether the headers carry the token of a task that is under way."""
        from flwr.supercore.constant import TASK_TOKEN_HEADER

        token = headers.get(TASK_TOKEN_HEADER)
        return bool(token) and scope["app"].state.linkstate_factory.state().get_task_by_token(token) is not None


def run_superlink(
    guards: tuple[Any, ...], options: Mapping[str, Any], beside: Callable[[], AbstractContextManager[None]]
) -> None:
    """Run `flower-superlink` with this process's arguments.

    Args:
        guards: Starlette middleware in front of its routes.
        options: More arguments of `uvicorn.run`.
        beside: Context that lasts as long as it serves.
    """
    import uvicorn
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        with beside():
            yield

    extensions.get_middleware = lambda: guards
    extensions.get_lifespan_contexts = lambda: (lifespan,)
    uvicorn.run = functools.partial(uvicorn.run, **options)
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


def is_of_client_app(run: Any) -> bool:
    """Return whether a run has nodes run a ClientApp, and not an agent."""
    from flwr.supercore.constant import TaskType

    return bool(run.primary_task_type != TaskType.AGENT_APP)


def answer_with_error(order: Any, reason: str, state: Any, object_store: Any) -> int:
    """Put an error into a SuperNode's state, as the reply to an order; return the order's run id."""
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode
    from flwr.supernode import start_client_internal

    reply = Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=order)
    start_client_internal._insert_message(reply, state, object_store)
    return int(order.metadata.run_id)
