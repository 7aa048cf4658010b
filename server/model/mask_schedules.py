"""Mask schedules: the mask of a federated model, from round to round.

S. Bibikar, H. Vikalo, Z. Wang, X. Chen, "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet
    Learning Better", AAAI 2022, algorithms 1 and 2: clients drop and grow on their own data, the server merges.
U. Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020: drop by magnitude, grow by gradient.
M. Zhu, S. Gupta, "To prune, or not to prune", ICLR workshop 2018: pruning as training goes, on a cubic schedule.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from fedpress.compression import errors
from fedpress.compression.models.pruning import dynamic_sparsity
from fedpress.compression.models.pruning.dynamic_sparsity import AtInitialization, MaskSize, Method
from fedpress.compression.settings import ADVANCED, STRICT, Field, Fraction, dataclass
from fedpress.compression.tensors.layout import Layout, Vector
from fedpress.compression.tensors.mask import Mask, Positions
from fedpress.compression.wire import position_set


class VoteRequest(NamedTuple):
    """Vote that clients are asked for: fractions of each tensor's weights to drop and to grow."""

    drop: float = 0.0
    grow: float = 0.0


class Ballot:
    """The votes of a round, weighted by the clients' examples.

    Args:
        layout: layout of the model that clients vote on, within its mask.
        request: the vote that clients were asked for.
    """

    def __init__(self, layout: Layout, request: VoteRequest) -> None:
        self.layout = layout
        self.weight = 0.0
        self.votes = np.zeros(layout.full.size)  # for each entry of the vector without a mask to be in the next one
        self._most = np.diff(layout.offsets) + dynamic_sparsity.changes(layout, request.grow)
        self._drops = dynamic_sparsity.changes(layout, request.drop)

    def read(self, vote: bytes) -> Positions:
        """Return the entries of the mask that a client votes for.

        Raises:
            PayloadError: the vote cannot be read, or drops or grows more of a tensor than was asked for.
        """
        mask = self.layout.mask
        assert mask is not None
        wanted = position_set.unpack(vote, mask.size, mask.positions)
        whole = self.layout.full.offsets
        total = np.diff(np.searchsorted(wanted, whole))
        kept = np.diff(np.searchsorted(wanted[mask.flags[wanted]], whole))
        if (kept + self._drops < np.diff(self.layout.offsets)).any() or (total > self._most).any():
            raise errors.InvalidPositions("a vote drops or grows more weights of a tensor than the order asked for")
        return wanted

    def add(self, wanted: Positions, weight: float) -> None:
        """Count a vote.

        Args:
            wanted: entries that it asks for (`read`).
            weight: weight of the client.
        """
        self.votes[wanted] += weight
        self.weight += weight


class MaskSchedule(Protocol):
    """Mask of a model by round.

    Law: a schedule has no state: the same round, master and ballot give the same mask.
    """

    @property
    def first(self) -> Mask | None:
        """Mask of the first round; None: the model has all weights."""

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Return the vote that this round's clients are asked for; None: there is none."""

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Return the mask after a round's step; None: it stays.

        Args:
            server_round: number of the round, from 1.
            master: parameters after the step, float32 (n,).
            layout: layout of the master, within the present mask.
            ballot: votes of the round; None: none were asked for.
        """


class Fixed(NamedTuple):
    """A mask that stays: that of a model pruned at initialization, or none."""

    first: Mask | None

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """None: there are no votes."""
        return None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Keep the mask, whatever the arguments of `MaskSchedule.after`."""
        return None


@dataclass(frozen=True, config=STRICT)
class Sparsity(MaskSize):
    """Sparse training: clients train, send and get the weights within a mask only.

    Raises:
        ValueError: A value is out of range, or of another method.
    """

    method: Literal["snip", "grasp", "synflow", "erk", "magnitude", "gradual", "feddst", "rigl"] = Field(
        default="snip",
        description="snip, grasp, synflow, erk (at random) or magnitude: a mask before round 1 that stays; gradual:"
        " pruned by magnitude as training goes; feddst, rigl: the mask moves, clients vote on it.",
    )
    initial_method: Method = Field(
        default="erk", json_schema_extra=ADVANCED, description="For feddst and rigl: how their first mask is made."
    )
    begin: int = Field(
        default=0,
        ge=0,
        json_schema_extra=ADVANCED,
        description="For gradual: round in which its cubic schedule starts; the first weights go `every` rounds later.",
    )
    end: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra=ADVANCED,
        description="For gradual: round after which the density is reached; for feddst and rigl: round from which"
        " on the mask stays. null: two thirds of the rounds.",
    )
    every: int = Field(default=5, ge=1, description="For gradual, feddst and rigl: rounds from one change to the next.")
    drop_fraction: Fraction = Field(
        default=0.3,
        json_schema_extra=ADVANCED,
        description="For feddst and rigl: share of a layer's weights that is exchanged, at first; falls by a cosine.",
    )

    def __post_init__(self) -> None:
        takes = {"gradual": {"begin", "end", "every"}}
        taken = takes.get(self.method, {"initial_method", "end", "every", "drop_fraction"} if self.changes else set())
        for key in ("initial_method", "begin", "end", "every", "drop_fraction"):
            if key not in taken and self.changed(key):
                raise ValueError(f"{key} has no meaning for method {self.method}")
        _ = self.initial  # raises where method, density and scope do not go together

    @property
    def initial(self) -> AtInitialization | None:
        """Settings of the first mask; None: the model has all weights at first."""
        if self.method == "gradual":
            return None
        votes = self.method in ("feddst", "rigl")
        method: Any = self.initial_method if votes else self.method
        return AtInitialization(method, density=self.density, scope=self.scope or ("erk" if votes else None))

    @property
    def changes(self) -> bool:
        """Whether the mask changes during the rounds."""
        return self.method in ("gradual", "feddst", "rigl")

    def schedule(self, first: Mask | None, end: int) -> MaskSchedule:
        """Return the schedule of the masks.

        Args:
            first: First mask, made by the method; None: the model has all weights.
            end: Round after which the mask stays.
        """
        if first is None:
            return Gradual(self, end)
        if not self.changes:
            return Fixed(first)
        return FedDST(first, self, end) if self.method == "feddst" else RigL(first, self, end)

    def exchanged(self, server_round: int, end: int) -> float:
        """Return the fraction of each tensor's weights that is exchanged in a round; 0: none.

        Args:
            server_round: Number of the round, from 1.
            end: Round in which the fraction has fallen to 0.
        """
        if server_round % self.every:
            return 0.0
        return dynamic_sparsity.cosine_fraction(server_round, end, self.drop_fraction)


class Gradual(NamedTuple):
    """Gradual magnitude pruning: the smallest weights are removed every few rounds, and never come back."""

    sparsity: Sparsity
    end: int  # round after which the density is reached

    @property
    def first(self) -> Mask | None:
        """None: the model has all weights at first."""
        return None

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """None: there are no votes."""
        return None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Return the mask of the largest weights, where one is due; see `MaskSchedule.after`."""
        begin = self.sparsity.begin
        due = server_round >= begin and (server_round - begin) % self.sparsity.every == 0
        if not (due or server_round == self.end):
            return None
        density = dynamic_sparsity.cubic_density(server_round, begin, self.end, self.sparsity.density)
        if density >= dynamic_sparsity.density(layout.mask, layout):
            return None
        magnitudes = np.full(layout.full.size, -1.0, np.float32)  # removed weights rank last
        magnitudes[layout.whole(np.arange(layout.size))] = np.abs(master)
        mask = dynamic_sparsity.ranked(magnitudes, layout, density, self.sparsity.scope or "layer")
        return mask if layout.mask is None else Mask.of(mask.flags & layout.mask.flags)


class FedDST(NamedTuple):
    """Clients vote on the whole mask: each drops its smallest weights and grows where its own gradient is largest.

    A tensor keeps its number of weights: those with most votes, by examples; among equals those with the larger master
    weights, so that present weights stay. (Bibikar et al. also send the values of grown weights, and rank by them; here
    a grown weight begins at zero for all clients, with the next mask, so that every update is within one mask.)
    """

    first: Mask
    sparsity: Sparsity
    end: int  # round from which on the mask stays

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Return the fraction that each client drops and grows, in a round of exchange."""
        part = self.sparsity.exchanged(server_round, self.end)
        return VoteRequest(part, part) if part else None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Return the mask with most votes; see `MaskSchedule.after`."""
        if ballot is None or not ballot.weight:
            return None
        assert layout.mask is not None
        ranks = np.zeros(layout.full.size)  # 0 for absent weights, then by magnitude up to below 1
        ranks[layout.mask.positions[np.argsort(np.abs(master), kind="stable")]] = (
            np.arange(1, layout.size + 1) / (layout.size + 1)
        )  # fmt: skip
        # Shares are compared in units of 2^-20, above rounding errors of the sum; ranks, below 1, break ties.
        shares = np.rint(ballot.votes / ballot.weight * 2**20)
        return dynamic_sparsity.by_counts(shares + ranks, layout, np.diff(layout.offsets).tolist())


class RigL(NamedTuple):
    """The server drops the smallest weights of the master; clients vote on what grows in their place.

    RigL with the mean of the clients' gradients replaced by their votes: of its gradient a client sends the places of
    the largest entries only.
    """

    first: Mask
    sparsity: Sparsity
    end: int  # round from which on the mask stays

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Return the fraction that each client grows, in a round of exchange."""
        part = self.sparsity.exchanged(server_round, self.end)
        return VoteRequest(0.0, part) if part else None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Return the mask after the exchange, of fewer weights where the votes are few; see `MaskSchedule.after`."""
        if ballot is None or not ballot.weight:
            return None
        assert layout.mask is not None
        part = self.sparsity.exchanged(server_round, self.end)
        votes = np.where(layout.mask.flags, 0.0, ballot.votes).astype(np.float32)
        flags = layout.mask.flags.copy()
        offsets, whole = layout.offsets.tolist(), layout.full.offsets.tolist()
        for index, most in enumerate(dynamic_sparsity.changes(layout, part)):
            inside, tensor = slice(offsets[index], offsets[index + 1]), slice(whole[index], whole[index + 1])
            k = min(most, int(np.count_nonzero(votes[tensor])))
            smallest = dynamic_sparsity.top(-np.abs(master[inside]), k)
            flags[layout.mask.positions[inside][smallest]] = False
            flags[tensor.start + dynamic_sparsity.top(votes[tensor], k)] = True
        return Mask.of(flags)
