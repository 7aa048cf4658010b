"""Orders and answers: the messages between server and client beside the model, as Flower records."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from flwr.app import ConfigRecord, RecordDict

from fedpress.compression.errors import FedpressError

ANSWER = "fedpress"
"""Key of the answer's ConfigRecord in a reply."""
BASE = "fedpress.base"
"""Key of the ConfigRecord with a part of the pretrained base (`base_parts`)."""
VOTE = "fedpress.vote"
"""Key of the ConfigRecord in which an application hands its vote on the mask to the mod: `mask`, a bitmap."""
MAX_TICKET = 2**62
"""Greatest ticket that a client may claim to have answered; the server counts on from there, in 63 bits."""
MOST_TIER = 100
"""Largest length of a tier's name in an answer, in characters."""
LEAST_PIECE = 64
"""Smallest pieces that an order may ask for, in bytes (`pieces`)."""

NEEDS_MODEL, NEEDS_BASE = "needs-model", "needs-base"
"""Entries of an answer that asks for the model, or for the pretrained base."""

PREFIX = "fedpress."
_MASK_VERSION = f"{PREFIX}epoch"
"""Key of the mask's version on the wire, kept short: it travels in each order."""
_METRIC = "metric."

T = TypeVar("T")


class MessageError(FedpressError, ValueError):
    """A message lacks a part that the protocol requires, or holds one of the wrong type or range."""


class Download(NamedTuple):
    """The part of an order that brings a client to the order's version (docs/concepts/what-clients-hold.md)."""

    tag: bytes  # proves that the client has got there
    base: int | None  # version that the delta is added to; None: the model is there as an ArrayRecord
    delta: bytes = b""  # a payload; empty where base is the order's version already, or the arrays are exact
    origin: bytes = b""  # of a model anew: the tag of version 0, or the `FixedPoint` of a snapshot or of the arrays
    buffers: bytes = b""  # of the order's version, as far as they differ (`buffer_codec.pack_changes`)
    grid: bytes = b""  # changes of the grid since the base (`pack_regrids`); empty for none


class Order(NamedTuple):
    """A server's message to a client beside the model (docs/concepts/rounds.md, "Messages")."""

    federation: str  # names the federation; client state belongs to it
    ticket: int  # one open ticket per node; the answer repeats it
    round: int
    mask_version: int  # rises when the layout or the mask changes
    version: int  # of the model sent with this order
    accepted: int  # ticket of this client's last accepted upload, 0 for none: whatever came later was refused
    download: Download | None = None  # None: the model is there as an ArrayRecord, and clients keep none
    mask: bytes | None = None  # `position_set.pack`; empty: the client has this version's; None: the model has no mask
    drop: float = 0.0  # with the update comes a vote: the mask without this part of each tensor's weights,
    grow: float = 0.0  # and with as many others as this part. 0 and 0: no vote is asked for
    frozen: bytes = b""  # `flatten.digest` of what is not trained, where the arrays come without it; empty: it is there
    piece: int = 0  # bytes of the longest entry of the answer that stays whole (`pieces.cut`); 0: `pieces.LIMIT`


class Answer(NamedTuple):
    """A client's reply: an encoded update, or the reason why there is none."""

    ticket: int
    version: int
    payload: bytes = b""
    buffers: bytes = b""  # as far as they differ from those of the order's version (`buffer_codec.pack_changes`)
    error: str = ""  # empty when `payload` counts
    tag: bytes = b""  # of the model that it holds, where clients hold one
    needs_model: bool = False  # the delta did not fit: the client asks for the model from its beginning
    lost_state: bool = False  # the residual of earlier updates is lost
    answered: int = 0  # beside the error of an order that is older: the ticket that it has answered last
    tier: str = ""  # the class of devices that this node says it belongs to
    vote: bytes = b""  # the mask that it proposes, coded against the order's (`position_set.pack`), if asked for
    needs_base: str = ""  # SHA-256 of the pretrained base that it lacks, hexadecimal: it asks for the base
    base_bytes: int = 0  # of these bytes of the base it has already


def write_order(order: Order) -> dict[str, Any]:
    """Return the order as entries for a ConfigRecord; empty parts are left out."""
    entries: dict[str, Any] = {
        f"{PREFIX}federation": order.federation,
        f"{PREFIX}ticket": order.ticket,
        f"{PREFIX}round": order.round,
        _MASK_VERSION: order.mask_version,
        f"{PREFIX}version": order.version,
        f"{PREFIX}accepted": order.accepted,
    }
    if order.download:
        parts = order.download._asdict().items()
        entries |= {f"{PREFIX}{name}": value for name, value in parts if value is not None and value != b""}
    if order.mask is not None:
        entries[f"{PREFIX}mask"] = order.mask
    optional = {name: getattr(order, name) for name in ("drop", "grow", "frozen", "piece")}
    entries |= {f"{PREFIX}{name}": part for name, part in optional.items() if part}
    return entries


def rewrite_mask(content: RecordDict, mask: bytes) -> None:
    """Replace the mask of the order in a message's records by another encoding of it.

    Args:
        content: Records of a message with an order; changed in place.
        mask: The mask, as `position_set.pack` writes it.
    """
    for record in content.config_records.values():
        if f"{PREFIX}ticket" in record:
            record[f"{PREFIX}mask"] = mask


def find_order(content: RecordDict) -> Order | None:
    """Return the order in a message's records, or None if no ConfigRecord holds one.

    Raises:
        MessageError: A part of it is missing or has the wrong type.
    """
    for record in content.config_records.values():
        if f"{PREFIX}ticket" in record:
            return _order(record)
    return None


def read_order(content: RecordDict) -> Order:
    """Return the order in a message's records.

    Raises:
        MessageError: There is none; most likely the server runs another strategy than `SparseFed`. Or a part of it is
            missing or has the wrong type.
    """
    order = find_order(content)
    if order is None:
        raise MessageError(
            "the message carries no fedpress order (no ConfigRecord with 'fedpress.ticket'); "
            "a client with `compress(...)` needs the strategy `SparseFed` on the server"
        )
    return order


def _order(record: ConfigRecord) -> Order:
    return Order(
        federation=_typed(record, f"{PREFIX}federation", str),
        ticket=_typed(record, f"{PREFIX}ticket", int),
        round=_typed(record, f"{PREFIX}round", int),
        mask_version=_typed(record, _MASK_VERSION, int),
        version=_typed(record, f"{PREFIX}version", int),
        accepted=_typed(record, f"{PREFIX}accepted", int),
        download=_download(record) if f"{PREFIX}tag" in record else None,
        mask=_typed(record, f"{PREFIX}mask", bytes) if f"{PREFIX}mask" in record else None,
        drop=_part(record, f"{PREFIX}drop"),
        grow=_part(record, f"{PREFIX}grow"),
        frozen=_typed(record, f"{PREFIX}frozen", bytes) if f"{PREFIX}frozen" in record else b"",
        piece=_piece(record),
    )


def _piece(record: ConfigRecord) -> int:
    if (key := f"{PREFIX}piece") not in record:
        return 0
    piece = _typed(record, key, int)
    if piece < LEAST_PIECE:
        raise MessageError(f"entry {key!r} is {piece}, expected at least {LEAST_PIECE} bytes")
    return piece


def _part(record: ConfigRecord, key: str) -> float:
    if key not in record:
        return 0.0
    part = _typed(record, key, float)
    if not 0 <= part <= 1:
        raise MessageError(f"entry {key!r} is {part}, expected a fraction, 0 to 1")
    return part


def _download(record: ConfigRecord) -> Download:
    def part(name: str) -> bytes:
        return _typed(record, f"{PREFIX}{name}", bytes) if f"{PREFIX}{name}" in record else b""

    base = _typed(record, f"{PREFIX}base", int) if f"{PREFIX}base" in record else None
    return Download(part("tag"), base, part("delta"), part("origin"), part("buffers"), part("grid"))


def write_answer(answer: Answer) -> ConfigRecord:
    """Return the answer as a ConfigRecord; empty parts are left out."""
    record = ConfigRecord({"ticket": answer.ticket, "version": answer.version})
    if answer.tag:
        record["tag"] = answer.tag
    if answer.lost_state:
        record["lost-state"] = True
    if answer.needs_base:
        record[NEEDS_BASE], record["base-bytes"] = answer.needs_base, answer.base_bytes
    elif answer.needs_model:
        record[NEEDS_MODEL] = True
    elif answer.error:
        record["error"] = answer.error
        if answer.answered:
            record["answered"] = answer.answered
    else:
        record["update"] = answer.payload
        if answer.tier:
            record["tier"] = answer.tier
        if answer.buffers:
            record["buffers"] = answer.buffers
        if answer.vote:
            record["vote"] = answer.vote
    return record


def read_answer(content: RecordDict) -> Answer:
    """Read a client's answer.

    Raises:
        MessageError: The reply has no answer, or one of its parts has the wrong type.
    """
    record = content.config_records.get(ANSWER)
    if record is None:
        hint = "; is `mods=[compress(...)]` missing from the ClientApp?" if content.array_records else ""
        raise MessageError(f"the reply has no ConfigRecord {ANSWER!r}, but {sorted(content)[:10]}{hint}")
    error = _typed(record, "error", str) if "error" in record else ""
    needs_model = NEEDS_MODEL in record
    needs_base = _typed(record, NEEDS_BASE, str) if NEEDS_BASE in record else ""
    base_bytes = _typed(record, "base-bytes", int) if needs_base else 0
    if base_bytes < 0 or len(needs_base) > 64:
        raise MessageError(f"entry 'base-bytes' is {base_bytes}, with a hash of {len(needs_base)} digits, expected 64")
    answered = _typed(record, "answered", int) if "answered" in record else 0
    tier = _typed(record, "tier", str) if "tier" in record else ""
    if len(tier) > MOST_TIER or not tier.isprintable():
        raise MessageError(
            f"entry 'tier' has {len(tier)} characters, expected at most {MOST_TIER}, all printable; it names the class"
            " of the device in the node's configuration"
        )
    if not 0 <= answered <= MAX_TICKET:
        raise MessageError(f"entry 'answered' is {answered}, expected a ticket, 0 to {MAX_TICKET}")
    return Answer(
        ticket=_typed(record, "ticket", int),
        version=_typed(record, "version", int),
        payload=b"" if error or needs_model or needs_base else _typed(record, "update", bytes),
        buffers=_typed(record, "buffers", bytes) if "buffers" in record else b"",
        error=error,
        tag=_typed(record, "tag", bytes) if "tag" in record else b"",
        needs_model=needs_model,
        needs_base=needs_base,
        base_bytes=base_bytes,
        lost_state="lost-state" in record,
        answered=answered,
        tier=tier,
        vote=_typed(record, "vote", bytes) if "vote" in record else b"",
    )


def _typed(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if type(value) is not kind:
        held = "nothing" if value is None else f"a {type(value).__name__}"
        raise MessageError(f"entry {key!r} holds {held}, expected {kind.__name__}")
    return value
