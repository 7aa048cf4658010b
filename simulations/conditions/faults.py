"""Faults that a simulation makes on purpose: lost and damaged replies, clients that crash, forget or diverge.

Each fault strikes with its own chance, drawn for every client and round from the seed: the same faults whatever the
number of workers, and again after a run was resumed. What is struck goes through the same code as in a real
deployment: a lost reply is never pulled, a damaged payload is decoded, a client that forgets finds no state.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from flwr.app import Message

from fedpress.compression import seeds
from fedpress.compression.messages import orders

CRASHES, FORGETS, DIVERGES, LOST, DOUBLED, LATE, DAMAGED = KINDS = (
    "crashes", "forgets", "diverges", "lost", "doubled", "late", "damaged"
)  # fmt: skip


class Chances(NamedTuple):
    """How often each fault strikes, as a chance for each client and round."""

    crashes: float = 0.0  # the client dies while it works: no reply, and its state stays as it was
    forgets: float = 0.0  # it starts without the state that it had kept
    diverges: float = 0.0  # its training ends in NaN
    lost: float = 0.0  # its reply never arrives, though its state says that it was sent
    doubled: float = 0.0  # its reply arrives twice
    late: float = 0.0  # its reply takes `late_seconds` more
    damaged: float = 0.0  # a bit of its payload flips on the way
    late_seconds: float = 60.0


class Faults:
    """Draws the faults and counts them.

    Args:
        chances: of each kind.
        seed: draws all of them.
    """

    def __init__(self, chances: Chances, seed: int) -> None:
        self.chances = chances
        self.struck: Counter[str] = Counter()
        self._seed = seed

    def of(self, client: int, round: int) -> frozenset[str]:
        """Return the faults that strike a client in a round."""
        drawn = np.random.default_rng(seeds.derive("faults", self._seed, client, round)).random(len(KINDS))
        return frozenset(kind for kind, one in zip(KINDS, drawn, strict=True) if one < getattr(self.chances, kind))

    def damaged(self, reply: Message, client: int, round: int) -> Message:
        """Flip a bit of the update in a reply; one that carries none stays as it is."""
        answer = None if reply.has_error() else reply.content.config_records.get(orders.ANSWER)
        update = answer.get("update") if answer else None
        if answer is not None and isinstance(update, bytes) and update:
            bit = int(
                np.random.default_rng(seeds.derive("damage", self._seed, client, round)).integers(8 * len(update))
            )
            spoiled = bytearray(update)
            spoiled[bit // 8] ^= 1 << bit % 8
            answer["update"] = bytes(spoiled)
        return reply
