"""`fedpress bench wire`: bytes on the real wire, between Flower's own processes.

A SuperLink and SuperNodes run on this machine; between each node and the SuperLink a forwarder counts the bytes of
every request (`byte_counter`). On the same processes run fedpress's app, on a scenario, and a plain Flower app with
FedAvg and 1 kB each way. Counted are the bytes of the TCP streams: with HTTP's headers, without those of TCP and IP.

Nodes speak TLS, as in a real deployment. One forwarder counts that; the next takes it off and counts the same requests
by their kinds. So what TLS adds is a difference of two counts of the same run.

A node asks for messages every 3 s while it has none to work on. How many of these polls fall into a round depends on
how long the other nodes and the server take, so they stand apart from the requests that a round needs.
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
"""Kinds of the ledger that count as payload; the rest of a message counts as beside it."""
ROUND_SECONDS = 120.0
"""How long a round may take before the run counts as stuck."""


class WireBenchError(FedpressError):
    """A run did not do what was asked for, so its bytes mean nothing."""


class Bytes(NamedTuple):
    """Bytes to the server and from it; of one client and round where a `Wire` holds them."""

    up: float = 0.0
    down: float = 0.0


class Wire(NamedTuple):
    """What an app sends: means over nodes and rounds, the first round left out.

    Attributes:
        name: the app.
        payload: the encoded update, or the model's bytes.
        requests: everything but the polls that brought nothing, and heartbeats.
        waiting: those.
        first: all bytes of the first round, with what a node asks for once in a run.
        counts: requests of a round by what they ask for.
        tls: what TLS adds to all of these; mean over all rounds, the first included.
        connections: of a node and round; each begins with a TLS handshake.
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
        """All that a round sends beside the payload."""
        return Bytes(*(r + w - p for p, r, w in zip(self.payload, self.requests, self.waiting, strict=True)))


class Figures(NamedTuple):
    """What was measured.

    Attributes:
        nodes: SuperNodes.
        rounds: of each run.
        apps: fedpress, then the plain app.
        idle: bytes a second of a node that waits.
        poll: bytes of one poll that brings nothing.
    """

    nodes: int
    rounds: int
    apps: list[Wire]
    idle: Bytes
    poll: Bytes


class Round(NamedTuple):
    """The requests of one node from the end of its last answer to the end of this one."""

    requests: list[Request]
    waiting: list[Request]


def rounds_of(requests: Iterable[Request]) -> list[Round]:
    """Cut a node's requests into rounds; what follows its last answer is left out.

    A round ends with the last of the requests that push the answer. A poll has brought nothing unless the next request
    that is no heartbeat is something else than a poll.
    """
    found: list[Round] = []
    own, waiting, poll, pushing = list[Request](), list[Request](), None, False
    for request in requests:
        kind = _kind(request)
        if kind == HEARTBEAT:
            waiting.append(request)
            continue
        if pushing and kind not in PUSHES:
            found.append(Round(own, waiting))
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
        found.append(Round(own, waiting))
    return found


def run(scenario: Scenario, idle_seconds: float, tell: Callable[[str], None] = lambda _: None) -> Figures:
    """Run both apps and count.

    Args:
        scenario: what fedpress runs; each of its clients is a node.
        idle_seconds: how long the nodes are watched before the first run.
        tell: is told what goes on.

    Raises:
        DeploymentError: Flower's processes do not start, or one of them ends.
        WireBenchError: a node did not take part in every round.
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
    return Figures(nodes, rounds, apps, idle, poll)


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
    """Return bytes a second of a waiting node, heartbeats included, and those of one poll."""
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


def _wire(name: str, payload: Bytes, by_node: list[list[Round]]) -> Wire:
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


def rows(figures: Figures) -> list[tuple[str, ...]]:
    """Return the table that the command prints."""
    found = []
    for app in figures.apps:
        for direction in ("up", "down"):
            payload, requests, waiting, beside, first, tls = (
                getattr(part, direction)
                for part in (app.payload, app.requests, app.waiting, app.beside, app.first, app.tls)
            )
            cells = (payload, requests - payload, waiting, beside, first, tls)
            found.append((f"{app.name}, {direction}", *(f"{cell:,.0f}" for cell in cells)))
    return found


def facts(figures: Figures) -> list[tuple[str, str]]:
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


def as_json(figures: Figures) -> dict[str, Any]:
    """Return the figures as JSON has them."""
    apps = [
        {
            **{name: part._asdict() if isinstance(part, Bytes) else part for name, part in app._asdict().items()},
            "beside": app.beside._asdict(),
        }
        for app in figures.apps
    ]
    return {**figures._asdict(), "apps": apps, "idle": figures.idle._asdict(), "poll": figures.poll._asdict()}
