"""A client's replica of the model between messages, and the step to the version that an order names."""

from logging import WARNING
from typing import NamedTuple

import numpy as np
from flwr.app import RecordDict
from flwr.supercore import log

from fedpress.compression.encoders import cafe
from fedpress.compression.errors import FedpressError, PayloadError
from fedpress.compression.messages import records
from fedpress.compression.messages.orders import Download, Order
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Mask, MaskChange
from fedpress.compression.tensors.replica import FixedPoint, Regrid, Replica, ReplicaError, unpack_regrids
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Sparse
from fedpress.compression.wire import payloads, position_set


def side_info(order: Order, layout: Layout) -> SideInfo:
    """Return the side information of an update: where and how the downloaded delta moved the model.

    Args:
        order: The server's order.
        layout: Layout of the model, within its mask.
    """
    plain, download = SideInfo(layout, order.round), order.download
    if download is None or download.base is None or not download.delta:
        return plain
    delta = payloads.decode(download.delta, plain)
    return plain._replace(
        shared_positions=delta.positions if isinstance(delta, Sparse) else None,
        predictor=cafe.predictor(delta, download.base, order.version),
    )


class NoMask(FedpressError):
    """The order is for a model within a mask that this client lacks; it asks for the whole model."""


def layout_within_mask(order: Order, layout: Layout, known: Layout | None, mask_version: int) -> Layout:
    """Return the layout of the order's model, within its mask.

    Args:
        order: The server's order.
        layout: The tensors, without a mask.
        known: Layout of the client's state, None for a new client.
        mask_version: Version of the mask in that layout.

    Raises:
        NoMask: The client lacks the mask, and the order does not bring it, or codes it against one the client lacks.
    """
    if order.mask is None:
        return layout
    same_model = known is not None and known.full.fingerprint == layout.fingerprint
    known_mask = known.mask if known is not None and same_model else None
    current = known_mask is not None and mask_version == order.mask_version
    if not order.mask:
        if not current:
            raise NoMask(f"the order brings no mask of version {order.mask_version}, and this client has none of it")
        return layout.within(known_mask)
    try:
        positions = position_set.unpack(order.mask, layout.size, known_mask.positions if known_mask else None)
        return layout.within(Mask.at(positions, layout.size))
    except PayloadError as error:
        if current:  # the server does not know that the client has it, and codes it against an older one
            return layout.within(known_mask)
        raise NoMask(f"the mask of version {order.mask_version} cannot be read: {error}") from error


class ReplicaWithUndo(NamedTuple):
    """A held model and the step back to the version before it.

    Where a reply was lost, the server does not know that this client moved on, and its next delta starts from the
    previous version. So the client can undo its last step, bit for bit.

    Attributes:
        replica: The held model.
        previous_version: The previous version, None where there is no step back.
        undo: The delta back to it.
        undo_buffers: Its buffers, as far as they differ (`buffer_codec.pack_changes`).
    """

    replica: Replica
    previous_version: int | None = None
    undo: Sparse | None = None
    undo_buffers: bytes = b""

    @classmethod
    def between(cls, replica: Replica, previous: Replica, layout: Layout) -> "ReplicaWithUndo":
        """Return a model with the step back to another one, if float32 holds it.

        Args:
            replica: The model.
            previous: The other one, on the same grid.
            layout: Layout of both.
        """
        undo = replica.delta_to(previous.integers, layout)
        if not np.isfinite(undo.values).all():
            return cls(replica)
        return cls(replica, previous.version, undo, _buffers_back(replica.buffers, previous.buffers, layout))

    def remapped(self, change: MaskChange) -> "ReplicaWithUndo":
        """Return the model within another mask, from which there is no step back."""
        return ReplicaWithUndo(self.replica.remapped(change))

    def regridded(self, regrids: list[Regrid], layout: Layout) -> "ReplicaWithUndo":
        """Return the model on the grid of a later version, and with it the step back.

        Args:
            regrids: Changes of the grid; those that this model has had already are left out.
            layout: Layout of the model.
        """
        regrids = [regrid for regrid in regrids if regrid.version > self.replica.version]
        if not regrids:
            return self
        replica = self.replica.regridded(regrids, layout)
        if self.previous_version is None or (previous := self.at(self.previous_version, layout)) is None:
            return ReplicaWithUndo(replica)
        return ReplicaWithUndo.between(replica, previous.regridded(regrids, layout), layout)

    def at(self, version: int, layout: Layout) -> Replica | None:
        """Return the model of a version, on the grid of the newest; None where the client can no longer make it.

        Args:
            version: Number of the version.
            layout: Layout of the model.
        """
        if self.replica.version == version:
            return self.replica
        if self.previous_version == version and self.undo is not None:
            buffers = buffer_codec.unpack_changes(self.undo_buffers, self.replica.buffers, layout)
            return self.replica.changed(self.undo, version, buffers, layout)
        return None


def _buffers_back(buffers: bytes, previous: bytes, layout: Layout) -> bytes:
    """Return what leads from buffers back to those of the previous version."""
    changed = buffer_codec.changes(previous, buffers, layout)
    return buffer_codec.pack_changes(previous, changed, layout)


def receive(
    order: Order,
    download: Download,
    held: ReplicaWithUndo | None,
    content: RecordDict,
    layout: Layout,
    initial: Replica | None = None,
    frozen: bytes = b"",
) -> ReplicaWithUndo | None:
    """Return the client's model at the order's version; None when the delta does not fit the held model.

    Law: what is returned has the tag of the order, so that it is the server's model, bit for bit.

    Args:
        order: The server's order.
        download: The download in it.
        held: The model that the client holds, None for a new client; used up, so that two are never in memory at once.
        content: Records of the message: they hold the model where it comes whole.
        layout: Layout of the model.
        initial: Version 0 as the client makes it by itself, within the mask; None: it cannot.
        frozen: Digest of the parameters that are not trained (`flatten.digest`).
    """
    moved: Sparse | None = None  # change of the held model that was made in its place
    try:
        regrids = unpack_regrids(download.grid, layout)
        held = held.regridded(regrids, layout) if held is not None else None
        before = _base(order, download, held, regrids, content, layout, initial)
        if before is None:
            return None
        buffers = buffer_codec.unpack_changes(download.buffers, before.buffers, layout)
        if not download.delta:
            after = before._replace(version=order.version, buffers=buffers)
        else:
            delta = payloads.decode(download.delta, SideInfo(layout))
            moved = delta if held is not None and before is held.replica and isinstance(delta, Sparse) else None
            after = before.changed(delta, order.version, buffers, layout, in_place=moved is not None)
            if download.base is not None and download.base < 0:
                after = after._replace(grid=FixedPoint.unpack(download.origin, layout))
    except (PayloadError, ReplicaError) as error:
        log(WARNING, "round %d: the model's delta cannot be used, the whole model is asked for: %s", order.round, error)
        return None
    if after.tag(order.mask_version, frozen) != download.tag:
        log(WARNING, "round %d: the model held differs from the server's, the whole one is asked for", order.round)
        return None
    if held is None or held.replica.grid != after.grid:
        return ReplicaWithUndo(after)
    if moved is not None:
        back = np.flatnonzero(moved.values)
        undo = Sparse(moved.positions[back], -moved.values[back], layout.size)
        return ReplicaWithUndo(after, before.version, undo, _buffers_back(after.buffers, before.buffers, layout))
    if before is held.replica and not download.delta:
        return held._replace(replica=after)
    previous = None if download.base is None else held.at(download.base, layout)
    return ReplicaWithUndo.between(after, previous or held.replica, layout)


def _base(
    order: Order,
    download: Download,
    held: ReplicaWithUndo | None,
    regrids: list[Regrid],
    content: RecordDict,
    layout: Layout,
    initial: Replica | None,
) -> Replica | None:
    """Return the model that the delta is added to, on the delta's grid."""
    if download.base is None:
        grid = FixedPoint.unpack(download.origin, layout)
        _, arrays = records.only_arrays(content)
        named = records.Arrays(arrays)
        weights = flatten.flatten(named, layout)
        buffers = buffer_codec.pack(named, layout, None) if layout.buffers else b""
        return Replica(order.version, grid, grid.integers(weights, layout), buffers)
    if download.base == 0 and download.origin:
        return None if initial is None else initial.regridded(regrids, layout)
    if download.base < 0:  # a snapshot is in units of its grid
        return Replica(download.base, FixedPoint((0,) * len(layout.parameters)), np.zeros(layout.size, np.int32))
    return None if held is None else held.at(download.base, layout)
