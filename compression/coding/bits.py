"""Integers of 1 to 8 bits <-> one bit string without gaps."""

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.tensors.layout import BLOCK


def pack_codes(codes: NDArray[np.uint8], bits: int) -> bytes:
    """Return the lowest bits of each code as one bit string, least significant first, padded with zeros.

    Args:
        codes: uint8, shape (count,).
        bits: Bits of each code, 1 to 8.

    >>> pack_codes(np.array([1, 2, 3], np.uint8), 3).hex()
    'd100'
    """
    if bits == 4:  # the same, and ten times as fast
        even = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
        return (even[::2] | even[1::2] << 4).tobytes()
    parts = []
    for start in range(0, len(codes), BLOCK):  # a multiple of 8 codes, so that each block ends with a byte
        block = np.unpackbits(codes[start : start + BLOCK, None], axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(block, bitorder="little").tobytes())
    return b"".join(parts)


def unpack_codes(data: memoryview, count: int, bits: int) -> NDArray[np.uint8]:
    """Return the codes that `pack_codes` wrote, uint8, shape (count,).

    Args:
        data: At least `codes_length(count, bits)` bytes.
        count: Number of codes.
        bits: Bits of each code, 1 to 8.

    >>> unpack_codes(memoryview(bytes.fromhex("d100")), 3, 3).tolist()
    [1, 2, 3]
    """
    raw = np.frombuffer(data, np.uint8)
    if bits == 4:
        packed = raw[: codes_length(count, 4)]
        return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
    codes = np.empty(count, np.uint8)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        part = raw[start // 8 * bits :]
        flags = np.unpackbits(part[: codes_length(size, bits)], count=size * bits, bitorder="little")
        codes[start : start + size] = np.packbits(flags.reshape(size, bits), axis=1, bitorder="little")[:, 0]
    return codes


def codes_length(count: int, bits: int) -> int:
    """Return the length in bytes of a bit string.

    Args:
        count: Number of codes.
        bits: Bits of each code.
    """
    return -(-count * bits // 8)
