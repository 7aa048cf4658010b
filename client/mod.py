"""`compress(encoder)`: a Flower mod that sends the encoded update instead of the trained weights.

Where the server sends deltas (`SparseFed(downlink=...)`), the mod keeps the model, brings it to the server's version
and hands it to the application, which sees no difference.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from logging import ERROR, INFO, WARNING
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.supercore import log
from numpy.typing import NDArray

from fedpress.client import other_mods
from fedpress.client.received_model import Initial, LayoutOf, ReceivedModel, Receiver, same_tensors
from fedpress.client.state import bases, stores
from fedpress.client.state import replica as replicas
from fedpress.client.state.memory import Memory
from fedpress.client.training import running_statistics
from fedpress.compression import free_memory, seeds
from fedpress.compression.encoders.encoder import Encoder
from fedpress.compression.errors import BaseError, LayoutError, NonFiniteError
from fedpress.compression.messages import base_parts, orders, pieces, records
from fedpress.compression.messages.orders import Answer, Order
from fedpress.compression.tensors import buffer_codec, flatten
from fedpress.compression.tensors.layout import Layout, Vector, checked, names_a_buffer
from fedpress.compression.tensors.mask import Mask
from fedpress.compression.wire import position_set

_TRIMMED = 1 << 24
"""Bytes of trained arrays after which their memory goes back to the system, where the update needs it."""

Statistics: TypeAlias = Callable[[Context, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Function of a client's Context and a model's arrays that returns running statistics by the names of the buffers."""


def compress(
    encoder: Encoder[Any] | Callable[[Context], Encoder[Any]],
    *,
    layout: LayoutOf = None,
    initial: Initial | None = None,
    statistics: Statistics | None = None,
    app_has_frozen: bool = False,
) -> Mod:
    """Return a mod for any ClientApp that answers `train` with the trained weights in one ArrayRecord.

    The application sees the model as usual (plus what the encoder's `offset` adds) and answers as usual; on the wire
    its ArrayRecord is replaced by the encoded update (trained - start). Messages to `evaluate` get the model in the
    same way; if the answer returns it, it is left out, since the server would not read it. Other messages pass
    untouched. The server needs the strategy `SparseFed`.

    What cannot work inside is refused, with the reason: clipping and secure aggregation of Flower's (`other_mods`), and
    apps made from a `client_fn`. An answer that does not fit the model costs this client the round.

    A sparse model has a mask: weights outside are zero when the application gets them, and what it makes of them does
    not count. The order that the application sees holds the mask as a bitmap (`orders.read_order(...).mask`), so that
    it can train inside from the start, and vote on the next mask (`orders.VOTE`) where the order asks for it.

    A repeated order gets the same bytes again, and nothing is trained twice. An order older than the last one answered
    changes nothing: the answer is an error.

    Args:
        encoder: The encoder, or a function of Flower's Context that returns it.
        layout: Which arrays are parameters and which are buffers: `Layout.of(model)`, or a function of the Context.
            Without it the usual names decide (`Layout.of_arrays`), and the log says so.
        initial: A function of the Context that returns the arrays of the initial model by name, as this client has them
            by itself: from a file, or from the server's seed; the same mapping as long as nothing in it changes. Where
            their tag is the one that the server offers (`Downlink(agreed_initial=True)`), the first copy of the model
            is not sent. It raises `BaseError` where the client has other pretrained weights than the federation, which
            is then its answer; `bases.BaseMissing` where it has none, and asks for them. It returns None where the
            client has none; without the function, every new client is sent the model.
        statistics: A function of the Context and the received model's arrays that returns its running means and
            variances on this client's examples, such as `batch_norm.measure` gives them: they are sent in place of the
            trained ones, which belong to other weights. Without it, what the trained ones still hold of the received
            ones is taken out, if `layout` is that of a model (`running_statistics.of_training`).
        app_has_frozen: Whether the application takes parameters that are not trained from `initial` by itself. It is
            then handed the others alone where the server did not send them: a pretrained base is not copied for every
            message.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        category = message.metadata.message_type.partition(".")[0]
        order = None
        message.content = pieces.join(message.content)
        if category == "train":
            order = orders.read_order(message.content)
        elif category == "evaluate":
            order = orders.find_order(message.content)
        if order is None:
            return call_next(message, context)
        other_mods.check_outside(inspect.currentframe())
        chosen = encoder if isinstance(encoder, Encoder) else encoder(context)
        handler = _OrderHandler(message, context, order, chosen, layout, initial, statistics, app_has_frozen)
        reply = handler.train(call_next) if category == "train" else handler.evaluate(call_next)
        if reply.has_content():
            reply.content = pieces.cut(reply.content, order.piece or pieces.LIMIT)
        return reply

    return mod


class _OrderHandler:
    """One order, from its arrival to the reply."""

    def __init__(
        self,
        message: Message,
        context: Context,
        order: Order,
        encoder: Encoder[Any],
        layout: LayoutOf,
        initial: Initial | None,
        statistics: Statistics | None,
        app_has_frozen: bool,
    ) -> None:
        self._message = message
        self._context = context
        self._order = order
        self._encoder = encoder
        self._layout = layout
        self._initial = initial
        self._statistics = statistics
        self._app_has_frozen = app_has_frozen
        self._store = stores.open_store(context, order.federation)
        self._lost_state = False
        try:
            stored = self._store.load()
        except stores.DamagedState as error:
            log(ERROR, "%s; its residual is lost, and this client takes part as a new one", error)
            stored, self._lost_state = None, True
        self._memory = None if stored is None else Memory.of(stored)
        self._discarded = self._memory.discarded if self._memory else 0.0

    def train(self, call_next: ClientAppCallable) -> Message:
        """Train from the held model and answer with the encoded update."""
        order, memory = self._order, self._memory
        if memory is not None and memory.ticket == order.ticket and memory.reply:
            log(INFO, "ticket %d comes again: the same answer is sent again", order.ticket)
            return Message(records.content_from_bytes(memory.reply), reply_to=self._message)
        if memory is not None and order.ticket < memory.ticket:
            # Its verdict is outdated, too: acting on it could take back an upload that was accepted since.
            error = f"ticket {order.ticket} is older than {memory.ticket}, the last one answered here"
            log(WARNING, "%s: nothing is done", error)
            return self._reply(Answer(order.ticket, order.version, error=error, answered=memory.ticket))
        tier = stores.tier(self._context)
        try:
            other_mods.check(call_next)
            self._keep_base_part()
            model = Receiver(order, self._context, memory, self._layout, self._initial).model(self._message.content)
        except bases.BaseMissing as missing:
            return self._asks_for_base(missing)
        except (other_mods.ModError, LayoutError, BaseError) as error:
            return self._refused(error)
        if model is None:
            return self._reply(Answer(order.ticket, order.version, needs_model=True))
        layout = model.layout
        encoder_state, lost_state = self._acknowledged(layout)
        stores.leave_moments(self._context, self._kept_moments(layout))
        del memory
        self._memory = None  # what it holds of the size of the model is in `model` and `encoder_state` now
        measured = self._statistics(self._context, model.arrays) if self._statistics and layout.buffers else {}
        start = self._hand_over_ahead(model, encoder_state)
        reply = call_next(self._message, self._context)
        moments = stores.moments(self._context)
        stores.leave_moments(self._context, {})  # in the memory they are durable together with the answer
        if reply.has_error():
            return reply
        try:
            trained_key, trained_record = records.only_arrays(reply.content)
            given = dict(trained_record)  # the application may keep the record, or have it from the message
            del trained_record
            trained = _InDtypesOf(layout, records.Arrays(given))
            _check_frozen(trained, model.arrays, layout)
            buffers_after = {spec.name: checked(trained, spec) for spec in layout.buffers}
            own = running_statistics.of_training(model.arrays, trained, layout)
            for alias, _ in layout.tied:  # of the size of what they are an alias of, and not read
                given.pop(alias, None)
            reply.content.pop(trained_key, None)
            update = flatten.difference(trained, layout, records.Arrays(start), _given_back(given))
        except (orders.MessageError, LayoutError) as error:
            return self._refused(f"the app's answer to `train` is not the model that it was sent, trained: {error}")
        if start is not model.record:  # it is made of the encoder's state, which is overwritten
            self._message.content.pop(model.record_key, None)
        del start, trained, given
        side_info = replicas.side_info(order, layout)
        seed = seeds.derive(order.federation, order.round, stores.client_index(self._context), "encode")
        answer = Answer(order.ticket, order.version, tag=model.tag, lost_state=lost_state, tier=tier)
        try:
            after = {**buffers_after, **own, **measured}
            buffers = b""
            if layout.buffers:
                packed = buffer_codec.pack(after, layout, model.arrays)
                changed = buffer_codec.changes(packed, model.buffers, layout)
                buffers = buffer_codec.pack_changes(packed, changed, layout)
            payload, _, encoder_state = self._encoder.encode(update, encoder_state, side_info, seed)
        except NonFiniteError as error:
            log(WARNING, "round %d: no update is sent: %s", order.round, error)
            answer, moments = answer._replace(error=str(error)), {}
        else:
            answer = answer._replace(payload=payload, buffers=buffers, vote=_vote(reply.content, layout))
        others = {name: record for name, record in reply.content.items() if name != orders.VOTE}
        reply.content = records.folded(RecordDict({orders.ANSWER: orders.write_answer(answer), **others}))
        # Durable before the reply leaves: a kill in between loses the reply, and the server's next order brings its
        # mass back, or asks for the same again.
        self._save(model, encoder_state, order.ticket, records.content_to_bytes(reply.content), lost_state, moments)
        return reply

    def _hand_over_ahead(self, model: ReceivedModel, encoder_state: Any) -> ArrayRecord:
        """Give the application the model, plus what the encoder adds to it; return what training starts from.

        Args:
            model: The received model.
            encoder_state: State of the encoder; the sum is made of it when it is read.
        """
        layout, offset = model.layout, self._encoder.offset(encoder_state)
        if offset is None:
            if model.replica or layout.mask or self._order.frozen:
                self._hand_over(model, model.record)
            return model.record
        specs, inside, given = layout.parameters, layout.mask, model.arrays
        replica = model.replica.replica if model.replica else None

        def part(number: int, place: slice) -> Vector:
            if replica is not None and specs[number].dtype == "float32":
                start = replica.grid.floats_of(number, replica.integers[place])
                start += offset[place]
                return start
            held = flatten.values(given, specs[number])
            if inside is not None:
                held = held[inside.positions[place] - layout.full.offsets[number]]
            return held + offset[place]

        ahead = records.derived(flatten.readers(part, layout), {}, layout)
        record = records.of_arrays((name, ahead.get(name, array)) for name, array in model.record.items())
        self._hand_over(model, record)
        return record

    def evaluate(self, call_next: ClientAppCallable) -> Message:
        """Let the application evaluate the held model."""
        order, memory = self._order, self._memory
        if memory is not None and memory.mask_version != order.mask_version:
            raise orders.MessageError(
                f"the model to evaluate is within mask {order.mask_version}, this client has that of mask "
                f"{memory.mask_version}, until an order to train brings another"
            )
        try:
            self._keep_base_part()
            model = Receiver(order, self._context, memory, self._layout, self._initial).model(self._message.content)
        except bases.BaseMissing as missing:
            return self._asks_for_base(missing)
        if model is None:
            return self._reply(Answer(order.ticket, order.version, needs_model=True))
        self._hand_over(model, model.record)
        if model.replica:  # the upload that is under way stays as it is
            if memory:
                encoder_state = self._restored(memory, model.layout)
                self._save(model, encoder_state, memory.ticket, memory.reply, memory.lost_state, memory.moments)
            else:
                self._save(model, self._encoder.init(model.layout), 0, b"", self._lost_state)
        other_mods.check(call_next)
        reply = call_next(self._message, self._context)
        if not reply.has_error():
            returned = [name for name, record in reply.content.array_records.items() if _is_model(record, model.record)]
            kept = {name: record for name, record in reply.content.items() if name not in returned}
            if returned:
                _say_once(
                    f"compress: the app's answer to `evaluate` returns the model ({', '.join(returned)}), which"
                    " the server"
                    " does not read: it is left out"
                )
            answer = Answer(order.ticket, order.version, tag=model.tag)
            reply.content = RecordDict({**kept, orders.ANSWER: orders.write_answer(answer)})
        return reply

    def _hand_over(self, model: ReceivedModel, record: ArrayRecord) -> None:
        """Put a model into the message for the application, without what it has by itself."""
        if self._app_has_frozen and (model.replica or self._order.frozen) and not model.frozen:
            own = {spec.name for spec in model.layout.frozen}
            record = records.of_arrays((name, array) for name, array in record.items() if name not in own)
        self._message.content[model.record_key] = record

    def _keep_base_part(self) -> None:
        """Keep the part of a pretrained base that the message brings, where this client lacks that base.

        Raises:
            BaseMissing: The base is not whole yet.
            BaseError: The part is of another base, or the disk has no room.
            MessageError: The part is damaged.
        """
        part = base_parts.find(self._message.content)
        if part is None or self._initial is None:
            return
        self._message.content.pop(orders.BASE)
        try:
            self._initial(self._context)
        except bases.BaseMissing as missing:
            if not missing.store.add(part, missing.sha256):
                raise

    def _asks_for_base(self, missing: bases.BaseMissing) -> Message:
        length = missing.store.length(missing.sha256)
        log(INFO, "round %d: %s; it is asked for after %d bytes", self._order.round, missing, length)
        return self._reply(
            Answer(self._order.ticket, self._order.version, needs_base=missing.sha256, base_bytes=length)
        )

    def _refused(self, reason: object) -> Message:
        """Return an answer without an update, for the server to count and name; nothing changes here."""
        log(WARNING, "round %d: no update is sent: %s", self._order.round, reason)
        return self._reply(Answer(self._order.ticket, self._order.version, error=str(reason)))

    def _reply(self, answer: Answer) -> Message:
        return Message(RecordDict({orders.ANSWER: orders.write_answer(answer)}), reply_to=self._message)

    def _acknowledged(self, layout: Layout) -> tuple[Any, bool]:
        """Return the encoder's state after the server's verdict on the last upload, and whether to report a lost state.

        The order names the last upload that was accepted. An upload sent after that one was lost, late or refused, and
        its mass goes back into the state. An accepted upload that this client knows nothing of means that its state is
        gone or comes from a backup: it starts anew, as it would else send twice what the backup holds. The loss is
        reported until an answer that reports it has been accepted.

        Where the mask has changed, entries that survive keep their residual: after the verdict, so that an upload of
        the previous mask comes back first. The residual of the other entries is discarded, and counted.
        """
        order, memory = self._order, self._memory
        if memory and memory.mask_version != order.mask_version and not same_tensors(memory.layout, layout):
            log(
                WARNING,
                "mask %d follows %d, of another model: the residual is lost",
                order.mask_version,
                memory.mask_version,
            )
            memory, self._lost_state = None, True
        if memory is None or memory.ticket < order.accepted:
            if order.accepted:
                log(WARNING, "ticket %d was accepted, and the state here is older: it starts anew", order.accepted)
            return self._encoder.init(layout), order.accepted > 0 or self._lost_state
        accepted = memory.ticket == order.accepted
        lost_state = memory.lost_state and not accepted
        if memory.layout.fingerprint == layout.fingerprint or not same_tensors(memory.layout, layout):
            return self._encoder.acknowledge(self._restored(memory, layout), accepted), lost_state
        encoder_state = self._encoder.acknowledge(self._restored(memory, memory.layout), accepted)
        encoder_state, dropped = self._encoder.remap(encoder_state, memory.layout.change_to(layout))
        self._discarded = memory.discarded + float(dropped.sum(dtype=np.float64))
        if dropped.any():
            magnitude = float(np.abs(dropped).sum(dtype=np.float64))
            log(INFO, "round %d: the mask has changed, residual of magnitude %g is discarded", order.round, magnitude)
        return encoder_state, lost_state

    def _restored(self, memory: Memory, layout: Layout) -> Any:
        """Return the encoder's state in the memory."""
        if memory.layout.fingerprint != layout.fingerprint:
            raise stores.StateError(
                f"the stored state belongs to another model (layout {memory.layout.fingerprint}, this one is "
                f"{layout.fingerprint}); give the federation a new name, or remove the state"
            )
        return stores.restore_state(self._encoder.init(layout), memory.encoder)

    def _kept_moments(self, layout: Layout) -> Mapping[str, NDArray[Any]]:
        """Return the moments of the application's optimizer; none where the residual starts anew, too."""
        memory = self._memory
        if memory is None or not memory.moments:
            return {}
        if memory.ticket < self._order.accepted or not same_tensors(memory.layout, layout):
            log(WARNING, "round %d: the moments of the optimizer start anew, as the residual does", self._order.round)
            return {}
        return memory.moments

    def _save(
        self,
        model: ReceivedModel,
        encoder_state: Any,
        ticket: int,
        reply: bytes,
        lost_state: bool,
        moments: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        memory = Memory(
            encoder=stores.flatten_state(encoder_state),
            ticket=ticket,
            layout=model.layout,
            reply=reply,
            replica=model.replica,
            lost_state=lost_state,
            mask_version=self._order.mask_version,
            discarded=self._discarded,
            frozen=model.frozen,
            moments=moments,
        )
        self._store.save(memory.stored())


def _given_back(arrays: dict[str, Array]) -> Callable[[str], None]:
    """Return a function that removes one of the arrays, and gives its memory back to the system now and then."""
    freed = 0

    def give_back(name: str) -> None:
        nonlocal freed
        freed += math.prod(arrays.pop(name).shape) * 4
        if freed >= _TRIMMED:
            free_memory.trim()
            freed = 0

    return give_back


@functools.cache
def _say_once(text: str) -> None:
    log(WARNING, "%s", text)


def _is_model(record: ArrayRecord, model: ArrayRecord) -> bool:
    """Tell whether a record holds arrays of the model and nothing else, whole or in part, whatever their values."""
    return bool(record) and all(
        name in model and tuple(array.shape) == tuple(model[name].shape) for name, array in record.items()
    )


class _InDtypesOf(Mapping[str, NDArray[Any]]):
    """Floating arrays in the layout's dtypes: libraries train in another precision than they begin with.

    Args:
        layout: Layout of the model.
        arrays: The arrays by name.
    """

    def __init__(self, layout: Layout, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._dtypes = {spec.name: spec.dtype for spec in (*layout.parameters, *layout.buffers)}
        self._arrays = arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array, read anew."""
        array, wanted, floats = self._arrays[name], self._dtypes.get(name), ("float16", "float32", "float64")
        if wanted not in floats or array.dtype.name not in floats:
            return array
        with np.errstate(over="ignore"):  # infinity is refused by the encoder, with a better message
            return array.astype(wanted, copy=False)

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        """Return whether there is an array of this name, without reading it."""
        return name in self._arrays


def _check_frozen(trained: Mapping[str, NDArray[Any]], start: Mapping[str, NDArray[Any]], layout: Layout) -> None:
    """Check that training has left alone what the layout says is not trained.

    Running statistics of a frozen layer are left out where training has moved them, and the log says so: they move in
    each forward pass of a model that is set to train as a whole.

    Args:
        trained: Arrays of the application's answer.
        start: Arrays that it was given.
        layout: Layout of the model.

    Raises:
        LayoutError: A frozen parameter has changed; it would be lost without a word.
    """
    changed = [
        spec
        for spec in layout.frozen
        if spec.name in trained and trained[spec.name].tobytes() != start[spec.name].tobytes()
    ]
    statistics = [spec.name for spec in changed if names_a_buffer(spec.name)]
    for spec in changed:
        if spec.name not in statistics:
            raise LayoutError(
                f"training has changed {spec.name!r}, which has requires_grad=False in the model that `layout` was made"
                " of, and is never sent; set requires_grad before `Layout.of(model)`, the same on both sides"
            )
    if statistics:
        _say_once(
            f"compress: training has moved {len(statistics)} running statistics of frozen layers, such as"
            f" {statistics[0]!r}: they are left out, and the model keeps those that it came with. Set these layers to"
            " eval() after model.train(), or train their weights and biases, too"
        )


def _vote(content: RecordDict, layout: Layout) -> bytes:
    """Return the application's vote on the mask as it is sent, empty where it has none."""
    record = content.config_records.get(orders.VOTE)
    bitmap = record["mask"] if record is not None else None
    if layout.mask is None or not isinstance(bitmap, bytes):
        return b""
    wanted = Mask(layout.mask.size, bitmap)
    return position_set.pack(wanted.positions, wanted.size, layout.mask.positions)
