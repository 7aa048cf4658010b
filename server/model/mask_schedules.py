"""Mask schedules: which weights a federated model has, from round to round.

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
    """What clients are asked to vote on: the parts of each tensor's weights that they drop and grow."""

    drop: float = 0.0
    grow: float = 0.0


class Ballot:
    """The votes of a round, weighted by the clients' examples.

    Args:
        layout: of the model that was voted on, with its mask.
        request: what clients were asked.
    """

    def __init__(self, layout: Layout, request: VoteRequest) -> None:
        self.layout = layout
        self.weight = 0.0
        self.votes = np.zeros(layout.full.size)  # of each entry of the vector without a mask, to be there
        self._most = np.diff(layout.offsets) + dynamic_sparsity.changes(layout, request.grow)
        self._drops = dynamic_sparsity.changes(layout, request.drop)

    def read(self, vote: bytes) -> Positions:
        """Return the entries that a vote asks for.

        Raises:
            PayloadError: it cannot be read, or drops or grows more of a tensor than was asked.
        """
        mask = self.layout.mask
        assert mask is not None
        wanted = position_set.unpack(vote, mask.size, mask.positions)
        whole = self.layout.full.offsets
        total = np.diff(np.searchsorted(wanted, whole))
        kept = np.diff(np.searchsorted(wanted[mask.flags[wanted]], whole))
        if (kept + self._drops < np.diff(self.layout.offsets)).any() or (total > self._most).any():
            raise errors.InvalidPositions("a vote drops or grows more weights than it was asked to")
        return wanted

    def add(self, wanted: Positions, weight: float) -> None:
        """Count a vote that was read."""
        self.votes[wanted] += weight
        self.weight += weight


class MaskSchedule(Protocol):
    """Says which mask a model has. Schedules keep nothing: the same round and model give the same mask."""

    @property
    def first(self) -> Mask | None:
        """The mask from the first round on; None: all weights are there."""

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Return what this round's clients vote on; None: nothing."""

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Return the mask after a round's step; None: it stays.

        Args:
            server_round: from 1.
            master: after the step, float32, shape (n,).
            layout: of the master, with the mask as it was.
            ballot: the votes, where some were asked for.
        """


class Fixed(NamedTuple):
    """The mask stays as it is: a model that was pruned at initialization."""

    first: Mask | None

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Nobody votes."""
        return None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Nothing changes."""
        return None


@dataclass(frozen=True, config=STRICT)
class Sparsity(MaskSize):
    """Which weights the model in training has; clients train, send and get those only.

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
        _ = self.initial  # refuses what does not go together

    @property
    def initial(self) -> AtInitialization | None:
        """How the first mask is made; None: all weights are there at first."""
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
            first: Mask that the method found; None: all weights are there.
            end: Round after which the mask stays.
        """
        if first is None:
            return Gradual(self, end)
        if not self.changes:
            return Fixed(first)
        return FedDST(first, self, end) if self.method == "feddst" else RigL(first, self, end)

    def exchanged(self, server_round: int, end: int) -> float:
        """Return the part of each tensor's weights that is exchanged in a round; 0: nothing.

        Args:
            server_round: From 1.
            end: Round in which the part has fallen to nothing.
        """
        if server_round % self.every:
            return 0.0
        return dynamic_sparsity.cosine_fraction(server_round, end, self.drop_fraction)


class Gradual(NamedTuple):
    """Pruning as it goes: weights of the smallest magnitude are removed every few rounds, and never come back."""

    sparsity: Sparsity
    end: int  # round after which the density is reached

    @property
    def first(self) -> Mask | None:
        """All weights are there."""
        return None

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Nobody votes."""
        return None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Return the mask of the largest weights, where one is due."""
        begin = self.sparsity.begin
        due = server_round >= begin and (server_round - begin) % self.sparsity.every == 0
        if not (due or server_round == self.end):
            return None
        density = dynamic_sparsity.cubic_density(server_round, begin, self.end, self.sparsity.density)
        if density >= dynamic_sparsity.density(layout.mask, layout):
            return None
        magnitudes = np.full(layout.full.size, -1.0, np.float32)  # what is gone comes after every weight that is there
        magnitudes[layout.whole(np.arange(layout.size))] = np.abs(master)
        mask = dynamic_sparsity.ranked(magnitudes, layout, density, self.sparsity.scope or "layer")
        return mask if layout.mask is None else Mask.of(mask.flags & layout.mask.flags)


class FedDST(NamedTuple):
    """Clients vote on the whole mask: each drops its smallest weights and grows where its own gradient is largest.

    A tensor keeps as many weights as it had: those with most votes, by examples; among equals those with the larger
    master weights, so that what is there stays. (Bibikar et al. send grown weights' values along and rank by them; here
    a grown weight begins at zero for everybody, in the next epoch, so that every update is of one epoch's mask.)
    """

    first: Mask
    sparsity: Sparsity
    end: int  # round from which on the mask stays

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Return the part that each client drops and grows, in a round of exchange."""
        part = self.sparsity.exchanged(server_round, self.end)
        return VoteRequest(part, part) if part else None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Merge the votes."""
        if ballot is None or not ballot.weight:
            return None
        assert layout.mask is not None
        ranks = np.zeros(layout.full.size)  # 0 for what is not there, then by magnitude up to below 1
        ranks[layout.mask.positions[np.argsort(np.abs(master), kind="stable")]] = (
            np.arange(1, layout.size + 1) / (layout.size + 1)
        )  # fmt: skip
        # Votes are sums of whole numbers of examples, or nearly; shares of 2^-20 are told apart, ranks below that.
        shares = np.rint(ballot.votes / ballot.weight * 2**20)
        return dynamic_sparsity.by_counts(shares + ranks, layout, np.diff(layout.offsets).tolist())


class RigL(NamedTuple):
    """The server drops the smallest weights of the master; clients vote on what grows in their place.

    RigL with the mean of the clients' gradients replaced by their votes: which entries have the largest gradient is all
    that is sent of it.
    """

    first: Mask
    sparsity: Sparsity
    end: int  # round from which on the mask stays

    def vote_request(self, server_round: int) -> VoteRequest | None:
        """Return the part that each client grows, in a round of exchange."""
        part = self.sparsity.exchanged(server_round, self.end)
        return VoteRequest(0.0, part) if part else None

    def after(self, server_round: int, master: Vector, layout: Layout, ballot: Ballot | None) -> Mask | None:
        """Drop and grow; where clients vote for too few, fewer are exchanged."""
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
