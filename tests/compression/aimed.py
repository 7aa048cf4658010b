"""Any bytes as a payload that reaches the code behind the header, for Hypothesis and for the fuzzer (tests/fuzz).

An input looks like a payload. What its sender could not vary without being refused at once is put right: magic,
version, flags, n, fingerprint, checksum. What is left are the tags, k and the body.
"""

import struct
import zlib

import numpy as np

from fedpress.compression.tensors.layout import Layout, TensorSpec
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.wire import payloads, positions, values

HEAD = struct.Struct("<2sBBBBIII")  # of the header, all but the checksum
LONGEST = 4000
"""Bodies are not filled up beyond this: a fuzzer is quick on short inputs."""


def _flat(n: int, reference: Positions | None = None) -> SideInfo:
    return SideInfo(Layout((TensorSpec("weight", (n,), "float32"),)), shared_positions=reference)


TENSORS = SideInfo(Layout((TensorSpec("0", (6, 5), "float32"), TensorSpec("1", (7,), "float32"))))
# Those of the golden files; an empty one; one with positions of 3 bytes. All but two hold a reference: a sparse one, a
# dense one, that of the golden files, and one of nothing.
RECEIVERS = (
    _flat(1000, np.arange(2, 1000, 9)),
    _flat(256, np.flatnonzero(np.arange(256) % 5)),
    _flat(9000, np.arange(0, 9000, 37)),
    TENSORS,
    _flat(0, np.arange(0)),
    _flat(70_000),
)
_BY_SIZE = {receiver.layout.size: receiver for receiver in RECEIVERS}
_MARKS = {
    receiver.layout.size: struct.pack("<I", positions.fingerprint(receiver.shared_positions, receiver.layout.size))
    for receiver in RECEIVERS
    if receiver.shared_positions is not None
}
_VALUE_TAGS = sorted([values.by_name(name).tag for name in values.names()] + list(payloads.FORMS))
_INDEX_TAGS = [tag for tag in range(64) if positions.known(tag)]
_PARTS = [tag for tag in _INDEX_TAGS if tag not in (positions.REFERENCE, positions.SEEDED)]


def repaired(payload: bytes) -> bytes:
    """Return the payload with a checksum that fits, so that what is wrong with it is found further down."""
    if len(payload) < payloads.HEADER_BYTES:
        return payload
    checksum = zlib.crc32(payload[payloads.HEADER_BYTES :], zlib.crc32(payload[: HEAD.size]))
    return payload[: HEAD.size] + struct.pack("<I", checksum) + payload[payloads.HEADER_BYTES :]


def aimed(data: bytes) -> tuple[bytes, SideInfo]:
    """Return the payload that the input is taken for, and who receives it.

    The byte for the flags says whether the body is cut or filled up to a length that the header allows (if even), and
    whether the mark of a reference is put right (if the next bit is 0).
    """
    _, _, value_tag, index_tag, flags, n, k, _ = HEAD.unpack(data[: HEAD.size].ljust(HEAD.size, b"\0"))
    receiver = _BY_SIZE.get(n) or RECEIVERS[n % len(RECEIVERS)]
    n = receiver.layout.size
    if value_tag not in _VALUE_TAGS:
        value_tag = _VALUE_TAGS[value_tag % len(_VALUE_TAGS)]
    if value_tag in payloads.FORMS:
        index_tag = positions.ALL
    elif index_tag not in _INDEX_TAGS:
        index_tag = _INDEX_TAGS[index_tag % len(_INDEX_TAGS)]
    k = n if index_tag == positions.ALL else k if k <= n else k % (n + 1)
    body = data[payloads.HEADER_BYTES :]
    if index_tag == positions.REFERENCE and receiver.shared_positions is not None and flags // 2 % 2 == 0:
        body = _MARKS[n] + body[4:]
    if flags % 2 == 0:
        body = (
            _whole(body, value_tag, receiver)
            if value_tag in payloads.FORMS
            else _fitted(body, value_tag, index_tag, k, receiver)
        )
    head = HEAD.pack(b"FP", payloads.VERSION, value_tag, index_tag, 0, n, k, receiver.layout.fingerprint)
    return repaired(head + bytes(4) + body), receiver


def _whole(body: bytes, value_tag: int, receiver: SideInfo) -> bytes:
    length = payloads.FORMS[value_tag].length(body[0], receiver.layout) if body else None
    return body if length is None or length > LONGEST else body[: 1 + length].ljust(1 + length, b"\0")


def _fitted(body: bytes, value_tag: int, index_tag: int, k: int, receiver: SideInfo) -> bytes:
    format = values.by_tag(value_tag)
    assert format is not None
    numbers, n = format.length(k), receiver.layout.size
    least, most = positions.length(index_tag, n, k)
    if least + numbers > LONGEST:
        return body
    varies = format.varies and k > 0
    if index_tag == positions.REFERENCE and receiver.shared_positions is not None:
        split = len(body) - (_stated(body) if varies and _is_stated(body, least, numbers) else numbers)
        places = _referred(body[: max(split, 0)], n, k, len(receiver.shared_positions))
        body = places + body[max(split, 0) :]
        least = most = len(places)
    if not varies:
        return body[: most + numbers].ljust(least + numbers, b"\0")
    if _is_stated(body, least, numbers):
        return body
    body = body.ljust(least + numbers + 2, b"\0")
    width = -(-len(body).bit_length() // 8)
    return body[: len(body) - width] + (len(body) - width - least).to_bytes(width, "little")


def _stated(body: bytes) -> int:
    """Return the length of the values that stands at the end of the body, and of itself."""
    width = -(-len(body).bit_length() // 8)
    return int.from_bytes(body[len(body) - width :], "little") + width


def _is_stated(body: bytes, least: int, numbers: int) -> bool:
    """Return whether the length at the end of the body is one that values and positions of these lengths may have."""
    width = -(-len(body).bit_length() // 8)
    return numbers + width <= _stated(body) <= len(body) - least


def _referred(body: bytes, n: int, k: int, m: int) -> bytes:
    """Return positions against a reference of m, as long as `body` or nearly so: tags, numbers, lengths put right."""
    head = positions.length(positions.REFERENCE, n, k)[0]
    width = head // 2 - 3
    body = body.ljust(head, b"\0")
    shared = int.from_bytes(body[6 : 6 + width], "little")
    length = int.from_bytes(body[6 + width : head], "little")
    fewest, most = max(0, k - (n - m)), min(k, m)
    if not fewest <= shared <= most:
        shared = fewest + shared % (most - fewest + 1)
    rest, tags, parts = body[head:], bytearray(), []
    for tag, of, count in ((body[4], m, m - shared if 2 * shared > m else shared), (body[5], n - m, k - shared)):
        if tag not in _PARTS:
            tag = _PARTS[tag % len(_PARTS)]
        if tag == positions.ALL and count != of:
            tag = positions.BITMAP
        least, most = positions.length(tag, of, count)
        size = max(least, min(length, most))
        tags.append(tag)
        parts.append(rest[:size].ljust(size, b"\0"))
        rest = rest[size:]
        length = len(rest)  # of the second part: all that is left
    counts = shared.to_bytes(width, "little") + len(parts[0]).to_bytes(width, "little")
    return body[:4] + bytes(tags) + counts + b"".join(parts)
