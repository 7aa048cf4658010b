"""Memory of a client between two messages, and its form in a store: arrays and short texts."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.client.state.replica import ReplicaWithUndo
from fedpress.client.state.stores import StateError, Stored
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.tensors.replica import FixedPoint, Replica
from fedpress.compression.tensors.update import Sparse

FORMAT = "1"
_ENCODER = "encoder/"
_FROZEN = "frozen/"
_MOMENTS = "moments/"


class Memory(NamedTuple):
    """State of a client between two messages.

    Attributes:
        encoder: The encoder's state, flat (`stores.flatten_state`).
        ticket: Ticket of the last order answered, 0 for none.
        layout: Layout of the model, within its mask.
        reply: The answer to that order, as it was sent; empty for none.
        replica: The held model, where clients hold one.
        lost_state: Whether earlier state was lost, and no answer that reports it has been accepted yet.
        mask_version: Version of the mask in the last order answered.
        discarded: Sum of the residual of entries that new masks lacked: it was trained, and is never sent.
        frozen: Parameters that are not trained, by name, where the server has sent them; empty where the client makes
            them by itself.
        moments: State of the application's optimizer by name, where it keeps one (`stores.MOMENTS`).
    """

    encoder: Mapping[str, NDArray[Any]]
    ticket: int
    layout: Layout
    reply: bytes = b""
    replica: ReplicaWithUndo | None = None
    lost_state: bool = False
    mask_version: int = 0
    discarded: float = 0.0
    frozen: Mapping[str, NDArray[Any]] = MappingProxyType({})
    moments: Mapping[str, NDArray[Any]] = MappingProxyType({})

    def stored(self) -> Stored:
        """Return this in the form that a store takes."""
        arrays: dict[str, NDArray[Any]] = {_ENCODER + name: array for name, array in self.encoder.items()}
        layout = self.layout
        meta = {"memory": FORMAT, "ticket": str(self.ticket), "mask_version": str(self.mask_version)}
        meta["tensors"] = json.dumps([layout.parameters, layout.buffers, layout.tied, layout.frozen])
        arrays |= {_FROZEN + name: array for name, array in self.frozen.items()}
        arrays |= {_MOMENTS + name: array for name, array in self.moments.items()}
        if self.lost_state:
            meta["lost_state"] = "yes"
        if layout.mask:
            arrays["mask"] = _array(layout.mask.bitmap)
        if self.discarded:
            meta["discarded"] = repr(self.discarded)
        if self.reply:
            arrays["reply"] = _array(self.reply)
        if self.replica:
            replica, undo = self.replica.replica, self.replica.undo
            arrays["replica"] = replica.integers
            arrays["buffers"] = _array(replica.buffers)
            meta |= {"version": str(replica.version), "grid": json.dumps(replica.grid.exponents)}
            if undo is not None:
                arrays["undo.positions"], arrays["undo.values"] = undo.positions, undo.values
                arrays["undo.buffers"] = _array(self.replica.undo_buffers)
                meta["previous_version"] = str(self.replica.previous_version)
        return Stored(arrays, meta)

    @classmethod
    def of(cls, stored: Stored) -> "Memory":
        """Return the memory that a store has kept.

        Raises:
            StateError: A part is missing or malformed, or another version of fedpress wrote it.
        """
        arrays, meta = stored.arrays, stored.meta
        if (written := meta.get("memory")) != FORMAT:
            raise StateError(f"the client's state has format {written}, this fedpress reads {FORMAT}")
        try:
            layout = _layout(meta["tensors"])
            if "mask" in arrays:
                layout = layout.within(Mask(layout.size, arrays["mask"].tobytes()))
            return cls(
                encoder=_below(_ENCODER, arrays),
                ticket=int(meta["ticket"]),
                layout=layout,
                reply=arrays["reply"].tobytes() if "reply" in arrays else b"",
                replica=_replica(arrays, meta),
                lost_state="lost_state" in meta,
                mask_version=int(meta["mask_version"]),
                discarded=float(meta.get("discarded", "0")),
                frozen=_below(_FROZEN, arrays),
                moments=_below(_MOMENTS, arrays),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise StateError(f"the client's state cannot be read: {error!r}; remove it to start anew") from error


def _below(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _replica(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, str]) -> ReplicaWithUndo | None:
    if "replica" not in arrays:
        return None
    grid = FixedPoint(tuple(int(exponent) for exponent in json.loads(meta["grid"])))
    replica = Replica(int(meta["version"]), grid, arrays["replica"], arrays["buffers"].tobytes())
    if "previous_version" not in meta:
        return ReplicaWithUndo(replica)
    undo = Sparse(arrays["undo.positions"], arrays["undo.values"], len(replica.integers))
    return ReplicaWithUndo(replica, int(meta["previous_version"]), undo, arrays["undo.buffers"].tobytes())


def _layout(text: str) -> Layout:
    parameters, buffers, tied, frozen = json.loads(text)

    def specs(entries: list[Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in entries)

    pairs = tuple((alias, name) for alias, name in tied)
    return Layout(specs(parameters), specs(buffers), pairs, frozen=specs(frozen))


def _array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
