"""`fedpress bench reuse`: size of a real run's positions, encoded relative to positions that both sides hold.

Nothing is run again: the payloads of `fedpress simulate --keep-payloads` are read, and their positions are encoded
again with each reference. Three references are tried:

* own: the positions of this client's last accepted payload;
* union: all positions of the previous round's payloads;
* top: as many of these as the payload has entries, where the sum of those payloads is largest.

A reference is used only where it makes the payload shorter, as by `positions.pack`. Besides:

* correlated: as many positions as `selection.correlated` with 10 % fresh ones would send relative to `own`. A payload
  does not determine them, so they are synthesized: the positions of `own` that the payload has, then others of `own` at
  random, and as fresh ones positions that only the payload has. The bytes hardly depend on the choice.
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
        round: Round, from 1.
        node: Node that sent the payload.
        reference: One of `REFERENCES`.
        entries: k, positions of the payload.
        held: m, positions of the reference.
        known: Number of the k positions that are in the reference (for correlated: of the synthesized ones).
        plain_bytes: Bytes of the positions without a reference.
        bytes: Bytes with it.
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
    """Means over all payloads with a reference of one kind.

    Attributes:
        reference: One of `REFERENCES`.
        payloads: Number of payloads.
        known: Fraction of the entries that are in the reference.
        held: Size of the reference over the number of entries.
        shorter: Fraction of the payloads that the reference makes shorter.
        plain_bits: Bits of an entry's position without the reference.
        bits: Bits with it.
    """

    reference: str
    payloads: int
    known: float
    held: float
    shorter: float
    plain_bits: float
    bits: float

    @property
    def gain(self) -> float:
        """Return the fraction of the positions' bytes that the reference saves."""
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
            decoded = payloads.decode(path.read_bytes(), SideInfo(layout))
        except ReferenceMismatch:
            raise ReuseError(
                f"the positions of {path} were coded against the client's last download already; "
                "keep the payloads of a run with --set downlink=null"
            ) from None
        if not isinstance(decoded, Sparse) or not decoded.count:
            continue
        decoded.add_to(total)
        reached[decoded.positions] = True
        references: dict[str, Positions] = {}
        if node in own:
            references["own"] = own[node]
        if touched.any():
            references["union"] = np.flatnonzero(touched)
            references["top"] = largest(before.astype(np.float32), decoded.count)
        plain = len(positions.pack(decoded.positions, n)[1])
        for name, reference in references.items():
            yield Coded(
                round, node, name, decoded.count, len(reference), _common(reference, decoded.positions), plain,
                len(positions.pack(decoded.positions, n, reference)[1]),
            )  # fmt: skip
        if node in own:
            drawn = _correlated(decoded.positions, own[node], np.random.default_rng((round, node)))
            yield Coded(
                round, node, "correlated", len(drawn), len(own[node]), _common(own[node], drawn), plain,
                len(positions.pack(drawn, n, own[node])[1]),
            )  # fmt: skip
        own[node] = decoded.positions


def _correlated(support: Positions, own: Positions, random: np.random.Generator) -> Positions:
    """Return positions mostly within `own`, as many as `support` has, or fewer where there are not enough."""
    stays = np.isin(own, support, assume_unique=True)
    ranked = np.concatenate([own[stays], random.permutation(own[~stays])])
    inside = ranked[: len(support) - round(FRESH * len(support))]
    new = random.permutation(np.setdiff1d(support, own, assume_unique=True))
    return np.sort(np.concatenate([inside, new[: len(support) - len(inside)]]))


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    return len(np.intersect1d(one, other, assume_unique=True))


def summaries(coded: list[Coded]) -> list[Summary]:
    """Return a summary for each reference that occurs."""
    summaries = []
    for name in REFERENCES:
        group = [each for each in coded if each.reference == name]
        entries = sum(each.entries for each in group)
        if group:
            summaries.append(
                Summary(
                    reference=name,
                    payloads=len(group),
                    known=sum(each.known for each in group) / entries,
                    held=sum(each.held for each in group) / entries,
                    shorter=sum(each.bytes < each.plain_bytes for each in group) / len(group),
                    plain_bits=8 * sum(each.plain_bytes for each in group) / entries,
                    bits=8 * sum(each.bytes for each in group) / entries,
                )
            )
    return summaries


COLUMNS = ("reference", "payloads", "entries in it", "its size", "shorter in", "bits an entry now", "with it", "gain")


def rows(summaries: list[Summary]) -> list[tuple[str, ...]]:
    """Return the table, one row for each summary under `COLUMNS`."""
    return [
        (
            summary.reference,
            f"{summary.payloads:,}",
            f"{summary.known:.1%}",
            f"{summary.held:.2f} k",
            f"{summary.shorter:.1%}",
            f"{summary.plain_bits:.3f}",
            f"{summary.bits:.3f}",
            f"{summary.gain:.1%}",
        )
        for summary in summaries
    ]
