"""Golomb codes by groups: non-negative integers <-> a bit string, each group with the modulus that fits it.

A Golomb code of modulus m writes x div m in unary and x mod m in binary; it is the best prefix code of a geometric
distribution (Golomb 1966, "Run-length encodings"; Gallager and van Voorhis 1975, "Optimal source codes for
geometrically distributed integer alphabets"). Both things that a sparse update is made of are close to geometric
where they stand close together: the gaps between positions, and how far magnitudes lie above the smallest one sent.
Where scales differ from layer to layer, they differ from group to group as well, and so does the modulus.

The moduli are 1, 2, 3, 4, 6, 8, 12, ...: 2^s and 3 * 2^s. Powers of two alone (Rice codes) cost up to 1.5 % more on
uniform positions. docs/reference/wire.md has the bits; they are in planes, so that all is written and read by vector
operations: nothing here loops over numbers or groups, but over some hundreds of groups at a time.
"""

from collections.abc import Callable, Iterable, Iterator
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
_GROUPS = BLOCK // GROUP
"""Groups that are coded at a time, so that what is made of them stays in the cache, and takes no memory."""
_WINDOW = 8 * BLOCK
"""Bits that are read at a time."""
_ZEROS = np.zeros(8, np.uint8)
HEAD_BYTES = 2  # the lowest code of the groups, and the number of bits of each group's code above it


class BitsError(ValueError):
    """Bits that no encoder writes. Callers turn it into the `PayloadError` of what they were reading."""


Source: TypeAlias = Callable[[int, int], Numbers]
"""Returns the numbers from a start to a stop, the same at each call: numbers that are not all in memory at once."""


class GroupPlan(NamedTuple):
    """Codes of all groups and their cost, chosen before anything is packed."""

    parts: Callable[[], Iterable[tuple[slice, _Rows]]]  # some groups at a time: which, and their rows
    k: int
    codes: _Codes  # (groups,)
    bits: int  # of the whole string, without HEAD_BYTES

    @property
    def long(self) -> bool:
        """Whether the string is written with eight bits a byte from the beginning, which takes less memory."""
        return self.bits > _WINDOW


def plan(numbers: Numbers) -> GroupPlan:
    """Choose a code for each group, or one for all where that is shorter.

    Args:
        numbers: uint32, shape (k,), k >= 1.

    >>> plan(np.array([0, 9, 5], np.uint32)).codes.tolist()
    [2]
    """
    return plan_of(lambda start, stop: numbers[start:stop], len(numbers))


def plan_of(source: Source, k: int) -> GroupPlan:
    """Choose codes as `plan` does, for numbers that are read part by part.

    Args:
        source: The numbers.
        k: Count of them, at least 1.
    """
    sizes = _sizes(k)
    few = list(_parts_of(source, k)) if k <= BLOCK else None

    def parts() -> Iterable[tuple[slice, _Rows]]:
        return few or _parts_of(source, k)

    best = [_best(_wide(rows), sizes[groups]) for groups, rows in parts()]
    codes, costs = (np.concatenate(part) for part in zip(*best, strict=True)) if len(best) > 1 else best[0]
    bits = int(costs.sum()) + len(codes) * _width(codes)
    # One code for all can win only where the codes are near each other.
    if 0 < _width(codes) <= 2:
        single, cost = _best_single(parts, sizes, int(np.median(codes)))
        if cost <= bits:
            return GroupPlan(parts, k, np.full_like(codes, single), cost)
    return GroupPlan(parts, k, codes, bits)


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
    if plan.long:
        whole = np.zeros(length(plan), np.uint8)
        write(plan, whole)
        return whole.tobytes()
    string = np.zeros(plan.bits, np.uint8)
    return _write(plan, string, octets=False) + np.packbits(string, bitorder="little").tobytes()


def write(plan: GroupPlan, target: _Bits) -> None:
    """Write what `pack` returns into an array.

    Args:
        plan: The planned numbers.
        target: Zeros, uint8 (length(plan),); overwritten.
    """
    target[:HEAD_BYTES] = np.frombuffer(_write(plan, target[HEAD_BYTES:], octets=True), np.uint8)


def _write(plan: GroupPlan, string: _Bits, *, octets: bool) -> bytes:
    """Write the string, with eight bits a byte or one, and return the bytes that stand before it."""
    codes, sizes = plan.codes, _sizes(plan.k)
    lowest = int(codes.min())
    width = _width(codes)
    shifts, threes = _parts(codes)
    at = 0

    def plane(count: int) -> _Plane:
        nonlocal at
        at += count
        return _Plane(string, at - count, octets)

    for j in range(width):
        plane(len(codes)).write((codes - lowest & 1 << j).astype(np.uint8))
    lows = [plane(int(sizes[shifts > j].sum())) for j in range(int(shifts.max()))]
    first_thirds = plane(int(sizes[threes].sum()))
    second_thirds = _Plane(string, at, octets)
    # Moved behind the thirds, once it is known how many these are.
    ends = _Plane(np.zeros(-(-(plan.bits - at) // 8) + 1 if octets else plan.bits - at, np.uint8), 0, octets)
    for groups, rows in plan.parts():
        own, tall_ones, count = shifts[groups], threes[groups], int(sizes[groups].sum())
        octet = rows.astype(np.uint8)
        for j in range(int(own.max())):
            if j and not j % 8:
                octet = (rows >> np.uint32(j)).astype(np.uint8)
            chosen = own > j
            bits = _flat(_only(octet, chosen), int(sizes[groups][chosen].sum()))
            lows[j].write(bits & np.uint8(1 << j % 8))
        highs = rows >> own[:, None].astype(np.uint32)
        if tall_ones.any():
            tall = _only(highs, tall_ones)
            quotients = tall // np.uint32(3)
            thirds = _flat((tall - quotients * np.uint32(3)).astype(np.uint8), int(sizes[groups][tall_ones].sum()))
            highs[tall_ones] = quotients
            first_thirds.write(thirds)
            thirds = thirds[np.flatnonzero(thirds > 0)]  # of booleans: ten times as fast as of integers
            second_thirds.write(thirds & np.uint8(2))
        highs += np.uint32(1)
        stops = np.cumsum(_flat(highs, count), dtype=np.int64)
        unary = np.zeros(int(stops[-1]), np.uint8)
        stops -= 1
        unary[stops] = 1
        ends.write(unary)
    ends.move(string, second_thirds.at)
    return bytes((lowest, width))


class _Plane:
    """Bits that are written one after the other, from some place in a string on.

    Args:
        string: The string, uint8; what is not written yet is zero.
        at: Place of the next bit.
        octets: Whether the string has eight bits a byte; else one, zero or anything else, which is quicker for few.
    """

    def __init__(self, string: _Bits, at: int, octets: bool) -> None:
        self.string, self.at, self._octets = string, at, octets

    def write(self, bits: _Bits) -> None:
        """Write bits, a byte each: zero, or anything else."""
        if not self._octets:
            self.string[self.at : self.at + len(bits)] = bits
            self.at += len(bits)
            return
        first, lead = divmod(self.at, 8)
        packed = np.packbits(np.concatenate([_ZEROS[:lead], bits]) if lead else bits, bitorder="little")
        self.string[first : first + len(packed)] |= packed
        self.at += len(bits)

    def move(self, string: _Bits, at: int) -> None:
        """Write the bits, which stand in a string of their own, into another one, from a place on."""
        if not self._octets:
            string[at : at + self.at] = self.string[: self.at]
            return
        first, lead = divmod(at, 8)
        source = self.string[: -(-self.at // 8)]
        string[first : first + len(source)] |= source << np.uint8(lead)
        if lead:
            rest = string[first + 1 : first + 1 + len(source)]
            rest |= (source >> np.uint8(8 - lead))[: len(rest)]


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
    numbers = np.empty(0, np.uint32)
    for start, part in read(data, k):
        if len(part) == k:
            return part
        if not start:  # the first part comes when all has been checked: only now is there room for k numbers
            numbers = np.empty(k, np.uint32)
        numbers[start : start + len(part)] = part
    return numbers


def read(data: bytes | memoryview, k: int) -> Iterator[tuple[int, Numbers]]:
    """Yield the numbers that `pack` wrote part by part, each with the number of the first.

    Args:
        data: As for `unpack`.
        k: As for `unpack`.

    Raises:
        BitsError: As `unpack`; before the first part, unless a number is not below 2^32.
    """
    if len(data) < least(k):
        raise BitsError(f"there are {len(data)} bytes, {k} numbers take at least {least(k)}")
    lowest, width = data[0], data[1]
    if lowest > MAX_CODE or width > MAX_CODE.bit_length():
        raise BitsError(f"the lowest code is {lowest} and the codes have {width} bits; expected at most {MAX_CODE}, 6")
    string = _String(np.frombuffer(data, np.uint8, -1, HEAD_BYTES))
    total = string.length
    sizes = _sizes(k)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        if at + count > total:
            raise BitsError(f"the string has {total} bits, its codes ask for at least {at + count}")
        at += count
        return at - count

    codes = np.full(len(sizes), lowest, np.int64)
    for j in range(width):
        codes += string.bits(take(len(codes)), len(codes)).astype(np.int64) << j
    if codes.max() > MAX_CODE:
        raise BitsError(f"a group has the code {codes.max()}, the greatest is {MAX_CODE}")
    shifts, threes = _parts(codes)
    # Before anything of the size of k times a width is made: every number still needs its last bit.
    if total < at + int(sizes @ (shifts + threes)) + k:
        raise BitsError(f"the string has {total} bits, fewer than its codes ask for")
    lows = [take(int(sizes[shifts > j].sum())) for j in range(int(shifts.max()))]
    count = int(sizes[threes].sum())
    first_thirds = take(count)
    second_thirds = take(sum(int(np.count_nonzero(part)) for _, part in string.parts(first_thirds, at)))
    # Before a word is made for each:
    ended = sum(np.count_nonzero(part) for _, part in string.parts(at, total))
    if ended != k:
        raise BitsError(f"the string ends {ended} numbers, expected {k}")
    if at <= total - 8 and not data[-1]:
        raise BitsError("bytes are left over after the last number")
    yield from _numbers(string, k, shifts, threes, lows, (first_thirds, second_thirds), at)


def _numbers(
    string: "_String",
    k: int,
    shifts: _Codes,
    threes: NDArray[np.bool_],
    lows: list[int],
    thirds_at: tuple[int, int],
    ends_at: int,
) -> Iterator[tuple[int, Numbers]]:
    """Yield the numbers part by part from the places of their planes, which are checked."""
    sizes, (first_thirds, second_thirds) = _sizes(k), thirds_at
    unary = string.parts(ends_at, string.length)
    ends, before = np.empty(0, np.int64), ends_at - 1
    for first in range(0, len(sizes), _GROUPS):
        groups = slice(first, first + _GROUPS)
        own, tall_ones, part_sizes = shifts[groups], threes[groups], sizes[groups]
        count = int(part_sizes.sum())
        octets = []  # of the low bits of each number
        for j in range(int(own.max())):
            if not j % 8:
                octets.append(np.zeros((len(own), GROUP), np.uint8))
            chosen = own > j
            length = int(part_sizes[chosen].sum())
            plane = _filled(string.bits(lows[j], length))
            lows[j] += length
            plane <<= np.uint8(j % 8)
            if chosen.all():
                octets[-1] |= plane
            else:
                octets[-1][chosen] |= plane
        length = int(part_sizes[tall_ones].sum())
        thirds = string.bits(first_thirds, length)
        first_thirds += length
        some = np.flatnonzero(thirds.view(np.bool_))
        thirds[some] += string.bits(second_thirds, len(some))
        second_thirds += len(some)
        while len(ends) < count:
            start, part = next(unary)
            more = np.flatnonzero(part)  # ten times as fast as of integers
            more += start
            ends = np.concatenate([ends, more]) if len(ends) else more
        here, ends = ends[:count], ends[count:]
        gaps = here - 1
        gaps[1:] -= here[:-1]
        gaps[0] -= before
        before = int(here[-1])
        tall = _filled(gaps)  # int64, so that three times as much is no overflow
        if tall_ones.any():
            tall[tall_ones] = tall[tall_ones] * 3 + _filled(thirds)
        # What stands above the s low bits, before it is shifted there in words of 32 bits.
        if (tall.max(axis=1) > (2**32 - 1) >> own).any():
            raise BitsError("a number is not below 2^32")
        rows = tall.astype(np.uint32)
        rows <<= own[:, None].astype(np.uint32)
        for place, octet in enumerate(octets):
            rows |= octet if not place else octet.astype(np.uint32) << np.uint32(8 * place)
        yield first * GROUP, _flat(rows, count)


class _String:
    """Bits that are read in places; a short string is unpacked once.

    Args:
        octets: The string, eight bits a byte.
    """

    def __init__(self, octets: _Bits) -> None:
        self.length = 8 * len(octets)
        self._octets = octets
        self._unpacked = np.unpackbits(octets, bitorder="little") if self.length <= _WINDOW else None

    def bits(self, at: int, count: int) -> _Bits:
        """Return bits from a place on, each a byte of 0 or 1; whoever changes them is their only reader."""
        if self._unpacked is not None:
            return self._unpacked[at : at + count]
        first, lead = divmod(at, 8)
        octets = self._octets[first : first + -(-(lead + count) // 8)]
        return np.unpackbits(octets, bitorder="little")[lead : lead + count]

    def parts(self, at: int, end: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Yield the bits from a place to another in parts, each with the place of its first."""
        for start in range(at, end, _WINDOW):
            yield start, self.bits(start, min(_WINDOW, end - start)).view(np.bool_)


def _parts_of(source: Source, k: int) -> Iterator[tuple[slice, _Rows]]:
    """Yield some groups at a time: which, and their rows."""
    for first in range(0, -(-k // GROUP), _GROUPS):
        numbers = source(first * GROUP, min(k, (first + _GROUPS) * GROUP))
        yield slice(first, first + -(-len(numbers) // GROUP)), _filled(numbers)


def _wide(rows: _Rows) -> _Wide:
    """Return rows whose sums fit into their words: twice as fast in words of 32 bits."""
    return rows.astype(np.uint64) if rows.max() >> 24 else rows


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


def _best_single(parts: Callable[[], Iterable[tuple[slice, _Rows]]], sizes: _Codes, code: int) -> tuple[int, int]:
    """Return the one code for all rows that costs least, and that cost: from `code` downhill, else uphill."""

    def cost(code: int) -> int:
        return sum(int(_costs(_wide(rows), sizes[groups], np.full(len(rows), code)).sum()) for groups, rows in parts())

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
