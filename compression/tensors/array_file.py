"""Files of named arrays, in the format of safetensors, written and read array by array.

The library of that name makes a copy of all arrays on the way to a file, and maps the whole file on the way back. Here
nothing of the size of a model is made but the arrays themselves.

    8 bytes    length of the header, little-endian
    header     JSON: name -> {"dtype", "shape", "data_offsets"}, and "__metadata__" -> texts by name
    arrays     one after the other, little-endian
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression.errors import FedpressError

MOST_HEADER = 100_000_000
"""Bytes of a header, as in safetensors."""
_LENGTH = 8
_BLOCK = 1 << 20
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16", "int32": "I32",
    "uint32": "U32", "float32": "F32", "int64": "I64", "uint64": "U64", "float64": "F64",
}  # fmt: skip
_NAMES = {tag: name for name, tag in _DTYPES.items()}


class ArrayFileError(FedpressError, ValueError):
    """The bytes are not those of a file of arrays."""


def pieces(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the content of a file piece by piece; arrays are not copied.

    Args:
        arrays: Contiguous arrays by name.
        metadata: Texts by name.
    """
    ordered = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in ordered:
        array, start = arrays[name], end
        end += array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    yield len(text).to_bytes(_LENGTH, "little") + text
    for name in ordered:
        yield view(arrays[name])


def view(array: NDArray[Any]) -> memoryview:
    """Return the little-endian bytes of a contiguous array, not copied where the machine is little-endian."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


class Place(NamedTuple):
    """An array in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    stop: int


def read(file: BinaryIO) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays of a file, which the caller owns, and its metadata.

    Args:
        file: Bytes of any origin, from the beginning.

    Raises:
        ArrayFileError: They are torn, or no file of arrays.
        OSError: They cannot be read.
    """
    places, metadata = index(file)
    return {name: read_array(file, place) for name, place in places.items()}, metadata


def index(file: BinaryIO) -> tuple[dict[str, Place], dict[str, str]]:
    """Return the places of a file's arrays, and its metadata, without reading an array.

    Args:
        file: Bytes of any origin, from the beginning.

    Raises:
        ArrayFileError: They are torn, or no file of arrays.
        OSError: They cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH), "little")
    if size < _LENGTH or length > min(MOST_HEADER, size - _LENGTH):
        raise ArrayFileError(f"it has {size} bytes, and a header of {length}: torn, or no file of arrays")
    first = _LENGTH + length
    try:
        header = json.loads(file.read(length))
        metadata = {str(name): str(text) for name, text in header.pop("__metadata__", {}).items()}
        entries = sorted((tuple(entry["data_offsets"]), name, entry) for name, entry in header.items())
        places: dict[str, Place] = {}
        end = 0
        for (start, stop), name, entry in entries:
            dtype, shape = np.dtype(_NAMES[entry["dtype"]]), tuple(entry["shape"])
            if not all(type(number) is int for number in (*shape, start, stop)):
                raise ArrayFileError(f"the array {name!r} has a shape of other things than numbers: {shape}")
            # In Python's integers, which do not overflow, and before anything is allocated.
            count = 1
            for extent in shape:
                count *= extent
            if start != end or min(shape, default=0) < 0 or stop - start != count * dtype.itemsize:
                raise ArrayFileError(f"the array {name!r} does not have the place that its shape needs")
            if first + stop > size:
                raise ArrayFileError(f"it ends within the array {name!r}")
            places[name], end = Place(dtype, shape, first + start, first + stop), stop
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, ArrayFileError):
            raise
        raise ArrayFileError(f"its header cannot be read ({type(error).__name__}: {error})") from error
    if first + end != size:
        raise ArrayFileError("it goes on after its last array")
    return places, metadata


def read_array(file: BinaryIO, place: Place) -> NDArray[Any]:
    """Return an array of a file, which the caller owns.

    Args:
        file: The file.
        place: The array's place in it (`index`).

    Raises:
        ArrayFileError: The file has become shorter since.
        OSError: It cannot be read.
    """
    array = np.empty(place.shape, place.dtype.newbyteorder("<"))
    if array.nbytes:
        file.seek(place.start)
        target = array.reshape(-1).view(np.uint8).data
        while len(target):  # a call reads at most 2 GiB
            got = file.readinto(target)  # type: ignore[attr-defined]
            if not got:
                raise ArrayFileError("it ends early")
            target = target[got:]
    if place.dtype == np.bool_:  # any byte may come; only 0 and 1 are valid in memory
        return np.asarray(array.view(np.uint8) != 0)
    return array.astype(place.dtype, copy=False)


def checksum_of_file(file: BinaryIO, places: Mapping[str, Place], update: Callable[[Any], None]) -> None:
    """Feed a checksum as `checksum` does, from a file: no array is made.

    Args:
        file: The file.
        places: Places of its arrays (`index`).
        update: Takes the bytes.

    Raises:
        ArrayFileError: The file has become shorter since.
        OSError: It cannot be read.
    """
    block = bytearray(_BLOCK)
    for name in sorted(places):
        dtype, shape, start, stop = places[name]
        update(f"{name} {dtype} {shape}".encode())
        file.seek(start)
        while start < stop:
            got = file.readinto(memoryview(block)[: stop - start])  # type: ignore[attr-defined]
            if not got:
                raise ArrayFileError("it ends early")
            update(memoryview(block)[:got])
            start += got


def checksum(arrays: Mapping[str, NDArray[Any]], update: Callable[[Any], None]) -> None:
    """Feed a checksum with names, types, shapes and bytes of arrays, none of which is copied.

    Args:
        arrays: Contiguous arrays by name.
        update: Takes the bytes.
    """
    for name in sorted(arrays):
        update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        update(view(arrays[name]))
