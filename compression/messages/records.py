"""Conversions and sizes of Flower's records and messages.

Down, beside the application's own records, the server's order stands in the ConfigRecord that Flower's strategies
send anyway (one object less on the wire than a record of its own). Up, the client's answer is one ConfigRecord: a
payload in a ConfigRecord is one object, in an ArrayRecord three (docs/decisions/0003-payload-in-a-configrecord.md).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from numpy.typing import NDArray

from fedpress.compression.messages.orders import _METRIC, ANSWER, PREFIX, MessageError


def folded(content: RecordDict) -> RecordDict:
    """Return a reply with its metrics inside the answer's record: each record is an object of its own on the wire."""
    metrics = list(content.metric_records.items())
    if len(metrics) != 1 or "." in metrics[0][0] or any(isinstance(value, list) for value in metrics[0][1].values()):
        return content
    (name, values), answer = metrics[0], content.config_records[ANSWER]
    for key, value in values.items():
        answer[f"{_METRIC}{name}.{key}"] = value
    return RecordDict({key: record for key, record in content.items() if key != name})


def unfolded(content: RecordDict) -> RecordDict:
    """Return a reply with its metrics in records of their own again."""
    answer = content.config_records.get(ANSWER)
    metrics: dict[str, dict[str, Any]] = {}
    for key in [] if answer is None else [key for key in answer if key.startswith(_METRIC)]:
        name, _, metric = key.removeprefix(_METRIC).partition(".")
        value = answer[key]  # type: ignore[index]
        if isinstance(value, int | float) and not isinstance(value, bool):
            metrics.setdefault(name, {})[metric] = value
    return RecordDict({**content, **{name: MetricRecord(values) for name, values in metrics.items()}})


def content_to_bytes(content: RecordDict) -> bytes:
    """Return a message's records as bytes, for storage."""
    return bytes(serde.recorddict_to_proto(content).SerializeToString())


def content_from_bytes(data: bytes) -> RecordDict:
    """Return the records that `content_to_bytes` wrote."""
    return serde.recorddict_from_proto(ProtoRecordDict.FromString(data))


def content_size(content: RecordDict) -> int:
    """Return the serialized size of a message's records, in bytes."""
    return int(serde.recorddict_to_proto(content).ByteSize())


def message_to_bytes(message: Message) -> bytes:
    """Return a message as bytes, for storage or another process."""
    return bytes(serde.message_to_proto(message).SerializeToString())


def message_from_bytes(data: bytes) -> Message:
    """Return the message that `message_to_bytes` wrote."""
    return serde.message_from_proto(ProtoMessage.FromString(data))


def excerpt(text: object, most: int = 400) -> str:
    r"""Return a text from elsewhere in a form that is safe to log and to keep: short, in one line, all printable.

    Args:
        text: Anything; `str` of it counts.
        most: Most characters of it that are kept.

    >>> excerpt("no space\n\x1b[2Jleft"), excerpt("a" * 20_000_000, 3)
    ('no space\\n\\x1b[2Jleft', 'aaa... (20000000 characters)')
    """
    whole = str(text)
    quoted = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[:most])
    return quoted[:most] + f"... ({len(whole)} characters)" * (len(whole) > most)


def reason_of(reply: Message) -> str:
    """Return the reason of an error, as its sender gives it, or that it gives none."""
    return reply.error.reason or f"an error of code {reply.error.code}, without a reason"


def set_source(message: Message, node: int) -> None:
    """Set the node that a message is from, since its own claim is the sender's alone.

    Args:
        message: Changed in place.
        node: Id of the node from which the message was received.
    """
    message.metadata.__dict__["_src_node_id"] = node


def set_id(message: Message, message_id: str) -> None:
    """Set the id of a message, as a queue does.

    Args:
        message: Changed in place.
        message_id: The new id.
    """
    message.metadata.__dict__["_message_id"] = message_id


def only_arrays(content: RecordDict) -> tuple[str, ArrayRecord]:
    """Return the key and value of the single ArrayRecord in `content`.

    Raises:
        MessageError: There is none, or more than one.
    """
    arrays = list(content.array_records.items())
    if len(arrays) != 1:
        raise MessageError(
            f"expected exactly one ArrayRecord with the model, found {len(arrays)} {sorted(k for k, _ in arrays)}"
        )
    return arrays[0]


def to_numpy(arrays: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return the record's arrays by name."""
    return {name: array.numpy() for name, array in arrays.items()}


def from_numpy(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return an ArrayRecord of `arrays`, in their order."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def item_size(key: str, record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Return the bytes that a record adds to its message's serialized content.

    Args:
        key: Key of the record in the message.
        record: The record.
    """
    return content_size(RecordDict({key: record}))


def serialized_size(message: Message) -> int:
    """Return the size of the message's serialized content, or of its error, in bytes."""
    proto = serde.message_to_proto(message)
    return int(proto.content.ByteSize() if message.has_content() else proto.error.ByteSize())


def sizes(message: Message, known: Mapping[int, int] | None = None) -> dict[str, int]:
    """Return the size of a message's serialized content by kind, in bytes.

    The parts sum to `serialized_size(message)`: a RecordDict is serialized item by item.

    Args:
        message: Order or reply.
        known: Sizes of records already measured, by `id(record)`, so that a model sent to many clients is measured
            once.
    """
    if message.has_error():
        return {"control": serialized_size(message)}
    category = message.metadata.message_type.partition(".")[0]
    by_kind: dict[str, int] = {}
    for key, record in message.content.items():
        size = known[id(record)] if known and id(record) in known else item_size(key, record)
        if category == "evaluate":
            by_kind["evaluate"] = by_kind.get("evaluate", 0) + size
            continue
        if category == "query" and isinstance(record, ConfigRecord) and isinstance(record.get("bundle"), bytes):
            by_kind["bundle"] = by_kind.get("bundle", 0) + size
            continue
        if isinstance(record, ArrayRecord):
            kind = "model"
        elif isinstance(record, MetricRecord):
            kind = "metrics"
        else:
            kind = "control"
            down = (f"{PREFIX}delta", f"{PREFIX}buffers", f"{PREFIX}mask")
            for part in ("update", "buffers", "vote") if key == ANSWER else down:
                value = record.get(part)
                if isinstance(value, bytes):
                    name = part.removeprefix(PREFIX).replace("delta", "model")
                    by_kind[name] = by_kind.get(name, 0) + len(value)
                    size -= len(value)
        by_kind[kind] = by_kind.get(kind, 0) + size
    return by_kind
