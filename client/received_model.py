"""The model of an order, made of what the message holds and of what the client has.

A message brings the model whole, a change of it, or nothing but its name; frozen parameters come once, or are the
client's own. `Receiver.model` puts these together, or says that the model has to be asked for.
"""

from collections.abc import Callable, Mapping
from logging import INFO, WARNING
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.supercore import log
from numpy.typing import NDArray

from fedpress.client.state import replica as replicas
from fedpress.client.state.memory import Memory
from fedpress.compression.errors import LayoutError, NonFiniteError
from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Order
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.replica import Replica

Initial: TypeAlias = Callable[[Context], Mapping[str, NDArray[Any]] | None]
"""Returns the arrays of the initial model by name, as the client has them by itself; None: it has none."""
LayoutOf: TypeAlias = Layout | Callable[[Context], Layout] | None
"""The layout of a model, or a function of the Context that returns it; None: the names of the arrays decide."""

_SAME_LAYOUT = "give compress(..., layout=Layout.of(model)) and SparseFed(layout=...) the same, or neither"


class ReceivedModel(NamedTuple):
    """The model of an order, as the application gets it."""

    layout: Layout  # within the order's mask
    record_key: str  # of the ArrayRecord for the application
    record: ArrayRecord  # of a replica: made of it when it is read
    replica: replicas.ReplicaWithUndo | None = None  # the same model, where clients hold one
    tag: bytes = b""  # of the replica
    frozen: Mapping[str, NDArray[Any]] = MappingProxyType({})  # to be kept: this client cannot make them by itself

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The arrays by name, each read when it is asked for."""
        return records.Arrays(self.record)

    @property
    def buffers(self) -> bytes:
        """All buffers, as `buffer_codec.pack` writes them."""
        return self.replica.replica.buffers if self.replica else buffer_codec.pack(self.arrays, self.layout, None)


class _OwnInitial(NamedTuple):
    """The initial model as a client has it by itself."""

    version_0: Replica  # without a mask
    frozen: Mapping[str, NDArray[Any]]
    digest: bytes  # of the frozen parameters

    def warn_unless(self, origin: bytes, frozen: bytes) -> None:
        """Say in the log that this is not the server's version 0, unless it is.

        Args:
            origin: Tag of the server's.
            frozen: Digest of the frozen parameters here.
        """
        tag = self.version_0.tag(0, frozen)
        if tag != origin:
            log(
                WARNING,
                "the initial weights that this client has by itself are not the server's (tag %s, the server's is %s)"
                " and are not used: the whole model is asked for. Is it another weights file, another release of"
                " PyTorch, another processor, or a model() that differs from call to call?",
                tag.hex(), origin.hex(),
            )  # fmt: skip


class _Frozen(NamedTuple):
    """What is not trained of a model."""

    arrays: Mapping[str, NDArray[Any]]
    kept: Mapping[str, NDArray[Any]]  # of these, what the client cannot make by itself


_LATEST_DIGEST: list[tuple[Mapping[str, NDArray[Any]], tuple[TensorSpec, ...], bytes]] = []


def _digest_of_own(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> bytes:
    """Return the digest of the frozen arrays that `initial` returned: they are hashed once, and not for every message.

    Args:
        arrays: The arrays of the initial model; the same mapping has the same values.
        layout: Layout of the model.
    """
    if not layout.frozen:
        return b""
    if not any(arrays is known and layout.frozen == specs for known, specs, _ in _LATEST_DIGEST):
        _LATEST_DIGEST[:] = [(arrays, layout.frozen, flatten.digest(arrays, layout))]
    return _LATEST_DIGEST[0][2]


class Receiver:
    """What one client has for making the model of one order.

    Args:
        order: The order.
        context: Flower's Context.
        memory: What the client keeps between rounds; None: nothing.
        layout: Which arrays are parameters and which are buffers.
        initial: Function that returns the arrays of the initial model; None: the client has none by itself.
    """

    def __init__(
        self, order: Order, context: Context, memory: Memory | None, layout: LayoutOf, initial: Initial | None
    ) -> None:
        self._order = order
        self._context = context
        self._memory = memory
        self._layout = layout
        self._initial = initial

    def model(self, content: RecordDict) -> ReceivedModel | None:
        """Return the model at the order's version; None when the delta does not fit what this client holds.

        Args:
            content: Content of the message; where a mask applies, the order in it is written anew, with the mask.

        Raises:
            MessageError: The order names no delta, and the message holds no model.
            BaseError: This client has other pretrained weights than the federation.
            LayoutError: The arrays do not fit the layout.
        """
        order, memory = self._order, self._memory
        if content.array_records:
            record_key, record = records.only_arrays(content)
            arrays: Mapping[str, NDArray[Any]] = records.Arrays(record)
        elif order.download is None:
            raise orders.MessageError("the order names no delta, and the message holds no ArrayRecord with the model")
        else:
            record_key, record, arrays = "arrays", ArrayRecord(), {}
        tensors = _layout(self._layout, self._context, arrays, order.round)
        if not tensors.parameters and memory:
            tensors = memory.layout.full
        if not tensors.parameters:
            return None  # a new client that has neither a layout nor the arrays: it must see them once
        known, mask_version = (memory.layout, memory.mask_version) if memory else (None, 0)
        try:
            layout = replicas.layout_within_mask(order, tensors, known, mask_version)
        except replicas.NoMask as error:
            log(WARNING, "round %d: %s; it is asked for", order.round, error)
            return None
        if layout.mask:
            orders.rewrite_mask(content, layout.mask.bitmap)
        if order.download is None:
            found = self._frozen(arrays, layout)
            if found is None:
                return None
            if found.arrays or layout.mask:
                whole = {**arrays, **found.arrays}
                within = flatten.unflatten(flatten.flatten(whole, layout), layout) if layout.mask else {}
                record = records.from_numpy({**whole, **within})
            return ReceivedModel(layout, record_key, record, frozen=found.kept)
        held = memory.replica if memory and same_tensors(memory.layout, layout) else None
        if held and known and known.fingerprint != layout.fingerprint:
            held = held.remapped(known.change_to(layout))
        download, sent = order.download, memory.frozen if memory and memory.layout.frozen == layout.frozen else {}
        if download.base is None:
            sent = flatten.frozen(arrays, layout)
        offered = download.base == 0 and bool(download.origin)
        own = self._own_initial(layout) if offered or (layout.frozen and not sent) else None
        frozen = sent or (own.frozen if own else {})
        if layout.frozen and not frozen:
            return None
        digest = own.digest if own and frozen is own.frozen else flatten.digest(frozen, layout)
        first = own.version_0.within(layout.mask) if own and offered else None
        held = replicas.receive(order, download, held, content, layout, first, digest)
        if held is None:
            if self._layout is None and download.base is None:
                raise LayoutError(f"the model that came whole does not fit a layout guessed by names: {_SAME_LAYOUT}")
            if own and offered:  # what is received is proved by its own tag, so that this one is hashed only now
                own.warn_unless(download.origin, digest)
            return None
        buffers = buffer_codec.unpack(held.replica.buffers, layout, None) if layout.buffers else {}
        derived = records.derived(held.replica.readers(layout), {**buffers, **frozen}, layout)
        return ReceivedModel(layout, record_key, records.of_arrays(derived.items()), held, download.tag, sent)

    def _frozen(self, arrays: Mapping[str, NDArray[Any]], layout: Layout) -> "_Frozen | None":
        """Return what is not trained, of a model that comes whole; None: the order says that it is here, and it is not.

        It comes once: from then on this client keeps it, unless it can make it by itself.
        """
        memory, order = self._memory, self._order
        if not layout.frozen:
            if order.frozen:  # an application that was handed the rest alone would go on with others in their place
                raise LayoutError(
                    f"the server has parameters that are not trained, and this client none: {_SAME_LAYOUT}"
                )
            return _Frozen({}, {})
        kept = memory.frozen if memory and memory.layout.frozen == layout.frozen else {}
        if order.frozen and kept and flatten.digest(kept, layout) == order.frozen:
            return _Frozen(kept, kept)
        digest = order.frozen or flatten.digest(arrays, layout)
        own = self._own_initial(layout)
        if own and own.digest == digest:
            return _Frozen(own.frozen, {})
        if order.frozen:
            log(WARNING, "round %d: this client lacks what is not trained, and asks for it", order.round)
            return None
        received = flatten.frozen(arrays, layout)
        return _Frozen(received, received)

    def _own_initial(self, layout: Layout) -> "_OwnInitial | None":
        """Return the initial model as this client has it by itself; None: it has none that fits the layout.

        Raises:
            BaseError: It has other pretrained weights than the federation.
        """
        arrays = self._initial(self._context) if self._initial else None
        if arrays is None:
            return None
        try:
            weights, frozen = flatten.flatten(arrays, layout.full), flatten.frozen(arrays, layout)
            buffers = buffer_codec.pack(arrays, layout) if layout.buffers else b""
        except (LayoutError, NonFiniteError) as error:
            log(WARNING, "the initial weights that this client has by itself are of another model: %s", error)
            return None
        return _OwnInitial(Replica.initial(weights, layout.full, buffers), frozen, _digest_of_own(arrays, layout))


def same_tensors(known: Layout, layout: Layout) -> bool:
    """Tell whether two layouts are of the same model, whatever their masks."""
    return known.full.fingerprint == layout.full.fingerprint


def _layout(given: LayoutOf, context: Context, arrays: Mapping[str, NDArray[Any]], round: int) -> Layout:
    if isinstance(given, Layout):
        return given
    if given is not None:
        return given(context)
    guessed = Layout.of_arrays(arrays)
    if guessed.buffers and round <= 1:
        log(
            INFO,
            "compress: no layout, so these are buffers by name and type: %s; layout=Layout.of(model) is exact",
            ", ".join(spec.name for spec in guessed.buffers),
        )
    return guessed
