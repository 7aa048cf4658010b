"""Faults that a simulation makes on purpose: lost and damaged replies, clients that crash, forget or diverge.

Each fault strikes with its own chance, drawn for every client and round from the seed: the same faults whatever the
number of workers, and again after a run was resumed. What is struck goes through the same code as in a real
deployment: a lost reply is never pulled, a damaged payload is decoded, a client that forgets finds no state.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import numpy as np

from fedpress.compression import seeds
from fedpress.compression.settings import STRICT, Field, Positive, Settings, dataclass

if TYPE_CHECKING:
    from flwr.app import Message

CRASHES, FORGETS, DIVERGES, LOST, DOUBLED, LATE, DAMAGED = KINDS = (
    "crashes", "forgets", "diverges", "lost", "doubled", "late", "damaged"
)  # fmt: skip

Chance = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class Chances(Settings):
    """What goes wrong on purpose: a chance of each fault for every client and round."""

    crashes: Chance = Field(default=0.0, description="A client dies at work; its state stays as it was.")
    forgets: Chance = Field(default=0.0, description="A client starts without the state that it had kept.")
    diverges: Chance = Field(default=0.0, description="Its training ends in NaN.")
    lost: Chance = Field(default=0.0, description="Its reply never arrives, though its state says that it was sent.")
    doubled: Chance = Field(default=0.0, description="Its reply arrives twice.")
    late: Chance = Field(default=0.0, description="Its reply takes late_seconds more.")
    damaged: Chance = Field(default=0.0, description="A bit of its update flips on the way.")
    late_seconds: Positive = Field(default=60.0, description="Virtual seconds.")


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
        from fedpress.compression.messages import orders  # with flwr, which a scenario is read without

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
