"""Any bytes as a payload that reaches the code behind the header, for Hypothesis and for the fuzzer (tests/fuzz).

An input looks like a payload. What its sender could not vary without being refused at once is put right: magic,
version, flags, n, fingerprint, checksum. What is left are the tags, k and the body.
"""

import struct
import zlib

from fedpress.compression import positions, values, wire
from fedpress.compression.shared import Shared
from fedpress.compression.vector import Layout, TensorSpec

HEAD = struct.Struct("<2sBBBBIII")  # of the header, all but the checksum
LONGEST = 4000
"""Bodies are not filled up beyond this: a fuzzer is quick on short inputs."""


def _flat(n: int) -> Shared:
    return Shared(Layout((TensorSpec("weight", (n,), "float32"),)))


TENSORS = Shared(Layout((TensorSpec("0", (6, 5), "float32"), TensorSpec("1", (7,), "float32"))))
# Those of the golden files; an empty one; one with positions of 3 bytes.
RECEIVERS = (_flat(1000), _flat(256), _flat(9000), TENSORS, _flat(0), _flat(70_000))
_BY_SIZE = {receiver.layout.size: receiver for receiver in RECEIVERS}
_VALUE_TAGS = sorted([values.by_name(name).tag for name in values.names()] + list(wire.FORMS))
_INDEX_TAGS = [tag for tag in range(64) if positions.known(tag)]


def repaired(payload: bytes) -> bytes:
    """Return the payload with a checksum that fits, so that what is wrong with it is found further down."""
    if len(payload) < wire.HEADER_BYTES:
        return payload
    checksum = zlib.crc32(payload[wire.HEADER_BYTES :], zlib.crc32(payload[: HEAD.size]))
    return payload[: HEAD.size] + struct.pack("<I", checksum) + payload[wire.HEADER_BYTES :]


def aimed(data: bytes) -> tuple[bytes, Shared]:
    """Return the payload that the input is taken for, and who receives it.

    The byte for the flags says whether the body is cut or filled up to a length that the header allows (if even).
    """
    _, _, value_tag, index_tag, flags, n, k, _ = HEAD.unpack(data[: HEAD.size].ljust(HEAD.size, b"\0"))
    receiver = _BY_SIZE.get(n) or RECEIVERS[n % len(RECEIVERS)]
    n = receiver.layout.size
    if value_tag not in _VALUE_TAGS:
        value_tag = _VALUE_TAGS[value_tag % len(_VALUE_TAGS)]
    if value_tag in wire.FORMS:
        index_tag = positions.ALL
    elif index_tag not in _INDEX_TAGS:
        index_tag = _INDEX_TAGS[index_tag % len(_INDEX_TAGS)]
    k = n if index_tag == positions.ALL else k if k <= n else k % (n + 1)
    body = data[wire.HEADER_BYTES :]
    if flags % 2 == 0:
        body = (
            _whole(body, value_tag, receiver) if value_tag in wire.FORMS else _fitted(body, value_tag, index_tag, n, k)
        )
    head = HEAD.pack(b"FP", wire.VERSION, value_tag, index_tag, 0, n, k, receiver.layout.fingerprint)
    return repaired(head + bytes(4) + body), receiver


def _whole(body: bytes, value_tag: int, receiver: Shared) -> bytes:
    length = wire.FORMS[value_tag].length(body[0], receiver.layout) if body else None
    return body if length is None or length > LONGEST else body[: 1 + length].ljust(1 + length, b"\0")


def _fitted(body: bytes, value_tag: int, index_tag: int, n: int, k: int) -> bytes:
    format = values.by_tag(value_tag)
    assert format is not None
    numbers = format.length(k)
    least, most = positions.length(index_tag, n, k)
    if least + numbers > LONGEST:
        return body
    if not format.varies or not k:
        return body[: most + numbers].ljust(least + numbers, b"\0")
    # The length of the values stands at the end of the body, and may be more or less than there is.
    width = -(-len(body).bit_length() // 8)
    stated = int.from_bytes(body[len(body) - width :], "little")
    if stated >= numbers and least <= len(body) - width - stated:
        return body
    body = body.ljust(least + numbers + 2, b"\0")
    width = -(-len(body).bit_length() // 8)
    return body[: len(body) - width] + (len(body) - width - least).to_bytes(width, "little")
