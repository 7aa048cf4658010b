"""Encoding of a student's tensors: each in its shortest form, all codes in one entropy-coded string.

Layout, little-endian. For each tensor, in the order of the manifest, a head; then strings of `rans` to the end, each of
2^24 symbols but for the last, which has the rest; each but the last is preceded by its length, 4 bytes:

    a tensor that is not quantized, of `dtype`:
    | 1 | PLAIN: unchanged; HALF: float32 as float16; DEFLATED: zlib of it |
    | 4 | DEFLATED only: length of the zlib stream |
    | ... | the array |

    a quantized one, of `bits` and `group`:
    | 1 | PACKED: all codes plus the largest, `bits` each, lowest bit first; DENSE: all codes in the string; SPARSE: |
    |   | positions of those that are not zero, and these in the string; SPARSE_COLUMNS: the same, column by column of |
    |   | the matrix (channels, the rest) |
    | ... | PACKED only: the codes |
    | ... | SPARSE only: 4 bytes number of codes, 1 byte index tag, 4 bytes length, positions as in `positions` |
    | ... | table of the codes (`frequency_table`), if there are any |
    | 1 | scales: FLOATS, float32 each; POWERS, of 2^(1/16) |
    | ... | FLOATS: the scales. POWERS: 2 bytes, the middle exponent; table of the exponents minus that |

The strings of `rans` hold, tensor by tensor, the codes and then the exponents of the scales. They are coded one by one,
so that a model of any size takes the working memory of 2^24 symbols.

The shortest form is chosen by exact costs. Sparse codes are stored with their positions (S. Han, H. Mao, W. Dally,
"Deep Compression", ICLR 2016, section 2), by columns where whole inputs of a layer were pruned.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.coding import frequency_table, rans
from fedpress.compression.coding.frequency_table import Table
from fedpress.compression.errors import PayloadError
from fedpress.compression.models.bundles import container
from fedpress.compression.models.bundles.errors import InvalidWeights, TooLarge
from fedpress.compression.models.quantization import quantized_tensor
from fedpress.compression.models.quantization.quantized_tensor import Quantized, Tensors
from fedpress.compression.wire import positions

PLAIN, HALF, DEFLATED, DENSE, SPARSE, SPARSE_COLUMNS, PACKED = range(7)
FORMS: Final = ("plain", "float16", "deflated", "dense", "sparse", "sparse by columns", "packed")
FLOATS, POWERS = range(2)
MAX_EXPANSION: Final = 1024
"""Entries of the tensors allowed for each byte of the weights, so that a small file cannot fill the memory."""
FREE_ENTRIES: Final = 1 << 20
"""Entries allowed besides."""
PIECE: Final = 1 << 24
"""Symbols of a string."""
SLACK_BYTES: Final = 64
"""More than a head's fields other than codes, positions and scales."""
DTYPES: Final = {
    str(np.dtype(kind)): np.dtype(kind).newbyteorder("<")
    for kind in (np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64, np.float32)
}
_SPARSE = struct.Struct("<IBI")  # number of codes, index tag, length of the positions


class TensorScheme(NamedTuple):
    """Shape and encoding of a tensor.

    Attributes:
        shape: Shape of the tensor.
        dtype: Dtype of an array that is not quantized; "" for a quantized tensor.
        bits: Bits of a quantized tensor's codes.
        group: Weights of a channel that share a scale, as in `Quantized`.
    """

    shape: tuple[int, ...]
    dtype: str = ""
    bits: int = 0
    group: int = 0


class _Run(NamedTuple):
    """Codes that share a frequency table."""

    codes: NDArray[np.int8]
    table: Table


def scheme_of(tensor: Quantized | NDArray[Any]) -> TensorScheme:
    """Return the scheme of a tensor, as `pack` writes it."""
    if isinstance(tensor, Quantized):
        return TensorScheme(tuple(tensor.codes.shape), "", tensor.bits, tensor.group)
    return TensorScheme(tuple(tensor.shape), str(tensor.dtype))


def pack(tensors: Tensors, entropy_coded: bool = True) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of the tensors, and the form of each by name.

    Args:
        tensors: Tensors by name.
        entropy_coded: False: use the longest forms, whose lengths do not depend on the values.
    """
    heads, runs, forms = [], [], {}
    for name, tensor in tensors.items():
        coded: list[_Run] = []
        if not entropy_coded:
            head = _pack_longest(tensor)
        elif isinstance(tensor, Quantized):
            head, coded = _pack_quantized(tensor)
        else:
            head = _pack_plain(tensor)
        heads.append(head)
        runs += coded
        forms[name] = FORMS[head[0]]
    pieces = list(_pieces([len(run.codes) for run in runs]))
    for number, piece in enumerate(pieces):
        string = _encoded([_Run(runs[index].codes[part], runs[index].table) for index, part in piece])
        heads += [string] if number == len(pieces) - 1 else [struct.pack("<I", len(string)), string]
    return b"".join(heads), forms


def _encoded(runs: list[_Run]) -> bytes:
    """Return a string of `rans`."""
    symbols = np.concatenate([np.empty(0, np.int64), *(run.codes.astype(np.int64) + run.table.top for run in runs)])
    return rans.encode(symbols, [len(run.codes) for run in runs], [run.table.frequencies for run in runs])


def _pieces(counts: Sequence[int]) -> Iterator[list[tuple[int, slice]]]:
    """Yield the parts of runs that share a string: index of the run, and its part; at least one string."""
    piece: list[tuple[int, slice]] = []
    room = PIECE
    for index, count in enumerate(counts):
        start = 0
        while start < count:
            if not room:
                yield piece
                piece, room = [], PIECE
            stop = min(count, start + room)
            piece.append((index, slice(start, stop)))
            room -= stop - start
            start = stop
    yield piece


def entries(schemes: Mapping[str, TensorScheme]) -> int:
    """Return the number of entries of all tensors."""
    return sum(math.prod(scheme.shape) for scheme in schemes.values())


def decoded_bytes(schemes: Mapping[str, TensorScheme]) -> int:
    """Return the bytes of all tensors once they are decoded, codes as one byte each and scales as four."""
    total = 0
    for scheme in schemes.values():
        size = math.prod(scheme.shape)
        total += size * DTYPES[scheme.dtype].itemsize if scheme.dtype else size + 4 * math.prod(_scales_shape(scheme))
    return total


def longest_bytes(schemes: Mapping[str, TensorScheme]) -> int:
    """Return an upper bound on the length of what `pack` writes for tensors of these schemes, in bytes."""
    total = SLACK_BYTES
    for scheme in schemes.values():
        size = math.prod(scheme.shape)
        if scheme.dtype:
            coded = size * DTYPES[scheme.dtype].itemsize
        else:  # as packed codes and floats; tables and the strings' own bytes come on top of a shorter form at most
            coded = -(-size * scheme.bits // 8) + 4 * math.prod(_scales_shape(scheme))
        total += coded + coded // 100 + 2 * (SLACK_BYTES + 2 * frequency_table.MAX_CODE)
    return total


def unpack(data: bytes | memoryview, schemes: Mapping[str, TensorScheme]) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors that `pack` wrote, and the form of each by name.

    Args:
        data: Bytes of all tensors.
        schemes: Scheme of each tensor by name, in the order of writing; checked against the bytes, not trusted.

    Raises:
        InvalidWeights: The bytes do not decode to such tensors.
        TooLarge: The schemes have more entries than the bytes can justify.
    """
    if entries(schemes) > FREE_ENTRIES + MAX_EXPANSION * len(data):
        raise TooLarge(
            f"{entries(schemes):,} entries from {len(data):,} bytes of weights: at most {FREE_ENTRIES:,} and"
            f" {MAX_EXPANSION:,} a byte are allowed"
        )
    reader = _Reader(data)
    parts: list[tuple[str, TensorScheme, _Head | NDArray[Any]]] = []
    forms = {}
    for name, scheme in schemes.items():
        try:
            form = reader.take(1)[0]
            part = _read_plain(reader, scheme, form) if scheme.dtype else _read_head(reader, scheme, form)
        except (rans.CodeError, PayloadError) as error:
            raise InvalidWeights(f"tensor {name!r}: {error}") from error
        parts.append((name, scheme, part))
        forms[name] = FORMS[form]
    tables = [run for _, _, part in parts if isinstance(part, _Head) for run in part.runs]
    try:
        runs = _decoded(reader, tables)
    except rans.CodeError as error:
        raise InvalidWeights(f"the entropy-coded weights cannot be read: {error}") from error
    tensors: Tensors = {}
    for name, scheme, part in parts:
        if not isinstance(part, _Head):
            tensors[name] = part
            continue
        codes, runs = runs[: len(part.runs)], runs[len(part.runs) :]
        tensors[name] = _restored(name, scheme, part, codes)
    return tensors, forms


def _decoded(reader: _Reader, tables: Sequence[tuple[int, Table]]) -> list[NDArray[np.int8]]:
    """Return the codes of each run."""
    runs = [np.empty(count, np.int8) for count, _ in tables]
    pieces = list(_pieces([count for count, _ in tables]))
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        string = reader.rest() if last else reader.take(struct.unpack("<I", reader.take(4))[0])
        counts = [part.stop - part.start for _, part in piece]
        symbols = rans.decode(string, counts, [tables[index][1].frequencies for index, _ in piece])
        start = 0
        for (index, part), count in zip(piece, counts, strict=True):
            runs[index][part] = symbols[start : start + count] - tables[index][1].top
            start += count
    return runs


class _Head(NamedTuple):
    """Head of a quantized tensor: everything but its entropy-coded codes; in the form PACKED the codes as well."""

    form: int
    codes: NDArray[np.int8] | None
    positions: NDArray[np.int64] | None
    scales: NDArray[np.float32] | None
    middle: int
    runs: list[tuple[int, Table]]


class _Reader:
    """Cursor over the bytes of all tensors."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.at = 0

    def take(self, count: int) -> memoryview:
        if self.at + count > len(self.data):
            raise rans.CodeError(f"{count:,} bytes are expected, {len(self.data) - self.at:,} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def table(self) -> Table:
        table, length = frequency_table.read(self.data[self.at :])
        self.at += length
        return table

    def rest(self) -> memoryview:
        return self.data[self.at :]


def _pack_longest(tensor: Quantized | NDArray[Any]) -> bytes:
    if isinstance(tensor, Quantized):
        return _packed(tensor) + _floats(tensor.scales)
    return bytes([PLAIN]) + _bytes(tensor)


def _packed(tensor: Quantized) -> bytes:
    numbers = (tensor.codes.ravel() + quantized_tensor.levels(tensor.bits)).astype(np.uint8)
    bits = np.unpackbits(numbers[:, None], axis=1, count=tensor.bits, bitorder="little")
    return bytes([PACKED]) + np.packbits(bits, bitorder="little").tobytes()


def _read_packed(reader: _Reader, size: int, bits: int) -> NDArray[np.int8]:
    data = np.frombuffer(reader.take(-(-size * bits // 8)), np.uint8)
    rows = np.unpackbits(data, count=size * bits, bitorder="little").reshape(size, bits)
    numbers = np.packbits(rows, axis=1, bitorder="little")[:, 0] if size else np.empty(0, np.uint8)
    if (numbers > 2 * quantized_tensor.levels(bits)).any():
        raise rans.CodeError(f"a code exceeds {bits} bits")
    return (numbers.astype(np.int16) - quantized_tensor.levels(bits)).astype(np.int8)


def _bytes(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def _floats(scales: NDArray[np.float32]) -> bytes:
    return bytes([FLOATS]) + scales.astype("<f4").tobytes()


def _pack_plain(array: NDArray[Any]) -> bytes:
    plain = _bytes(array)
    forms = [bytes([PLAIN]) + plain]
    deflated = zlib.compress(plain, 9)
    forms.append(bytes([DEFLATED]) + struct.pack("<I", len(deflated)) + deflated)
    if array.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = array.astype("<f2")
        if np.array_equal(half.astype(np.float32), array):
            forms.append(bytes([HALF]) + half.tobytes())
    return min(forms, key=len)


def _read_plain(reader: _Reader, scheme: TensorScheme, form: int) -> NDArray[Any]:
    dtype = DTYPES[scheme.dtype]
    size = math.prod(scheme.shape)
    length = size * dtype.itemsize
    if form == PLAIN:
        array = np.frombuffer(reader.take(length), dtype)
    elif form == HALF and dtype == np.float32:
        array = np.frombuffer(reader.take(2 * size), "<f2")
    elif form == DEFLATED:
        coded = reader.take(struct.unpack("<I", reader.take(4))[0])
        plain = container.inflate(bytes(coded), length, rans.CodeError)
        if len(plain) != length:
            raise rans.CodeError(f"the zlib stream holds {len(plain):,} bytes, expected {length:,}")
        array = np.frombuffer(plain, dtype)
    else:
        raise rans.CodeError(f"form {form} is no form of a {scheme.dtype} tensor")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise rans.CodeError("the tensor holds NaN or infinity")
    if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise rans.CodeError("a bool is neither 0 nor 1")
    return array.astype(dtype.newbyteorder("=")).reshape(scheme.shape)


def _pack_quantized(tensor: Quantized) -> tuple[bytes, list[_Run]]:
    codes = tensor.codes.reshape(len(tensor.codes), -1).astype(np.int64)
    forms = [_dense(codes.ravel()), (_packed(tensor), [])]
    if 2 * np.count_nonzero(codes) < codes.size:
        forms += [_sparse(SPARSE, codes.ravel()), _sparse(SPARSE_COLUMNS, codes.T.ravel())]
    head, run = min(forms, key=lambda form: 8 * len(form[0]) + _bits(form[1]))
    scales, exponents = _pack_scales(tensor.scales)
    return head + scales, [*run, *exponents]


def _dense(codes: NDArray[np.int64]) -> tuple[bytes, list[_Run]]:
    if not len(codes):
        return bytes([DENSE]), []
    table = frequency_table.fit(codes)
    return bytes([DENSE]) + table.data, [_Run(codes.astype(np.int8), table)]


def _sparse(form: int, codes: NDArray[np.int64]) -> tuple[bytes, list[_Run]]:
    nonzero = np.flatnonzero(codes)
    tag, packed = positions.pack(nonzero, len(codes))
    head = bytes([form]) + _SPARSE.pack(len(nonzero), tag, len(packed)) + packed
    if not len(nonzero):
        return head, []
    table = frequency_table.fit(codes[nonzero])
    return head + table.data, [_Run(codes[nonzero].astype(np.int8), table)]


def _bits(runs: list[_Run]) -> float:
    return sum(
        rans.cost(
            np.bincount(run.codes.astype(np.int64) + run.table.top, minlength=2 * run.table.top + 1),
            run.table.frequencies,
        )
        for run in runs
    )


def _pack_scales(scales: NDArray[np.float32]) -> tuple[bytes, list[_Run]]:
    """Return head and run of the scales; those of groups of zeros are dropped, because any will do."""
    used = scales > 0
    floats = _floats(scales)
    if not used.any():
        return bytes([POWERS]) + struct.pack("<h", 0) + frequency_table.fit(np.zeros(1, np.int64)).data, [
            _Run(np.zeros(scales.size, np.int8), frequency_table.fit(np.zeros(1, np.int64)))
        ]
    exponents = quantized_tensor.exponents(np.where(used, scales, 1))
    if not np.array_equal(quantized_tensor.powers(exponents)[used], scales[used]):
        return floats, []
    low, high = int(exponents[used].min()), int(exponents[used].max())
    middle = (low + high) // 2
    if high - middle > frequency_table.MAX_CODE:
        return floats, []
    offsets = np.where(used, exponents - middle, 0).ravel()
    run = _Run(offsets.astype(np.int8), frequency_table.fit(offsets))
    head = bytes([POWERS]) + struct.pack("<h", middle) + run.table.data
    return (floats, []) if 8 * len(floats) < 8 * len(head) + _bits([run]) else (head, [run])


def _read_head(reader: _Reader, scheme: TensorScheme, form: int) -> _Head:
    size = math.prod(scheme.shape)
    where, runs = None, []
    if form not in (DENSE, SPARSE, SPARSE_COLUMNS, PACKED):
        raise rans.CodeError(f"form {form} is no form of a quantized tensor")
    count = 0 if form == PACKED else size
    codes = _read_packed(reader, size, scheme.bits) if form == PACKED else None
    if form in (SPARSE, SPARSE_COLUMNS):
        count, tag, length = _SPARSE.unpack(reader.take(_SPARSE.size))
        packed = reader.take(length)
        if count > size or not positions.known(tag) or tag in (positions.REFERENCE, positions.SEEDED):
            raise rans.CodeError(f"{count:,} of {size:,} codes at positions of form {tag}")
        least, most = positions.length(tag, size, count)
        if tag == positions.ALL and count != size or not least <= length <= most:
            raise rans.CodeError(f"positions take {length:,} bytes, expected {least:,} to {most:,}")
        where = positions.unpack(tag, packed, size, count)
    if count:
        runs.append((count, reader.table()))
        if runs[0][1].top > quantized_tensor.levels(scheme.bits):
            raise rans.CodeError(f"codes up to {runs[0][1].top} exceed {scheme.bits} bits")
    groups = _scales_shape(scheme)
    kind = reader.take(1)[0]
    if kind == FLOATS:
        scales = np.frombuffer(reader.take(4 * math.prod(groups)), "<f4").astype(np.float32).reshape(groups)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise rans.CodeError("a scale is below zero, NaN or infinite")
        return _Head(form, codes, where, scales, 0, runs)
    if kind != POWERS:
        raise rans.CodeError(f"scales of kind {kind}, expected {FLOATS} or {POWERS}")
    middle = struct.unpack("<h", reader.take(2))[0]
    table = reader.table()
    if middle - table.top < quantized_tensor.MIN_EXPONENT or middle + table.top > quantized_tensor.MAX_EXPONENT:
        raise rans.CodeError("a scale is beyond float32's normal numbers")
    runs.append((math.prod(groups), table))
    return _Head(form, codes, where, None, middle, runs)


def _scales_shape(scheme: TensorScheme) -> tuple[int, int]:
    """Return the shape of a quantized tensor's scales, (channels, groups)."""
    return scheme.shape[0], quantized_tensor.groups_of(scheme.shape, scheme.group)


def _restored(name: str, scheme: TensorScheme, head: _Head, runs: list[NDArray[np.int8]]) -> Quantized:
    codes = np.zeros(math.prod(scheme.shape), np.int8) if head.codes is None else head.codes
    has_codes = len(runs) > (head.scales is None)
    if has_codes:
        codes[slice(None) if head.positions is None else head.positions] = runs[0]
    if head.form == SPARSE_COLUMNS:
        codes = np.ascontiguousarray(codes.reshape(-1, scheme.shape[0]).T)
    shaped = codes.reshape(scheme.shape)
    scales = head.scales
    if scales is None:
        scales = quantized_tensor.powers(runs[-1].astype(np.int64) + head.middle).reshape(_scales_shape(scheme))
        # A group of zeros has no scale.
        scales = np.where(quantized_tensor.grouped(shaped, scheme.group).any(axis=2), scales, np.float32(0))
    return Quantized(shaped, scales, scheme.bits, scheme.group)
