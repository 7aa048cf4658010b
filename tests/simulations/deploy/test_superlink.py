"""The guards of the SuperLink: who may ask for what, and how much may be sent."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fedpress.simulations.deploy import superlink


@pytest.fixture
def guarded() -> Starlette:
    paths = ("/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs")
    app = Starlette(routes=[Route(path, lambda _: PlainTextResponse("served")) for path in paths])
    app.add_middleware(superlink.OperatorsOnly, networks=["127.0.0.0/8", "192.0.2.0/24"])
    return app


def asked(app: Starlette, address: str, path: str) -> httpx.Response:
    """The answer to a client of this address."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(address, 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://link") as http:
            return await http.get(path)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("address", "operator"),
    [("127.0.0.1", True), ("192.0.2.9", True), ("198.51.100.1", False), ("::ffff:192.0.2.9", True), ("::1", False)],
)
def test_only_operators_reach_more_than_the_nodes_part(guarded: Starlette, address: str, operator: bool) -> None:
    assert asked(guarded, address, "/v1/fleet/pull-messages").text == "served"
    for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"):
        assert asked(guarded, address, path).status_code == (200 if operator else 403)


def test_the_nodes_part_is_no_way_around(guarded: Starlette) -> None:
    for path in ("/v1/fleet/%2e%2e/control/start-run", "/v1/fleet%2f..%2fcontrol/start-run", "//v1/control/start-run"):
        assert asked(guarded, "198.51.100.1", path).status_code in (403, 404)


MOST = 1000


@pytest.fixture
def limited() -> Starlette:
    async def count(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    paths = ("/v1/fleet/push-object", "/v1/runtime/push-object")
    app = Starlette(routes=[Route(path, count, methods=["POST"]) for path in paths])
    app.add_middleware(superlink.LimitedRequests, most=MOST)
    return app


def sent(app: Starlette, address: str, content: bytes | AsyncIterator[bytes], path: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(address, 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://link") as http:
            return await http.post(path, content=content)

    return asyncio.run(send())


def test_nodes_requests_up_to_the_limit_are_served_and_others_named_once_an_address(
    limited: Starlette, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, runtime = "/v1/fleet/push-object", "/v1/runtime/push-object"
    assert sent(limited, "192.0.2.1", b"x" * MOST, fleet).text == str(MOST)
    assert sent(limited, "192.0.2.1", b"x" * (MOST + 1), runtime).text == str(MOST + 1)
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        refused = sent(limited, address, b"x" * (MOST + 1), fleet)
        assert refused.status_code == 413 and "is 1,001 bytes long, and at most 1,000 are taken" in refused.text
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["192.0.2.1", "192.0.2.2"]
    assert all(line.startswith(superlink.SAYS) for line in lines)


def test_a_request_without_a_length_is_refused(limited: Starlette) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x"

    refused = sent(limited, "192.0.2.3", parts(), "/v1/fleet/push-object")
    assert refused.status_code == 411 and "does not say how long it is" in refused.text
