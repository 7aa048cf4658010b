"""A second decoder, written from docs/reference/wire.md alone: the page is enough, or this file could not be.

It shares nothing with fedpress: plain Python, one entry at a time, no numpy. It is slow, and it names each refusal
as the page's table does. Where it and fedpress disagree, the page says which of them is wrong.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LARGEST = struct.unpack("<f", bytes.fromhex("ffff7f7f"))[0]  # of float32


class Refused(Exception):
    """A payload that a decoder must refuse; the message is the name of the fault in the page's table."""


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Decoded(NamedTuple):
    positions: list[int]
    values: list[float]  # each of them a float32


def check(holds: bool, fault: str) -> None:
    if not holds:
        raise Refused(fault)


def ceil(number: int, divisor: int) -> int:
    return (number + divisor - 1) // divisor


def bit(data: bytes, index: int) -> int:
    return data[index // 8] >> index % 8 & 1


def number(data: bytes, first: int, bits: int) -> int:
    """The number whose bits begin at bit `first`, least significant first."""
    return sum(bit(data, first + j) << j for j in range(bits))


def floats(data: bytes, count: int) -> list[float]:
    return list(struct.unpack_from(f"<{count}f", data))


def rounded(value: float) -> float:
    """The nearest float32; infinite where there is none."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def fingerprint(layout: Sequence[Tensor]) -> int:
    parts = []
    for tensor in layout:
        for text in (tensor.name.encode("utf-8"), tensor.dtype.encode("ascii")):
            parts += [struct.pack("<I", len(text)), text]
        parts += [struct.pack("<I", len(tensor.shape)), *(struct.pack("<Q", size) for size in tensor.shape)]
    return struct.unpack("<I", hashlib.sha256(b"".join(parts)).digest()[:4])[0]


# The payload


def decode(payload: bytes, layout: Sequence[Tensor], support: Sequence[int] | None = None) -> Decoded:
    """Return what the payload says to a receiver with this layout, and maybe a reference, or raise `Refused`."""
    check(len(payload) >= 22, "Truncated")
    magic, version, value_tag, index_tag, flags, n, k, sender, checksum = struct.unpack_from("<2sBBBBIIII", payload)
    check(magic == b"FP", "BadMagic")
    check(version == 1, "UnsupportedVersion")
    check(value_tag in LEAST or value_tag in FORMS, "UnknownFormat")
    check(index_tag in ALONE or index_tag in (4, 5), "UnknownFormat")
    check(value_tag in LEAST or index_tag == 0, "UnknownFormat")
    check(flags == 0, "UnknownFormat")
    check(k <= n, "CountTooLarge")
    check(index_tag != 0 or k == n, "InvalidPositions")
    check(n == sum(tensor.size for tensor in layout), "SizeMismatch")
    check(sender == fingerprint(layout), "LayoutMismatch")
    body = payload[22:]
    if value_tag in FORMS:
        check(len(body) >= 1, "Truncated")
        length, read = FORMS[value_tag]
        due = length(body[0], layout)
        check(len(body) - 1 >= due, "Truncated")
        check(len(body) - 1 == due, "LengthMismatch")
    else:
        start, end = values_span(body, value_tag, k)
        least, most = positions_length(index_tag, n, k)
        check(start >= least, "Truncated")
        check(start <= most, "LengthMismatch")
    check(checksum == zlib.crc32(payload[:18] + body), "ChecksumMismatch")
    if value_tag in FORMS:
        places, values = list(range(n)), list(read(body[0], body[1:], layout))
    else:
        if index_tag == 4:
            places = read_reference(body[:start], n, k, support)
        else:
            places = read_positions(index_tag, body[:start], n, k)
        values = READ[value_tag](body[start:end], k)
    check(all(math.isfinite(value) for value in values), "NonFiniteValues")
    return Decoded(places, values)


def values_span(body: bytes, value_tag: int, k: int) -> tuple[int, int]:
    """Where in the body the values begin and end; they begin below 0 where the body is too short."""
    least = LEAST[value_tag](k)
    if value_tag not in (8, 11) or k == 0:
        return len(body) - least, len(body)
    w = bytes_for(len(body))
    end = len(body) - w
    check(end >= least, "Truncated")
    stated = number(body, 8 * end, 8 * w)
    check(stated >= least, "InvalidValues")
    return end - stated, end


def bytes_for(largest: int) -> int:
    """The least number of whole bytes that holds this number."""
    w = 0
    while largest >= 256**w:
        w += 1
    return w


# Positions

ALONE = {0, 1, 2, 3, *range(32, 64)}
"""The index tags of positions that may be a part of those of tag 4."""


def positions_length(index_tag: int, n: int, k: int) -> tuple[int, int]:
    """The fewest and the most bytes that the positions may take."""
    bitmap = ceil(n, 8)
    if index_tag == 0:
        return 0, 0
    if index_tag == 1:
        raw = k * bytes_for(max(n - 1, 0))
        return raw, raw
    if index_tag == 2:
        return bitmap, bitmap
    if index_tag == 4:
        least = 6 + 2 * bytes_for(n)
        return least, max(least, bitmap)
    if index_tag == 5:
        return 8, 8
    if k == 0:
        return 0, 0
    if index_tag == 3:
        return 2 + ceil(k, 8), max(2 + ceil(k, 8), bitmap)
    b = index_tag - 32
    return ceil(k * (b + 1), 8), min(bitmap, ceil(k * (b + 1) + (n - k) // 2**b, 8))


def read_positions(index_tag: int, data: bytes, n: int, k: int) -> list[int]:
    if index_tag == 0:
        return list(range(n))
    if index_tag == 1:
        w = bytes_for(max(n - 1, 0))
        places = [number(data, 8 * w * i, 8 * w) for i in range(k)]
    elif index_tag == 2:
        places = [p for p in range(8 * len(data)) if bit(data, p)]
        check(len(places) == k, "InvalidPositions")
    elif index_tag == 3:
        gaps = read_numbers(data, k, "InvalidPositions") if k else []
        check(all(gap < n for gap in gaps), "InvalidPositions")
        places = risen(gaps)
    elif index_tag == 5:
        places = drawn(number(data, 0, 64), n, k)
    else:
        places = risen(read_rice(data, index_tag - 32, k))
    check(all(p < n for p in places), "InvalidPositions")
    check(all(p < q for p, q in zip(places, places[1:], strict=False)), "InvalidPositions")
    return places


def read_reference(data: bytes, n: int, k: int, support: Sequence[int] | None) -> list[int]:
    check(support is not None, "ReferenceMismatch")
    m, w = len(support), bytes_for(n)
    check(number(data, 0, 32) == zlib.crc32(struct.pack(f"<{m + 1}I", m, *support)), "ReferenceMismatch")
    check(data[4] in ALONE and data[5] in ALONE, "UnknownFormat")
    h, length = number(data, 48, 8 * w), number(data, 48 + 8 * w, 8 * w)
    rest = data[6 + 2 * w :]
    check(h <= k and h <= m and k - h <= n - m and length <= len(rest), "InvalidPositions")
    missing = 2 * h > m
    parts = [(data[4], rest[:length], m, m - h if missing else h), (data[5], rest[length:], n - m, k - h)]
    for tag, part, of, count in parts:
        check(tag != 0 or count == of, "InvalidPositions")
        least, most = positions_length(tag, of, count)
        check(least <= len(part) <= most, "InvalidPositions")
    inside, outside = (read_positions(tag, part, of, count) for tag, part, of, count in parts)
    within, known = set(inside), set(support)
    others = [p for p in range(n) if p not in known]
    return sorted([support[r] for r in range(m) if (r in within) != missing] + [others[r] for r in outside])


def drawn(seed: int, n: int, k: int) -> list[int]:
    bounds = [i * n // k for i in range(k + 1)] if k else []
    return sorted((bounds[i] + mixed(seed, i) % (bounds[i + 1] - bounds[i]) + mixed(seed, k) % n) % n for i in range(k))


def mixed(seed: int, i: int) -> int:
    """Number i of SplitMix64."""
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def risen(gaps: list[int]) -> list[int]:
    places, place = [], -1
    for gap in gaps:
        place += gap + 1
        places.append(place)
    return places


def read_rice(data: bytes, b: int, k: int) -> list[int]:
    highs, end = read_unary(data, k * b, k, "InvalidPositions")
    check(len(data) == ceil(end, 8), "LengthMismatch")
    return [highs[i] << b | number(data, i * b, b) for i in range(k)]


def read_unary(data: bytes, first: int, k: int, fault: str) -> tuple[list[int], int]:
    """k numbers, each as many 0 bits and a 1 bit, with no 1 bit behind them; and where they end."""
    ones = [j for j in range(first, 8 * len(data)) if bit(data, j)]
    check(len(ones) == k, fault)
    starts = [first, *(j + 1 for j in ones)]
    return [one - start for one, start in zip(ones, starts, strict=False)], starts[-1]


# Numbers by groups


def read_numbers(data: bytes, k: int, fault: str) -> list[int]:
    check(len(data) >= 2, fault)
    lowest, width = data[0], data[1]
    check(lowest <= 62 and width <= 6, fault)
    data, groups, place = data[2:], ceil(k, 256), 0

    def take(count: int) -> int:
        nonlocal place
        check(place + count <= 8 * len(data), fault)
        place += count
        return place - count

    codes = [lowest] * groups
    for j in range(width):
        first = take(groups)
        for group in range(groups):
            codes[group] += bit(data, first + group) << j
    check(all(code <= 62 for code in codes), fault)
    kinds = [code_of(codes[i // 256]) for i in range(k)]
    x = [0] * k
    for j in range(max(shift for shift, _ in kinds)):
        chosen = [i for i in range(k) if kinds[i][0] > j]
        first = take(len(chosen))
        for at, i in enumerate(chosen, start=first):
            x[i] |= bit(data, at) << j
    threes = [i for i in range(k) if kinds[i][1] == 3]
    first = take(len(threes))
    above = [i for at, i in enumerate(threes, start=first) if bit(data, at)]
    first = take(len(above))
    for at, i in enumerate(above, start=first):
        x[i] += (2 if bit(data, at) else 1) << kinds[i][0]
    quotients, end = read_unary(data, place, k, fault)
    check(len(data) == ceil(end, 8), fault)
    for i in range(k):
        shift, factor = kinds[i]
        x[i] += quotients[i] * (factor << shift)
    check(all(value < 2**32 for value in x), fault)
    return x


def code_of(code: int) -> tuple[int, int]:
    """s and 1 or 3: the modulus of the code is this many times 2^s."""
    if code == 0:
        return 0, 1
    return ((code + 1) // 2, 1) if code % 2 else (code // 2 - 1, 3)


# Values


def read_float32(data: bytes, k: int) -> list[float]:
    return floats(data, k)


def read_float16(data: bytes, k: int) -> list[float]:
    return list(struct.unpack_from(f"<{k}e", data))


def read_int8(data: bytes, k: int) -> list[float]:
    groups = ceil(k, 256)
    scales = floats(data, groups)
    return [rounded(scales[i // 256] * q) for i, q in enumerate(struct.unpack_from(f"<{k}b", data, 4 * groups))]


def read_ternary(data: bytes, k: int) -> list[float]:
    if k == 0:
        return []
    return signed(floats(data, 1) * k, data[4:])


def read_log4(data: bytes, k: int) -> list[float]:
    return read_logarithmic(data, k, 4)


def read_log6(data: bytes, k: int) -> list[float]:
    return read_logarithmic(data, k, 6)


def read_log8(data: bytes, k: int) -> list[float]:
    return read_logarithmic(data, k, 8)


def read_logarithmic(data: bytes, k: int, bits: int) -> list[float]:
    groups = ceil(k, 256)
    heads = struct.unpack_from(f"<{groups}H", data)
    values = []
    for i in range(k):
        head, code = heads[i // 256], number(data, 16 * groups + i * bits, bits)
        shift, zero, level = 24 - bits + head // 2048 % 4, head // 8192 % 2, code % 2 ** (bits - 1)
        lowest = head % 2048 * 2 ** max(shift, 20)
        pattern = 0 if zero and level == 0 else lowest + level * 2**shift
        check(pattern < 0x7F800000, "NonFiniteValues")
        magnitude = struct.unpack("<f", struct.pack("<I", pattern))[0]
        values.append(-magnitude if code >= 2 ** (bits - 1) else magnitude)
    return values


def read_int4(data: bytes, k: int) -> list[float]:
    groups = ceil(k, 256)
    scales = floats(data, groups)
    nibbles = [nibble_of(data[4 * groups :], i) for i in range(k)]
    return [rounded(scales[i // 256] * (q - 16 if q >= 8 else q)) for i, q in enumerate(nibbles)]


def read_sign(data: bytes, k: int) -> list[float]:
    groups = ceil(k, 256)
    magnitudes = floats(data, groups)
    return signed([magnitudes[i // 256] for i in range(k)], data[4 * groups :])


def read_step(data: bytes, k: int) -> list[float]:
    if k == 0:
        return []
    base, step = floats(data, 2)
    signs, rest = data[8 : 8 + ceil(k, 8)], data[8 + ceil(k, 8) :]
    return signed([rounded(base + x * step) for x in read_numbers(rest, k, "InvalidValues")], signs)


def read_dyadic(data: bytes, k: int) -> list[float]:
    if k == 0:
        return []
    h, a = struct.unpack_from("<hI", data)
    signs, rest = data[6 : 6 + ceil(k, 8)], data[6 + ceil(k, 8) :]
    if h >= 8192:
        check(not rest, "InvalidValues")
        return signed([doubled(a, h - 16384)] * k, signs)
    x = read_numbers(rest, k, "InvalidValues")
    check(all(a + value < 2**32 for value in x), "InvalidValues")
    return signed([doubled(a + value, h) for value in x], signs)


def doubled(integer: int, e: int) -> float:
    """integer * 2^e, rounded to the nearest float32."""
    try:
        return rounded(math.ldexp(integer, e))
    except OverflowError:
        return math.inf


def nibble_of(data: bytes, i: int) -> int:
    return data[i // 2] >> 4 * (i % 2) & 15


def signed(magnitudes: list[float], signs: bytes) -> list[float]:
    return [-magnitude if bit(signs, i) else magnitude for i, magnitude in enumerate(magnitudes)]


# Value tag -> the bytes of k values, or the fewest of them; and how they are read.
LEAST = {
    1: lambda k: 4 * k,
    2: lambda k: 2 * k,
    3: lambda k: 4 * ceil(k, 256) + k,
    4: lambda k: 4 + ceil(k, 8) if k else 0,
    5: lambda k: 2 * ceil(k, 256) + ceil(k, 2),
    6: lambda k: 4 * ceil(k, 256) + ceil(k, 2),
    7: lambda k: 4 * ceil(k, 256) + ceil(k, 8),
    8: lambda k: 8 + ceil(k, 8) + 2 + ceil(k, 8) if k else 0,
    9: lambda k: 2 * ceil(k, 256) + ceil(6 * k, 8),
    10: lambda k: 2 * ceil(k, 256) + k,
    11: lambda k: 6 + ceil(k, 8) if k else 0,
}
READ = {
    1: read_float32,
    2: read_float16,
    3: read_int8,
    4: read_ternary,
    5: read_log4,
    6: read_int4,
    7: read_sign,
    8: read_step,
    9: read_log6,
    10: read_log8,
    11: read_dyadic,
}


# Forms of whole updates


def size_of(layout: Sequence[Tensor]) -> int:
    return sum(tensor.size for tensor in layout)


def qsgd_length(bits: int, layout: Sequence[Tensor]) -> int:
    check(2 <= bits <= 8, "UnknownFormat")
    return 4 * ceil(size_of(layout), 512) + ceil(size_of(layout) * bits, 8)


def read_qsgd(bits: int, data: bytes, layout: Sequence[Tensor]) -> Iterator[float]:
    n, largest = size_of(layout), 2 ** (bits - 1) - 1
    scales = floats(data, ceil(n, 512))
    codes = data[4 * len(scales) :]
    for i in range(n):
        yield rounded((number(codes, i * bits, bits) - largest) * (scales[i // 512] / largest))


def terngrad_length(parameter: int, layout: Sequence[Tensor]) -> int:
    check(parameter == 0, "UnknownFormat")
    return 4 * len(layout) + ceil(size_of(layout), 5)


def read_terngrad(parameter: int, data: bytes, layout: Sequence[Tensor]) -> Iterator[float]:
    scales = [
        scale for tensor, scale in zip(layout, floats(data, len(layout)), strict=True) for _ in range(tensor.size)
    ]
    digits = data[4 * len(layout) :]
    for i, scale in enumerate(scales):
        yield (digits[i // 5] // 3 ** (i % 5) % 3 - 1) * scale


EDEN_LEVELS = {
    1: [0.7980],
    2: [0.4528, 1.510],
    3: [0.2451, 0.7560, 1.344, 2.152],
    4: [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
}


def eden_widths(n: int) -> list[int]:
    widths = [8192] * (n // 8192)
    if n % 8192:
        widths.append(1)
        while widths[-1] < n % 8192:
            widths[-1] *= 2
    return widths


def eden_length(bits: int, layout: Sequence[Tensor]) -> int:
    check(1 <= bits <= 4, "UnknownFormat")
    widths = eden_widths(size_of(layout))
    return 8 + 4 * len(widths) + ceil(sum(widths) * bits, 8)


def read_eden(bits: int, data: bytes, layout: Sequence[Tensor]) -> Iterator[float]:
    n = size_of(layout)
    widths = eden_widths(n)
    seed, scales = number(data, 0, 64), floats(data[8:], len(widths))
    codes = data[8 + 4 * len(widths) :]
    check(all(math.isfinite(scale) for scale in scales), "NonFiniteValues")
    levels = [-level for level in reversed(EDEN_LEVELS[bits])] + EDEN_LEVELS[bits]
    start = 0
    for width, scale in zip(widths, scales, strict=True):
        q = [levels[number(codes, (start + i) * bits, bits)] for i in range(width)]
        for i, turned in enumerate(hadamard(q)):
            if start + i < n:
                value = scale * turned / math.sqrt(width) * eden_sign(seed, start + i)
                yield rounded(max(-LARGEST, min(value, LARGEST)))
        start += width


def hadamard(q: list[float]) -> list[float]:
    """Sylvester's matrix times q: H of 2 d is ((H, H), (H, -H)) of d."""
    if len(q) == 1:
        return q
    upper, lower = hadamard(q[: len(q) // 2]), hadamard(q[len(q) // 2 :])
    return [u + v for u, v in zip(upper, lower, strict=True)] + [u - v for u, v in zip(upper, lower, strict=True)]


def eden_sign(seed: int, i: int) -> int:
    return -1 if mixed(seed, i) >> 63 else 1


def as_factors(tensor: Tensor, rank: int) -> tuple[int, int] | None:
    """The rows and columns of a tensor that is written as two factors; None for the others."""
    if len(tensor.shape) < 2:
        return None
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


def lowrank_length(rank: int, layout: Sequence[Tensor]) -> int:
    check(1 <= rank <= 255, "UnknownFormat")
    shapes = [as_factors(tensor, rank) for tensor in layout]
    return 4 * sum(rank * sum(shape) if shape else t.size for t, shape in zip(layout, shapes, strict=True))


def read_lowrank(rank: int, data: bytes, layout: Sequence[Tensor]) -> Iterator[float]:
    def take(count: int) -> list[float]:
        nonlocal data
        taken, data = floats(data, count), data[4 * count :]
        check(all(math.isfinite(value) for value in taken), "NonFiniteValues")
        return taken

    for tensor in layout:
        shape = as_factors(tensor, rank)
        if shape is None:
            yield from take(tensor.size)
            continue
        p, q = take(shape[0] * rank), take(shape[1] * rank)
        peaks = (max(map(abs, p[r::rank])) * max(map(abs, q[r::rank])) for r in range(rank))
        check(sum(peaks) <= 3.4e38, "NonFiniteValues")
        for row in range(shape[0]):
            for column in range(shape[1]):
                yield rounded(math.fsum(p[row * rank + r] * q[column * rank + r] for r in range(rank)))


FORMS = {
    64: (qsgd_length, read_qsgd),
    65: (terngrad_length, read_terngrad),
    66: (eden_length, read_eden),
    67: (lowrank_length, read_lowrank),
}


# Buffers

DTYPES = {
    "bool": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I",
    "uint64": "Q", "float16": "e", "bfloat16": "H", "float32": "f", "float64": "d",
}  # fmt: skip


def decode_buffers(data: bytes, buffers: Sequence[Tensor], before: Sequence[bytes] | None) -> list[list[float]]:
    """Return the entries of each buffer, or raise `Refused`; `before` has the bytes of each that is here already."""
    formats = [f"<{tensor.size}{DTYPES[tensor.dtype]}" for tensor in buffers]
    flag_bytes = (len(buffers) + 7) // 8
    start = flag_bytes + 4 if buffers else 0
    check(len(data) >= start, "Truncated")
    flags = int.from_bytes(data[:flag_bytes], "little")
    check(flags >> len(buffers) == 0, "UnknownFormat")
    written = [bool(flags >> number & 1) for number in range(len(buffers))]
    due = start + sum(struct.calcsize(format) for format, sent in zip(formats, written, strict=True) if sent)
    check(len(data) >= due, "Truncated")
    check(len(data) == due, "LengthMismatch")
    check(all(written) or before is not None, "ReferenceMismatch")
    parts = []
    for number, format in enumerate(formats):
        stop = start + struct.calcsize(format)
        if written[number]:
            parts.append(data[start:stop])
            start = stop
        elif before is not None:
            parts.append(before[number])
    check(
        not buffers or zlib.crc32(b"".join(parts)) == int.from_bytes(data[flag_bytes:][:4], "little"),
        "ChecksumMismatch",
    )
    found = []
    for tensor, format, part in zip(buffers, formats, parts, strict=True):
        entries = list(struct.unpack(format, part))
        if tensor.dtype == "bfloat16":
            entries = [struct.unpack("<f", struct.pack("<I", entry << 16))[0] for entry in entries]
        check(all(math.isfinite(entry) for entry in entries), "NonFiniteValues")
        if tensor.name.rpartition(".")[2] == "running_var":
            check(all(entry >= 0 for entry in entries), "NegativeVariance")
        found.append(entries)
    return found
