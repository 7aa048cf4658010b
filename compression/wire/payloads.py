"""The payload: header, positions, values. docs/reference/wire.md is the specification.

`decode` validates before it allocates; each fault is an exception of its own (see `errors`).
"""

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.quantizers import eden, lowrank, qsgd, terngrad
from fedpress.compression.quantizers.form import Form
from fedpress.compression.tensors.layout import Layout, Vector, check_finite, is_finite
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.tensors.side_info import SideInfo
from fedpress.compression.tensors.update import Dense, Sparse, Update
from fedpress.compression.wire import dyadic, positions, values
from fedpress.compression.wire.values import DYADIC, ValueFormat

MAGIC = b"FP"
VERSION = 1
MAX_SIZE = 2**32 - 1
"""The largest n and k that the header holds."""

_PREFIX = struct.Struct("<2sBBBBIII")  # all of the header but the checksum
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _PREFIX.size + _CHECKSUM.size

FORMS = {form.tag: form for form in (qsgd.FORM, terngrad.FORM, eden.FORM, lowrank.FORM)}
"""Value tag -> form, for payloads of a whole update that are no list of values; their tags are 64 and more."""


class _Header(NamedTuple):
    version: int
    value_tag: int
    index_tag: int
    flags: int
    n: int
    k: int
    fingerprint: int
    checksum: int


class Packed(NamedTuple):
    """A payload, and the update that `decode` reads from it."""

    payload: bytes
    decoded: Update


def pack(update: Update, layout: Layout, format: ValueFormat, shared_positions: Positions | None = None) -> Packed:
    """Write `update` as a payload, and return with it what `decode` would read, at no cost of decoding.

    Args:
        update: Finite values; positions strictly increasing and below n.
        layout: The tensors of the vector, n = layout.size.
        format: Format of the values.
        shared_positions: Positions that the receiver holds (`SideInfo.shared_positions`); used where that is shorter.

    Raises:
        LayoutError: The update is not of the layout's size, or too large for the header; or the shared positions do not
            fit it.
        NonFiniteError: A value is NaN or infinite.
        ValueError: The positions do not rise strictly, or leave [0, n).

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((TensorSpec("weight", (1000,), "float32"),))
    >>> update = Sparse(np.array([7, 300]), np.array([1, -1], np.float32), 1000)
    >>> pack(update, layout, values.TERNARY).payload.hex(" ", 4)
    '4650 01042600 e8030000 02000000 6cc337a3 861ca691 07190200 00803f02'
    """
    _check_update(update, layout)
    tag, places = positions.ALL, b""
    if isinstance(update, Sparse):
        tag, places = positions.pack(update.positions, update.size, shared_positions)
    return _assemble(update, layout, format, tag, places)


def pack_exact(values: NDArray[np.int32], layout: Layout) -> bytes:
    """Write integers as a payload of all entries in the format `dyadic`, which `decode` reads as they are.

    Law: `pack(Dense(values.astype(float32)), layout, DYADIC).payload`, with nothing of the size of the vector made.

    Args:
        values: Integers below 2^24 in magnitude, shape (n,).
        layout: The tensors of the vector, n = layout.size.

    Raises:
        LayoutError: As for `pack`.
    """
    _check_size(len(values), layout)
    numbers = dyadic.plan(values)  # type: ignore[arg-type]
    prefix, trailer = _frame(DYADIC, positions.ALL, len(values), len(values), layout, numbers.length, numbers.length)
    stream = io.BytesIO()  # whose memory becomes the payload: no second one of this size
    stream.write(prefix)
    begin, end = HEADER_BYTES, HEADER_BYTES + numbers.length
    stream.seek(end - 1)
    stream.write(b"\0" + trailer)  # what lies between is zeros
    with stream.getbuffer() as whole:
        numbers.write(np.frombuffer(whole[begin:end], np.uint8))
        whole[len(prefix) : begin] = _CHECKSUM.pack(zlib.crc32(whole[begin:], zlib.crc32(prefix)))
    return stream.getvalue()


def pack_drawn(update: Vector, k: int, seed: int, layout: Layout, format: ValueFormat) -> Packed:
    """Write k entries at random positions as a payload, with the seed in place of the positions.

    Args:
        update: float32, shape (n,); the entries that are drawn are finite.
        k: 0 to n.
        seed: Taken modulo 2^64.
        layout: As for `pack`.
        format: As for `pack`.

    Raises:
        LayoutError: As for `pack`.
        NonFiniteError: As for `pack`.
    """
    seed &= (1 << 64) - 1
    places = positions.drawn(seed, len(update), k)
    chosen = Sparse(places, update[places], len(update))
    _check_update(chosen, layout)
    return _assemble(chosen, layout, format, positions.SEEDED, seed.to_bytes(positions.SEED_BYTES, "little"))


def _check_update(update: Update, layout: Layout) -> None:
    _check_size(update.size, layout)
    check_finite(update.values)


def _check_size(size: int, layout: Layout) -> None:
    if size != layout.size or size > MAX_SIZE:
        raise errors.LayoutError(
            f"the update has {size} entries, the layout {layout.size}; a payload holds at most {MAX_SIZE}"
        )


def _assemble(update: Update, layout: Layout, format: ValueFormat, tag: int, places: bytes) -> Packed:
    numbers, read = format.encode(update.values)
    if isinstance(update, Sparse) and tag != positions.ALL:
        decoded: Update = Sparse(update.positions, read, update.size)
    else:
        decoded = Dense(read)
    return Packed(_joined(format, tag, update.size, update.count, layout, places, numbers), decoded)


def _joined(format: ValueFormat, tag: int, n: int, k: int, layout: Layout, places: bytes, numbers: bytes) -> bytes:
    """Return header, positions and values as one payload."""
    prefix, trailer = _frame(format, tag, n, k, layout, len(numbers), len(places) + len(numbers))
    checksum = zlib.crc32(prefix)
    for part in (places, numbers, trailer):
        checksum = zlib.crc32(part, checksum)
    return b"".join((prefix, _CHECKSUM.pack(checksum), places, numbers, trailer))


def _frame(
    format: ValueFormat, tag: int, n: int, k: int, layout: Layout, numbers: int, body: int
) -> tuple[bytes, bytes]:
    """Return what stands before the checksum and behind the values, given their length and that of the body."""
    trailer = _trailer(numbers, body) if format.varies and k else b""
    return _PREFIX.pack(MAGIC, VERSION, format.tag, tag, 0, n, k, layout.fingerprint), trailer


def decode(payload: bytes | memoryview, side_info: SideInfo) -> Update:
    """Return the update that a payload holds.

    Args:
        payload: Bytes of any origin.
        side_info: Shared knowledge; the layout must be the sender's, and so must the shared positions if they were
            used.

    Raises:
        PayloadError: One subclass for each fault, see `errors`.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((TensorSpec("weight", (4,), "float32"),))
    >>> payload, _ = pack(Sparse(np.array([1, 3]), np.array([5, -1], np.float32), 4), layout, values.FLOAT32)
    >>> decode(payload, SideInfo(layout)).dense()
    array([ 0.,  5.,  0., -1.], dtype=float32)
    >>> decode(payload[:-9], SideInfo(layout))
    Traceback (most recent call last):
    ...
    fedpress.compression.errors.Truncated: the payload has 22 bytes, its header announces at least 31
    """
    data = memoryview(payload).cast("B")
    header, format = _read_header(data)
    layout = side_info.layout
    if header.n != layout.size:
        raise errors.SizeMismatch(f"the payload is for {header.n} entries, the layout here has {layout.size}")
    if header.fingerprint != layout.fingerprint:
        raise errors.LayoutMismatch(
            f"the payload's layout has the fingerprint {header.fingerprint:08x}, the one here {layout.fingerprint:08x}:"
            " same size, other tensors; another model, or another order?"
        )
    if header.value_tag in FORMS:
        return _whole(data, header, FORMS[header.value_tag], layout)
    split, end = _check_body(data, header, format)
    if header.index_tag == positions.ALL:
        return Dense(_numbers(data[split:end], header, format))
    body, shared = data[HEADER_BYTES:split], side_info.shared_positions
    places = positions.unpack(header.index_tag, body, header.n, header.k, shared)
    return Sparse(places, _numbers(data[split:end], header, format), header.n)


def inspect(payload: bytes | memoryview) -> dict[str, Any]:
    """Return the fields of the header and the sizes of a payload's parts; no layout is needed.

    Raises:
        PayloadError: One subclass for each fault that can be seen without a layout.
    """
    data = memoryview(payload).cast("B")
    header, format = _read_header(data)
    split, _ = _check_body(data, header, format)
    return {
        "version": header.version,
        "values": format.name,
        "positions": positions.name(header.index_tag),
        "size": header.n,
        "count": header.k,
        "fingerprint": f"{header.fingerprint:08x}",
        "bytes": len(data),
        "header_bytes": HEADER_BYTES,
        "position_bytes": split - HEADER_BYTES,
        "value_bytes": len(data) - split,  # with their length, where it varies
    }


def pack_whole(form: Form, parameter: int, body: bytes, layout: Layout) -> bytes:
    """Return the payload of a whole update.

    Args:
        form: Form of the body.
        parameter: Parameter of the form, 0 to 255.
        body: The update, written in that form.
        layout: The tensors of the vector.

    Raises:
        LayoutError: The layout is too large for the header.
    """
    if layout.size > MAX_SIZE:
        raise errors.LayoutError(f"the layout has {layout.size} entries, a payload holds at most {MAX_SIZE}")
    prefix = _PREFIX.pack(MAGIC, VERSION, form.tag, positions.ALL, 0, layout.size, layout.size, layout.fingerprint)
    body = bytes([parameter]) + body
    return b"".join((prefix, _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(prefix))), body))


def _read_header(data: memoryview) -> tuple[_Header, ValueFormat]:
    if len(data) < HEADER_BYTES:
        raise errors.Truncated(f"the payload has {len(data)} bytes, its header alone takes {HEADER_BYTES}")
    magic, *fields = _PREFIX.unpack_from(data)
    header = _Header(*fields, *_CHECKSUM.unpack_from(data, _PREFIX.size))
    if magic != MAGIC:
        raise errors.BadMagic(f"the payload begins with {magic!r}, expected {MAGIC!r}; is it a fedpress payload?")
    if header.version != VERSION:
        raise errors.UnsupportedVersion(f"the payload is of wire version {header.version}, this build reads {VERSION}")
    form = FORMS.get(header.value_tag)
    # How long the body of a form must be is known with a layout only (`_whole`).
    format = values.by_tag(header.value_tag) if form is None else _of_length(form, len(data) - HEADER_BYTES)
    if format is None:
        raise errors.UnknownFormat(f"value tag {header.value_tag} is unknown; is the sender newer?")
    if not positions.known(header.index_tag):
        raise errors.UnknownFormat(f"index tag {header.index_tag} is unknown; is the sender newer?")
    if form is not None and header.index_tag != positions.ALL:
        raise errors.UnknownFormat(
            f"index tag {header.index_tag} with value tag {form.tag}, which is a form of whole updates"
        )
    if header.flags:
        raise errors.UnknownFormat(f"flags are {header.flags:#04x}, version {VERSION} knows none")
    if header.k > header.n:
        raise errors.CountTooLarge(f"the payload claims {header.k} entries of {header.n}")
    if header.index_tag == positions.ALL and header.k != header.n:
        raise errors.InvalidPositions(f"a payload without positions has {header.k} of {header.n} entries")
    return header, format


def _trailer(length: int, body: int) -> bytes:
    """Return the length of the values in the least whole bytes that hold the body's whole length, these included."""
    width = 1
    while body + width >= 256**width:
        width += 1
    return length.to_bytes(width, "little")


def _values_span(data: memoryview, header: _Header, format: ValueFormat) -> tuple[int, int]:
    """Return start and end of the values; the start lies within the header if the payload is too short for them."""
    least = format.length(header.k)
    if not format.varies or not header.k:
        return len(data) - least, len(data)
    end = len(data) - -(-(len(data) - HEADER_BYTES).bit_length() // 8)
    if end - least < HEADER_BYTES:
        return end - least, end
    stated = int.from_bytes(data[end:], "little")
    if stated < least:
        raise errors.InvalidValues(f"the values are said to take {stated} bytes, {header.k} take at least {least}")
    return end - stated, end


def _check_body(data: memoryview, header: _Header, format: ValueFormat) -> tuple[int, int]:
    """Check length and checksum; return start and end of the values."""
    least, most = positions.length(header.index_tag, header.n, header.k)
    split, end = _values_span(data, header, format)
    rest = HEADER_BYTES + len(data) - split
    if split - HEADER_BYTES < least:
        raise errors.Truncated(f"the payload has {len(data)} bytes, its header announces at least {rest + least}")
    if split - HEADER_BYTES > most:
        raise errors.LengthMismatch(f"the payload has {len(data)} bytes, its header announces at most {rest + most}")
    checksum = zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[: _PREFIX.size]))
    if checksum != header.checksum:
        raise errors.ChecksumMismatch(
            f"the checksum is {checksum:08x}, the header says {header.checksum:08x}; damaged on the way"
        )
    return split, end


def _numbers(data: memoryview, header: _Header, format: ValueFormat) -> Vector:
    numbers = format.unpack(data, header.k)
    if not is_finite(numbers):
        raise errors.NonFiniteValues("the payload holds values that are NaN or infinite")
    return numbers


def _whole(data: memoryview, header: _Header, form: Form, layout: Layout) -> Update:
    """Check and read a body that `form` rules: a byte for the parameter, then what it says."""
    if len(data) == HEADER_BYTES:
        raise errors.Truncated(f"the payload has {len(data)} bytes and no parameter of its form, {form.name}")
    parameter, body = data[HEADER_BYTES], data[HEADER_BYTES + 1 :]
    length = form.length(parameter, layout)
    if length is None:
        raise errors.UnknownFormat(f"parameter {parameter} of the form {form.name} is unknown; is the sender newer?")
    _check_body(data, header, _of_length(form, 1 + length))
    update = form.unpack(parameter, body, layout)
    if isinstance(update, Dense) and not np.isfinite(update.values).all():
        raise errors.NonFiniteValues("the payload holds values that are NaN or infinite")
    return update


def _of_length(form: Form, length: int) -> ValueFormat:
    """Return `form` as a value format, so that its body is checked like any other: of this length whatever k is."""
    return values.FLOAT32._replace(name=form.name, tag=form.tag, length=lambda k: length)
