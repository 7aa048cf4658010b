"""Replay: the time that a finished run would have taken on another network, from its bytes alone.

from fedpress.simulations.conditions.network import PROFILES, Network, NetworkSettings
from fedpress.simulations.runs import replay

for name in PROFILES:
    print(name, replay.virtual_seconds("runs/digits", Network(NetworkSettings(profile=name), seed=1))[-1])
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from fedpress.compression.errors import FedpressError
from fedpress.compression.ledger import Entry, Ledger
from fedpress.simulations.conditions.network import Network
from fedpress.simulations.results.run_folder import RunFolder, RunFolderError
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario as scenarios

Exchange = tuple[int, int]
"""Bytes of an order, and of the reply to it."""


class ReplayError(FedpressError):
    """A run cannot be replayed."""


def virtual_seconds(run: Path | str, network: Network | None = None) -> list[float]:
    """Return the virtual time, in seconds, at the end of each round of a run with synchronous rounds.

    Law: with the run's own network, where it has no over-selection, deadline, drop-out or faults, these are the
    `virtual_seconds` of its rounds, up to rounding.

    A round ends with the `clients_per_round`-th reply: without over-selection, that of the slowest client. The server's
    time and deadlines are neglected; a client whose reply never came is left out.

    Args:
        run: Path of the run folder.
        network: The other network; None: the run's own.

    Raises:
        RunFolderError: It is no run folder, or its ledger is absent or damaged.
        ReplayError: Its schedule is buffered, or there is no network.
    """
    folder = RunFolder.open(run)
    results = folder.load_results()
    scenario = scenarios.load(folder.scenario)
    workload = Workload(scenario, folder.path)
    network = network or workload.network
    if network is None:
        raise ReplayError(f"{folder.path}: its scenario has no network; give the one to replay it on")
    if scenario.sampling.schedule == "buffered":
        raise ReplayError(f"{folder.path}: its schedule is buffered; only synchronous rounds can be replayed")
    try:
        rows = Ledger.load(folder.ledger).rows
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder.path}: {error}") from error
    by_round = exchanges(rows)
    now, ends = 0.0, []
    for result in results.rounds:
        times = []
        for node, messages in by_round.get(result.round, {}).items():
            client, time = node - 1, 0.0
            for down, up in messages:
                time += network.seconds(
                    client=client,
                    round=result.round,
                    down_bytes=down,
                    examples=workload.examples_a_round(client),
                    up_bytes=up,
                    start=now + time,
                )
            if math.isfinite(time):  # else it drops out here
                times.append(time)
        now += max(sorted(times)[: scenario.sampling.clients_per_round], default=0.0)
        ends.append(now)
    return ends


def exchanges(rows: Iterable[Entry]) -> dict[int, dict[int, list[Exchange]]]:
    """Return the orders of training that were answered, by round and node, in their order.

    Consecutive rows of one direction are one message. A node has two exchanges in a round in which it could not use a
    delta and was sent the whole model. Downloads of students and evaluation take no virtual time, and are left out.
    """
    by_round: dict[int, dict[int, list[Exchange]]] = {}
    last: dict[tuple[int, int], tuple[str, int]] = {}  # by round and node: direction of the last message, its bytes
    for entry in rows:
        place = entry.round, entry.node
        way, size = last.get(place, ("none", 0))
        if entry.kind in ("bundle", "evaluate"):
            if way == "up":  # else the reply to its order is late, and still to come
                last[place] = "none", 0
        elif entry.direction == "down":
            last[place] = "down", entry.bytes + (size if way == "down" else 0)
        elif way != "none":
            messages = by_round.setdefault(entry.round, {}).setdefault(entry.node, [])
            if way == "down":
                messages.append((size, 0))
            messages[-1] = messages[-1][0], messages[-1][1] + entry.bytes
            last[place] = "up", 0
    for (round, node), (way, _) in last.items():
        if way == "down":  # ordered again, without a reply
            by_round.get(round, {}).pop(node, None)
    return by_round
