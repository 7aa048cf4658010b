"""`compress(encoder)`: a Flower mod that sends the encoded update instead of the trained weights.

Where the server sends deltas (`SparseFed(downlink=...)`), the mod keeps the model, brings it to the server's version
and hands it to the application, which sees no difference.
"""

from collections.abc import Callable
from logging import ERROR, INFO, WARNING
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.supercore import log

from fedpress.client.state import replica, stores
from fedpress.client.state.memory import Memory
from fedpress.compression import seeds
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.errors import NonFiniteError
from fedpress.compression.messages import orders, records
from fedpress.compression.messages.orders import Answer, Order
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set


def compress(
    encoder: Encoder[Any] | Callable[[Context], Encoder[Any]],
    *,
    layout: Layout | Callable[[Context], Layout] | None = None,
) -> Mod:
    """Return a mod for any ClientApp that answers `train` with the trained weights in one ArrayRecord.

    The application sees the model as usual (plus what the encoder's `start` adds) and answers as usual; on the wire
    its ArrayRecord is replaced by the encoded update (trained - start). Messages to `evaluate` get the model in the
    same way, others pass untouched. The server needs the strategy `SparseFed`.

    A sparse model has a mask: weights outside are zero when the application gets them, and what it makes of them does
    not count. The order that the application sees holds the mask as a bitmap (`orders.read_order(...).mask`), so that
    it can train inside from the start, and vote on the next mask (`orders.VOTE`) where the order asks for it.

    An order that comes again is answered with the same bytes again, and nothing is trained twice. An order older than
    the last one answered changes nothing: the answer is an error.

    Args:
        encoder: the encoder, or a function of Flower's Context that returns it.
        layout: which arrays are parameters and which are buffers: `Layout.of(model)`, or a function of the Context.
            Without it the usual names decide (`Layout.of_arrays`), and the log says so.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        category = message.metadata.message_type.partition(".")[0]
        if category == "train" or (category == "evaluate" and orders.has_order(message.content)):
            order = orders.read_order(message.content)
            chosen = encoder if isinstance(encoder, Encoder) else encoder(context)
            client = _Client(message, context, order, chosen, layout)
            return client.train(call_next) if category == "train" else client.evaluate(call_next)
        return call_next(message, context)

    return mod


class _Start(NamedTuple):
    """What a client starts an order with."""

    layout: Layout
    key: str  # of the ArrayRecord for the application
    arrays: dict[str, Any]  # the held model
    kept: replica.ReplicaWithUndo | None = None  # the same, where clients hold one
    tag: bytes = b""  # of that


class _Client:
    """One order, from its arrival to the reply."""

    def __init__(
        self,
        message: Message,
        context: Context,
        order: Order,
        encoder: Encoder[Any],
        layout: Layout | Callable[[Context], Layout] | None,
    ) -> None:
        self._message = message
        self._context = context
        self._order = order
        self._encoder = encoder
        self._layout = layout
        self._store = stores.open_store(context, order.federation)
        self._lost = False
        try:
            stored = self._store.load()
        except stores.DamagedState as error:
            log(ERROR, "%s; what it kept back is lost, and this client takes part as a new one", error)
            stored, self._lost = None, True
        self._memory = None if stored is None else Memory.of(stored)
        self._discarded = self._memory.discarded if self._memory else 0.0

    def train(self, call_next: ClientAppCallable) -> Message:
        """Train from the held model and answer with the encoded update."""
        order, memory = self._order, self._memory
        if memory is not None and memory.ticket == order.ticket and memory.reply:
            log(INFO, "ticket %d comes again: the same answer is sent again", order.ticket)
            return Message(records.content_from_bytes(memory.reply), reply_to=self._message)
        if memory is not None and order.ticket < memory.ticket:
            # Its verdict is as old as it is: to believe it would take back an upload that may have been accepted.
            error = f"ticket {order.ticket} is older than {memory.ticket}, the last one answered here"
            log(WARNING, "%s: nothing is done", error)
            return self._reply(Answer(order.ticket, order.version, error=error, answered=memory.ticket))
        tier = stores.tier(self._context)
        began = self._start()
        if began is None:
            return self._reply(Answer(order.ticket, order.version, needs_model=True))
        agreed, sent = began.layout, began.arrays
        encoder_state, lost = self._settled(agreed)
        start = flatten.flatten(sent, agreed)
        offset = self._encoder.start(encoder_state)
        if offset is not None:
            start += offset
            moved = flatten.unflatten(start, agreed)
            start = flatten.flatten(moved, agreed)  # what the application really gets, in the layout's dtypes
            sent = {**sent, **moved}
        if offset is not None or began.kept or agreed.mask:
            self._message.content[began.key] = records.from_numpy(sent)
        reply = call_next(self._message, self._context)
        if reply.has_error():
            return reply
        key, trained_record = records.only_arrays(reply.content)
        trained = records.to_numpy(trained_record)
        update = flatten.flatten(trained, agreed)
        update -= start
        shared = replica.shared(order, agreed)
        seed = seeds.derive(order.federation, order.round, stores.client_index(self._context), "encode")
        answer = Answer(order.ticket, order.version, tag=began.tag, lost_state=lost, tier=tier)
        try:
            payload, encoder_state = self._encoder.encode(update, encoder_state, shared, seed)
        except NonFiniteError as error:
            log(WARNING, "round %d: no update is sent: %s", order.round, error)
            answer = answer._replace(error=str(error))
        else:
            buffers = buffer_codec.pack(trained, agreed) if agreed.buffers else b""
            answer = answer._replace(payload=payload, buffers=buffers, vote=_vote(reply.content, agreed))
        others = {name: record for name, record in reply.content.items() if name not in (key, orders.VOTE)}
        reply.content = records.folded(RecordDict({orders.ANSWER: orders.write_answer(answer), **others}))
        # Durable before the reply leaves: a kill in between loses the reply, and the server's next order brings its
        # mass back, or asks for the same again.
        self._save(began, encoder_state, order.ticket, records.content_to_bytes(reply.content), lost)
        return reply

    def evaluate(self, call_next: ClientAppCallable) -> Message:
        """Let the application evaluate the held model."""
        order, memory = self._order, self._memory
        if memory is not None and memory.epoch != order.mask_version:
            raise orders.MessageError(
                f"the model to evaluate has mask version {order.mask_version}, the one of this client {memory.epoch},"
                " until an order to train brings another"
            )
        began = self._start()
        if began is None:
            return self._reply(Answer(order.ticket, order.version, needs_model=True))
        self._message.content[began.key] = records.from_numpy(began.arrays)
        if began.kept:  # the upload that is under way stays as it is
            ticket, pending, lost = (memory.ticket, memory.reply, memory.lost) if memory else (0, b"", self._lost)
            encoder_state = self._restored(began.layout) if memory else self._encoder.init(began.layout)
            self._save(began, encoder_state, ticket, pending, lost)
        reply = call_next(self._message, self._context)
        if not reply.has_error():
            answer = Answer(order.ticket, order.version, tag=began.tag)
            reply.content[orders.ANSWER] = orders.write_answer(answer)
        return reply

    def _start(self) -> _Start | None:
        """Return the model at the order's version; None when the delta does not fit what this client holds."""
        content, order = self._message.content, self._order
        if content.array_records:
            key, record = records.only_arrays(content)
            arrays = records.to_numpy(record)
        elif order.download is None:
            raise orders.MessageError("the order names no delta, and the message holds no ArrayRecord with the model")
        else:
            key, arrays = "arrays", {}
        memory = self._memory
        agreed = _layout(self._layout, self._context, arrays, order.round)
        if not agreed.parameters and memory and memory.layout:
            agreed = memory.layout.full
        if not agreed.parameters:
            return None  # a new client that has neither a layout nor the arrays: it must see them once
        before = memory.layout if memory else None
        try:
            agreed = replica.agreed(order, agreed, before, memory.epoch if memory else 0)
        except replica.NoMask as error:
            log(WARNING, "round %d: %s; it is asked for", order.round, error)
            return None
        if agreed.mask:
            orders.rewrite_mask(content, agreed.mask.bitmap)
        if order.download is None:
            if agreed.mask:
                arrays = {**arrays, **flatten.unflatten(flatten.flatten(arrays, agreed), agreed)}
            return _Start(agreed, key, arrays)
        kept = memory.kept if memory and self._of_these_tensors(agreed) else None
        if kept and before and before.fingerprint != agreed.fingerprint:
            kept = kept.moved(before.move(agreed))
        kept = replica.receive(order, order.download, kept, content, agreed)
        if kept is None:
            return None
        buffers = buffer_codec.unpack(kept.held.buffers, agreed) if agreed.buffers else {}
        arrays = {**flatten.unflatten(kept.held.floats(agreed), agreed), **buffers}
        return _Start(agreed, key, arrays, kept, order.download.tag)

    def _reply(self, answer: Answer) -> Message:
        return Message(RecordDict({orders.ANSWER: orders.write_answer(answer)}), reply_to=self._message)

    def _settled(self, layout: Layout) -> tuple[Any, bool]:
        """Return the encoder's state with the server's verdict on the last upload, and whether a loss is to be told.

        The order names the last upload that was accepted. Whatever this client sent after that one was lost, late or
        refused, and its mass goes back into the state. An accepted upload that this client knows nothing of means
        that its state is gone or comes from a backup: it starts anew, lest it send twice what the backup keeps back.
        That is said until an answer that says it has been accepted.

        Where the mask has changed, entries that survive keep what was kept back for them: after the verdict, so that
        an upload of the mask before comes back first. What was kept back for the others is discarded, and counted.
        """
        accepted, memory = self._order.accepted, self._memory
        epoch = self._order.mask_version
        if memory and memory.epoch != epoch and not self._of_these_tensors(layout):
            log(WARNING, "epoch %d follows %d: what was kept back for another model is lost", epoch, memory.epoch)
            self._memory, self._lost = None, True
        if self._memory is None or self._memory.ticket < accepted:
            if accepted:
                log(WARNING, "ticket %d was accepted, and the state here is older: it starts anew", accepted)
            return self._encoder.init(layout), accepted > 0 or self._lost
        taken, lost = self._memory.ticket == accepted, self._memory.lost
        before = self._memory.layout
        if before is None or self._memory.fingerprint == layout.fingerprint or not self._of_these_tensors(layout):
            return self._encoder.settle(self._restored(layout), taken), lost and not taken
        settled = self._encoder.settle(self._restored(before), taken)
        settled, fallen = self._encoder.follow(settled, before.move(layout))
        self._discarded = self._memory.discarded + float(fallen.sum(dtype=np.float64))
        if fallen.any():
            log(INFO, "round %d: the mask has changed, %g of magnitude kept back is discarded", self._order.round,
                float(np.abs(fallen).sum(dtype=np.float64)))  # fmt: skip
        return settled, lost and not taken

    def _of_these_tensors(self, layout: Layout) -> bool:
        """Tell whether the state is of the same model, whatever the mask."""
        memory = self._memory
        if memory is None or memory.layout is None:
            return memory is not None and memory.fingerprint == layout.fingerprint
        return memory.layout.full.fingerprint == layout.full.fingerprint

    def _restored(self, layout: Layout) -> Any:
        assert self._memory is not None
        if self._memory.fingerprint != layout.fingerprint:
            raise stores.StateError(
                f"the stored state belongs to another model (layout {self._memory.fingerprint}, this one is "
                f"{layout.fingerprint}); give the federation a new name, or remove the state"
            )
        return stores.restore_state(self._encoder.init(layout), self._memory.encoder)

    def _save(self, began: _Start, encoder_state: Any, ticket: int, reply: bytes, lost: bool) -> None:
        flat, layout = stores.flatten_state(encoder_state), began.layout
        epoch, discarded = self._order.mask_version, self._discarded
        memory = Memory(flat, ticket, layout.fingerprint, layout, reply, began.kept, lost, epoch, discarded)
        self._store.save(memory.stored())


def _vote(content: RecordDict, layout: Layout) -> bytes:
    """Return the application's vote on the mask as it is sent, empty where it has none."""
    record = content.config_records.get(orders.VOTE)
    bitmap = record["mask"] if record is not None else None
    if layout.mask is None or not isinstance(bitmap, bytes):
        return b""
    wanted = Mask(layout.mask.size, bitmap)
    return position_set.pack(wanted.positions, wanted.size, layout.mask.positions)


def _layout(
    given: Layout | Callable[[Context], Layout] | None, context: Context, arrays: dict[str, Any], round: int
) -> Layout:
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
