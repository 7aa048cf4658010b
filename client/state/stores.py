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

from fedpress.compression import files, seeds
from fedpress.compression.errors import FedpressError

FORMAT = 1
_KEY = "fedpress.state"
MOMENTS = "fedpress.moments"
"""Key in `Context.state` of an ArrayRecord for the application's own: the state of its optimizer, between two rounds.

`compress` puts it there before the application trains, and takes what the application leaves there into the client's
state: durable together with the answer, so that no step is taken twice, and dropped where the residual is."""


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
            # A copy: the encoder owns and overwrites its state, a record is read-only.
            {
                name: np.frombuffer(array.data, array.dtype).reshape(array.shape).copy()
                for name, array in arrays.items()
            },
            {key: str(value) for key, value in meta.items() if key != "federation"},
        )

    def save(self, stored: Stored) -> None:
        """Replace the state."""
        self._records[_KEY] = ArrayRecord(
            {
                name: Array(str(array.dtype), tuple(array.shape), "fedpress.state/1", array.tobytes())
                for name, array in stored.arrays.items()
            }
        )
        self._records[f"{_KEY}.meta"] = ConfigRecord({"federation": self._federation, **stored.meta})


class FolderStore:
    """State in `FOLDER/FEDERATION/client-INDEX.safetensors`; written beside it, flushed to disk, then renamed.

    Args:
        folder: Folder of all federations and clients.
        federation: Name of the federation.
        index: Number of the client (`client_index`).
    """

    def __init__(self, folder: Path, federation: str, index: int) -> None:
        # A federation's name comes from the server: it must not lead out of the folder, nor may two share a path.
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in federation)[:40]
        self.path = folder / f"{safe}-{seeds.derive(federation):016x}" / f"client-{index}.safetensors"

    def load(self) -> Stored | None:
        """Return the state, or None when there is no file."""
        import safetensors.numpy
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return None
        try:
            arrays = safetensors.numpy.load_file(self.path)
            with safe_open(self.path, framework="numpy") as file:
                meta = dict(file.metadata() or {})
        except OSError as error:
            raise StateError(f"cannot read the client's state {self.path}: {error}") from error
        except (SafetensorError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if meta.pop("format", None) != str(FORMAT):
            raise self._damaged(f"it is not in format {FORMAT}")
        if meta.pop("checksum", None) != _checksum(arrays, meta):
            raise self._damaged("its checksum does not fit its content")
        return Stored(arrays, meta)

    def save(self, stored: Stored) -> None:
        """Replace the state atomically."""
        import safetensors.numpy

        # numpy makes arrays of shape () contiguous with shape (1,)
        arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in stored.arrays.items()}
        meta = dict(stored.meta)
        data = safetensors.numpy.save(
            arrays, metadata={**meta, "format": str(FORMAT), "checksum": _checksum(arrays, meta)}
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(self.path, data)
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
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return f"{crc:08x}"


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
