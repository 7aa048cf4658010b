"""Named arrays <-> one flat float32 vector of shape (n,)."""

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import errors
from fedpress.compression.tensors.layout import Layout, TensorSpec, Vector, check, checked


def flatten(arrays: Mapping[str, NDArray[Any]], layout: Layout, out: Vector | None = None) -> Vector:
    """Return the parameters among `arrays` as one float32 vector of shape (n,).

    float64 is rounded to the nearest float32 (beyond its range: infinity, which encoders refuse).

    Args:
        arrays: Named arrays; bfloat16 as an array of that dtype or as its uint16 bit patterns. Buffers and aliases of
            the layout are ignored.
        layout: Order, shapes and dtypes; entries outside its mask are left out, whatever their values.
        out: Vector of the layout, float32 (n,), that is overwritten and returned; None: a new one. After an error it
            may be overwritten in part.

    Raises:
        LayoutError: A parameter is missing, a name is unknown, or a shape or dtype differs.

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((TensorSpec("weight", (2,), "float16"), TensorSpec("scale", (), "float64")))
    >>> flatten({"scale": np.array(3.0), "weight": np.array([1, 2], np.float16)}, layout)
    array([1., 2., 3.], dtype=float32)
    """
    _check_names(arrays, layout)
    vector = out if out is not None and layout.mask is None else np.empty(layout.full.size, np.float32)
    for spec, start in zip(layout.parameters, layout.full.offsets[:-1], strict=True):
        vector[start : start + spec.size] = values(arrays, spec)
    return vector if layout.mask is None else np.take(vector, layout.mask.positions, out=out)


def difference(
    arrays: Mapping[str, NDArray[Any]],
    layout: Layout,
    start: Mapping[str, NDArray[Any]],
    done: Callable[[str], None] = lambda name: None,
) -> Vector:
    """Return `flatten(arrays, layout) - flatten(start, layout)`; one array of each is read at a time.

    Args:
        arrays: As for `flatten`.
        layout: As for `flatten`.
        start: As for `flatten`.
        done: Called with the name of each array that is no longer needed.

    Raises:
        LayoutError: As `flatten`.
    """
    _check_names(arrays, layout)
    update = np.empty(layout.size, np.float32)
    for number, spec in enumerate(layout.parameters):
        begin, end = layout.offsets[number : number + 2].tolist()
        after = values(arrays, spec)
        done(spec.name)
        before = values(start, spec)
        if layout.mask is not None:
            inside = layout.mask.positions[begin:end] - layout.full.offsets[number]
            after, before = after[inside], before[inside]
        np.subtract(after, before, out=update[begin:end])
    return update


def values(arrays: Mapping[str, NDArray[Any]], spec: TensorSpec) -> Vector:
    """Return one parameter among named arrays as float32, shape (size,); it may share memory with its array.

    Args:
        arrays: As for `flatten`.
        spec: The parameter.

    Raises:
        LayoutError: It is missing, or its shape or dtype differs.
    """
    return _values(checked(arrays, spec), spec)


def _values(array: NDArray[Any], spec: TensorSpec) -> Vector:
    """Return the values of one parameter as float32, shape (size,)."""
    if spec.dtype == "bfloat16":
        return from_bfloat16(array.view(np.uint16)).reshape(-1)
    with np.errstate(over="ignore"):  # refused by the encoder, with a better message
        return array.astype(np.float32, copy=False).reshape(-1)


def unflatten(vector: Vector, layout: Layout) -> dict[str, NDArray[Any]]:
    """Return the parameters in `vector`, copied, in the layout's shapes and dtypes; aliases included, buffers not.

    Entries outside the layout's mask are zeros. Values are rounded to the nearest, ties to even. bfloat16 is returned
    as uint16 bit patterns, since numpy has no such dtype.

    Args:
        vector: float32, shape (n,), contiguous.
        layout: The layout of the vector.

    Raises:
        LayoutError: The vector is not float32 of shape (n,).

    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((TensorSpec("weight", (2, 1), "float32"),), tied=(("head", "weight"),))
    >>> sorted(unflatten(np.array([1, 2], np.float32), layout))
    ['head', 'weight']
    """
    check(vector, layout)
    arrays = {name: read() for name, read in readers(lambda number, part: vector[part], layout).items()}
    for alias, canonical in layout.tied:
        arrays[alias] = arrays[canonical]
    return arrays


def readers(part: Callable[[int, slice], Vector], layout: Layout) -> dict[str, Callable[[], NDArray[Any]]]:
    """Return for each parameter and each alias a function that makes its array, as `unflatten` does.

    Args:
        part: Called when an array is made, with the number of its tensor and its place in the vector: returns this
            part of the vector, float32.
        layout: The layout of the vector.
    """
    tensors = zip(layout.parameters, range(len(layout.parameters)), strict=True)
    made = {spec.name: partial(_array, part, number, layout) for spec, number in tensors}
    return made | {alias: made[canonical] for alias, canonical in layout.tied}


def _array(part: Callable[[int, slice], Vector], number: int, layout: Layout) -> NDArray[Any]:
    """Return the array of one parameter, a new one in its shape and dtype."""
    spec, (start, stop) = layout.parameters[number], layout.offsets[number : number + 2].tolist()
    values = part(number, slice(start, stop))
    owned = values.base is None
    if layout.mask is not None:
        compact, values = values, np.zeros(spec.size, np.float32)
        values[layout.mask.positions[start:stop] - layout.full.offsets[number]] = compact
        owned = True
    if spec.dtype == "bfloat16":
        return to_bfloat16(values.reshape(spec.shape))
    with np.errstate(over="ignore"):
        return values.reshape(spec.shape).astype(spec.dtype, copy=not owned)


def flags(layout: Layout) -> dict[str, NDArray[np.bool_]]:
    """Return the layout's mask as a boolean array for each parameter, in its shape; an empty dict without a mask.

    >>> from fedpress.compression.tensors.mask import Mask
    >>> from fedpress.compression.tensors.layout import TensorSpec
    >>> layout = Layout((TensorSpec("weight", (2, 2), "float32"),), tied=(("head", "weight"),))
    >>> flags(layout.within(Mask.at(np.array([1, 2]), 4)))["head"].tolist()
    [[False, True], [True, False]]
    """
    if layout.mask is None:
        return {}
    parts = np.split(layout.mask.flags, layout.full.offsets[1:-1])
    shaped = {spec.name: part.reshape(spec.shape) for spec, part in zip(layout.parameters, parts, strict=True)}
    return shaped | {alias: shaped[canonical] for alias, canonical in layout.tied}


def frozen(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> dict[str, NDArray[Any]]:
    """Return the frozen parameters among `arrays`, as they are.

    Args:
        arrays: Named arrays of a model.
        layout: The layout of the model.

    Raises:
        LayoutError: One is missing, or its shape or dtype differs.
    """
    return {spec.name: checked(arrays, spec) for spec in layout.frozen}


def digest(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> bytes:
    """Return the SHA-256 of the frozen parameters among `arrays`, bit for bit; empty where the layout has none.

    Args:
        arrays: Named arrays of a model.
        layout: The layout of the model.

    Raises:
        LayoutError: One is missing, or its shape or dtype differs.
    """
    if not layout.frozen:
        return b""
    total = sha256()
    for name, array in frozen(arrays, layout).items():
        total.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        # As bytes in place: a pretrained base is large, and 0-d arrays have no other view.
        total.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
    return total.digest()


def _check_names(arrays: Mapping[str, NDArray[Any]], layout: Layout) -> None:
    known = {spec.name for spec in (*layout.parameters, *layout.buffers, *layout.frozen)}
    known |= {alias for alias, _ in layout.tied}
    unknown = [name for name in arrays if name not in known]
    if unknown:
        raise errors.LayoutError(
            f"{len(unknown)} arrays are not in the layout, the first is {unknown[0]!r}; is it another model's layout?"
        )


def from_bfloat16(patterns: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bfloat16 bit patterns."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bit patterns of the nearest bfloat16 values, ties to even; a NaN stays one."""
    bits = values.reshape(-1).view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16).reshape(values.shape)
