"""Flower's SuperLink, with two guards: whoever may reach its port may neither start runs nor send what he likes.

Flower serves nodes (`/v1/fleet`), operators (`/v1/control`) and its own child processes (`/v1/runtime`) on one port,
and asks only the nodes for a key. Whoever reaches the port could let in keys of his own, and run code on the server
and on all nodes. Here the last two are for the networks in FEDPRESS_OPERATORS, and for this machine itself.

It also reads each request into memory before it looks who sends it, and sets no limit to its size. Here nodes' requests
have one, FEDPRESS_MESSAGE_BYTES; what this machine and the operators send has none.
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
"""Environment variable: networks, separated by spaces."""
MESSAGE_BYTES = "FEDPRESS_MESSAGE_BYTES"
"""Environment variable: the largest request of a node."""
OPEN = ("/v1/fleet/",)
MOST_TOLD = 1000
"""Addresses that are named in the log when they are refused: a stranger with many must not fill memory or disk."""
SAYS = "fedpress: "
"""Lines of the log that begin so are for the operator."""


class OperatorsOnly:
    """Middleware that answers 403 to all but nodes' requests from outside the operators' networks."""

    def __init__(self, app: ASGIApp, networks: Sequence[str]) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(text) for text in networks]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and not scope["path"].startswith(OPEN) and not self._may(scope):
            text = f"{SAYS}{scope['path']} is for operators; see `operators` in the server's settings\n"
            await PlainTextResponse(text, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        client, server = scope.get("client"), scope.get("server")
        if client is None:
            return False
        if server is not None and client[0] == server[0]:
            return True  # a connection of this machine with itself
        address = ipaddress.ip_address(client[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._networks)


class LimitedRequests:
    """Middleware that refuses nodes' requests of more than so many bytes (413), or of nobody knows how many (411).

    What is refused is read to its end, and thrown away piece by piece: a client that is still sending when the
    connection closes does not see the answer. It is said once for each address.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._told: set[str] = set()

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
        if (peer := (scope.get("client") or ("?",))[0]) not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(peer)
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
