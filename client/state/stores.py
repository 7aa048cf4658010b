"""Stores of a client's state, and an encoder's state as arrays by path.

`open_store(context, federation)` returns a file per federation and client where the node's configuration names a
`state-folder`, else Flower's `Context.state`, which ends with the SuperNode.
"""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from numpy.typing import NDArray

from fedpress.client.state import parts
from fedpress.compression import files, seeds
from fedpress.compression.errors import FedpressError
from fedpress.compression.messages import records
from fedpress.compression.tensors import array_file

FORMAT = 1
STYPE = "fedpress.state/1"
"""Form of the arrays in Flower's context: their values alone."""
_KEY = "fedpress.state"
MOMENTS = "fedpress.moments"
"""Key in `Context.state` of an ArrayRecord for the application's own: the state of its optimizer, between two rounds.

`compress` puts it there before the application trains, and takes what the application leaves there into the client's
state: durable together with the answer, so that no step is taken twice, and dropped where the residual is."""
_PART = "part/"


class StateError(FedpressError):
    """Stored client state cannot be read or written."""


class DamagedState(StateError):
    """Stored client state is torn or foreign. It has been moved aside, and the client has none."""


class Stored(NamedTuple):
    """State of a client as a store keeps it."""

    arrays: Mapping[str, NDArray[Any]]  # the encoder's state, flat; see `flatten_state`
    meta: Mapping[str, str]


class Store(Protocol):
    """Storage of one client's state in one federation.

    Law: `load()` after `save(stored)` returns equal arrays and meta; a crash during `save` leaves the previous state.
    """

    def load(self) -> Stored | None:
        """Return the state, or None for a new client.

        Raises:
            DamagedState: It is torn or foreign; it is moved aside, and the next `load` returns None.
            StateError: It cannot be read.
        """

    def save(self, stored: Stored) -> None:
        """Replace the state.

        Raises:
            StateError: It cannot be written; the previous state is untouched.
        """


def client_index(context: Context) -> int:
    """Return the client's stable number: the partition in simulations, the node id elsewhere."""
    return int(context.node_config.get("partition-id", context.node_id))


def tier(context: Context) -> str:
    """Return the tier of this node by its configuration; empty where that names none.

    `tier` names it; `probe` is a file that `fedpress probe SCENARIO --json FILE` wrote on this device.

    Raises:
        ProbeError: There is no such file, it holds something else, or it names no tier.
    """
    if named := context.node_config.get("tier"):
        return str(named)
    if path := context.node_config.get("probe"):
        from fedpress.client import probe  # imports torch, which a node that trains with something else may lack

        return probe.tier_in(str(path))
    return ""


def open_store(context: Context, federation: str) -> Store:
    """Return the store that the node's configuration asks for.

    Args:
        context: Flower's context of the client.
        federation: Name of the federation.
    """
    folder = context.node_config.get("state-folder")
    if folder:
        return FolderStore(Path(str(folder)), federation, client_index(context))
    return ContextStore(context, federation)


def moments(context: Context) -> dict[str, NDArray[Any]]:
    """Return the optimizer's state that the last round has left (`MOMENTS`); empty: there is none.

    Args:
        context: Flower's context of the client.
    """
    record = context.state.array_records.get(MOMENTS)
    return {} if record is None else {name: array.numpy() for name, array in record.items()}


def leave_moments(context: Context, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put the optimizer's state where the next round finds it (`MOMENTS`).

    Args:
        context: Flower's context of the client.
        arrays: Arrays by name; empty: nothing is left.
    """
    context.state.pop(MOMENTS, None)
    if arrays:
        context.state[MOMENTS] = ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


class ContextStore:
    """State in Flower's `Context.state`.

    Args:
        context: Flower's context of the client.
        federation: Name of the federation; another one's state is none.
    """

    def __init__(self, context: Context, federation: str) -> None:
        self._records = context.state
        self._federation = federation

    def load(self) -> Stored | None:
        """Return the state, or None when there is none for this federation."""
        meta = self._records.config_records.get(f"{_KEY}.meta")
        arrays = self._records.array_records.get(_KEY)
        if meta is None or arrays is None or meta.get("federation") != self._federation:
            return None
        return Stored(
            {name: _owned(array) for name, array in arrays.items()},
            {key: str(value) for key, value in meta.items() if key != "federation"},
        )

    def save(self, stored: Stored) -> None:
        """Replace the state."""
        self._records[_KEY] = records.of_arrays(
            (name, records.DerivedArray.of(array, STYPE)) for name, array in stored.arrays.items()
        )
        self._records[f"{_KEY}.meta"] = ConfigRecord({"federation": self._federation, **stored.meta})


def _owned(array: Array) -> NDArray[Any]:
    """Return the values of a stored array, not shared with the record: the encoder overwrites its state."""
    if isinstance(array, records.DerivedArray):
        return array.numpy()
    return np.frombuffer(array.data, array.dtype).reshape(array.shape).copy()


class FolderStore:
    """State in `FOLDER/FEDERATION/client-INDEX.safetensors`; written beside it, flushed to disk, then renamed.

    Large arrays stand in files of their own beside it (`parts`), and are written as what has changed.

    Args:
        folder: Folder of all federations and clients.
        federation: Name of the federation.
        index: Number of the client (`client_index`).
    """

    def __init__(self, folder: Path, federation: str, index: int) -> None:
        # A federation's name comes from the server: it must not lead out of the folder, nor may two share a path.
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in federation)[:40]
        self.path = folder / f"{safe}-{seeds.derive(federation):016x}" / f"client-{index}.safetensors"
        self._named: dict[str, str] = {}  # files of the state on the disk, by array

    def load(self) -> Stored | None:
        """Return the state, or None when there is no file."""
        if not self.path.exists():
            return None
        try:
            with files.open_regular(self.path) as file:
                arrays, meta = array_file.read(file)
        except OSError as error:
            raise StateError(f"cannot read the client's state {self.path}: {error}") from error
        except array_file.ArrayFileError as error:
            raise self._damaged(str(error)) from error
        if meta.pop("format", None) != str(FORMAT):
            raise self._damaged(f"it is not in format {FORMAT}")
        if meta.pop("checksum", None) != _checksum(arrays, meta):
            raise self._damaged("its checksum does not fit its content")
        named = _popped(meta)
        try:
            arrays = parts.load(self.path, arrays, named)
        except OSError as error:
            raise StateError(f"cannot read the client's state {self.path}: {error}") from error
        except parts.PartError as error:
            raise self._damaged(str(error)) from error
        self._named = named
        return Stored(arrays, meta)

    def save(self, stored: Stored) -> None:
        """Replace the state atomically."""
        meta = dict(stored.meta)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            arrays, named = parts.save(self.path, stored.arrays, self._named)
            # numpy makes arrays of shape () contiguous with shape (1,)
            arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
            meta |= {_PART + name: text for name, text in named.items()}
            header = {**meta, "format": str(FORMAT), "checksum": _checksum(arrays, meta)}
            files.write_atomically(self.path, array_file.pieces(arrays, header))
            parts.remove_unnamed(self.path, named)
            self._named = named
        except OSError as error:
            raise StateError(
                f"cannot write the client's state to {self.path}: {error}; the last good state is untouched"
            ) from error

    def _damaged(self, reason: str) -> DamagedState:
        try:
            aside = files.move_aside(self.path)
        except OSError as error:
            raise StateError(
                f"the client state {self.path} cannot be used: {reason}; nor can it be moved aside: {error}"
            ) from error
        return DamagedState(f"the client state {self.path} cannot be used: {reason}. It is now {aside.name}")


def _checksum(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, str]) -> str:
    crc = zlib.crc32(repr(sorted(meta.items())).encode())

    def update(data: Any) -> None:
        nonlocal crc
        crc = zlib.crc32(data, crc)

    array_file.checksum(arrays, update)
    return f"{crc:08x}"


def _popped(meta: dict[str, str]) -> dict[str, str]:
    """Take what names the files of large arrays out of the texts of a state, and return it by array."""
    return {name.removeprefix(_PART): meta.pop(name) for name in list(meta) if name.startswith(_PART)}


def flatten_state(state: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of an encoder's state by path.

    A state is None, an array, or a NamedTuple of states.

    Raises:
        TypeError: The state holds anything else.
    """
    return dict(_leaves(state, ""))


def _leaves(state: Any, path: str) -> Iterator[tuple[str, NDArray[Any]]]:
    if state is None:
        return
    if isinstance(state, np.ndarray):
        yield path or "state", state
    elif isinstance(state, tuple) and hasattr(state, "_fields"):
        for name in state._fields:
            yield from _leaves(getattr(state, name), f"{path}.{name}" if path else name)
    else:
        raise TypeError(
            f"encoder state at {path!r} is a {type(state).__name__}; it must be None, an array or a NamedTuple"
        )


def restore_state(template: Any, arrays: Mapping[str, NDArray[Any]], path: str = "") -> Any:
    """Return a state shaped like `template` with its leaves taken from `arrays`.

    Args:
        template: A state of the same encoder, as `init` returns it.
        arrays: The leaves by path (`flatten_state`).
        path: Path of the template in the whole state; empty: it is the whole.

    Raises:
        StateError: A leaf is missing or has another type: the state belongs to another encoder.
    """
    if template is None:
        return None
    if isinstance(template, np.ndarray):
        leaf = arrays.get(path or "state")
        if leaf is None or leaf.dtype != template.dtype or leaf.ndim != template.ndim:
            raise StateError(
                f"stored state has no fitting {path!r}: it was made by another encoder; remove it to start anew"
            )
        return leaf
    return type(template)(
        *(restore_state(getattr(template, f), arrays, f"{path}.{f}" if path else f) for f in template._fields)
    )
