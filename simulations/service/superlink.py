"""Flower's SuperLink, with a guard: whoever may reach its port may not yet start runs.

Flower serves nodes (`/v1/fleet`), operators (`/v1/control`) and its own child processes (`/v1/runtime`) on one port,
and asks only the nodes for a key. Whoever reaches the port could let in keys of his own, and run code on the server
and on all nodes. Here the last two are for the networks in FEDPRESS_OPERATORS, and for this machine itself.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPERATORS = "FEDPRESS_OPERATORS"
"""Environment variable: networks, separated by spaces."""
OPEN = ("/v1/fleet/",)


class OperatorsOnly:
    """Middleware that answers 403 to all but nodes' requests from outside the operators' networks."""

    def __init__(self, app: ASGIApp, networks: Sequence[str]) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(text) for text in networks]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and not scope["path"].startswith(OPEN) and not self._may(scope):
            text = f"fedpress: {scope['path']} is for operators; see `operators` in the server's settings\n"
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


def main() -> None:
    """Run `flower-superlink` behind the guard; its arguments are this command's."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink

    guard = Middleware(OperatorsOnly, networks=os.environ.get(OPERATORS, "").split())
    extensions.get_middleware = lambda: (guard,)
    sys.argv[0] = "flower-superlink"  # the name that Flower looks for
    flower_superlink()


if __name__ == "__main__":
    main()
