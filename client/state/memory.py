"""What a client remembers between two messages, and how a store keeps it: arrays and short texts."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.client.state.replica import ReplicaWithUndo
from fedpress.client.state.stores import StateError, Stored
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.replica import FixedPoint, Replica
from fedpress.compression.tensors.update import Sparse

FORMAT = "3"
"""1 held the encoder's state alone, under its bare names; 2 knew no masks. Both are read as such, and a state without a
mask is still written as 2, so that an older fedpress reads it."""
_ENCODER = "encoder/"


class Memory(NamedTuple):
    """What a client remembers.

    Attributes:
        encoder: the encoder's state, flat (`stores.flatten_state`).
        ticket: of the last order that it answered, 0 for none.
        fingerprint: of the layout.
        layout: the layout; None in a state of format 1.
        reply: the answer to that order, as it was sent; empty in a state of format 1.
        kept: the held model, where clients hold one.
        lost: earlier state was lost, and no answer that says so has been accepted yet.
        epoch: of the last order that it answered.
        discarded: the sum of what was kept back for entries that a new mask lacked: the law counts it (`mod`).
    """

    encoder: Mapping[str, NDArray[Any]]
    ticket: int
    fingerprint: int
    layout: Layout | None = None
    reply: bytes = b""
    kept: ReplicaWithUndo | None = None
    lost: bool = False
    epoch: int = 0
    discarded: float = 0.0

    def stored(self) -> Stored:
        """Return this in the form that a store takes."""
        arrays: dict[str, NDArray[Any]] = {_ENCODER + name: array for name, array in self.encoder.items()}
        mask = self.layout.mask if self.layout else None
        written = FORMAT if mask or self.discarded else "2"
        meta = {"memory": written, "ticket": str(self.ticket), "layout": str(self.fingerprint)}
        meta["epoch"] = str(self.epoch)
        if self.layout:
            meta["tensors"] = json.dumps([self.layout.parameters, self.layout.buffers, self.layout.tied])
        if self.lost:
            meta["lost"] = "yes"
        if mask:
            arrays["mask"] = _array(mask.bitmap)
        if self.discarded:
            meta["discarded"] = repr(self.discarded)
        if self.reply:
            arrays["reply"] = _array(self.reply)
        if self.kept:
            held = self.kept.held
            arrays["held"] = held.integers
            arrays["buffers"] = _array(held.buffers)
            meta |= {"version": str(held.version), "grid": json.dumps(held.grid.exponents)}
            if self.kept.undo is not None:
                arrays["undo.positions"], arrays["undo.values"] = self.kept.undo.positions, self.kept.undo.values
                meta["base"] = str(self.kept.base)
        return Stored(arrays, meta)

    @classmethod
    def of(cls, stored: Stored) -> "Memory":
        """Read what a store has kept.

        Raises:
            StateError: a part is missing or malformed; a newer fedpress has written it, most likely.
        """
        arrays, meta = stored.arrays, stored.meta
        found = meta.get("memory", "1")
        try:
            if found == "1":
                return cls(arrays, int(meta["ticket"]), int(meta["layout"]))
            if found not in ("2", FORMAT):
                raise StateError(f"the client's state has format {found}, this fedpress reads 1, 2 and {FORMAT}")
            encoder = {name.removeprefix(_ENCODER): a for name, a in arrays.items() if name.startswith(_ENCODER)}
            reply = arrays["reply"].tobytes() if "reply" in arrays else b""
            layout = _layout(meta["tensors"]) if "tensors" in meta else None
            if layout and "mask" in arrays:
                layout = layout.within(Mask(layout.size, arrays["mask"].tobytes()))
            kept, lost, epoch = _kept(arrays, meta), "lost" in meta, int(meta.get("epoch", "0"))
            discarded = float(meta.get("discarded", "0"))
            ticket, fingerprint = int(meta["ticket"]), int(meta["layout"])
            return cls(encoder, ticket, fingerprint, layout, reply, kept, lost, epoch, discarded)
        except (KeyError, ValueError, TypeError) as error:
            raise StateError(f"the client's state cannot be read: {error!r}; remove it to start anew") from error


def _kept(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, str]) -> ReplicaWithUndo | None:
    if "held" not in arrays:
        return None
    grid = FixedPoint(tuple(int(exponent) for exponent in json.loads(meta["grid"])))
    held = Replica(int(meta["version"]), grid, arrays["held"], arrays["buffers"].tobytes())
    if "base" not in meta:
        return ReplicaWithUndo(held)
    return ReplicaWithUndo(
        held, int(meta["base"]), Sparse(arrays["undo.positions"], arrays["undo.values"], len(held.integers))
    )


def _layout(text: str) -> Layout:
    parameters, buffers, tied = json.loads(text)

    def specs(entries: list[Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in entries)

    return Layout(specs(parameters), specs(buffers), tuple((alias, name) for alias, name in tied))


def _array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
