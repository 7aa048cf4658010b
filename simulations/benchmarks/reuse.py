"""`fedpress bench reuse`: what positions of a real run would cost, coded against supports that both sides hold.

Nothing is run again: the payloads that `fedpress simulate --keep-payloads` kept are read, and their positions are
written once more, with each reference. Three references are tried:

* own: the positions of this client's last accepted payload;
* union: all positions that the payloads of the round before touched;
* top: as many of them as this payload has, those where the sum of those payloads is largest.

A reference is used where it is shorter, as by `positions.pack`. Besides:

* correlated: not the payload's own positions, but as many as `selection.correlated` with 10 % fresh ones would send
  against `own`. A payload does not say which those are, so they are made up: those of `own` that the payload has, then
  others of `own` at random, and for the fresh ones places that only the payload has. Bytes hardly depend on which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.encoders.top_k import largest
from fedpress.compression.errors import FedpressError, ReferenceMismatch
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads, positions
from fedpress.simulations.results.run_folder import RunFolder
from fedpress.simulations.runs.workload import Workload
from fedpress.simulations.scenario import scenario as scenarios

REFERENCES = ("own", "union", "top", "correlated")
FRESH = 0.1


class ReuseError(FedpressError, ValueError):
    """There is nothing to measure, or it cannot be read."""


class Coded(NamedTuple):
    """One payload's positions against one reference.

    Attributes:
        round: of training, from 1.
        node: who sent it.
        reference: one of `REFERENCES`.
        entries: k, positions of the payload.
        held: m, positions of the reference.
        known: how many of the k are in the reference (for correlated: of the positions made up).
        plain_bytes: what the positions take without a reference.
        bytes: what they take with it.
    """

    round: int
    node: int
    reference: str
    entries: int
    held: int
    known: int
    plain_bytes: int
    bytes: int


class Summary(NamedTuple):
    """All payloads that a reference of this kind exists for; bits are means for each entry."""

    reference: str
    payloads: int
    known: float  # part of the entries that are in the reference
    held: float  # size of the reference over the number of entries
    shorter: float  # part of the payloads for which it is used
    plain_bits: float
    bits: float

    @property
    def gain(self) -> float:
        """Return the part of the positions' bytes that the reference saves."""
        return 1 - self.bits / self.plain_bits


def run(folder: Path | str) -> list[Coded]:
    """Code the positions of every kept payload of a run, in the order of rounds and nodes.

    Args:
        folder: The run folder.

    Raises:
        RunFolderError: It is not one.
        ReuseError: The run kept no payloads, or they have no positions.
        PayloadError: A payload is damaged.
    """
    opened = RunFolder.open(folder)
    found = sorted(
        (int(path.parent.name.rpartition("-")[2]), int(path.stem.rpartition("-")[2]), path)
        for path in opened.payloads.glob("round-*/node-*.fp")
    )
    if not found:
        raise ReuseError(f"{opened.path} holds no payloads; run it with fedpress simulate ... --keep-payloads")
    layout = Workload(scenarios.load(opened.scenario)).layout
    coded = list(_coded(found, layout))
    if not coded:
        raise ReuseError(
            f"no payload of {opened.path} has both positions and one before it to compare with; "
            "the encoder must send some of the entries, for two rounds or more"
        )
    return coded


def _coded(found: list[tuple[int, int, Path]], layout: Layout) -> Iterator[Coded]:
    n = layout.size
    own: dict[int, Positions] = {}
    now, before = 0, np.zeros(n)  # before: the sum of the last round's payloads
    touched = before != 0
    total, reached = np.zeros(n), np.zeros(n, np.bool_)
    for round, node, path in found:
        if round != now:
            now, before, touched = round, total, reached
            total, reached = np.zeros(n), np.zeros(n, np.bool_)
        try:
            said = payloads.decode(path.read_bytes(), SideInfo(layout))
        except ReferenceMismatch:
            raise ReuseError(
                f"the positions of {path} were coded against the client's last download already; "
                "keep the payloads of a run with --set downlink=null"
            ) from None
        if not isinstance(said, Sparse) or not said.count:
            continue
        said.add_to(total)
        reached[said.positions] = True
        references: dict[str, Positions] = {}
        if node in own:
            references["own"] = own[node]
        if touched.any():
            references["union"] = np.flatnonzero(touched)
            references["top"] = largest(before.astype(np.float32), said.count)
        plain = len(positions.pack(said.positions, n)[1])
        for name, reference in references.items():
            yield Coded(
                round, node, name, said.count, len(reference), _common(reference, said.positions), plain,
                len(positions.pack(said.positions, n, reference)[1]),
            )  # fmt: skip
        if node in own:
            made = _correlated(said.positions, own[node], np.random.default_rng((round, node)))
            yield Coded(
                round, node, "correlated", len(made), len(own[node]), _common(own[node], made), plain,
                len(positions.pack(made, n, own[node])[1]),
            )  # fmt: skip
        own[node] = said.positions


def _correlated(support: Positions, own: Positions, random: np.random.Generator) -> Positions:
    """Return a support of the same size, or smaller where there are too few places, mostly within `own`."""
    stays = np.isin(own, support, assume_unique=True)
    ranked = np.concatenate([own[stays], random.permutation(own[~stays])])
    inside = ranked[: len(support) - round(FRESH * len(support))]
    new = random.permutation(np.setdiff1d(support, own, assume_unique=True))
    return np.sort(np.concatenate([inside, new[: len(support) - len(inside)]]))


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    return len(np.intersect1d(one, other, assume_unique=True))


def summaries(coded: list[Coded]) -> list[Summary]:
    """Return a summary for each reference that occurs."""
    made = []
    for name in REFERENCES:
        of = [one for one in coded if one.reference == name]
        entries = sum(one.entries for one in of)
        if of:
            made.append(
                Summary(
                    reference=name,
                    payloads=len(of),
                    known=sum(one.known for one in of) / entries,
                    held=sum(one.held for one in of) / entries,
                    shorter=sum(one.bytes < one.plain_bytes for one in of) / len(of),
                    plain_bits=8 * sum(one.plain_bytes for one in of) / entries,
                    bits=8 * sum(one.bytes for one in of) / entries,
                )
            )
    return made


COLUMNS = ("reference", "payloads", "entries in it", "its size", "shorter in", "bits an entry now", "with it", "gain")


def rows(made: list[Summary]) -> list[tuple[str, ...]]:
    """Return the table, one row for each summary under `COLUMNS`."""
    return [
        (
            one.reference,
            f"{one.payloads:,}",
            f"{one.known:.1%}",
            f"{one.held:.2f} k",
            f"{one.shorter:.1%}",
            f"{one.plain_bits:.3f}",
            f"{one.bits:.3f}",
            f"{one.gain:.1%}",
        )
        for one in made
    ]
