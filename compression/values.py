"""Value formats: float32 values <-> bytes.

A format is one entry in `_FORMATS`: a name for scenarios, a tag for the wire, and three functions. The wire, the
scenario files and the tests find it there. Every format

* takes finite values only (encoders have checked) and gives finite values back: it saturates instead of overflowing;
* has a length that follows from k alone, so that a decoder can check it before it reads.

Values that round to something else are not lost: `feedback.error_feedback` keeps the difference.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.vector import Vector


class ValueFormat(NamedTuple):
    """How values are written.

    Law: `len(pack(v)) == length(len(v))`; `unpack(pack(v), len(v))` is finite, flips no sign, and is no further from v
    than zeros would be (so that error feedback converges).

    Attributes:
        name: For scenarios and tables.
        tag: For the wire; never used again for another format.
        pack: Finite float32 values, shape (k,) -> bytes.
        unpack: Bytes of the right length, k -> float32, shape (k,); what they say may be non-finite.
        length: k -> bytes that k values take. `length(0) == 0`.

    >>> TERNARY.unpack(TERNARY.pack(np.array([1, -3, 2], np.float32)), 3)
    array([ 2., -2.,  2.], dtype=float32)
    """

    name: str
    tag: int
    pack: Callable[[Vector], bytes]
    unpack: Callable[[bytes | memoryview, int], Vector]
    length: Callable[[int], int]


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


# int8: groups of 256 values, each group with the float32 scale that maps its largest magnitude to 127

GROUP = 256


def _pack_int8(values: Vector) -> bytes:
    k = len(values)
    scales = _int8_scales(values)
    steps = np.repeat(scales.astype(np.float64), GROUP)[:k]
    # A scale is zero if all of its group round to zero; float64, since a subnormal scale is a coarse one.
    quotients = np.divide(values, steps, out=np.zeros(k), where=steps > 0)
    return scales.astype("<f4").tobytes() + np.clip(np.rint(quotients), -127, 127).astype(np.int8).tobytes()


def _int8_scales(values: Vector) -> Vector:
    if not len(values):
        return np.empty(0, np.float32)
    peaks = np.maximum.reduceat(np.abs(values), np.arange(0, len(values), GROUP))
    scales = (peaks.astype(np.float64) / 127).astype(np.float32)
    # 127 times the rounded scale may lie beyond float32: the next smaller scale does not.
    return np.where(scales.astype(np.float64) * 127 > np.finfo(np.float32).max, np.nextafter(scales, 0), scales)


def _unpack_int8(data: bytes | memoryview, k: int) -> Vector:
    groups = -(-k // GROUP)
    scales: NDArray[np.float32] = np.frombuffer(data, "<f4", groups).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the decoder refuses what is not finite
        return np.frombuffer(data, np.int8, k, 4 * groups) * np.repeat(scales, GROUP)[:k]


def _length_int8(k: int) -> int:
    return k + 4 * -(-k // GROUP)


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
    magnitude = np.frombuffer(data, "<f4", 1).astype(np.float32)
    negative = np.unpackbits(np.frombuffer(data, np.uint8, -1, 4), count=k, bitorder="little")
    return np.concatenate([magnitude, -magnitude])[negative]


def _length_ternary(k: int) -> int:
    return 4 + -(-k // 8) if k else 0


FLOAT32 = ValueFormat("float32", 1, _pack_float32, _unpack_float32, lambda k: 4 * k)
FLOAT16 = ValueFormat("float16", 2, _pack_float16, _unpack_float16, lambda k: 2 * k)
INT8 = ValueFormat("int8", 3, _pack_int8, _unpack_int8, _length_int8)
TERNARY = ValueFormat("ternary", 4, _pack_ternary, _unpack_ternary, _length_ternary)

_FORMATS = (FLOAT32, FLOAT16, INT8, TERNARY)
_BY_NAME = {entry.name: entry for entry in _FORMATS}
_BY_TAG = {entry.tag: entry for entry in _FORMATS}


def names() -> tuple[str, ...]:
    """Return the names of all formats.

    >>> names()
    ('float32', 'float16', 'int8', 'ternary')
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
