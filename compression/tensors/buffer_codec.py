"""Buffers (running means and variances, counters, constants) <-> bytes, in their own dtypes.

`pack` writes all of them. In a message travel those alone that differ from what the receiver has (`pack_changes`): the
fixed projections of an adapter, position tables and masks never do.

Buffers that change are finite. One that a model comes with may hold infinity or NaN, such as a causal mask of -inf, as
long as nobody changes these entries.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors.layout import Layout, checked, names_a_variance

NONE: Mapping[str, NDArray[Any]] = MappingProxyType({})
_CHECKSUM_BYTES = 4


def pack(arrays: Mapping[str, NDArray[Any]], layout: Layout, before: Mapping[str, NDArray[Any]] | None = NONE) -> bytes:
    """Return the buffers among `arrays` as little-endian bytes, one after the other in the order of the layout.

    Args:
        arrays: Named arrays of a model; parameters among them are ignored.
        layout: The layout whose buffers are written.
        before: Buffers that these were made of, by name: an entry may be NaN or infinite where it was the same before;
            None: any entry may.

    Raises:
        LayoutError: A buffer is missing, or its shape or dtype differs.
        NonFiniteError: A buffer holds NaN or infinity that it did not hold before.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((), (TensorSpec("num_batches_tracked", (), "int64"),))
    >>> pack({"num_batches_tracked": np.array(258)}, layout)
    b'\\x02\\x01\\x00\\x00\\x00\\x00\\x00\\x00'
    """
    parts = []
    for spec in layout.buffers:
        array = checked(arrays, spec)
        if spec.dtype == "bfloat16":
            array = array.view(np.uint16)
        if before is not None and not _finite(array, spec.dtype, before.get(spec.name)):
            raise errors.NonFiniteError(f"buffer {spec.name!r} has come to hold NaN or infinity; did training diverge?")
        parts.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)


def unpack(data: bytes, layout: Layout, before: Mapping[str, NDArray[Any]] | None = NONE) -> dict[str, NDArray[Any]]:
    """Return the buffers that `pack` wrote.

    Law: unpack(pack(arrays, layout, before), layout, before) == the buffers among arrays, bit for bit.

    Args:
        data: Bytes of any origin.
        layout: The sender's layout.
        before: As for `pack`; of the receiver's own. None: the sender is trusted.

    Returns:
        Arrays by name, in the layout's shapes and dtypes (bfloat16 as uint16 patterns).

    Raises:
        Truncated: `data` is shorter than the layout's buffers.
        LengthMismatch: `data` is longer than the layout's buffers.
        NonFiniteValues: A buffer holds NaN or infinity where `before` does not.
        NegativeVariance: An entry of a running variance is below zero.
    """
    expected = sum(spec.size * _dtype(spec.dtype).itemsize for spec in layout.buffers)
    if len(data) != expected:
        fault = errors.Truncated if len(data) < expected else errors.LengthMismatch
        raise fault(f"buffers take {expected} bytes in this layout, got {len(data)}; another model?")
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for spec in layout.buffers:
        dtype = _dtype(spec.dtype)
        stop = start + spec.size * dtype.itemsize
        if dtype == np.bool_:  # any byte may come; only 0 and 1 are valid in memory
            array = np.frombuffer(data[start:stop], np.uint8) != 0
        else:
            array = np.frombuffer(data[start:stop], dtype.newbyteorder("<")).astype(dtype)
        array = array.reshape(spec.shape)
        if before is not None and not _finite(array, spec.dtype, before.get(spec.name)):
            raise errors.NonFiniteValues(f"buffer {spec.name!r} holds NaN or infinity")
        if names_a_variance(spec.name) and _negative(array, spec.dtype):
            raise errors.NegativeVariance(f"buffer {spec.name!r} is a variance and holds a value below zero")
        arrays[spec.name] = array
        start = stop
    return arrays


def changes(data: bytes, before: bytes, layout: Layout) -> list[bool]:
    """Return for each buffer whether it differs in a bit.

    Args:
        data: Buffers as `pack` writes them.
        before: The same buffers at another time, likewise.
        layout: The layout of both.
    """
    return [data[place] != before[place] for place in _places(layout)]


def pack_changes(data: bytes, changed: Sequence[bool], layout: Layout) -> bytes:
    """Return buffers as a message holds them: a bit for each, a checksum of all, and the changed ones.

    Args:
        data: All buffers, as `pack` writes them.
        changed: For each buffer, whether it is written; the receiver has the others.
        layout: The layout of the buffers.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((), (TensorSpec("count", (), "uint8"), TensorSpec("table", (9,), "uint8")))
    >>> len(pack_changes(bytes(10), [True, False], layout))  # 1 + 4 + 1
    6
    """
    if not layout.buffers:
        return b""
    flags = np.packbits(np.array(changed, np.bool_), bitorder="little").tobytes()
    parts = [data[place] for place, written in zip(_places(layout), changed, strict=True) if written]
    return b"".join([flags, zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little"), *parts])


def unpack_changes(data: bytes, before: bytes, layout: Layout) -> bytes:
    """Return all buffers, as `pack` writes them, of a message and those that are here.

    Law: unpack_changes(pack_changes(data, changes(data, before, layout), layout), before, layout) == data.

    Args:
        data: Bytes of any origin.
        before: The buffers that the sender counts on, as `pack` writes them; empty: there are none here.
        layout: The layout of the buffers.

    Raises:
        Truncated: `data` is shorter than its flags say.
        LengthMismatch: `data` is longer than that.
        UnknownFormat: A flag is of a buffer beyond the layout's.
        ReferenceMismatch: A buffer is not in `data`, and there is none here.
        ChecksumMismatch: The result is not what the sender had: damage, or the sender had other buffers before.
    """
    count = len(layout.buffers)
    start = -(-count // 8) + _CHECKSUM_BYTES if count else 0
    if len(data) < start:
        raise errors.Truncated(f"{count} buffers take {start} bytes at least, got {len(data)}; another model?")
    flags = np.unpackbits(np.frombuffer(data, np.uint8, -(-count // 8)), bitorder="little").astype(bool).tolist()
    if any(flags[count:]):
        raise errors.UnknownFormat(f"flags of more than {count} buffers; another model?")
    places = list(_places(layout))
    changed = [place for place, written in zip(places, flags, strict=False) if written]
    expected = start + sum(place.stop - place.start for place in changed)
    if len(data) != expected:
        fault = errors.Truncated if len(data) < expected else errors.LengthMismatch
        raise fault(f"{len(changed)} of {count} buffers take {expected} bytes, got {len(data)}; another model?")
    size = places[-1].stop if places else 0
    if len(changed) < count and len(before) != size:
        raise errors.ReferenceMismatch(f"{count - len(changed)} of {count} buffers are not sent, and not here")
    whole = bytearray(before or size)
    for place in changed:
        stop = start + place.stop - place.start
        whole[place], start = data[start:stop], stop
    if count and zlib.crc32(whole) != int.from_bytes(data[-(-count // 8) :][:_CHECKSUM_BYTES], "little"):
        raise errors.ChecksumMismatch(
            "the buffers are not those that the sender had: damaged on the way, or another mod has changed those that"
            " the sender was given"
        )
    return before if before == whole else bytes(whole)  # one object for all that are alike


def _places(layout: Layout) -> Iterator[slice]:
    """Yield the place of each buffer in the bytes of all."""
    start = 0
    for spec in layout.buffers:
        stop = start + spec.size * _dtype(spec.dtype).itemsize
        yield slice(start, stop)
        start = stop


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype("uint16" if name == "bfloat16" else name)


def _finite(array: NDArray[Any], dtype: str, before: NDArray[Any] | None) -> bool:
    """Return whether all entries are finite, but for those that were the same before."""
    finite = (array & 0x7F80) != 0x7F80 if dtype == "bfloat16" else np.isfinite(array)
    if finite.all():
        return True
    if before is None or before.shape != array.shape:
        return False
    return bool(np.array_equal(array[~finite], before[~finite], equal_nan=dtype != "bfloat16"))


def _negative(array: NDArray[Any], dtype: str) -> bool:
    if dtype == "bfloat16":
        return bool(np.any(array > 0x8000))  # the sign bit, but not of a zero
    return bool((array < 0).any())
