"""Flower's SuperLink behind two guards: control only from the operators' networks, and a limit on request sizes.

Flower serves nodes (`/v1/fleet`), operators (`/v1/control`) and its own child processes (`/v1/runtime`) on one port,
and authenticates only the nodes. Anyone who can connect could register keys, and run code on the server and on all
nodes. Here control and runtime are limited to the networks in FEDPRESS_OPERATORS, and to this machine itself.

Flower also reads each request into memory before it authenticates the sender, without a limit of its size. Here nodes'
requests are limited to FEDPRESS_MESSAGE_BYTES; those of this machine and of operators are not.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedpress.simulations.deploy import _flower

OPERATORS = "FEDPRESS_OPERATORS"
"""Environment variable with the operators' networks, separated by spaces."""
MESSAGE_BYTES = "FEDPRESS_MESSAGE_BYTES"
"""Environment variable with the largest size of a node's request."""
OPEN = ("/v1/fleet/",)
"""Paths that every machine may reach."""
MOST_LOGGED = 1000
"""Number of refused addresses that are logged: an attacker with many must not fill memory or disk."""
SAYS = "fedpress: "
"""Prefix of log lines for the operator, which the service reports."""


class OperatorsOnly:
    """Middleware that answers 403 to requests from outside the operators' networks, except those of nodes.

    Args:
        app: The application behind it.
        networks: Networks of operators, such as "192.0.2.0/24".
    """

    def __init__(self, app: ASGIApp, networks: Sequence[str]) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(text) for text in networks]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and not scope["path"].startswith(OPEN) and not self._is_operator(scope):
            text = f"{SAYS}{scope['path']} is for operators; see `operators` in the server's settings\n"
            await PlainTextResponse(text, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_operator(self, scope: Scope) -> bool:
        client, server = scope.get("client"), scope.get("server")
        if client is None:
            return False
        if server is not None and client[0] == server[0]:
            return True  # a connection of this machine with itself
        address = ipaddress.ip_address(client[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._networks)


class LimitedRequests:
    """Middleware that refuses nodes' requests above a size (413), or without a declared size (411).

    A refused request is read to its end and discarded piece by piece, since a client that is still sending when the
    connection closes does not see the answer. Each address is logged once.

    Args:
        app: The application behind it.
        most: Largest size in bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        headers = Headers(scope=scope) if scope["type"] == "http" and scope["path"].startswith(OPEN) else Headers()
        length = headers.get("content-length")
        if int(length or 0) <= self._most and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        sent = f"is {int(length):,} bytes long" if length else "does not say how long it is"
        text = f"a request {sent}, and at most {self._most:,} are taken; see `message_mib` in the server's settings"
        if (peer := (scope.get("client") or ("?",))[0]) not in self._logged and len(self._logged) < MOST_LOGGED:
            self._logged.add(peer)
            print(f"{SAYS}{peer} is refused at {scope['path']}: {text}", flush=True)
        await PlainTextResponse(f"{SAYS}{text}\n", 413 if length else 411)(scope, receive, send)


def main() -> None:
    """Run `flower-superlink` behind the guards; its arguments are this command's."""
    guards = (
        Middleware(OperatorsOnly, networks=os.environ.get(OPERATORS, "").split()),
        Middleware(LimitedRequests, most=int(os.environ[MESSAGE_BYTES])),
    )
    _flower.run_superlink(guards)


if __name__ == "__main__":
    main()
