"""`compress(encoder)`: a Flower mod that sends the encoded update instead of the trained weights."""

from collections.abc import Callable
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.supercore import log

from fedpress.client import state
from fedpress.compression import records, seeds, vector
from fedpress.compression.encoder import Encoder, Shared
from fedpress.compression.errors import NonFiniteError
from fedpress.compression.vector import Layout


def compress(
    encoder: Encoder[Any] | Callable[[Context], Encoder[Any]],
    *,
    layout: Layout | Callable[[Context], Layout] | None = None,
) -> Mod:
    """Return a mod for any ClientApp that answers `train` with the trained weights in one ArrayRecord.

    The application sees the model as usual (plus what the encoder's `start` adds) and answers as usual; on the wire
    its ArrayRecord is replaced by the encoded update (trained - start). Other messages pass untouched. The server
    needs the strategy `SparseFed`.

    Args:
        encoder: the encoder, or a function of Flower's Context that returns it.
        layout: which arrays are parameters and which are buffers: `Layout.of(model)`, or a function of the Context.
            Without it the usual names decide (`Layout.of_arrays`), and the log says so.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        order = records.read_order(message.content)
        key, sent = records.only_arrays(message.content)
        arrays = records.to_numpy(sent)
        agreed = _layout(layout, context, arrays, order.round)
        chosen = encoder if isinstance(encoder, Encoder) else encoder(context)

        store = state.open_store(context, order.federation)
        encoder_state = _settled(chosen, agreed, store.load(), order)

        start = vector.flatten(arrays, agreed)
        offset = chosen.start(encoder_state)
        if offset is not None:
            start += offset
            moved = vector.unflatten(start, agreed)
            start = vector.flatten(moved, agreed)  # what the application really gets, in the layout's dtypes
            message.content[key] = ArrayRecord({**sent, **records.from_numpy(moved)})

        reply = call_next(message, context)
        if reply.has_error():
            return reply
        reply_key, trained_record = records.only_arrays(reply.content)
        trained = records.to_numpy(trained_record)
        update = vector.flatten(trained, agreed)
        update -= start

        shared = Shared(layout=agreed, round=order.round, epoch=order.epoch)
        seed = seeds.derive(order.federation, order.round, state.client_index(context), "encode")
        try:
            payload, encoder_state = chosen.encode(update, encoder_state, shared, seed)
        except NonFiniteError as error:
            log(WARNING, "round %d: no update is sent: %s", order.round, error)
            answer = records.Answer(order.ticket, order.version, b"", b"", str(error))
        else:
            buffers = vector.pack_buffers(trained, agreed) if agreed.buffers else b""
            answer = records.Answer(order.ticket, order.version, payload, buffers, "")
        # Durable before the reply leaves: a kill in between loses the reply, and the server's next order brings its
        # mass back.
        meta = {"ticket": str(order.ticket), "layout": str(agreed.fingerprint)}
        store.save(state.Stored(state.flatten_state(encoder_state), meta))
        reply.content = RecordDict(
            {records.ANSWER: records.write_answer(answer), **{k: v for k, v in reply.content.items() if k != reply_key}}
        )
        return reply

    return mod


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


def _settled(encoder: Encoder[Any], layout: Layout, stored: state.Stored | None, order: records.Order) -> Any:
    """Return the encoder's state with the server's verdict on the last upload applied.

    The order names the last upload that was accepted. Whatever this client sent after that one was lost, late or
    refused, and its mass goes back into the state.
    """
    fresh = encoder.init(layout)
    if stored is None:
        return fresh
    if stored.meta.get("layout") != str(layout.fingerprint):
        raise state.StateError(
            f"the stored state belongs to another model (layout {stored.meta.get('layout')}, this one is "
            f"{layout.fingerprint}); give the federation a new name, or remove the state"
        )
    encoder_state = state.restore_state(fresh, stored.arrays)
    return encoder.settle(encoder_state, stored.meta.get("ticket") == str(order.accepted))
