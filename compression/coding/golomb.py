"""Golomb codes by groups: non-negative integers <-> a bit string, each group with the modulus that fits it.

A Golomb code of modulus m writes x div m in unary and x mod m in binary; it is the best prefix code of a geometric
distribution (Golomb 1966, "Run-length encodings"; Gallager and van Voorhis 1975, "Optimal source codes for
geometrically distributed integer alphabets"). Both things that a sparse update is made of are close to geometric
where they stand close together: the gaps between positions, and how far magnitudes lie above the smallest one sent.
Where scales differ from layer to layer, they differ from group to group as well, and so does the modulus.

The moduli are 1, 2, 3, 4, 6, 8, 12, ...: 2^s and 3 * 2^s. Powers of two alone (Rice codes) cost up to 1.5 % more on
uniform positions. docs/reference/wire.md has the bits; they are in planes, so that all is written and read by vector
operations: nothing here loops over numbers or groups.
"""

from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.tensors.layout import BLOCK

Numbers: TypeAlias = NDArray[np.uint32]
"""The integers that are coded: shape (k,)."""

_Rows: TypeAlias = NDArray[np.uint32]
"""The same by groups, shape (groups, GROUP); the last row is filled up with zeros that are not coded."""

_Wide: TypeAlias = NDArray[np.uint32 | np.uint64]
"""Rows in words that hold the sum of a row."""

_Codes: TypeAlias = NDArray[np.int64]
_Bits: TypeAlias = NDArray[np.uint8]
_T = TypeVar("_T", bound=np.generic)

GROUP = 256
MAX_CODE = 62
HEAD_BYTES = 2  # the lowest code of the groups, and the number of bits of each group's code above it


class BitsError(ValueError):
    """Bits that no encoder writes. Callers turn it into the `PayloadError` of what they were reading."""


class GroupPlan(NamedTuple):
    """Codes of all groups and their cost, chosen before anything is packed."""

    rows: _Rows
    k: int
    codes: _Codes  # (groups,)
    bits: int  # of the whole string, without HEAD_BYTES


def plan(numbers: Numbers) -> GroupPlan:
    """Choose a code for each group, or one for all where that is shorter.

    Args:
        numbers: uint32, shape (k,), k >= 1.

    >>> plan(np.array([0, 9, 5], np.uint32)).codes.tolist()
    [2]
    """
    rows = _filled(numbers)
    sizes = _sizes(len(numbers))
    # Sums of a group fit into the words themselves, which is twice as fast, unless there are numbers of 2^24 and more.
    wide = rows.astype(np.uint64) if numbers.max() >> 24 else rows
    codes, costs = _best(wide, sizes)
    bits = int(costs.sum()) + len(codes) * _width(codes)
    # One code for all can win only where the codes are near each other.
    if 0 < _width(codes) <= 2:
        single, cost = _best_single(wide, sizes, int(np.median(codes)))
        if cost <= bits:
            return GroupPlan(rows, len(numbers), np.full_like(codes, single), cost)
    return GroupPlan(rows, len(numbers), codes, bits)


def length(plan: GroupPlan) -> int:
    """Return the bytes that `pack` will write.

    >>> length(plan(np.array([0, 9, 5], np.uint32)))
    4
    """
    return HEAD_BYTES + -(-plan.bits // 8)


def least(k: int) -> int:
    """Return the least number of bytes that k numbers can take: each ends with a one bit.

    >>> least(9)
    4
    """
    return HEAD_BYTES + -(-k // 8)


def pack(plan: GroupPlan) -> bytes:
    """Return the bytes of planned numbers.

    >>> pack(plan(np.array([0, 9, 5], np.uint32))).hex()
    '02001c05'
    """
    rows, codes, sizes = plan.rows, plan.codes, _sizes(plan.k)
    lowest = int(codes.min())
    width = _width(codes)
    shifts, threes = _parts(codes)
    unpacked = np.zeros(plan.bits, np.uint8)  # a bit each: zero, or anything else
    at = 0

    def room(count: int) -> _Bits:
        nonlocal at
        at += count
        return unpacked[at - count : at]

    for j in range(width):
        np.bitwise_and(codes - lowest, 1 << j, out=room(len(codes)), casting="unsafe")
    octet = rows.astype(np.uint8)
    for j in range(int(shifts.max())):
        if j and not j % 8:
            octet = (rows >> np.uint32(j)).astype(np.uint8)
        chosen = shifts > j
        place = room(int(sizes[chosen].sum()))
        np.bitwise_and(_flat(_only(octet, chosen), len(place)), np.uint8(1 << j % 8), out=place)
    highs = rows >> shifts[:, None].astype(np.uint32)
    if threes.any():
        tall = _only(highs, threes)
        quotients = tall // np.uint32(3)
        thirds = _flat((tall - quotients * np.uint32(3)).astype(np.uint8), int(sizes[threes].sum()))
        highs[threes] = quotients
        room(len(thirds))[:] = thirds
        thirds = thirds[np.flatnonzero(thirds > 0)]  # of booleans: ten times as fast as of integers
        np.bitwise_and(thirds, np.uint8(2), out=room(len(thirds)))
    highs += np.uint32(1)
    end = at - 1
    for first in range(0, plan.k, BLOCK):  # by blocks, whose sums stay in the cache
        ends = np.cumsum(_flat(highs, plan.k)[first : first + BLOCK], dtype=np.int64)
        ends += end
        unpacked[ends] = 1
        end = int(ends[-1])
    return bytes((lowest, width)) + np.packbits(unpacked, bitorder="little").tobytes()


def unpack(data: bytes | memoryview, k: int) -> Numbers:
    """Return the k numbers that `pack` wrote.

    Args:
        data: The bytes; k is bounded by their number (`least`), which is checked first.
        k: Count of the numbers, at least 1.

    Raises:
        BitsError: The bits are not those of k numbers below 2^32, or bytes are left over.

    >>> unpack(bytes.fromhex("02001c05"), 3)
    array([0, 9, 5], dtype=uint32)
    """
    if len(data) < least(k):
        raise BitsError(f"there are {len(data)} bytes, {k} numbers take at least {least(k)}")
    lowest, width = data[0], data[1]
    if lowest > MAX_CODE or width > MAX_CODE.bit_length():
        raise BitsError(f"the lowest code is {lowest} and the codes have {width} bits; expected at most {MAX_CODE}, 6")
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8, -1, HEAD_BYTES), bitorder="little")
    sizes = _sizes(k)
    at = 0

    def take(count: int) -> _Bits:
        nonlocal at
        if at + count > len(unpacked):
            raise BitsError(f"the string has {len(unpacked)} bits, its codes ask for at least {at + count}")
        at += count
        return unpacked[at - count : at]

    codes = np.full(len(sizes), lowest, np.int64)
    for j in range(width):
        codes += take(len(codes)).astype(np.int64) << j
    if codes.max() > MAX_CODE:
        raise BitsError(f"a group has the code {codes.max()}, the greatest is {MAX_CODE}")
    shifts, threes = _parts(codes)
    # Before anything of the size of k times a width is made: every number still needs its last bit.
    if len(unpacked) < at + int(sizes @ (shifts + threes)) + k:
        raise BitsError(f"the string has {len(unpacked)} bits, fewer than its codes ask for")

    octets = []  # of the low bits of each number
    for j in range(int(shifts.max())):
        if not j % 8:
            octets.append(np.zeros((len(codes), GROUP), np.uint8))
        chosen = shifts > j
        plane = _filled(take(int(sizes[chosen].sum())))
        plane <<= np.uint8(j % 8)
        if chosen.all():
            octets[-1] |= plane
        else:
            octets[-1][chosen] |= plane
    thirds = take(int(sizes[threes].sum())).copy()
    some = np.flatnonzero(thirds.view(np.bool_))
    thirds[some] += take(len(some))
    ended = np.count_nonzero(unpacked[at:].view(np.bool_))  # before a word is made for each
    if ended != k:
        raise BitsError(f"the string ends {ended} numbers, expected {k}")
    ends = np.flatnonzero(unpacked[at:].view(np.bool_))  # ten times as fast as of integers
    if len(unpacked) - at - int(ends[-1]) > 8:
        raise BitsError("bytes are left over after the last number")
    ends[1:] -= ends[:-1] + 1
    tall = _filled(ends)  # int64, so that three times as much is no overflow
    if threes.any():
        tall[threes] = tall[threes] * 3 + _filled(thirds)
    # What stands above the s low bits, before it is shifted there in words of 32 bits.
    if (tall.max(axis=1) > (2**32 - 1) >> shifts).any():
        raise BitsError("a number is not below 2^32")
    rows = tall.astype(np.uint32)
    rows <<= shifts[:, None].astype(np.uint32)
    for place, octet in enumerate(octets):
        rows |= octet if not place else octet.astype(np.uint32) << np.uint32(8 * place)
    return rows.reshape(-1)[:k]


def _width(codes: _Codes) -> int:
    return int(codes.max() - codes.min()).bit_length()


_EVERY = np.arange(MAX_CODE + 1)
_THREES = (_EVERY % 2 == 0) & (_EVERY > 0)
_SHIFTS = np.where(_THREES, _EVERY // 2 - 1, (_EVERY + 1) // 2)


def _parts(codes: _Codes) -> tuple[_Codes, NDArray[np.bool_]]:
    """Return s of each code's modulus 2^s or 3 * 2^s, and whether it has the 3.

    Codes 0, 1, 2, 3, 4, 5, 6 stand for 1, 2, 3, 4, 6, 8, 12.
    """
    return _SHIFTS[codes], _THREES[codes]


def _sizes(k: int) -> _Codes:
    """Return how many numbers each group has."""
    sizes = np.full(-(-k // GROUP), GROUP, np.int64)
    sizes[-1] = k - GROUP * (len(sizes) - 1)
    return sizes


def _filled(numbers: NDArray[_T]) -> NDArray[_T]:
    missing = -len(numbers) % GROUP
    if missing:
        numbers = np.concatenate([numbers, np.zeros(missing, numbers.dtype)])
    return numbers.reshape(-1, GROUP)


def _flat(rows: NDArray[_T], count: int) -> NDArray[_T]:
    """Return the numbers of the rows without what fills up the last one."""
    return rows.reshape(-1)[:count]


def _only(rows: NDArray[_T], chosen: NDArray[np.bool_]) -> NDArray[_T]:
    return rows if chosen.all() else rows[chosen]


def _best(rows: _Wide, sizes: _Codes) -> tuple[_Codes, _Codes]:
    """Return the code of each row and its cost in bits: from the mean's own code downhill, where that is not up.

    What fills up the last row is zero and costs nothing here: the fixed cost of a number counts by `sizes`.
    """
    means = _sums(rows) / sizes
    # ln 2 times the mean is the best modulus of a geometric distribution; half octaves from there.
    codes = np.clip(np.rint(2 * np.log2(np.maximum(means * 0.69, 0.5))), 0, MAX_CODE).astype(np.int64)
    costs = _costs(rows, sizes, codes)
    settled = np.zeros(len(rows), np.bool_)  # has gone down, so that up is no way
    for direction in (-1, 1):
        going = np.flatnonzero(~settled)
        while len(going):
            going = going[(codes[going] + direction >= 0) & (codes[going] + direction <= MAX_CODE)]
            tried = codes[going] + direction
            cost = _costs(rows if len(going) == len(rows) else rows[going], sizes[going], tried)
            better = cost < costs[going]
            going = going[better]
            codes[going], costs[going] = tried[better], cost[better]
            settled[going] = True
    return codes, costs


def _best_single(rows: _Wide, sizes: _Codes, code: int) -> tuple[int, int]:
    """Return the one code for all rows that costs least, and that cost: from `code` downhill, else uphill."""

    def cost(code: int) -> int:
        return int(_costs(rows, sizes, np.full(len(rows), code)).sum())

    least = cost(code)
    for direction in (-1, 1):
        while 0 <= code + direction <= MAX_CODE and (tried := cost(code + direction)) < least:
            code, least = code + direction, tried
    return code, least


def _costs(rows: _Wide, sizes: _Codes, codes: _Codes) -> _Codes:
    """Return the bits that each row takes with its code."""
    shifts, threes = _parts(codes)
    highs = rows >> shifts[:, None].astype(rows.dtype)
    if threes.any():  # a quotient, and a bit more where the remainder is not zero: the quotient rounded up
        tall = _only(highs, threes)
        tall += 2
        tall //= 3
        highs[threes] = tall
    return sizes * (shifts + threes + 1) + _sums(highs)


def _sums(rows: _Wide) -> _Codes:
    sums: _Codes = rows.sum(axis=1, dtype=rows.dtype).astype(np.int64)
    return sums
