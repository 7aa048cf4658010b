"""Conversions and sizes of Flower's records and messages.

Down, beside the application's own records, the server's order stands in the ConfigRecord that Flower's strategies
send anyway (one object less on the wire than a record of its own). Up, the client's answer is one ConfigRecord: a
payload in a ConfigRecord is one object, in an ArrayRecord three (docs/decisions/0003-payload-in-a-configrecord.md).
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import serde
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from numpy.typing import NDArray

from fedpress.compression.messages import pieces
from fedpress.compression.messages.orders import _METRIC, ANSWER, BASE, PREFIX, MessageError
from fedpress.compression.tensors.layout import Layout

_APART = 1 << 16
"""Bytes from which a value stands apart in a stored message."""
_HEADER = 128
"""Bytes of numpy's header before the values of an array."""
NUMPY = "numpy.ndarray"
"""Form in which Flower serializes an array of numpy's."""


class DerivedArray(Array):
    """Array of a record that is made from something else each time it is read, so that it takes no memory itself.

    It is worth an array that holds its bytes: Flower reads, sends and stores it as any other.

    Args:
        dtype: Its dtype, as numpy names it.
        shape: Its shape.
        make: Returns its values, the same at each call, as an array that the caller owns.
        stype: Form of its bytes: `NUMPY`, as Flower serializes an array of numpy's; any other: the values alone.
        held: The values, where they are in memory as an array, of which `make` returns a copy.
    """

    __qualname__ = "Array"  # by which Flower names the object on the wire, and the receiver knows its kind

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        make: Callable[[], NDArray[Any]],
        stype: str = NUMPY,
        held: NDArray[Any] | None = None,
    ) -> None:
        self.__dict__.update(dtype=dtype, shape=shape, stype=stype, _make=make, _held=held)

    @classmethod
    def of(cls, array: NDArray[Any], stype: str = NUMPY) -> "DerivedArray":
        """Return the array of a record that holds an array as it is: it is copied when it is read.

        Args:
            array: Values that nobody changes while the record is in use.
            stype: As of the class.
        """
        held = np.asarray(array)  # of one entry it may be a scalar, which has no flags
        return cls(str(held.dtype), tuple(held.shape), held.copy, stype, held)

    @property
    def data(self) -> bytes:  # type: ignore[override]  # of a field of a dataclass
        """The bytes."""
        values = self.view()
        return Array(values).data if self.stype == NUMPY else values.tobytes()

    def numpy(self) -> NDArray[Any]:
        """Return the values, a new array."""
        return np.asarray(self.__dict__["_make"]())

    def view(self) -> NDArray[Any]:
        """Return the values to be read alone, without a copy where they are in memory."""
        held = self.__dict__["_held"]
        if held is None:
            return self.numpy()
        values: NDArray[Any] = held.view()
        values.flags.writeable = False
        return values

    def __eq__(self, other: object) -> bool:
        """Return whether another array has the same type and bytes."""
        if not isinstance(other, Array):
            return NotImplemented
        kinds = [(array.dtype, tuple(array.shape), array.stype) for array in (self, other)]
        return kinds[0] == kinds[1] and self.data == other.data

    __hash__ = None  # type: ignore[assignment]  # as of any Array

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as an array that holds its bytes."""
        return Array, (self.dtype, tuple(self.shape), self.stype, self.data)


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of a record by name, each read when it is asked for: never all of them at once.

    One that the record holds as it is (`DerivedArray.of`) is not copied, and read-only.

    Args:
        record: The record, or its arrays by name.
    """

    def __init__(self, record: Mapping[str, Array]) -> None:
        self._record = record

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array, read anew."""
        array = self._record[name]
        return array.view() if isinstance(array, DerivedArray) else array.numpy()

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names."""
        return iter(self._record)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._record)

    def __contains__(self, name: object) -> bool:
        """Return whether there is an array of this name, without reading it."""
        return name in self._record


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


def content_pieces(content: RecordDict) -> Iterator[bytes]:
    """Yield a message's records as bytes for storage or another process, piece by piece.

    Long values stand apart, whole and one after the other: protobuf holds at most 2 GiB, and needs a second copy.

        8 bytes   length of what follows, little-endian
        records   protobuf, without the long values
        8 bytes   length of what follows
        names     JSON: record and entry of each long value
        values    each after its length, 8 bytes

    Args:
        content: The records; an array is read when its turn comes.
    """
    light, apart = RecordDict(), []
    for key, record in content.items():
        long = {name: True for name, value in record.items() if _length(value) >= _APART}
        apart += [(key, name) for name in long]
        if isinstance(record, ArrayRecord):
            light[key] = of_arrays((name, _light(array) if name in long else array) for name, array in record.items())
        elif long:
            light[key] = ConfigRecord({name: b"" if name in long else value for name, value in record.items()})
        else:
            light[key] = record
    for text in (serde.recorddict_to_proto(light).SerializeToString(), json.dumps(apart).encode()):
        yield _size(text)
        yield text
    for key, name in apart:
        value = content[key][name]
        data = value.data if isinstance(value, Array) else cast(bytes, value)
        yield _size(data)
        yield data


def content_from(file: BinaryIO) -> RecordDict:
    """Return the records that `content_pieces` yielded.

    Args:
        file: Where they are next.

    Raises:
        ValueError: They are torn, or something else.
    """
    content = serde.recorddict_from_proto(ProtoRecordDict.FromString(_next(file)))
    for key, name in json.loads(_next(file)):
        record, data = content[key], _next(file)
        if isinstance(record, ArrayRecord):
            light = record[name]
            record[name] = Array(light.dtype, light.shape, light.stype, data)
        elif isinstance(record, ConfigRecord):
            record[name] = data
    return content


def content_to_bytes(content: RecordDict) -> bytes:
    """Return a message's records as bytes, for storage."""
    return b"".join(content_pieces(content))


def content_from_bytes(data: bytes) -> RecordDict:
    """Return the records that `content_to_bytes` wrote."""
    return content_from(io.BytesIO(data))


def _light(array: Array) -> Array:
    return Array(array.dtype, array.shape, array.stype, b"")


def _length(value: Any) -> int:
    """Return the bytes of a value in a record that may stand apart: an array, or bytes."""
    if isinstance(value, DerivedArray):
        header = _HEADER if value.stype == NUMPY else 0
        return header + math.prod(value.shape) * np.dtype(value.dtype).itemsize
    return len(value.data) if isinstance(value, Array) else len(value) if isinstance(value, bytes) else 0


def _size(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little")


def _next(file: BinaryIO) -> bytes:
    """Read the length of a piece, and the piece."""
    field = file.read(8)
    length = int.from_bytes(field, "little")
    data = file.read(length) if len(field) == 8 else b""
    if len(field) < 8 or len(data) < length:
        raise ValueError("the stored message ends early")
    return data


def content_size(content: RecordDict) -> int:
    """Return the serialized size of a message's records, in bytes."""
    return sum(item_size(key, record) for key, record in content.items())


def message_to_bytes(message: Message) -> bytes:
    """Return a message as bytes, for storage or another process."""
    light = Message(RecordDict(), metadata=message.metadata) if message.has_content() else message  # type: ignore[call-overload]
    head = serde.message_to_proto(light).SerializeToString()
    content = content_pieces(message.content) if message.has_content() else ()
    return b"".join([_size(head), head, *content])


def message_from_bytes(data: bytes) -> Message:
    """Return the message that `message_to_bytes` wrote."""
    file = io.BytesIO(data)
    head = ProtoMessage.FromString(_next(file))
    if head.HasField("error"):
        return serde.message_from_proto(head)
    message = serde.message_from_proto(head)
    message.content = content_from(file)
    return message


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
    return of_arrays((name, Array(np.asarray(array))) for name, array in arrays.items())


def derived(
    readers: Mapping[str, Callable[[], NDArray[Any]]], kept: Mapping[str, NDArray[Any]], layout: Layout
) -> dict[str, Array]:
    """Return the arrays of a model by name, made when they are read.

    Args:
        readers: Functions that make the parameters, by name (`Replica.readers`).
        kept: Buffers and frozen parameters, which nobody changes in place.
        layout: Layout of the model.
    """
    specs = {spec.name: spec for spec in layout.parameters}
    specs |= {alias: specs[canonical] for alias, canonical in layout.tied}
    arrays: dict[str, Array] = {}
    for name, make in readers.items():
        dtype = "uint16" if specs[name].dtype == "bfloat16" else specs[name].dtype
        arrays[name] = DerivedArray(dtype, specs[name].shape, make)
    for name, array in kept.items():
        arrays[name] = DerivedArray.of(array)
    return arrays


def views(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return an ArrayRecord that holds arrays without a copy of them: each is copied when it is read.

    Args:
        arrays: Arrays by name, such as `tensor.numpy()` gives them; nobody changes them while the record is in use.
    """
    return of_arrays((name, DerivedArray.of(array)) for name, array in arrays.items())


def of_arrays(arrays: Iterable[tuple[str, Array]]) -> ArrayRecord:
    """Return an ArrayRecord of named arrays as they are; Flower's constructor would read each `DerivedArray`."""
    record = ArrayRecord()
    for name, array in arrays:
        record[name] = array
    return record


def values_size(record: ArrayRecord) -> int:
    """Return the bytes that the values of a record's arrays take in memory, without making any."""
    return sum(
        math.prod(array.shape) * np.dtype(array.dtype).itemsize if isinstance(array, DerivedArray) else len(array.data)
        for array in record.values()
    )


def item_size(key: str, record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Return the bytes that a record adds to its message's serialized content.

    Of a record of arrays one array is serialized at a time, so that a model needs no second place in memory.

    Args:
        key: Key of the record in the message.
        record: The record.
    """
    if not isinstance(record, ArrayRecord):
        return int(serde.recorddict_to_proto(RecordDict({key: record})).ByteSize())
    return _named(key, sum(_named(name, _array_size(array)) for name, array in record.items()))


def _array_size(array: Array) -> int:
    """Return the serialized size of an array, which may be larger than protobuf could serialize."""
    light, length = ProtoArray(dtype=array.dtype, shape=array.shape, stype=array.stype).ByteSize(), len(array.data)
    return int(light) + (_field(length) if length else 0)


def _named(key: str, length: int) -> int:
    """Return the bytes of an item of a protobuf message that has a key and a value of such a length."""
    name = len(key.encode())
    return _field((_field(name) if name else 0) + _field(length))


def _field(length: int) -> int:
    """Return the bytes that a field of such a length takes in a protobuf message, its tag and its length included."""
    return 1 + -(-max(1, length.bit_length()) // 7) + length


def serialized_size(message: Message) -> int:
    """Return the size of the message's serialized content, or of its error, in bytes."""
    if message.has_content():
        return content_size(message.content)
    return int(serde.message_to_proto(message).error.ByteSize())


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
        kind, parts = _kinds(key, record, category)
        for entry, data in parts.items():
            by_kind[entry] = by_kind.get(entry, 0) + len(data)
            size -= len(data)
        by_kind[kind] = by_kind.get(kind, 0) + size
    return by_kind


def _kinds(key: str, record: ArrayRecord | ConfigRecord | MetricRecord, category: str) -> tuple[str, dict[str, bytes]]:
    """Return what a record is billed as, and its entries that are billed as something else, by kind."""
    if isinstance(record, ArrayRecord):
        return "model", {}
    if isinstance(record, MetricRecord):
        return "metrics", {}
    piece = pieces.entry_of(key)
    if BASE in (key, pieces.record_of(key)):
        return "base", {}
    if category == "query" and (piece == "bundle" or isinstance(record.get("bundle"), bytes)):
        return "bundle", {}
    entries = {piece: pieces.data_of(record)} if piece else record
    down = (f"{PREFIX}delta", f"{PREFIX}buffers", f"{PREFIX}mask")
    names = ("update", "buffers", "vote") if ANSWER in (key, pieces.record_of(key)) else down
    found = {name.removeprefix(PREFIX).replace("delta", "model"): entries.get(name) for name in names}
    return "control", {name: data for name, data in found.items() if isinstance(data, bytes)}
