"""Buffers (running means and variances, counters) <-> bytes, dense, in their own dtypes.

Buffers that change are finite. One that a model comes with may hold infinity or NaN, such as a causal mask of -inf, as
long as nobody changes these entries.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors.layout import Layout, checked, names_a_variance

NONE: Mapping[str, NDArray[Any]] = MappingProxyType({})


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
