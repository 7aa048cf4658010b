"""Fault injection: lost and damaged replies, clients that crash, forget or diverge.

Each fault has a probability of its own and is drawn from the seed for every client and round: the same faults for any
number of workers, and again after a run was resumed. A client or reply with a fault goes through the same code as in a
real deployment: a lost reply is never pulled, a damaged payload is decoded, a client that forgets finds no state.
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
    """Injected faults of a run, drawn from a seed and counted.

    Args:
        chances: Probability of each kind of fault.
        seed: Of the draws.

    Attributes:
        struck: Number of faults so far, by kind.
    """

    def __init__(self, chances: Chances, seed: int) -> None:
        self.chances = chances
        self.struck: Counter[str] = Counter()
        self._seed = seed

    def of(self, client: int, round: int) -> frozenset[str]:
        """Return the kinds of faults that a client has in a round.

        Args:
            client: Index of the client, from 0.
            round: Number of the round, from 1.
        """
        drawn = np.random.default_rng(seeds.derive("faults", self._seed, client, round)).random(len(KINDS))
        return frozenset(
            kind for kind, uniform in zip(KINDS, drawn, strict=True) if uniform < getattr(self.chances, kind)
        )

    def damaged(self, reply: Message, client: int, round: int) -> Message:
        """Flip a bit of the update in a reply, in place; a reply without an update stays as it is.

        Args:
            reply: A client's reply.
            client: Index of the client, from 0.
            round: Number of the round, from 1.
        """
        from fedpress.compression.messages import orders  # imports flwr, which is not needed to read a scenario

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
