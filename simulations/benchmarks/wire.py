"""`fedpress bench wire`: bytes between Flower's own processes.

A SuperLink and SuperNodes run on this machine; between each node and the SuperLink a forwarder counts the bytes of
every request (`byte_counter`). On the same processes run fedpress's app, on a scenario, and a plain Flower app with
FedAvg and a model of 1 kB. Counted are the TCP streams: with HTTP headers, without those of TCP and IP.

Nodes use TLS, as in a real deployment. One forwarder counts the TLS stream; the next terminates TLS and counts the same
requests by kind. The overhead of TLS is the difference of the two counts.

An idle node polls for messages every 3 s. The number of polls in a round depends on the speed of the other nodes and
the server, so they are counted separately from the requests that a round needs.
"""

from __future__ import annotations

import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from fedpress.compression.errors import FedpressError
from fedpress.compression.ledger import Direction, Ledger
from fedpress.simulations.benchmarks import _plain_app
from fedpress.simulations.benchmarks.byte_counter import ByteCounter, Request
from fedpress.simulations.deploy import flower_processes, keys
from fedpress.simulations.deploy.flower_processes import Deployment
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs import job, plan
from fedpress.simulations.scenario.scenario import Scenario

PULL, CONFIRM, HEARTBEAT = "pull-messages", "confirm-message-received", "send-node-heartbeat"
PUSHES = ("push-messages", "push-object")
PAYLOADS = ("update", "model", "buffers")
"""Kinds of the ledger that count as payload; the rest of a message is overhead."""
ROUND_SECONDS = 120.0
"""Time limit of a round, after which the run counts as stuck."""


class WireBenchError(FedpressError):
    """A node did not take part in every round, or did not poll."""


class Bytes(NamedTuple):
    """Bytes to the server and from it; for one client and round in a `Wire`."""

    up: float = 0.0
    down: float = 0.0


class Wire(NamedTuple):
    """Traffic of an app: means over nodes and rounds, without the first round.

    Attributes:
        name: Name of the app.
        payload: Bytes of the encoded update, or of the model.
        requests: Bytes of all requests but polls without a result, and heartbeats.
        waiting: Bytes of these.
        first: Bytes of the first round, with the requests that a node makes once in a run.
        counts: Number of requests of a round by kind.
        tls: Overhead of TLS on all of these; mean over all rounds, the first included.
        connections: Connections of a node and round; each begins with a TLS handshake.
    """

    name: str
    payload: Bytes
    requests: Bytes
    waiting: Bytes
    first: Bytes
    counts: dict[str, float]
    tls: Bytes = Bytes()
    connections: float = 0.0

    @property
    def beside(self) -> Bytes:
        """Bytes of a round besides the payload."""
        return Bytes(*(r + w - p for p, r, w in zip(self.payload, self.requests, self.waiting, strict=True)))


class WireFigures(NamedTuple):
    """Figures of the benchmark.

    Attributes:
        nodes: Number of SuperNodes.
        rounds: Rounds of each run.
        apps: Traffic of fedpress, then of the plain app.
        idle: Bytes a second of a waiting node.
        poll: Bytes of one poll without a result.
    """

    nodes: int
    rounds: int
    apps: list[Wire]
    idle: Bytes
    poll: Bytes


class WireRound(NamedTuple):
    """Requests of one node from the end of its previous reply to the end of this one."""

    requests: list[Request]
    waiting: list[Request]


def rounds_of(requests: Iterable[Request]) -> list[WireRound]:
    """Return a node's requests by round, without those after its last reply.

    A round ends with the last request that pushes the reply. A poll had a result if the next request, heartbeats not
    counted, is not a poll.
    """
    rounds: list[WireRound] = []
    own, waiting, poll, pushing = list[Request](), list[Request](), None, False
    for request in requests:
        kind = _kind(request)
        if kind == HEARTBEAT:
            waiting.append(request)
            continue
        if pushing and kind not in PUSHES:
            rounds.append(WireRound(own, waiting))
            own, waiting, pushing = [], [], False
        if poll is not None:
            (waiting if kind == PULL else own).append(poll)
            poll = None
        if kind == PULL:
            poll = request
            continue
        own.append(request)
        pushing = kind in PUSHES
    if pushing:
        rounds.append(WireRound(own, waiting))
    return rounds


def run(scenario: Scenario, idle_seconds: float, tell: Callable[[str], None] = lambda _: None) -> WireFigures:
    """Run both apps and count their bytes.

    Args:
        scenario: Scenario of fedpress's app; each of its clients is a node.
        idle_seconds: Duration of the measurement of waiting nodes, before the first run.
        tell: Called with each step's name.

    Raises:
        DeploymentError: Flower's processes do not start, or one of them ends.
        WireBenchError: A node did not take part in every round, or did not poll.
    """
    nodes, rounds = scenario.clients, scenario.rounds
    with tempfile.TemporaryDirectory(prefix="fedpress-wire-") as name, ExitStack() as stack:
        folder = Path(name)
        tell("starting Flower's processes")
        running = stack.enter_context(Deployment(folder))
        made = keys.init(folder / "keys", ["127.0.0.1"], days=1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.server, made.server_key)
        counters = [stack.enter_context(ByteCounter(running.port, context)) for _ in range(nodes)]
        outer = [stack.enter_context(ByteCounter(counter.port)) for counter in counters]
        for number, counter in enumerate(outer):
            running.add_node(number, nodes, counter.port, ca=made.ca)
        _wait_for_polls(counters)
        tell(f"waiting for {idle_seconds:.0f} s")
        idle, poll = _watch_idle(counters, idle_seconds)

        out = folder / "run"
        config: dict[str, str | int] = {
            "workload": job.REFERENCE, "plan": plan.REFERENCE, "scenario": scenario.to_json(), "out": str(out),
        }  # fmt: skip
        ours = flower_processes.write_app(
            folder, "fedpress-app", "fedpress.server.app:app", "fedpress.client.app:app", config
        )
        config = {"nodes": nodes, "rounds": rounds}
        module = _plain_app.__name__
        plain = flower_processes.write_app(folder, "plain-app", f"{module}:server", f"{module}:client", config)
        apps = []
        for app, title in ((ours, "fedpress"), (plain, "plain Flower, 1 kB")):
            tell(f"running {title}")
            before = [len(counter.requests()) for counter in counters]
            all_before, connections = (_total(counters), _total(outer)), sum(one.connections for one in outer)
            log = running.run(app, ROUND_SECONDS * (rounds + 1))
            by_node = [rounds_of(c.requests()[b:]) for c, b in zip(counters, before, strict=True)]
            if any(len(found) != rounds for found in by_node):
                seen = ", ".join(str(len(found)) for found in by_node)
                raise WireBenchError(
                    f"{title}: the nodes answered {seen} times, expected {rounds} each:\n{log[-3000:]}"
                )
            payload = Bytes(_plain_app.PAYLOAD, _plain_app.PAYLOAD)
            if app is ours:
                payload = _payload(RunFolder.open(out), nodes, rounds)
            inside, outside = (_minus(_total(c), b) for c, b in zip((counters, outer), all_before, strict=True))
            parts = nodes * rounds
            wire = _wire(title, payload, by_node)
            wire = wire._replace(
                tls=Bytes(*(part / parts for part in _minus(outside, inside))),
                connections=(sum(one.connections for one in outer) - connections) / parts,
            )
            apps.append(wire)
    return WireFigures(nodes, rounds, apps, idle, poll)


def _kind(request: Request) -> str:
    return request.path.rpartition("/")[2]


def _wait_for_polls(counters: list[ByteCounter]) -> None:
    """Wait until every node has asked for messages."""
    patience = time.monotonic() + flower_processes.START_SECONDS
    while not all(any(_kind(request) == PULL for request in counter.requests()) for counter in counters):
        if time.monotonic() > patience:
            raise WireBenchError(f"not every SuperNode asks for messages after {flower_processes.START_SECONDS:.0f} s")
        time.sleep(0.1)


def _watch_idle(counters: list[ByteCounter], seconds: float) -> tuple[Bytes, Bytes]:
    """Return the bytes a second of a waiting node, heartbeats included, and the bytes of one poll."""
    before = [len(counter.requests()) for counter in counters]
    time.sleep(seconds)
    seen = [request for counter, b in zip(counters, before, strict=True) for request in counter.requests()[b:]]
    polls = [request for request in seen if _kind(request) == PULL]
    if not polls:
        raise WireBenchError(f"no node asked for messages within {seconds:.0f} s; nodes do so every 3 s")
    return _mean(seen, len(counters) * seconds), _mean(polls, len(polls))


def _payload(folder: RunFolder, nodes: int, rounds: int) -> Bytes:
    """Return the payload of a client and round, the first left out, from the run's ledger."""
    ledger = Ledger.load(folder.ledger)

    def mean(direction: Direction) -> float:
        kept = [ledger.total(direction, kind, round) for kind in PAYLOADS for round in range(2, rounds + 1)]
        return sum(kept) / (nodes * (rounds - 1))

    return Bytes(mean("up"), mean("down"))


def _wire(name: str, payload: Bytes, by_node: list[list[WireRound]]) -> Wire:
    later = [one for found in by_node for one in found[1:]]
    requests = [request for one in later for request in one.requests]
    waiting = [request for one in later for request in one.waiting]
    first = [request for found in by_node for request in (*found[0].requests, *found[0].waiting)]
    counts = Counter(map(_kind, requests))
    counts["polls and heartbeats in vain"] = len(waiting)
    return Wire(
        name,
        payload,
        _mean(requests, len(later)),
        _mean(waiting, len(later)),
        _mean(first, len(by_node)),
        {kind: count / len(later) for kind, count in counts.items()},
    )


def _total(counters: list[ByteCounter]) -> Bytes:
    return _mean([request for counter in counters for request in counter.requests()], 1)


def _minus(one: Bytes, other: Bytes) -> Bytes:
    return Bytes(one.up - other.up, one.down - other.down)


def _mean(requests: list[Request], parts: float) -> Bytes:
    return Bytes(sum(request.up for request in requests) / parts, sum(request.down for request in requests) / parts)


COLUMNS = (
    "bytes of a client and round",
    "payload",
    "requests beside it",
    "waiting",
    "all beside it",
    "first round",
    "TLS on top",
)


def rows(figures: WireFigures) -> list[tuple[str, ...]]:
    """Return the table that the command prints."""
    lines = []
    for app in figures.apps:
        for direction in ("up", "down"):
            payload, requests, waiting, beside, first, tls = (
                getattr(part, direction)
                for part in (app.payload, app.requests, app.waiting, app.beside, app.first, app.tls)
            )
            cells = (payload, requests - payload, waiting, beside, first, tls)
            lines.append((f"{app.name}, {direction}", *(f"{cell:,.0f}" for cell in cells)))
    return lines


def facts(figures: WireFigures) -> list[tuple[str, str]]:
    """Return the lines that the command prints below the table."""
    poll, idle = figures.poll, figures.idle
    lines = [
        (f"requests of a round, {app.name}", ", ".join(f"{count:.1f} {kind}" for kind, count in app.counts.items()))
        for app in figures.apps
    ]
    return [
        *lines,
        *((f"connections of a round, {app.name}", f"{app.connections:.1f}") for app in figures.apps),
        ("one poll in vain", f"{poll.up:,.0f} bytes up, {poll.down:,.0f} down"),
        ("a waiting node", f"{idle.up:,.0f} bytes a second up, {idle.down:,.0f} down"),
    ]


def as_json(figures: WireFigures) -> dict[str, Any]:
    """Return the figures as JSON has them."""
    apps = [
        {
            **{name: part._asdict() if isinstance(part, Bytes) else part for name, part in app._asdict().items()},
            "beside": app.beside._asdict(),
        }
        for app in figures.apps
    ]
    return {**figures._asdict(), "apps": apps, "idle": figures.idle._asdict(), "poll": figures.poll._asdict()}
