"""Time in a simulation: each client's link and speed, on a virtual clock that deadlines follow.

Nothing here sleeps. An engine asks how long a client would need and moves the clock; a round of slow clients takes no
longer to simulate than one of fast clients, and takes the same (virtual) time on every machine.

>>> network = Network(
...     up_mbit=8.0, down_mbit=80.0, examples_per_second=100.0, latency=0.0, spread=0.0, dropout=0.0, seed=1
... )
>>> network.seconds(client=0, round=1, down_bytes=1_000_000, examples=50, up_bytes=100_000)
0.7
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedpress.compression import seeds


class VirtualClock:
    """Seconds since the start of a run; only ever moved forward, and only by `advance_to`."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Virtual seconds since the start of the run."""
        return self._now

    def advance_to(self, time: float) -> None:
        """Move the clock to `time`.

        Raises:
            ValueError: `time` is in the past, or not a finite number.
        """
        if not (math.isfinite(time) and time >= self._now):
            raise ValueError(f"the clock stands at {self._now} s and cannot go to {time} s, only forward")
        self._now = time


class Link(NamedTuple):
    """What one client has: bits a second each way, and how fast it trains."""

    up_mbit: float  # 10^6 bits a second
    down_mbit: float
    examples_per_second: float


class Network:
    """Link and speed of every client, drawn from a seed; the figures given are medians over the clients.

    Args:
        up_mbit: Upload of the median client, 10^6 bits a second.
        down_mbit: Its download.
        examples_per_second: Training speed of the median client.
        latency: Seconds that a message takes besides its bytes, each way.
        spread: Standard deviation of the logarithm of each client's three figures, drawn independently; 0 makes all
            clients alike, 0.5 puts two thirds of them between 0.6 and 1.6 times the median.
        dropout: Probability that a client does not answer in a round, drawn for each client and round.
        seed: Draws all of it.
    """

    def __init__(
        self,
        *,
        up_mbit: float,
        down_mbit: float,
        examples_per_second: float,
        latency: float,
        spread: float,
        dropout: float,
        seed: int,
    ) -> None:
        self._median = Link(up_mbit, down_mbit, examples_per_second)
        self._latency = latency
        self._spread = spread
        self._dropout = dropout
        self._seed = seed

    def link(self, client: int) -> Link:
        """The link of a client, the same whenever it is asked for."""
        draw = np.random.default_rng(seeds.derive("network", self._seed, "link", client))
        factors = np.exp(self._spread * draw.standard_normal(3))
        return Link(*(float(median * factor) for median, factor in zip(self._median, factors, strict=True)))

    def answers(self, client: int, round: int) -> bool:
        """Whether the client answers in this round; False with probability `dropout`."""
        draw = np.random.default_rng(seeds.derive("network", self._seed, "dropout", client, round))
        return bool(draw.random() >= self._dropout)

    def seconds(self, *, client: int, round: int, down_bytes: int, examples: int, up_bytes: int) -> float:
        """Virtual seconds from sending an order to having the whole reply; infinite when the client does not answer.

        Args:
            client: Index of the client.
            round: Round of the order.
            down_bytes: Size of the order's message.
            examples: Examples that the client trains on, counted as often as it sees them.
            up_bytes: Size of the reply's message.
        """
        if not self.answers(client, round):
            return math.inf
        link = self.link(client)
        down, up = 8e-6 * down_bytes / link.down_mbit, 8e-6 * up_bytes / link.up_mbit
        return 2 * self._latency + down + examples / link.examples_per_second + up
