"""Large arrays of a client's state, each in a file of its own that is written once, and what has changed since.

    client-3.safetensors               the state; for a large array its name, and its entries that have changed
    client-3.residual-1f3a.array       one large array, as it was when the file was written

Where few entries of an array have changed, as those of the held model do in a round, these are written with the state,
and its file stays. The state is renamed into its place last, so that after a crash it names files that are whole, and
files that it does not name are left over.
"""

import secrets
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpress.compression import files
from fedpress.compression.tensors import array_file
from fedpress.compression.tensors.layout import BLOCK

LARGE = 1 << 22
"""Bytes from which an array has a file of its own; smaller ones are quicker written than compared."""
CHANGED = 1 / 8
"""Fraction of an array's entries that may have changed before its file is written anew."""
_SUFFIX = ".array"
_PLACES, _VALUES = "/places", "/values"


class PartError(ValueError):
    """The file of a large array is missing, torn, or another one."""


class _Base(NamedTuple):
    """File of an array, as the state names it."""

    name: str
    checksum: str
    kind: str  # dtype and shape


def save(path: Path, arrays: Mapping[str, NDArray[Any]], before: Mapping[str, str]) -> tuple[
    dict[str, NDArray[Any]], dict[str, str]
]:  # fmt: skip
    """Write the large ones among some arrays; their files are on the disk when this returns.

    Args:
        path: File of the state.
        arrays: The arrays by name.
        before: What names the files of the state as it is on the disk (the second value returned for that).

    Returns:
        The arrays that go into the state itself, and the texts that name the files, by array.
    """
    kept: dict[str, NDArray[Any]] = {}
    named: dict[str, str] = {}
    for name, array in arrays.items():
        if array.nbytes < LARGE:
            kept[name] = array
            continue
        flat = np.ascontiguousarray(array).reshape(-1)
        base = _Base(*before[name].split()) if name in before else None
        same_kind = base is not None and base.kind == _kind(array)
        places = _changed(path.with_name(base.name), flat) if base and same_kind else None
        if base is None or places is None:
            base, places = _written(path, name, array), None
        if places is not None and len(places):
            kept[name + _PLACES], kept[name + _VALUES] = places, flat[places]
        named[name] = " ".join(base)
    return kept, named


def load(path: Path, arrays: Mapping[str, NDArray[Any]], named: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Return all arrays of a state.

    Args:
        path: File of the state.
        arrays: The arrays in it.
        named: Texts that name the files of the others, by array.

    Raises:
        PartError: A file is missing, torn, or another one.
        OSError: A file cannot be read.
    """
    whole = dict(arrays)
    for name, text in named.items():
        base = _Base(*text.split())
        try:
            with files.open_regular(path.with_name(Path(base.name).name)) as file:
                stored, _ = array_file.read(file)
        except FileNotFoundError:
            raise PartError(f"the file of its part {name!r}, {base.name}, is missing") from None
        except array_file.ArrayFileError as error:
            raise PartError(f"the file of its part {name!r}, {base.name}: {error}") from None
        if list(stored) != [name] or _checksum(stored[name]) != base.checksum:
            raise PartError(f"the file of its part {name!r}, {base.name}, is another one, or damaged")
        array = stored.pop(name)
        if name + _PLACES in whole:
            array.reshape(-1)[whole.pop(name + _PLACES)] = whole.pop(name + _VALUES)
        whole[name] = array
    return whole


def remove_unnamed(path: Path, named: Mapping[str, str]) -> None:
    """Remove the files of large arrays that a state does not name.

    Args:
        path: File of the state.
        named: Texts that name files, by array.
    """
    kept = {_Base(*text.split()).name for text in named.values()}
    for part in path.parent.glob(f"{path.stem}.*{_SUFFIX}"):
        if part.name not in kept:
            part.unlink(missing_ok=True)


def _written(path: Path, name: str, array: NDArray[Any]) -> _Base:
    """Write the file of an array under a new name: the state on the disk may still name the one before."""
    checksum = _checksum(array)
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
    target = path.with_name(f"{path.stem}.{safe}-{secrets.token_hex(8)}{_SUFFIX}")
    files.write_atomically(target, array_file.pieces({name: array}, {}))
    return _Base(target.name, checksum, _kind(array))


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype.name}:{'x'.join(map(str, array.shape))}"


def _checksum(array: NDArray[Any]) -> str:
    crc = 0

    def update(data: Any) -> None:
        nonlocal crc
        crc = zlib.crc32(data, crc)

    array_file.checksum({"": array}, update)
    return f"{crc:08x}"


def _changed(path: Path, array: NDArray[Any]) -> NDArray[np.integer[Any]] | None:
    """Return where an array differs from its file, bit by bit; None: in too many places, or the file is another's."""
    if not path.exists() or path.stat().st_size < array.nbytes:
        return None
    places: list[NDArray[np.integer[Any]]] = [np.empty(0, np.uint32)]
    count, word = 0, np.dtype(f"<u{array.dtype.itemsize}")
    with path.open("rb") as file:
        file.seek(path.stat().st_size - array.nbytes)  # its only array ends it
        for start, block in _blocks(array):
            stored = file.read(block.nbytes)
            if len(stored) != block.nbytes:
                return None
            differs = np.frombuffer(stored, word) != np.frombuffer(array_file.view(block), word)
            places.append((np.flatnonzero(differs) + start).astype(np.uint32 if start < 1 << 31 else np.int64))
            count += len(places[-1])
            if count > CHANGED * len(array):
                return None
    return np.concatenate(places)


def _blocks(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, len(array), BLOCK):
        yield start, array[start : start + BLOCK]
