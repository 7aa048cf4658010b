"""A set of positions as bytes, without values: the mask of a sparse model, or a client's vote on it.

    0    1   index tag (`positions`)
    1    4   n, u32
    5    4   k, u32
    9    4   CRC-32 of bytes 0 to 8, then of the rest
    13   P   the positions, as the index tag says

Against shared positions, such as the mask before, only what differs takes room (index tag 4).
"""

import struct
import zlib

from fedpress.compression import errors
from fedpress.compression.tensors.mask import Positions
from fedpress.compression.wire import positions

_HEAD = struct.Struct("<BII")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEAD.size + _CHECKSUM.size


def pack(chosen: Positions, n: int, shared: Positions | None = None) -> bytes:
    """Return the bytes of a set of positions, the smallest form of them.

    Args:
        chosen: int64, shape (k,), strictly increasing, in [0, n).
        n: Size of the vector, below 2^32.
        shared: A set that the receiver holds as well, of the same kind.

    Raises:
        ValueError: The positions do not rise strictly, or leave [0, n).
        LayoutError: The same of the shared ones.

    >>> import numpy as np
    >>> old, new = np.arange(0, 1000, 2), np.append(np.arange(0, 998, 2), 999)
    >>> coded = pack(new, 1000, shared=old)
    >>> len(pack(new, 1000)), len(coded), bool((unpack(coded, 1000, old) == new).all())
    (138, 27, True)
    """
    tag, body = positions.pack(chosen, n, shared)
    head = _HEAD.pack(tag, n, len(chosen))
    return b"".join((head, _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))), body))


def unpack(data: bytes, n: int, shared: Positions | None = None) -> Positions:
    """Return the positions that `pack` wrote: int64, shape (k,), strictly increasing, in [0, n).

    Checks all before anything of the vector's size is made.

    Args:
        data: What `pack` returned; bytes from elsewhere.
        n: Size of the receiver's vector.
        shared: As for `pack`; may be given where none were used.

    Raises:
        Truncated: It is shorter than its header announces.
        LengthMismatch: It is longer than its header announces.
        SizeMismatch: It is of a vector of another size.
        CountTooLarge: It claims more positions than the vector has entries.
        UnknownFormat: Its index tag is not known.
        ChecksumMismatch: It was damaged on the way.
        InvalidPositions: Positions repeat, fall, or lie outside the vector.
        ReferenceMismatch: It is coded against other positions than the shared ones.
    """
    if len(data) < HEADER_BYTES:
        raise errors.Truncated(f"the set has {len(data)} bytes, its header alone takes {HEADER_BYTES}")
    tag, size, k = _HEAD.unpack_from(data)
    (checksum,) = _CHECKSUM.unpack_from(data, _HEAD.size)
    body = memoryview(data)[HEADER_BYTES:]
    if not positions.known(tag) or tag == positions.SEEDED:
        raise errors.UnknownFormat(f"the set has the index tag {tag}; is the sender newer?")
    if size != n:
        raise errors.SizeMismatch(
            f"the set is for a vector of {size} entries, the vector here has {n}; is it another model's?"
        )
    if k > n:
        raise errors.CountTooLarge(f"the set claims {k} of {n} entries")
    if tag == positions.ALL and k != n:
        raise errors.InvalidPositions(f"a set without positions has {k} of {n} entries")
    least, most = positions.length(tag, n, k)
    if len(body) < least:
        raise errors.Truncated(f"the set's body has {len(body)} bytes, {k} positions take at least {least}")
    if len(body) > most:
        raise errors.LengthMismatch(f"the set's body has {len(body)} bytes, {k} positions take at most {most}")
    if zlib.crc32(body, zlib.crc32(data[: _HEAD.size])) != checksum:
        raise errors.ChecksumMismatch("the set's checksum does not fit it; damaged on the way")
    return positions.unpack(tag, body, n, k, shared)
