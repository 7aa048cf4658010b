"""The model that a client holds between messages, and how an order brings it to the server's version."""

from logging import WARNING
from typing import NamedTuple

import numpy as np
from flwr.app import RecordDict
from flwr.supercore import log

from fedpress.compression.encoders import cafe
from fedpress.compression.errors import FedpressError, PayloadError
from fedpress.compression.messages import records
from fedpress.compression.messages.orders import Download, Order
from fedpress.compression.tensors import flatten
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Mask, MaskChange
from fedpress.compression.tensors.replica import FixedPoint, Replica, ReplicaError, SeededInit
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads, position_set


def shared(order: Order, layout: Layout) -> SideInfo:
    """Return what this client and the server both know of an update: where and how the delta moves the model."""
    known, download = SideInfo(layout, order.round, order.mask_version), order.download
    if download is None or download.base is None or not download.delta:
        return known
    delta = payloads.decode(download.delta, known)
    return known._replace(
        reference=delta.positions if isinstance(delta, Sparse) else None,
        predictor=cafe.predictor(delta, download.base, order.version),
    )


class NoMask(FedpressError):
    """The order is for a model within a mask that this client does not have; it asks for it."""


def agreed(order: Order, layout: Layout, known: Layout | None, epoch: int) -> Layout:
    """Return the layout of the order's model, within its mask.

    Args:
        order: the server's order.
        layout: the tensors, without a mask.
        known: the layout that the client's state is of, None for a new client.
        epoch: of that state.

    Raises:
        NoMask: the client does not have it, and the order does not bring it, or in a form that does not fit here.
    """
    if order.mask is None:
        return layout
    same = known is not None and known.full.fingerprint == layout.fingerprint
    own = known.mask if known is not None and same else None
    if not order.mask:
        if own is None or epoch != order.mask_version:
            raise NoMask(f"the order brings no mask of epoch {order.mask_version}, and there is none of it here")
        return layout.within(own)
    try:
        positions = position_set.unpack(order.mask, layout.size, own.positions if own else None)
        return layout.within(Mask.at(positions, layout.size))
    except PayloadError as error:
        if own is not None and epoch == order.mask_version:
            return layout.within(own)  # it is there already: the server was not told, and codes it against an older one
        raise NoMask(f"the mask of epoch {order.mask_version} cannot be read here: {error}") from error


class ReplicaWithUndo(NamedTuple):
    """A held model and the way back to the one before it.

    The server may not have heard that this client moved on: the reply was lost. Its next delta then starts from the
    version before, so the client can undo its last move, bit for bit.
    """

    held: Replica
    base: int | None = None  # the version before
    undo: Sparse | None = None  # the delta back to it; the buffers of an old version are never needed

    def moved(self, move: MaskChange) -> "ReplicaWithUndo":
        """Return what is left of it within another mask; there is no way back from there."""
        return ReplicaWithUndo(self.held.moved(move))

    def at(self, version: int, layout: Layout) -> Replica | None:
        """Return the model of this version, None when it is not at hand."""
        if self.held.version == version:
            return self.held
        if self.base == version and self.undo is not None:
            return self.held.changed(self.undo, version, b"", layout)
        return None


def receive(
    order: Order, download: Download, kept: ReplicaWithUndo | None, content: RecordDict, layout: Layout
) -> ReplicaWithUndo | None:
    """Return the client's model at the order's version; None when the delta does not fit what it holds.

    Args:
        order: the server's order.
        download: its download.
        kept: what the client holds, None for a new one.
        content: the message, for the model as arrays.
        layout: of the model.
    """
    try:
        before = _base(order, download, kept, content, layout)
        if before is None:
            return None
        if not download.delta:
            after = before._replace(version=order.version, buffers=download.buffers)
        else:
            delta = payloads.decode(download.delta, SideInfo(layout))
            after = before.changed(delta, order.version, download.buffers, layout)
    except (PayloadError, ReplicaError) as error:
        log(WARNING, "round %d: the model's delta cannot be used, the whole model is asked for: %s", order.round, error)
        return None
    if after.tag(order.mask_version) != download.tag:
        log(WARNING, "round %d: the model held differs from the server's, the whole one is asked for", order.round)
        return None
    if kept is None or kept.held.grid != after.grid:
        return ReplicaWithUndo(after)
    if before is kept.held and not download.delta:
        return kept._replace(held=after)
    old = None if download.base is None else kept.at(download.base, layout)
    old = old or kept.held
    return ReplicaWithUndo(after, old.version, after.delta_to(old.integers, layout))


def _base(
    order: Order, download: Download, kept: ReplicaWithUndo | None, content: RecordDict, layout: Layout
) -> Replica | None:
    """Return the model that the delta is added to."""
    if download.base is None:
        grid = FixedPoint.unpack(download.origin, layout)
        _, arrays = records.only_arrays(content)
        weights = flatten.flatten(records.to_numpy(arrays), layout)
        return Replica(order.version, grid, grid.integers(weights, layout))
    if download.base == 0 and download.origin:
        draw = SeededInit.unpack(download.origin, layout)
        return Replica(0, draw.grid, draw.integers(layout))
    if kept is None:
        return None
    if download.base < 0:
        return Replica(download.base, kept.held.grid, np.zeros(layout.size, np.int32))
    return kept.at(download.base, layout)
