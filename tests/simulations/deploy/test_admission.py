"""Admission to the SuperLink: whose requests are read, and how much of them, with Flower's own state and signatures."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.superlink.federation import NoOpFederationManager
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fedpress.simulations.deploy import _flower, admission

MOST = 10_000
TOKEN = "fpo_" + "t" * 40
PUSH, RUN, TASK = "/v1/fleet/push-object", "/v1/control/start-run", "/v1/runtime/push-object"
PROOF = {"authorization": f"Bearer {TOKEN}"}


class Node:
    """Keys of a node, and the headers that it signs."""

    def __init__(self) -> None:
        self.private, public = generate_key_pairs()
        self.public = public_key_to_bytes(public)

    def headers(self, late: float = 0.0, **changes: str) -> dict[str, str]:
        time = (now() - timedelta(seconds=late)).isoformat()
        return {
            "flwr-public-key": base64.b64encode(self.public).decode(),
            "flwr-timestamp": time,
            "flwr-signature": base64.b64encode(sign_message(self.private, time.encode())).decode(),
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }


class Link:
    """A guarded application that answers with the length of what it was sent."""

    def __init__(self) -> None:
        async def count(request: Request) -> PlainTextResponse:
            self.served += 1
            return PlainTextResponse(str(len(await request.body())))

        paths = (PUSH, RUN, TASK, "/v1/runtime/acquire-task", "/health", "/docs")
        self.served = 0
        self.app = Starlette(routes=[Route(path, count, methods=["GET", "POST"]) for path in paths])
        states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        self.app.state.linkstate_factory = states
        self.state = states.state()
        self.app.add_middleware(
            admission.Admission,
            authority=_flower.Authority(),
            networks=["127.0.0.0/8", "192.0.2.0/24"],
            token=TOKEN,
            most=MOST,
        )

    def admit(self, node: Node) -> None:
        self.state.create_node("", "", node.public, 0)

    def ask(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] = b"",
        address: str = "198.51.100.1",
    ) -> httpx.Response:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(address, 40000))
            async with httpx.AsyncClient(transport=transport, base_url="http://link") as http:
                return await http.post(path, headers=headers, content=content)

        return asyncio.run(post())


@pytest.fixture
def link() -> Link:
    return Link()


class Untouched:
    """A body that must not be asked for."""

    def __init__(self, announced: int) -> None:
        self.announced, self.asked = announced, 0

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        return {"type": "http.request", "body": b"x", "more_body": True}


def answer_without_a_body(
    link: Link, path: str, headers: dict[str, str], body: Untouched
) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request, whose body is counted if it is read."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [
        (name.encode(), value.encode()) for name, value in {**headers, "content-length": str(body.announced)}.items()
    ]
    scope = {
        "type": "http", "method": "POST", "path": PUSH, "raw_path": PUSH.encode(), "query_string": b"", "headers": raw,
        "client": ("198.51.100.1", 1), "server": ("192.0.2.1", 9092), "scheme": "https", "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(link.app(scope, body, send))
    start = sent[0]
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}


def test_a_registered_node_is_served(link: Link) -> None:
    node = Node()
    link.admit(node)
    assert link.ask(PUSH, node.headers(), b"x" * MOST).text == str(MOST)


STRANGERS = {
    "no header": lambda node: {},
    "no signature": lambda node: {k: v for k, v in node.headers().items() if k != "flwr-signature"},
    "somebody else's signature": lambda node: node.headers(flwr_signature=Node().headers()["flwr-signature"]),
    "an old signature": lambda node: node.headers(late=306),
    "one of the future": lambda node: node.headers(late=-6),
    "no time": lambda node: node.headers(flwr_timestamp="now"),
    "no zone": lambda node: node.headers(flwr_timestamp="2026-11-30T10:00:00"),
    "no key": lambda node: node.headers(flwr_public_key="AAAA"),
    "no base64": lambda node: node.headers(flwr_public_key="\\"),
    "not registered": lambda node: Node().headers(),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_of_a_strangers_body_is_read(link: Link, stranger: str) -> None:
    node = Node()
    link.admit(node)
    body = Untouched(MOST - 1)
    status, headers = answer_without_a_body(link, STRANGERS[stranger](node), body)
    assert (status, body.asked, link.served) == (401, 0, 0)
    assert headers["connection"] == "close"


def test_the_owner_of_a_key_hears_from_flower_that_it_is_not_registered(link: Link) -> None:
    """Flower's own answer names the reason, and its SuperNode ends by it: only what is small may ask."""
    assert link.ask(PUSH, Node().headers(), b"x" * admission.SMALL_BYTES).status_code == 200
    assert link.ask(PUSH, Node().headers(), b"x" * (admission.SMALL_BYTES + 1)).status_code == 401


def test_a_revoked_key_is_a_strangers_after_a_minute(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    link.admit(node)
    large = b"x" * (admission.SMALL_BYTES + 1)
    assert link.ask(PUSH, node.headers(), large).status_code == 200
    identity = link.state.get_node_id_by_public_key(node.public)
    assert identity is not None
    link.state.delete_node("", identity)
    monkeypatch.setattr(admission, "RECHECK_SECONDS", 0.0)
    assert link.ask(PUSH, node.headers(), large).status_code == 401


@pytest.mark.parametrize(
    ("address", "operator"),
    [("127.0.0.1", True), ("192.0.2.9", True), ("198.51.100.1", False), ("::ffff:192.0.2.9", True), ("::1", False)],
)
def test_an_operator_has_an_address_and_the_token(link: Link, address: str, operator: bool) -> None:
    for path in (RUN, "/docs", "/health"):
        assert link.ask(path, PROOF, address=address).status_code == (200 if operator else 403)
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": TOKEN}, {"authorization": "Bearer"}):
            assert link.ask(path, headers, address=address).status_code == 403


def test_no_header_makes_an_address(link: Link) -> None:
    """Of a proxy's headers nothing is believed; main() switches uvicorn's belief in them off."""
    headers = {**PROOF, "x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-real-ip": "127.0.0.1"}
    assert link.ask(RUN, headers, address="198.51.100.1").status_code == 403


def test_the_nodes_part_is_no_way_around(link: Link) -> None:
    for path in ("/v1/fleet/%2e%2e/control/start-run", "/v1/fleet%2f..%2fcontrol/start-run", "//v1/control/start-run"):
        assert link.ask(path, Node().headers(), address="127.0.0.1").status_code in (401, 403, 404)
        assert link.served == 0


def test_a_stranger_behind_a_proxy_of_this_machine_gets_nothing_but_small_requests_to_flower(link: Link) -> None:
    body = b"x" * (admission.SMALL_BYTES + 1)
    assert link.ask(RUN, {}, body, address="127.0.0.1").status_code == 403
    assert link.ask(TASK, {"flwr-task-token": "guessed"}, body, address="127.0.0.1").status_code == 401
    assert link.ask("/v1/runtime/acquire-task", {}, b"x", address="198.51.100.1").status_code == 403


def test_a_request_that_is_too_large_is_named_once_an_address(link: Link, capsys: pytest.CaptureFixture[str]) -> None:
    node = Node()
    link.admit(node)
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        refused = link.ask(PUSH, node.headers(), b"x" * (MOST + 1), address)
        assert refused.status_code == 413 and "is 10,001 bytes long, and at most 10,000 are taken" in refused.text
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["192.0.2.1", "192.0.2.2"]
    assert all(line.startswith(admission.SAYS) for line in lines)
    assert link.ask(RUN, PROOF, b"x" * (MOST + 1), "192.0.2.1").text == str(MOST + 1)  # an operator may send more


def test_a_path_cannot_write_lines_into_the_log(link: Link, capsys: pytest.CaptureFixture[str]) -> None:
    link.ask("/v1/fleet/%0afedpress:%20all%20is%20well%1b[2J", {})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable() and "\\nfedpress" in line


def test_a_request_without_a_length_is_refused(link: Link) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x"

    node = Node()
    link.admit(node)
    refused = link.ask(PUSH, node.headers(), parts())
    assert refused.status_code == 411 and "does not say how long it is" in refused.text


def test_a_body_that_stops_or_trickles_is_given_up(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "STALL_SECONDS", 0.05)
    node = Node()
    link.admit(node)

    async def ask(pause: float) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(k.encode(), v.encode()) for k, v in {**node.headers(), "content-length": str(MOST)}.items()]
        scope = {"type": "http", "method": "POST", "path": PUSH, "headers": headers, "client": ("192.0.2.1", 1)}
        await asyncio.wait_for(link.app(scope, receive, send), 30)
        return int(sent[0]["status"])

    assert asyncio.run(ask(60.0)) == 408  # stops
    assert asyncio.run(ask(0.02)) == 408  # 50 bytes a second
    assert link.served == 0


def test_room_is_bounded_for_each_and_for_all_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "ROOM_SECONDS", 0.05)

    async def story() -> None:
        room = admission.Room(each=10, most=15)
        assert await room.take("a", 10) and not await room.take("a", 1)
        assert await room.take("b", 5) and not await room.take("c", 1)
        await room.give_back("a", 10)
        assert await room.take("c", 10) and room.held == 15
        waiting = asyncio.create_task(room.take("a", 5))
        await asyncio.sleep(0)
        await room.give_back("b", 5)
        assert await waiting

    asyncio.run(story())
