"""Value formats: float32 values <-> bytes.

A format is one entry in `_FORMATS`: a name for scenarios, a tag for the wire, and three functions. Payloads, scenarios
and tests look it up there. Every format

* takes finite values only (encoders have checked) and gives finite values back: it saturates instead of overflowing;
* has a length that follows from k alone, so that a decoder can check it before it reads; or says that its length
  varies, and then the wire says what it is.

Values that round to something else are not lost: `error_feedback.error_feedback` keeps the difference.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.coding.bits import codes_length, pack_codes, unpack_codes
from fedpress.compression.tensors.layout import Vector
from fedpress.compression.wire import dyadic, log_levels, uniform_steps


class ValueFormat(NamedTuple):
    """Reader and writer of values.

    Law: `len(pack(v)) == length(len(v))`, or at least that if it varies; `unpack(pack(v), len(v))` is finite, flips no
    sign, and is no further from v than zeros would be (so that error feedback converges).

    Attributes:
        name: Name in scenarios and tables.
        tag: Value tag on the wire; never used again for another format.
        pack: Finite float32 values, shape (k,) -> bytes.
        unpack: Bytes of the right length, k -> float32, shape (k,); those of foreign bytes may be non-finite.
        length: k -> bytes that k values take, or the least that they can take. `length(0) == 0`.
        varies: Whether the length depends on the values.
        encode_fast: values -> bytes, and the values that `unpack` reads from them, for a format that knows these
            without decoding. None: the bytes are decoded.

    >>> TERNARY.unpack(TERNARY.pack(np.array([1, -3, 2], np.float32)), 3)
    array([ 2., -2.,  2.], dtype=float32)
    """

    name: str
    tag: int
    pack: Callable[[Vector], bytes]
    unpack: Callable[[bytes | memoryview, int], Vector]
    length: Callable[[int], int]
    varies: bool = False
    encode_fast: Callable[[Vector], tuple[bytes, Vector]] | None = None

    def encode(self, values: Vector) -> tuple[bytes, Vector]:
        """Return the bytes of `values`, and the values that `unpack` reads from them, a new array."""
        if self.encode_fast is not None:
            return self.encode_fast(values)
        packed = self.pack(values)
        return packed, self.unpack(packed, len(values))


# float32, float16


def _pack_float32(values: Vector) -> bytes:
    return values.astype("<f4").tobytes()


def _unpack_float32(data: bytes | memoryview, k: int) -> Vector:
    return np.frombuffer(data, "<f4", k).astype(np.float32)


FLOAT16_MAX = np.float32(65504)


def _pack_float16(values: Vector) -> bytes:
    return np.clip(values, -FLOAT16_MAX, FLOAT16_MAX).astype("<f2").tobytes()


def _unpack_float16(data: bytes | memoryview, k: int) -> Vector:
    return np.frombuffer(data, "<f2", k).astype(np.float32)


# int8, int4: groups of 256 values, each group with the float32 scale that maps its largest magnitude to 127, or 7

GROUP = 256


def _pack_integers(values: Vector, largest: int) -> tuple[bytes, NDArray[np.int8]]:
    """Return the scales' bytes and the quotients, -largest to largest."""
    k = len(values)
    scales = _scales(values, largest)
    steps = np.repeat(scales.astype(np.float64), GROUP)[:k]
    # A scale is zero if all of its group round to zero; float64, since a subnormal scale is a coarse one.
    quotients = np.divide(values, steps, out=np.zeros(k), where=steps > 0)
    return scales.astype("<f4").tobytes(), np.clip(np.rint(quotients), -largest, largest).astype(np.int8)


def _scales(values: Vector, largest: int) -> Vector:
    if not len(values):
        return np.empty(0, np.float32)
    peaks = np.maximum.reduceat(np.abs(values), np.arange(0, len(values), GROUP))
    scales = (peaks.astype(np.float64) / largest).astype(np.float32)
    # `largest` times the rounded scale may lie beyond float32: the next smaller scale does not.
    beyond = scales.astype(np.float64) * largest > np.finfo(np.float32).max
    return np.where(beyond, np.nextafter(scales, 0), scales)


def _unpack_scales(data: bytes | memoryview, k: int) -> Vector:
    return np.repeat(np.frombuffer(data, "<f4", -(-k // GROUP)).astype(np.float32), GROUP)[:k]


def _pack_int8(values: Vector) -> bytes:
    scales, quotients = _pack_integers(values, 127)
    return scales + quotients.tobytes()


def _unpack_int8(data: bytes | memoryview, k: int) -> Vector:
    with np.errstate(over="ignore", invalid="ignore"):  # the decoder refuses what is not finite
        return np.frombuffer(data, np.int8, k, 4 * -(-k // GROUP)) * _unpack_scales(data, k)


def _length_int8(k: int) -> int:
    return k + 4 * -(-k // GROUP)


def _pack_int4(values: Vector) -> bytes:
    scales, quotients = _pack_integers(values, 7)
    return scales + pack_codes(quotients.view(np.uint8) & np.uint8(15), 4)


def _unpack_int4(data: bytes | memoryview, k: int) -> Vector:
    nibbles = unpack_codes(memoryview(data)[4 * -(-k // GROUP) :], k, 4)
    quotients = (nibbles ^ np.uint8(8)).view(np.int8) - np.int8(8)  # two's complement of four bits
    with np.errstate(over="ignore", invalid="ignore"):
        return quotients * _unpack_scales(data, k)


def _length_int4(k: int) -> int:
    return codes_length(k, 4) + 4 * -(-k // GROUP)


# sign: a sign each, and the mean magnitude of each group of 256. Groups of neighbors are nearly always of one layer,
# so that this is the sign with a scale by layer (Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other
# Gradient Compression Schemes", section 4), without the layers having to be known where values are read.


def _pack_sign(values: Vector) -> bytes:
    if not len(values):
        return b""
    starts = np.arange(0, len(values), GROUP)
    sums = np.add.reduceat(np.abs(values).astype(np.float64), starts)
    means = sums / np.diff(starts, append=len(values))
    return means.astype("<f4").tobytes() + np.packbits(np.signbit(values), bitorder="little").tobytes()


def _unpack_sign(data: bytes | memoryview, k: int) -> Vector:
    magnitudes = _unpack_scales(data, k)
    negative = np.unpackbits(np.frombuffer(data, np.uint8, -1, 4 * -(-k // GROUP)), count=k, bitorder="little")
    return np.negative(magnitudes, out=magnitudes, where=negative.astype(bool))


def _length_sign(k: int) -> int:
    return -(-k // 8) + 4 * -(-k // GROUP)


# ternary: a sign each, and one magnitude: the mean over the entries that are sent, which is what sits in the k kept
# places (the mean over all n would shrink the update by the density). Sattler et al. 2019, "Robust and
# Communication-Efficient Federated Learning from Non-IID Data", algorithm 1.


def _pack_ternary(values: Vector) -> bytes:
    if not len(values):
        return b""
    magnitude = np.abs(values).mean(dtype=np.float64)
    return np.array(magnitude, "<f4").tobytes() + np.packbits(np.signbit(values), bitorder="little").tobytes()


def _unpack_ternary(data: bytes | memoryview, k: int) -> Vector:
    if not k:
        return np.empty(0, np.float32)
    magnitude = np.frombuffer(data, "<u4", 1).astype(np.uint32)
    negative = np.unpackbits(np.frombuffer(data, np.uint8, -1, 4), count=k, bitorder="little")
    patterns = negative.astype(np.uint32)
    patterns <<= 31
    patterns ^= magnitude
    return patterns.view(np.float32)


def _length_ternary(k: int) -> int:
    return 4 + -(-k // 8) if k else 0


# log4, log6, log8: a sign and a logarithmic level


def _logarithmic(tag: int, bits: int) -> ValueFormat:
    return ValueFormat(
        f"log{bits}",
        tag,
        partial(log_levels.pack, bits=bits),
        partial(log_levels.unpack, bits=bits),
        partial(log_levels.length, bits=bits),
    )


FLOAT32 = ValueFormat("float32", 1, _pack_float32, _unpack_float32, lambda k: 4 * k)
FLOAT16 = ValueFormat("float16", 2, _pack_float16, _unpack_float16, lambda k: 2 * k)
INT8 = ValueFormat("int8", 3, _pack_int8, _unpack_int8, _length_int8)
TERNARY = ValueFormat("ternary", 4, _pack_ternary, _unpack_ternary, _length_ternary)
LOG4 = _logarithmic(5, 4)
INT4 = ValueFormat("int4", 6, _pack_int4, _unpack_int4, _length_int4)
SIGN = ValueFormat("sign", 7, _pack_sign, _unpack_sign, _length_sign)


def stepped_to(relative_error: float) -> ValueFormat:
    """Return the format `step` with steps for this relative error of the values sent.

    A decoder needs no setting for it: the step is in the payload.

    Raises:
        ValueError: The error is out of range.

    >>> stepped_to(0.05).name
    'step'
    """
    if not 0 < relative_error <= 0.5:
        raise ValueError(f"relative_error is {relative_error}, expected above 0 and at most 0.5, such as 0.08")
    encode = partial(uniform_steps.encode, relative_error=relative_error)
    return ValueFormat(
        "step", 8, lambda v: encode(v)[0], uniform_steps.unpack, uniform_steps.least, varies=True, encode_fast=encode
    )


STEP = stepped_to(0.08)
LOG6 = _logarithmic(9, 6)
LOG8 = _logarithmic(10, 8)
DYADIC = ValueFormat("dyadic", 11, dyadic.pack, dyadic.unpack, dyadic.least, varies=True)

_FORMATS = (FLOAT32, FLOAT16, INT8, TERNARY, LOG4, INT4, SIGN, STEP, LOG6, LOG8, DYADIC)
_BY_NAME = {entry.name: entry for entry in _FORMATS}
_BY_TAG = {entry.tag: entry for entry in _FORMATS}


def names() -> tuple[str, ...]:
    """Return the names of all formats.

    >>> names()
    ('float32', 'float16', 'int8', 'ternary', 'log4', 'int4', 'sign', 'step', 'log6', 'log8', 'dyadic')
    """
    return tuple(_BY_NAME)


def by_name(name: str) -> ValueFormat:
    """Return the format of this name.

    Raises:
        ValueError: There is none.

    >>> by_name("ternary").length(80)
    14
    """
    if name not in _BY_NAME:
        raise ValueError(f"value format {name!r} is not one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def by_tag(tag: int) -> ValueFormat | None:
    """Return the format of this tag on the wire, or None if there is none.

    >>> by_tag(3).name, by_tag(0)
    ('int8', None)
    """
    return _BY_TAG.get(tag)
